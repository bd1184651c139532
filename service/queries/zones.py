"""The time zones that PostgreSQL knows."""

from service.db.coalescer import Coalescer
from service.queries import read

ZONE_KNOWN = read("zones/zone_known", is_of_user=False)

_known: dict[str, bool] = {}  # at most one for each zone of the pinned tz database


async def is_known(db: Coalescer, name: str) -> bool:
    """Returns whether PostgreSQL knows this zone, for which zones.is_zone() is true; asks it once for each name."""
    if name not in _known:
        (_known[name],) = await db.fetch(ZONE_KNOWN, name)
    return _known[name]
