"""Time zones, as the pinned package tzdata has them: the machine's own database may be older, newer or absent."""

from datetime import date, datetime
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from zoneinfo import ZoneInfo

# All names of the tz database, links included. Not among them is what only some systems have beside it: `localtime`,
# `posixrules`, `posix/…`, `right/…`.
ZONES = frozenset(files("tzdata").joinpath("zones").read_text().split())
_IN_SMALL_LETTERS = {name.lower(): name for name in ZONES}
_LENGTH = max(map(len, ZONES))


def is_zone(name: str) -> bool:
    """Returns whether the pinned tz database has a zone of this name, in this spelling."""
    return name in ZONES


def nearest(name: str) -> str | None:
    """Returns the name of a zone that may have been meant, or None: `Europe/Berlin` for `europe/berlin`."""
    start = name[: 2 * _LENGTH].lower()  # a longer one is like none, and costs time
    like = get_close_matches(start, _IN_SMALL_LETTERS, n=1)
    return _IN_SMALL_LETTERS[like[0]] if like else None


def today(zone: str, now: datetime) -> date:
    """Returns the day that it is in the zone, for which `is_zone` is true, at the moment `now`, which has an offset."""
    return now.astimezone(_rules(zone)).date()


@cache  # at most one for each name in ZONES
def _rules(zone: str) -> ZoneInfo:
    # ZoneInfo(zone) would look in the machine's database first
    with files("tzdata").joinpath("zoneinfo", *zone.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file, key=zone)
