"""What the schema says of itself."""

from service.db.coalescer import Coalescer
from service.queries import read

SCHEMA_APPLIED = read("schema/schema_applied")


async def applied_migrations(db: Coalescer) -> set[str]:
    """Returns the names of the migrations that the database has. Raises database.SchemaBehind when it never had one."""
    row = await db.fetch(SCHEMA_APPLIED)
    return set(row["migrations"])
