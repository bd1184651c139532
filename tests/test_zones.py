"""Zones: the names of the pinned tz database, and the day that it is in each."""

from datetime import UTC, date, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from time import process_time
from zoneinfo import ZoneInfo, reset_tzpath

import pytest

from service import zones
from service.zones import ZONES, is_zone, nearest, today


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "Etc/GMT-14", "America/Argentina/ComodRivadavia", "EST5EDT"])
def test_names_of_the_database_are_known(name: str) -> None:
    assert is_zone(name)
    assert nearest(name) == name


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("europe/berlin", "Europe/Berlin"),
        ("utc", "UTC"),
        (" Europe/Berlin", "Europe/Berlin"),
        ("America/New York", "America/New_York"),
        ("Europe/Berlni", "Europe/Berlin"),
        ("Kolkata", "Asia/Kolkata"),
        ("posix/Europe/Berlin", "Europe/Berlin"),
        ("right/Europe/Berlin", "Europe/Berlin"),
        ("Europe/Berlin\0", "Europe/Berlin"),
        ("", None),
        ("Mars/Olympus Mons", None),
        ("+02:00", None),
        ("<+02>-2", None),
        ("x" * 10_000, None),
    ],
)
def test_other_names_are_not_known_and_one_like_them_is_suggested(name: str, meant: str | None) -> None:
    assert not is_zone(name)
    assert nearest(name) == meant


def test_a_suggestion_takes_no_time() -> None:
    began = process_time()
    assert {nearest(f"America/Argentina/ComodRivadavi{number}") for number in range(100)} == {
        "America/Argentina/ComodRivadavia"
    }
    assert process_time() - began < 0.15, "to compare with all names takes ten times as long"


# what some machines have beside the database, what else is in its folder, what leaves it, what only PostgreSQL takes
NO_ZONES = (
    "localtime posixrules posix/UTC right/UTC zone.tab leapseconds __init__.py Europe Europe/ ../zones /etc/localtime"
)
NO_ZONES += " ./UTC Europe//Berlin CET-1CEST CEST GMT+1 Z EUROPE/BERLIN UTC\n"


@pytest.mark.parametrize("name", NO_ZONES.split(" "))
def test_what_is_no_zone_everywhere_is_none(name: str) -> None:
    assert not is_zone(name)


@pytest.mark.parametrize(
    ("zone", "moment", "day"),
    [
        ("UTC", "2027-01-31T23:59:59.999999+00:00", "2027-01-31"),
        ("UTC", "2027-02-01T00:00:00+00:00", "2027-02-01"),
        ("UTC", "2027-02-01T00:00:00+02:00", "2027-01-31"),
        ("Pacific/Kiritimati", "2027-01-31T09:59:59+00:00", "2027-01-31"),
        ("Pacific/Kiritimati", "2027-01-31T10:00:00+00:00", "2027-02-01"),
        ("Etc/GMT+12", "2027-02-01T11:59:59+00:00", "2027-01-31"),
        ("Etc/GMT+12", "2027-02-01T12:00:00+00:00", "2027-02-01"),
        ("Asia/Kolkata", "2027-01-31T18:29:59+00:00", "2027-01-31"),
        ("Asia/Kolkata", "2027-01-31T18:30:00+00:00", "2027-02-01"),
        # Berlin's clocks change in the night to 28 March, and in the night to 31 October
        ("Europe/Berlin", "2027-03-27T22:59:59+00:00", "2027-03-27"),
        ("Europe/Berlin", "2027-03-27T23:00:00+00:00", "2027-03-28"),
        ("Europe/Berlin", "2027-03-28T21:59:59+00:00", "2027-03-28"),
        ("Europe/Berlin", "2027-03-28T22:00:00+00:00", "2027-03-29"),
        ("Europe/Berlin", "2027-10-30T22:00:00+00:00", "2027-10-31"),
        ("Europe/Berlin", "2027-10-31T22:59:59+00:00", "2027-10-31"),
        ("Europe/Berlin", "2027-10-31T23:00:00+00:00", "2027-11-01"),
        ("Pacific/Apia", "2011-12-30T09:59:59+00:00", "2011-12-29"),  # which had no 30 December
        ("Pacific/Apia", "2011-12-30T10:00:00+00:00", "2011-12-31"),
    ],
)
def test_today_begins_at_midnight_in_the_zone(zone: str, moment: str, day: str) -> None:
    assert today(zone, datetime.fromisoformat(moment)) == date.fromisoformat(day)


def test_each_zone_has_a_day() -> None:
    now = datetime(2027, 1, 31, 12, tzinfo=UTC)
    assert {today(zone, now) - now.date() for zone in ZONES} == {timedelta(0), timedelta(days=1)}


def test_the_database_of_the_machine_does_not_count(tmp_path: Path) -> None:
    zone, now = "Asia/Kolkata", datetime(2027, 1, 31, 18, 30, tzinfo=UTC)
    (tmp_path / "Asia").mkdir()
    (tmp_path / zone).write_bytes(files("tzdata").joinpath("zoneinfo/UTC").read_bytes())
    zones._rules.cache_clear()
    reset_tzpath([tmp_path])
    try:
        assert now.astimezone(ZoneInfo.no_cache(zone)).date() == date(2027, 1, 31)  # the machine is wrong
        assert today(zone, now) == date(2027, 2, 1)
    finally:
        reset_tzpath()
