"""Recurrence: a small subset of RFC 5545's rules, and the dates that follow from one.

Each period of a rule (day, week, month, year) has a fixed number of dates, so the date of an occurrence is computed
from its number. Nothing is iterated, which is why no rule takes long.
"""

import re
from bisect import bisect
from calendar import monthrange
from datetime import date
from uuid import UUID, uuid5

from dateutil.relativedelta import relativedelta, weekday

RULE_LENGTH = 200  # the longest rule in canonical form has 80 characters
SHOWN_LENGTH = 80  # of a rule in a message
UNDERSTOOD = (
    "Understood are: FREQ=DAILY; FREQ=WEEKLY with BYDAY=MO,TU,… and WKST; FREQ=MONTHLY with BYMONTHDAY=1 to 31 or -1 "
    "(the last), or one BYDAY=1MO to 4SU or -1MO; FREQ=YEARLY with BYMONTH=1 to 12 and a day as in MONTHLY; "
    "with INTERVAL=1 to 999, and COUNT=1 to 9999 or UNTIL=YYYYMMDD"
)
UNDERSTOOD_AFTER_COMPLETION = (
    "Understood with recurrence_anchor completion are FREQ=DAILY, WEEKLY, MONTHLY or YEARLY, and INTERVAL=1 to 999"
)

_STEPS = {
    "DAILY": relativedelta(days=1),
    "WEEKLY": relativedelta(weeks=1),
    "MONTHLY": relativedelta(months=1),
    "YEARLY": relativedelta(years=1),
}
_DAYS = ["MO", "TU", "WE", "TH", "FR", "SA", "SU"]
_DAY = "|".join(_DAYS)
_VALUES = {  # in canonical order
    "FREQ": "|".join(_STEPS),
    "INTERVAL": r"0*[1-9]\d{0,2}",
    "BYMONTH": r"0?[1-9]|1[0-2]",
    "BYMONTHDAY": r"\+?(?:0?[1-9]|[12]\d|3[01])|-1",
    "BYDAY": rf"(?:\+?0?[1-4]|-1)?(?:{_DAY})",
    "WKST": _DAY,
    "COUNT": r"0*[1-9]\d{0,3}",
    "UNTIL": r"\d{8}",
}
_LISTS = ("BYMONTH", "BYMONTHDAY", "BYDAY")
_ONLY_WITH = {
    "BYMONTH": ("YEARLY",),
    "BYMONTHDAY": ("MONTHLY", "YEARLY"),
    "BYDAY": ("WEEKLY", "MONTHLY", "YEARLY"),
    "WKST": ("WEEKLY",),
}


def canonical_rule(text: str, due: date, anchor: str) -> str:
    """Returns the rule in the one form that is kept, with the day written out that the due date implies.

    `anchor` is `due` or `completion`. Given what it returned, it returns the same. Raises ValueError with what is
    wrong, what was sent and what is understood.
    """
    try:
        parts = _read(text)
        _check_frequency(parts)
        _check_day(parts)
        _check_end(parts, due)
        _write_out(parts, due)
        if anchor == "completion":
            _keep_interval(parts, due)
    except ValueError as error:
        understood = UNDERSTOOD_AFTER_COMPLETION if anchor == "completion" else UNDERSTOOD
        raise ValueError(f"{error}, in {_shown(text)}. {understood}") from None
    return ";".join(f"{name}={parts[name]}" for name in _VALUES if name in parts)


def next_due(rule: str, anchor: str, start: date, occurrence: int, completed_on: date) -> date | None:
    """Returns the due date of the occurrence after `occurrence` (1, 2, 3, …), or None when the rule is at its end.

    `rule` is in canonical form, and `start` the due date when it was set: the first occurrence, whether or not it is a
    date of the rule. The others are the rule's dates after it. With the anchor `completion`, the next one is INTERVAL
    days, weeks, months or years after `completed_on`. A day that a month lacks becomes its last day. The calendar ends
    with the year 9999, and each rule with it.
    """
    parts = dict(part.split("=") for part in rule.split(";"))
    step = _STEPS[parts["FREQ"]] * int(parts.get("INTERVAL", 1))
    if "COUNT" in parts and occurrence >= int(parts["COUNT"]):
        return None
    try:
        if anchor == "completion":
            due = completed_on + step
        elif parts["FREQ"] == "DAILY":
            due = start + step * occurrence
        elif parts["FREQ"] == "WEEKLY":
            due = _date_in_weeks(parts, step.days, start, occurrence)
        else:
            due = _date_in_months(parts, step, start, occurrence)
    except (OverflowError, ValueError):  # the last day of the calendar is 9999-12-31
        return None
    return None if "UNTIL" in parts and due > date.fromisoformat(parts["UNTIL"]) else due


def successor_id(series_id: str, occurrence: int) -> str:
    """Returns the id of the series' task with this number, the same for whoever makes it."""
    return str(uuid5(UUID(series_id), str(occurrence)))


def _date_in_weeks(parts: dict[str, str], step: int, start: date, number: int) -> date:
    """Returns the rule's date with this number (1, 2, …) after `start`; every `step` days a week has dates."""
    first_day = _DAYS.index(parts.get("WKST", "MO"))
    days = sorted((_DAYS.index(day) - first_day) % 7 for day in parts["BYDAY"].split(","))
    start_day = (start.weekday() - first_day) % 7
    week, day = divmod(bisect(days, start_day) + number - 1, len(days))
    return date.fromordinal(start.toordinal() - start_day + week * step + days[day])


def _date_in_months(parts: dict[str, str], step: relativedelta, start: date, number: int) -> date:
    """Returns the rule's date with this number (1, 2, …) after `start`; every `step` a month has one."""
    if "BYDAY" in parts:
        day, nth = _DAYS.index(parts["BYDAY"][-2:]), int(parts["BYDAY"][:-2])
        in_month = relativedelta(day=1 if nth > 0 else 31, weekday=weekday(day, nth))
    else:  # relativedelta takes the last day for one that the month lacks
        in_month = relativedelta(day=int(parts["BYMONTHDAY"].replace("-1", "31")))
    month = start.replace(day=1, month=int(parts.get("BYMONTH", start.month)))
    if month + in_month > start:
        number -= 1
    return month + step * number + in_month


def _read(text: str) -> dict[str, str]:
    """Returns the values by name, numbers without + and leading zeros, and each value of a list once."""
    if len(text) > RULE_LENGTH:
        raise ValueError(f"A rule has at most {RULE_LENGTH} characters, not {len(text)}")
    if not text.isascii():  # before upper(), which makes ASCII letters of some others
        raise ValueError("A rule has only ASCII characters")
    parts: dict[str, str] = {}
    for part in text.strip().upper().removeprefix("RRULE:").split(";"):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"A rule is NAME=VALUE;NAME=VALUE, so {_shown(part)} is not understood")
        if name not in _VALUES:
            raise ValueError(f"{_shown(name)} is not understood")
        if name in parts:
            raise ValueError(f"{name} is given twice")
        values = value.split(",") if name in _LISTS else [value]
        if not all(re.fullmatch(_VALUES[name], each) for each in values):
            raise ValueError(f"{name} cannot be {_shown(value)}")
        parts[name] = ",".join(dict.fromkeys(each if name == "UNTIL" else each.lstrip("+0") for each in values))
    return parts


def _check_frequency(parts: dict[str, str]) -> None:
    """Raises ValueError if there is no FREQ, or a part that is not for it. Puts a week's days in order."""
    if "FREQ" not in parts:
        raise ValueError("FREQ is missing")
    frequency = parts["FREQ"]
    for name, frequencies in _ONLY_WITH.items():
        if name in parts and frequency not in frequencies:
            raise ValueError(f"{name} is not understood with FREQ={frequency}")
        if frequency != "WEEKLY" and "," in parts.get(name, ""):
            raise ValueError(f"With FREQ={frequency}, {name} is a single value")
    if "BYDAY" in parts:
        days = parts["BYDAY"].split(",")
        if frequency != "WEEKLY" and days[0] in _DAYS:
            raise ValueError(f"With FREQ={frequency}, BYDAY needs a number, like 1{days[0]}")
        if frequency == "WEEKLY" and not {*days} <= {*_DAYS}:
            raise ValueError("With FREQ=WEEKLY, the days of BYDAY have no number")
        parts["BYDAY"] = ",".join(sorted(days, key=lambda day: _DAYS.index(day[-2:])))


def _check_day(parts: dict[str, str]) -> None:
    """Raises ValueError if the day of a month is not one day, or never comes."""
    if {"BYMONTHDAY", "BYDAY"} <= parts.keys():
        raise ValueError("BYMONTHDAY and BYDAY exclude each other")
    if parts["FREQ"] == "YEARLY" and {"BYMONTHDAY", "BYDAY"} & parts.keys() and "BYMONTH" not in parts:
        raise ValueError("With FREQ=YEARLY, a day needs BYMONTH")
    if "BYMONTH" in parts and int(parts.get("BYMONTHDAY", 1)) > _longest(int(parts["BYMONTH"])):
        raise ValueError(
            f"BYMONTH={parts['BYMONTH']} never has a day {parts['BYMONTHDAY']} (its last day is BYMONTHDAY=-1)"
        )


def _check_end(parts: dict[str, str], due: date) -> None:
    """Raises ValueError if the rule has two ends, or one that is no date or is over at the start."""
    if {"COUNT", "UNTIL"} <= parts.keys():
        raise ValueError("COUNT and UNTIL exclude each other")
    if "UNTIL" in parts:
        try:
            until = date.fromisoformat(parts["UNTIL"])
        except ValueError:
            raise ValueError(f"UNTIL={parts['UNTIL']} is no day of the calendar") from None
        if until < due:
            raise ValueError(f"UNTIL={parts['UNTIL']} is before the due date, {due}")


def _implied(frequency: str, due: date) -> dict[str, str]:
    """Returns the day of the due date, as parts of a rule."""
    match frequency:
        case "WEEKLY":
            return {"BYDAY": _DAYS[due.weekday()]}
        case "MONTHLY":
            return {"BYMONTHDAY": str(due.day)}
        case "YEARLY":
            return {"BYMONTH": str(due.month), "BYMONTHDAY": str(due.day)}
    return {}


def _write_out(parts: dict[str, str], due: date) -> None:
    """Adds the day that the due date implies, and removes what says the default."""
    if not {"BYMONTHDAY", "BYDAY"} & parts.keys():
        parts |= _implied(parts["FREQ"], due) | parts  # BYMONTH may be there
        if due.day > _longest(int(parts.get("BYMONTH", 1))):  # due on the 31st, and BYMONTH=2
            parts["BYMONTHDAY"] = "-1"
    for name, default in {"INTERVAL": "1", "WKST": "MO"}.items():
        if parts.get(name) == default:
            del parts[name]


def _keep_interval(parts: dict[str, str], due: date) -> None:
    """Removes the day that the due date implies, as the service wrote it out. Raises ValueError if more is left."""
    for name, value in _implied(parts["FREQ"], due).items():
        if parts.get(name) == value:
            del parts[name]
    if more := parts.keys() - {"FREQ", "INTERVAL"}:
        names = " and ".join(name for name in _VALUES if name in more)
        raise ValueError(f"{names} cannot be combined with recurrence_anchor completion")


def _longest(month: int) -> int:
    """Returns the greatest number of days that the month can have."""
    return monthrange(2000, month)[1]  # a leap year


def _shown(text: str) -> str:
    """Returns the text as a message quotes it, cut when it is long."""
    return ascii(text if len(text) <= SHOWN_LENGTH else text[:SHOWN_LENGTH] + "...")
