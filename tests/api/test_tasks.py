"""The six routes, and every rule of a task's fields."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from service.models import Task
from tests.conftest import User

WHITE_SPACE = "".join(map(chr, [*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029])) + (
    "\u202f\u205f\u3000"
)
SERVER_FIELDS = ("user_id", "completed_at", "created_at", "updated_at", "deleted_at", "version")


async def test_a_task_lives_from_its_creation_to_its_deletion(user: User) -> None:
    assert (await user.call("GET")).json() == []

    response = await user.call("POST", json={"title": "Buy milk"})
    task = response.json()
    path = f"/{task['id']}"
    assert response.status_code == 201
    assert response.headers["Location"] == user.tasks + path

    assert (await user.call("GET", path)).json() == task
    assert (await user.call("GET")).json() == [task]

    changed = (await user.call("PATCH", path, json={"title": "Buy oat milk"})).json()
    assert changed["title"] == "Buy oat milk"
    completed = (await user.call("PATCH", path + "/complete")).json()
    assert completed["is_completed"] is True

    response = await user.call("DELETE", path)
    assert (response.status_code, response.content) == (204, b"")
    assert (await user.call("GET")).json() == []
    for method, rest in (("GET", ""), ("PUT", ""), ("PATCH", ""), ("DELETE", ""), ("PATCH", "/complete")):
        body: dict[str, Any] = {"json": {}} if method in ("PUT", "PATCH") and not rest else {}
        response = await user.call(method, path + rest, **body)
        assert (response.status_code, response.json()) == (404, {"detail": "Task not found"})


async def test_a_new_task_has_the_contract_s_fields_and_defaults(user: User) -> None:
    task = await user.create(title="Buy milk")
    assert list(task) == list(Task.model_fields)
    Task.model_validate_json((await user.call("GET", f"/{task['id']}")).content)
    expected = {
        "user_id": user.id,
        "title": "Buy milk",
        "description": None,
        "status": "pending",
        "priority": "medium",
        "is_completed": False,
        "completed_at": None,
        "deleted_at": None,
    }
    assert task.items() >= expected.items()
    assert task["created_at"] == task["updated_at"]
    assert task["created_at"].endswith("+00:00")


async def test_the_list_is_newest_first(user: User) -> None:
    titles = [f"Task {number}" for number in range(5)]
    for title in titles:
        await user.create(title=title)
    assert [task["title"] for task in (await user.call("GET")).json()] == titles[::-1]


async def test_a_client_may_choose_the_id_once(user: User, other: User) -> None:
    chosen = str(uuid4())
    task = await user.create(id=chosen.upper())
    assert task["id"] == chosen

    response = await user.call("POST", json={"id": chosen, "title": "Again"})
    assert (response.status_code, response.json()) == (409, {"detail": "Task already exists"})
    assert (await user.call("GET")).json() == [task]
    assert (await user.create())["version"] == task["version"] + 1, "a refused create takes no number"

    assert (await other.create(id=chosen))["id"] == chosen, "another user's ids are not in the way"

    await user.call("DELETE", f"/{chosen}")
    assert (await user.call("POST", json={"id": chosen, "title": "Again"})).status_code == 409


# Title and description ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("x", "x"),
        *((letter, letter) for letter in "abtnvfru0"),  # letters that an escape in the database's own check might eat
        (WHITE_SPACE + "x y" + WHITE_SPACE, "x y"),
        ("x" * 100, "x" * 100),
        (" \t\n x \u3000", "x"),
        (" " * 50 + "x" * 100 + " " * 50, "x" * 100),
        ("👩‍👩‍👧‍👦 buy milk", "👩‍👩‍👧‍👦 buy milk"),
        ("𝕏" * 100, "𝕏" * 100),
        ("قائمة المهام \u202eabc", "قائمة المهام \u202eabc"),
        ("Robert'); drop table tasks.task; --", "Robert'); drop table tasks.task; --"),
        ('<script>alert("x")</script>', '<script>alert("x")</script>'),
        ("back\\slash \"quotes\" 'single' %s $1 {x}", "back\\slash \"quotes\" 'single' %s $1 {x}"),
        ("two\nlines\x01\x7f", "two\nlines\x01\x7f"),
        ("\u180e", "\u180e"),
        ("\u200b", "\u200b"),
    ],
)
async def test_titles_come_back_as_they_went_in_but_trimmed(user: User, sent: str, kept: str) -> None:
    task = await user.create(title=sent)
    assert task["title"] == kept
    assert (await user.call("PATCH", f"/{task['id']}", json={"title": sent})).json() == task
    assert (await user.call("GET")).json() == [task]


@pytest.mark.parametrize(
    ("title", "message"),
    [
        ("", "String should have at least 1 character that is not white space"),
        (" \t\u3000\u00a0\u0085", "String should have at least 1 character that is not white space"),
        ("x" * 101, "String should have at most 100 characters, not 101"),
        ("𝕏" * 101, "String should have at most 100 characters, not 101"),
        (" " * 50 + "x" * 101 + " " * 50, "String should have at most 100 characters, not 101"),
        ("a\0b", "String should not contain the character NUL"),
        (None, "Input should be a valid string, not null"),
        (5, "Input should be a valid string, not 5"),
        (["x"], 'Input should be a valid string, not ["x"]'),
    ],
)
async def test_a_title_out_of_bounds_is_refused(user: User, title: Any, message: str) -> None:
    task = await user.create()
    for method, path in (("POST", ""), ("PUT", f"/{task['id']}"), ("PATCH", f"/{task['id']}")):
        response = await user.call(method, path, json={"title": title})
        assert response.status_code == 422
        (entry,) = response.json()["detail"]
        assert entry["loc"] == ["body", "title"]
        assert entry["msg"].startswith(message)
    assert (await user.call("GET")).json() == [task]


@pytest.mark.parametrize("description", ["", " kept as it is ", "x" * 500, "🎉" * 500, "line\nline", None])
async def test_descriptions_come_back_as_they_went_in(user: User, description: str | None) -> None:
    task = await user.create(description=description)
    assert task["description"] == description
    path = f"/{(await user.create())['id']}"
    assert (await user.call("PUT", path, json={"description": description})).json()["description"] == description


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("x" * 501, "String should have at most 500 characters, not 501"),
        ("🎉" * 501, "String should have at most 500 characters, not 501"),
        ("\0", "String should not contain the character NUL"),
        (1, "Input should be a valid string, not 1"),
    ],
)
async def test_a_description_out_of_bounds_is_refused(user: User, description: Any, message: str) -> None:
    path = f"/{(await user.create())['id']}"
    for method, rest in (("POST", ""), ("PUT", path), ("PATCH", path)):
        response = await user.call(method, rest, json={"title": "x", "description": description})
        assert response.status_code == 422
        (entry,) = response.json()["detail"]
        assert (entry["loc"], entry["msg"]) == (["body", "description"], message)


async def test_null_clears_a_description_and_absence_keeps_it(user: User) -> None:
    path = f"/{(await user.create(description='Two litres'))['id']}"
    assert (await user.call("PATCH", path, json={"priority": "low"})).json()["description"] == "Two litres"
    assert (await user.call("PATCH", path, json={"description": None})).json()["description"] is None


# Status, priority, is_completed ---------------------------------------------------------------------------------------


async def test_every_status_can_follow_every_other(user: User) -> None:
    statuses = ("pending", "in_progress", "completed")
    for first in statuses:
        for second in statuses:
            task = await user.create(status=first)
            changed = (await user.call("PUT", f"/{task['id']}", json={"status": second})).json()
            for state in (task, changed):
                assert state["is_completed"] is (state["status"] == "completed")
                assert (state["completed_at"] is not None) is state["is_completed"]
            assert changed["status"] == second


async def test_completed_at_is_the_moment_of_completion(user: User) -> None:
    task = await user.create(status="completed")
    assert task["completed_at"] == task["created_at"]
    path = f"/{task['id']}"
    renamed = (await user.call("PATCH", path, json={"title": "Renamed"})).json()
    assert renamed["completed_at"] == task["completed_at"], "it does not move while the task stays completed"
    reopened = (await user.call("PATCH", path, json={"status": "in_progress"})).json()
    assert reopened["completed_at"] is None
    again = (await user.call("PATCH", path, json={"is_completed": True})).json()
    assert again["completed_at"] == again["updated_at"] > task["completed_at"]


@pytest.mark.parametrize(
    ("before", "is_completed", "after"),
    [
        ("pending", True, "completed"),
        ("in_progress", True, "completed"),
        ("completed", True, "completed"),
        ("pending", False, "pending"),
        ("in_progress", False, "in_progress"),
        ("completed", False, "pending"),
    ],
)
async def test_is_completed_moves_the_status(user: User, before: str, is_completed: bool, after: str) -> None:
    for method, rest in (("PUT", ""), ("PATCH", ""), ("PATCH", "/complete")):
        task = await user.create(status=before)
        changed = (await user.call(method, f"/{task['id']}{rest}", json={"is_completed": is_completed})).json()
        assert changed["status"] == after
        if before == after:
            assert changed == task, "what changes nothing moves nothing"


async def test_is_completed_counts_on_creation_too(user: User) -> None:
    assert (await user.create(is_completed=True))["status"] == "completed"
    assert (await user.create(is_completed=False))["status"] == "pending"
    assert (await user.create(is_completed=False, status="in_progress"))["status"] == "in_progress"


@pytest.mark.parametrize(("status", "is_completed"), [("pending", True), ("in_progress", True), ("completed", False)])
async def test_status_and_is_completed_must_agree(user: User, status: str, is_completed: bool) -> None:
    task = await user.create()
    body = {"title": "x", "status": status, "is_completed": is_completed}
    for method, path in (("POST", ""), ("PUT", f"/{task['id']}"), ("PATCH", f"/{task['id']}")):
        response = await user.call(method, path, json=body)
        assert response.status_code == 422
        (entry,) = response.json()["detail"]
        assert entry["type"] == "contradiction"
        assert status in entry["msg"]
    assert (await user.call("GET")).json() == [task]


@pytest.mark.parametrize("field", ["status", "priority"])
@pytest.mark.parametrize("value", ["", "done", "PENDING", "Low", " low", 1, None, ["low"]])
async def test_an_unknown_choice_is_refused(user: User, field: str, value: Any) -> None:
    response = await user.call("POST", json={"title": "x", field: value})
    assert response.status_code == 422
    (entry,) = response.json()["detail"]
    assert entry["loc"] == ["body", field]
    assert "'pending'" in entry["msg"] or "'low'" in entry["msg"], "the message says what is accepted"


@pytest.mark.parametrize("priority", ["low", "medium", "high"])
async def test_priorities(user: User, priority: str) -> None:
    task = await user.create(priority=priority)
    assert task["priority"] == priority
    assert (await user.call("PUT", f"/{task['id']}", json={"priority": "low"})).json()["priority"] == "low"


@pytest.mark.parametrize("value", ["true", 1, 0, None, "yes", []])
async def test_is_completed_is_a_boolean_and_nothing_else(user: User, value: Any) -> None:
    path = f"/{(await user.create())['id']}"
    for method, rest in (("POST", ""), ("PUT", path), ("PATCH", path), ("PATCH", path + "/complete")):
        body = {"is_completed": value} | ({"title": "x"} if method == "POST" else {})
        response = await user.call(method, rest, json=body)
        assert response.status_code == 422
        assert response.json()["detail"][0]["loc"] == ["body", "is_completed"]


# Bodies as a whole ----------------------------------------------------------------------------------------------------


async def test_a_whole_task_sent_back_is_no_error_and_changes_nothing(user: User) -> None:
    task = await user.create(description="x", status="completed", priority="high")
    for method in ("PUT", "PATCH"):
        assert (await user.call(method, f"/{task['id']}", json=task)).json() == task


async def test_what_only_the_server_writes_is_ignored(user: User, other: User) -> None:
    claims: dict[str, Any] = dict.fromkeys(SERVER_FIELDS, "2001-01-01T00:00:00Z")
    claims |= {"user_id": other.id, "version": 99}
    task = await user.create(**claims)
    changed = (await user.call("PUT", f"/{task['id']}", json=claims | {"id": str(uuid4()), "title": "y"})).json()
    body = claims | {"is_completed": False}
    assert (await user.call("PATCH", f"/{task['id']}/complete", json=body)).json() == changed
    for state in (task, changed):
        assert state["user_id"] == user.id
        assert state["version"] > 99
        assert not any("2001" in str(value) for value in state.values())
    assert (changed["id"], changed["version"]) == (task["id"], task["version"] + 1)
    assert (await other.call("GET")).json() == []


@pytest.mark.parametrize("field", ["colour", "Title", "ids", "__proto__", ""])
async def test_a_field_that_no_task_has_is_refused(user: User, field: str) -> None:
    task = await user.create()
    path = f"/{task['id']}"
    for method, rest in (("POST", ""), ("PUT", path), ("PATCH", path), ("PATCH", path + "/complete")):
        body = {"is_completed": True, field: 1} if rest.endswith("complete") else {"title": "x", field: 1}
        response = await user.call(method, rest, json=body)
        assert response.status_code == 422
        (entry,) = response.json()["detail"]
        assert entry["loc"] == ["body", field]
    assert (await user.call("GET")).json() == [task]


async def test_everything_wrong_is_named_at_once(user: User) -> None:
    response = await user.call("POST", json={"title": "", "priority": "urgent", "colour": "red"})
    assert [entry["loc"] for entry in response.json()["detail"]] == [
        ["body", "title"],
        ["body", "priority"],
        ["body", "colour"],
    ]


async def test_a_title_is_required_to_create(user: User) -> None:
    response = await user.call("POST", json={})
    assert response.json()["detail"] == [{"loc": ["body", "title"], "msg": "Field required", "type": "missing"}]


@pytest.mark.parametrize("task_id", ["0b6c2b38", "", None, 7, "{0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e11}"])
async def test_an_id_that_is_no_uuid_is_refused(user: User, task_id: Any) -> None:
    response = await user.call("POST", json={"id": task_id, "title": "x"})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "id"]


@pytest.mark.parametrize(
    "task_id", ["1", "x" * 36, "0b6c2b383b5f4a7e9f0e2f4d5a3c1e11", "0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e1g", "%00"]
)
async def test_a_path_id_that_is_no_uuid_is_refused(user: User, task_id: str) -> None:
    for method, rest in (("GET", ""), ("PUT", ""), ("PATCH", ""), ("DELETE", ""), ("PATCH", "/complete")):
        response = await user.call(method, f"/{task_id}{rest}")
        assert response.status_code == 422
        assert response.json()["detail"][0]["loc"] == ["path", "task_id"]


async def test_a_path_id_may_be_in_capitals(user: User) -> None:
    task = await user.create()
    assert (await user.call("GET", f"/{task['id'].upper()}")).json() == task


# Versions and moments -------------------------------------------------------------------------------------------------


async def test_every_change_takes_the_user_s_next_number(user: User, other: User) -> None:
    first, second = await user.create(), await user.create()
    theirs = await other.create()
    path, number = f"/{first['id']}", first["version"]
    assert second["version"] == number + 1
    assert (await user.call("PUT", path, json={"title": "y"})).json()["version"] == number + 2
    assert (await user.call("PATCH", path + "/complete")).json()["version"] == number + 3
    await user.call("DELETE", path)
    assert (await user.create())["version"] == number + 5
    assert (await other.create())["version"] == theirs["version"] + 1


async def make_with_post(user: User) -> int:
    version: int = (await user.create())["version"]
    return version


async def make_with_key(user: User) -> int:
    created = await user.call("POST", json={"title": "x"}, headers={"Idempotency-Key": "k"})
    version: int = created.json()["version"]
    return version


async def make_with_batch(user: User) -> int:
    body = {"operations": [{"op": "create", "task": {"title": "x"}}]}
    done = await user.client.post(f"/api/{user.id}/batch", headers=user.headers, json=body)
    version: int = done.json()["results"][0]["task"]["version"]
    return version


@pytest.mark.parametrize("make", [make_with_post, make_with_key, make_with_batch])
async def test_a_new_counter_begins_now_so_that_no_number_is_given_again(
    user: User, database_url: str, make: Callable[[User], Awaitable[int]]
) -> None:
    highest = 0
    for _ in range(3):  # each time nothing is left, as after a restore from before the user came
        before = time.time_ns() // 1_000_000
        first = await make(user)
        assert before <= first <= time.time_ns() // 1_000_000 + 1
        assert highest < first < 2**53
        highest = (await user.create())["version"]
        assert highest == first + 1
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            for table in ("tasks.task", "tasks.account", "tasks.idempotency"):
                await connection.execute(f"delete from {table} where user_id = %s", (user.id,))  # noqa: S608
        assert (await user.call("GET")).headers["ETag"] == 'W/"0"'
        await asyncio.sleep(0.01)  # more than the two numbers that were given


# Tasks that somebody in psql has made for who has no counter ----------------------------------------------------------


async def made_by_hand(user: User, database_url: str, deleted_at: str | None) -> str:
    """Returns the id of a task with the version 5, whose user has no account."""
    task_id = str(uuid4())
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute(
            "insert into tasks.task (id, user_id, title, deleted_at, version) values (%s, %s, 'By hand', %s, 5)",
            (task_id, user.id, deleted_at),
        )
    return task_id


@pytest.mark.parametrize(
    ("method", "rest", "body", "status"),
    [
        ("PUT", "", {"title": "y"}, 200),
        ("PATCH", "", {"is_completed": True}, 200),
        ("PATCH", "/complete", None, 200),
        ("DELETE", "", None, 204),
        ("POST", "/restore", None, 200),
    ],
)
async def test_a_task_made_by_hand_is_changed_like_any_other(
    user: User, database_url: str, method: str, rest: str, body: Any, status: int
) -> None:
    task_id = await made_by_hand(user, database_url, "2026-01-01" if rest == "/restore" else None)
    path = f"/{task_id}{rest}"
    sent: dict[str, Any] = {} if body is None else {"json": body}
    assert (await user.call(method, path, headers={"If-Match": '"4"'}, **sent)).status_code == 412
    before = time.time_ns() // 1_000_000
    changed = await user.call(method, path, headers={"If-Match": '"5"'}, **sent)
    assert changed.status_code == status
    counter = int((await user.call("GET")).headers["ETag"].strip('W/"'))
    assert before <= counter <= time.time_ns() // 1_000_000 + 1
    if status == 200:
        assert changed.json()["version"] == counter
    assert (await user.create())["version"] == counter + 1


async def test_tasks_made_by_hand_are_read_and_changed_at_once(user: User, database_url: str) -> None:
    ids = [await made_by_hand(user, database_url, None) for _ in range(20)]
    for task_id in ids:
        assert (await user.call("GET", f"/{task_id}")).json()["version"] == 5
        assert (await user.call("PATCH", f"/{task_id}", json={})).json()["version"] == 5, "nothing to change"
    answers = await asyncio.gather(*(user.call("PATCH", f"/{task_id}/complete") for task_id in ids))
    assert [answer.status_code for answer in answers] == [200] * 20
    versions = sorted(answer.json()["version"] for answer in answers)
    assert versions == list(range(versions[0], versions[0] + 20))


async def test_a_batch_changes_tasks_made_by_hand(user: User, database_url: str) -> None:
    task_id = await made_by_hand(user, database_url, None)
    operations = [
        {"op": "update", "id": task_id, "if_version": 5, "task": {"title": "y"}},
        {"op": "complete", "id": task_id},
        {"op": "delete", "id": task_id},
        {"op": "restore", "id": task_id},
    ]
    done = await user.client.post(f"/api/{user.id}/batch", headers=user.headers, json={"operations": operations})
    assert [result["status"] for result in done.json()["results"]] == [200, 200, 204, 200]


async def test_what_changes_nothing_moves_nothing(user: User) -> None:
    task = await user.create(title="x", description="y", status="in_progress", priority="high")
    path = f"/{task['id']}"
    fields = {name: task[name] for name in ("title", "description", "status", "priority", "is_completed")}
    for body in ({}, fields, {"title": "  x "}, {"is_completed": False}, task):
        for method in ("PUT", "PATCH"):
            response = await user.call(method, path, json=body)
            assert (response.status_code, response.json()) == (200, task)
    assert (await user.create())["version"] == task["version"] + 1


async def test_updated_at_moves_on_every_change(user: User) -> None:
    task = await user.create()
    moments = [task["updated_at"]]
    for number in range(5):
        changed = (await user.call("PUT", f"/{task['id']}", json={"title": f"{number}"})).json()
        assert changed["created_at"] == task["created_at"]
        moments.append(changed["updated_at"])
    assert moments == sorted(set(moments))


async def test_simultaneous_toggles_are_each_done_exactly_once(user: User) -> None:
    task = await user.create()
    path = f"/{task['id']}/complete"
    responses = await asyncio.gather(*(user.call("PATCH", path) for _ in range(51)))
    assert sorted(response.json()["version"] for response in responses) == list(
        range(task["version"] + 1, task["version"] + 52)
    )
    moments = [response.json()["updated_at"] for response in responses]
    assert len(set(moments)) == 51
    assert (await user.call("GET", f"/{task['id']}")).json()["is_completed"] is True


async def test_simultaneous_equal_changes_take_one_number(user: User) -> None:
    task = await user.create()
    path = f"/{task['id']}"
    responses = await asyncio.gather(*(user.call("PUT", path, json={"status": "completed"}) for _ in range(50)))
    assert {response.json()["version"] for response in responses} == {task["version"] + 1}
    assert (await user.create())["version"] == task["version"] + 2


async def test_simultaneous_deletes_find_the_task_once(user: User) -> None:
    task = await user.create()
    responses = await asyncio.gather(*(user.call("DELETE", f"/{task['id']}") for _ in range(20)))
    assert sorted(response.status_code for response in responses) == [204] + [404] * 19
    assert (await user.create())["version"] == task["version"] + 2


async def test_simultaneous_creates_with_one_id_make_one_task(user: User) -> None:
    chosen = str(uuid4())
    responses = await asyncio.gather(
        *(user.call("POST", json={"id": chosen, "title": f"{number}"}) for number in range(20))
    )
    assert sorted(response.status_code for response in responses) == [201] + [409] * 19
    (task,) = (await user.call("GET")).json()
    assert (await user.create())["version"] == task["version"] + 1
