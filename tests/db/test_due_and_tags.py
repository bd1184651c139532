"""What lists are made of in the database: a task's JSON, which tags are alike, moments, and what is due when."""

import json
import random
import unicodedata
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import psycopg
import pytest

from service import tags
from service.queries import tasks as queries
from service.queries.tasks import Search
from service.zones import ZONES, _rules

ONE_DAY = timedelta(days=1)


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection whose work is rolled back."""
    opened: Any = await asyncpg.connect(database_url, server_settings={"timezone": "UTC"})
    transaction = opened.transaction()
    await transaction.start()
    yield opened
    await transaction.rollback()
    await opened.close()


# A task's JSON --------------------------------------------------------------------------------------------------------


async def test_a_task_s_json_is_what_postgresql_makes_of_the_row(connection: asyncpg.Connection) -> None:
    dice = random.Random(15)  # noqa: S311  (the same tasks each time)
    texts = [
        "x",
        'a "quoted" one',
        "back\\slash",
        "tab\tand\nline",
        "\x01\x1f\x7f",
        "é 京 🎉 \u2028x",
        "</script>",
        "{}",
    ]
    rows = []
    for number in range(400):
        is_completed, has_date, has_time, has_rule = (dice.random() < 0.5 for _ in range(4))
        row: dict[str, Any] = {
            "user_id": dice.choice(texts),
            "id": str(UUID(int=dice.getrandbits(128))),
            "title": dice.choice(texts),
            "description": dice.choice([None, "", *texts]),
            "status": "completed" if is_completed else dice.choice(["pending", "in_progress"]),
            "priority": dice.choice(["low", "medium", "high"]),
            "is_completed": is_completed,
            "completed_at": "2026-11-27T08:00:00.1+00:00" if is_completed else None,
            "created_at": dice.choice(["2026-11-27T08:00:00+00:00", "0099-01-01T00:00:00.000001+00:00"]),
            "updated_at": "2026-11-27T08:00:00.123456+00:00",
            "deleted_at": dice.choice([None, "2026-11-27T08:00:00+00:00"]),
            "version": number + 1,
            "recurrence_anchor": "due",
            "tags": dice.sample(["home", *texts[1:3], "京"], dice.randrange(4)),
        }
        if has_date:
            row |= {"due_date": dice.choice(["2026-11-27", "0001-01-01", "9999-12-31"])}
            if has_time:
                row |= {"due_time": "09:00:00", "due_time_zone": dice.choice([None, "Europe/Berlin"])}
            if has_rule:
                series = {"recurrence_start": "2026-11-27", "series_id": str(uuid4()), "occurrence": 7}
                row |= {"recurrence": dice.choice(["FREQ=DAILY", "FREQ=WEEKLY;BYDAY=MO"])} | series
        rows.append(row)
    query = """
        select tasks.task_json(t) as made, row_to_json(t)::text as wanted
        from jsonb_populate_recordset(null::tasks.task, $1) t
    """
    found = await connection.fetch(query, json.dumps(rows))
    assert len(found) == 400
    for record in found:
        assert record["made"] == record["wanted"]


async def test_every_column_is_in_a_task_s_json_in_its_place(connection: asyncpg.Connection) -> None:
    query = "select tasks.task_json(t) from jsonb_populate_record(null::tasks.task, $1) t"
    columns = await connection.fetchval(
        "select array_agg(attname::text order by attnum) from pg_attribute"
        " where attrelid = 'tasks.task'::regclass and attnum > 0 and not attisdropped"
    )
    row = dict.fromkeys(columns) | {"user_id": "x", "title": "x", "version": 1, "id": str(uuid4()), "tags": []}
    row |= dict.fromkeys(["created_at", "updated_at"], "2026-11-27T08:00:00+00:00")
    for others in ({}, {"tags": ["x"]}, {"due_date": "2026-11-27"}):
        made = json.loads(await connection.fetchval(query, json.dumps(row | others)))
        assert list(made) == columns


@pytest.mark.not_on("citus", "its plans have the call as it was written, and the nodes put the expression there")
async def test_a_list_has_the_expression_in_the_place_of_the_function(connection: asyncpg.Connection) -> None:
    for statement, arguments in (
        (queries.TASK_LIST.sql, "'x', null"),
        (queries.TASK_SEARCH.sql, "'x'" + ", null" * 27),
    ):
        await connection.execute(f"prepare a_list as {statement}")
        plan = "\n".join(row[0] for row in await connection.fetch(f"explain verbose execute a_list({arguments})"))
        assert 'concat(\'{"id":"\'' in plan
        assert "task_json(" not in plan
        await connection.execute("deallocate a_list")


# Tags -----------------------------------------------------------------------------------------------------------------


def told_alike(mine: str, theirs: str) -> bool:
    # A later Unicode has more letters with cases; Python may know it, the table of the database does not
    return mine == theirs or unicodedata.unidata_version != "14.0.0"


async def test_the_database_and_python_have_the_same_key_for_each_character(connection: asyncpg.Connection) -> None:
    characters = [chr(code) for code in range(1, 0x110000) if unicodedata.category(chr(code)) not in ("Cs", "Cn")]
    assert len(characters) > 280_000
    folding = [character for character in characters if tags.key(character) != unicodedata.normalize("NFD", character)]
    assert len(folding) > 1300
    together = ["|".join(characters[start : start + 100]) for start in range(0, len(characters), 100)]
    for texts in (together, folding):
        keys = await connection.fetchval(
            "select array_agg(tasks.tag_key(tag) order by n) from unnest($1::text[]) with ordinality g (tag, n)", texts
        )
        for text, key in zip(texts, keys, strict=True):
            if told_alike(tags.key(text), key):
                continue
            assert [
                (hex(ord(one)), tags.key(one), other)
                for one, other in zip(text.split("|"), key.split("|"), strict=False)
                if tags.key(one) != other
            ] == []


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("Home", "hOME", True),
        ("Straße", "STRASSE", True),
        ("straẞe", "strasse", True),
        ("Caf\u00e9", "CAFE\u0301", True),
        ("ΟΔΟΣ", "οδος", True),
        ("οδός", "ΟΔΌΣ", True),
        ("İş", "i\u0307ş", True),
        ("ﬁn", "FIN", True),
        ("Работа", "РАБОТА", True),
        ("ΐ", "\u03aa\u0301", True),
        ("ᾈ", "ᾀ", True),
        ("ǆ", "ǅ", True),
        ("𐐀", "𐐨", True),
        ("Ꭰ", "ꭰ", True),
        ("home", "homes", False),
        ("cafe", "café", False),
        ("ı", "i", False),
        ("a b", "ab", False),
        ("日本", "日木", False),
    ],
)
async def test_which_tags_are_alike(connection: asyncpg.Connection, one: str, other: str, alike: bool) -> None:
    assert (tags.key(one) == tags.key(other)) is alike
    assert await connection.fetchval("select tasks.tag_key($1) = tasks.tag_key($2)", one, other) is alike
    assert await connection.fetchval("select tasks.are_unlike(array[$1, 'x', $2])", one, other) is not alike


@pytest.mark.parametrize(
    ("array", "is_kept"),
    [([], True), (["home"], True), (["home", "work"], True), (["home", "Home"], False), (["é", "x", "É"], False)],
)
def test_no_task_has_two_tags_that_are_alike(database_url: str, array: list[str], is_kept: bool) -> None:
    with psycopg.connect(database_url) as opened:
        row = (uuid4(), "x", "x", 1, array)
        try:
            opened.execute(
                "insert into tasks.task (id, user_id, title, version, tags) values (%s, %s, %s, %s, %s)", row
            )
            violated = None
        except psycopg.errors.CheckViolation as error:
            violated = error.diag.constraint_name
        opened.rollback()
    assert violated == (None if is_kept else "task_tags_alike")


# Moments --------------------------------------------------------------------------------------------------------------


def moment(day: date, clock: time, zone: str) -> datetime:
    """Returns the moment of a time on the clocks of a zone: the model."""
    return datetime.combine(day, clock, _rules(zone)).astimezone(UTC)


def changes_of_clocks(zone: str, first: int, last: int) -> Iterator[datetime]:
    """Yields the moments at which the zone's clocks change, in the years from the first to the last."""
    rules = _rules(zone)
    at, end = datetime(first, 1, 1, tzinfo=UTC), datetime(last + 1, 1, 1, tzinfo=UTC)
    while at < end:
        after = at + timedelta(days=7)
        if at.astimezone(rules).utcoffset() != after.astimezone(rules).utcoffset():
            low, high = at, after
            while high - low > timedelta(seconds=1):
                middle = low + (high - low) / 2
                if middle.astimezone(rules).utcoffset() == at.astimezone(rules).utcoffset():
                    low = middle
                else:
                    high = middle
            yield high.replace(microsecond=0)
        at = after


SPECIAL = [  # half an hour, a day that was left out, one that came twice, a gap at midnight, quarters of an hour
    *("Australia/Lord_Howe", "Pacific/Apia", "Pacific/Kwajalein", "America/Santiago", "Asia/Kathmandu"),
    *("Pacific/Kiritimati", "Pacific/Chatham", "America/Anchorage", "Asia/Kolkata", "Africa/Casablanca"),
    *("Asia/Gaza", "Africa/Cairo", "Asia/Beirut", "America/Havana", "Antarctica/Troll", "Europe/Dublin"),
]
SOME_ZONES = sorted({*SPECIAL, *sorted(ZONES)[::2]})
YEARS = 2005, 2027


async def agreed_zones(connection: asyncpg.Connection) -> list[str]:
    """Returns those of the zones of which both tz databases, which may be of different years, know the same."""
    weeks = [datetime(YEARS[0] - 1, 12, 1, tzinfo=UTC) + timedelta(days=7 * n) for n in range(24 * 53)]
    query = """
        select array_agg(($1::timestamptz + n * interval '168 hours') at time zone $2 order by n)
        from generate_series(0, $3::integer) n
    """
    found = []
    for zone in SOME_ZONES:
        locals_ = await connection.fetchval(query, weeks[0], zone, len(weeks) - 1)
        if locals_ == [week.astimezone(_rules(zone)).replace(tzinfo=None) for week in weeks]:
            found.append(zone)
    assert len(found) > 290
    return found


async def test_a_moment_is_what_the_zone_s_clocks_say(connection: asyncpg.Connection) -> None:
    asked: list[tuple[date, time, str]] = []
    for zone in await agreed_zones(connection):
        found = [datetime(2026, 6, 30, 12, tzinfo=UTC), *changes_of_clocks(zone, *YEARS)]
        for change in found[-7:] if zone not in SPECIAL else found:
            for minutes in (-1441, -1440, -121, -61, -60, -31, -30, -1, 0, 1, 29, 30, 31, 59, 60, 61, 121, 1439, 1440):
                for seconds in (-1, 0):
                    # by the clocks as they went before the change: in a gap, and in the hour that comes twice
                    before = (change - timedelta(seconds=1)).astimezone(_rules(zone)).replace(tzinfo=None)
                    local = before + timedelta(minutes=minutes, seconds=seconds + 1)
                    asked.append((local.date(), local.time(), zone))
    query = """
        select array_agg(tasks.moment(d, t, z) order by n)
        from unnest($1::date[], $2::time[], $3::text[]) with ordinality g (d, t, z, n)
    """
    moments = await connection.fetchval(query, *(list(column) for column in zip(*asked, strict=True)))
    wrong = [(one, found, moment(*one)) for one, found in zip(asked, moments, strict=True) if found != moment(*one)]
    assert wrong == []
    assert len(asked) > 20_000


@pytest.mark.parametrize(
    ("local", "zone", "utc"),
    [
        ("2026-03-29T01:59:59", "Europe/Berlin", "2026-03-29T00:59:59"),
        ("2026-03-29T02:30:00", "Europe/Berlin", "2026-03-29T01:30:00"),  # there is none: an hour later
        ("2026-10-25T02:30:00", "Europe/Berlin", "2026-10-25T00:30:00"),  # there are two: the first
        ("2026-10-25T03:00:00", "Europe/Berlin", "2026-10-25T02:00:00"),
        ("2026-04-05T01:45:00", "Australia/Lord_Howe", "2026-04-04T14:45:00"),
        ("2011-12-30T12:00:00", "Pacific/Apia", "2011-12-30T22:00:00"),  # a day that was left out: a day later
        ("2026-11-27T00:00:00", "Pacific/Kiritimati", "2026-11-26T10:00:00"),
        ("0001-01-01T00:00:00", "Etc/GMT+12", "0001-01-01T12:00:00"),
        ("9999-12-31T23:59:59", "Etc/GMT-14", "9999-12-31T09:59:59"),
    ],
)
@pytest.mark.parametrize("session", ["UTC", "Europe/Berlin", "Australia/Lord_Howe"])
async def test_a_moment_does_not_depend_on_the_session(
    connection: asyncpg.Connection, local: str, zone: str, utc: str, session: str
) -> None:
    await connection.execute(f"set local timezone = '{session}'")
    wanted = datetime.fromisoformat(utc).replace(tzinfo=UTC)
    day, clock = local.split("T")[0], time.fromisoformat(local.split("T")[1])
    assert await connection.fetchval("select tasks.moment($1::text::date, $2, $3)", day, clock, zone) == wanted


# What is due ----------------------------------------------------------------------------------------------------------

Due = tuple[date | None, time | None, str | None, bool]  # with the zone, and whether it is completed


def is_due(task: Due, due: str, zone: str, now: datetime) -> bool:
    """Returns whether the list has the task: the model."""
    day, clock, pinned, is_completed = task
    today = now.astimezone(_rules(zone)).date()
    if day is None or due == "none":
        return day is None and due == "none"
    if due == "overdue":
        is_past = day < today if clock is None else moment(day, clock, pinned or zone) < now
        return is_past and not is_completed
    if pinned is not None and clock is not None:
        day = moment(day, clock, pinned).astimezone(_rules(zone)).date()
    first, last = {"today": (0, 0), "tomorrow": (1, 1), "week": (0, 6)}[due]
    return today + first * ONE_DAY <= day <= today + last * ONE_DAY


def on_clock(at: datetime, zone: str) -> tuple[date, time]:
    local = at.astimezone(_rules(zone)).replace(microsecond=0, fold=0)
    return local.date(), local.time()


def tasks_around(now: datetime, zone: str, other: str) -> list[Due]:
    """Returns tasks on both sides of every boundary of what is due in the zone."""
    today = now.astimezone(_rules(zone)).date()
    found: list[Due] = [(None, None, None, False)]
    for days in (-400, -3, -2, -1, 0, 1, 2, 6, 7, 8, 400):
        found += [(today + days * ONE_DAY, None, None, is_completed) for is_completed in (False, True)]
    for seconds in (-7200, -3600, -1, 0, 1, 3600, 7200):  # a time of today is overdue or not
        day, clock = on_clock(now + timedelta(seconds=seconds), zone)
        found += [(day, clock, None, seconds == -3600), (day, clock, zone, False)]
        found.append((*on_clock(now + timedelta(seconds=seconds), other), other, False))
    for days in (0, 1, 2, 7):  # a pinned time is of one day or of another
        for seconds in (-1, 0):
            midnight = moment(today + days * ONE_DAY, time(0), zone) + timedelta(seconds=seconds)
            found += [(*on_clock(midnight, other), other, False), (*on_clock(midnight, other), None, False)]
    return found


def boundaries(zone: str) -> list[datetime]:
    """Returns moments at which it is interesting what is due: midnights, and both changes of the clocks."""
    around = [moment(date(2026, 11, 27), time(0), zone)]
    changes = [*changes_of_clocks(zone, 2011 if zone in SPECIAL else 2026, 2027)]
    for change in (changes[:3] + changes[-2:]) if zone in SPECIAL else changes[-2:]:
        around += [change, moment(change.astimezone(_rules(zone)).date(), time(0), zone)]
    return [at + off for at in around for off in (timedelta(microseconds=-1), timedelta(0), timedelta(microseconds=1))]


async def test_what_is_due_is_what_zoneinfo_says_at_every_boundary(connection: asyncpg.Connection) -> None:
    """For some hundred zones, at midnight, at the changes of the clocks, and a microsecond before and after."""
    others = ["Pacific/Kiritimati", "Pacific/Pago_Pago", "Australia/Lord_Howe", "Europe/Berlin", "America/St_Johns"]
    looked = 0
    for number, zone in enumerate(await agreed_zones(connection)):
        for now in boundaries(zone):
            user = f"due-{looked}"
            tasks = tasks_around(now, zone, others[number % len(others)])
            await connection.execute(
                """
                insert into tasks.task (
                    id, user_id, title, version, due_date, due_time, due_time_zone, status, completed_at
                )
                select
                    ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid, $1, 'x', 1, d, t, z,
                    case when c then 'completed' else 'pending' end, case when c then now() end
                from unnest($2::date[], $3::time[], $4::text[], $5::boolean[]) with ordinality g (d, t, z, c, n)
                """,
                user,
                *(list(column) for column in zip(*tasks, strict=True)),
            )
            for due in ("overdue", "today", "tomorrow", "week", "none"):
                search = Search(due=due, time_zone=zone, now=now, fields=["id"])
                row = await connection.fetchrow(queries.TASK_SEARCH.sql, *queries.search_arguments(user, search, None))
                wanted = {n for n, task in enumerate(tasks, 1) if is_due(task, due, zone, now)}
                found = {int(part[:12]) for part in row["tasks"].split("-0000-0000-0000-")[1:]} if row else set()
                assert found == wanted, (zone, now, due, [tasks[n - 1] for n in found ^ wanted])
            looked += 1
    assert looked > 1000


def test_the_model_knows_the_clocks() -> None:
    """What the tests above stand on."""
    assert moment(date(2026, 3, 29), time(2, 30), "Europe/Berlin") == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    assert moment(date(2026, 10, 25), time(2, 30), "Europe/Berlin") == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert len([*changes_of_clocks("Europe/Berlin", 2026, 2026)]) == 2
    assert [*changes_of_clocks("Pacific/Apia", 2011, 2011)][-1] == datetime(2011, 12, 30, 10, tzinfo=UTC)
