"""The migrations: which there are, and how they are applied."""

from functools import cache
from pathlib import Path

import psycopg
import yoyo

FOLDER = Path(__file__).parent.parent / "migrations"

# Any number will do, as long as no other program uses it on the same database.
LOCK = 7_305_809_230_147_001


@cache
def known_migrations() -> frozenset[str]:
    """Returns the names of the migrations in `migrations/`."""
    return frozenset(migration.id for migration in yoyo.read_migrations(str(FOLDER)))


def migrate(url: str) -> list[str]:
    """Applies what is not applied yet; returns the names. Two at once are safe. Raises psycopg.Error."""
    # yoyo's own lock is a row, which a killed process leaves behind. This one ends with its transaction, on whatever
    # happens; it works through a transaction-mode pooler too. Who holds it knows that a row of yoyo's is a dead one.
    with psycopg.connect(url, connect_timeout=10) as guard:
        guard.execute("select pg_advisory_xact_lock(%s)", (LOCK,))
        backend = yoyo.get_backend(url.replace("postgresql:", "postgresql+psycopg:", 1))
        with backend:
            backend.break_lock()
            pending = backend.to_apply(yoyo.read_migrations(str(FOLDER)))
            with backend.lock():
                backend.apply_migrations(pending)
            return [migration.id for migration in pending]
