"""What the schema says of itself."""

from service.db.coalescer import Coalescer
from service.queries import read

SCHEMA_APPLIED = read("schema/schema_applied")


async def applied(db: Coalescer) -> tuple[set[str], set[str]]:
    """Returns the names of the migrations that the database has, and the hashes of the functions that it was given.

    Raises db.pool.SchemaBehind when it never had any.
    """
    migrations, functions = await db.fetch(SCHEMA_APPLIED)
    return set(migrations), set(functions)
