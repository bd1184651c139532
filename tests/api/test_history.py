"""The history: what each change did, one entry a task and number, the newest first."""

from typing import Any
from uuid import uuid4

import httpx
import pytest

from service.models import BIGGEST_VERSION, HistoryEntry
from tests.conftest import User, execute

Json = dict[str, Any]
NEW: Json = {"recurrence_anchor": "due", "tags": []}  # beside what is given, in the history of each new task


async def call(user: User, method: str, path: str, **options: Any) -> httpx.Response:
    """Calls the API below the user's path."""
    return await user.client.request(method, f"/api/{user.id}/{path}", headers=user.headers, **options)


async def history(user: User, **parameters: Any) -> list[Json]:
    response = await call(user, "GET", "history", params=parameters)
    assert response.status_code == 200, response.text
    entries: list[Json] = response.json()
    for entry in entries:
        HistoryEntry.model_validate(entry)
    return entries


async def batch(user: User, *operations: Json, **options: Any) -> Json:
    response = await call(user, "POST", "batch", json={"operations": operations} | options)
    assert response.status_code in (200, 409), response.text
    answer: Json = response.json()
    return answer


def only(entries: list[Json], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(entry[name] for name in names) for entry in entries]


async def test_an_entry_has_the_fields_that_changed_before_and_after(user: User) -> None:
    task = await user.create(title="Buy milk", priority="high")
    path = f"/{task['id']}"
    text = 'Two litres, "whole"\n\\ 🎉 \u0085'
    updated = (await user.call("PATCH", path, json={"title": "Buy oat milk", "description": text})).json()
    await user.call("PUT", path, json={"description": None, "title": "Buy oat milk"})
    completed = (await user.call("PATCH", path + "/complete")).json()
    await user.call("PATCH", path + "/complete", json={"is_completed": False})
    await user.call("DELETE", path)
    (trashed,) = (await user.call("GET", "?trashed=true")).json()
    restored = (await user.call("POST", path + "/restore")).json()

    done = {"status": "completed", "completed_at": completed["completed_at"]}
    to_do = {"status": "pending", "completed_at": None}
    changes: list[tuple[str, Json | None, Json]] = [
        ("create", None, {"title": "Buy milk", "status": "pending", "priority": "high"} | NEW),
        ("update", {"title": "Buy milk", "description": None}, {"title": "Buy oat milk", "description": text}),
        ("update", {"description": text}, {"description": None}),
        ("complete", to_do, done),
        ("complete", done, to_do),
        ("delete", {"deleted_at": None}, {"deleted_at": trashed["deleted_at"]}),
        ("restore", {"deleted_at": trashed["deleted_at"]}, {"deleted_at": None}),
    ]
    entries = await history(user)
    assert only(entries, "operation", "before", "after") == changes[::-1]
    assert [entry["version"] for entry in entries] == [task["version"] + number for number in range(6, -1, -1)]
    assert {entry["task_id"] for entry in entries} == {task["id"]}
    moments = [restored["updated_at"], trashed["updated_at"], completed["updated_at"], updated["updated_at"]]
    assert [entries[number]["at"] for number in (0, 1, 3, 5, 6)] == [*moments, task["created_at"]]


async def test_a_create_tells_every_field_that_has_a_value(user: User) -> None:
    task = await user.create(description="Two litres", is_completed=True)
    ((before, after),) = only(await history(user), "before", "after")
    assert before is None
    names = ("title", "description", "status", "priority", "completed_at", "recurrence_anchor", "tags")
    assert after == {name: task[name] for name in names}


@pytest.mark.parametrize(
    ("method", "path", "body", "operation"),
    [
        ("PUT", "", {"title": "x"}, "update"),
        ("PATCH", "", {"title": "x"}, "update"),
        ("PATCH", "", {"is_completed": True}, "update"),
        ("PATCH", "/complete", None, "complete"),
        ("PATCH", "/complete", {"is_completed": True}, "complete"),
        ("DELETE", "", None, "delete"),
    ],
)
async def test_the_operation_is_the_request_s(
    user: User, method: str, path: str, body: Json | None, operation: str
) -> None:
    task = await user.create()
    response = await user.call(method, f"/{task['id']}{path}", **({} if body is None else {"json": body}))
    version = task["version"] + 1
    assert response.headers["ETag"] == f'"{version}"', "every answer to a write tells its number"
    assert only(await history(user), "version", "operation") == [(version, operation), (version - 1, "create")]
    undone = await call(user, "POST", "undo", json={"version": version})
    assert only(await history(user), "version", "operation")[0] == (undone.json()["version"], "undo")


# Batches --------------------------------------------------------------------------------------------------------------


async def test_a_batch_is_one_number_and_one_entry_a_task(user: User) -> None:
    changed, there_and_back, deleted, trashed = [await user.create(title=f"Task {number}") for number in range(4)]
    await user.call("DELETE", f"/{trashed['id']}")
    new = str(uuid4())
    answer = await batch(
        user,
        {"op": "update", "id": changed["id"], "task": {"title": "First", "priority": "low"}},
        {"op": "update", "id": there_and_back["id"], "task": {"title": "First"}},
        {"op": "create", "id": new, "task": {"title": "New", "description": "New", "status": "completed"}},
        {"op": "complete", "id": changed["id"]},
        {"op": "update", "id": changed["id"], "task": {"title": "Second", "priority": "medium"}},
        {"op": "update", "id": there_and_back["id"], "task": {"title": "Task 1"}},
        {"op": "update", "id": new, "task": {"title": "Newer", "description": None, "status": "pending"}},
        {"op": "complete", "id": changed["id"]},
        {"op": "delete", "id": deleted["id"]},
        {"op": "restore", "id": trashed["id"]},
    )
    entries = [entry for entry in await history(user) if entry["version"] == answer["version"]]
    assert {entry["operation"] for entry in entries} == {"batch"}
    (entry,) = [entry for entry in entries if entry["task_id"] == deleted["id"]]
    assert entry["before"] == {"deleted_at": None}
    assert set(entry["after"]) == {"deleted_at"}
    (entry,) = [entry for entry in entries if entry["task_id"] == trashed["id"]]
    assert entry["after"] == {"deleted_at": None}
    told = {entry["task_id"]: (entry["before"], entry["after"]) for entry in entries}
    assert len(told) == len(entries) == 5
    assert told[changed["id"]] == ({"title": "Task 0"}, {"title": "Second"})
    assert told[there_and_back["id"]] == ({}, {}), "the number is its version, and nothing of it has changed"
    assert told[new] == (None, {"title": "Newer", "status": "pending", "priority": "medium"} | NEW)


async def test_a_batch_that_stands_operation_by_operation_logs_what_was_done(user: User) -> None:
    task = await user.create()
    answer = await batch(
        user,
        {"op": "update", "id": task["id"], "task": {"title": ""}},
        {"op": "update", "id": task["id"], "task": {"title": "x"}},
        {"op": "delete", "id": str(uuid4())},
        {"op": "update", "id": task["id"], "if_version": task["version"], "task": {"title": "y"}},
        atomic=False,
    )
    assert [result["status"] for result in answer["results"]] == [422, 200, 404, 412]
    (entry, _) = await history(user)
    assert (entry["version"], entry["operation"], entry["after"]) == (answer["version"], "batch", {"title": "x"})


async def test_what_changes_nothing_leaves_nothing(user: User) -> None:
    task = await user.create(title="Buy milk")
    path, stale = f"/{task['id']}", {"If-Match": '"1"'}
    update = {"op": "update", "id": task["id"], "task": {"title": "x"}}
    requests: list[tuple[int, str, str, Json]] = [
        (200, "PATCH", path, {"json": {}}),
        (200, "PUT", path, {"json": {"title": " Buy milk ", "priority": "medium"}}),
        (200, "PATCH", path + "/complete", {"json": {"is_completed": False}}),
        (412, "PATCH", path, {"json": {"title": "x"}, "headers": stale}),
        (412, "PATCH", path + "/complete", {"headers": stale}),
        (412, "DELETE", path, {"headers": stale}),
        (422, "PATCH", path, {"json": {"title": ""}}),
        (409, "POST", "", {"json": {"id": task["id"], "title": "x"}}),
        (404, "POST", path + "/restore", {}),
        (404, "DELETE", f"/{uuid4()}", {}),
        (200, "POST", "/../batch", {"json": {"operations": [update], "dry_run": True}}),
        (409, "POST", "/../batch", {"json": {"operations": [update, {"op": "restore", "id": task["id"]}]}}),
        (200, "POST", "/../batch", {"json": {"operations": [update | {"task": {}}]}}),
        (200, "POST", "/../batch", {"json": {"operations": [update | {"id": str(uuid4())}], "atomic": False}}),
        (404, "POST", "/../undo", {"json": {"version": task["version"] + 1}}),
    ]
    for status, method, rest, options in requests:
        response = await user.call(method, rest, **options)
        assert response.status_code == status, (method, rest, response.text)
        if rest == "/../batch":
            assert response.json()["version"] is None
    assert only(await history(user), "version", "operation") == [(task["version"], "create")]

    key = {"Idempotency-Key": "once"}
    for _ in range(2):
        assert (await user.call("POST", json={"title": "x"}, headers=key)).status_code == 201
    assert (await user.call("POST", json={"title": "y"}, headers=key)).status_code == 422
    assert only(await history(user), "version") == [(task["version"] + 1,), (task["version"],)]


# What is asked for ----------------------------------------------------------------------------------------------------


async def test_a_page_ends_between_two_numbers(user: User) -> None:
    ids = [str(uuid4()) for _ in range(4)]
    versions = []
    for number in range(3):
        operations: list[Json] = [
            {"op": "update", "id": one, "task": {"title": f"x{number}"}}
            if number
            else {"op": "create", "id": one, "task": {"title": "x"}}
            for one in ids
        ]
        versions.append((await batch(user, *operations))["version"])
        versions.append((await user.create())["version"])
    everything = await history(user)
    assert [entry["version"] for entry in everything] == [
        version for number, version in enumerate(versions[::-1]) for _ in range(4 if number % 2 else 1)
    ]
    for limit, sizes in ((1, [1, 4, 1, 4, 1, 4]), (2, [5, 5, 5]), (5, [5, 5, 5]), (6, [6, 9]), (1000, [15])):
        pages: list[list[Json]] = []
        before: Json = {}
        for _ in sizes:
            pages.append(await history(user, limit=limit, **before))
            before = {"before": pages[-1][-1]["version"]}
        assert [len(page) for page in pages] == sizes
        assert [entry for page in pages for entry in page] == everything
        assert await history(user, **before) == []
    assert await history(user, before=versions[0]) == []
    assert await history(user, before=versions[1]) == everything[-4:]
    assert await history(user, before=BIGGEST_VERSION) == everything
    assert await history(user, before=1) == []


async def test_fifty_entries_come_unless_asked_for(user: User) -> None:
    for _ in range(52):
        last = await user.create()
    assert len(await history(user)) == 50
    assert len(await history(user, limit=51)) == 51
    assert (await history(user, limit=1))[0]["version"] == last["version"]


async def test_of_one_task(user: User, other: User) -> None:
    first, second = [await user.create(title=f"Task {number}") for number in range(2)]
    await user.call("PATCH", f"/{first['id']}", json={"title": "x"})
    await batch(user, *({"op": "complete", "id": task["id"]} for task in (second, first)))
    theirs = await other.create()
    everything = await history(user)
    found = await history(user, task_id=first["id"])
    assert found == [entry for entry in everything if entry["task_id"] == first["id"]]
    assert only(found, "operation") == [("batch",), ("update",), ("create",)]
    assert await history(user, task_id=first["id"].upper()) == found
    assert await history(user, task_id=first["id"], before=found[0]["version"], limit=1) == found[1:2]
    assert await history(user, task_id=theirs["id"]) == []
    assert await history(user, task_id=str(uuid4())) == []
    assert len(await history(other)) == 1


async def test_another_user_with_the_same_ids_and_numbers_is_another_user(
    user: User, other: User, database_url: str
) -> None:
    task_id = str(uuid4())
    for each, title in ((user, "Mine"), (other, "Theirs")):
        await execute(database_url, "insert into tasks.account (user_id, version) values ($1, 6)", each.id)
        assert (await each.create(id=task_id, title=title))["version"] == 7
        await each.call("PATCH", f"/{task_id}", json={"title": title + "s"})
    theirs, everything = (await other.call("GET")).json(), await history(other)
    assert [entry["after"]["title"] for entry in await history(user, task_id=task_id)] == ["Mines", "Mine"]
    (now,) = (await call(user, "POST", "undo", json={"version": 8})).json()["tasks"]
    assert (now["title"], now["user_id"]) == ("Mine", user.id)
    await user.call("DELETE", f"/{task_id}")
    assert (await other.call("GET")).json() == theirs
    assert await history(other) == everything
    await execute(database_url, "select tasks.purge_tasks($1, '1s', array[$2::uuid], 'infinity')", user.id, task_id)
    assert await history(other) == everything
    assert (await call(other, "POST", "undo", json={"version": 8})).status_code == 200


async def test_who_never_wrote_has_none(user: User) -> None:
    assert await history(user) == []


@pytest.mark.parametrize(
    ("query", "name", "said"),
    [
        ("before=0", "before", f"a whole number from 1 to {BIGGEST_VERSION}"),
        ("before=-1", "before", "a whole number"),
        ("before=x", "before", "a whole number"),
        ("before=", "before", "a whole number"),
        ("before=7.0", "before", "a whole number"),
        ("before=%D9%A3", "before", "a whole number"),
        (f"before={BIGGEST_VERSION + 1}", "before", "a whole number"),
        (f"before={'9' * 400}", "before", "a whole number"),
        ("before=1&before=2", "before", "once"),
        ("limit=0", "limit", "a whole number from 1 to 1000"),
        ("limit=1001", "limit", "a whole number from 1 to 1000"),
        ("limit=ten", "limit", "a whole number"),
        ("task_id=7", "task_id", "a UUID"),
        ("task_id=", "task_id", "a UUID"),
        ("task_id=0b6c2b383b5f4a7e9f0e2f4d5a3c1e11", "task_id", "a UUID"),
        ("since=1", "since", "known are task_id, before, limit"),
        ("task=1", "task", "task_id"),
    ],
)
async def test_a_parameter_that_is_wrong_is_refused(user: User, query: str, name: str, said: str) -> None:
    response = await call(user, "GET", f"history?{query}")
    assert response.status_code == 422
    (entry,) = response.json()["detail"]
    assert entry["loc"] == ["query", name]
    assert said in entry["msg"]


# How long it is kept --------------------------------------------------------------------------------------------------


async def test_it_goes_back_thirty_days(user: User, database_url: str) -> None:
    task = await user.create()
    await user.call("PATCH", f"/{task['id']}", json={"title": "x"})
    older = "update tasks.change set at = now() - $3::text::interval where user_id = $1 and version = $2"
    version = task["version"]
    await execute(database_url, older, user.id, version, "29 days 23:59")
    assert len(await history(user)) == 2
    await execute(database_url, older, user.id, version, "30 days")
    assert only(await history(user), "version") == [(version + 1,)]
    assert await history(user, task_id=task["id"], before=version + 1) == []


async def test_it_is_gone_with_the_task(user: User, other: User, database_url: str) -> None:
    task_id = str(uuid4())
    for each in (user, other):  # the same id for both: only the user tells them apart
        await each.create(id=task_id)
        await each.call("DELETE", f"/{task_id}")
    kept = await user.create(title="Kept")
    purge = "select tasks.purge_tasks($1, '1s', array[$2::uuid], 'infinity')"
    await execute(database_url, purge, user.id, task_id)
    assert only(await history(user), "task_id") == [(kept["id"],)]
    assert await history(user, task_id=task_id) == []
    assert len(await history(other)) == 2
    again = await user.create(id=task_id, title="Another one")
    assert only(await history(user, task_id=task_id), "version") == [(again["version"],)]


async def test_whoever_calls_the_functions_in_psql_is_logged_too(user: User, database_url: str) -> None:
    task = await user.create()
    await execute(
        database_url,
        """select * from tasks.change_task($1, '1s', 'update', $2, '{"title": "By hand"}', null, null, null)""",
        user.id,
        task["id"],
    )
    await execute(
        database_url,
        "select * from tasks.insert_task("
        """$1, '1s', gen_random_uuid(), '{"title": "New"}', null, null, null, null, null)""",
        user.id,
    )
    told = [("create", "New"), ("update", "By hand"), ("create", "Buy milk")]
    assert [(entry["operation"], entry["after"]["title"]) for entry in await history(user)] == told
