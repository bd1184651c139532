"""Connections: how they begin, go on and end, on uvicorn and uvloop as in service, but with shorter clocks.

The application is not the service's: what is shown here holds for every application.
"""

import asyncio
import inspect
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from service.web import protocol
from service.web.framing import EXTENSION_BYTES, TRAILER_BYTES
from service.web.protocol import Protocol
from tests.conftest import wait_until
from tests.wire import Wire, in_chunks

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED_POST = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

Headers = list[tuple[bytes, bytes]]
Connect = Callable[..., Wire]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Does what the path says."""
    await DOES.get(scope["path"], echo)(scope, receive, send)


GONE = threading.Event()


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        body = await body_of(receive)
    except TimeoutError:
        await answer(send, 408, b"", [(b"connection", b"close")])
        return
    except ConnectionError:
        GONE.set()
        return
    seen = {"body": body.decode(), "headers": {name.decode(): value.decode() for name, value in scope["headers"]}}
    await answer(send, 200, json.dumps(seen | {"method": scope["method"], "path": scope["path"]}).encode())


async def body_of(receive: Receive) -> bytes:
    body, is_followed = b"", True
    while is_followed:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        body += message["body"]
        is_followed = message["more_body"]
    return body


async def early(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, 401, b"early")


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, 200, b"x" * number_in(scope))


async def in_parts(scope: Scope, receive: Receive, send: Send) -> None:
    await stream(send, [b"a" * 10, b"", b"b" * number_in(scope), b"c"])


async def declared(scope: Scope, receive: Receive, send: Send) -> None:
    await stream(send, [b"a" * 10, b"b" * 10], [(b"content-length", b"%d" % number_in(scope))])


async def wrong_length(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, 200, b"four", [(b"content-length", b"5")])


async def with_status(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, number_in(scope), b"")


async def injection(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, 200, b"", [(b"link", b"x\r\nset-cookie: stolen=1")])


async def fails(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("on purpose")


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    pass


async def answers_twice(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, 200, b"first")
    await answer(send, 200, b"second")


async def slow(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(1)
    await answer(send, 200, await body_of(receive))


async def until_gone(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    GONE.set()


async def hangs(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(60)


DOES = {
    "/early": early,
    "/large": large,
    "/stream": in_parts,
    "/declared": declared,
    "/wrong-length": wrong_length,
    "/status": with_status,
    "/injection": injection,
    "/fails": fails,
    "/nothing": nothing,
    "/answers-twice": answers_twice,
    "/slow": slow,
    "/until-gone": until_gone,
    "/hangs": hangs,
}


async def answer(send: Send, status: int, body: bytes, headers: Headers | None = None) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers or []})
    await send({"type": "http.response.body", "body": body})


async def stream(send: Send, parts: list[bytes], headers: Headers | None = None) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": headers or []})
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body"})


def number_in(scope: Scope) -> int:
    return int(parse_qs(scope["query_string"].decode())["n"][0])


def get(path: str, *lines: str, version: str = "1.1", method: str = "GET", body: bytes = b"") -> bytes:
    own = [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: x", *own, *lines, "", ""]).encode() + body


class Server:
    """A server in a thread."""

    def __init__(self) -> None:
        options: Any = {"ws": "none", "lifespan": "off", "log_config": None, "access_log": False}
        config = uvicorn.Config(
            app, port=0, loop="uvloop", http=Protocol, timeout_keep_alive=1, timeout_graceful_shutdown=3, **options
        )
        self.uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.uvicorn.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self.uvicorn.started)
        self.port = self.uvicorn.servers[0].sockets[0].getsockname()[1]

    @property
    def connections(self) -> list[Protocol]:
        connections: Any = self.uvicorn.server_state.connections
        return list(connections)

    def stop(self) -> None:
        """Begins its end."""
        self.uvicorn.should_exit = True

    def has_ended(self) -> bool:
        """Waits for its end."""
        self._thread.join(10)
        return not self._thread.is_alive()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()
    assert server.has_ended()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to wait long for what is late."""
    monkeypatch.setattr(protocol, "SWEEP_SECONDS", 0.05)


@pytest.fixture
def connect(server: Server, caplog: pytest.LogCaptureFixture) -> Iterator[Connect]:
    """In the end every connection must be gone, and the log without a traceback that the test has not taken out."""
    GONE.clear()
    wires: list[Wire] = []

    def opened(**options: Any) -> Wire:
        wires.append(Wire(server.port, **options))
        return wires[-1]

    yield opened
    works(opened())
    for wire in wires:
        wire.close()
    wait_until(lambda: not server.connections)
    assert not [record for record in caplog.records if record.exc_info]


@pytest.fixture
def wire(connect: Connect) -> Wire:
    return connect()


def works(wire: Wire) -> None:
    wire.send(GET)
    assert wire.answer()[0] == 200


def is_refused(wire: Wire, status: int = 400) -> str:
    """The service answers with an error of its own, and closes; returns what the error says."""
    answered, headers, body = wire.answer()
    assert (answered, headers["Content-Type"], headers["Connection"]) == (status, "application/json", "close")
    assert headers["Date"]
    assert headers["X-Request-Id"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert wire.rest() == b""
    return str(json.loads(body)["detail"])


# What is used of uvicorn ----------------------------------------------------------------------------------------------


def test_uvicorn_has_every_member_that_the_protocol_uses() -> None:
    """uvicorn promises none of these; another release may name them otherwise."""
    made: list[dict[str, Any]] = []
    shut_down: list[asyncio.Protocol] = []

    class Recorder(asyncio.Protocol):
        def __init__(self, **options: Any) -> None:
            made.append(options)

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made[-1]["server_state"].connections.add(self)
            transport.close()

        def shutdown(self) -> None:
            shut_down.append(self)
            made[-1]["server_state"].connections.discard(self)

    config = uvicorn.Config(app, port=0, http=Recorder, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    with socket.create_connection(server.servers[0].sockets[0].getsockname()[:2]):
        wait_until(lambda: made and made[0]["server_state"].connections)
        server.should_exit = True
        thread.join(10)
    (options,) = made
    assert set(options) == {"config", "server_state", "app_state", "_loop"}
    assert len(shut_down) == 1, "the server tells each of its connections to shut down"
    for name in ("loaded_app", "root_path", "timeout_keep_alive"):
        assert hasattr(options["config"], name)
    assert isinstance(options["app_state"], dict)
    state = ServerState()
    assert (state.connections, state.tasks, state.total_requests, state.default_headers) == (set(), set(), 0, [])
    assert [name for name, _ in options["server_state"].default_headers] == [b"date", b"server"]
    assert set(inspect.signature(Protocol).parameters) == set(options)


def test_uvicorn_counts_the_requests_and_waits_for_the_tasks(server: Server, connect: Connect, wire: Wire) -> None:
    state = server.uvicorn.server_state
    before = state.total_requests
    works(wire)
    assert state.total_requests == before + 1
    wire.send(get("/slow"))
    wait_until(lambda: len(state.tasks) == 1)
    assert wire.answer()[0] == 200
    wait_until(lambda: not state.tasks)


# Time -----------------------------------------------------------------------------------------------------------------

HEADS = [b"", b"GET", GET[:-2], GET[:-4], b"\r\n"]


@pytest.mark.parametrize("sent", HEADS)
@pytest.mark.parametrize("before", [0, 2])
def test_a_head_that_does_not_end(connect: Connect, monkeypatch: pytest.MonkeyPatch, before: int, sent: bytes) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    wire = connect()
    for _ in range(before):
        works(wire)
    wire.send(sent)
    assert wire.rest() == b""


def dripping(wire: Wire, drip: bytes) -> None:
    """Sends the same again and again until the service closes the connection."""
    end = time.monotonic() + 10
    try:
        while time.monotonic() < end:
            wire.send(drip)
            time.sleep(0.05)
    except ConnectionError:
        return
    raise AssertionError("the connection stays open")


@pytest.mark.parametrize(("sent", "drip"), [(b"", b"\r\n"), (b"", b"\n"), (b"GET / HTTP/1.1\r\nX:", b"x")])
@pytest.mark.parametrize("before", [0, 1])
def test_no_byte_makes_a_head_s_time_longer(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, before: int, sent: bytes, drip: bytes
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    wire = connect()
    for _ in range(before):
        works(wire)
    wire.send(sent)
    dripping(wire, drip)


@pytest.mark.parametrize("behind", [b"", b"\r\n", b"\r", b"\n\n\r\n"])
def test_an_idle_connection_is_closed(wire: Wire, behind: bytes) -> None:
    works(wire)
    wire.send(behind)
    assert wire.rest() == b""


def test_a_connection_that_is_used_outlives_a_head_s_time_and_the_idle_time(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    wire = connect()
    for _ in range(4):
        works(wire)
        time.sleep(0.5)


BODIES = [
    (get("/", "Content-Length: 100", method="POST"), b"x"),
    (CHUNKED_POST, b"64\r\nx"),
    (CHUNKED_POST, b"64;half an exten"),
    (CHUNKED_POST, b"1\r\nx\r\n0\r\nTrailer"),
    (CHUNKED_POST, b"1\r\nx"),
    (CHUNKED_POST, b""),
]


@pytest.mark.parametrize(("head", "part"), BODIES)
def test_a_body_that_does_not_end(connect: Connect, monkeypatch: pytest.MonkeyPatch, head: bytes, part: bytes) -> None:
    monkeypatch.setattr(protocol, "BODY_SECONDS", 0.3)
    wire = connect()
    wire.send(head + part)
    assert wire.answer()[0] == 408
    assert wire.rest() == b""


@pytest.mark.parametrize(("head", "part"), BODIES)
def test_a_body_that_does_not_end_after_an_early_answer(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, head: bytes, part: bytes
) -> None:
    monkeypatch.setattr(protocol, "BODY_SECONDS", 0.3)
    wire = connect()
    wire.send(head.replace(b" / ", b" /early ") + part)
    assert wire.answer()[0] == 401
    assert wire.rest() == b""


@pytest.mark.parametrize("drip", [b"1\r\nx\r\n", b"1;%b\r\nx\r\n" % (b"e" * 100)])
@pytest.mark.parametrize(("path", "status"), [(b"/", 408), (b"/early", 401)])
def test_a_body_that_comes_too_slowly(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, path: bytes, status: int, drip: bytes
) -> None:
    monkeypatch.setattr(protocol, "BODY_SECONDS", 0.3)
    wire = connect()
    wire.send(CHUNKED_POST.replace(b" / ", b" %b " % path))
    dripping(wire, drip)
    assert wire.answer()[0] == status


def test_a_body_that_comes_fast_enough_may_take_long(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "BODY_SECONDS", 0.5)
    monkeypatch.setattr(protocol, "BODY_RATE", 10_000)
    wire = connect()
    wire.send(get("/", "Content-Length: 20000", method="POST"))
    for _ in range(20):
        wire.send(b"x" * 1000)  # a tenth of a second's worth
        time.sleep(0.06)
    assert wire.answer()[0] == 200


def test_while_the_application_works_nothing_is_late(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_SECONDS", "BODY_SECONDS"):
        monkeypatch.setattr(protocol, name, 0.3)
    wire, with_a_body, with_a_large_one = (connect() for _ in range(3))
    wire.send(get("/slow"))
    with_a_body.send(get("/slow", method="POST", body=b"x" * 100))
    with_a_large_one.send(get("/slow", method="POST", body=b"x" * 3 * protocol.BODY_BYTES))
    assert wire.answer()[0] == 200
    assert with_a_body.answer()[2] == b"x" * 100
    assert len(with_a_large_one.answer()[2]) == 3 * protocol.BODY_BYTES


LARGE = 20_000_000  # more than the kernel keeps for one connection


@pytest.mark.parametrize("lines", [[], ["Connection: close"]])
@pytest.mark.parametrize("path", [f"/large?n={LARGE}", f"/stream?n={LARGE}"])
def test_an_answer_that_nobody_reads(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch, path: str, lines: list[str]
) -> None:
    monkeypatch.setattr(protocol, "ANSWER_SECONDS", 0.5)
    wire = connect(receive_buffer=4096)
    wire.send(get(path, *lines))
    wait_until(lambda: len(server.connections) == 1)
    wait_until(lambda: not server.connections)
    assert len(wire.received.read(LARGE // 2)) < LARGE


def test_an_answer_that_is_read_slowly_may_take_long(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "ANSWER_SECONDS", 0.5)
    wire = connect(receive_buffer=65536)
    wire.send(get(f"/large?n={LARGE}"))
    end = time.monotonic() + 2.5
    read = 0
    while time.monotonic() < end:  # longer than it may be idle, too
        read += len(wire.socket.recv(20_000))
        time.sleep(0.02)
    while read < LARGE:
        read += len(wire.socket.recv(1_000_000))


def test_when_too_much_waits_to_be_read_those_who_read_nothing_go_first(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "UNSENT_BYTES", 2 * LARGE)
    monkeypatch.setattr(protocol, "CROWDED_SECONDS", 0.5)
    wires = [connect(receive_buffer=65536) for _ in range(4)]
    for wire in wires:
        wire.send(get(f"/large?n={LARGE}"))
    reader = wires[0]
    read = 0
    while len(server.connections) == len(wires) or read < LARGE // 20:
        read += len(reader.socket.recv(20_000))
        time.sleep(0.01)
    wait_until(lambda: len(server.connections) < 4)
    assert len(server.connections) >= 2, "no more are ended than have to be"
    while read < LARGE:
        read += len(reader.socket.recv(1_000_000))


def test_a_new_connection_has_the_time_that_others_have(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "UNSENT_BYTES", 1)
    wire = connect(receive_buffer=4096)
    wire.send(get(f"/large?n={LARGE}"))
    time.sleep(0.5)
    assert len(wire.answer()[2]) == LARGE


# Pipelines ------------------------------------------------------------------------------------------------------------


def test_answers_leave_in_order_and_so_does_an_error(connect: Connect) -> None:
    for behind in (b"garbage\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nX : y\r\n\r\n"):
        wire = connect()
        wire.send(get("/slow") + GET + behind)
        assert wire.answer()[0] == 200
        assert wire.answer()[0] == 200
        is_refused(wire)


def test_thousands_of_requests_in_a_pipeline(wire: Wire) -> None:
    number = 5000
    sender = threading.Thread(target=wire.send, args=[GET * number])
    sender.start()
    for _ in range(number):
        assert wire.answer()[0] == 200
    sender.join()


def test_a_pipeline_that_nobody_reads_stops_being_read(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "ANSWER_SECONDS", 2)
    wire = connect(receive_buffer=4096)
    wire.socket.settimeout(0.5)
    with pytest.raises(TimeoutError):
        wire.socket.sendall(get("/large?n=100000") * 1_000_000)
    (connection,) = server.connections
    assert len(connection._buffer) <= 256_000  # what uvloop reads at once
    assert connection.transport.get_write_buffer_size() < 300_000
    works(connect())
    wait_until(lambda: connection not in server.connections)


# Framing --------------------------------------------------------------------------------------------------------------

WAYS: dict[str, Callable[[bytes], list[bytes]]] = {
    "whole": lambda data: [data],
    "head and body": lambda data: list(data.partition(b"\r\n\r\n")),
    "bytes": lambda data: [data[at : at + 1] for at in range(len(data))],
    "threes": lambda data: [data[at : at + 3] for at in range(0, len(data), 3)],
}
OFFERS = {
    "none": [],
    "websocket": ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13"],
    "h2c": ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk"],
    "h2c, keep-alive": ["Upgrade: h2c", "Connection: keep-alive", "Connection: upgrade"],
    "without Connection": ["Upgrade: h2c"],
}
SMUGGLED = get("/early")  # a body that looks like a request


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("body", [b"some text", SMUGGLED], ids=["text", "request"])
def test_a_body_stays_a_body_and_what_follows_is_the_next_request(
    wire: Wire, way: Callable[[bytes], list[bytes]], offer: list[str], is_chunked: bool, body: bytes
) -> None:
    if is_chunked:
        request = get("/", "Transfer-Encoding: chunked", *offer, method="POST") + in_chunks(body, 7)
    else:
        request = get("/", *offer, method="POST", body=body)
    for part in way(request):
        wire.send(part)
        time.sleep(0.001)
    wire.send(get("/next") + request)
    for expected, path in ((body, "/"), (b"", "/next"), (body, "/")):
        status, _, content = wire.answer()
        assert status == 200
        seen = json.loads(content)
        assert (seen["body"].encode(), seen["path"]) == (expected, path)
    works(wire)


def test_an_offer_without_a_body_is_passed_over(wire: Wire) -> None:
    for offer in OFFERS.values():
        wire.send(get("/", *offer) * 2)
        assert [wire.answer()[0] for _ in range(2)] == [200, 200]


@pytest.mark.parametrize(
    "chunks",
    [
        b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        b'0003\r\nabc\r\n2;a=b;c="d"\r\nde\r\n000\r\n\r\n',
        b"3 ;a\r\nabc\r\n2;\r\nde\r\n0;last\r\nA: b\r\nC:\r\n\r\n",
        b"5\r\nabcde\r\n0\r\nX-Trailer: y\r\n\r\n",
        in_chunks(b"abcde", 1),
    ],
)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_chunks_may_be(wire: Wire, chunks: bytes, way: Callable[[bytes], list[bytes]]) -> None:
    for part in way(CHUNKED_POST + chunks):
        wire.send(part)
        time.sleep(0.001)
    assert json.loads(wire.answer()[2])["body"] == "abcde"
    works(wire)


@pytest.mark.parametrize("data", [b"\r\n\r\n", b"0\r\n\r\n", b"\r\n0\r\n\r\n" + SMUGGLED, b"x" * 300_000])
def test_a_chunk_may_hold_anything(wire: Wire, data: bytes) -> None:
    wire.send(CHUNKED_POST + in_chunks(data, 400_000))
    assert json.loads(wire.answer()[2])["body"].encode() == data
    works(wire)


@pytest.mark.parametrize(
    "chunks",
    [
        b"x\r\n", b"\r\n", b"-1\r\nx\r\n", b"+1\r\nx\r\n", b"0x1\r\nx\r\n", b"1_0\r\nx\r\n", b" 1\r\nx\r\n",
        b"1 \r\nx\r\n", b"1\nx\r\n", b"1\r\nx\n0\r\n", b"1\r\nxy\r\n0\r\n\r\n", b"1\r\nx0\r\n\r\n", b"1;a\nb\r\nx\r\n",
        b"1;\0\r\nx\r\n", b"1" * 17 + b"\r\nx", b"0" * 17 + b"\r\n\r\n", b"\xd9\xa1\r\nx\r\n",
        b"0\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", b"0\r\nno colon\r\n\r\n", b"0\r\n: no name\r\n\r\n",
        b"0\r\nA: b\r\n folded\r\n\r\n", b"0\r\nA : b\r\n\r\n", b"0\r\nA: b\nC: d\r\n\r\n", b"0\r\nA: \0\r\n\r\n",
    ],
)  # fmt: skip
def test_what_chunks_may_not_be(connect: Connect, chunks: bytes) -> None:
    wire, unread = connect(), connect()
    wire.send(CHUNKED_POST + chunks)
    assert is_refused(wire).startswith("No HTTP/1.1 request: ")
    unread.send(CHUNKED_POST.replace(b" / ", b" /early ") + chunks)
    status, _, _ = unread.answer()
    assert status in (400, 401)
    assert unread.rest() == b"", "one answer, and nothing of the body is a request"


def test_a_trailer_is_no_header(wire: Wire) -> None:
    wire.send(CHUNKED_POST + b"1\r\nx\r\n0\r\nAuthorization: Bearer x\r\nHost: y\r\nX-Trailer: z\r\n\r\n")
    seen = json.loads(wire.answer()[2])
    assert seen["headers"] == {"host": "x", "transfer-encoding": "chunked"}
    works(wire)
    wire.send(GET)
    assert "authorization" not in json.loads(wire.answer()[2])["headers"]


@pytest.mark.parametrize("size", [TRAILER_BYTES - 1, TRAILER_BYTES, TRAILER_BYTES + 1])
@pytest.mark.parametrize("at_once", [True, False])
def test_trailers_may_have_32_kib(wire: Wire, size: int, at_once: bool) -> None:
    trailers = b"X: ".ljust(size - 4, b"x") + b"\r\n\r\n"
    wire.send(*[CHUNKED_POST + b"0\r\n" + trailers] if at_once else [CHUNKED_POST + b"0\r\n", trailers[:-2], b"\r\n"])
    if size <= TRAILER_BYTES:
        assert wire.answer()[0] == 200
        works(wire)
    else:
        assert is_refused(wire) == f"No HTTP/1.1 request: trailers have at most {TRAILER_BYTES} bytes"


@pytest.mark.parametrize("size", [EXTENSION_BYTES - 1, EXTENSION_BYTES, EXTENSION_BYTES + 1])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_chunk_s_extensions_may_have_4_kib(wire: Wire, size: int, at_once: bool) -> None:
    chunks = b"1;%b\r\nx\r\n0\r\n\r\n" % (b"e" * size)
    wire.send(*[CHUNKED_POST + chunks] if at_once else [CHUNKED_POST, chunks[:1000], chunks[1000:]])
    if size <= EXTENSION_BYTES:
        assert wire.answer()[0] == 200
        works(wire)
    else:
        is_refused(wire)


@pytest.mark.parametrize(
    ("start", "drip"),
    [(b"0\r\n", b"X-Trailer: x\r\n"), (b"0\r\nX:", b"x"), (b"1;", b"x=y;"), (b"", b"0"), (b"1\r\nx\r\n", b"0")],
    ids=["trailers", "a trailer", "extensions", "zeros", "later zeros"],
)
@pytest.mark.parametrize("path", [b"/", b"/early"])
def test_framing_without_an_end_is_cut(connect: Connect, start: bytes, drip: bytes, path: bytes) -> None:
    wire = connect()
    wire.send(CHUNKED_POST.replace(b" / ", b" %b " % path) + start)
    sent = 0
    with pytest.raises(ConnectionError):  # noqa: PT012
        while sent < 2 * protocol.LAST_BYTES:
            wire.send(drip * 1000)
            sent += len(drip) * 1000


def test_line_ends_are_crlf(connect: Connect) -> None:
    """A head ends where the protocol finds the first empty line; httptools must see no other end in it."""
    for head in (
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\r\nHost: x\n\n" + GET,
        b"GET / HTTP/1.1\r\nHost: x\r\n\n" + GET,
        b"GET / HTTP/1.1\r\nHost: x\n\r\n" + GET,
        b"GET / HTTP/1.1\rHost: x\r\r" + GET,
        b"GET / HTTP/1.1\n\n" + GET,
    ):
        wire = connect()
        wire.send(head)
        is_refused(wire)


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 1", "Content-Length: 1"], ["Content-Length: 1", "Content-Length: 2"],
        ["Content-Length: 1, 1"], ["Content-Length: +1"], ["Content-Length: 0x1"], ["Content-Length:"],
        ["Content-Length: 1_0"], ["Content-Length: -1"], ["Content-Length: 1 1"], ["Content-Length: " + "9" * 30],
        ["Content-Length: 1", "Transfer-Encoding: chunked"], ["Transfer-Encoding: chunked", "Content-Length: 1"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: chunked, chunked"], ["Transfer-Encoding: xchunked"], ["Transfer-Encoding: identity"],
        ["Transfer-Encoding:"], ["Transfer-Encoding : chunked"], ["Transfer-Encoding: chunked, identity"],
        ["X: y", " folded: z"], ["X"], ["X y: z"], [": z"], ["X: \0"], ["X: \x0b"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("offer", [[], OFFERS["websocket"]], ids=["", "Upgrade"])
def test_what_a_head_may_not_say(wire: Wire, lines: list[str], offer: list[str]) -> None:
    wire.send(get("/", *offer, *lines, method="POST") + b"1\r\nx\r\n0\r\n\r\n")
    assert is_refused(wire).startswith("No HTTP/1.1 request: ")


@pytest.mark.parametrize("text", [
    "GET / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\nhost: y\r\n\r\n",
    "GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n",
    "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "GET / HTTP/2.0\r\nHost: x\r\n\r\n",
    "GET / HTTP/0.9\r\nHost: x\r\n\r\n",
    "GET / RTSP/1.0\r\nHost: x\r\n\r\n",
    "GET /\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n",
    "GET x HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET http://x HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET / HTTP/1.1 \r\nHost: x\r\n\r\n",
    "GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n",
])  # fmt: skip
def test_what_is_no_request(wire: Wire, text: str) -> None:
    wire.send(text.encode() + b"behind")
    assert is_refused(wire).startswith("No HTTP/1.1 request: ")


@pytest.mark.parametrize("text", [
    "GET / HTTP/1.0\r\n\r\n",
    "GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "GET / HTTP/1.1\r\nhOST: x\r\n\r\n",
    "\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET http://y/ HTTP/1.1\r\nHost: x\r\n\r\n",
])  # fmt: skip
def test_what_is_one(wire: Wire, text: str) -> None:
    wire.send(text.encode())
    status, _, body = wire.answer()
    assert (status, json.loads(body)["path"]) == (200, "/")


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\0", b"hello", b"get / H", b"GET / HTTP/1.1\r\nHost x\r\n"])
def test_garbage_is_refused_before_it_ends(wire: Wire, garbage: bytes) -> None:
    for byte in garbage:
        wire.send(bytes([byte]))
        time.sleep(0.002)
    is_refused(wire)


def test_a_head_without_an_end(wire: Wire) -> None:
    wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n", *[b"X: " + b"x" * 10_000 + b"\r\n"] * 14)
    assert is_refused(wire, 431).startswith("Request headers too large: over 131072 bytes")


# Early answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 100_000, protocol.DROPPED_BYTES])
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
def test_a_body_that_nobody_wants_is_dropped(wire: Wire, size: int, is_chunked: bool) -> None:
    body = (SMUGGLED * (size // len(SMUGGLED) + 1))[:size]
    head = get("/early", f"Content-Length: {size}", method="POST")
    if is_chunked:
        head, body = CHUNKED_POST.replace(b" / ", b" /early "), in_chunks(body[: size * 9 // 10], 50_000)
    wire.send(head)
    status, headers, _ = wire.answer()
    assert (status, headers["Connection"]) == (401, None)
    wire.send(body[:1])
    time.sleep(0.01)
    wire.send(body[1:] + GET)
    assert wire.answer()[0] == 200


@pytest.mark.parametrize("at_once", [True, False])
def test_a_body_too_large_to_drop_costs_the_connection_but_not_the_answer(wire: Wire, at_once: bool) -> None:
    size = protocol.DROPPED_BYTES * 3 if at_once else protocol.DROPPED_BYTES + 1
    head = get("/early", f"Content-Length: {size}", method="POST")
    body = SMUGGLED + b"x" * (size - len(SMUGGLED))
    wire.send(*[head + body] if at_once else [head])
    status, headers, _ = wire.answer()
    assert (status, headers["Connection"]) == (401, "close")
    if not at_once:
        wire.send(body)
    assert wire.rest() == b""


def test_a_chunked_body_too_large_to_drop_costs_the_connection(wire: Wire) -> None:
    wire.send(CHUNKED_POST.replace(b" / ", b" /early "))
    assert wire.answer()[0] == 401
    wire.send(in_chunks(b"x" * 2 * protocol.DROPPED_BYTES))
    assert wire.rest() == b""


def test_a_client_that_sends_for_ever_is_reset(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LAST_BYTES", 1_000_000)
    monkeypatch.setattr(protocol, "LAST_SECONDS", 60)
    wire = connect()
    wire.send(get("/early", "Content-Length: 1000000000", method="POST"))
    with pytest.raises(ConnectionError):  # noqa: PT012
        for _ in range(1000):
            wire.send(b"x" * 1_000_000)


def test_a_client_that_keeps_its_end_open_is_closed(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LAST_SECONDS", 0.3)
    wire = connect()
    wire.send(b"garbage\r\n\r\n")
    is_refused(wire)
    wait_until(lambda: not server.connections)


def test_a_client_that_asks_first(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = ["Content-Length: 4", "Expect: 100-continue"]
    wire = connect()
    for _ in range(2):
        wire.send(get("/", *ask, method="POST"))
        assert wire.received.read(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire.send(b"body")
        assert json.loads(wire.answer()[2])["body"] == "body"
    wire.send(get("/", *ask, method="POST") + b"body")
    assert json.loads(wire.answer()[2])["body"] == "body", "it did not wait: nothing to tell it"
    wire.send(get("/early", *ask, method="POST"))
    status, headers, _ = wire.answer()
    assert (status, headers["Connection"]) == (401, "close"), "nobody knows whether it sends the body now"
    assert wire.rest() == b""


# Answers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000, 3_000_000])
def test_an_answer_that_comes_whole(wire: Wire, size: int) -> None:
    wire.send(get(f"/large?n={size}") * 2)
    for _ in range(2):
        status, headers, body = wire.answer()
        assert (status, headers["Content-Length"], len(body)) == (200, str(size), size)
        assert headers["Date"]
    works(wire)


@pytest.mark.parametrize("size", [1, 100_000, 3_000_000])
def test_an_answer_that_comes_in_parts(connect: Connect, size: int) -> None:
    wire = connect()
    wire.send(get(f"/stream?n={size}") * 2)
    for _ in range(2):
        status, headers, body = wire.answer()
        assert (status, headers["Transfer-Encoding"]) == (200, "chunked")
        assert body == b"a" * 10 + b"b" * size + b"c"
    wire.send(get("/declared?n=20"))
    status, headers, body = wire.answer()
    assert (headers["Content-Length"], headers["Transfer-Encoding"], len(body)) == ("20", None, 20)
    works(wire)
    wire.send(get("/stream?n=5", version="1.0"))
    status, headers, _ = wire.answer()
    assert (headers["Transfer-Encoding"], headers["Connection"]) == (None, "close")
    assert wire.rest() == b"a" * 10 + b"b" * 5 + b"c"


@pytest.mark.parametrize("path", ["/", "/large?n=1000", "/stream?n=1000", "/declared?n=20"])
def test_head_has_no_body(wire: Wire, path: str) -> None:
    wire.send(get(path, method="HEAD") * 2)
    assert [wire.answer(body=False)[0] for _ in range(2)] == [200, 200]
    works(wire)


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body(wire: Wire, status: int) -> None:
    wire.send(get(f"/status?n={status}") * 2)
    for _ in range(2):
        answered, headers, _ = wire.answer(body=False)
        assert (answered, headers["Content-Length"], headers["Transfer-Encoding"]) == (status, None, None)
    works(wire)


@pytest.mark.parametrize(
    "request_",
    [get("/", version="1.0"), get("/", "Connection: keep-alive", version="1.0"), get("/", "Connection: close"),
     get("/", "Connection: Close, Upgrade", "Upgrade: h2c"), get("/stream?n=10", "Connection: close")],
)  # fmt: skip
@pytest.mark.parametrize("behind", [b"", GET])
def test_the_last_answer(wire: Wire, request_: bytes, behind: bytes) -> None:
    wire.send(request_ + behind)
    status, headers, _ = wire.answer()
    assert (status, headers["Connection"]) == (200, "close")
    assert wire.rest() == b""


def test_half_closed_clients_get_their_answers(connect: Connect) -> None:
    for path in ("/", "/slow", f"/large?n={LARGE}", "/stream?n=1000"):
        wire = connect()
        wire.send(get(path) * 2)
        wire.socket.shutdown(socket.SHUT_WR)
        assert [wire.answer()[0] for _ in range(2)] == [200, 200]
        assert wire.rest() == b""


@pytest.mark.parametrize("head", [b"GET / HT", get("/", "Content-Length: 100", method="POST"), CHUNKED_POST + b"5\r\n"])
def test_a_client_that_half_closes_in_the_middle_is_gone(wire: Wire, head: bytes) -> None:
    wire.send(head)
    time.sleep(0.05)
    wire.socket.shutdown(socket.SHUT_WR)
    assert wire.rest() == b""
    assert head.startswith(b"GET") or GONE.wait(5)


def test_the_application_is_told_when_the_client_goes(wire: Wire) -> None:
    wire.send(get("/until-gone"))
    time.sleep(0.1)
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wire.close()
    assert GONE.wait(5)


def test_a_client_that_goes_while_a_long_answer_waits(server: Server, connect: Connect) -> None:
    wire = connect(receive_buffer=4096)
    wire.send(get(f"/stream?n={LARGE}"))
    wire.socket.recv(1000)
    wire.close()
    wait_until(lambda: not server.uvicorn.server_state.tasks and not server.connections)


# Applications that fail -----------------------------------------------------------------------------------------------


def is_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    assert [record for record in caplog.records if record.exc_info]
    caplog.clear()


@pytest.mark.parametrize(
    "path", ["/fails", "/nothing", "/injection", "/wrong-length", "/declared?n=21", "/declared?n=19", "/declared?n=9"]
)
def test_an_application_that_fails(connect: Connect, caplog: pytest.LogCaptureFixture, path: str) -> None:
    wire = connect()
    wire.send(get(path) + GET)
    if path.startswith("/declared"):
        assert wire.is_closed(), "what has gone out is not the whole answer"
    else:
        assert is_refused(wire, 500) == "Internal server error"
    if path != "/nothing":
        is_told_in_the_log(caplog)


def test_an_application_that_answers_twice(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    wire.send(get("/answers-twice"))
    assert wire.answer()[2] == b"first"
    works(wire)
    is_told_in_the_log(caplog)


# The end of the process -----------------------------------------------------------------------------------------------


def test_at_the_end_what_has_begun_is_answered_and_what_is_idle_closed() -> None:
    service = Server()
    wires = [Wire(service.port) for _ in range(6)]
    fresh, idle, waiting, head, body, pipeline = wires
    works(idle)
    waiting.send(get("/slow"))
    head.send(GET[:-2])
    body.send(get("/", "Content-Length: 4", method="POST"))
    pipeline.send(get("/slow") + GET)
    time.sleep(0.1)
    service.stop()
    assert fresh.rest() == b""
    assert idle.rest() == b""
    head.send(b"\r\n")
    body.send(b"body")
    for wire in (waiting, head, body, pipeline):
        status, headers, _ = wire.answer()
        assert (status, headers["Connection"]) == (200, "close")
        assert wire.rest() == b""
    assert service.has_ended()
    for wire in wires:
        wire.close()


def test_at_the_end_a_request_that_is_on_its_way_is_answered() -> None:
    service = Server()
    wires = [Wire(service.port) for _ in range(2)]
    works(wires[0])
    service.stop()
    wait_until(lambda: all(connection.is_shutting_down for connection in service.connections))
    for wire in wires:
        wire.send(GET)
    for wire in wires:
        status, headers, _ = wire.answer()
        assert (status, headers["Connection"]) == (200, "close")
        wire.close()
    assert service.has_ended()


def test_at_the_end_a_request_that_takes_too_long_is_a_503() -> None:
    service = Server()
    wire = Wire(service.port)
    wire.send(get("/hangs"))
    time.sleep(0.1)
    service.stop()
    status, headers, body = wire.answer()
    assert (status, headers["Retry-After"], body) == (503, "1", b'{"detail": "Service unavailable"}')
    assert service.has_ended()
    wire.close()
