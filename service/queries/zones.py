"""Which time zones the database knows: its tz database may be older than the service's, or the system's."""

from service.db.coalescer import Coalescer
from service.queries import read

ZONE_KNOWN = read("zones/zone_known")

_known: dict[str, bool] = {}  # at most all names for which `zones.is_zone` is true


async def is_known(db: Coalescer, name: str) -> bool:
    """Returns whether the database knows the time zone, for which `zones.is_zone` is true; asks it once a process."""
    if name not in _known:
        (found,) = await db.fetch(ZONE_KNOWN, [name])
        _known[name] = name in found
    return _known[name]
