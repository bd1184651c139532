"""The feed of changes by page and by long poll: over HTTP, held against the table itself."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import psycopg
import pytest
from starlette.applications import Starlette

from service.models import BIGGEST_VERSION, ChangesPage
from service.queries import changes as queries
from tests.conftest import User, make_token
from tests.feed import apply, counter_in, erase_trash, task_texts, tasks_in

GONE = {"detail": "Start again from since=0"}
TODAY = 1_700_000_000_000  # numbers of a counter begin beyond this


async def ask(user: User, *, headers: Any = None, method: Any = "GET", **query: Any) -> httpx.Response:
    """Asks for the user's changes."""
    url = f"/api/{user.id}/changes"
    return await user.client.request(method, url, headers=user.headers | (headers or {}), params=query)


async def page(user: User, **query: Any) -> dict[str, Any]:
    """Returns a page of the user's changes."""
    response = await ask(user, **query)
    assert response.status_code == 200, response.text
    ChangesPage.model_validate_json(response.content)
    found: dict[str, Any] = response.json()
    return found


async def pages(user: User, copy: dict[str, str], since: int, limit: int | None = None) -> list[dict[str, Any]]:
    """Applies all pages to the copy; returns them."""
    found = []
    while True:
        query = {"since": since} | ({} if limit is None else {"limit": limit})
        response = await ask(user, **query)
        assert response.status_code == 200, response.text
        found.append(apply(copy, response.text))
        since = found[-1]["version"]
        if not found[-1]["has_more"]:
            return found


async def batch(user: User, *operations: dict[str, Any]) -> int:
    """Does it; returns its number."""
    url = f"/api/{user.id}/batch"
    response = await user.client.post(url, headers=user.headers, json={"operations": operations})
    assert response.status_code == 200, response.text
    version: int = response.json()["version"]
    return version


def creates(number: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"op": "create", "task": {"title": f"Task {n}"} | fields} for n in range(number)]


async def change(user: User, task: dict[str, Any], title: str = "") -> dict[str, Any]:
    """Gives the task another title; returns it."""
    response = await user.call("PUT", f"/{task['id']}", json={"title": title or uuid4().hex})
    assert response.status_code == 200
    changed: dict[str, Any] = response.json()
    return changed


def forget_log(url: str, user: User, *, all_of_it: bool = True) -> None:
    """Erases the user's log, as the purge does after 30 days; what was erased stays told."""
    with psycopg.connect(url) as connection:
        moment = "now() + interval '1 hour'" if all_of_it else "now() - interval '1 hour'"
        connection.execute(
            f"select tasks.purge_changes(%s, '5s', {moment}, now() - interval '400 days', 100000)".encode(), [user.id]
        )


@pytest.fixture(params=["log", "table"])
async def source(request: pytest.FixtureRequest, database_url: str) -> Callable[[User], None]:
    """Where the feed finds what has changed: called when that has happened, makes it so."""
    return lambda user: forget_log(database_url, user) if request.param == "table" else None


# What a page has ------------------------------------------------------------------------------------------------------


async def test_a_user_without_an_account_has_nothing(user: User) -> None:
    response = await ask(user)
    assert response.status_code == 200
    assert response.json() == {"version": 0, "has_more": False, "tasks": [], "erased": []}
    assert response.headers["ETag"] == 'W/"0"'
    assert (await ask(user, since=0, headers={"If-None-Match": 'W/"0"'})).status_code == 304
    for since in (1, TODAY, BIGGEST_VERSION):
        response = await ask(user, since=since)
        assert (response.status_code, response.json()) == (410, GONE)


async def test_since_0_is_a_full_copy_in_order_of_version(user: User, other: User, database_url: str) -> None:
    await other.create()
    tasks = [await user.create(title=f'Task {n} – “quoted”\u2028\\ " 🎉') for n in range(5)]
    await change(user, tasks[0])
    assert (await user.call("DELETE", f"/{tasks[1]['id']}")).status_code == 204
    await user.call("PATCH", f"/{tasks[2]['id']}/complete")
    for query in ({}, {"since": 0}):
        response = await ask(user, **query)
        told = response.json()
        assert [task["id"] for task in told["tasks"]] == [tasks[n]["id"] for n in (3, 4, 0, 1, 2)]
        assert [task["version"] for task in told["tasks"]] == sorted(task["version"] for task in told["tasks"])
        assert (told["has_more"], told["erased"]) == (False, [])
        assert told["version"] == told["tasks"][-1]["version"] == counter_in(database_url, user.id)
        assert response.headers["ETag"] == f'W/"{told["version"]}"'
        assert task_texts(response.text) == tasks_in(database_url, user.id), "byte for byte"
    assert told["tasks"][3]["deleted_at"], "those in the trash are among them"
    shown = (await user.call("GET", f"/{tasks[0]['id']}")).text
    assert task_texts(response.text)[tasks[0]["id"]] == shown, "as every other answer has it"


async def test_since_a_number_tells_what_came_after_it(user: User, source: Callable[[User], None]) -> None:
    tasks = [await user.create() for _ in range(4)]
    start = (await page(user))["version"]
    assert await page(user, since=start) == {"version": start, "has_more": False, "tasks": [], "erased": []}
    one = await change(user, tasks[1])
    two = await change(user, tasks[0])
    again = await change(user, tasks[1])
    source(user)
    told = await page(user, since=start)
    assert [task["version"] for task in told["tasks"]] == [two["version"], again["version"]], "each once, as it is now"
    assert told["tasks"] == [two, again]
    assert [task["id"] for task in (await page(user, since=one["version"]))["tasks"]] == [two["id"], again["id"]]
    assert (await page(user, since=two["version"]))["tasks"] == [again]
    assert (await page(user, since=again["version"]))["tasks"] == []


async def test_a_page_ends_only_between_two_numbers(user: User, source: Callable[[User], None]) -> None:
    task = await user.create()
    start = (await page(user))["version"]
    first = [await user.create() for _ in range(3)]
    number = await batch(user, *creates(30))
    last = [await user.create() for _ in range(3)]
    source(user)
    for since, limit, expected in [
        (start, 1, 1),
        (start, 3, 3),
        (start, 4, 33),
        (start, 10, 33),
        (start, 33, 33),
        (start, 34, 34),
        (first[-1]["version"], 1, 30),
        (first[-1]["version"], 10, 30),
        (first[-1]["version"], 30, 30),
        (first[-1]["version"], 31, 31),
        (0, 1, 1),
        (0, 5, 34),
    ]:
        told = await page(user, since=since, limit=limit)
        assert len(told["tasks"]) == expected
        assert told["has_more"]
        assert told["version"] == told["tasks"][-1]["version"]
    for limit in (36, 37, 1000):
        told = await page(user, since=start, limit=limit)
        assert (len(told["tasks"]), told["has_more"], told["version"]) == (36, False, last[-1]["version"])
    for limit in (37, 38):
        told = await page(user, since=0, limit=limit)
        assert (len(told["tasks"]), told["has_more"], told["version"]) == (37, False, last[-1]["version"])
    assert (await page(user, since=number, limit=3))["has_more"] is False
    assert task["version"] == start


async def test_has_more_is_right_where_the_last_changes_are_hidden_behind_later_ones(
    user: User, database_url: str, source: Callable[[User], None]
) -> None:
    tasks = [await user.create() for _ in range(6)]
    start = (await page(user))["version"]
    for _ in range(10):
        await change(user, tasks[0])
    for task in tasks[1:4]:
        await change(user, task)
    await change(user, tasks[0])
    source(user)
    for limit, expected in [(1, [1]), (2, [2]), (3, [3]), (4, [4]), (5, [4])]:
        told = await page(user, since=start, limit=limit)
        assert [len(told["tasks"])] == expected
        assert told["has_more"] is (limit < 4)
        assert told["version"] == told["tasks"][-1]["version"]
    copy: dict[str, str] = {}
    assert len(await pages(user, copy, 0, 1)) == 6
    assert copy == tasks_in(database_url, user.id)


async def test_a_page_has_500_tasks_unless_told(user: User, source: Callable[[User], None]) -> None:
    numbers = [(await batch(user, *creates(99)), (await user.create())["version"]) for _ in range(6)]
    source(user)
    for since in (0, numbers[0][0]):
        told = await page(user, since=since)
        assert (len(told["tasks"]), told["has_more"]) == (500, True)
        assert len((await page(user, since=told["version"]))["tasks"]) == 600 - 500 - (99 if since else 0)


async def test_changes_that_came_to_nothing_take_no_number(user: User) -> None:
    task = await user.create()
    before = await page(user)
    assert (await user.call("PUT", f"/{task['id']}", json={})).status_code == 200
    assert (await user.call("PUT", f"/{task['id']}", json={"title": task["title"]})).status_code == 200
    assert (await user.call("POST", json={"title": "x", "id": task["id"]})).status_code == 409
    url = f"/api/{user.id}/batch"
    operations = [*creates(2), {"op": "delete", "id": str(uuid4())}]
    assert (await user.client.post(url, headers=user.headers, json={"operations": operations})).status_code == 409
    assert await page(user) == before
    assert await page(user, since=before["version"]) | {"tasks": before["tasks"]} == before


async def test_me_is_whoever_sent_the_token(user: User) -> None:
    await user.create()
    response = await user.client.get("/api/me/changes", headers=user.headers)
    assert response.json() == await page(user)


# What was erased ------------------------------------------------------------------------------------------------------


async def trash(user: User, *tasks: dict[str, Any]) -> None:
    for task in tasks:
        assert (await user.call("DELETE", f"/{task['id']}")).status_code == 204


async def test_what_was_erased_is_told_to_those_who_may_have_it(
    user: User, database_url: str, source: Callable[[User], None]
) -> None:
    tasks = [await user.create() for _ in range(6)]
    start = (await page(user))["version"]
    await trash(user, *tasks[:2])
    assert erase_trash(database_url, user.id) == 2
    first = await page(user, since=start)
    later = await change(user, tasks[2])
    await trash(user, tasks[3])
    assert erase_trash(database_url, user.id) == 1
    source(user)
    told = await page(user, since=start)
    assert told["erased"][:2] == sorted(task["id"] for task in tasks[:2]), "in order of their numbers"
    assert told["erased"][2:] == [tasks[3]["id"]]
    assert told["tasks"] == [later]
    assert (told["version"], told["has_more"]) == (counter_in(database_url, user.id), False)
    assert (await page(user, since=first["version"]))["erased"] == [tasks[3]["id"]], "not told twice"
    assert (await page(user, since=told["version"]))["erased"] == []
    full = await page(user)
    assert full["erased"] == []
    assert {task["id"] for task in full["tasks"]} == {task["id"] for task in (tasks[2], *tasks[4:])}


async def test_pages_that_have_erased_tasks_end_between_two_numbers(
    user: User, database_url: str, source: Callable[[User], None]
) -> None:
    tasks = [await user.create() for _ in range(12)]
    copy: dict[str, str] = {}
    start = (await pages(user, copy, 0))[-1]["version"]
    await trash(user, *tasks[:5])
    erase_trash(database_url, user.id)  # one number
    await change(user, tasks[6])
    await trash(user, *tasks[7:9])
    erase_trash(database_url, user.id)
    source(user)
    told = await pages(user, copy, start, 2)
    assert [(len(each["erased"]), len(each["tasks"]), each["has_more"]) for each in told] == [
        (5, 0, True),
        (2, 1, False),
    ]
    assert told[-1]["version"] == counter_in(database_url, user.id)
    assert copy == tasks_in(database_url, user.id)


async def test_when_the_erasure_is_the_last_change_the_number_is_its_own(
    user: User, database_url: str, source: Callable[[User], None]
) -> None:
    task = await user.create()
    for since in (task["version"], 0):
        await trash(user, task)
        erase_trash(database_url, user.id)
        source(user)
        told = await page(user, since=since)
        assert told["version"] == counter_in(database_url, user.id) > task["version"]
        assert (told["has_more"], told["tasks"]) == (False, [])
        assert told["erased"] == ([task["id"]] if since else [])
        task = await user.create(id=task["id"])


@pytest.mark.parametrize("limit", [1, 500])
async def test_an_erased_task_whose_id_is_used_again_is_there(
    user: User, database_url: str, source: Callable[[User], None], limit: int
) -> None:
    task, beside = await user.create(), await user.create()
    copy: dict[str, str] = {}
    start = (await pages(user, copy, 0))[-1]["version"]
    for n in range(2):
        await trash(user, task)
        erase_trash(database_url, user.id)
        task = await user.create(id=task["id"], title=f"Made anew {n}")
        await change(user, beside)
    source(user)
    told = await pages(user, copy, start, limit)
    assert copy == tasks_in(database_url, user.id)
    assert [task_id for each in told for task_id in each["erased"]] == [], "it is not erased now"


async def test_a_task_that_was_erased_twice_is_told_once(
    user: User, database_url: str, source: Callable[[User], None]
) -> None:
    task = await user.create()
    for _ in range(2):
        await trash(user, task)
        erase_trash(database_url, user.id)
        again = await user.create(id=task["id"])
    await trash(user, again)
    erase_trash(database_url, user.id)
    source(user)
    assert (await page(user, since=task["version"]))["erased"] == [task["id"]]


# Numbers that cannot be served ----------------------------------------------------------------------------------------


async def test_a_number_ahead_or_before_the_first_is_gone(user: User) -> None:
    first = (await user.create())["version"]
    assert first > TODAY
    last = (await user.create())["version"]
    for since in (1, 7, first - 1, last + 1, last + 10**6, BIGGEST_VERSION):
        response = await ask(user, since=since)
        assert (response.status_code, response.json()) == (410, GONE), since
        assert response.headers["Cache-Control"] == "private, no-cache"
        held = await ask(user, since=since, wait=5, headers={"If-None-Match": "*"})
        assert held.status_code == 410, "at once, and whatever the client has"
    for since in (0, first, last):
        assert (await ask(user, since=since)).status_code == 200


async def test_a_number_from_before_what_is_told_of_erased_tasks_is_gone(user: User, database_url: str) -> None:
    tasks = [await user.create() for _ in range(3)]
    start = (await page(user))["version"]
    await trash(user, tasks[0])
    erase_trash(database_url, user.id)
    told = (await page(user))["version"]
    last = await change(user, tasks[1])
    with psycopg.connect(database_url) as connection:
        moment = "now() + interval '1 hour'"
        connection.execute(f"select tasks.purge_changes(%s, '5s', {moment}, {moment}, 100000)".encode(), [user.id])
    for since in (start, told - 1):
        assert (await ask(user, since=since)).status_code == 410
    assert (await page(user, since=told))["tasks"] == [last]
    assert (await page(user, since=last["version"]))["tasks"] == []


@pytest.fixture
async def migrated(user: User, database_url: str) -> AsyncIterator[User]:
    """A user from before the log, who has 30 tasks with the numbers 1 to 30, and a counter at 40."""
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "insert into tasks.account (user_id, version, history_floor, erased_floor) values (%s, 40, 40, 40)",
            [user.id],
        )
        connection.execute(
            "insert into tasks.task (user_id, id, title, version) select %s, gen_random_uuid(), 'Old ' || n, n"
            " from generate_series(1, 30) n",
            [user.id],
        )
    yield user  # noqa: PT022


async def test_tables_from_before_the_log(migrated: User, database_url: str) -> None:
    told = await page(migrated)
    assert (told["version"], told["has_more"], len(told["tasks"])) == (40, False, 30)
    for since in (1, 30, 39):
        assert (await ask(migrated, since=since)).status_code == 410, "nobody knows what was erased until then"
    assert (await page(migrated, since=40))["tasks"] == []
    changed = await change(migrated, told["tasks"][3])
    assert changed["version"] == 41
    await trash(migrated, told["tasks"][4])
    erase_trash(database_url, migrated.id)
    after = await page(migrated, since=40)
    assert (after["version"], after["tasks"], after["erased"]) == (43, [changed], [told["tasks"][4]["id"]])


@pytest.mark.parametrize("limit", [1, 7, 30, 31])
async def test_a_copy_of_tables_from_before_the_log_comes_to_its_end(
    migrated: User, database_url: str, limit: int
) -> None:
    """None of its pages may lead to a number that cannot be served."""
    tasks = (await page(migrated))["tasks"]
    await batch(migrated, *creates(10))
    await change(migrated, tasks[0])
    copy: dict[str, str] = {}
    told = await pages(migrated, copy, 0, limit)
    assert copy == tasks_in(database_url, migrated.id)
    assert len(told[0]["tasks"]) == max(limit if limit <= 29 else 39, 29), "with those that were changed long ago"


# What the client has already ------------------------------------------------------------------------------------------


async def test_if_none_match(user: User) -> None:
    await user.create()
    old = (await ask(user)).headers["ETag"]
    task = await user.create()
    response = await ask(user)
    tag = response.headers["ETag"]
    bare = tag.removeprefix("W/")
    for sent in (tag, bare, f'"x", {tag}', f"{old}, {tag}", f'{bare[:-1]}-gzip"', "*"):
        for query in ({}, {"since": 0, "limit": 1}, {"since": task["version"]}):
            known = await ask(user, headers={"If-None-Match": sent}, **query)
            assert (known.status_code, known.content) == (304, b""), sent
            assert known.headers["ETag"] == tag
            assert known.headers["Cache-Control"] == response.headers["Cache-Control"]
            assert known.headers["Vary"] == response.headers["Vary"]
            assert "Content-Type" not in known.headers
    for sent in (old, '"x"', "nonsense", ""):
        assert (await ask(user, headers={"If-None-Match": sent})).status_code == 200
    first = await ask(user, limit=1)
    assert first.json()["has_more"]
    assert first.headers["ETag"] == tag, "the counter, on every page"


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    opened: Any = await asyncpg.connect(database_url)
    yield opened
    await opened.close()


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in nodes(child))]


not_on_citus = pytest.mark.not_on("citus", "a forced plan: Citus makes its own, and test_citus.py looks at them")


async def explained(connection: asyncpg.Connection, mode: str, *arguments: Any) -> list[dict[str, Any]]:
    """Returns the nodes of the plan by which the feed has been read."""
    quoted = ", ".join("null" if each is None else f"'{each}'" for each in arguments)
    async with connection.transaction():
        await connection.execute(f"set local plan_cache_mode = {mode}")
        await connection.execute(f"prepare explained as {queries.CHANGE_FEED.sql}")
        (found,) = json.loads(await connection.fetchval(f"explain (analyze, format json) execute explained({quoted})"))
        await connection.execute("deallocate explained")
    return nodes(found["Plan"])


MODES = ["force_custom_plan", "force_generic_plan"]


@not_on_citus
@pytest.mark.parametrize("mode", MODES)
async def test_what_is_known_or_gone_costs_one_small_row(
    user: User, connection: asyncpg.Connection, mode: str, source: Callable[[User], None]
) -> None:
    for _ in range(5):
        last = await user.create()
    source(user)
    version = last["version"]
    for arguments in [
        (user.id, 0, 500, "{*}"),
        (user.id, version - 3, 500, f"{{{version}}}"),
        (user.id, version + 1, 500, None),
        (user.id, 1, 500, None),
    ]:
        read = [node for node in await explained(connection, mode, *arguments) if "Relation Name" in node]
        assert [node["Relation Name"] for node in read if node["Actual Loops"]] == ["account"]
        assert all(node["Actual Rows"] <= 1 for node in read)


@pytest.fixture(scope="module")
async def large(app: Starlette, database_url: str) -> AsyncIterator[str]:
    """A user with 2,000 tasks and as many rows of the log, among twenty with as many; analyzed."""
    name = f"large-{uuid4()}"
    with psycopg.connect(database_url, autocommit=True) as db:
        values = {"name": name}
        db.execute(
            "insert into tasks.account (user_id, version) select %(name)s || n, 2000 from generate_series(0, 20) n",
            values,
        )
        db.execute(
            "insert into tasks.task (user_id, id, title, version)"
            " select %(name)s || n %% 21, md5(n::text)::uuid, 'Title ' || n, n / 21 + 1"
            " from generate_series(0, 41999) n",
            values,
        )
        db.execute(
            "insert into tasks.change (user_id, version, task_id, at, operation, after)"
            " select user_id, version, id, now(), 'create', '{}' from tasks.task where user_id ^@ %(name)s",
            values,
        )
        db.execute("vacuum analyze tasks.task, tasks.change, tasks.account")
    yield f"{name}0"
    with psycopg.connect(database_url, autocommit=True) as db:
        for table in ("task", "change", "account"):
            db.execute(f"delete from tasks.{table} where user_id ^@ '{name}'".encode())  # noqa: S608  (a test's)


@not_on_citus
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("since", "limit", "most"), [(2000, 500, 1), (1900, 500, 100), (1000, 100, 101)])
async def test_the_log_is_read_as_far_as_the_page_goes(
    large: str, connection: asyncpg.Connection, mode: str, since: int, limit: int, most: int
) -> None:
    for node in await explained(connection, mode, large, since, limit, None):
        if node.get("Relation Name") in ("task", "change"):
            assert node["Node Type"] != "Seq Scan" or not node["Actual Loops"], node
            assert node["Actual Rows"] * node["Actual Loops"] + node.get("Rows Removed by Filter", 0) <= most, node


@not_on_citus
@pytest.mark.parametrize("mode", MODES)
async def test_the_table_is_read_for_this_user_alone(large: str, connection: asyncpg.Connection, mode: str) -> None:
    for node in await explained(connection, mode, large, 0, 500, None):
        if node.get("Relation Name") in ("task", "change"):
            assert node["Actual Rows"] + node.get("Rows Removed by Filter", 0) <= 2000, node


# Waiting --------------------------------------------------------------------------------------------------------------


async def begun(app: Starlette, user: User, number: int = 1) -> None:
    """Returns when so many wait for the user's changes."""
    deadline = time.monotonic() + 5
    while len(app.state.db.hub._watches.get(user.id, [])) < number:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.02)


async def test_a_change_of_the_same_process_ends_the_wait_at_once(app: Starlette, user: User) -> None:
    since = (await user.create())["version"]
    for _ in range(5):
        waiting = asyncio.create_task(ask(user, since=since, wait=20))
        await begun(app, user)
        assert not waiting.done()
        task = await user.create()
        told = await asyncio.wait_for(waiting, 0.3)
        assert told.json() == {"version": task["version"], "has_more": False, "tasks": [task], "erased": []}
        assert told.headers["ETag"] == f'W/"{task["version"]}"'
        since = task["version"]


async def test_a_change_of_another_process_ends_the_wait_within_a_second(
    app: Starlette, user: User, database_url: str
) -> None:
    task = await user.create()
    waiting = [asyncio.create_task(ask(user, since=task["version"], wait=20)) for _ in range(2)]
    await begun(app, user, 2)
    await trash(user, task)
    since = (await waiting[0]).json()["version"]
    await waiting[1]
    waiting = [asyncio.create_task(ask(user, since=since, wait=20)) for _ in range(2)]
    await begun(app, user, 2)
    assert erase_trash(database_url, user.id) == 1
    started = time.monotonic()
    for told in await asyncio.gather(*waiting):
        assert told.json() == {"version": since + 1, "has_more": False, "tasks": [], "erased": [task["id"]]}
    assert time.monotonic() - started < 1.2


async def test_a_wait_that_is_over_says_that_there_is_nothing(user: User) -> None:
    task = await user.create()
    started = time.monotonic()
    told, known, gone_by = await asyncio.gather(
        ask(user, since=task["version"], wait=1),
        ask(user, since=task["version"], wait=1, headers={"If-None-Match": f'"{task["version"]}"'}),
        ask(user, since=task["version"], wait=1, headers={"If-None-Match": '"7"'}),
    )
    assert 0.9 < time.monotonic() - started < 1.5
    for response in (told, gone_by):
        assert response.status_code == 200
        assert response.json() == {"version": task["version"], "has_more": False, "tasks": [], "erased": []}
    assert known.status_code == 304
    assert known.headers["ETag"] == f'W/"{task["version"]}"'


async def test_nobody_waits_when_there_is_something(user: User) -> None:
    first = await user.create()
    await user.create()
    started = time.monotonic()
    assert len((await page(user, since=0, wait=20))["tasks"]) == 2
    assert len((await page(user, since=first["version"], wait=20))["tasks"]) == 1
    response = await ask(user, since=first["version"], wait=20, headers={"If-None-Match": f'"{first["version"]}"'})
    assert len(response.json()["tasks"]) == 1
    assert time.monotonic() - started < 1


async def test_a_user_who_has_nothing_yet_can_wait(app: Starlette, user: User) -> None:
    for headers in ({}, {"If-None-Match": 'W/"0"'}):
        someone = User(f"{user.id}-{len(headers)}", user.client)
        waiting = asyncio.create_task(ask(someone, wait=20, headers=headers))
        await begun(app, someone)
        task = await someone.create()
        assert (await asyncio.wait_for(waiting, 0.5)).json()["tasks"] == [task]


async def test_a_wait_sees_no_other_user_s_change(app: Starlette, user: User, other: User) -> None:
    task = await user.create()
    waiting = asyncio.create_task(ask(user, since=task["version"], wait=1))
    await begun(app, user)
    await other.create()
    assert (await waiting).json()["tasks"] == []


async def test_many_who_wait_are_all_told(app: Starlette, user: User) -> None:
    someone = [User(f"{user.id}-{n}", user.client) for n in range(20)]
    firsts = [await each.create() for each in someone]
    waiting = [
        asyncio.create_task(ask(each, since=first["version"], wait=20))
        for each, first in zip(someone, firsts, strict=True)
        for _ in range(10)
    ]
    for each in someone:
        await begun(app, each, 10)
    seconds = await asyncio.gather(*(each.create() for each in someone))
    told = await asyncio.wait_for(asyncio.gather(*waiting), 3)
    assert [response.json()["tasks"] for response in told] == [[task] for task in seconds for _ in range(10)]
    assert not set(app.state.db.hub.counters) & {each.id for each in someone}, "nothing is kept of them"


async def test_a_client_that_goes_away_waits_no_longer(app: Starlette, user: User) -> None:
    task = await user.create()
    waiting = asyncio.create_task(ask(user, since=task["version"], wait=20))
    await begun(app, user)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert user.id not in app.state.db.hub.counters


# What is asked wrongly ------------------------------------------------------------------------------------------------

NUMBERS = ["-1", "1.5", "x", "", "1e3", "0x1", "١", "+1", " 1", "01", str(BIGGEST_VERSION + 1), "9" * 16, "9" * 5000]
WRONG = (
    [("since", value) for value in NUMBERS]
    + [("limit", value) for value in ("0", "-1", "1001", "x", "", "1.0", "9" * 400)]
    + [("wait", value) for value in ("31", "-1", "x", "", "0.5", "9" * 400)]
)


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda text: text[:8])
async def test_a_wrong_value_is_refused_with_what_would_be_right(user: User, name: str, value: str) -> None:
    response = await ask(user, **{name: value})
    assert response.status_code == 422, response.text
    (entry,) = response.json()["detail"]
    assert entry["loc"] == ["query", name]
    limits = {"since": f"from 0 to {BIGGEST_VERSION}", "limit": "from 1 to 1000", "wait": "from 0 to 30"}
    assert f"a whole number {limits[name]}" in entry["msg"]
    assert len(entry["msg"]) < 250


async def test_the_limits_themselves_are_right(user: User) -> None:
    for query in ({"limit": 1}, {"limit": 1000}, {"wait": 0}, {"since": 0}):
        assert (await ask(user, **query)).status_code == 200
    assert (await ask(user, since=BIGGEST_VERSION)).status_code == 410


@pytest.mark.parametrize("query", ["since=0&since=0", "limit=1&limit=2", "wait=0&wait=0"])
async def test_a_parameter_that_is_given_twice(user: User, query: str) -> None:
    response = await user.client.get(f"/api/{user.id}/changes?{query}", headers=user.headers)
    assert response.status_code == 422
    assert response.json()["detail"][0]["type"] == "repeated"


async def test_an_unknown_parameter_is_refused_with_the_one_that_is_like_it(user: User) -> None:
    response = await ask(user, sinze=0, after=7)
    assert response.status_code == 422
    assert "since" in response.json()["detail"][0]["msg"]
    assert [entry["loc"] for entry in response.json()["detail"]] == [["query", "sinze"], ["query", "after"]]


@pytest.mark.parametrize("path", ["changes", "events"])
async def test_who_it_is_comes_first(user: User, other: User, path: str) -> None:
    await user.create()
    url = f"/api/{user.id}/{path}?since=x&wrong"
    for headers, detail in [
        ({}, "Missing authorization header"),
        (other.headers, "User ID mismatch"),
        ({"Authorization": f"Bearer {make_token(user.id, exp=1)}"}, "Token has expired"),
    ]:
        response = await user.client.get(url, headers=headers)
        assert (response.status_code, response.json()) == (401, {"detail": detail})
        assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["changes", "events"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_other_methods(user: User, path: str, method: str) -> None:
    response = await user.client.request(method, f"/api/{user.id}/{path}", headers=user.headers)
    assert (response.status_code, response.json()) == (405, {"detail": "Method Not Allowed"})
    assert "GET" in response.headers["Allow"]


async def test_head_is_get_without_the_body(user: User) -> None:
    task = await user.create()
    response, head = await ask(user), await ask(user, method="HEAD")
    assert head.status_code == 200
    for name in ("ETag", "Content-Type", "Content-Length", "Cache-Control"):
        assert head.headers[name] == response.headers[name]
    assert (await ask(user, method="HEAD", since=task["version"] + 1)).status_code == 410


# What is told of it ---------------------------------------------------------------------------------------------------


async def test_openapi_says_the_same(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    feed = paths["/api/{user_id}/changes"]["get"]
    parameters = {parameter["name"]: parameter for parameter in feed["parameters"]}
    assert set(parameters) == {"user_id", "since", "limit", "wait", "If-None-Match"}
    limits = {name: (parameters[name]["schema"]["minimum"], parameters[name]["schema"]["maximum"]) for name in
              ("since", "limit", "wait")}  # fmt: skip
    assert limits == {"since": (0, BIGGEST_VERSION), "limit": (1, 1000), "wait": (0, 30)}
    assert {"200", "304", "401", "410", "422", "503"} <= set(feed["responses"])
    assert feed["responses"]["410"]["content"]["application/json"]["example"] == GONE
    assert "ETag" in feed["responses"]["200"]["headers"]
    stream = paths["/api/{user_id}/events"]["get"]
    assert {parameter["name"] for parameter in stream["parameters"]} == {"user_id", "since", "Last-Event-ID"}
    assert list(stream["responses"]["200"]["content"]) == ["text/event-stream"]
    assert {"401", "410", "422", "503"} <= set(stream["responses"])


# Many users who write and read at random ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_a_copy_is_right_after_each_page_that_is_the_last(user: User, database_url: str, seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311  (the same each time)
    copy: dict[str, str] = {}
    since, known = 0, [str(uuid4()) for _ in range(15)]
    for _ in range(25):
        for _ in range(dice.randrange(4)):
            task_id = dice.choice(known)
            match dice.randrange(6):
                case 0:
                    await user.call("POST", json={"title": "x", "id": task_id})
                case 1:
                    await user.call("PUT", f"/{task_id}", json={"title": f"{dice.random()}"})
                case 2:
                    await user.call("DELETE", f"/{task_id}")
                case 3:
                    await user.call("POST", f"/{task_id}/restore")
                case 4:
                    erase_trash(database_url, user.id)
                case 5:
                    operations = [
                        {"op": "create", "id": each, "task": {"title": "y"}} for each in dice.sample(known, 4)
                    ]
                    json_ = {"operations": operations, "atomic": False}
                    await user.client.post(f"/api/{user.id}/batch", headers=user.headers, json=json_)
        if dice.random() < 0.2:
            forget_log(database_url, user)
        since = (await pages(user, copy, since, dice.choice([1, 2, 3, 500])))[-1]["version"]
        assert copy == tasks_in(database_url, user.id)
