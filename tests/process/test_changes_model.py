"""The model of the feed: whatever is written at random, every page is what the tables say, byte for byte.

Writers use two processes: single writes, batches that fail or not, restores, undo, the purge with zero days, and that
of history. Readers poll, wait, or read streams, with pages of any size, on connections that are cut; one process is
restarted meanwhile. A trigger keeps what the tables were at each number, and the model makes each page from that.
"""

import json
import random
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest

from service.db.address import parse_address
from service.db.migrations import migrate
from tests.conftest import Served, empty_database, make_token, serving
from tests.feed import Stream, apply, counter_in, erase_trash, task_texts, tasks_in
from tests.processes import external, free_port, stop

pytestmark = pytest.mark.slow

SECONDS = 9  # of writing
IDS = 25  # of a user's tasks: few, so that changes meet
STREAM_PAGE = 500  # tasks

RECORDER = """
create table tasks.recorded (place bigserial, user_id text, version bigint, task_id uuid, task text);
create table tasks.floors (user_id text, erased_floor bigint);
create function tasks.record() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' then -- the purge takes its number afterwards, with the account locked
        insert into tasks.recorded (user_id, version, task_id)
        select user_id, version + 1, old.id from tasks.account where user_id = old.user_id;
    else
        insert into tasks.recorded (user_id, version, task_id, task)
        values (new.user_id, new.version, new.id, row_to_json(new)::text);
    end if;
    return null;
end
$$;
create function tasks.record_floor() returns trigger language plpgsql as $$
begin
    insert into tasks.floors values (new.user_id, new.erased_floor);
    return null;
end
$$;
create trigger record after insert or update or delete on tasks.task for each row execute function tasks.record();
create trigger record after update on tasks.account for each row
when (old.erased_floor <> new.erased_floor) execute function tasks.record_floor();
"""


class Model:
    """What a user's tables were at each number."""

    def __init__(self, url: str, user: str) -> None:
        self.numbers = [0]
        self._tasks: list[dict[str, tuple[int, str]]] = [{}]
        self._erased: list[dict[str, int]] = [{}]
        with psycopg.connect(url) as connection:
            rows = connection.execute(
                "select version, task_id::text, task from tasks.recorded where user_id = %s order by version, place",
                [user],
            ).fetchall()
            floors = connection.execute("select erased_floor from tasks.floors where user_id = %s", [user]).fetchall()
        self.floors = [0, *(floor for (floor,) in floors)]
        for version, task_id, task in rows:
            if version > self.numbers[-1]:
                self.numbers.append(version)
                self._tasks.append(self._tasks[-1].copy())
                self._erased.append(self._erased[-1].copy())
            if task is None:
                del self._tasks[-1][task_id]
                self._erased[-1][task_id] = version
            else:
                self._tasks[-1][task_id] = version, task
                self._erased[-1].pop(task_id, None)

    def tasks(self, number: int) -> dict[str, str]:
        """Returns the tasks as they were after this change."""
        return {task_id: task for task_id, (_, task) in self._tasks[self._at(number)].items()}

    def page(self, since: int, limit: int, counter: int, floor: int) -> str:
        """Returns the page that is right when this is the counter, and erased tasks are told beyond this floor."""
        tasks, erased = self._tasks[self._at(counter)], self._erased[self._at(counter)]
        rows = sorted((version, task_id) for task_id, (version, _) in tasks.items() if version > since)
        old = sum(version <= floor for version, _ in rows) if since == 0 else 0
        if since > 0:
            rows = sorted(rows + [(version, task_id) for task_id, version in erased.items() if version > since])
        limit = max(limit, old)
        found = [row for row in rows if len(rows) <= limit or row[0] <= rows[limit - 1][0]]
        is_followed = len(found) < len(rows)
        return _compared(
            max(found[-1][0], floor) if is_followed else counter,
            is_followed,
            {task_id: tasks[task_id][1] for _, task_id in found if task_id in tasks},
            [task_id for _, task_id in found if task_id not in tasks],
        )

    def counters(self, first: int, last: int) -> list[int]:
        """Returns the numbers from the one to the other."""
        return self.numbers[self._at(first) : self._at(last) + 1]

    def _at(self, number: int) -> int:
        return bisect_right(self.numbers, number) - 1


def _compared(version: int, has_more: bool, tasks: dict[str, str], erased: list[str]) -> str:
    return json.dumps([version, has_more, [*tasks.items()], erased])


@dataclass
class Page:
    """A page as a reader has had it, and its copy with it."""

    kind: str
    since: int
    limit: int
    text: str
    copy: int  # its hash
    counter: int | None  # None when it is not told

    @property
    def told(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.text)
        return told

    def is_right(self, model: Model, latest: int) -> bool:
        """Whether it is what the model says, for a counter of at most `latest`; and the copy, if it is whole."""
        told = self.told
        if not told["has_more"] and self.copy != hashed(model.tasks(told["version"])):
            return False
        shown = _compared(told["version"], told["has_more"], task_texts(self.text), told["erased"])
        counters = model.counters(told["version"], latest) if self.counter is None else [self.counter]
        return any(
            shown == model.page(self.since, self.limit, counter, floor)
            for counter in counters
            for floor in (model.floors if self.since == 0 else [0])
        )


def hashed(copy: dict[str, str]) -> int:
    return hash(frozenset(copy.items()))


@dataclass
class World:
    """What writers and readers share."""

    url: str
    users: list[str]
    ports: list[int]
    headers: dict[str, dict[str, str]]
    is_over: threading.Event = field(default_factory=threading.Event)
    numbers: list[tuple[str, int]] = field(default_factory=list)  # of changes that may be undone
    done: Counter[str] = field(default_factory=Counter)

    def address(self, dice: random.Random, user: str) -> str:
        return f"http://127.0.0.1:{dice.choice(self.ports)}/api/{user}"


class Part(threading.Thread):
    """A thread whose failure is kept."""

    def __init__(self, world: World, seed: str) -> None:
        super().__init__()
        self.world, self.dice = world, random.Random(seed)  # noqa: S311  (the same each time)
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self.failure = error

    def work(self) -> None:
        raise NotImplementedError


class Writer(Part):
    """Does anything."""

    def work(self) -> None:
        while not self.world.is_over.is_set():
            user = self.dice.choice(self.world.users)
            with httpx.Client(headers=self.world.headers[user], timeout=10) as http, suppress(httpx.TransportError):
                for _ in range(20):
                    self._write(http, self.world.address(self.dice, user), user)
            if self.dice.random() < 0.3:
                self.world.done["purge"] += erase_trash(self.world.url, user)
            if self.dice.random() < 0.1:
                self._forget(user)

    def _write(self, http: httpx.Client, url: str, user: str) -> None:
        task_id = self._id(user)
        match self.dice.randrange(10):
            case 0 | 1:
                response = http.post(f"{url}/tasks", json={"id": task_id, "title": 'Made 🎉 "\n'})
            case 2 | 3:
                response = http.put(f"{url}/tasks/{task_id}", json={"title": f"{self.dice.randrange(5)}"})
            case 4:
                response = http.patch(f"{url}/tasks/{task_id}/complete")
            case 5:
                response = http.delete(f"{url}/tasks/{task_id}")
            case 6:
                response = http.post(f"{url}/tasks/{task_id}/restore")
            case 7 | 8:
                body = {"operations": [*self._operations(user)], "atomic": self.dice.random() < 0.5}
                response = http.post(f"{url}/batch", json=body)
            case _:
                mine = [number for of, number in self.world.numbers[-200:] if of == user]
                response = http.post(f"{url}/undo", json={"version": self.dice.choice(mine or [1])})
        assert response.status_code < 500 or response.status_code == 503, response.text
        self.world.done[f"{response.request.url.path.split('/')[3]} {response.status_code}"] += 1
        if response.status_code in (200, 201) and (version := response.json().get("version")):
            self.world.numbers.append((user, version))

    def _operations(self, user: str) -> Iterator[dict[str, Any]]:
        for _ in range(self.dice.choice([1, 2, 3, 12])):
            task_id = self._id(user)
            match self.dice.randrange(4):
                case 0:
                    yield {"op": "create", "task": {"id": task_id, "title": "In a batch"}}
                case 1:
                    yield {"op": "update", "id": task_id, "task": {"title": f"{self.dice.random()}"}}
                case 2:
                    yield {"op": "complete", "id": task_id}
                case 3:
                    yield {"op": self.dice.choice(["delete", "restore"]), "id": task_id}

    def _id(self, user: str) -> str:
        return str(UUID(int=self.world.users.index(user) * 1000 + self.dice.randrange(IDS)))

    def _forget(self, user: str) -> None:
        """Erases history, and sometimes what was told of erased tasks, as 30 and 400 days would."""
        erased = "now()" if self.dice.random() < 0.3 else "now() - interval '400 days'"
        with psycopg.connect(self.world.url) as connection:
            connection.execute(f"select tasks.purge_changes(%s, '5s', now(), {erased}, 1000)".encode(), [user])


class Reader(Part):
    """Keeps a copy, in one of the three ways."""

    def __init__(self, world: World, seed: str, kind: str, user: str) -> None:
        super().__init__(world, seed)
        self.kind, self.user = kind, user
        self.pages: list[Page] = []
        self.since = 0
        self.copy: dict[str, str] = {}
        self.gone: list[int] = []  # numbers that could not be served
        self.target: int | None = None  # to be reached in the end

    def work(self) -> None:
        while self.target is None or self.since < self.target:
            if self.dice.random() < 0.03:
                self._start_again()
            with suppress(OSError, httpx.TransportError):
                self._read_stream() if self.kind == "stream" else self._read_page()

    def _start_again(self) -> None:
        self.since, self.copy = 0, {}

    def _take(self, limit: int, text: str, counter: int | None) -> None:
        since, told = self.since, apply(self.copy, text)
        self.since = told["version"]
        if counter is None and not told["has_more"]:
            counter = self.since
        self.pages.append(Page(self.kind, since, limit, text, hashed(self.copy), counter))

    def _read_page(self) -> None:
        limit = self.dice.choice([1, 2, 3, 7, 500])
        query = {"since": self.since, "limit": limit} | ({"wait": 1} if self.kind == "long poll" else {})
        url = f"{self.world.address(self.dice, self.user)}/changes"
        response = httpx.get(url, headers=self.world.headers[self.user], params=query, timeout=10)
        if response.status_code == 410:
            self.gone.append(self.since)
            self._start_again()
        elif response.status_code != 503:
            assert response.status_code == 200, response.text
            counter = int(response.headers["ETag"].removeprefix('W/"').removesuffix('"'))
            self._take(limit, response.text, counter)
        if self.kind == "poll":
            time.sleep(self.dice.random() * 0.05)

    def _read_stream(self) -> None:
        query, headers = f"?since={self.since}", self.world.headers[self.user]
        if self.dice.random() < 0.5:
            query, headers = "?since=0", headers | {"Last-Event-ID": f"{self.since}"}
        stream = Stream(self.dice.choice(self.world.ports), self.user, headers, query)
        stream.wire.socket.settimeout(1)
        try:
            if stream.status == 410:
                self.gone.append(self.since)
                self._start_again()
            elif stream.status != 503:
                assert stream.status == 200
                self._read_events(stream)
        finally:
            stream.close()

    def _read_events(self, stream: Stream) -> None:
        for _ in range(self.dice.choice([1, 5, 30])):
            event = stream.event()
            if event is None:
                return
            if event.name == "reset":
                self.gone.append(self.since)
                self._start_again()
                return
            self._take(STREAM_PAGE, event.data, None)
            assert event.id == self.since
            if self.since == self.target:
                return


def fill(url: str, user: str) -> None:
    """Gives the user more tasks than a page of a stream has."""
    operations = [{"op": "create", "id": str(uuid4()), "task": {"title": f"Task {n}"}} for n in range(90)]
    with psycopg.connect(url) as connection:
        connection.execute("set timezone to 'UTC'")
        for _ in range(6):
            for operation in operations:
                operation["id"] = str(uuid4())
            connection.execute(
                "select tasks.run_batch(%s, '5s', %s, null, true, false)", [user, json.dumps(operations)]
            )
            connection.commit()


def play(world: World, seed: int, folder: Path) -> list[Reader]:
    """Lets all of them do what they do, and one of the processes restart; returns the readers."""
    kinds = ["poll", "long poll", "stream", "stream"]
    writers = [Writer(world, f"{seed} {number}") for number in range(4)]
    readers = [
        Reader(world, f"{seed} {kind} {n} {user}", kind, user) for user in world.users for n, kind in enumerate(kinds)
    ]
    settings = external(world.url)
    with ExitStack() as stack:
        first, _ = (stack.enter_context(serving(folder, **settings, PORT=f"{port}")) for port in world.ports)
        for thread in [*writers, *readers]:
            thread.start()
        try:
            time.sleep(SECONDS / 2)
            restart(first, folder, stack, settings | {"PORT": f"{world.ports[0]}"})
            time.sleep(SECONDS / 2)
        finally:
            world.is_over.set()
            for writer in writers:
                writer.join(15)
            for reader in readers:
                reader.target = counter_in(world.url, reader.user)
            for reader in readers:
                reader.join(15)
    for thread in [*writers, *readers]:
        assert not thread.is_alive(), thread
        if thread.failure is not None:
            raise thread.failure
    return readers


def restart(service: Served, folder: Path, stack: ExitStack, settings: dict[str, str]) -> None:
    assert stop(service) == 0
    stack.enter_context(serving(folder, **settings))


@pytest.mark.parametrize("seed", [1])
def test_every_page_is_what_the_model_says(tmp_path: Path, database_url: str, seed: int) -> None:
    with empty_database(database_url) as url:
        migrate(parse_address(url))
        with psycopg.connect(url) as connection:
            connection.execute(RECORDER)
        users = ["few-1", "few-2", "many"]
        headers = {user: {"Authorization": f"Bearer {make_token(user)}"} for user in users}
        world = World(url, users, [free_port(), free_port()], headers)
        fill(url, "many")
        readers = play(world, seed, tmp_path)
        models = {user: Model(url, user) for user in users}
        for user, model in models.items():
            assert model.tasks(model.numbers[-1]) == tasks_in(url, user), "the model itself"
        seen: Counter[str] = Counter()
        for reader in readers:
            model = models[reader.user]
            assert reader.copy == model.tasks(model.numbers[-1])
            assert all(max(model.floors) > since for since in reader.gone)
            seen["gone"] += len(reader.gone)
            latest = model.numbers[-1]
            for page in reversed(reader.pages):
                latest = page.counter or latest
                assert page.is_right(model, latest), f"seed {seed}, {page}"
                seen[f"{page.kind}, followed {page.told['has_more']}"] += 1
                seen["erased"] += len(page.told["erased"])
    shown = {"poll, followed True", "erased", *(f"{kind}, followed False" for kind in ("poll", "long poll", "stream"))}
    assert all(seen[kind] for kind in shown), f"it shows nothing of the others: {seen}"
    assert world.done["purge"]
    for kind in ("tasks 201", "tasks 204", "batch 200", "batch 409", "undo 200", "undo 409"):
        assert world.done[kind], world.done
