"""What the schema says of itself."""

from typing import NamedTuple

from service.db.coalescer import Coalescer
from service.queries import read

SCHEMA_APPLIED = read("schema/schema_applied", is_of_user=False)


class Applied(NamedTuple):
    """What the database has."""

    migrations: set[str]  # their names
    functions: set[str]  # the hashes of the sets of functions that it was ever given
    missing_rights: list[str]  # what the service's user may not do


async def applied(db: Coalescer) -> Applied:
    """Returns which migrations and functions the database has, and what it lacks of rights.

    Raises db.pool.SchemaBehind when it never had any, and RightMissing when even these cannot be read.
    """
    migrations, functions, missing_rights = await db.fetch(SCHEMA_APPLIED)
    return Applied(set(migrations), set(functions), missing_rights)
