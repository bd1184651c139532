"""Writes that lose nothing: If-Match, retries with a key, and the way back from the trash."""

import asyncio
import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from tests.conftest import Served, User, eventually, serving
from tests.processes import external

RACES = 1000

# Every route that changes a task, with a body that makes a difference, and what its success is.
CHANGES: tuple[tuple[str, str, dict[str, Any] | None, int], ...] = (
    ("PUT", "", {"title": "Changed"}, 200),
    ("PATCH", "", {"title": "Changed"}, 200),
    ("PATCH", "/complete", None, 200),
    ("PATCH", "/complete", {"is_completed": True}, 200),
    ("DELETE", "", None, 204),
    ("POST", "/restore", None, 200),
)


def options(body: dict[str, Any] | None, **headers: str) -> dict[str, Any]:
    return {"headers": headers} | ({} if body is None else {"json": body})


async def prepared(user: User, rest: str) -> dict[str, Any]:
    """Returns a new task, which is in the trash when it is to be restored; its version is the current one."""
    task = await user.create()
    if rest == "/restore":
        assert (await user.call("DELETE", f"/{task['id']}")).status_code == 204
        task["version"] += 1
    return task


# If-Match -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "rest", "body", "success"), CHANGES)
async def test_a_change_is_made_only_to_the_version_that_it_names(
    user: User, method: str, rest: str, body: dict[str, Any] | None, success: int
) -> None:
    task = await prepared(user, rest)
    version = task["version"]
    huge = "9" * 400
    for stale in (f'"{version - 1}"', f'"{version + 1}"', f'"{huge}"', '"0"', f'"{version + 1}", "{huge}"'):
        response = await user.call(method, f"/{task['id']}{rest}", **options(body, **{"If-Match": stale}))
        assert (response.status_code, response.json()) == (412, {"detail": "Task has changed"})
        assert response.headers["ETag"] == f'"{version}"'
    response = await user.call(method, f"/{task['id']}{rest}", **options(body, **{"If-Match": f'"{version}"'}))
    assert response.status_code == success, "the refused ones have changed nothing, the counter included"
    if success == 200:
        assert response.json()["version"] == version + 1
        assert response.headers["ETag"] == f'"{version + 1}"'


@pytest.mark.parametrize(
    "listed",
    [
        *("*", " * ", '"0", "{}"', '"{}"  ,\t"9"', '"7","{}"', 'W/"{}"', 'W/"0" , W/"{}"', '"{}-gzip"', 'W/"{}-gzip"'),
        *(
            '"{}-br"',
            '"{}--gzip"',
            '"{};br"',
            '"{}-gzip-gzip"',
            '"{}:zstd"',
            '"x", "{}-deflate"',
            '"{}-GZIP"',
            '"{}/x-gzip"',
        ),
    ],
)
@pytest.mark.parametrize(("method", "rest", "body", "success"), CHANGES)
async def test_any_task_and_any_of_several_versions_match(
    user: User, method: str, rest: str, body: dict[str, Any] | None, success: int, listed: str
) -> None:
    task = await prepared(user, rest)
    header = listed.replace("{}", str(task["version"]))
    response = await user.call(method, f"/{task['id']}{rest}", **options(body, **{"If-Match": header}))
    assert response.status_code == success


@pytest.mark.parametrize(
    "header", ["", " ", "7", "abc", '"1" "2"', '"1",', '*, "1"', "W/1", 'w/"1"', '"a b"', '"1"-gzip', '"', '"1', "\x7f"]
)
@pytest.mark.parametrize(("method", "rest", "body", "success"), CHANGES)
async def test_an_if_match_that_is_no_list_of_versions_is_refused(
    user: User, method: str, rest: str, body: dict[str, Any] | None, success: int, header: str
) -> None:
    task = await prepared(user, rest)
    sent: Any = {b"If-Match": header.encode()}
    headers = {name.encode(): value.encode() for name, value in user.headers.items()} | sent
    extra: dict[str, Any] = {} if body is None else {"json": body}
    response = await user.client.request(method, f"{user.tasks}/{task['id']}{rest}", headers=headers, **extra)
    assert response.status_code == 422
    (entry,) = response.json()["detail"]
    assert entry["loc"] == ["header", "If-Match"]
    assert entry["msg"].startswith('Should be * or quoted versions like "7" or "7", "9", not "')
    assert (await user.create())["version"] == task["version"] + 1


@pytest.mark.parametrize(("method", "rest", "body", "success"), CHANGES)
async def test_a_tag_that_is_no_version_matches_nothing(
    user: User, method: str, rest: str, body: dict[str, Any] | None, success: int
) -> None:
    task = await prepared(user, rest)
    version = task["version"]
    extra: dict[str, Any] = {} if body is None else {"json": body}
    several = ", ".join(f'"{version}-{number}"' for number in range(1_500))
    for tag in (
        *('"abc"', '""', '"-1"', '"١"', '"*"', f'"0{version}"', f'"{version}x"', f'"{version}-"', f'"{version}-x"'),
        *(
            f'"-gzip{version}"',
            f'"{version}gzip"',
            f'"{version} -gzip"'.replace(" ", "---"),
            f'"{version}0-gzip"',
            several,
        ),
    ):
        headers = {name.encode(): value.encode() for name, value in user.headers.items()} | {b"If-Match": tag.encode()}
        response = await user.client.request(method, f"{user.tasks}/{task['id']}{rest}", headers=headers, **extra)
        assert (response.status_code, response.json()) == (412, {"detail": "Task has changed"}), tag
        assert response.headers["ETag"] == f'"{version}"'
    assert (await user.create())["version"] == version + 1


@pytest.mark.parametrize(("method", "rest", "body", "success"), CHANGES)
async def test_a_task_that_is_missing_is_a_404_whatever_if_match_says(
    user: User, other: User, method: str, rest: str, body: dict[str, Any] | None, success: int
) -> None:
    theirs = await prepared(other, rest)
    for header in ("*", f'"{theirs["version"]}"', '"99"'):
        for task_id in (uuid4(), theirs["id"]):
            response = await user.call(method, f"/{task_id}{rest}", **options(body, **{"If-Match": header}))
            assert (response.status_code, response.json()) == (404, {"detail": "Task not found"})


async def test_a_stale_version_is_refused_even_when_nothing_would_change(user: User) -> None:
    task = await user.create()
    path = f"/{task['id']}"
    for body in ({}, {"title": task["title"]}):
        assert (await user.call("PATCH", path, json=body, headers={"If-Match": '"9"'})).status_code == 412
        etag = f'"{task["version"]}"'
        response = await user.call("PATCH", path, json=body, headers={"If-Match": etag})
        assert (response.status_code, response.json(), response.headers["ETag"]) == (200, task, etag)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, database_url: str) -> Iterator[tuple[Served, Served]]:
    """Two services as processes of their own, on one database."""
    folder: Path = tmp_path_factory.mktemp("two")
    quiet = external(database_url) | {"LOG_LEVEL": "warning"}
    with serving(folder, **quiet) as first, serving(folder, **quiet) as second:
        yield first, second


async def test_of_two_writers_with_one_version_exactly_one_wins(two: tuple[Served, Served], user: User) -> None:
    task = await user.create()
    async with (
        httpx.AsyncClient(base_url=two[0].address, headers=user.headers, timeout=20) as first,
        httpx.AsyncClient(base_url=two[1].address, headers=user.headers, timeout=20) as second,
    ):
        wins = [0, 0]
        for version in range(task["version"], task["version"] + RACES):
            writers = (first, second) if version % 2 else (second, first)
            answers = await asyncio.gather(
                *(
                    writer.patch(
                        f"{user.tasks}/{task['id']}",
                        json={"title": f"{version} by {number}"},
                        headers={"If-Match": f'"{version}"'},
                    )
                    for number, writer in enumerate(writers)
                )
            )
            assert sorted(answer.status_code for answer in answers) == [200, 412]
            assert {answer.headers["ETag"] for answer in answers} == {f'"{version + 1}"'}
            winner = next(number for number, answer in enumerate(answers) if answer.status_code == 200)
            assert answers[winner].json()["title"] == f"{version} by {winner}"
            wins[writers[winner] is second] += 1
    assert min(wins) > 0, "it was a race"
    assert (await user.create())["version"] == task["version"] + RACES + 1


# Idempotency-Key ------------------------------------------------------------------------------------------------------


async def test_a_key_makes_one_task_and_gives_the_first_answer_again(user: User) -> None:
    key = {"Idempotency-Key": "!" + "~" * 254}
    first = await user.call("POST", json={"title": "Buy milk", "priority": "high"}, headers=key)
    task = first.json()
    assert (first.status_code, "Idempotent-Replayed" in first.headers) == (201, False)
    await user.call("PATCH", f"/{task['id']}", json={"title": "Changed since"})
    for body in ({"title": "Buy milk", "priority": "high"}, {"priority": "high", "title": " Buy milk "}):
        again = await user.call("POST", json=body, headers=key)
        assert (again.status_code, again.content) == (201, first.content)
        assert again.headers["Idempotent-Replayed"] == "true"
        for name in ("Location", "ETag"):
            assert again.headers[name] == first.headers[name]
    await user.call("DELETE", f"/{task['id']}")
    assert (await user.call("POST", json={"title": "Buy milk", "priority": "high"}, headers=key)).json() == task
    assert (await user.create())["version"] == task["version"] + 3, "a replay takes no number"


async def test_twenty_creates_with_one_key_at_once_make_one_task(user: User, two: tuple[Served, Served]) -> None:
    async with httpx.AsyncClient(headers=user.headers | {"Idempotency-Key": "one"}, timeout=20) as client:
        for chosen in ({}, {"id": str(uuid4())}):
            client.headers["Idempotency-Key"] = str(uuid4())
            answers = await asyncio.gather(
                *(
                    client.post(two[number % 2].address + user.tasks, json={"title": "Buy milk"} | chosen)
                    for number in range(20)
                )
            )
            assert {answer.status_code for answer in answers} == {201}
            assert (
                len({(answer.content, answer.headers["Location"], answer.headers["ETag"]) for answer in answers}) == 1
            )
            assert sum("Idempotent-Replayed" not in answer.headers for answer in answers) == 1
    newest, oldest = (await user.call("GET")).json()
    assert newest["version"] == oldest["version"] + 1
    assert (await user.create())["version"] == oldest["version"] + 2


async def test_another_request_with_the_same_key_is_refused(user: User) -> None:
    key = {"Idempotency-Key": "k"}
    task = (await user.call("POST", json={"title": "Buy milk"}, headers=key)).json()
    for body in ({"title": "Sell milk"}, {"title": "Buy milk", "priority": "high"}, {"title": "x", "id": task["id"]}):
        response = await user.call("POST", json=body, headers=key)
        assert response.status_code == 422
        (entry,) = response.json()["detail"]
        assert entry["loc"] == ["header", "Idempotency-Key"]
        assert "Another request was sent with this key" in entry["msg"]
    assert (await user.call("GET")).json() == [task]


async def test_a_create_that_fails_leaves_its_key_free(user: User) -> None:
    task = await user.create()
    key = {"Idempotency-Key": "k"}
    assert (await user.call("POST", json={"title": "x", "id": task["id"]}, headers=key)).status_code == 409
    assert (await user.call("POST", json={"title": ""}, headers=key)).status_code == 422
    created = await user.call("POST", json={"title": "x"}, headers=key)
    assert (created.status_code, created.json()["version"]) == (201, task["version"] + 1)


async def test_the_keys_of_two_users_never_meet(user: User, other: User) -> None:
    key = {"Idempotency-Key": "k"}
    mine = await user.call("POST", json={"title": "Mine"}, headers=key)
    theirs = await other.call("POST", json={"title": "Theirs"}, headers=key)
    for response, owner in ((mine, user), (theirs, other)):
        assert (response.status_code, response.json()["user_id"]) == (201, owner.id)
        assert "Idempotent-Replayed" not in response.headers


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"a b", b"a\tb", b"\x7f", b"\x1f", "é".encode(), b"a\x00"])
async def test_a_key_that_is_too_long_or_not_visible_is_refused(user: User, key: bytes) -> None:
    headers: Any = {name.encode(): value.encode() for name, value in user.headers.items()} | {b"Idempotency-Key": key}
    response = await user.client.post(user.tasks, json={"title": "x"}, headers=headers)
    assert response.status_code == 422
    (entry,) = response.json()["detail"]
    assert entry["loc"] == ["header", "Idempotency-Key"]
    assert entry["msg"].startswith("Should be 1 to 255 visible ASCII characters, not ")
    assert (await user.call("GET")).headers["ETag"] == 'W/"0"', "nothing was made"


async def test_a_key_that_is_sent_twice_is_refused(user: User) -> None:
    headers = [*user.headers.items(), ("Idempotency-Key", "a"), ("Idempotency-Key", "a")]
    response = await user.client.post(user.tasks, json={"title": "x"}, headers=headers)
    assert response.json()["detail"][0]["msg"] == "Should be sent once"


async def test_a_retry_after_a_cut_connection_gets_the_first_answer(user: User, served: Served) -> None:
    body = json.dumps({"title": "Buy milk"}).encode()
    head = f"POST {user.tasks} HTTP/1.1\r\nHost: x\r\nIdempotency-Key: cut\r\nContent-Length: {len(body)}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in user.headers.items())
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(head.encode() + b"\r\n" + body)
    # the answer had nobody to go to

    async def tasks() -> Any:
        return (await user.call("GET")).json()

    await eventually(tasks)
    (task,) = await tasks()
    again = await user.call("POST", json={"title": "Buy milk"}, headers={"Idempotency-Key": "cut"})
    assert (again.status_code, again.json(), again.headers["Idempotent-Replayed"]) == (201, task, "true")
    assert await tasks() == [task]


# The trash ------------------------------------------------------------------------------------------------------------


async def test_a_task_comes_back_from_the_trash_as_it_was(user: User, other: User) -> None:
    task = await user.create(title="Buy milk", description="Two litres", status="completed", priority="high")
    path = f"/{task['id']}"
    await user.call("DELETE", path)
    (trashed,) = (await user.call("GET", params={"trashed": "true"})).json()
    for method, rest, body, _ in CHANGES[:-1]:
        assert (await user.call(method, path + rest, **options(body))).status_code == 404
    assert (await user.call("GET", path)).status_code == 404
    assert (await user.call("POST", json={"title": "x", "id": task["id"]})).status_code == 409
    assert (await other.call("POST", path + "/restore")).status_code == 404

    restored = await user.call("POST", path + "/restore")
    version = task["version"] + 2
    assert (restored.status_code, restored.headers["ETag"]) == (200, f'"{version}"')
    moved = {"version": version, "updated_at": restored.json()["updated_at"]}
    assert restored.json() == task | moved
    assert moved["updated_at"] > trashed["updated_at"]
    assert (await user.call("GET", path)).json() == restored.json()
    assert (await user.call("GET", params={"trashed": "true"})).json() == []
    assert (await user.call("POST", path + "/restore")).status_code == 404, "it is not in the trash"
    assert (await user.create())["version"] == version + 1


async def test_simultaneous_restores_find_the_task_once(user: User) -> None:
    task = await prepared(user, "/restore")
    answers = await asyncio.gather(*(user.call("POST", f"/{task['id']}/restore") for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] + [404] * 19
    assert (await user.create())["version"] == task["version"] + 2


# Numbers --------------------------------------------------------------------------------------------------------------


async def some_write(
    client: httpx.AsyncClient, tasks: str, task_id: str, chance: random.Random, first: int
) -> httpx.Response:
    """Calls one of the routes that write, with or without its header, which names one of the first hundred versions."""
    path, title = f"{tasks}/{task_id}", f"{chance.randrange(3)}"
    headers = chance.choice([{}, {"If-Match": "*"}, {"If-Match": f'"{first + chance.randrange(100)}"'}])
    operations = [{"op": "update", "id": task_id, "task": {"title": title}}, {"op": "delete", "id": task_id}]
    method, url, body = chance.choice(
        [
            ("POST", tasks, {"id": task_id, "title": title}),
            ("PUT", path, {"title": title}),
            ("PATCH", path, {"title": title}),
            ("PATCH", path + "/complete", None),
            ("PATCH", path + "/complete", {"is_completed": True}),
            ("DELETE", path, None),
            ("POST", path + "/restore", None),
            ("POST", tasks.removesuffix("tasks") + "batch", {"atomic": False, "operations": operations}),
        ]
    )
    if url == tasks:
        headers = chance.choice([{}, {"Idempotency-Key": title}])
    answer = await client.request(method, url, **options(body, **headers))
    assert answer.status_code in (200, 201, 204, 404, 409, 412, 422), answer.text
    return answer


def numbers_of(answer: httpx.Response) -> set[int]:
    """Returns the numbers that the answer gives: its change's, or those of the tasks when nothing has changed."""
    if answer.request.url.path.endswith("/batch"):
        body = answer.json()
        return (
            {body["version"]}
            if body["version"]
            else {one["task"]["version"] for one in body["results"] if "task" in one}
        )
    return {int(answer.headers["ETag"].strip('"'))} if answer.is_success else set()


@pytest.mark.parametrize("seed", range(3))
async def test_every_write_takes_one_number_and_a_reader_misses_none(
    user: User, two: tuple[Served, Served], database_url: str, seed: int
) -> None:
    first: int = (await user.create())["version"]
    ids = [str(uuid4()) for _ in range(6)]
    given: set[int] = set()  # the versions that writes were answered with
    seen: dict[int, str] = {}

    async def write(client: httpx.AsyncClient, chance: random.Random) -> None:
        for _ in range(60):
            answer = await some_write(client, user.tasks, chance.choice(ids), chance, first)
            given.update(numbers_of(answer))

    reader: Any = await asyncpg.connect(database_url)

    async def read() -> None:
        query = "select version, id::text from tasks.task where user_id = $1 and version > $2 order by version"
        for row in await reader.fetch(query, user.id, max(seen, default=0)):
            seen[row["version"]] = row["id"]

    async def keep_reading() -> None:
        while not is_done.is_set():
            await read()

    is_done = asyncio.Event()
    polling = asyncio.create_task(keep_reading())
    clients = [httpx.AsyncClient(base_url=one.address, headers=user.headers, timeout=20) for one in two for _ in "12"]
    try:
        # the same numbers for the same seed; nothing is to be kept secret
        await asyncio.gather(*(write(one, random.Random(f"{seed} {n}")) for n, one in enumerate(clients)))  # noqa: S311
    finally:
        is_done.set()
        await polling
        for one in clients:
            await one.aclose()
    await read()
    rows = await reader.fetch("select id::text, version from tasks.task where user_id = $1", user.id)
    counter = await reader.fetchval("select version from tasks.account where user_id = $1", user.id)
    await reader.close()
    versions = [row["version"] for row in rows]
    assert len(set(versions)) == len(versions), "of two changes, one of these batches never touches two tasks"
    assert max(versions) == counter, "no number is above the counter, and none was taken for nothing"
    assert given - {first} == set(range(first + 1, counter + 1)), "each change has its own number"
    assert {row["version"]: row["id"] for row in rows}.items() <= seen.items(), "the reader has the last of each task"
