"""The batch: many changes as one, each as the single request would have made it."""

import asyncio
import json
import random
import re
import time
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from service.models import Task
from service.web.request import COSTLY_BYTES
from tests.conftest import User, make_token

Json = dict[str, Any]
NOT_FOUND = {"status": 404, "detail": "Task not found"}
TAKEN_BACK = {"status": 424, "detail": "Another operation failed"}


async def send(user: User, *operations: Any, **options: Any) -> httpx.Response:
    body = {"operations": list(operations)} | options
    return await user.client.post(f"/api/{user.id}/batch", headers=user.headers, json=body)


async def results(user: User, *operations: Any, **options: Any) -> list[Json]:
    response = await send(user, *operations, **options)
    found: list[Json] = response.json()["results"]
    is_kept = any(result["status"] < 400 for result in found)
    assert (response.status_code, response.json()["committed"]) == (200, is_kept), response.text
    return found


async def stored(url: str, user: User) -> list[Any]:
    """Returns all that the database has of the user, where it is in the table included."""
    connection: Any = await asyncpg.connect(url)
    try:
        return [
            [tuple(row) for row in await connection.fetch(f"select ctid, * from {table} where user_id = $1", user.id)]  # noqa: S608
            for table in ("tasks.account", "tasks.task", "tasks.change")
        ]
    finally:
        await connection.close()


def create(**fields: Any) -> Json:
    return {"op": "create", "task": {"title": "Buy milk"} | fields}


def without_moments(task: Json, made: Json) -> Json:
    """Returns what of a task two users have in common who did the same, since they made this one."""
    return {
        name: value is not None if name.endswith("_at") else value for name, value in task.items() if name != "user_id"
    } | {"version": task["version"] - made["version"]}


async def test_operations_see_the_earlier_ones(user: User) -> None:
    task_id = str(uuid4())
    first = (await user.create(title="Before"))["version"] + 1
    done = await results(
        user,
        {"op": "create", "id": task_id, "task": {"title": " Buy milk "}},
        {"op": "update", "id": task_id, "task": {"title": "Buy oat milk"}, "if_version": float(first)},
        {"op": "complete", "id": task_id},
        {"op": "complete", "id": task_id},
        {"op": "complete", "id": task_id, "task": {"is_completed": True}},
        {"op": "delete", "id": task_id, "if_version": first},
        {"op": "restore", "id": task_id, "if_version": first},
    )
    assert [result["status"] for result in done] == [201, 200, 200, 200, 200, 204, 200]
    assert done[5] == {"status": 204}
    tasks = [result["task"] for result in done if "task" in result]
    for task in tasks:
        Task.model_validate_json(json.dumps(task))
    assert {task["version"] for task in tasks} == {first}, "all that a batch changes has one number"
    assert [task["is_completed"] for task in tasks] == [False, False, True, False, True, True]
    assert tasks[0]["title"] == "Buy milk"
    assert tasks[5]["deleted_at"] is None
    moments = [task["updated_at"] for task in tasks]
    assert len(set(moments)) == 6
    assert (await user.call("GET")).json()[0] == tasks[-1]


@pytest.mark.parametrize("is_conditional", [False, True])
@pytest.mark.parametrize(
    ("operation", "method", "path"),
    [
        ({"op": "update", "task": {}}, "PATCH", ""),
        ({"op": "update", "task": {"title": "Buy milk"}}, "PATCH", ""),
        ({"op": "update", "task": {"title": "𝕏" * 100, "description": "🎉" * 500}}, "PATCH", ""),
        ({"op": "update", "task": {"description": None, "status": "in_progress"}}, "PATCH", ""),
        ({"op": "update", "task": {"is_completed": True, "priority": "low", "user_id": "me"}}, "PATCH", ""),
        ({"op": "update", "task": {"title": "x" * 101}}, "PATCH", ""),
        ({"op": "update", "task": {"description": "x" * 501}}, "PATCH", ""),
        ({"op": "update", "task": {"title": None, "nothing": 1}}, "PATCH", ""),
        ({"op": "update", "task": {"status": "pending", "is_completed": True}}, "PATCH", ""),
        ({"op": "update", "task": {"title": "a\0"}}, "PATCH", ""),
        ({"op": "update", "task": []}, "PATCH", ""),
        ({"op": "complete"}, "PATCH", "/complete"),
        ({"op": "complete", "task": {"is_completed": True}}, "PATCH", "/complete"),
        ({"op": "complete", "task": {"is_completed": False}}, "PATCH", "/complete"),
        ({"op": "complete", "task": {"is_completed": 1}}, "PATCH", "/complete"),
        ({"op": "complete", "task": {}}, "PATCH", "/complete"),
        ({"op": "delete"}, "DELETE", ""),
        ({"op": "restore"}, "POST", "/restore"),
    ],
)
async def test_an_operation_is_answered_as_the_single_request(
    user: User, other: User, operation: Json, method: str, path: str, is_conditional: bool
) -> None:
    task_id = str(uuid4())
    mine, theirs = [await each.create(id=task_id, description="Two litres") for each in (user, other)]
    body = {"json": operation["task"]} if "task" in operation else {}
    single = await other.call(method, f"/{task_id}{path}", **body)
    condition = {"if_version": mine["version"]} if is_conditional else {}
    (result,) = await results(user, operation | {"id": task_id.upper()} | condition, atomic=False)
    assert result["status"] == single.status_code
    if single.status_code == 200:
        assert without_moments(result["task"], mine) == without_moments(single.json(), theirs)
    elif single.status_code == 422:
        assert result["detail"] == single.json()["detail"]
    left = [
        [without_moments(task, made) for task in (await each.call("GET")).json()]
        for each, made in ((user, mine), (other, theirs))
    ]
    assert left[0] == left[1]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"title": " \u3000x "},
        {"title": "x" * 101},
        {"title": ""},
        {"title": None},
        {"description": "x" * 500, "is_completed": True},
        {"description": "x" * 501},
        {"status": "completed", "priority": "high"},
        {"status": "completed", "is_completed": False},
        {"priority": "urgent"},
        {"id": "none"},
        {"colour": "red"},
        {"id": "0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e11"},
    ],
)
async def test_a_create_is_answered_as_the_single_request(user: User, other: User, fields: Json) -> None:
    single = await other.call("POST", json={"title": "Buy milk"} | fields)
    (result,) = await results(user, create(**fields), atomic=False)
    assert result["status"] == single.status_code
    if single.status_code == 201:
        anything = {} if "id" in fields else {"id": ""}
        # the counters of both begin with this task
        assert without_moments(result["task"] | anything, result["task"]) == without_moments(
            single.json() | anything, single.json()
        )
    else:
        assert result["detail"] == single.json()["detail"]


async def test_an_id_stands_in_the_operation_or_in_the_task(user: User) -> None:
    one, two = str(uuid4()), str(uuid4())
    done = await results(
        user,
        create() | {"id": one},
        create(id=one),
        create(id=two) | {"id": two.upper()},
        create(id=str(uuid4())) | {"id": two},
        create(),
        atomic=False,
    )
    assert [result["status"] for result in done] == [201, 409, 201, 422, 201]
    assert done[1]["detail"] == "Task already exists"
    assert done[3]["detail"][0]["loc"] == ["body", "id"]
    await results(user, {"op": "delete", "id": one})
    assert (await results(user, create(id=one), atomic=False))[0]["status"] == 409, "in the trash it stays taken"


async def test_what_is_not_there_or_has_changed(user: User, other: User) -> None:
    theirs, mine = await other.create(), await user.create()
    live: list[Json] = [{"op": "update", "task": {"title": "x"}}, {"op": "complete"}, {"op": "delete"}]
    for operation in [*live, {"op": "restore"}]:
        for task_id in (theirs["id"], str(uuid4())):
            assert await results(user, operation | {"id": task_id, "if_version": 1}, atomic=False) == [NOT_FOUND]
    for operation in live:
        changed = await results(user, operation | {"id": mine["id"], "if_version": mine["version"] + 1}, atomic=False)
        assert changed == [{"status": 412, "detail": "Task has changed"}]
    assert await results(user, {"op": "restore", "id": mine["id"]}, atomic=False) == [NOT_FOUND], "it is live"
    await user.call("DELETE", f"/{mine['id']}")
    for operation in live:
        assert await results(user, operation | {"id": mine["id"]}, atomic=False) == [NOT_FOUND]
    restore: Json = {"op": "restore", "id": mine["id"]}
    version = mine["version"]
    assert (await results(user, restore | {"if_version": version}, atomic=False))[0]["status"] == 412
    assert (await results(user, restore | {"if_version": version + 1}))[0]["task"]["version"] == version + 2
    assert (await other.call("GET")).json() == [theirs]


async def test_one_failure_takes_everything_back(user: User, database_url: str) -> None:
    task = await user.create()
    before = await stored(database_url, user)
    missing = {"op": "delete", "id": str(uuid4())}
    for failing, status in ((missing, 404), (create(title=""), 422), (create(id=task["id"]), 409)):
        response = await send(user, create(), failing, {"op": "delete", "id": task["id"]})
        assert response.status_code == 409
        body = response.json()
        assert body["committed"] is False
        assert [result["status"] for result in body["results"]] == [424, status, 424]
        assert body["results"][0] == TAKEN_BACK
        assert await stored(database_url, user) == before
    assert (await user.create())["version"] == task["version"] + 1


async def test_each_may_stand_alone(user: User) -> None:
    done = await results(user, create(), {"op": "delete", "id": str(uuid4())}, create(title=""), create(), atomic=False)
    assert [result["status"] for result in done] == [201, 404, 422, 201]
    first, second = [result["task"]["version"] for result in done if "task" in result]
    assert second == first
    assert len((await user.call("GET")).json()) == 2


async def test_a_dry_run_leaves_no_trace(user: User, other: User, database_url: str) -> None:
    response = await send(user, create(), create(), dry_run=True)
    assert (response.status_code, response.json()["committed"]) == (200, False)
    assert response.json()["version"] is None
    first, second = [result["task"]["version"] for result in response.json()["results"]]
    assert second == first
    assert await stored(database_url, user) == [[], [], []], "no account either"

    task = await other.create()
    before = await stored(database_url, other)
    for atomic, statuses in ((True, [424, 404]), (False, [204, 404])):
        operations = [{"op": op, "id": task["id"]} for op in ("delete", "delete")]
        response = await send(other, *operations, dry_run=True, atomic=atomic)
        assert (response.status_code, response.json()["committed"]) == (200, False)
        assert [result["status"] for result in response.json()["results"]] == statuses
        assert await stored(database_url, other) == before


async def test_failures_of_a_new_user_leave_no_account(user: User, database_url: str) -> None:
    await results(user, {"op": "delete", "id": str(uuid4())}, create(title=""), atomic=False)
    assert (await send(user, create(), create(title=""))).status_code == 409
    assert await stored(database_url, user) == [[], [], []]


async def test_what_changes_nothing_takes_no_number(user: User, database_url: str) -> None:
    task = await user.create()
    before = await stored(database_url, user)
    same = {"op": "update", "id": task["id"], "task": task}
    reopened = {"op": "complete", "id": task["id"], "task": {"is_completed": False}}
    assert await results(user, same, reopened) == [{"status": 200, "task": task}] * 2
    assert await stored(database_url, user) == before


@pytest.mark.parametrize(
    ("operation", "place"),
    [
        ({"op": "rename", "id": str(uuid4())}, ["op"]),
        ({"id": str(uuid4())}, ["op"]),
        ({"op": ["create"]}, ["op"]),
        ({"op": "delete"}, ["id"]),
        ({"op": "delete", "id": "x"}, ["id"]),
        ({"op": "delete", "id": None}, ["id"]),
        ({"op": "delete", "id": str(uuid4()), "task": {}}, ["task"]),
        ({"op": "delete", "id": str(uuid4()), "if_version": 0}, ["if_version"]),
        ({"op": "delete", "id": str(uuid4()), "if_version": "1"}, ["if_version"]),
        ({"op": "delete", "id": str(uuid4()), "if_version": 2**53}, ["if_version"]),
        ({"op": "update", "id": str(uuid4())}, ["task"]),
        ({"op": "create"}, ["task"]),
        (create() | {"if_version": 1}, ["if_version"]),
        (create() | {"colour": "red"}, ["colour"]),
        ("delete", []),
    ],
)
async def test_a_wrong_operation_is_refused_with_its_place(
    user: User, database_url: str, operation: Any, place: list[str]
) -> None:
    response = await send(user, create(), operation)
    assert response.status_code == 422
    assert [entry["loc"] for entry in response.json()["detail"]] == [["body", "operations", 1, *place]]
    assert await stored(database_url, user) == [[], [], []]


@pytest.mark.parametrize(("number", "status"), [(0, 422), (1, 200), (100, 200), (101, 422)])
async def test_how_many_operations(user: User, number: int, status: int) -> None:
    response = await send(user, *[create()] * number)
    assert response.status_code == status
    assert len((await user.call("GET")).json()) == (number if status == 200 else 0)
    if status == 422:
        assert [entry["loc"] for entry in response.json()["detail"]] == [["body", "operations"]]


async def test_how_large_a_body(user: User) -> None:
    body = json.dumps({"operations": [create()]}).encode()
    for size, status in ((2**20, 200), (2**20 + 1, 413)):
        response = await user.client.post(f"/api/{user.id}/batch", headers=user.headers, content=body.ljust(size))
        assert response.status_code == status
    assert len((await user.call("GET")).json()) == 1


def batch_of(cost: int) -> bytes:
    """Returns a batch with one good operation and so many bytes outside strings, brackets counted thrice."""
    body = b'{"operations":[{"op":"create","task":{"title":"x","version":[%b1]}}]}'
    outside = re.sub(b'"[a-z]*"', b"", body % b"")
    missing = cost - len(outside) - 2 * len(re.findall(rb"[\[{]", outside))
    return body % (b"1," * (missing // 2) + b"1" * (missing % 2))


async def test_how_much_of_a_body_may_be_names_numbers_and_brackets(user: User) -> None:
    path = f"/api/{user.id}/batch"
    for body, status in (
        (json.dumps({"operations": [create(version='",[{1' * 100_000)]}).encode(), 200),
        (batch_of(COSTLY_BYTES - 1), 200),
        (batch_of(COSTLY_BYTES), 200),
        (batch_of(COSTLY_BYTES + 1), 422),
    ):
        response = await user.client.post(path, headers=user.headers, content=body)
        assert response.status_code == status
    (entry,) = response.json()["detail"]
    assert entry["loc"] == ["body"]
    assert f"at most {COSTLY_BYTES} bytes outside text, not {COSTLY_BYTES + 1}" in entry["msg"]


NAMES = b",".join(b'"%x": 1' % number for number in range(600))
LIKE = b",".join(b'"is_complet%x": "%b"' % (number, b"x" * 30) for number in range(190))
MIB = 2**20


@pytest.mark.parametrize(
    "body",
    [
        b"{" + b",".join(b'"unknown field %06d": 1' % number for number in range(40_000)) + b"}",
        b'{"operations": [' + b'{"op": "delete", ' + LIKE + b"}]}",
        b'{"operations": [' + b",".join([b'{"op": "delete", ' + NAMES + b"}"] * 100) + b"]}",
        b'{"operations": [' + b",".join([b'{"op": "delete", ' + LIKE + b"}"] * 90) + b"]}",
        b'{"operations": [' + b",".join([b"1"] * 100) + b"]}",
        b'{"operations": [' + b",".join([b"{}"] * 100_000) + b"]}",
        b'{"operations": [{"op": "' + b"x" * 1_000_000 + b'"}]}',
        b'{"operations": "' + b"\\n" * 500_000 + b'"}',
        b'{"' + b"x" * 1_000_000 + b'": 1}',
        b'{"version": ' + b"1" * 1_000_000 + b"}",
        b'{"version": [' + b",".join([b"1" * 4_299] * 240) + b"]}",
        b"[" * 100_000 + b"]" * 100_000,
        b"[" + b"[]," * 300_000 + b"1]",
        b"[" + b"1.7976931348623157e308," * 45_000 + b"1]",
        b'"' * MIB,
        b'"' + b'\\"' * 500_000 + b'"',
        b" " * MIB,
        b'{"operations": NaN}',
    ],
)
async def test_no_batch_takes_a_long_answer(user: User, body: bytes) -> None:
    assert len(body) <= MIB
    began = time.perf_counter()
    response = await user.client.post(f"/api/{user.id}/batch", headers=user.headers, content=body)
    assert time.perf_counter() - began < 1, "it is 20 ms; a MiB of unknown fields used to be a second and 13 MB"
    assert response.status_code == 422
    assert len(response.content) < 10_000
    assert len(response.json()["detail"]) <= 21


async def test_what_is_wrong_with_all_operations_is_counted(user: User) -> None:
    unknown = {"a": 1, "b": 2, "c": 3}
    for number in (6, 7):
        response = await send(user, *[{"op": "delete", "id": str(uuid4())} | unknown] * number)
        entries = response.json()["detail"]
        assert [entry["loc"][2:] for entry in entries[:4]] == [[0, "a"], [0, "b"], [0, "c"], [1, "a"]]
        assert len(entries) == (18 if number == 6 else 21)
    assert entries[20] == {"loc": ["body"], "msg": "and 1 more", "type": "more"}


async def test_the_details_of_all_operations_are_bounded_together(user: User) -> None:
    fields = dict.fromkeys((f"{number:x}" for number in range(30)), 1)
    done = await results(user, *[create(**fields)] * 11, create(zzz=1, a=2), create(), atomic=False)
    assert [len(result["detail"]) for result in done[:-1]] == [21] * 10 + [2, 2]
    assert done[0]["detail"][20]["msg"] == "and 10 more"
    assert done[10]["detail"][1]["msg"] == "and 29 more"
    assert done[-1]["status"] == 201
    body = {"operations": [{"op": "create", "task": {f"is_complet{n:x}": 1 for n in range(100)}}] * 90, "atomic": False}
    began = time.perf_counter()
    response = await user.client.post(f"/api/{user.id}/batch", headers=user.headers, json=body)
    assert time.perf_counter() - began < 1
    assert len(response.content) < 100_000


async def test_the_largest_tasks_fit(user: User) -> None:
    done = await results(user, *[create(title="🎉" * 100, description="\u0001" * 500) for _ in range(100)])
    assert {result["task"]["title"] for result in done} == {"🎉" * 100}


async def test_another_user_s_batch_is_refused(user: User, other: User) -> None:
    headers = {"Authorization": f"Bearer {make_token(user.id)}"}
    response = await user.client.post(f"/api/{other.id}/batch", headers=headers, json={"operations": [create()]})
    assert response.status_code == 401


async def test_somebody_else_s_lock_ends_in_a_503_and_the_next_one_works(user: User, database_url: str) -> None:
    task = await user.create()
    before = await stored(database_url, user)
    connection: Any = await asyncpg.connect(database_url)
    async with connection.transaction():
        await connection.execute("select from tasks.account where user_id = $1 for update", user.id)
        waiting = [asyncio.create_task(send(user, create())) for _ in range(8)]
        other = User(f"user-{uuid4()}", user.client)
        assert (await asyncio.wait_for(results(other, create()), 2))[0]["status"] == 201, "only this user waits"
        answers = await asyncio.wait_for(asyncio.gather(*waiting), 5)
    await connection.close()
    assert {answer.status_code for answer in answers} == {503}
    assert await stored(database_url, user) == before
    assert (await results(user, create()))[0]["task"]["version"] == task["version"] + 1


async def test_versions_are_distinct_whatever_writes_at_once(user: User, database_url: str) -> None:
    chance = random.Random(5)  # noqa: S311
    ids = [str(uuid4()) for _ in range(8)]

    def operation() -> Json:
        made: Json = {"op": chance.choice(["create", "update", "complete", "delete", "restore"])}
        made["id"] = chance.choice(ids)
        if made["op"] in ("create", "update"):
            made["task"] = {"title": chance.choice("abc")}
        return made

    async def one() -> None:
        path = "/" + chance.choice(ids)
        match chance.randrange(6):
            case 0:
                response = await user.call("POST", json={"title": "x"})
            case 1:
                response = await user.call("PATCH", path, json={"title": chance.choice("abc")})
            case 2:
                response = await user.call("DELETE", path)
            case _:
                operations = [operation() for _ in range(chance.randint(1, 10))]
                options = {"atomic": chance.random() < 0.3, "dry_run": chance.random() < 0.1}
                response = await send(user, *operations, **options)
        assert response.status_code in (200, 201, 204, 404, 409), response.text

    async def many() -> None:
        for _ in range(25):
            await one()

    await asyncio.gather(*(many() for _ in range(8)))
    (account,), tasks, _ = await stored(database_url, user)
    counter = account[2]  # behind ctid and user_id
    version = 1 + [*Task.model_fields].index("version")
    versions = {task[version] for task in tasks}
    assert max(versions) <= counter
    assert len(versions) > 8
