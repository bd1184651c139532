"""Recurrence: each rule of the subset against a calendar that is walked day by day, and the limits."""

import random
import sys
from collections import defaultdict
from collections.abc import Callable
from datetime import date, timedelta
from types import FrameType
from typing import Any
from uuid import UUID, uuid5

import pytest

from service.recurrence import (
    RULE_LENGTH,
    UNDERSTOOD,
    UNDERSTOOD_AFTER_COMPLETION,
    canonical_rule,
    next_due,
    successor_id,
)

MONTH_END = date(2027, 1, 31)  # a Sunday
LEAP_DAY = date(2028, 2, 29)  # a Tuesday
DAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")


def after(rule: str, start: date, occurrence: int = 1) -> date | None:
    return next_due(canonical_rule(rule, start, "due"), "due", start, occurrence, date(1970, 1, 1))


def after_completion(rule: str, completed_on: date) -> date | None:
    return next_due(rule, "completion", date(1970, 1, 1), 1, completed_on)


def refusal(rule: str, due: date = MONTH_END, anchor: str = "due") -> str:
    with pytest.raises(ValueError, match=r"(?s).+") as error:
        canonical_rule(rule, due, anchor)
    return str(error.value)


class Calendar:
    """Twenty years around 2100, which is no leap year: each day by what it is, as somebody notes who walks them all."""

    def __init__(self) -> None:
        self.days: list[date] = []
        self.which: dict[tuple[str, Any], list[date]] = defaultdict(list)
        self.weeks: dict[str, dict[date, int]] = {day: {} for day in DAYS}  # by the day that they begin with
        day, week = date(2094, 1, 1), dict.fromkeys(DAYS, 0)
        while day.year < 2116:
            self.days.append(day)
            name = DAYS[day.weekday()]
            week[name] += 1
            for first_day in DAYS:
                self.weeks[first_day][day] = week[first_day]
            self.which["weekday", name].append(day)
            self.which["day", day.day].append(day)
            if (day + timedelta(days=1)).day == 1:
                for lacking in range(day.day + 1, 32):
                    self.which["day", lacking].append(day)
                self.which["day", -1].append(day)
            if (day + timedelta(weeks=1)).month != day.month:
                self.which["nth", (-1, name)].append(day)
            self.which["nth", ((day.day + 6) // 7, name)].append(day)
            day += timedelta(days=1)


CALENDAR = Calendar()
YEARS = timedelta(days=3653)


def random_days(dice: random.Random, frequency: str, start: date) -> tuple[dict[str, str], int, list[date]]:
    """Returns the parts of a rule that say which days, the month of a yearly rule, and all days that are meant."""
    if frequency == "DAILY":
        return {}, 0, CALENDAR.days
    if frequency == "WEEKLY":
        names = dice.choices(DAYS, k=dice.randint(0, 8))
        meant = set(names or [DAYS[start.weekday()]])
        days = [day for name in meant for day in CALENDAR.which["weekday", name]]
        return {"BYDAY": ",".join(names)} if names else {}, 0, days
    parts, month, longest = {}, start.month, 31
    if frequency == "YEARLY" and dice.random() < 0.8:
        month = dice.choice([start.month, 2, dice.randint(1, 12)])
        parts["BYMONTH"] = str(month)
        longest = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}.get(month, 31)
    kind = dice.choice(["day", "nth", "implied"]) if frequency == "MONTHLY" or parts else "implied"
    if kind == "day":
        number = dice.choice([-1, 28, 29, longest, dice.randint(1, longest)])
        return parts | {"BYMONTHDAY": str(number)}, month, CALENDAR.which["day", number]
    if kind == "nth":
        nth, name = dice.choice([1, 2, 3, 4, -1]), dice.choice(DAYS)
        sign = dice.choice(["", "+"]) if nth > 0 else ""
        return parts | {"BYDAY": f"{sign}{nth}{name}"}, month, CALENDAR.which["nth", (nth, name)]
    return parts, month, CALENDAR.which["day", start.day]


def random_end(dice: random.Random, start: date, dates: list[date]) -> dict[str, str]:
    """Returns no end, or one near the first or the last of the dates, or anywhere."""
    match dice.choice(["COUNT", "UNTIL", "", "", ""]):
        case "COUNT":
            count = dice.choice([1, 2, len(dates), len(dates) + 1, len(dates) + 2, dice.randint(1, 9999)])
            return {"COUNT": str(max(count, 1))}
        case "UNTIL":
            until = dice.choice([start, *dates[:20], *dates[-1:]]) + timedelta(days=dice.choice([0, 0, 1]))
            return {"UNTIL": until.strftime("%Y%m%d")}
    return {}


def random_rule(dice: random.Random) -> tuple[dict[str, str], date, list[date]]:
    """Returns the parts of a rule, its start, and the rule's dates in the ten years after that, without its end."""
    start = dice.choice(CALENDAR.days[365 : 365 * 10])
    if dice.random() < 0.4:  # where months differ
        start = dice.choice([day for day in CALENDAR.which["day", dice.choice([-1, 1, 29, 30])] if day.year < 2105])
    interval = dice.choice([1, 1, 2, 3, 4, 5, 12, dice.randint(1, 999)])
    frequency = dice.choice(["DAILY", "WEEKLY", "WEEKLY", "MONTHLY", "MONTHLY", "YEARLY", "YEARLY"])
    parts, month, days = random_days(dice, frequency, start)
    parts |= {"FREQ": frequency, "INTERVAL": str(interval)}
    if frequency == "WEEKLY" and dice.random() < 0.7:
        parts["WKST"] = dice.choice(DAYS)
    week = CALENDAR.weeks[parts.get("WKST", "MO")]
    in_period: dict[str, Callable[[date], bool]] = {
        "DAILY": lambda day: (day - start).days % interval == 0,
        "WEEKLY": lambda day: (week[day] - week[start]) % interval == 0,
        "MONTHLY": lambda day: (day.year * 12 + day.month - start.year * 12 - start.month) % interval == 0,
        "YEARLY": lambda day: day.month == month and (day.year - start.year) % interval == 0,
    }
    dates = sorted(day for day in days if start < day <= start + YEARS and in_period[frequency](day))
    return parts | random_end(dice, start, dates), start, dates


def written(dice: random.Random, parts: dict[str, str]) -> str:
    """Returns the rule as somebody may write it."""
    texts = [f"{name}={value}" for name, value in parts.items()]
    dice.shuffle(texts)
    text = dice.choice(["", "RRULE:", "\n "]) + ";".join(texts)
    return dice.choice([text, text.lower()])


def test_ten_thousand_rules_have_the_dates_that_a_walk_through_the_calendar_finds() -> None:
    dice = random.Random(15)  # noqa: S311  (the same each time)
    compared = ends = 0
    for _ in range(10_000):
        parts, start, dates = random_rule(dice)
        rule = canonical_rule(written(dice, parts), start, "due")
        assert canonical_rule(rule, start, "due") == rule
        numbers = range(1, len(dates) + 1)
        for number in {*numbers[:12], *numbers[-3:], *dice.sample(numbers, min(5, len(dates)))}:
            wanted = dates[number - 1]
            ended = number >= int(parts.get("COUNT", 10_000)) or f"{wanted:%Y%m%d}" > parts.get("UNTIL", "99991231")
            assert next_due(rule, "due", start, number, start) == (None if ended else wanted), (parts, start, number)
            compared += 1
            ends += ended
        later = next_due(rule, "due", start, len(dates) + 1, start)
        assert later is None or later > start + YEARS, (parts, start)
    assert compared > 100_000
    assert ends > 5_000


@pytest.mark.parametrize(
    ("text", "due", "canonical"),
    [
        ("FREQ=DAILY", MONTH_END, "FREQ=DAILY"),
        ("FREQ=WEEKLY", MONTH_END, "FREQ=WEEKLY;BYDAY=SU"),
        ("FREQ=MONTHLY", MONTH_END, "FREQ=MONTHLY;BYMONTHDAY=31"),
        ("FREQ=YEARLY", LEAP_DAY, "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29"),
        ("FREQ=YEARLY;BYMONTH=3", LEAP_DAY, "FREQ=YEARLY;BYMONTH=3;BYMONTHDAY=29"),
        ("FREQ=YEARLY;BYMONTH=4", MONTH_END, "FREQ=YEARLY;BYMONTH=4;BYMONTHDAY=-1"),  # it never has a 31st
        ("FREQ=YEARLY;BYMONTH=2;BYDAY=-1FR", MONTH_END, "FREQ=YEARLY;BYMONTH=2;BYDAY=-1FR"),
        ("FREQ=MONTHLY;BYMONTHDAY=-1", MONTH_END, "FREQ=MONTHLY;BYMONTHDAY=-1"),
        ("freq=daily", MONTH_END, "FREQ=DAILY"),
        ("RRULE:FREQ=DAILY", MONTH_END, "FREQ=DAILY"),
        (" \t\nrrule:FREQ=DAILY\r\n", MONTH_END, "FREQ=DAILY"),
        ("COUNT=3;INTERVAL=2;FREQ=DAILY", MONTH_END, "FREQ=DAILY;INTERVAL=2;COUNT=3"),
        (
            "UNTIL=20280101;WKST=SU;BYDAY=SU,FR,MO,FR,SU;INTERVAL=2;FREQ=WEEKLY",
            MONTH_END,
            "FREQ=WEEKLY;INTERVAL=2;BYDAY=MO,FR,SU;WKST=SU;UNTIL=20280101",
        ),
        ("FREQ=WEEKLY;WKST=MO;INTERVAL=1", MONTH_END, "FREQ=WEEKLY;BYDAY=SU"),
        ("FREQ=MONTHLY;BYDAY=+2TU", MONTH_END, "FREQ=MONTHLY;BYDAY=2TU"),
        ("FREQ=MONTHLY;BYDAY=2TU,02tu", MONTH_END, "FREQ=MONTHLY;BYDAY=2TU"),
        ("FREQ=MONTHLY;BYMONTHDAY=+05,5", MONTH_END, "FREQ=MONTHLY;BYMONTHDAY=5"),
        ("FREQ=YEARLY;BYMONTHDAY=10;BYMONTH=02", MONTH_END, "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=10"),
        ("FREQ=DAILY;INTERVAL=0010;COUNT=0100", MONTH_END, "FREQ=DAILY;INTERVAL=10;COUNT=100"),
    ],
)
def test_rules_get_one_form(text: str, due: date, canonical: str) -> None:
    assert canonical_rule(text, due, "due") == canonical
    assert canonical_rule(canonical, due, "due") == canonical


DAILY = "FREQ=DAILY;"
MONTHLY = "FREQ=MONTHLY;"
YEARLY = "FREQ=YEARLY;"


@pytest.mark.parametrize(
    ("taken", "refused"),
    [  # at the limit and beyond it
        (DAILY + "INTERVAL=1", DAILY + "INTERVAL=0"),
        (DAILY + "INTERVAL=999", DAILY + "INTERVAL=1000"),
        (DAILY + "COUNT=1", DAILY + "COUNT=0"),
        (DAILY + "COUNT=9999", DAILY + "COUNT=10000"),
        (DAILY + "UNTIL=20270131", DAILY + "UNTIL=20270130"),
        (DAILY + "UNTIL=99991231", DAILY + "UNTIL=100000101"),
        (DAILY + "UNTIL=20280229", DAILY + "UNTIL=20290229"),
        (MONTHLY + "BYMONTHDAY=1", MONTHLY + "BYMONTHDAY=0"),
        (MONTHLY + "BYMONTHDAY=31", MONTHLY + "BYMONTHDAY=32"),
        (MONTHLY + "BYMONTHDAY=-1", MONTHLY + "BYMONTHDAY=-2"),
        (MONTHLY + "BYDAY=1MO", MONTHLY + "BYDAY=0MO"),
        (MONTHLY + "BYDAY=4SU", MONTHLY + "BYDAY=5SU"),
        (MONTHLY + "BYDAY=-1SU", MONTHLY + "BYDAY=-2SU"),
        (YEARLY + "BYMONTH=1", YEARLY + "BYMONTH=0"),
        (YEARLY + "BYMONTH=12", YEARLY + "BYMONTH=13"),
        (YEARLY + "BYMONTH=2;BYMONTHDAY=29", YEARLY + "BYMONTH=2;BYMONTHDAY=30"),
        (YEARLY + "BYMONTH=11;BYMONTHDAY=30", YEARLY + "BYMONTH=11;BYMONTHDAY=31"),
        (YEARLY + "BYMONTH=12;BYMONTHDAY=31", YEARLY + "BYMONTH=12;BYMONTHDAY=32"),
        ("FREQ=DAILY" + " " * (RULE_LENGTH - 10), "FREQ=DAILY" + " " * (RULE_LENGTH - 9)),
    ],
)
def test_limits(taken: str, refused: str) -> None:
    assert canonical_rule(taken, MONTH_END, "due").startswith("FREQ=")
    assert UNDERSTOOD in refusal(refused)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "''"),
        ("DAILY", "'DAILY'"),
        ("INTERVAL=2", "FREQ is missing"),
        ("FREQ=SECONDLY", "FREQ cannot be 'SECONDLY'"),
        ("FREQ=HOURLY", "FREQ cannot be 'HOURLY'"),
        ("FREQ=", "FREQ cannot be ''"),
        ("FREQ=DAILY;", "'' is not understood"),
        ("FREQ=DAILY;;COUNT=2", "'' is not understood"),
        ("FREQ=DAILY; COUNT=2", "' COUNT' is not understood"),
        ("RRULE:RRULE:FREQ=DAILY", "'RRULE:FREQ' is not understood"),
        ("DTSTART:20270131\nRRULE:FREQ=DAILY", "is not understood"),
        ("FREQ=DAILY\nEXDATE:20270201", "FREQ cannot be"),
        ("FREQ=DAILY;DTSTART=20270131", "'DTSTART' is not understood"),
        ("FREQ=MONTHLY;BYDAY=MO,TU;BYSETPOS=-1", "'BYSETPOS' is not understood"),
        ("FREQ=DAILY;BYHOUR=9", "'BYHOUR' is not understood"),
        ("FREQ=YEARLY;BYWEEKNO=1", "'BYWEEKNO' is not understood"),
        ("FREQ=YEARLY;BYYEARDAY=1", "'BYYEARDAY' is not understood"),
        ("FREQ=DAILY;X=1", "'X' is not understood"),
        ("FREQ=DAILY;FREQ=DAILY", "FREQ is given twice"),
        ("FREQ=DAILY;count=1;COUNT=1", "COUNT is given twice"),
        ("FREQ=DAILY;COUNT=2;UNTIL=20280101", "COUNT and UNTIL exclude each other"),
        ("FREQ=DAILY;UNTIL=20260101", "before the due date, 2027-01-31"),
        ("FREQ=DAILY;UNTIL=20280101T000000Z", "UNTIL cannot be '20280101T000000Z'"),
        ("FREQ=DAILY;UNTIL=2028-01-01", "UNTIL cannot be '2028-01-01'"),
        ("FREQ=DAILY;UNTIL=20280230", "UNTIL=20280230 is no day of the calendar"),
        ("FREQ=DAILY;UNTIL=00000101", "UNTIL=00000101 is no day of the calendar"),
        ("FREQ=DAILY;INTERVAL=-1", "INTERVAL cannot be '-1'"),
        ("FREQ=DAILY;INTERVAL=+1", "INTERVAL cannot be '+1'"),
        ("FREQ=DAILY;INTERVAL=1.5", "INTERVAL cannot be '1.5'"),
        ("FREQ=DAILY;INTERVAL=1,2", "INTERVAL cannot be '1,2'"),
        ("FREQ=DAILY;INTERVAL=\u0662", "ASCII"),  # two, in Arabic digits
        ("FREQ=DA\u0131LY", "ASCII"),  # whose capital is an ASCII I
        ("FREQ=DAILY\0", "FREQ cannot be 'DAILY\\x00'"),
        ("\0FREQ=DAILY", "'\\x00FREQ' is not understood"),
        ("FREQ=DAILY\ud800", "ASCII"),
        ("FREQ=DAILY;BYDAY=MO", "BYDAY is not understood with FREQ=DAILY"),
        ("FREQ=DAILY;WKST=MO", "WKST is not understood with FREQ=DAILY"),
        ("FREQ=WEEKLY;BYDAY=MO,XX", "BYDAY cannot be 'MO,XX'"),
        ("FREQ=WEEKLY;BYDAY=MO,", "BYDAY cannot be 'MO,'"),
        ("FREQ=WEEKLY;BYDAY=MO,2TU", "the days of BYDAY have no number"),
        ("FREQ=WEEKLY;BYMONTHDAY=1", "BYMONTHDAY is not understood with FREQ=WEEKLY"),
        ("FREQ=WEEKLY;WKST=MO,TU", "WKST cannot be 'MO,TU'"),
        ("FREQ=MONTHLY;BYDAY=FR", "BYDAY needs a number, like 1FR"),
        ("FREQ=MONTHLY;BYDAY=1MO,2MO", "BYDAY is a single value"),
        ("FREQ=MONTHLY;BYMONTHDAY=1,15", "BYMONTHDAY is a single value"),
        ("FREQ=MONTHLY;BYMONTHDAY=13;BYDAY=1FR", "BYMONTHDAY and BYDAY exclude each other"),
        ("FREQ=MONTHLY;BYMONTH=1", "BYMONTH is not understood with FREQ=MONTHLY"),
        ("FREQ=YEARLY;BYMONTHDAY=1", "a day needs BYMONTH"),
        ("FREQ=YEARLY;BYDAY=1MO", "a day needs BYMONTH"),
        ("FREQ=YEARLY;BYMONTH=1,2", "BYMONTH is a single value"),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "BYMONTH=2 never has a day 30"),
        ("FREQ=YEARLY;BYMONTH=4;BYMONTHDAY=31", "BYMONTH=4 never has a day 31"),
    ],
)
def test_what_is_not_understood_is_named(text: str, says: str) -> None:
    message = refusal(text)
    assert says in message
    assert ascii(text)[1:-1] in message
    assert UNDERSTOOD in message


@pytest.mark.parametrize("text", ["X" * 10_000, "FREQ=DAILY;" + "X" * 180 + "=1", "FREQ=" + "\x01" * 190])
def test_messages_are_short_whatever_was_sent(text: str) -> None:
    assert len(refusal(text)) < len(UNDERSTOOD) + 1000


@pytest.mark.parametrize(
    ("text", "due", "canonical"),
    [
        ("FREQ=DAILY", MONTH_END, "FREQ=DAILY"),
        ("FREQ=WEEKLY;INTERVAL=2", MONTH_END, "FREQ=WEEKLY;INTERVAL=2"),
        ("FREQ=WEEKLY;BYDAY=SU;WKST=MO", MONTH_END, "FREQ=WEEKLY"),
        ("FREQ=MONTHLY;BYMONTHDAY=31", MONTH_END, "FREQ=MONTHLY"),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29", LEAP_DAY, "FREQ=YEARLY"),
        ("FREQ=YEARLY;BYMONTH=2", LEAP_DAY, "FREQ=YEARLY"),
        ("FREQ=YEARLY;INTERVAL=999", LEAP_DAY, "FREQ=YEARLY;INTERVAL=999"),
    ],
)
def test_a_rule_that_counts_from_the_completion_has_an_interval_alone(text: str, due: date, canonical: str) -> None:
    assert canonical_rule(text, due, "completion") == canonical
    assert canonical_rule(canonical, due, "completion") == canonical


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("FREQ=DAILY;COUNT=3", "COUNT"),
        ("FREQ=DAILY;UNTIL=20280101", "UNTIL"),
        ("FREQ=WEEKLY;BYDAY=MO", "BYDAY"),
        ("FREQ=WEEKLY;BYDAY=SU;WKST=SU", "WKST"),
        ("FREQ=MONTHLY;BYMONTHDAY=30", "BYMONTHDAY"),
        ("FREQ=MONTHLY;BYDAY=1MO;COUNT=1", "BYDAY and COUNT"),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=-1", "BYMONTH and BYMONTHDAY"),
    ],
)
def test_what_cannot_count_from_the_completion_is_named(text: str, names: str) -> None:
    message = refusal(text, anchor="completion")
    assert message.startswith(f"{names} cannot be combined with recurrence_anchor completion, in ")
    assert UNDERSTOOD_AFTER_COMPLETION in message


@pytest.mark.parametrize(
    ("rule", "start", "dates"),
    [
        ("FREQ=MONTHLY", "2027-01-31", ["2027-02-28", "2027-03-31", "2027-04-30", "2027-05-31"]),
        ("FREQ=MONTHLY;INTERVAL=13", "2027-01-31", ["2028-02-29", "2029-03-31"]),
        ("FREQ=MONTHLY;BYMONTHDAY=-1", "2027-02-28", ["2027-03-31", "2027-04-30"]),
        ("FREQ=MONTHLY;BYDAY=-1FR", "2027-01-01", ["2027-01-29", "2027-02-26", "2027-03-26", "2027-04-30"]),
        ("FREQ=MONTHLY;BYMONTHDAY=15;INTERVAL=2", "2027-01-10", ["2027-01-15", "2027-03-15"]),
        ("FREQ=MONTHLY;BYMONTHDAY=15;INTERVAL=2", "2027-01-20", ["2027-03-15", "2027-05-15"]),
        ("FREQ=YEARLY", "2096-02-29", ["2097-02-28", "2098-02-28", "2099-02-28", "2100-02-28"]),
        ("FREQ=YEARLY;INTERVAL=4", "2096-02-29", ["2100-02-28", "2104-02-29"]),
        ("FREQ=YEARLY;BYMONTH=2", "2027-01-31", ["2027-02-28", "2028-02-29"]),
        ("FREQ=YEARLY;BYMONTH=1;BYDAY=1MO", "2027-03-01", ["2028-01-03", "2029-01-01"]),
        # RFC 5545's own examples of what WKST changes
        ("FREQ=WEEKLY;INTERVAL=2;BYDAY=TU,SU;WKST=MO", "1997-08-05", ["1997-08-10", "1997-08-19", "1997-08-24"]),
        ("FREQ=WEEKLY;INTERVAL=2;BYDAY=TU,SU;WKST=SU", "1997-08-05", ["1997-08-17", "1997-08-19", "1997-08-31"]),
        # the start is no date of the rule, and is the first of the three all the same
        ("FREQ=WEEKLY;BYDAY=MO;COUNT=3", "2027-01-31", ["2027-02-01", "2027-02-08", None]),
        ("FREQ=DAILY;COUNT=1", "2027-01-31", [None]),
        ("FREQ=DAILY;UNTIL=20270201", "2027-01-31", ["2027-02-01", None]),
        ("FREQ=DAILY;UNTIL=20270131", "2027-01-31", [None]),
        ("FREQ=DAILY", "9999-12-30", ["9999-12-31", None]),
        ("FREQ=WEEKLY;BYDAY=FR,SA", "9999-12-30", ["9999-12-31", None]),
        ("FREQ=MONTHLY;BYDAY=-1FR", "9999-12-30", ["9999-12-31", None]),
        ("FREQ=YEARLY", "9998-12-31", ["9999-12-31", None]),
        ("FREQ=WEEKLY;WKST=TU;BYDAY=MO,TU", "0001-01-01", ["0001-01-02", "0001-01-08"]),  # a Monday
    ],
)
def test_dates(rule: str, start: str, dates: list[str | None]) -> None:
    found = [after(rule, date.fromisoformat(start), number) for number in range(1, len(dates) + 1)]
    assert [day and day.isoformat() for day in found] == dates


@pytest.mark.parametrize(
    ("rule", "completed_on", "due"),
    [
        ("FREQ=DAILY", "2028-02-28", "2028-02-29"),
        ("FREQ=DAILY;INTERVAL=999", "2027-01-01", "2029-09-26"),
        ("FREQ=WEEKLY;INTERVAL=2", "2027-01-31", "2027-02-14"),
        ("FREQ=MONTHLY", "2027-01-31", "2027-02-28"),
        ("FREQ=MONTHLY", "2027-02-28", "2027-03-28"),
        ("FREQ=MONTHLY;INTERVAL=13", "2027-12-31", "2029-01-31"),
        ("FREQ=YEARLY", "2028-02-29", "2029-02-28"),
        ("FREQ=YEARLY", "9998-12-31", "9999-12-31"),
        ("FREQ=YEARLY", "9999-01-01", None),
        ("FREQ=DAILY", "9999-12-31", None),
    ],
)
def test_dates_after_the_completion(rule: str, completed_on: str, due: str | None) -> None:
    found = after_completion(rule, date.fromisoformat(completed_on))
    assert (found and found.isoformat()) == due


def lines_run(rule: str, start: date, occurrence: int) -> int:
    """Returns how many lines of Python it takes to read the rule and find the date, those of the library included."""
    lines = 0

    def trace(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    after(rule, start, occurrence)  # Python keeps compiled patterns
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        after(rule, start, occurrence)
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("start", [date(1, 1, 1), LEAP_DAY, date(9999, 12, 31)])
@pytest.mark.parametrize(
    "rule",
    [
        "FREQ=DAILY;INTERVAL=999;COUNT=9999",
        "FREQ=WEEKLY;INTERVAL=999;BYDAY=MO,TU,WE,TH,FR,SA,SU;WKST=SU;UNTIL=99991231",
        "FREQ=WEEKLY;BYDAY=" + ",".join(["MO"] * 60),
        "FREQ=MONTHLY;BYDAY=-1MO",
        "FREQ=YEARLY;INTERVAL=999;BYMONTH=2;BYMONTHDAY=29",
    ],
)
def test_no_rule_and_no_number_takes_long(rule: str, start: date) -> None:
    first, last = lines_run(rule, start, 1), lines_run(rule, start, 9999)
    assert 30 < first < 1000  # a thousand lines are about a tenth of a millisecond
    assert last < first + 50  # where the calendar ends, the library leaves by other lines


def test_a_successor_has_the_same_id_wherever_it_is_made() -> None:
    series = "0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e11"
    assert successor_id(series, 2) == str(uuid5(UUID(series), "2"))
    assert successor_id(series, 2) == "a65b5650-9f31-5cea-a773-db4b3db47c90"
    assert len({successor_id(series, number) for number in range(2, 10_000)}) == 9998
