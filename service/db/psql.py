"""Finds the newest psql on this machine that can open the database."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from service.db.address import NOWHERE, Address

PROBE_SECONDS = 10
INSTALL = "install PostgreSQL's client (Debian, Ubuntu: apt install postgresql-client; macOS: brew install libpq)"
SYSTEM_ROOTS_SINCE = (16,)  # libpq 16 knows sslrootcert=system; an older one looks for a file of that name


class NoPsql(Exception):
    """No psql can open the database; the message says what to install."""


@dataclass(frozen=True)
class Psql:
    """A psql that runs on this machine."""

    path: Path
    version: tuple[int, ...]
    has_tls: bool


def best_psql(address: Address, own: Path) -> Psql:
    """Returns the newest psql that can open the database, from the PATH or the service's own. Raises NoPsql.

    Where TLS may be used, one without it is the last resort; where TLS is required, it is no choice.
    """
    folders = dict.fromkeys(Path(folder) for folder in os.get_exec_path())
    paths = [path for folder in folders if os.access(path := folder / "psql", os.X_OK)]
    all_there = [found for path in (*paths, own) if (found := _probe(path))]
    able = all_there
    if address.may_need_tls:
        least = SYSTEM_ROOTS_SINCE if address.options.get("sslrootcert") == "system" else ()
        able = [psql for psql in all_there if psql.has_tls and psql.version >= least]
        if not able and address.needs_tls:
            wanted = "TLS, and PostgreSQL 16 or newer," if least else "TLS"
            raise NoPsql(
                f"DATABASE_URL's TLS options need a psql with {wanted} and there is none on the PATH: {INSTALL}"
            )
    if not all_there:
        raise NoPsql(f"There is no psql: {INSTALL}")
    return max(able or all_there, key=lambda psql: psql.version)


def _probe(path: Path) -> Psql | None:
    """Returns the psql at this path, None when it does not run."""
    try:
        version = re.search(r"(\d+)(?:\.(\d+))?", _said([path, "--version"]))
        # libpq checks sslmode before it looks for the host
        complaint = _said([path, "-X", "-w", f"host={NOWHERE} sslmode=require", "-c", ""])
    except (OSError, subprocess.SubprocessError):
        return None
    if version is None:
        return None
    return Psql(path, tuple(int(part or 0) for part in version.groups()), "not compiled in" not in complaint)


def _said(command: list[str | Path]) -> str:
    ended = subprocess.run(  # noqa: S603  (a psql of the PATH, with fixed arguments)
        command,
        env=os.environ | {"LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PROBE_SECONDS,
        check=False,
    )
    return ended.stdout + ended.stderr
