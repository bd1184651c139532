"""The query parameters of a list, and the cursor of its next page."""

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import get_args
from urllib.parse import quote, urlencode

from service import tags
from service.models import TAG_PATTERN, UUID, Priority, Status, Task, calendar_date
from service.queries.tasks import PageKey, Search
from service.web.errors import invalid
from service.web.parameters import Json, Parameter, read_parameters, sent_parameters, whole_number
from service.web.zones import TIME_ZONE

SORTS = ("created_at", "updated_at", "completed_at", "due", "title", "priority", "status")
LARGEST_PAGE = 1000
SEARCH_LENGTH = 1000
MOST_TAGS = 100
DUE = ("overdue", "today", "tomorrow", "week", "none")

# RFC 3339, with an offset. LOST_PLUS: an unencoded + in a URL arrives as a space.
MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:?\d\d)", re.ASCII)
LOST_PLUS = re.compile(r".*\d \d\d:?\d\d")
CURSOR = re.compile(r"[A-Za-z0-9_-]{1,2000}")
DIGEST_BYTES = 12
FREE = ("limit", "cursor", "fields", "count", "after", "now")  # may differ from page to page


def _several(names: tuple[str, ...]) -> Callable[[str], list[str]]:
    def read(value: str) -> list[str]:
        found = sorted(set(value.split(",")))
        if not set(found) <= set(names):
            raise ValueError(f"one or more of {', '.join(names)}, with commas between them or one by one")
        return found

    return read


def _boolean(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError("true or false")
    return value == "true"


def _words(value: str) -> list[str] | None:
    return sorted(set(value.split())) or None


def _moment(value: str) -> tuple[datetime, bool]:
    """Returns the moment, truncated to microseconds, and whether that cut anything off."""
    accepted = "an RFC 3339 timestamp with an offset, like 2026-11-23T08:30:00Z"
    parts = MOMENT.fullmatch(value)
    if parts is None:
        hint = " (in a URL the + of an offset is written %2B)" if LOST_PLUS.fullmatch(value) else ""
        raise ValueError(accepted + hint)
    date, time, fraction, offset = parts.groups(default="")
    try:
        moment = datetime.fromisoformat(f"{date}T{time}.{fraction[:6].ljust(6, '0')}{offset.upper()}").astimezone(UTC)
    except (ValueError, OverflowError):  # no such day, or out of Python's range in UTC
        raise ValueError(accepted) from None
    return moment, fraction[6:].strip("0") != ""


def _after(value: str) -> datetime:
    return _moment(value)[0]


def _before(value: str) -> datetime:
    # PostgreSQL stores microseconds: 0.123456 is before 0.1234567
    moment, is_truncated = _moment(value)
    return moment + timedelta(microseconds=1) if is_truncated and moment < datetime.max.replace(tzinfo=UTC) else moment


def _date(value: str) -> str:
    try:
        return calendar_date(value)
    except ValueError:
        raise ValueError("a day of the calendar, like 2026-11-23") from None


def _due(value: str) -> str:
    if value not in DUE:
        raise ValueError(f"one of {', '.join(DUE)}")
    return value


def _tags(value: str) -> list[str]:
    try:
        found = sorted({tags.written(tag) for tag in value.split(",")})
    except ValueError:
        raise ValueError(f"one or more tags of {tags.ACCEPTED}") from None
    if len(found) > MOST_TAGS:
        raise ValueError(f"at most {MOST_TAGS} tags; these are {len(found)}")
    return found


def _sort(value: str) -> str:
    if value.removeprefix("-") not in SORTS:
        raise ValueError(f"one of {', '.join(SORTS)}, with a leading - to reverse it")
    return value


def _names_schema(names: tuple[str, ...]) -> Json:
    return {"type": "array", "minItems": 1, "items": {"type": "string", "enum": [*names]}}


STATUSES, PRIORITIES, FIELDS = get_args(Status), get_args(Priority), tuple(Task.model_fields)
BOOLEAN: Json = {"type": "boolean"}
MOMENT_SCHEMA: Json = {"type": "string", "format": "date-time"}
DATE_SCHEMA: Json = {"type": "string", "format": "date"}
TAGS_SCHEMA: Json = {
    "type": "array",
    "minItems": 1,
    "maxItems": MOST_TAGS,
    "items": {"type": "string", "maxLength": tags.LONGEST, "pattern": TAG_PATTERN},
}


def _moments(what: str) -> dict[str, Parameter]:
    return {
        f"{what}_{side}": Parameter(
            read,
            f"`{what}_at` is {side} this moment; one with the offset +02:00 is written %2B02:00 in a URL",
            MOMENT_SCHEMA,
            example,
        )
        for side, read, example in (
            ("after", _after, "2020-01-01T00:00:00Z"),
            ("before", _before, "2099-12-31T00:00:00+02:00"),
        )
    }


PARAMETERS: dict[str, Parameter] = {
    "status": Parameter(_several(STATUSES), "any of these", _names_schema(STATUSES), ["pending", "in_progress"]),
    "priority": Parameter(_several(PRIORITIES), "any of these", _names_schema(PRIORITIES), ["high"]),
    "is_completed": Parameter(_boolean, "", BOOLEAN, False),
    "q": Parameter(
        _words,
        "words that all occur in title or description, in any order, without regard to case, accents and typography; "
        "of each the beginning is enough, and in scripts without spaces any part",
        {"type": "string", "maxLength": SEARCH_LENGTH, "pattern": r"^[^\u0000]*$"},
        "buy mil",
    ),
    **_moments("created"),
    **_moments("updated"),
    **_moments("completed"),
    "due_after": Parameter(_date, "`due_date` is after this day", DATE_SCHEMA, "2026-01-01"),
    "due_before": Parameter(_date, "`due_date` is before this day", DATE_SCHEMA, "2026-12-31"),
    "due": Parameter(
        _due,
        "`overdue`: not completed, and the day is past, or with a time the moment; `today`, `tomorrow`, and `week`, "
        "which is today and the six days after; `none`: without a date. All but `none` need `time_zone`, and their "
        "list has no `ETag`, as it changes with time",
        {"type": "string", "enum": [*DUE]},
        "none",
    ),
    "time_zone": replace(
        TIME_ZONE, description="where `due` is told, which all but `none` need: the name of a zone in the tz database"
    ),
    "tags": Parameter(_tags, "any of these, without regard to case", TAGS_SCHEMA, ["home", "garden"]),
    "tags_all": Parameter(_tags, "all of these, without regard to case", TAGS_SCHEMA, ["home", "garden"]),
    "trashed": Parameter(_boolean, "`true`: the trash instead of the live tasks", BOOLEAN, False),
    "sort": Parameter(
        _sort,
        "the order, `-created_at` when it is not sent; a leading `-` reverses it. Ties by `id`, nulls last, "
        "titles without regard to case; `due` is by date, then time, where what has no time comes last in its day",
        {"type": "string", "enum": [sign + name for name in SORTS for sign in ("", "-")]},
        "-priority",
    ),
    "limit": Parameter(
        whole_number(1, LARGEST_PAGE),
        "how many tasks at most; all without it. `Link` has the next page, if there is one",
        {"type": "integer", "minimum": 1, "maximum": LARGEST_PAGE},
        50,
    ),
    "cursor": Parameter(
        str, "from the previous page's `Link`; valid for the same filters and sort", {"type": "string"}, None
    ),
    "fields": Parameter(
        _several(FIELDS),
        "the only fields of each task; `id` is always included",
        _names_schema(FIELDS),
        ["id", "title", "is_completed"],
    ),
    "count": Parameter(_boolean, "`true`: `X-Total-Count` has the number of tasks on all pages", BOOLEAN, True),
}


def read_search(query_string: bytes, user_id: str) -> Search:
    """Returns the search in the query string; raises Problem, a 422 that names all errors."""
    search = Search(**read_parameters(query_string, PARAMETERS))
    if search.is_told_by_the_clock and search.time_zone is None:
        message = f"Field required: due={search.due} is another day in another time zone; like Europe/Berlin"
        raise invalid(["query", "time_zone"], message, "missing")
    return search if search.cursor is None else replace(search, after=_key(search, user_id))


# The cursor -----------------------------------------------------------------------------------------------------------
#
# It is the sort key of a page's last task, and a hash of this key, the user, the filters and the sort, which bind it to
# the list. It needs no secret: with a forged cursor a user can only page through lists of their own.


def next_query(query_string: bytes, search: Search, user_id: str, last: PageKey) -> str:
    """Returns the query string of the page after this task."""
    key = json.dumps(last, ensure_ascii=False).encode()
    cursor = urlsafe_b64encode(_digest(search, user_id, key) + key).decode().rstrip("=")
    sent = {name: ",".join(values) for name, values in sent_parameters(query_string).items()}
    return urlencode(sent | {"cursor": cursor}, quote_via=quote)


def _digest(search: Search, user_id: str, key: bytes) -> bytes:
    bound = {name: value for name, value in vars(search).items() if name not in FREE}
    return sha256(json.dumps([user_id, bound], default=str).encode() + key).digest()[:DIGEST_BYTES]


def _key(search: Search, user_id: str) -> PageKey:
    """Returns the key in the cursor; raises Problem, a 422, when it was not made for this search."""
    try:
        cursor = search.cursor or ""
        content = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)) if CURSOR.fullmatch(cursor) else b""
        digest, key = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if digest == _digest(search, user_id, key):
            rank, name, id_ = json.loads(key)
            is_key = type(rank) is int and -(2**63) <= rank < 2**63 and isinstance(name, str) and UUID.fullmatch(id_)
            if is_key and b"\0" not in name.encode():
                return rank, name, id_
    except (ValueError, TypeError, RecursionError):
        pass
    raise invalid(
        ["query", "cursor"],
        "Cursor should be one from a Link header, unchanged, with the same filters and the same sort",
        "cursor",
    )
