"""Erasure of a user: nothing is left in any table, wherever it was interrupted, and no number comes twice."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from starlette.applications import Starlette

from service.db.coalescer import waited
from service.queries import accounts
from tests.conftest import User, eventually, waits_for_lock

GONE = {"detail": "Start again from since=0"}

# Every table that has rows of a user, those to come as well
TABLES = """
    select c.oid::regclass::text
    from pg_class c join pg_attribute a on a.attrelid = c.oid
    where c.relnamespace = 'tasks'::regnamespace and c.relkind in ('r', 'p') and a.attname = 'user_id'
"""


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Any]:
    opened: Any = await asyncpg.connect(database_url)
    yield opened
    await opened.close()


async def rows(connection: Any, user: User) -> dict[str, list[Any]]:
    """Returns the user's rows in each table that can have some."""
    tables = [row[0] for row in await connection.fetch(TABLES)]
    assert set(tables) >= {"tasks.account", "tasks.change", "tasks.idempotency", "tasks.task"}
    return {
        table: [tuple(row) for row in await connection.fetch(f"select * from {table} where user_id = $1", user.id)]  # noqa: S608
        for table in tables
    }


async def fill(user: User) -> dict[str, Any]:
    """Gives the user something in every table; returns a task."""
    created = await user.call("POST", json={"title": "With a key"}, headers={"Idempotency-Key": "key"})
    assert created.status_code == 201
    trashed = await user.create()
    assert (await user.call("DELETE", f"/{trashed['id']}")).status_code == 204
    task: dict[str, Any] = (await user.call("PUT", f"/{created.json()['id']}", json={"priority": "low"})).json()
    return task


async def erase(user: User, path: str = "", **options: Any) -> httpx.Response:
    options = options or {"json": {"confirm": user.id}}
    return await user.client.request("DELETE", f"/api/{path or user.id}", headers=user.headers, **options)


async def step(connection: Any, user: User, limit: int) -> Any:
    """Does one step of an erasure, as a process that is then killed."""
    return await connection.fetchrow(accounts.ERASE_USER.sql, user.id, "5s", limit)


async def changes(user: User, since: int) -> httpx.Response:
    return await user.client.get(f"/api/{user.id}/changes", headers=user.headers, params={"since": since})


# What is erased -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "me"])
async def test_no_table_has_a_row_of_the_user_and_nobody_else_misses_one(
    connection: Any, user: User, other: User, path: str
) -> None:
    task, theirs = await fill(user), await fill(other)
    before = await rows(connection, other)
    assert all(before.values()), "every table has something that could be erased"
    assert all((await rows(connection, user)).values())
    erased = await erase(user, path)
    assert (erased.status_code, erased.content) == (204, b"")
    assert not any((await rows(connection, user)).values())
    assert await rows(connection, other) == before
    assert (await user.call("GET")).json() == []
    assert (await user.call("GET")).headers["ETag"] == 'W/"0"'
    assert (await user.call("GET", f"/{task['id']}")).status_code == 404
    assert (await other.call("GET", f"/{theirs['id']}")).status_code == 200
    assert (await changes(user, task["version"])).status_code == 410


async def test_it_may_be_repeated_and_a_user_who_never_wrote_can_be_erased(connection: Any, user: User) -> None:
    assert (await erase(user)).status_code == 204
    await fill(user)
    for _ in range(2):
        assert (await erase(user)).status_code == 204
        assert not any((await rows(connection, user)).values())


async def test_rows_without_an_account_are_erased_too(connection: Any, user: User) -> None:
    insert = "insert into tasks.task (user_id, id, title, version) values ($1, gen_random_uuid(), 'x', 1)"
    await connection.execute(insert, user.id)
    assert (await erase(user)).status_code == 204
    assert not any((await rows(connection, user)).values())


STEP = accounts.STEP


@pytest.mark.parametrize("tasks", [STEP - 1, STEP, STEP + 1, 2 * STEP])
async def test_no_step_erases_more_than_its_limit(app: Starlette, connection: Any, user: User, tasks: int) -> None:
    await fill(user)
    await connection.execute(
        "insert into tasks.task (user_id, id, title, version)"
        " select $1, gen_random_uuid(), 'x', 1 from generate_series(1, $2::int)",
        user.id,
        tasks - 2,
    )
    left = sum(map(len, (await rows(connection, user)).values())) - 1  # the account goes with the last
    found = 0
    while True:
        *erased, is_done = await step(connection, user, STEP)
        assert sum(erased) == min(STEP, left - found)
        found += sum(erased)
        assert is_done == (sum(erased) < STEP)
        if is_done:
            break
        assert len((await rows(connection, user))["tasks.account"]) == 1
    assert found == left
    assert not any((await rows(connection, user)).values())


async def test_the_query_says_what_it_has_erased(app: Starlette, user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "STEP", 2)
    await fill(user)
    waited.set([])
    assert await accounts.erase_user(app.state.db, user.id) == (2, 4, 1)
    assert await accounts.erase_user(app.state.db, user.id) == (0, 0, 0)


# The confirmation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"content": b""}, "it is missing"),
        ({"json": {}}, "it is missing"),
        ({"json": {"confirm": None}}, "it is missing"),
        ({"json": {"confirm": "me"}}, 'not "me"'),
        ({"json": {"confirm": ""}}, 'not ""'),
        ({"json": {"confirm": "{user} "}}, 'not "{user} "'),
        ({"json": {"confirm": True}}, "not true"),
        ({"json": {"confirm": ["{user}"]}}, 'not ["{user}"]'),
        ({"json": {"confirm": "x" * 10_000}}, 'not "xxx'),
    ],
    ids=str,
)
async def test_without_the_own_id_nothing_is_erased_and_it_says_what_is_right(
    connection: Any, user: User, options: dict[str, Any], said: str
) -> None:
    await fill(user)
    before = await rows(connection, user)
    text = json.dumps(options["json"]).replace("{user}", user.id) if "json" in options else ""
    for path in ("", "me"):
        refused = await erase(user, path, content=text.encode())
        assert refused.status_code == 422
        (entry,) = refused.json()["detail"]
        assert (entry["loc"], entry["type"]) == (["body", "confirm"], "confirm")
        assert f'Should be "{user.id}"' in entry["msg"]
        assert said.replace("{user}", user.id) in entry["msg"]
        assert len(entry["msg"]) < 300
    assert await rows(connection, user) == before


async def test_an_id_of_any_kind_can_be_confirmed_and_is_told_in_full(user: User) -> None:
    odd = User("ü" * 200 + '"\\ ' + uuid4().hex, user.client)
    url = "/api/me"
    refused = await user.client.request("DELETE", url, headers=odd.headers, json={"confirm": odd.id[:-1]})
    assert json.dumps(odd.id, ensure_ascii=False) in refused.json()["detail"][0]["msg"]
    erased = await user.client.request("DELETE", url, headers=odd.headers, json={"confirm": odd.id})
    assert erased.status_code == 204


@pytest.mark.parametrize(
    ("options", "loc", "said"),
    [
        ({"json": {"confirm": "{user}", "all": True}}, ["body", "all"], "Unknown field; known are confirm"),
        ({"json": ["{user}"]}, ["body"], "Input should be an object"),
        ({"content": b"{user}"}, ["body"], "Invalid JSON"),
        ({"json": {"confirm": "{user}"}, "params": {"confirm": "x"}}, ["query", "confirm"], "Unknown parameter"),
    ],
    ids=str,
)
async def test_what_is_not_understood_is_refused(
    connection: Any, user: User, options: dict[str, Any], loc: list[str], said: str
) -> None:
    await fill(user)
    before = await rows(connection, user)
    if "json" in options:
        options = options | {"json": json.loads(json.dumps(options["json"]).replace("{user}", user.id))}
    refused = await erase(user, **options)
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == loc
    assert said in refused.json()["detail"][0]["msg"]
    assert await rows(connection, user) == before


async def test_nobody_erases_somebody_else(connection: Any, user: User, other: User) -> None:
    await fill(other)
    before = await rows(connection, other)
    for confirm in (user.id, other.id):
        refused = await erase(user, other.id, json={"confirm": confirm})
        assert (refused.status_code, refused.json()) == (401, {"detail": "User ID mismatch"})
    assert await rows(connection, other) == before


async def test_it_is_the_only_method_of_its_path(user: User) -> None:
    for method in ("GET", "POST", "PUT", "PATCH"):
        refused = await user.client.request(method, f"/api/{user.id}", headers=user.headers)
        assert (refused.status_code, refused.headers["Allow"]) == (405, "DELETE")


# Numbers --------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def floor(connection: Any) -> AsyncIterator[None]:
    """Has the next test's users begin at the clock again: the row is one for all."""
    await connection.execute("update tasks.number_floor set number = 0")
    yield
    await connection.execute("update tasks.number_floor set number = 0")


@pytest.mark.parametrize("ahead", [0, 3_600_000_000])
@pytest.mark.usefixtures("floor")
async def test_numbers_go_on_above_the_old_ones(connection: Any, user: User, ahead: int) -> None:
    task = await user.create()
    # as far ahead of the clock as no user gets; and the clock may be set back
    await connection.execute("update tasks.account set version = version + $2 where user_id = $1", user.id, ahead)
    task = (await user.call("PUT", f"/{task['id']}", json={"title": "The last one"})).json()
    assert (await erase(user)).status_code == 204
    again = await user.create(id=task["id"])
    assert again["version"] > task["version"]
    assert again["version"] >= int(time.time() * 1000) - 1000
    for tag in (f'"{task["version"]}"', f'"{task["version"] + 1}"'):
        changed = await user.call("PUT", f"/{task['id']}", json={"title": "x"}, headers={"If-Match": tag})
        assert changed.status_code == 412
    for since in (1, task["version"], again["version"] - 1):
        response = await changes(user, since)
        assert (response.status_code, response.json()) == (410, GONE)
    assert (await changes(user, 0)).json()["tasks"] == [again]
    undone = await user.client.post(f"/api/{user.id}/undo", headers=user.headers, json={"version": task["version"]})
    assert undone.status_code == 404


@pytest.mark.parametrize(("age", "is_kept"), [(3_540_000, True), (3_660_000, False)])
@pytest.mark.usefixtures("floor")
async def test_a_number_is_kept_unless_the_clock_has_passed_it_for_an_hour(
    connection: Any, user: User, age: int, is_kept: bool
) -> None:
    await user.create()
    number = int(time.time() * 1000) - age
    query = "update tasks.account set version = $2::bigint - 1, first_version = 1 where user_id = $1"
    await connection.execute(query, user.id, number)
    assert (await erase(user)).status_code == 204
    kept = await connection.fetchval("select number from tasks.number_floor")
    assert kept >= number if is_kept else kept != number, "other tests may erase others meanwhile"
    assert (await user.create())["version"] > number


# In between -----------------------------------------------------------------------------------------------------------


async def test_one_that_was_interrupted_has_no_copy_believe_in_what_is_gone(connection: Any, user: User) -> None:
    task = await fill(user)
    known = (await user.call("GET")).headers["ETag"]
    copied = task["version"]
    for number in range(1, 6):
        assert (await step(connection, user, 1))["is_done"] is False
        assert (await user.call("GET", headers={"If-None-Match": known})).status_code == 200
        assert (await changes(user, copied)).status_code == 410
        told = (await changes(user, 0)).json()
        assert len(told["tasks"]) == max(0, 2 - number)
        assert (told["has_more"], told["version"]) == (False, task["version"] + number)
        known, copied = (await user.call("GET")).headers["ETag"], told["version"]
    assert (await erase(user)).status_code == 204
    assert not any((await rows(connection, user)).values())


async def test_what_is_created_between_two_steps_is_erased_by_the_next(connection: Any, user: User) -> None:
    await fill(user)
    await step(connection, user, 1)
    await fill(user)
    while not (await step(connection, user, 3))["is_done"]:
        await user.create()
        assert len((await rows(connection, user))["tasks.account"]) == 1
    assert not any((await rows(connection, user)).values())


async def test_it_ends_while_the_user_writes_on(connection: Any, user: User) -> None:
    await connection.execute(
        "insert into tasks.task (user_id, id, title, version)"
        " select $1, gen_random_uuid(), 'x', 1 from generate_series(1, 5000)",
        user.id,
    )
    erasing = asyncio.create_task(erase(user))
    while not erasing.done():
        await user.create()
        await asyncio.sleep(0)
    assert (await erasing).status_code == 204
    assert (await erase(user)).status_code == 204
    assert not any((await rows(connection, user)).values())


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_write_that_waited_for_the_last_step_is_a_new_sign_up(
    database_url: str, connection: Any, user: User, is_known: bool
) -> None:
    task = await fill(user) if is_known else await user.create()
    if not is_known:
        await erase(user)
    transaction = connection.transaction()
    await transaction.start()
    assert (await step(connection, user, STEP))["is_done"]
    create = asyncio.create_task(user.create())
    await eventually(lambda: waits_for_lock(connection, "insert_task"))
    change = asyncio.create_task(user.call("PUT", f"/{task['id']}", json={"title": "x"}))
    await transaction.commit()
    created = await create
    assert (await change).status_code == 404
    assert created["version"] > task["version"]
    left = await rows(connection, user)
    assert {table: len(found) for table, found in left.items() if found} == {
        "tasks.account": 1,
        "tasks.change": 1,
        "tasks.task": 1,
    }


async def test_two_at_once_are_both_done(connection: Any, user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "STEP", 2)
    for _ in range(5):
        await fill(user)
        assert (await erase(user)).status_code == 204
        await fill(user)
        both = await asyncio.gather(erase(user), erase(user))
        assert [one.status_code for one in both] == [204, 204]
        assert not any((await rows(connection, user)).values())


# Those who wait -------------------------------------------------------------------------------------------------------


async def test_a_long_poll_ends_at_once(user: User) -> None:
    task = await user.create()
    query = {"since": task["version"], "wait": 20}
    waiting = asyncio.create_task(user.client.get(f"/api/{user.id}/changes", headers=user.headers, params=query))
    await asyncio.sleep(0.2)
    started = time.monotonic()
    assert (await erase(user)).status_code == 204
    response = await waiting
    assert (response.status_code, response.json()) == (410, GONE)
    assert time.monotonic() - started < 0.5
