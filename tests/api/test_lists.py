"""Lists with parameters, and conditional reads: over HTTP, held against a small model in Python."""

import json
import random
import re
import unicodedata
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import asyncpg
import httpx
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import tags, zones
from service.db.address import parse_address
from service.db.migrations import migrate
from service.models import Task
from service.queries import tasks as queries
from service.queries.tasks import Search
from service.web import search as lists
from tests.conftest import Served, User, empty_database, make_token

Json = dict[str, Any]

STATUSES, PRIORITIES = ("pending", "in_progress", "completed"), ("low", "medium", "high")
FIELDS = tuple(Task.model_fields)
TAGS = (
    "home",
    "Home",
    "HOME",
    "café",
    "Café",
    "straße",
    "STRASSE",
    "работа",
    "Работа",
    "日本",
    'a "b"',
    "c\\d",
    "{}",
    "e f",
)
TYPED_TAGS = (*TAGS, "hOME", "CAFE\u0301", " home ", "nobody's", "%", "caf")
SORTS = [sign + name for name in lists.SORTS for sign in ("", "-")]
WORDS = (
    *("Milk", "buy", "MILLER", "milk-shake", "Buy", "the", "100%", "a_b", "aXb", "back\\slash", "it's", '"quoted"'),
    *("Café", "CAFE\u0301", "naïve", "ÉTÉ", "Ярослав", "ёлка", "ΔΡΟΜΟΣ", "δρόμος", "שלום", "قائمة", "🎉", "🎉party"),
    *("東京", "x:*", "a&b", "(c)", "C++", "--", ";", "e-mail@example.org", "2026-11-23", "o'clock", "tag#home", "ﬁn"),
)
TYPED = (
    *(*WORDS, "mil", "CAF", "il", "cafe", "ete", "елка", "яро", "δρομοσ", "京", "京 milk"),
    *("%", "_", "\\", "'", "b", "shake", "party"),
)


# The model ------------------------------------------------------------------------------------------------------------


def folded(text: str) -> str:
    bare = re.sub("[\u0300-\u036f\u0653-\u0655]", "", unicodedata.normalize("NFKD", text)).lower()
    return "".join(letter.upper() if len(letter.upper()) == 1 else letter for letter in bare)


def occurs(word: str, text: str) -> bool:
    """Whether the word stands in the text, at the beginning of one of its words if it begins like a word.

    Of the scripts that have no spaces there is only Han here.
    """
    word, text = folded(word), folded(text)
    return any(
        not word[0].isalnum() or word[0] >= "一" or start == 0 or not text[start - 1].isalnum()
        for start in range(len(text))
        if text.startswith(word, start)
    )


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def due_moment(task: Json, zone: str) -> datetime:
    """Returns the moment of a task with a time, on the clocks of its zone, else of this one."""
    local = datetime.fromisoformat(f"{task['due_date']}T{task['due_time']}")
    return local.replace(tzinfo=zones._rules(task["due_time_zone"] or zone)).astimezone(UTC)


def is_due(task: Json, due: str, zone: str) -> bool:
    if task["due_date"] is None or due == "none":
        return task["due_date"] is None and due == "none"
    now, day = datetime.now(UTC), date.fromisoformat(task["due_date"])
    today = zones.today(zone, now)
    if due == "overdue":
        is_past = day < today if task["due_time"] is None else due_moment(task, zone) < now
        return is_past and not task["is_completed"]
    if task["due_time_zone"] is not None:
        day = due_moment(task, zone).astimezone(zones._rules(zone)).date()
    return (day - today).days in {"today": [0], "tomorrow": [1], "week": [*range(7)]}[due]


def is_due_and_tagged(task: Json, query: Json) -> bool:
    """Whether it is due, and tagged, as the query says."""
    if "due" in query and not is_due(task, query["due"], query["time_zone"]):
        return False
    if "due_after" in query and not (task["due_date"] and task["due_date"] > query["due_after"]):
        return False
    if "due_before" in query and not (task["due_date"] and task["due_date"] < query["due_before"]):
        return False
    keys = {tags.key(tag) for tag in task["tags"]}
    return all(
        is_enough(tags.key(tag.strip()) in keys for tag in query[name].split(","))
        for name, is_enough in (("tags", any), ("tags_all", all))
        if name in query
    )


def matches(task: Json, query: Json) -> bool:
    if not is_due_and_tagged(task, query):
        return False
    text = f"{task['title']}\n{task['description'] or ''}"
    if (task["deleted_at"] is not None) != (query.get("trashed") == "true"):
        return False
    for name in ("status", "priority"):
        if name in query and task[name] not in query[name].split(","):
            return False
    if "is_completed" in query and task["is_completed"] != (query["is_completed"] == "true"):
        return False
    for name in ("created", "updated", "completed"):
        value = task[f"{name}_at"]
        if f"{name}_after" in query and not (value and moment(value) > moment(query[f"{name}_after"])):
            return False
        if f"{name}_before" in query and not (value and moment(value) < moment(query[f"{name}_before"])):
            return False
    return all(occurs(word, text) for word in query.get("q", "").split())


def place(task: Json, name: str, sign: int) -> Any:
    if name == "due":
        clock = datetime.fromisoformat(f"2000-01-01T{task['due_time'] or '00:00'}")
        seconds = (clock - datetime(2000, 1, 1)).seconds
        # what has no time comes last in its day, whichever way
        return date.fromisoformat(task["due_date"]).toordinal(), seconds if task["due_time"] else sign * 86_400
    value = task[name]
    if name == "title":
        return value.lower()
    ranks = {"status": STATUSES, "priority": PRIORITIES}
    return ranks[name].index(value) if name in ranks else moment(value)


def expected(tasks: list[Json], query: Json) -> list[Json]:
    """Returns what the list is to be, before it is cut into pages."""
    sort = query.get("sort", "-created_at")
    name = sort.removeprefix("-")
    found = sorted((task for task in tasks if matches(task, query)), key=lambda task: str(task["id"]))
    column, sign = "due_date" if name == "due" else name, -1 if sort.startswith("-") else 1
    there = [task for task in found if task[column] is not None]
    there.sort(key=lambda task: place(task, name, sign), reverse=sign < 0)  # stable: ties stay in order of id
    kept = {"id", *query["fields"].split(",")} if "fields" in query else set(FIELDS)
    ordered = there + [task for task in found if task[column] is None]
    return [{field: value for field, value in task.items() if field in kept} for task in ordered]


# The same 200 tasks ---------------------------------------------------------------------------------------------------

INSERT = """
insert into tasks.task (
    id, user_id, title, description, status, priority, completed_at, created_at, updated_at, deleted_at, version,
    due_date, due_time, due_time_zone, tags
)
values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""


def rows_for(user: str, count: int, seed: int) -> list[tuple[Any, ...]]:
    """Returns rows with many ties: few moments, and few titles that differ in case alone."""
    dice = random.Random(seed)  # noqa: S311  (the same tasks each time)
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    rows = []
    for version in range(1, count + 1):
        created, updated, completed = (
            begin + timedelta(days=dice.randrange(12), microseconds=dice.randrange(3)) for _ in range(3)
        )
        status = dice.choice(STATUSES)
        description = " ".join(dice.choices(WORDS, k=dice.randrange(1, 6))) if dice.random() < 0.7 else None
        rows.append(
            (
                UUID(int=dice.getrandbits(128)),
                *(user, " ".join(dice.choices(WORDS, k=dice.randrange(1, 3))), description),
                *(status, dice.choice(PRIORITIES), completed if status == "completed" else None),
                *(created, updated, begin if dice.random() < 0.2 else None, version),
                *(*due_for(dice), tags_for(dice)),
            )
        )
    return rows


NOW = datetime.now(UTC)
# Those in which no day ends while the tests run
CALM_ZONES = [
    name
    for name in (
        *("UTC", "Europe/Berlin", "Asia/Kolkata", "Pacific/Kiritimati", "America/Anchorage", "Australia/Lord_Howe"),
        *("America/St_Johns", "Pacific/Pago_Pago", "Asia/Tokyo", "America/Sao_Paulo", "Pacific/Chatham", "Asia/Dubai"),
    )
    if NOW.astimezone(zones._rules(name)).hour < 23
]


def due_for(dice: random.Random) -> tuple[date | None, time | None, str | None]:
    """Returns when a task is due: around today, but not around this hour, wherever one is."""
    while dice.random() < 0.8:
        day = NOW.date() + timedelta(days=dice.choice((-40, -2, -1, 0, 0, 1, 1, 2, 6, 7, 8)))
        if dice.random() < 0.4:
            return day, None, None
        clock, zone = time(dice.randrange(24), dice.choice((0, 30))), dice.choice((None, *CALM_ZONES))
        moments = [datetime.combine(day, clock, zones._rules(name)) for name in ([zone] if zone else CALM_ZONES)]
        if all(abs(moment - NOW) > timedelta(hours=1) for moment in moments):
            return day, clock, zone
    return None, None, None


def tags_for(dice: random.Random) -> list[str]:
    chosen = {tags.key(tag): tag for tag in dice.sample(TAGS, dice.choice((0, 0, 1, 2, 3, 5)))}
    return [*chosen.values()]


def store(connection: psycopg.Connection[Any], user: str, count: int, seed: int) -> None:
    connection.execute("insert into tasks.account values (%s, %s)", (user, count))
    with connection.cursor() as cursor:
        cursor.executemany(INSERT, rows_for(user, count, seed))
    connection.commit()


@dataclass
class Reader:
    """A user of the service that runs as a process."""

    id: str
    http: httpx.Client

    def call(self, method: str, path: str = "", **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {make_token(self.id)}"} | options.pop("headers", {})
        return self.http.request(method, f"/api/{self.id}/tasks{path}", headers=headers, **options)

    def next(self, response: httpx.Response) -> httpx.Response:
        """Fetches the next page, by its whole URL."""
        return self.http.get(response.links["next"]["url"], headers=dict(response.request.headers))


@pytest.fixture(scope="module")
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url) as opened:
        yield opened


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.address, timeout=20) as opened:
        yield opened


@pytest.fixture(scope="module")
def reader(http: httpx.Client, connection: psycopg.Connection[Any]) -> Reader:
    """A user with 200 tasks; another has the same titles, and must never be seen."""
    reader = Reader(f"reader-{uuid4()}", http)
    store(connection, reader.id, 200, seed=1)
    store(connection, f"twin-{uuid4()}", 200, seed=1)  # with the same ids, too
    store(connection, f"twin-{uuid4()}", 200, seed=2)
    return reader


@pytest.fixture(scope="module")
def tasks(reader: Reader) -> list[Json]:
    """The reader's tasks, the trash included."""
    found: list[Json] = reader.call("GET").json() + reader.call("GET", "?trashed=true").json()
    assert len(found) == 200
    return found


def test_the_plain_list_is_what_the_model_says(reader: Reader, tasks: list[Json]) -> None:
    assert reader.call("GET").json() == expected(tasks, {})
    for sort in SORTS:
        assert reader.call("GET", params={"sort": sort}).json() == expected(tasks, {"sort": sort})


def several(names: tuple[str, ...]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(names), min_size=1, max_size=4).map(",".join)


BOOLEANS = st.sampled_from(["true", "false"])
MOMENTS = st.builds(
    lambda day, microsecond, form: form.format(f"2026-01-{day:02}T00:00:00.{microsecond:06}"),
    st.integers(1, 13),
    st.integers(0, 3),
    st.sampled_from(["{}Z", "{}+00:00"]),
)
DATES = st.integers(-3, 9).map(lambda days: str(NOW.date() + timedelta(days=days)))
QUERIES = st.fixed_dictionaries(
    {},
    optional={
        "due_after": DATES,
        "due_before": DATES,
        "due": st.tuples(st.sampled_from(lists.DUE), st.sampled_from(CALM_ZONES)),
        "tags": several(TYPED_TAGS),
        "tags_all": several(TYPED_TAGS),
        "status": several(STATUSES),
        "priority": several(PRIORITIES),
        "is_completed": BOOLEANS,
        "q": st.lists(st.sampled_from(TYPED), max_size=3).map(" ".join),
        **{f"{name}_{side}": MOMENTS for name in ("created", "updated", "completed") for side in ("after", "before")},
        "trashed": BOOLEANS,
        "sort": st.sampled_from(SORTS),
        "limit": st.integers(1, 60),
        "fields": several(FIELDS),
        "count": BOOLEANS,
    },
).map(lambda query: query | ({"due": query["due"][0], "time_zone": query["due"][1]} if "due" in query else {}))


@settings(max_examples=3000, derandomize=True, database=None, deadline=None)
@given(query=QUERIES)
def test_any_combination_gives_what_the_model_says(reader: Reader, tasks: list[Json], query: Json) -> None:
    wanted = expected(tasks, query)
    limit = query.get("limit", len(tasks))
    response = reader.call("GET", params=query)
    assert response.status_code == 200, response.text
    assert response.json() == wanted[:limit]
    assert response.headers.get("X-Total-Count") == (str(len(wanted)) if query.get("count") == "true" else None)
    assert ("next" in response.links) is (len(wanted) > limit)
    if "next" in response.links:
        following = reader.next(response)
        assert following.json() == wanted[limit : 2 * limit]
        assert following.headers.get("X-Total-Count") == response.headers.get("X-Total-Count")


@pytest.mark.parametrize("word", TYPED)
def test_every_word_finds_what_the_model_says(reader: Reader, tasks: list[Json], word: str) -> None:
    assert reader.call("GET", params={"q": word}).json() == expected(tasks, {"q": word})


def test_fields_keep_the_order_and_the_values_of_the_whole_task(reader: Reader, tasks: list[Json]) -> None:
    for names in (FIELDS, FIELDS[::-1], *((name,) for name in FIELDS)):
        found = reader.call("GET", params={"fields": ",".join(names)}).json()
        assert [list(task) for task in found] == [[name for name in FIELDS if name in ("id", *names)]] * len(found)
        assert found == expected(tasks, {"fields": ",".join(names)})


# Pages ----------------------------------------------------------------------------------------------------------------


WRITES = st.lists(
    st.tuples(st.sampled_from(["create", "rename", "complete", "delete"]), st.integers(0, 99)), max_size=4
)


@settings(max_examples=120, derandomize=True, database=None, deadline=None)
@given(
    sort=st.sampled_from(SORTS), limit=st.integers(1, 7), seed=st.integers(0, 99), writes=st.lists(WRITES, max_size=9)
)
def test_what_stays_put_is_seen_exactly_once_and_in_order(
    http: httpx.Client,
    connection: psycopg.Connection[Any],
    sort: str,
    limit: int,
    seed: int,
    writes: list[list[tuple[str, int]]],
) -> None:
    reader = Reader(f"pages-{uuid4()}", http)
    store(connection, reader.id, 30, seed)
    before = reader.call("GET", params={"sort": sort}).json()
    touched = set()
    response = reader.call("GET", params={"sort": sort, "limit": limit})
    seen = response.json()
    while "next" in response.links:
        for what, number in writes.pop() if writes else []:
            task_id = before[number % len(before)]["id"]
            touched.add(task_id)
            if what == "create":
                reader.call("POST", json={"title": WORDS[number % 12], "is_completed": number % 2 == 0})
            elif what == "rename":
                reader.call("PUT", f"/{task_id}", json={"title": WORDS[number % 7], "priority": PRIORITIES[number % 3]})
            elif what == "complete":
                reader.call("PATCH", f"/{task_id}/complete")
            else:
                reader.call("DELETE", f"/{task_id}")
        response = reader.next(response)
        assert response.status_code == 200
        assert 1 <= len(response.json()) <= limit or touched
        seen += response.json()
    stayed = [task for task in before if task["id"] not in touched]
    ids = {task["id"] for task in stayed}
    assert [task for task in seen if task["id"] in ids] == stayed


async def many(user: User, count: int) -> list[Json]:
    for number in range(count):
        await user.create(title=f"Task {number}")
    found: list[Json] = (await user.call("GET")).json()
    return found


async def follow(user: User, response: httpx.Response) -> httpx.Response:
    return await user.client.get(response.links["next"]["url"], headers=user.headers)


async def test_limits_at_below_and_above(user: User) -> None:
    tasks = await many(user, 3)
    for limit, followed in ((1, True), (2, True), (3, False), (4, False), (1000, False)):
        response = await user.call("GET", params={"limit": limit})
        assert response.json() == tasks[:limit]
        assert ("Link" in response.headers) is followed
    last = await follow(user, await user.call("GET", params={"limit": 2}))
    assert last.json() == tasks[2:]
    assert "Link" not in last.headers
    assert (await user.call("GET", "?sort=title")).json() == tasks[::-1], "without a limit, all"


async def test_a_link_keeps_the_query(user: User) -> None:
    await many(user, 3)
    query = {"limit": "1", "q": "täsk & 100%+ <b>\"x\" 'y'", "fields": "id,title", "count": "true", "sort": "-title"}
    assert "Link" not in (await user.call("GET", params=query)).headers
    query["q"] = ""
    response = await user.call("GET", params=query)
    for _ in range(2):
        url = urlsplit(response.links["next"]["url"])
        assert f"{url.scheme}://{url.netloc}{url.path}" == f"http://service.test{user.tasks}"
        sent = parse_qs(url.query, keep_blank_values=True)
        assert len(sent.pop("cursor")) == 1
        assert sent == {name: [value] for name, value in query.items()}
        response = await follow(user, response)
    assert "Link" not in response.headers


async def test_a_link_encodes_what_it_keeps(user: User) -> None:
    title = "täsk & 100%+ <b>\"x\" 'y' #?="
    for _ in range(2):
        await user.create(title=title)
    first = await user.call("GET", params={"limit": 1, "q": title})
    assert re.fullmatch(r"<[!#-;=?-~]+>; rel=\"next\"", first.headers["Link"])
    second = await follow(user, first)
    assert len(first.json()) == len(second.json()) == 1
    assert first.json() != second.json()


async def test_a_page_after_one_that_is_gone_goes_on_from_its_place(user: User) -> None:
    tasks = await many(user, 4)
    first = await user.call("GET", "?limit=2")
    for task in tasks[:2]:
        await user.call("DELETE", f"/{task['id']}")
    assert (await follow(user, first)).json() == tasks[2:]


def cursor_of(response: httpx.Response) -> str:
    return parse_qs(urlsplit(response.links["next"]["url"]).query)["cursor"][0]


async def refused(user: User, query: Json | str, name: str) -> str:
    """Returns the message of the one thing that is wrong with the query: this parameter."""
    response = await (user.call("GET", f"?{query}") if isinstance(query, str) else user.call("GET", params=query))
    assert response.status_code == 422, response.text
    (entry,) = response.json()["detail"]
    assert entry["loc"] == ["query", name]
    message: str = entry["msg"]
    return message


async def test_a_cursor_fits_the_list_that_it_was_made_for_alone(user: User, other: User) -> None:
    tasks = await many(user, 3)
    await many(other, 3)
    query = {"limit": 1, "status": "pending,completed", "priority": "medium", "q": "task", "sort": "title"}
    query["cursor"] = cursor_of(await user.call("GET", params=query))
    for change in (
        {},
        {"limit": 2},
        {"fields": "title"},
        {"count": "true"},
        {"status": "completed,pending"},
        {"q": "  task  task"},
        {"trashed": "false"},
    ):
        response = await user.call("GET", params=query | change)
        assert response.json()[0]["id"] == tasks[1]["id"], change
    for wrong in (
        {"status": "pending"},
        {"priority": "high,medium"},
        {"q": "tas"},
        {"sort": "-title"},
        {"sort": "created_at"},
        {"trashed": "true"},
        {"is_completed": "false"},
        {"created_after": "2001-01-01T00:00:00Z"},
    ):
        assert "same filters and the same sort" in await refused(user, query | wrong, "cursor"), wrong
    await refused(other, query, "cursor")


async def test_a_damaged_cursor_is_refused(user: User) -> None:
    await many(user, 2)
    good = cursor_of(await user.call("GET", "?limit=1"))
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for place_ in range(len(good) - 1):  # the very last letter has bits that stand for nothing
        other_letter = letters[letters.index(good[place_]) ^ 1]
        await refused(user, {"cursor": good[:place_] + other_letter + good[place_ + 1 :]}, "cursor")
    for damaged in ("", " ", "A", "AAAA", good[:-4], good + "AAAA", good + "=", "é", "🎉", "x" * 5000, "\0", "%00"):
        await refused(user, {"cursor": damaged}, "cursor")


@pytest.mark.parametrize(
    "key",
    [
        b"[]",
        b"{}",
        b"null",
        b"[1]",
        b"\xff",
        b"[" * 1400,
        b'[1, "", 5]',
        b'[1, "", ""]',
        b'[1, "", null]',
        b'["1", "", "0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e11"]',
        b'[1.5, "", "0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e11"]',
        b'[true, "", "0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e11"]',
        b'[NaN, "", "0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e11"]',
        b'[9223372036854775808, "", "0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e11"]',
        b'[1, 1, "0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e11"]',
        b'[1, null, "0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e11"]',
        rb'[1, "\u0000", "0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e11"]',
        rb'[1, "\ud800", "0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e11"]',
        b'[1, "", "{0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e11}"]',
        b'[1, "", "0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e11", 1]',
    ],
)
async def test_a_forged_cursor_is_refused_unless_it_is_one_that_could_be(user: User, key: bytes) -> None:
    def forged(key: bytes) -> str:
        return urlsafe_b64encode(lists._digest(Search(), user.id, key) + key).decode().rstrip("=")

    await user.create()
    await refused(user, {"cursor": forged(key)}, "cursor")
    could_be = b'[-9223372036854775808, "", "0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e11"]'
    assert len((await user.call("GET", params={"cursor": forged(could_be)})).json()) == 1


async def test_a_cursor_says_nothing_that_the_page_did_not(user: User) -> None:
    await many(user, 2)
    cursor = cursor_of(await user.call("GET", "?limit=1&sort=title"))
    rank, name, _ = json.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))[lists.DIGEST_BYTES :])
    assert (rank, name) == (0, "task 0")


# Parameters that are not as they should be ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "accepts"),
    [
        *(("status", value, "pending, in_progress, completed") for value in ("", "done", "pending,", "Pending", ",")),
        *(("priority", value, "low, medium, high") for value in ("", "urgent", "low, high", "low;high")),
        *(("is_completed", value, "true or false") for value in ("", "1", "yes", "True", "null")),
        *(("trashed", value, "true or false") for value in ("", "0", "all")),
        *(("count", value, "true or false") for value in ("", "exact")),
        *(
            (f"due_{side}", value, "a day of the calendar, like 2026-11-23")
            for side in ("after", "before")
            for value in (
                *("", "today", "2026-02-29", "2026-11-31", "2026-13-01", "0000-01-01", "10000-01-01", "26-11-23"),
                *("20261123", "2026-W48-1", "2026-11-23T00:00:00Z", " 2026-11-23", "２026-11-23", "infinity"),
            )
        ),
        *(
            ("due", value, "overdue, today, tomorrow, week, none")
            for value in ("", "Today", "today,tomorrow", "now", "month", "null")
        ),
        *(
            ("time_zone", value, "a time zone of the tz database, like Europe/Berlin")
            for value in ("", "Mars/Olympus", "europe/berlin", "CEST", "+02:00", "FOO3", "localtime", "x" * 10_000)
        ),
        *(
            (name, value, "1 to 50 characters without commas")
            for name in ("tags", "tags_all")
            for value in ("", ",", "home,", "home, ,work", " ", "x" * 51, "\u3000")
        ),
        ("tags", ",".join(map(str, range(101))), "at most 100 tags; these are 101"),
        ("tags_all", "a\0b", "NUL"),
        *(
            ("sort", value, "created_at, updated_at")
            for value in ("", "-", "id", "+title", "--title", "title,priority")
        ),
        *(("limit", value, "from 1 to 1000") for value in ("", "0", "-1", "1001", "1e2", "٣", "5.0", " 5", "9" * 5000)),
        *(("fields", value, "id, user_id, title") for value in ("", "colour", "id,", "ID", "*")),
        *(
            (f"{name}_{side}", value, "RFC 3339")
            for name in ("created", "updated", "completed")
            for side in ("after", "before")
            for value in (
                *("", "now", "2026-11-23", "2026-11-23T08:30:00", "2026-11-23 08:30:00Z", "1763886600"),
                *("2026-02-30T00:00:00Z", "2026-11-23T24:00:01Z", "2026-11-23T08:30:00+02", "infinity"),
                *("9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00", "2026-11-23T08:30:00+25:00"),
                *("２026-11-23T08:30:00Z", "2026-11-23T08:30:00.Z", "20261123T083000Z", "2026-W48-1T00:00:00Z"),
            )
        ),
        ("q", "x" * 1001, "at most 1000 characters, not 1001"),
        ("q", "a\0b", "NUL"),
    ],
)
async def test_a_wrong_value_is_refused_with_what_would_be_right(
    user: User, name: str, value: str, accepts: str
) -> None:
    message = await refused(user, {name: value}, name)
    assert accepts in message
    assert len(message) < 400


async def test_a_plus_that_became_a_space_is_explained(user: User) -> None:
    assert "%2B" in await refused(user, "created_after=2026-11-23T08:30:00+02:00", "created_after")
    assert "%2B" in await refused(user, "created_after=2026-11-23T08:30:00+0200", "created_after")
    for offset in ("%2B02:00", "%2B0200", "-0930"):
        assert (await user.call("GET", f"?created_after=2026-11-23T08:30:00{offset}")).status_code == 200


@pytest.mark.parametrize("name", ["colour", "Status", "offset", "page", "status[]", "", "é", "user_id", "access_token"])
async def test_an_unknown_parameter_is_refused_with_the_known_ones(user: User, name: str) -> None:
    message = await refused(user, {name: "1"}, name)
    assert all(known in message for known in lists.PARAMETERS)


@pytest.mark.parametrize(("name", "known"), [("Status", "status"), ("page_limit", "limit"), ("created", "created_at")])
async def test_an_unknown_parameter_is_refused_with_the_known_one_that_is_like_it(
    user: User, name: str, known: str
) -> None:
    known = {"created_at": "created_after"}.get(known, known)
    assert f"did you mean {known}?" in await refused(user, {name: "1"}, name)


SEVERAL = {
    "status": STATUSES,
    "priority": PRIORITIES,
    "fields": FIELDS,
    "tags": ("home", "Café", "日本"),
    "tags_all": ("home", "Café", "日本"),
}


@pytest.mark.parametrize("name", [name for name in lists.PARAMETERS if name not in SEVERAL])
async def test_a_parameter_that_comes_twice_is_refused(user: User, name: str) -> None:
    assert "once, not 2 times" in await refused(user, f"{name}=1&{name}=2", name)
    assert "once, not 2 times" in await refused(user, f"{name}=true&{name}=true", name)


@pytest.mark.parametrize("name", SEVERAL)
def test_values_may_be_sent_one_by_one(reader: Reader, tasks: list[Json], name: str) -> None:
    one, two, three = SEVERAL[name][:3]
    wanted = expected(tasks, {name: f"{one},{two}"})
    for query in (
        f"{name}={one}&{name}={two}",
        f"{name}={two}&limit=1000&{name}={one}",
        f"{name}={one}%2C{two}",
        f"{name}={one},{two}&{name}={one}",
        f"{name}={one}&{name}={two}&" + f"{name}={two}&" * 500,
    ):
        assert reader.call("GET", f"?{query}").json() == wanted, query
    assert reader.call("GET", f"?{name}={one}&{name}={two}&{name}={three}").json() == expected(
        tasks, {name: f"{one},{two},{three}"}
    )
    first = reader.call("GET", f"?{name}={one}&limit=2&{name}={two}")
    assert first.json() == wanted[:2]
    assert reader.next(first).json() == wanted[2:4]
    cursor = cursor_of(first)
    assert reader.call("GET", f"?{name}={two},{one}&limit=2&cursor={cursor}").json() == wanted[2:4]


@pytest.mark.parametrize("query", ["status=pending&status=done", "fields=id&fields=", "priority=low&priority=low,x"])
async def test_each_of_several_values_is_looked_at(user: User, query: str) -> None:
    name = query.partition("=")[0]
    assert "one or more of" in await refused(user, query, name)


@pytest.mark.parametrize("query", ["q=%ff", "status=%ed%a0%80", "q=%c3", "cursor=%ff"])
async def test_what_is_no_utf_8_is_refused(user: User, query: str) -> None:
    assert "UTF-8" in await refused(user, query, query.partition("=")[0])


async def test_everything_wrong_is_named_at_once(user: User) -> None:
    response = await user.call("GET", "?limit=0&colour=red&status=done&count=true&q=%00&q=x")
    assert [entry["loc"][1] for entry in response.json()["detail"]] == ["limit", "colour", "status", "q"]


async def test_a_long_value_is_shown_shortened(user: User) -> None:
    assert len(await refused(user, {"status": "x" * 10_000}, "status")) < 250


@pytest.mark.parametrize(
    ("created", "after", "before"),
    [
        ("2026-11-23T08:30:00.123456Z", "2026-11-23T08:30:00.123455Z", "2026-11-23T08:30:00.123457Z"),
        ("2026-11-23T08:30:00.123456Z", "2026-11-23T10:30:00.1234559+02:00", "2026-11-23T08:30:00.1234561z"),
        ("2026-11-23T08:30:00.123456Z", "2026-11-23T10:30:00.123455+0200", "2026-11-22T23:00:00.123457-0930"),
        ("2026-11-23T08:30:00.000000Z", "2026-11-22t23:29:59.999999999-09:00", "2026-11-23T08:30:00.000000001Z"),
    ],
)
def test_moments_are_exact(
    http: httpx.Client, connection: psycopg.Connection[Any], created: str, after: str, before: str
) -> None:
    reader = Reader(f"moments-{uuid4()}", http)
    store(connection, reader.id, 1, seed=1)
    connection.execute("update tasks.task set created_at = %s where user_id = %s", (created, reader.id))
    connection.commit()
    for query, found in (
        ({"created_after": after}, 1),
        ({"created_before": before}, 1),
        ({"created_after": after, "created_before": before}, 1),
        ({"created_after": created}, 0),
        ({"created_before": created}, 0),
        ({"created_before": "9999-12-31T23:59:59.9999999Z", "created_after": "0001-01-01T00:00:00Z"}, 1),
    ):
        assert len(reader.call("GET", params=query).json()) == found, query


# When and what for ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("due", lists.DUE[:4])
async def test_what_is_due_today_is_never_guessed(user: User, due: str) -> None:
    message = await refused(user, {"due": due}, "time_zone")
    assert f"due={due}" in message
    assert (await user.call("GET", params={"due": due, "time_zone": "Asia/Kolkata"})).status_code == 200


async def test_a_zone_that_nothing_depends_on_is_checked_all_the_same(user: User) -> None:
    for query in ({}, {"due": "none"}):
        assert (await user.call("GET", params=query | {"time_zone": "Asia/Kolkata"})).status_code == 200
        assert "did you mean Asia/Kolkata?" in await refused(user, query | {"time_zone": "asia/kolkata"}, "time_zone")


async def test_a_zone_that_the_database_does_not_know_is_refused(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zones, "ZONES", zones.ZONES | {"Mars/Olympus"})
    message = await refused(user, {"due": "today", "time_zone": "Mars/Olympus"}, "time_zone")
    assert "that the database knows too" in message


@pytest.mark.parametrize("due", lists.DUE[:4])
async def test_a_list_that_the_clock_changes_has_no_etag_and_is_never_a_304(user: User, due: str) -> None:
    today = zones.today("UTC", datetime.now(UTC))
    day = {"overdue": -3, "today": 0, "tomorrow": 1, "week": 6}[due]
    task = await user.create(due_date=str(today + timedelta(days=day)))
    query = {"due": due, "time_zone": "UTC"}
    for known in ("*", f'W/"{task["version"]}"'):
        response = await user.call("GET", params=query, headers={"If-None-Match": known})
        assert (response.status_code, response.json()) == (200, [task])
        assert "ETag" not in response.headers
        assert response.headers["Cache-Control"] == "private, no-cache"


def test_the_first_and_the_last_date_are_dates_like_others(
    http: httpx.Client, connection: psycopg.Connection[Any]
) -> None:
    reader = Reader(f"dates-{uuid4()}", http)
    store(connection, reader.id, 3, seed=1)
    for version, day in ((1, "0001-01-01"), (2, "9999-12-31"), (3, None)):
        connection.execute(
            "update tasks.task set due_date = %s, due_time = null, due_time_zone = null, deleted_at = null"
            " where user_id = %s and version = %s",
            (day, reader.id, version),
        )
    connection.commit()
    for query, found in (
        ({"due_after": "0001-01-01"}, [2]),
        ({"due_before": "9999-12-31"}, [1]),
        ({"due_after": "0001-01-01", "due_before": "9999-12-31"}, []),
        ({"sort": "due"}, [1, 2, 3]),
        ({"sort": "-due"}, [2, 1, 3]),
    ):
        assert [task["version"] for task in reader.call("GET", params=query).json()] == found, query


async def test_a_hundred_tags_may_be_asked_for(user: User) -> None:
    task = await user.create(tags=["99"])
    hundred = ",".join(map(str, range(100)))
    assert (await user.call("GET", params={"tags": hundred})).json() == [task]
    assert (await user.call("GET", params={"tags_all": hundred})).json() == []


async def test_the_longest_tag_may_be_asked_for(user: User) -> None:
    task = await user.create(tags=["京" * 50])
    assert (await user.call("GET", params={"tags": " " + "京" * 50})).json() == [task]


# Search ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "description", "q"),
    [
        ("Milk to buy", None, "buy mil"),
        ("Milk", "to buy", "BUY\tmilk\n"),
        ("Milk", "to buy", "   "),
        ("Cafe\u0301 crème", None, "CAFÉ creme"),
        ("Zürich", None, "zurich"),
        ("zurich", None, "ZÜR"),
        ("Ёлка", None, "елка"),
        ("ΟΔΟΣ", None, "οδός"),
        ("Straße", None, "STRAß"),
        ("Straße", None, "ẞ straẞe"[2:]),
        ("한국어", None, "한국"),
        ("قائمة المهام", None, "المهام"),
        ("(brackets)", None, "brack"),
        ("e-mail", None, "mail"),
        ("e-mail", None, "e-ma"),
        ("50% off", None, "50%"),
        ("50% off", None, "%"),
        ("snake_case", None, "case"),
        ("a\\b", None, "a\\b"),
        ("🎉party", None, "🎉"),
        ("🎉party", None, "party"),
        ("👩‍👩‍👧‍👦", None, "👩‍👩‍👧‍👦"),
        ("'; drop table tasks.task; --", None, "'; drop --"),
        ("x" * 100, "y" * 500, "x" * 100 + " " + "y" * 500),
        ("\u0301x", None, "\u0301"),
        ("Robert's", None, "robert's s"),
    ],
)
async def test_what_a_search_finds(user: User, other: User, title: str, description: str | None, q: str) -> None:
    task = await user.create(title=title, description=description)
    await other.create(title=title, description=description)
    assert (await user.call("GET", params={"q": q})).json() == [task]


@pytest.mark.parametrize(
    ("title", "q"),
    [
        ("Milk to buy", "ilk"),
        ("Milk to buy", "milky"),
        ("Milk to buy", "milk bread"),
        ("snake", "%"),
        ("snake", "s_ake"),
        ("snake", "s.*"),
        ("snake", "\\"),
        ("a - b", "a-b"),
        ("a b", "a-b"),
        ("snake", "snake:*"),
        ("snake", "!dog"),
        ("snake", "dog|snake"),
        ("snake", '"snake"'),
    ],
)
async def test_what_a_search_does_not_find(user: User, title: str, q: str) -> None:
    await user.create(title=title)
    assert (await user.call("GET", params={"q": q})).json() == []


async def test_a_word_does_not_reach_from_the_title_into_the_description(user: User) -> None:
    await user.create(title="milk", description="-shake")
    assert (await user.call("GET", params={"q": "milk-shake"})).json() == []


@settings(max_examples=400, derandomize=True, database=None, deadline=None)
@given(q=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=1000))
def test_no_search_is_an_error(reader: Reader, q: str) -> None:
    assert reader.call("GET", params={"q": q}).status_code == 200


@pytest.mark.parametrize(
    "q", ["%" * 1000, "\\" * 1000, "' " * 500, "🎉" * 1000, "\u0301" * 1000, "ﷺ" * 1000, "a " * 500]
)
def test_a_search_of_1000_characters_is_no_error(reader: Reader, q: str) -> None:
    assert reader.call("GET", params={"q": q}).status_code == 200


async def test_a_database_with_the_locale_c_folds_ascii_and_fails_at_nothing(database_url: str) -> None:
    with empty_database(database_url, "template template0 locale_provider libc locale 'C'") as url:
        migrate(parse_address(url))
        connection: Any = await asyncpg.connect(url)
        await connection.execute("insert into tasks.account values ('u', 1)")
        await connection.execute(
            "insert into tasks.task (id, user_id, title, version) values (gen_random_uuid(), 'u', 'Milk: Ärger', 1)"
        )
        for q, found in ((["MIL"], 1), (["Ärger"], 1), (["arg"], 1), (["ilk"], 0)):
            arguments = [None, None, None, None, q, *[None] * 6, False, "title", False, *[None] * 5, True, *[None] * 7]
            row = await connection.fetchrow(queries.TASK_SEARCH.sql, "u", *arguments)
            assert row["total"] == found, q
        await connection.close()


# Conditional reads ----------------------------------------------------------------------------------------------------


LISTS = ["", "?limit=1", "?limit=1&count=true", "?q=milk&count=true", "?trashed=true&sort=title", "?fields=id&limit=1"]
LISTS += ["?tags=home", "?sort=due&due_before=2026-11-23", "?due=none&time_zone=Asia/Kolkata"]


def told_alike(unchanged: httpx.Response, response: httpx.Response) -> None:
    """A 304 has the headers of the 200, or leaves them out; never another value."""
    for name in ("ETag", "Cache-Control", "Vary"):
        assert unchanged.headers[name] == response.headers[name]
    own = {"x-request-id", "server-timing"}  # of each answer
    assert not {name for name in set(unchanged.headers) - own if unchanged.headers[name] != response.headers.get(name)}
    assert not {"content-type", "content-length"} & set(unchanged.headers)


@pytest.mark.parametrize("query", LISTS)
async def test_a_list_that_has_not_changed_is_a_304(user: User, other: User, query: str) -> None:
    version = 0  # of who never wrote
    for _ in range(3):
        response = await user.call("GET", query)
        etag = response.headers["ETag"]
        assert (response.status_code, etag) == (200, f'W/"{version}"')
        for method in ("GET", "HEAD"):
            for known in (
                *(etag, f'"{version}"', f'"x", {etag} ,"y"', "*", f'{etag},"{"9" * 40}"', f'"{version}-gzip"'),
                *(f'W/"{version}-br"', f'"{version};br"', f'"{version}--gzip"', f'"x", W/"{version}-zstd"'),
                ", ".join(f'"x{number}"' for number in range(2_000)) + f", {etag}",
            ):
                unchanged = await user.call(method, query, headers={"If-None-Match": known})
                assert (unchanged.status_code, unchanged.content) == (304, b"")
                assert unchanged.headers["ETag"] == etag
                told_alike(unchanged, response)
        for unknown in (
            '"x"',
            f'W/"{version + 1}"',
            f'"0{version}"',
            "",
            "garbage",
            f"{version}",
            '"',
            '"é',
            "9" * 99,
            '"*"',
        ):
            headers = [(name.encode(), value.encode()) for name, value in user.headers.items()]
            headers.append((b"If-None-Match", unknown.encode("latin-1")))
            again = await user.client.get(user.tasks + query, headers=headers)
            assert (again.status_code, again.content) == (200, response.content), unknown
        await other.create()
        version = (await user.create(title="Milk"))["version"]


async def test_a_task_that_has_not_changed_is_a_304(user: User) -> None:
    task = await user.create()
    await user.create()
    path = f"/{task['id']}"
    response = await user.call("GET", path)
    etag = f'"{task["version"]}"'
    assert (response.headers["ETag"], response.json()) == (etag, task)
    for known in (etag, f"W/{etag}", f'"0", {etag}', "*"):
        unchanged = await user.call("GET", path, headers={"If-None-Match": known})
        assert (unchanged.status_code, unchanged.content, unchanged.headers["ETag"]) == (304, b"", etag)
        told_alike(unchanged, response)
    await user.call("PATCH", path + "/complete")
    changed = await user.call("GET", path, headers={"If-None-Match": etag})
    version = task["version"] + 2
    assert (changed.status_code, changed.headers["ETag"], changed.json()["version"]) == (200, f'"{version}"', version)
    await user.call("DELETE", path)
    for known in ("*", f'"{version}"', f'"{version + 1}"'):
        assert (await user.call("GET", path, headers={"If-None-Match": known})).status_code == 404


async def test_if_none_match_in_several_lines_is_one_list(user: User) -> None:
    headers = [*user.headers.items(), ("If-None-Match", '"7"'), ("If-None-Match", 'W/"0"')]
    response = await user.client.get(user.tasks, headers=headers)
    assert response.status_code == 304


async def test_every_write_moves_the_list_s_etag(user: User) -> None:
    task = await user.create()
    path = f"/{task['id']}"
    etags = [(await user.call("GET")).headers["ETag"]]
    for method, rest, body in (
        ("PUT", path, {"json": {"title": "x"}}),
        ("PATCH", path + "/complete", {}),
        ("DELETE", path, {}),
        ("POST", "", {"json": {"title": "y"}}),
    ):
        await user.call(method, rest, **body)
        etags.append((await user.call("GET")).headers["ETag"])
    assert len(set(etags)) == 5


async def test_the_trash_is_a_list_of_its_own(user: User, other: User) -> None:
    live, gone = await user.create(title="live"), await user.create(title="gone")
    theirs = await other.create(title="gone")
    await other.call("DELETE", f"/{theirs['id']}")
    await user.call("DELETE", f"/{gone['id']}")
    assert (await user.call("GET", "?trashed=false")).json() == (await user.call("GET")).json() == [live]
    (found,) = (await user.call("GET", "?trashed=true")).json()
    assert (found["id"], found["deleted_at"] is not None) == (gone["id"], True)
