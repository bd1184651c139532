"""The stream of changes, read off the wire of a server in this process, whose clocks can be made shorter."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from service.app import create_app
from service.db.hub import MOST_STREAMS, Hub
from service.models import BIGGEST_VERSION
from service.queries import changes as queries
from service.routes import changes as routes
from service.settings import Settings
from service.web import protocol
from service.web.server import Server
from tests.conftest import make_settings, make_token, wait_until
from tests.feed import Event, Stream, apply, counter_in, erase_trash, seconds_until, tasks_in
from tests.processes import Client
from tests.wire import Wire

Open = Callable[..., Stream]


class InProcess:
    """The service on a real socket, in a thread of this process."""

    def __init__(self, settings: Settings) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.server = Server(create_app, settings, listener)
        self._thread = threading.Thread(target=self.server.run, args=[[listener]], daemon=True)
        self._thread.start()
        wait_until(lambda: self.server.started)

    @property
    def hub(self) -> Hub:
        app: Any = self.server.config.loaded_app
        hub: Hub = app.state.db.hub
        return hub

    def streams(self, user: str) -> int:
        """Returns how many streams the user has here."""
        return len(self.hub._streams.get(user, []))

    def stop(self) -> float:
        """Ends it in order; returns the seconds that it took."""
        started = time.monotonic()
        self.server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()
        return time.monotonic() - started


@pytest.fixture(scope="module")
def service(database_url: str) -> Iterator[InProcess]:
    service = InProcess(make_settings(database_url))
    yield service
    assert service.stop() < 5


def new_client(service: InProcess, user: str | None = None) -> Client:
    return Client(service, user)  # type: ignore[arg-type]  # it uses the address alone


@pytest.fixture
def client(service: InProcess) -> Client:
    return new_client(service)


@pytest.fixture
def open_(service: InProcess, client: Client) -> Iterator[Open]:
    """Opens streams, the client's unless told; in the end nothing of them must be left."""
    streams: list[Stream] = []

    def opened(query: str = "", *, of: Client = client, status: int = 200, **options: Any) -> Stream:
        headers = of.headers | options.pop("headers", {})
        streams.append(Stream(service.port, of.user, headers, query, **options))
        assert streams[-1].status == status, streams[-1].body()
        return streams[-1]

    yield opened
    for stream in streams:
        stream.close()
    wait_until(lambda: not service.hub.counters, seconds=3)
    assert not service.hub._watches
    assert not service.hub._streams


def create(client: Client, **fields: Any) -> dict[str, Any]:
    response = client.call("POST", json={"title": "Buy milk"} | fields)
    assert response.status_code == 201
    task: dict[str, Any] = response.json()
    return task


def batch(client: Client, number: int, **fields: Any) -> int:
    """Creates so many tasks as one change; returns its number."""
    operations = [{"op": "create", "task": {"title": f"Task {n}"} | fields} for n in range(number)]
    url = client.tasks.removesuffix("/tasks") + "/batch"
    response = httpx.post(url, headers=client.headers, json={"operations": operations})
    version: int = response.json()["version"]
    return version


def changes(client: Client, **query: Any) -> httpx.Response:
    return httpx.get(client.tasks.removesuffix("/tasks") + "/changes", headers=client.headers, params=query)


# What is sent ---------------------------------------------------------------------------------------------------------


def test_an_event_is_what_changes_would_answer(open_: Open, client: Client) -> None:
    first = create(client)
    stream = open_(f"?since={first['version']}")
    text = 'Two lines?\nOne\r\n: and \u2028 \u0085 \\ " 🎉 \x7f event: x\n\ndata: y'
    task = create(client, title='quoted " and\ttabs', description=text)
    one = stream.event()
    assert one is not None
    assert one == Event("changes", task["version"], changes(client, since=first["version"]).text)
    assert one.page == {"version": task["version"], "has_more": False, "tasks": [task], "erased": []}
    number = batch(client, 3)
    two = stream.event()
    assert two == Event("changes", number, changes(client, since=task["version"]).text)
    assert stream.text.startswith(b"retry: ")
    head = f"\n\nevent: changes\nid: {number}\ndata: {{".encode()
    assert stream.text.count(head) == 1
    assert stream.text.count(b"\ndata: ") == 2 + one.data.count("\n") + (two.data if two else "").count("\n")
    assert b"\r" not in stream.text


def test_the_head(open_: Open) -> None:
    stream = open_(headers={"Accept": "text/event-stream", "Accept-Encoding": "gzip, br, zstd, deflate"})
    assert stream.headers.get_all("Content-Type") == ["text/event-stream"]
    assert stream.headers.get_all("Cache-Control") == ["no-cache, no-transform"]
    assert stream.headers.get_all("X-Accel-Buffering") == ["no"]
    assert stream.headers.get_all("X-Content-Type-Options") == ["nosniff"]
    assert stream.headers["X-Request-Id"]
    assert "Authorization" in stream.headers["Vary"]
    assert stream.headers["Transfer-Encoding"] == "chunked"
    for name in ("Content-Encoding", "Content-Length", "ETag", "Connection"):
        assert name not in stream.headers


def test_a_page_of_another_origin_may_read_it(open_: Open) -> None:
    stream = open_(headers={"Origin": "http://frontend.test:3000"})
    assert stream.headers["Access-Control-Allow-Origin"] == "http://frontend.test:3000"


def test_the_retry_is_between_two_and_eight_seconds_and_random(service: InProcess, open_: Open) -> None:
    retries = set()
    for _ in range(8):
        stream = open_(of=new_client(service))
        stream.page()
        assert len(stream.retries) == 1
        retries.update(stream.retries)
    assert 2000 <= min(retries) < max(retries) <= 8000


def test_without_a_number_it_starts_now_and_says_at_which(open_: Open, client: Client, database_url: str) -> None:
    nothing = open_()
    assert nothing.page() == {"version": 0, "has_more": False, "tasks": [], "erased": []}
    first = create(client)
    assert nothing.page()["tasks"] == [first]
    stream = open_()
    start = {"version": first["version"], "has_more": False, "tasks": [], "erased": []}
    assert stream.page() == start
    assert counter_in(database_url, client.user) == first["version"]
    second = create(client)
    for each in (nothing, stream):
        assert each.page()["tasks"] == [second]


def test_it_starts_after_since_and_last_event_id_goes_before_that(open_: Open, client: Client) -> None:
    tasks = [create(client) for _ in range(4)]
    versions = [task["version"] for task in tasks]
    assert open_("?since=0").page()["tasks"] == tasks
    assert open_(f"?since={versions[1]}").page()["tasks"] == tasks[2:]
    for query in ("", "?since=0", f"?since={versions[0]}", f"?since={versions[3]}"):
        stream = open_(query, headers={"Last-Event-ID": str(versions[2])})
        assert stream.page()["tasks"] == tasks[3:]
    assert open_(f"?since={versions[2]}", headers={"Last-Event-ID": "0"}).page()["tasks"] == tasks


WRONG_IDS = ["x", "-1", "", "1.5", "01", str(BIGGEST_VERSION + 1), "9" * 400, "1,2", "1, 1", '"7"', "null", "undefined"]


@pytest.mark.parametrize("sent", WRONG_IDS, ids=lambda text: text[:9])
def test_a_last_event_id_that_is_none(open_: Open, sent: str) -> None:
    stream = open_(headers={"Last-Event-ID": sent}, status=422)
    (entry,) = httpx.Response(422, content=stream.body()).json()["detail"]
    assert entry["loc"] == ["header", "Last-Event-ID"]
    assert entry["msg"].startswith(f"Should be the id of an event, a whole number from 0 to {BIGGEST_VERSION}, not ")
    assert stream.headers["Cache-Control"] == "private, no-cache"


@pytest.mark.parametrize("query", ["?since=x", "?since=-1", "?since=", "?since=1&since=1", "?limit=1", "?wait=1", "?x"])
def test_a_wrong_parameter(open_: Open, query: str) -> None:
    for headers in ({}, {"Last-Event-ID": "0"}):
        stream = open_(query, status=422, headers=headers)
        assert b'"loc": ["query", ' in stream.body()


def test_a_number_that_cannot_be_served_is_gone_before_the_stream_begins(open_: Open, client: Client) -> None:
    for query, headers in (("?since=1", {}), ("", {"Last-Event-ID": "7"})):
        assert open_(query, status=410, headers=headers).body() == b'{"detail": "Start again from since=0"}'
    last = create(client)["version"]
    for since in (1, last - 1, last + 1, BIGGEST_VERSION):
        assert open_(f"?since={since}", status=410).body() == b'{"detail": "Start again from since=0"}'


def test_a_number_that_can_be_served_no_more_is_a_reset(open_: Open, client: Client, database_url: str) -> None:
    task = create(client)
    streams = [open_("?since=0"), open_()]
    for stream in streams:
        stream.page()
    with psycopg.connect(database_url) as connection:
        for table in ("task", "change", "account"):
            connection.execute(f"delete from tasks.{table} where user_id = %s".encode(), [client.user])  # noqa: S608
    time.sleep(0.01)  # a new counter begins at the milliseconds of the moment
    again = create(client)
    assert again["version"] > task["version"]
    for stream in streams:
        (event,) = stream.end()
        assert event == Event("reset", None, '{"detail": "Start again from since=0"}')
    assert open_("?since=0").page()["tasks"] == [again]


def test_a_change_comes_at_once(open_: Open, client: Client) -> None:
    stream = open_()
    stream.page()
    taken = []
    for _ in range(9):
        started = time.monotonic()
        create(client)
        taken.append(seconds_until(stream, started))
    assert sorted(taken)[4] < 0.2, "much less than a look at the counters takes"


def test_a_change_of_another_process_comes_within_a_second(open_: Open, client: Client, database_url: str) -> None:
    stream = open_()
    stream.page()
    for _ in range(2):
        task = create(client)
        client.call("DELETE", f"/{task['id']}")
        while stream.page()["tasks"][0]["deleted_at"] is None:
            pass
        started = time.monotonic()
        erase_trash(database_url, client.user)
        told = stream.page()
        assert time.monotonic() - started < 1.2
        assert told["erased"] == [task["id"]]


def test_every_kind_of_change_comes(open_: Open, client: Client) -> None:
    stream = open_()
    stream.page()
    task = create(client)
    url = client.tasks.removesuffix("/tasks")
    for method, path, body in [
        ("PUT", f"/{task['id']}", {"title": "Other"}),
        ("PATCH", f"/{task['id']}/complete", None),
        ("DELETE", f"/{task['id']}", None),
        ("POST", f"/{task['id']}/restore", None),
    ]:
        told = stream.page()
        assert client.call(method, path, **({"json": body} if body else {})).status_code in (200, 204)
    told = stream.page()
    assert httpx.post(f"{url}/undo", headers=client.headers, json={"version": told["version"]}).status_code == 200
    assert stream.page()["tasks"][0]["deleted_at"]
    number = batch(client, 2)
    assert stream.page()["version"] == number


def test_another_user_s_changes_never_appear(service: InProcess, open_: Open, client: Client) -> None:
    other = new_client(service)
    mine, theirs = open_(), open_(of=other)
    assert (mine.page()["tasks"], theirs.page()["tasks"]) == ([], [])
    for _ in range(5):
        theirs_now, mine_now = create(other), create(client)
        assert mine.page()["tasks"] == [mine_now]
        assert theirs.page()["tasks"] == [theirs_now]
    assert open_(of=new_client(service, client.user), headers=other.headers, status=401).body()


# Whole changes --------------------------------------------------------------------------------------------------------


def test_a_batch_is_one_event(open_: Open, client: Client, database_url: str) -> None:
    copy: dict[str, str] = {}
    stream = open_("?since=0")
    for size in (100, 1, 100):
        number = batch(client, size)
        event = stream.event()
        assert event is not None
        told = apply(copy, event.data)
        assert (told["version"], len(told["tasks"]), told["has_more"]) == (number, size, False)
    assert copy == tasks_in(database_url, client.user)


def test_more_than_a_page_in_one_change_is_one_event(open_: Open, client: Client, database_url: str) -> None:
    stream = open_()
    stream.page()
    operations = [{"op": "create", "id": str(uuid4()), "task": {"title": f"Task {n}"}} for n in range(1200)]
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "select tasks.run_batch(%s, '5s', %s, null, true, false)",
            [client.user, httpx.Response(200, json=operations).text],
        )
    told = stream.page()
    assert (len(told["tasks"]), told["has_more"]) == (1200, False)
    assert len({task["version"] for task in told["tasks"]}) == 1
    with psycopg.connect(database_url) as connection:
        connection.execute("update tasks.task set deleted_at = now() where user_id = %s", [client.user])
    assert erase_trash(database_url, client.user) == 1200
    told = stream.page()
    assert (len(told["erased"]), told["has_more"]) == (1200, False)


def test_who_is_far_behind_catches_up_over_several_events(open_: Open, client: Client, database_url: str) -> None:
    numbers = [batch(client, 90) for _ in range(14)]
    stream, copy = open_("?since=0"), dict[str, str]()
    told: list[dict[str, Any]] = []
    while not told or told[-1]["has_more"]:
        event = stream.event()
        assert event is not None
        told.append(apply(copy, event.data))
        assert event.id == told[-1]["version"]
    assert [len(page["tasks"]) for page in told] == [540, 540, 180]
    assert [page["version"] for page in told] == [numbers[5], numbers[11], numbers[13]]
    assert copy == tasks_in(database_url, client.user)
    resumed = open_(headers={"Last-Event-ID": str(numbers[5])})
    assert [len(resumed.page()["tasks"]) for _ in range(2)] == [540, 180]
    number = batch(client, 1)
    for each in (stream, resumed):
        assert each.page()["version"] == number


# How it ends ----------------------------------------------------------------------------------------------------------


def test_a_comment_shows_that_it_is_alive(open_: Open, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert routes.COMMENT_SECONDS == 15
    monkeypatch.setattr(routes, "COMMENT_SECONDS", 0.25)
    stream = open_()
    stream.page()
    started = time.monotonic()
    for _ in range(4):
        stream.until_comment()
    assert 0.9 < time.monotonic() - started < 2
    task = create(client)
    assert stream.page()["tasks"] == [task]


def test_it_ends_when_its_token_does(open_: Open, client: Client) -> None:
    def seconds(exp: float) -> float:
        token = make_token(client.user, exp=exp)
        stream = open_(headers={"Authorization": f"Bearer {token}"})
        assert stream.end()[0].name == "changes"
        return time.time() - exp

    assert -0.1 < seconds(int(time.time()) + 2) < 0.5
    # in the 10 seconds by which clocks may differ it is good still: whoever comes back with it is not sent away again
    assert 9.9 < seconds(int(time.time()) - 8) < 10.5


def test_the_eleventh_ends_the_oldest(service: InProcess, open_: Open, client: Client) -> None:
    assert MOST_STREAMS == 10
    streams = [open_() for _ in range(10)]
    for stream in streams:
        stream.page()
    another = open_(of=new_client(service))
    another.page()
    assert service.streams(client.user) == 10
    for turn in range(3):
        streams.append(open_())
        streams[-1].page()
        assert streams[turn].end() == []
        assert service.streams(client.user) == 10
    streams[7].close()
    wait_until(lambda: service.streams(client.user) == 9, seconds=3)
    streams.append(open_())
    streams[-1].page()
    task = create(client)
    for stream in [*streams[3:7], *streams[8:]]:
        assert stream.page()["tasks"] == [task]
    assert another.wire.socket.fileno() > 0
    assert service.streams(client.user) == 10


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_goes_away_leaves_nothing(service: InProcess, client: Client, reset: bool) -> None:
    streams = [Stream(service.port, client.user, client.headers) for _ in range(5)]
    for stream in streams:
        stream.page()
    assert service.streams(client.user) == 5
    for stream in streams:
        if reset:
            stream.wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        stream.close()
    wait_until(lambda: not service.hub.counters, seconds=3)
    assert not service.server.server_state.tasks


def test_a_client_that_goes_away_waits_for_no_page(service: InProcess, client: Client) -> None:
    task = create(client)
    wire = Wire(service.port)
    head = f"GET /api/{client.user}/changes?since={task['version']}&wait=30 HTTP/1.1\r\nHost: x\r\nAuthorization: "
    wire.send(f"{head}{client.headers['Authorization']}\r\n\r\n".encode())
    wait_until(lambda: client.user in service.hub.counters)
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wire.close()
    wait_until(lambda: not service.hub.counters, seconds=3)


def test_a_client_that_reads_nothing_is_cut(
    service: InProcess, open_: Open, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert protocol.ANSWER_SECONDS == 30
    monkeypatch.setattr(protocol, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(protocol, "SWEEP_SECONDS", 0.05)
    tasks = [create(client, description="x" * 500) for _ in range(2)]
    for _ in range(40):
        batch(client, 100, description="x" * 500)
    reading = open_("?since=0")
    reads_nothing = open_("?since=0", receive_buffer=4096)
    seen = 0
    while seen < 4002:
        seen += len(reading.page()["tasks"])
    wait_until(lambda: service.streams(client.user) == 1, seconds=5)
    with pytest.raises((ConnectionError, AssertionError, ValueError)):
        reads_nothing.end()
    client.call("DELETE", f"/{tasks[0]['id']}")
    assert reading.page()["tasks"][0]["id"] == tasks[0]["id"]


def test_the_kernel_gives_up_a_client_that_has_vanished(service: InProcess, open_: Open) -> None:
    """A laptop that was closed says nothing: what is sent to it stays in the kernel, which would try for a quarter of
    an hour."""
    open_().page()
    connections: list[Any] = [*service.server.server_state.connections]
    (kept,) = [each.transport.get_extra_info("socket") for each in connections if each._exchange is not None]
    assert kept.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * protocol.ANSWER_SECONDS


def test_at_the_end_of_the_process_streams_end_at_once_and_in_order(database_url: str) -> None:
    service = InProcess(make_settings(database_url))
    clients = [new_client(service) for _ in range(5)]
    streams = [Stream(service.port, each.user, each.headers) for each in clients for _ in range(4)]
    for stream in streams:
        stream.page()
    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(changes(clients[0], wait=30)))
    waiting.start()
    wait_until(lambda: len(service.hub._watches[clients[0].user]) == 5)
    service.server.should_exit = True
    started = time.monotonic()
    for stream in streams:
        assert stream.end() == []
    assert time.monotonic() - started < 0.5
    waiting.join()
    assert answers[0].json()["tasks"] == [], "whoever waits for a page has it, empty"
    assert time.monotonic() - started < 1
    assert service.stop() < 3
    for stream in streams:
        stream.close()


# Methods and versions -------------------------------------------------------------------------------------------------


def test_head_ends_at_once(service: InProcess, client: Client) -> None:
    wire = Wire(service.port)
    token = client.headers["Authorization"]
    head = f"HEAD /api/{client.user}/events HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n\r\n"
    for _ in range(2):
        wire.send(head.encode())
        status, headers, _ = wire.answer(body=False)
        assert (status, headers["Content-Type"]) == (200, "text/event-stream")
    assert client.user not in service.hub.counters
    wire.close()


def test_http_1_0_ends_with_the_connection(service: InProcess, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """As nginx asks, unless told otherwise."""
    wire = Wire(service.port)
    token = make_token(client.user, exp=int(time.time()) + 2)
    wire.send(f"GET /api/{client.user}/events HTTP/1.0\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    text = wire.rest()
    head, _, body = text.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"\r\nconnection: close" in head
    assert body.startswith(b"retry: ")
    assert body.endswith(b'data: {"version": 0, "has_more": false, "tasks": [], "erased": []}\n\n')
    wire.close()


# The hub --------------------------------------------------------------------------------------------------------------


def test_the_database_is_asked_once_a_second_for_all_and_not_at_all_for_nobody(
    service: InProcess, open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert queries.WATCH_SECONDS < 1
    asked: list[int] = []
    app: Any = service.server.config.loaded_app
    fetch = app.state.db.fetch

    def counted(statement: Any, *arguments: Any) -> Any:
        if statement is queries.CHANGE_COUNTERS:
            asked.append(len(arguments[0]))
        return fetch(statement, *arguments)

    monkeypatch.setattr(app.state.db, "fetch", counted)
    time.sleep(1.5)
    assert asked == []
    streams = [open_(of=new_client(service)) for _ in range(30)]
    for stream in streams:
        stream.page()
    asked.clear()
    time.sleep(2.5)
    assert asked in ([30, 30], [30, 30, 30])


def test_a_look_at_the_counters_that_fails_is_not_the_last(
    service: InProcess, open_: Open, client: Client, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app: Any = service.server.config.loaded_app
    fetch, failed = app.state.db.fetch, threading.Event()

    def failing(statement: Any, *arguments: Any) -> Any:
        if statement is queries.CHANGE_COUNTERS and not failed.is_set():
            failed.set()
            raise RuntimeError("on purpose")
        return fetch(statement, *arguments)

    stream = open_()
    stream.page()
    task = create(client)
    client.call("DELETE", f"/{task['id']}")
    while not stream.page()["tasks"][0]["deleted_at"]:
        pass
    monkeypatch.setattr(app.state.db, "fetch", failing)
    assert failed.wait(3)
    erase_trash(database_url, client.user)
    assert stream.page()["erased"] == [task["id"]]


def test_a_counter_that_somebody_has_moved_in_psql_is_read_once(
    client: Client, open_: Open, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(client)
    stream = open_()
    stream.page()
    reads: list[int] = []
    read_feed = queries.read_feed

    async def counted(*arguments: Any) -> queries.Feed:
        reads.append(1)
        return await read_feed(*arguments)

    monkeypatch.setattr(queries, "read_feed", counted)
    with psycopg.connect(database_url) as connection:
        connection.execute("update tasks.account set version = version + 5 where user_id = %s", [client.user])
    wait_until(lambda: reads, seconds=3)
    time.sleep(0.5)
    assert len(reads) < 5
    version = create(client)["version"]
    assert stream.page()["version"] == version
