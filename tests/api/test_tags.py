"""The tags of a user: which there are, and new names for them."""

import asyncio
import random
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import tags
from tests.conftest import Served, User, make_token

Json = dict[str, Any]


async def counted(user: User) -> list[tuple[str, int, int]]:
    response = await user.client.get(f"/api/{user.id}/tags", headers=user.headers)
    assert response.status_code == 200, response.text
    return [(one["tag"], one["tasks"], one["open"]) for one in response.json()]


async def renamed(user: User, old: Any, new: Any) -> Json:
    response = await rename(user, {"from": old, "to": new})
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    return answer


async def rename(user: User, body: Json) -> Any:
    return await user.client.post(f"/api/{user.id}/tags/rename", headers=user.headers, json=body)


async def undo(user: User, version: int) -> Any:
    return await user.client.post(f"/api/{user.id}/undo", headers=user.headers, json={"version": version})


async def tags_of(user: User, *tasks: Json) -> list[list[str]]:
    found = (await user.call("GET")).json() + (await user.call("GET", "?trashed=true")).json()
    by_id = {task["id"]: task["tags"] for task in found}
    return [by_id[task["id"]] for task in tasks]


# Which there are ------------------------------------------------------------------------------------------------------


async def test_the_tags_are_counted_most_used_first(user: User, other: User) -> None:
    assert await counted(user) == []
    await user.create(tags=["work", "Home"])
    await user.create(tags=["home"], status="completed")
    await user.create(tags=["home", "a", "B"], status="in_progress")
    await user.create()
    await other.create(tags=["home", "theirs"])
    assert await counted(user) == [("home", 3, 2), ("a", 1, 1), ("B", 1, 1), ("work", 1, 1)]


async def test_the_spelling_that_most_tasks_have_is_told(user: User) -> None:
    for spelling in ("STRASSE", "Straße", "Straße", "strasse"):
        await user.create(tags=[spelling])
    assert await counted(user) == [("Straße", 4, 4)]
    await user.create(tags=["strasse"])
    assert await counted(user) == [("Straße", 5, 5)], "of two that are used as often, the first by code points"


async def test_what_is_in_the_trash_does_not_count(user: User) -> None:
    task = await user.create(tags=["home"])
    await user.create(tags=["HOME"])
    await user.call("DELETE", f"/{task['id']}")
    assert await counted(user) == [("HOME", 1, 1)]
    await user.call("POST", f"/{task['id']}/restore")
    assert await counted(user) == [("HOME", 2, 2)]


async def test_the_tags_have_an_etag_as_a_list_has(user: User) -> None:
    path, version = f"/api/{user.id}/tags", 0
    for _ in range(2):
        response = await user.client.get(path, headers=user.headers)
        assert response.headers["ETag"] == f'W/"{version}"'
        for known in (f'W/"{version}"', f'"{version}"', "*"):
            unchanged = await user.client.get(path, headers=user.headers | {"If-None-Match": known})
            assert (unchanged.status_code, unchanged.content) == (304, b"")
        again = await user.client.get(path, headers=user.headers | {"If-None-Match": f'"{version + 1}"'})
        assert (again.status_code, again.json()) == (200, response.json())
        version = (await user.create(tags=["home"]))["version"]


# New names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "old", "new", "after"),
    [
        (["a", "x", "b"], "x", "y", ["a", "y", "b"]),
        (["x"], "X", "y", ["y"]),
        (["Straße", "b"], "STRASSE", "road", ["road", "b"]),
        (["a", "x", "b", "y"], "x", "y", ["a", "y", "b"]),  # both: once, in the first of the two places
        (["y", "a", "x"], "x", "y", ["y", "a"]),
        (["Y", "a", "x"], "x", "y", ["y", "a"]),  # as it is spelled here
        (["a", "x"], "x", None, ["a"]),
        (["x"], "x", None, []),
        (["a", "x"], "x", "X", ["a", "X"]),
        (["a", "x"], "X", "x", None),
        (["a", "X"], "x", "X", None),
        (["a"], "x", "y", None),
        (["a", "y"], "x", "y", None),
        ([], "x", "y", None),
        (["xx", "ax"], "x", "y", None),
        (["x"], " x ", "\u3000y\t", ["y"]),
        (["Café"], "cafe\u0301", "cafe\u0301s", ["cafés"]),
        ([*map(str, range(19)), "x"], "x", "y", [*map(str, range(19)), "y"]),
        (["x"], "x", "京" * 50, ["京" * 50]),
    ],
)
async def test_what_becomes_of_a_task(
    user: User, other: User, before: list[str], old: str, new: str | None, after: list[str] | None
) -> None:
    task, theirs = await user.create(tags=before), await other.create(tags=before)
    answer = await renamed(user, old, new)
    changed = (await user.call("GET", f"/{task['id']}")).json()
    if after is None:
        assert answer == {"version": None, "tasks": 0}
        assert changed == task
        assert (await user.call("GET")).headers["ETag"] == f'W/"{task["version"]}"', "no number was taken"
    else:
        assert answer == {"version": task["version"] + 1, "tasks": 1}
        assert changed == task | {"tags": after, "version": answer["version"], "updated_at": changed["updated_at"]}
        assert changed["updated_at"] > task["updated_at"]
    assert (await other.call("GET")).json() == [theirs]


async def test_a_user_who_never_wrote_has_nothing_to_rename(user: User) -> None:
    assert await renamed(user, "x", "y") == {"version": None, "tasks": 0}
    assert (await user.call("GET")).headers["ETag"] == 'W/"0"'


async def test_a_renaming_is_one_change_with_one_undo(user: User) -> None:
    tasks = [await user.create(tags=labels) for labels in (["x", "a"], ["X"], ["b", "x", "y"], ["y"])]
    answer = await renamed(user, "x", "y")
    assert answer == {"version": tasks[-1]["version"] + 1, "tasks": 3}
    assert await tags_of(user, *tasks) == [["y", "a"], ["y"], ["b", "y"], ["y"]]
    assert await counted(user) == [("y", 4, 4), ("a", 1, 1), ("b", 1, 1)]

    since = await user.client.get(f"/api/{user.id}/changes?since={tasks[-1]['version']}", headers=user.headers)
    assert {task["id"] for task in since.json()["tasks"]} == {task["id"] for task in tasks[:3]}
    entries = (await user.client.get(f"/api/{user.id}/history?limit=3", headers=user.headers)).json()
    assert {(entry["version"], entry["operation"]) for entry in entries} == {(answer["version"], "rename_tag")}
    told = {entry["task_id"]: (entry["before"], entry["after"]) for entry in entries}
    assert told[tasks[2]["id"]] == ({"tags": ["b", "x", "y"]}, {"tags": ["b", "y"]})

    undone = await undo(user, answer["version"])
    assert (undone.status_code, len(undone.json()["tasks"])) == (200, 3)
    assert await tags_of(user, *tasks) == [task["tags"] for task in tasks]
    redone = await undo(user, undone.json()["version"])
    assert redone.status_code == 200
    assert await tags_of(user, *tasks) == [["y", "a"], ["y"], ["b", "y"], ["y"]]


async def test_a_tag_that_was_changed_since_is_a_conflict(user: User) -> None:
    first, second = await user.create(tags=["x"]), await user.create(tags=["x"])
    answer = await renamed(user, "x", "y")
    await user.call("PATCH", f"/{second['id']}", json={"tags": ["z"]})
    undone = await undo(user, answer["version"])
    assert (undone.status_code, undone.json()["conflicts"]) == (409, [{"task_id": second["id"], "fields": ["tags"]}])
    assert await tags_of(user, first, second) == [["y"], ["z"]]


async def test_a_renaming_reaches_into_the_trash_and_so_does_its_undo(user: User) -> None:
    """Else a task that is restored would bring the old tag back."""
    live, gone = await user.create(tags=["x"]), await user.create(tags=["x"])
    await user.call("DELETE", f"/{gone['id']}")
    answer = await renamed(user, "x", "y")
    assert answer["tasks"] == 2
    assert await tags_of(user, live, gone) == [["y"], ["y"]]
    undone = await undo(user, answer["version"])
    assert undone.status_code == 200, undone.text
    assert await tags_of(user, live, gone) == [["x"], ["x"]]
    redone = await undo(user, undone.json()["version"])
    assert redone.status_code == 200, redone.text
    assert await tags_of(user, live, gone) == [["y"], ["y"]]
    await user.call("POST", f"/{gone['id']}/restore")
    assert await counted(user) == [("y", 2, 2)]

    await user.call("DELETE", f"/{gone['id']}")  # since then, so the task is not as the change has left it
    conflict = await undo(user, redone.json()["version"])
    assert (conflict.status_code, conflict.json()["conflicts"]) == (
        409,
        [{"task_id": gone["id"], "fields": ["deleted_at"]}],
    )


NAMES = ("a", "A", "b", "B", "straße", "STRASSE", "É", "é", "c")


def model(labels: list[str], old: str, new: str | None) -> list[str]:
    """Returns what becomes of a task's tags."""
    if tags.key(old) not in map(tags.key, labels):
        return labels
    named = {tags.key(old), *([] if new is None else [tags.key(new)])}
    replaced = [new if tags.key(label) in named else label for label in labels]
    return [label for label in dict.fromkeys(replaced) if label is not None]


def unlike(labels: list[str]) -> list[str]:
    return [*{tags.key(label): label for label in labels}.values()]


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.address, timeout=20) as opened:
        yield opened


@settings(max_examples=80, derandomize=True, database=None, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    renamings=st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from((*NAMES, None))), min_size=1, max_size=5),
)
def test_any_renamings_do_what_the_model_says(
    http: httpx.Client, seed: int, renamings: list[tuple[str, str | None]]
) -> None:
    user, dice = f"renaming-{uuid4()}", random.Random(seed)  # noqa: S311  (the same tasks each time)
    headers = {"Authorization": f"Bearer {make_token(user)}"}

    def call(method: str, path: str, **options: Any) -> Any:
        response = http.request(method, f"/api/{user}/{path}", headers=headers, **options)
        assert response.is_success, response.text
        return response.json()

    def stored() -> dict[str, list[str]]:
        return {task["id"]: task["tags"] for task in call("GET", "tasks")}

    for number in range(4):
        labels = unlike(dice.sample(NAMES, dice.randrange(6)))
        call("POST", "tasks", json={"title": f"Task {number}", "tags": labels})
    state = stored()
    states: list[tuple[int, dict[str, list[str]]]] = []  # what was, before the change with this number
    for old, new in renamings:
        after = {task_id: model(labels, old, new) for task_id, labels in state.items()}
        changed = sum(after[task_id] != state[task_id] for task_id in state)
        answer = call("POST", "tags/rename", json={"from": old, "to": new})
        assert answer["tasks"] == changed
        assert (answer["version"] is None) is (changed == 0)
        if changed:
            states.append((answer["version"], state))
        state = after
        assert stored() == state
    for version, before in reversed(states):
        call("POST", "undo", json={"version": version})
        assert stored() == before


@pytest.mark.parametrize(
    ("body", "field", "accepts"),
    [
        ({"to": "y"}, "from", "required"),
        ({"from": "x"}, "to", "required"),
        ({"from": None, "to": "y"}, "from", "string"),
        ({"from": "", "to": "y"}, "from", "1 to 50 characters"),
        ({"from": "x,y", "to": "y"}, "from", "without commas"),
        ({"from": "x" * 51, "to": "y"}, "from", "1 to 50 characters"),
        ({"from": "x", "to": " \u3000"}, "to", "1 to 50 characters"),
        ({"from": "x", "to": "a,b"}, "to", "without commas"),
        ({"from": "x", "to": "y" * 51}, "to", "1 to 50 characters"),
        ({"from": "x", "to": "y\0"}, "to", "1 to 50 characters"),
        ({"from": "x", "to": 7}, "to", "string"),
        ({"from": "x", "to": ["y"]}, "to", "string"),
        ({"from": "x", "to": "y", "old": "z"}, "old", "known are from, to"),
    ],
)
async def test_a_wrong_body_is_refused_with_what_would_be_right(
    user: User, body: Json, field: str, accepts: str
) -> None:
    await user.create(tags=["x"])
    response = await rename(user, body)
    assert response.status_code == 422
    (entry,) = response.json()["detail"]
    assert entry["loc"] == ["body", field]
    assert accepts in entry["msg"]
    assert await counted(user) == [("x", 1, 1)]


async def test_no_parameter_is_taken(user: User) -> None:
    for method, path in (("GET", "tags"), ("POST", "tags/rename")):
        response = await user.client.request(
            method, f"/api/{user.id}/{path}?q=x", headers=user.headers, json={"from": "x", "to": "y"}
        )
        assert (response.status_code, response.json()["detail"][0]["loc"]) == (422, ["query", "q"])


async def test_who_waits_for_a_change_hears_of_it_at_once(user: User) -> None:
    task = await user.create(tags=["x"])
    path = f"/api/{user.id}/changes?since={task['version']}&wait=20"
    waiting = asyncio.create_task(user.client.get(path, headers=user.headers))
    await asyncio.sleep(0.2)
    start = time.monotonic()
    answer = await renamed(user, "x", "y")
    page = (await waiting).json()
    assert time.monotonic() - start < 0.8, "sooner than another process would hear of it"
    assert (page["version"], [one["tags"] for one in page["tasks"]]) == (answer["version"], [["y"]])


async def test_ten_thousand_tasks_are_renamed_and_taken_back_in_time(user: User, database_url: str) -> None:
    connection: Any = await asyncpg.connect(database_url)
    await connection.execute("insert into tasks.account values ($1, 10000)", user.id)
    await connection.execute(
        "insert into tasks.task (id, user_id, title, version, tags)"
        " select gen_random_uuid(), $1, 'x', n, array['a', 'x', 'b' || n % 50] from generate_series(1, 10000) n",
        user.id,
    )
    answer = await renamed(user, "X", "y")
    assert answer == {"version": 10_001, "tasks": 10_000}
    assert (await counted(user))[:2] == [("a", 10_000, 10_000), ("y", 10_000, 10_000)]
    await connection.close()
    undone = await undo(user, answer["version"])
    assert (undone.status_code, len(undone.json()["tasks"])) == (200, 10_000)
    assert (await counted(user))[:2] == [("a", 10_000, 10_000), ("x", 10_000, 10_000)]
