"""Undo: a change is taken back, all of it or nothing, as a change of its own."""

import asyncio
from collections.abc import Iterable
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.models import BIGGEST_VERSION, UndoConflict, UndoResult
from tests.conftest import User, eventually, execute, waits_for_lock
from tests.feed import counter_in

Json = dict[str, Any]
TOO_OLD = (410, {"detail": "Too old to undo"})
FIELDS = ("title", "description", "status", "priority")  # that a conflict may name, beside deleted_at


async def call(user: User, method: str, path: str, **options: Any) -> httpx.Response:
    """Calls the API below the user's path."""
    return await user.client.request(method, f"/api/{user.id}/{path}", headers=user.headers, **options)


async def undo(user: User, version: Any) -> httpx.Response:
    return await call(user, "POST", "undo", json={"version": version})


async def undone(user: User, version: int) -> Json:
    response = await undo(user, version)
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    UndoResult.model_validate_json(response.content)
    return answer


async def conflicts(user: User, version: int) -> dict[str, list[str]]:
    """Returns the fields of each task because of which the change cannot be undone."""
    response = await undo(user, version)
    assert response.status_code == 409, response.text
    answer = UndoConflict.model_validate_json(response.content)
    assert answer.detail == "Changed since"
    return {str(conflict.task_id): conflict.fields for conflict in answer.conflicts}


async def batch(user: User, *operations: Json, **options: Any) -> int:
    """Runs the batch; returns its number."""
    response = await call(user, "POST", "batch", json={"operations": operations} | options)
    assert response.status_code == 200, response.text
    version: int = response.json()["version"]
    return version


async def every_task(user: User) -> list[Json]:
    """Returns all tasks of the user, those in the trash too."""
    tasks: list[Json] = (await call(user, "GET", "changes", params={"limit": 1000})).json()["tasks"]
    return tasks


async def the_task(user: User) -> Json:
    (task,) = await every_task(user)
    return task


def same(task: Json, other: Json) -> bool:
    """Returns whether the tasks differ in nothing but what moves with each change."""
    return {**task, "version": 0, "updated_at": ""} == {**other, "version": 0, "updated_at": ""}


# One change -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"title": "x"},
        {"description": None},
        {"description": '"x" \\ \n 🎉', "priority": "low"},
        {"is_completed": True},
        {"title": "x", "description": None, "status": "in_progress", "priority": "low"},
    ],
)
async def test_every_field_gets_back_what_it_had(user: User, change: Json) -> None:
    before = await user.create(description="Two litres")
    after = (await user.call("PATCH", f"/{before['id']}", json=change)).json()
    answer = await undone(user, after["version"])
    now = await the_task(user)
    assert answer == {"version": after["version"] + 1, "tasks": [now]}
    assert same(now, before)
    assert now["version"] == answer["version"]
    assert now["updated_at"] > after["updated_at"]

    redone = await undone(user, answer["version"])
    assert redone["version"] == answer["version"] + 1
    assert same(redone["tasks"][0], after), "the undo of an undo is a redo"
    assert same((await undone(user, redone["version"]))["tasks"][0], before)


async def test_what_the_change_did_not_touch_stays(user: User) -> None:
    task = await user.create()
    path = f"/{task['id']}"
    version = (await user.call("PATCH", path, json={"title": "x"})).json()["version"]
    others = {"description": "Since", "priority": "low", "status": "completed"}
    later = (await user.call("PATCH", path, json=others)).json()
    (now,) = (await undone(user, version))["tasks"]
    assert same(now, later | {"title": task["title"]})


async def test_what_has_been_changed_since_is_named_and_nothing_happens(user: User) -> None:
    task = await user.create(description="Two litres")
    path = f"/{task['id']}"
    everything = {"title": "x", "description": None, "status": "completed", "priority": "high"}
    version = (await user.call("PATCH", path, json=everything)).json()["version"]
    await user.call("PATCH", path, json={"status": "in_progress"})
    assert await conflicts(user, version) == {task["id"]: ["status"]}
    await user.call("PATCH", path, json={"description": "", "priority": "low"})
    now = (await user.call("PATCH", path, json={"title": "y"})).json()
    found = await conflicts(user, version)
    assert {name: sorted(fields) for name, fields in found.items()} == {task["id"]: sorted(everything)}
    assert await the_task(user) == now
    assert (await user.create())["version"] == now["version"] + 1, "no number was taken"


async def test_what_is_as_it_was_already_counts_as_done(user: User) -> None:
    before = await user.create(title="a", description="b")
    path = f"/{before['id']}"
    version = (await user.call("PATCH", path, json={"title": "x", "description": "y"})).json()["version"]
    await user.call("PATCH", path, json={"title": "a"})
    assert same((await undone(user, version))["tasks"][0], before), "the other field is undone"
    now = await the_task(user)
    for _ in range(2):
        assert await undone(user, version) == {"version": None, "tasks": []}
    assert await the_task(user) == now
    assert (await user.create())["version"] == now["version"] + 1


async def test_completed_at_comes_back_as_it_was(user: User) -> None:
    before = await user.create(is_completed=True)
    path = f"/{before['id']}"
    reopened = (await user.call("PATCH", path, json={"status": "in_progress"})).json()
    assert reopened["completed_at"] is None
    back = (await undone(user, reopened["version"]))["tasks"][0]
    assert same(back, before)
    assert back["is_completed"] is True
    again = (await undone(user, back["version"]))["tasks"][0]
    assert same(again, reopened)
    assert again["is_completed"] is False


async def test_completed_at_is_not_compared(user: User) -> None:
    task = await user.create()
    path = f"/{task['id']}"
    version = (await user.call("PATCH", path, json={"is_completed": True, "title": "x"})).json()["version"]
    await user.call("PATCH", path + "/complete")
    completed_anew = (await user.call("PATCH", path + "/complete")).json()
    (now,) = (await undone(user, version))["tasks"]
    assert same(now, task)

    reopened = (await undone(user, now["version"]))["tasks"][0]
    assert reopened["completed_at"] == completed_anew["completed_at"]
    version = (await user.call("PATCH", path, json={"is_completed": False, "title": "y"})).json()["version"]
    latest = (await user.call("PATCH", path + "/complete")).json()
    (now,) = (await undone(user, version))["tasks"]
    assert now["completed_at"] == latest["completed_at"], "the status was as before already"
    assert now["title"] == "x"


async def test_when_a_batch_completes_anew_what_was_completed_the_moment_comes_back(user: User) -> None:
    before = await user.create(is_completed=True)
    version = await batch(user, *[{"op": "complete", "id": before["id"]}] * 2)
    after = await the_task(user)
    assert after["completed_at"] > before["completed_at"]
    (now,) = (await undone(user, version))["tasks"]
    assert same(now, before)
    assert same((await undone(user, now["version"]))["tasks"][0], after)


# Create, delete, restore ----------------------------------------------------------------------------------------------


async def test_a_create_is_undone_into_the_trash_whatever_was_changed_since(user: User) -> None:
    created = await user.create()
    changed = (await user.call("PATCH", f"/{created['id']}", json={"title": "x", "is_completed": True})).json()
    answer = await undone(user, created["version"])
    (trashed,) = (await user.call("GET", "?trashed=true")).json()
    assert answer == {"version": changed["version"] + 1, "tasks": [trashed]}
    assert same(trashed, changed | {"deleted_at": trashed["deleted_at"]})
    assert trashed["deleted_at"] == trashed["updated_at"]
    assert (await user.call("GET")).json() == []
    assert await undone(user, created["version"]) == {"version": None, "tasks": []}
    assert same((await undone(user, answer["version"]))["tasks"][0], changed)
    assert len((await user.call("GET")).json()) == 1
    await user.call("DELETE", f"/{created['id']}")
    assert await undone(user, created["version"]) == {"version": None, "tasks": []}, "it is in the trash already"


async def test_a_delete_is_undone_by_restoring(user: User) -> None:
    task = await user.create(is_completed=True)
    deleted = await user.call("DELETE", f"/{task['id']}")
    version = int(deleted.headers["ETag"].strip('"'))
    assert version == task["version"] + 1
    (now,) = (await undone(user, version))["tasks"]
    assert same(now, task)
    assert (await user.call("GET")).json() == [now]
    assert await undone(user, version) == {"version": None, "tasks": []}
    await user.call("DELETE", f"/{task['id']}")
    (now,) = (await undone(user, version))["tasks"]
    assert now["deleted_at"] is None, "in the trash again is in the trash, whenever that was"


async def test_a_restore_is_undone_into_the_trash_anew(user: User, database_url: str) -> None:
    task = await user.create()
    await user.call("DELETE", f"/{task['id']}")
    long_ago = "update tasks.task set deleted_at = now() - interval '29 days' where user_id = $1"
    await execute(database_url, long_ago, user.id)
    restored = (await user.call("POST", f"/{task['id']}/restore")).json()
    (now,) = (await undone(user, restored["version"]))["tasks"]
    assert same(now, restored | {"deleted_at": now["deleted_at"]})
    assert now["deleted_at"] > restored["updated_at"], "it stays there for another 30 days"
    assert await undone(user, restored["version"]) == {"version": None, "tasks": []}
    assert same((await undone(user, now["version"]))["tasks"][0], restored)


async def test_an_update_of_a_task_in_the_trash_is_not_undone(user: User) -> None:
    task = await user.create()
    path = f"/{task['id']}"
    version = (await user.call("PATCH", path, json={"title": "x"})).json()["version"]
    await user.call("DELETE", path)
    trashed = await the_task(user)
    assert await conflicts(user, version) == {task["id"]: ["deleted_at"]}
    assert await the_task(user) == trashed
    await user.call("POST", path + "/restore")
    await user.call("PATCH", path, json={"title": "y"})
    await user.call("DELETE", path)
    assert sorted((await conflicts(user, version))[task["id"]]) == ["deleted_at", "title"]
    await user.call("POST", path + "/restore")
    await user.call("PATCH", path, json={"title": "Buy milk"})
    await user.call("DELETE", path)
    assert await undone(user, version) == {"version": None, "tasks": []}, (
        "what is as it was is no conflict there either"
    )


# Batches --------------------------------------------------------------------------------------------------------------


async def test_a_batch_is_undone_as_a_whole_under_one_number(user: User) -> None:
    first, second, third = [await user.create(title=f"Task {number}") for number in range(3)]
    new = str(uuid4())
    version = await batch(
        user,
        {"op": "update", "id": first["id"], "task": {"title": "x"}},
        {"op": "complete", "id": second["id"]},
        {"op": "delete", "id": third["id"]},
        {"op": "create", "id": new, "task": {"title": "New"}},
        {"op": "update", "id": first["id"], "task": {"title": "y", "priority": "high"}},
    )
    after = {task["id"]: task for task in await every_task(user)}
    answer = await undone(user, version)
    assert answer["version"] == version + 1
    now = {task["id"]: task for task in answer["tasks"]}
    assert set(now) == {first["id"], second["id"], third["id"], new}
    assert {task["version"] for task in now.values()} == {version + 1}
    for task in (first, second, third):
        assert same(now[task["id"]], task)
    assert now[new]["deleted_at"] is not None
    entries = (await call(user, "GET", f"history?before={version + 2}&limit=1")).json()
    assert [(entry["version"], entry["operation"]) for entry in entries] == [(version + 1, "undo")] * 4
    assert sorted(entry["task_id"] for entry in entries) == sorted(now)

    redone = {task["id"]: task for task in (await undone(user, answer["version"]))["tasks"]}
    for task_id, task in after.items():
        assert same(redone[task_id], task | {"deleted_at": redone[task_id]["deleted_at"]})
        assert (redone[task_id]["deleted_at"] is None) == (task["deleted_at"] is None)


async def test_one_conflict_and_nothing_of_a_batch_is_undone(user: User) -> None:
    first, second, third = [await user.create() for _ in range(3)]
    changes = [
        {"op": "update", "id": task["id"], "task": {"title": "x", "priority": "low"}} for task in (first, second)
    ]
    version = await batch(user, *changes, {"op": "delete", "id": third["id"]})
    await user.call("PATCH", f"/{second['id']}", json={"title": "y"})
    before = await every_task(user)
    assert await conflicts(user, version) == {second["id"]: ["title"]}
    await user.call("DELETE", f"/{first['id']}")
    assert await conflicts(user, version) == {first["id"]: ["deleted_at"], second["id"]: ["title"]}
    assert [task["version"] for task in before] == sorted(task["version"] for task in before)
    await user.call("POST", f"/{first['id']}/restore")
    await user.call("PATCH", f"/{second['id']}", json={"title": "Buy milk"})
    now = {task["id"]: task for task in (await undone(user, version))["tasks"]}
    assert same(now[first["id"]], first)
    assert same(now[second["id"]], second)
    assert same(now[third["id"]], third)


async def test_a_batch_that_has_changed_nothing_in_the_end_is_done_already(user: User) -> None:
    task = await user.create(title="a")
    versions = [
        await batch(user, *({"op": "update", "id": task["id"], "task": {"title": title}} for title in ("x", "a"))),
        await batch(user, {"op": "delete", "id": task["id"]}, {"op": "restore", "id": task["id"]}),
    ]
    for version in versions:
        assert await undone(user, version) == {"version": None, "tasks": []}
    assert same(await the_task(user), task)


async def test_a_create_that_its_batch_has_deleted_stays_in_the_trash(user: User) -> None:
    new = str(uuid4())
    version = await batch(user, {"op": "create", "id": new, "task": {"title": "x"}}, {"op": "delete", "id": new})
    assert await undone(user, version) == {"version": None, "tasks": []}
    await user.call("POST", f"/{new}/restore")
    (now,) = (await undone(user, version))["tasks"]
    assert now["deleted_at"] is not None


# The number -----------------------------------------------------------------------------------------------------------


async def test_a_number_that_is_not_the_user_s_is_not_found(user: User, other: User) -> None:
    earlier = await other.create()
    await asyncio.sleep(0.002)  # numbers begin at the milliseconds since 1970
    task = await user.create()
    await asyncio.sleep(0.002)
    for ahead in (task["version"] + 1, BIGGEST_VERSION):
        assert ((response := await undo(user, ahead)).status_code, response.json()) == (
            404,
            {"detail": "Change not found"},
        )
    for before in (1, task["version"] - 1, earlier["version"]):
        assert (await undo(user, before)).status_code == 404
    nobody = User(f"nobody-{uuid4()}", user.client)
    assert (await undo(nobody, task["version"])).status_code == 404
    assert (await undo(nobody, 1)).status_code == 404
    assert await every_task(nobody) == []
    assert await the_task(user) == task


async def test_seven_point_zero_is_seven(user: User) -> None:
    task = await user.create()
    content = f'{{"version": {task["version"]}.0}}'
    response = await call(user, "POST", "undo", content=content)
    assert (response.status_code, response.json()["version"]) == (200, task["version"] + 1)


@pytest.mark.parametrize(
    ("body", "loc", "said"),
    [
        ('{"version": 0}', ["version"], "greater than or equal to 1"),
        ('{"version": -1}', ["version"], "greater than or equal to 1"),
        (f'{{"version": {BIGGEST_VERSION + 1}}}', ["version"], "less than or equal to"),
        (f'{{"version": {"9" * 400}}}', ["version"], ""),
        ('{"version": 1e300}', ["version"], ""),
        ('{"version": 7.5}', ["version"], "integer"),
        ('{"version": "7"}', ["version"], "integer"),
        ('{"version": true}', ["version"], "integer"),
        ('{"version": null}', ["version"], "integer"),
        ('{"version": [7]}', ["version"], "integer"),
        ("{}", ["version"], "required"),
        ("", [], ""),
        ("7", [], "object"),
        ("[]", [], "object"),
        ('{"version": 7', [], ""),
        ('{"version": 7, "versions": 8}', ["versions"], "version"),
    ],
)
async def test_what_is_no_number_is_refused(user: User, body: str, loc: list[str], said: str) -> None:
    task = await user.create()
    response = await call(user, "POST", "undo", content=body)
    assert response.status_code == 422
    (entry,) = response.json()["detail"]
    assert entry["loc"] == ["body", *loc]
    assert said in entry["msg"]
    assert await the_task(user) == task


async def test_only_post_and_no_parameters(user: User) -> None:
    response = await call(user, "GET", "undo")
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")
    response = await call(user, "POST", "undo?dry_run=true", json={"version": 7})
    assert (response.status_code, response.json()["detail"][0]["loc"]) == (422, ["query", "dry_run"])


async def test_after_thirty_days_it_is_too_old(user: User, database_url: str) -> None:
    task = await user.create()
    version = (await user.call("PATCH", f"/{task['id']}", json={"title": "x"})).json()["version"]
    older = "update tasks.change set at = now() - $3::text::interval where user_id = $1 and version = $2"
    await execute(database_url, older, user.id, version, "30 days")
    assert ((response := await undo(user, version)).status_code, response.json()) == TOO_OLD
    assert (await the_task(user))["title"] == "x"
    await execute(database_url, older, user.id, version, "29 days 23:59")
    assert (await undo(user, version)).status_code == 200


async def test_what_the_purge_has_erased_of_history_is_too_old(user: User, database_url: str) -> None:
    task = await user.create()
    await user.call("PATCH", f"/{task['id']}", json={"title": "x"})
    await execute(database_url, "select tasks.purge_changes($1, '1s', 'infinity', 'infinity', 1)", user.id)
    assert ((response := await undo(user, task["version"])).status_code, response.json()) == TOO_OLD
    assert (await undo(user, task["version"] + 1)).status_code == 200


async def test_with_an_erased_task_it_is_too_old(user: User, database_url: str) -> None:
    erased, kept = [await user.create() for _ in range(2)]
    version = await batch(user, *({"op": "complete", "id": task["id"]} for task in (erased, kept)))
    await user.call("DELETE", f"/{erased['id']}")
    purge = "select tasks.purge_tasks($1, '1s', array[$2::uuid], 'infinity')"
    await execute(database_url, purge, user.id, erased["id"])
    again = False
    while True:  # at last with a new task under the old id
        for number in (erased["version"], version, version + 1, version + 2):
            assert ((response := await undo(user, number)).status_code, response.json()) == TOO_OLD
        if again:
            break
        await user.create(id=erased["id"])
        again = True
    assert (await undo(user, kept["version"])).status_code == 200


async def test_a_number_that_a_restored_backup_lacks_is_too_old(user: User, database_url: str) -> None:
    task = await user.create()
    await execute(database_url, "select tasks.renumber_user($1, '5s')", user.id)
    counter = counter_in(database_url, user.id)
    for version in (task["version"] + 1, counter):
        response = await undo(user, version)
        assert (response.status_code, response.json()) == TOO_OLD
    assert (await undo(user, counter + 1)).status_code == 404
    assert (await undone(user, task["version"]))["version"] == counter + 1


async def test_a_row_that_was_deleted_by_hand_is_too_old(user: User, database_url: str) -> None:
    task = await user.create()
    await execute(database_url, "delete from tasks.task where user_id = $1", user.id)
    assert ((response := await undo(user, task["version"])).status_code, response.json()) == TOO_OLD


# Every answer to a write tells its number -----------------------------------------------------------------------------


async def test_every_write_can_be_undone_by_what_its_answer_tells(user: User) -> None:
    new = await user.call("POST", json={"title": "Buy milk"})
    path = f"/{new.json()['id']}"
    requests: list[tuple[str, str, Json]] = [
        ("PUT", path, {"json": {"title": "x"}}),
        ("PATCH", path, {"json": {"title": "y"}}),
        ("PATCH", path + "/complete", {}),
        ("PATCH", path + "/complete", {"json": {"is_completed": False}}),
        ("DELETE", path, {}),
        ("POST", path + "/restore", {}),
    ]
    version = new.json()["version"]
    assert new.headers["ETag"] == f'"{version}"'
    for method, rest, options in requests:
        before = await the_task(user)
        response = await user.call(method, rest, **options)
        number = int(response.headers["ETag"].strip('"'))
        assert number == before["version"] + 1
        answer = await undone(user, number)
        now = await the_task(user)
        assert answer == {"version": number + 1, "tasks": [now]}
        assert same(now, before | {"deleted_at": now["deleted_at"]})
        assert (now["deleted_at"] is None) == (before["deleted_at"] is None)
        await undone(user, answer["version"])  # so that the next request finds what this one has done
    version = await batch(user, {"op": "update", "id": path[1:], "task": {"title": "z"}})
    assert (await the_task(user))["version"] == version
    assert (await undone(user, version))["version"] == version + 1


# Two at once ----------------------------------------------------------------------------------------------------------


async def test_what_is_committed_while_it_waits_for_the_account_is_seen(user: User, database_url: str) -> None:
    """A statement that waits for a lock keeps its snapshot of before: the rows have to be read in later ones."""
    tasks = [await user.create() for _ in range(5)]
    version = await batch(user, *({"op": "update", "id": task["id"], "task": {"title": "x"}} for task in tasks))
    holder: Any = await asyncpg.connect(database_url)
    transaction = holder.transaction()
    await transaction.start()
    for task, title in zip(tasks, ("y", "Buy milk", "x"), strict=False):
        await holder.execute(
            "select * from tasks.change_task("
            "$1, '1s', 'update', $2, jsonb_build_object('title', $3::text), null, null, null)",
            user.id,
            task["id"],
            title,
        )
    waiting = asyncio.create_task(undo(user, version))
    await eventually(lambda: waits_for_lock(holder, "undo_change"))
    await transaction.commit()
    response = await waiting
    assert response.status_code == 409, response.text
    assert response.json()["conflicts"] == [{"task_id": tasks[0]["id"], "fields": ["title"]}]

    await user.call("PATCH", f"/{tasks[0]['id']}", json={"title": "x"})
    transaction = holder.transaction()
    await transaction.start()
    last = await holder.fetchval(
        "select version from tasks.change_task($1, '1s', 'delete', $2, null, null, null, null)", user.id, tasks[4]["id"]
    )
    waiting = asyncio.create_task(undo(user, last))
    await eventually(lambda: waits_for_lock(holder, "undo_change"))
    await transaction.commit()
    response = await waiting
    await holder.close()
    assert response.status_code == 200, "the change that is undone was not committed when it was asked for"
    assert response.json()["version"] == last + 1


async def test_of_many_at_once_one_undoes_and_the_others_find_it_done(user: User) -> None:
    task = await user.create()
    version = (await user.call("PATCH", f"/{task['id']}", json={"title": "x"})).json()["version"]
    answers = [response.json() for response in await asyncio.gather(*(undo(user, version) for _ in range(10)))]
    assert sorted(answer["version"] or 0 for answer in answers) == [0] * 9 + [version + 1]
    assert same(await the_task(user), task)


# The model ------------------------------------------------------------------------------------------------------------

# The same ids for every user: what fails is found again.
IDS = [str(UUID(int=number)) for number in (1, 2, 3)]
State = dict[str, Json]  # all tasks, by their ids


def state_of(tasks: Iterable[Json]) -> State:
    """Returns what two states have to have in common to be the same: what moves with each change is not in it.

    When a task went to the trash does not count, since an undo puts it there anew.
    """
    names = ("title", "description", "status", "priority", "completed_at")
    return {
        task["id"]: {name: task[name] for name in names} | {"deleted_at": task["deleted_at"] is not None}
        for task in tasks
    }


def expected(before: State, after: State, now: State) -> tuple[dict[str, set[str]], State]:
    """Returns the conflicts, and the state to which it leads that the change from `before` to `after` is undone."""
    conflicts: dict[str, set[str]] = {}
    wanted = dict(now)
    for task_id, made in after.items():
        was, is_ = before.get(task_id), now[task_id]
        if was is None:
            wanted[task_id] = is_ | {"deleted_at": True}
            continue
        touched = [name for name in (*FIELDS, "deleted_at") if was[name] != made[name]]
        changed = {name for name in touched if is_[name] not in (was[name], made[name])}
        new = is_ | {name: was[name] for name in touched}
        if new["status"] != "completed":
            new["completed_at"] = None
        elif is_["status"] != "completed" or is_["completed_at"] == made["completed_at"]:
            new["completed_at"] = was["completed_at"]  # but one that has been completed anew since
        if new != is_ and is_["deleted_at"] and "deleted_at" not in touched:
            changed.add("deleted_at")
        if changed:
            conflicts[task_id] = changed
        wanted[task_id] = new
    return conflicts, wanted


TASK_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "title": st.sampled_from(["a", "b"]),
        "description": st.sampled_from([None, "", "c"]),
        "status": st.sampled_from(["pending", "in_progress", "completed"]),
        "priority": st.sampled_from(["low", "high"]),
    },
)
ID = st.sampled_from(IDS)
OPERATION = st.one_of(
    st.builds(lambda id_, task: {"op": "create", "id": id_, "task": {"title": "a"} | task}, ID, TASK_FIELDS),
    st.builds(lambda id_, task: {"op": "update", "id": id_, "task": task}, ID, TASK_FIELDS),
    st.builds(lambda op, id_: {"op": op, "id": id_}, st.sampled_from(["complete", "delete", "restore"]), ID),
)
STEP = st.one_of(
    OPERATION,
    OPERATION,
    st.lists(OPERATION, min_size=2, max_size=5),  # a batch
    st.integers(0, 9),  # the undo of the change that is so far back
    st.integers(0, 9),
)


async def write(user: User, step: Json | list[Json]) -> int | None:
    """Does the step, alone or as a batch; returns its number, None when it has changed nothing."""
    if isinstance(step, list):
        response = await call(user, "POST", "batch", json={"operations": step, "atomic": False})
        assert response.status_code == 200
        version: int | None = response.json()["version"]
        return version
    path = f"/{step['id']}"
    match step["op"]:
        case "create":
            response = await user.call("POST", json=step["task"] | {"id": step["id"]})
        case "update":
            response = await user.call("PATCH", path, json=step["task"])
        case "complete":
            response = await user.call("PATCH", path + "/complete")
        case "delete":
            response = await user.call("DELETE", path)
        case _:
            response = await user.call("POST", path + "/restore")
    return int(response.headers["ETag"].strip('"')) if response.status_code < 300 else None


async def current(user: User) -> tuple[State, int]:
    page = (await call(user, "GET", "changes?limit=1000")).json()
    return state_of(page["tasks"]), page["version"]


@settings(max_examples=150, derandomize=True, database=None, deadline=None)
@given(steps=st.lists(STEP, min_size=1, max_size=10))
async def test_any_changes_are_undone_as_the_model_says(client: httpx.AsyncClient, steps: list[Any]) -> None:
    user = User(f"undo-{uuid4()}", client)
    for id_ in IDS[:2]:
        await user.create(id=id_, description="c")
    first, counter = await current(user)
    states = {counter: first}  # after each change
    for step in steps:
        now = states[counter]
        made = sorted(states)
        if not isinstance(step, int):
            await write(user, step)
        elif step < len(made) - 1:
            number, before = made[-1 - step], made[-2 - step]
            wrong, wanted = expected(states[before], states[number], now)
            if wrong:
                found = await conflicts(user, number)
                assert {id_: set(fields) for id_, fields in found.items()} == wrong
                wanted = now
            else:
                answer = await undone(user, number)
                assert (answer["version"] is None) == (wanted == now)
                assert {task["id"] for task in answer["tasks"]} == {id_ for id_ in now if wanted[id_] != now[id_]}
            assert (await current(user))[0] == wanted
        state, version = await current(user)
        if version == counter:
            assert state == now
        else:
            assert version == counter + 1, "one number, however many tasks"
            states[version], counter = state, version

    last = states[counter]
    undos = []
    for number in sorted(states)[:0:-1]:
        answer = await undone(user, number)
        undos += [answer["version"]] if answer["version"] else []
        now = (await current(user))[0]
        for id_, task in now.items():
            assert task == states[number - 1].get(id_, task | {"deleted_at": True})
    for number in undos[::-1]:
        await undone(user, number)
    assert (await current(user))[0] == last, "all undos undone"
