"""Time zones, as the pinned package tzdata has them: the machine's own database may be older, newer or absent."""

from collections import Counter
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
COMPARED = 5  # names, with a name that is none


def _pairs(name: str) -> set[str]:
    """Returns each two letters that stand side by side."""
    return {name[place : place + 2] for place in range(len(name) - 1)}


_WITH_PAIR: dict[str, list[str]] = {}
for _name in sorted(_IN_SMALL_LETTERS):
    for _pair in _pairs(_name):
        _WITH_PAIR.setdefault(_pair, []).append(_name)


def is_zone(name: str) -> bool:
    """Returns whether the pinned tz database has a zone of this name, in this spelling."""
    return name in ZONES


def nearest(name: str) -> str | None:
    """Returns the name of a zone that may have been meant, or None: `Europe/Berlin` for `europe/berlin`."""
    start = name[: 2 * _LENGTH].lower()  # a longer one is like none, and costs time
    # To compare with all takes milliseconds, and a batch may have a hundred of them.
    shared = Counter(zone for pair in _pairs(start) for zone in _WITH_PAIR.get(pair, ()))
    like = get_close_matches(start, [zone for zone, _ in shared.most_common(COMPARED)], n=1)
    return _IN_SMALL_LETTERS[like[0]] if like else None


def today(zone: str, now: datetime) -> date:
    """Returns the day that it is in the zone, for which `is_zone` is true, at the moment `now`, which has an offset."""
    return now.astimezone(_rules(zone)).date()


@cache  # at most one for each name in ZONES
def _rules(zone: str) -> ZoneInfo:
    # ZoneInfo(zone) would look in the machine's database first
    with files("tzdata").joinpath("zoneinfo", *zone.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file, key=zone)
