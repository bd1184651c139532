"""What comes over the wire and no HTTP library would send: the service answers, and works on."""

import json
import re
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import httpx
import psutil
import pytest

from service.web.application import HEADER_BYTES
from service.web.protocol import HEAD_BYTES
from service.web.request import BODY_BYTES
from tests import wire as wire_module
from tests.conftest import SECRET, Served, make_token, serving, wait_until
from tests.wire import in_chunks

Headers = dict[str, str]

# Java's HttpClient sends this with everything, until it is told that the service speaks HTTP/1.1.
HTTP_2_OFFER = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABk"}
CHUNKED = {"Transfer-Encoding": "chunked"}
NONE: Headers = {}
TASK = b'{"title": "Buy milk"}'


class Wire(wire_module.Wire):
    """A connection to the service."""

    def __init__(self, served: Served) -> None:
        super().__init__(served.port)

    def answer(self, *, body: bool = True) -> tuple[int, Message, bytes]:
        """Returns the next answer's status, headers and body, once it has been seen to carry what every answer does."""
        status, headers, content = super().answer(body=body)
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", headers.get("X-Request-Id", ""))
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert abs(parsedate_to_datetime(headers["Date"]).timestamp() - time.time()) < 10
        return status, headers, content


@pytest.fixture
def connect(served: Served) -> Iterator[Callable[[], Wire]]:
    """Opens connections. After the test the service must answer on a new one, and its log must tell of no bug."""
    wires = []

    def opened() -> Wire:
        wires.append(Wire(served))
        return wires[-1]

    yield opened
    for wire in wires:
        wire.close()
    assert httpx.get(served.address + "/readyz").status_code == 200
    assert "Traceback" not in served.log.read_text()


@pytest.fixture
def wire(connect: Callable[[], Wire]) -> Wire:
    return connect()


@pytest.fixture
def user() -> str:
    return f"user-{uuid4()}"


def request(user: str, method: str = "GET", body: bytes = b"", headers: Headers = NONE, *, rest: str = "") -> bytes:
    """Returns a request for the user's tasks, or for what the rest of the path names below them."""
    own = {"Host": "x", "Authorization": f"Bearer {make_token(user)}"}
    if body and "Transfer-Encoding" not in headers:
        own["Content-Length"] = str(len(body))
    lines = [f"{method} /api/{quote(user, safe='')}/tasks{rest} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in (own | headers).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def with_length(user: str, body: bytes) -> bytes:
    return request(user, "POST", body)


def with_chunks(user: str, body: bytes) -> bytes:
    return request(user, "POST", in_chunks(body), CHUNKED)


def padded(size: int) -> bytes:
    return TASK[:-1].ljust(size - 1) + b"}"


def works(wire: Wire, user: str) -> None:
    """The connection's next request is answered."""
    wire.send(request(user))
    assert wire.answer()[0] == 200


# Bodies that do not arrive --------------------------------------------------------------------------------------------


def test_a_body_that_does_not_end_is_a_408_after_five_seconds(connect: Callable[[], Wire], user: str) -> None:
    stopped, in_the_middle_of_a_chunk, dripping = wires = [connect() for _ in range(3)]
    stopped.send(request(user, "POST", TASK[:10], {"Content-Length": "100"}))
    in_the_middle_of_a_chunk.send(request(user, "POST", b"64\r\n" + TASK[:10], CHUNKED))
    dripping.send(request(user, "POST", TASK[:10], {"Content-Length": "60000"}))
    works(connect(), user)

    while not select.select([dripping.socket], [], [], 0.1)[0]:
        dripping.send(b" ")
    for wire in wires:
        status, headers, body = wire.answer()
        assert (status, body) == (408, b'{"detail": "Request body incomplete"}')
        assert headers["Connection"] == "close"
        assert wire.rest() == b""


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("headers", [{"Content-Length": "100"}, CHUNKED], ids=str)
def test_a_client_may_hang_up_in_the_middle_of_a_body(
    wire: Wire, user: str, served: Served, headers: dict[str, str], reset: bool
) -> None:
    request_id = str(uuid4())
    wire.send(request(user, "POST", b"64\r\n" + TASK[:10], headers | {"X-Request-Id": request_id}))
    if reset:
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()
    wait_until(lambda: request_id in served.log.read_text())


# Sizes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1, 64 * 1024])
@pytest.mark.parametrize("where", ["a header", "many headers", "the target"])
def test_request_line_and_headers_may_have_32_kib_together(wire: Wire, user: str, size: int, where: str) -> None:
    head = request(user).removesuffix(b"\r\n")
    missing = size - len(head)
    if where == "a header":
        head += b"Cookie: ".ljust(missing - 2, b"x") + b"\r\n"
    elif where == "many headers":
        head += b"a: b\r\n" * (missing // 6) + b"x" * (missing % 6)
        head = head.removesuffix(b"x" * (missing % 6)).replace(b"a: b\r\n", b"a: b" + b"x" * (missing % 6) + b"\r\n", 1)
    else:
        head = head.replace(b"/tasks ", b"/tasks?" + b"x" * (missing - 1) + b" ")
    assert len(head) == size
    wire.send(head + b"\r\n")
    status, headers, body = wire.answer()
    if size <= HEADER_BYTES:
        assert status == (422 if where == "the target" else 200)
    else:
        assert (status, headers["Content-Type"]) == (431, "application/json")
        assert json.loads(body) == {"detail": f"Request headers too large: {size} bytes, at most {HEADER_BYTES}"}
    works(wire, user)


@pytest.mark.parametrize("form", [with_length, with_chunks])
def test_a_body_may_have_64_kib_and_no_byte_more(wire: Wire, user: str, form: Callable[[str, bytes], bytes]) -> None:
    wire.send(form(user, padded(BODY_BYTES)))
    assert wire.answer()[0] == 201
    wire.send(form(user, padded(BODY_BYTES + 1)))
    status, _, body = wire.answer()
    assert (status, body) == (413, b'{"detail": "Request body too large"}')
    works(wire, user)


def test_a_client_that_asks_first_is_told_to_go_on_or_that_it_is_too_much(wire: Wire, user: str) -> None:
    wire.send(request(user, "POST", headers={"Content-Length": str(len(TASK)), "Expect": "100-continue"}))
    assert wire.socket.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.send(TASK)
    assert wire.answer()[0] == 201
    wire.send(request(user, "POST", headers={"Content-Length": str(BODY_BYTES + 1), "Expect": "100-continue"}))
    assert wire.answer()[0] == 413


def test_headers_without_an_end_are_refused(wire: Wire) -> None:
    start = b"GET /healthz HTTP/1.1\r\nX: "
    wire.send(start.ljust(HEAD_BYTES + 1, b"x"))
    status, headers, body = wire.answer()
    assert (status, headers["Connection"]) == (431, "close")
    assert body.startswith(b'{"detail": "Request headers too large: ')
    assert wire.rest() == b""


# Users in the path ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("character", ["x", "ü", "𝕏", "%", " "])
def test_a_user_id_may_have_255_characters(wire: Wire, character: str) -> None:
    user = (str(uuid4()) + character * 255)[:255]
    wire.send(with_length(user, TASK))
    status, headers, _ = wire.answer()
    assert status == 201
    assert headers["Location"].startswith(f"/api/{quote(user, safe='')}/tasks/")

    wire.send(with_length(user + character, TASK))
    status, _, body = wire.answer()
    assert status == 422
    assert b'"loc": ["path", "user_id"], "msg": "String should have at most 255 characters, not 256"' in body
    works(wire, user)


def test_a_user_id_has_no_nul(wire: Wire) -> None:
    wire.send(request("a\0b"))
    status, _, body = wire.answer()
    assert status == 422
    assert b'"loc": ["path", "user_id"]' in body


@pytest.mark.parametrize("user", ["a/b", "a/tasks", "/", "a/tasks/b", "../b"])
def test_a_user_id_with_a_slash_is_refused(wire: Wire, user: str) -> None:
    wire.send(with_length(user, TASK))
    assert 400 <= wire.answer()[0] < 500


# Connections ----------------------------------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_their_order(wire: Wire, user: str) -> None:
    refused = request(user, "POST", b"[]")
    wire.send(request(user) + with_length(user, TASK) + refused + with_chunks(user, TASK) + request(user) * 20)
    answers = [wire.answer() for _ in range(24)]
    assert [status for status, _, _ in answers] == [200, 201, 422, 201] + [200] * 20
    assert [body.count(b'"id"') for _, _, body in answers] == [0, 1, 0, 1] + [2] * 20


@pytest.mark.parametrize(
    ("method", "body", "headers", "status"),
    [
        ("POST", TASK, {"Authorization": "Bearer x"}, 401),
        ("DELETE", TASK, NONE, 405),
        ("POST", TASK, {"Content-Type": "text/plain"}, 415),
        ("POST", b"{", NONE, 422),
    ],
)
def test_a_connection_outlives_an_error(
    wire: Wire, user: str, method: str, body: bytes, headers: Headers, status: int
) -> None:
    wire.send(request(user, method, body, headers))
    answered, received, detail = wire.answer()
    assert answered == status
    assert detail.startswith(b'{"detail": ')
    assert received["Cache-Control"] == "private, no-cache"
    works(wire, user)


def test_head_is_answered_without_a_body(wire: Wire, user: str) -> None:
    wire.send(request(user, "HEAD"))
    status, headers, _ = wire.answer(body=False)
    assert (status, headers["Content-Length"]) == (200, "2")
    works(wire, user)


def test_an_offer_to_speak_http_2_is_passed_over(wire: Wire, user: str) -> None:
    wire.send(request(user, headers=HTTP_2_OFFER))
    assert wire.answer()[0] == 200
    works(wire, user)


@pytest.mark.parametrize(
    ("body", "framing"), [(b'{"is_completed": false}', NONE), (in_chunks(b'{"is_completed": false}'), CHUNKED)]
)
def test_an_offer_to_speak_http_2_does_not_turn_a_set_into_a_toggle(
    wire: Wire, user: str, body: bytes, framing: Headers
) -> None:
    wire.send(with_length(user, TASK))
    task = json.loads(wire.answer()[2])
    wire.send(request(user, "PATCH", body, HTTP_2_OFFER | framing, rest=f"/{task['id']}/complete"))
    status, _, answer = wire.answer()
    assert (status, json.loads(answer)) == (200, task)
    works(wire, user)


GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),
    b"hello\r\n\r\n",
    b"get /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n",
    b"GET /health z HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n",
    b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost x\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\0y\r\n\r\n",
    b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
    b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_is_no_http_is_a_400(wire: Wire, garbage: bytes) -> None:
    wire.send(garbage)
    assert wire.rest().startswith(b"HTTP/1.1 400 ")


def test_what_is_no_http_gets_an_error_like_any_other(wire: Wire) -> None:
    wire.send(GARBAGE[1])
    status, headers, body = wire.answer()
    assert (status, headers["Content-Type"]) == (400, "application/json")
    assert body.startswith(b'{"detail": ')


def test_a_chunk_that_is_none_is_a_400(wire: Wire, user: str) -> None:
    wire.send(request(user, "POST", b"xyz\r\n", CHUNKED))
    assert wire.rest().startswith(b"HTTP/1.1 400 ")


# What was seen to go wrong --------------------------------------------------------------------------------------------


def test_a_token_in_a_trailer_is_no_token(wire: Wire, user: str) -> None:
    path = f"/api/{user}/tasks"
    wire.send(f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    trailer = f"Authorization: Bearer {make_token(user)}\r\n\r\n".encode()
    wire.send(in_chunks(TASK).removesuffix(b"\r\n") + trailer)
    assert wire.answer()[0] == 401
    works(wire, user)


def test_garbage_behind_two_requests_is_answered_last(wire: Wire, served: Served) -> None:
    before = served.log.read_text().count(" 500 ")
    wire.send(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n" * 2 + b"garbage\r\n\r\n")
    assert [wire.answer()[0] for _ in range(3)] == [200, 200, 400]
    assert wire.rest() == b""
    assert served.log.read_text().count(" 500 ") == before


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
def test_a_body_behind_an_offer_is_not_the_next_request(wire: Wire, user: str, is_chunked: bool) -> None:
    """Java's HttpClient makes the offer with everything that it sends."""
    with_an_offer: Headers = {"Connection": "Upgrade", "Upgrade": "websocket"}
    body = TASK[:-1] + b', "description": "\\r\\n\\r\\nDELETE / HTTP/1.1"}'
    if is_chunked:
        whole = request(user, "POST", in_chunks(body, 10), with_an_offer | CHUNKED)
    else:
        whole = request(user, "POST", body, with_an_offer)
    head, _, rest = whole.partition(b"\r\n\r\n")
    wire.send(head + b"\r\n\r\n")
    time.sleep(0.1)
    wire.send(rest[:5])
    time.sleep(0.1)
    wire.send(rest[5:] + request(user))
    assert wire.answer()[0] == 201
    status, _, tasks = wire.answer()
    assert (status, len(json.loads(tasks))) == (200, 1)
    works(wire, user)


def resident(served: Served) -> int:
    return int(psutil.Process(served.process.pid).memory_info().rss)


@pytest.mark.parametrize(
    "flood",
    [
        b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx",
        b"POST /api/x/tasks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["documents", "health", "bodies", "chunked"],
)
def test_pipelines_that_nobody_reads_take_little_memory(
    connect: Callable[[], Wire], served: Served, flood: bytes
) -> None:
    before = resident(served)
    wires = [connect() for _ in range(20)]
    for wire in wires:
        wire.socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                wire.socket.send(flood * 1000)
    for _ in range(10):
        assert httpx.get(served.address + "/healthz").status_code == 200
    assert resident(served) - before < len(wires) * 1_000_000


@pytest.mark.parametrize(
    ("start", "drip"),
    [
        (b"0\r\n", b"X-Trailer: x\r\n"),
        (b"0\r\nX: ", b"x"),
        (b"1;", b"x"),
        (b"", b"0"),
    ],
    ids=["trailers", "a trailer", "an extension", "zeros"],
)
def test_framing_without_an_end_takes_no_memory(
    wire: Wire, user: str, served: Served, start: bytes, drip: bytes
) -> None:
    before = resident(served)
    wire.send(request(user, "POST", start, CHUNKED))
    with pytest.raises(ConnectionError):  # noqa: PT012
        for _ in range(73):
            wire.send(drip * (1_000_000 // len(drip)))
    assert resident(served) - before < 10_000_000


def test_many_small_chunks_disturb_nobody(wire: Wire, user: str, served: Served) -> None:
    wire.send(request(user, "POST", in_chunks(padded(BODY_BYTES), 1), CHUNKED))
    for _ in range(20):
        assert httpx.get(served.address + "/healthz").status_code == 200
    assert wire.answer()[0] == 201


def test_idle_connections_are_closed_when_the_operator_says(tmp_path: Path, database_url: str, user: str) -> None:
    with serving(tmp_path, DATABASE_URL=database_url, BETTER_AUTH_SECRET=SECRET, KEEP_ALIVE="1") as service:
        wires = [Wire(service) for _ in range(4)]
        _, crlf, early, extension = wires
        for wire in wires:
            works(wire, user)
        crlf.send(b"\r\n")
        early.send(request(user, "POST", b"x", {"Authorization": "Bearer x", "Content-Length": "2"}))
        assert early.answer()[0] == 401
        extension.send(request(user, "POST", b"1;half", {"Authorization": "Bearer x"} | CHUNKED))
        assert extension.answer()[0] == 401
        for wire in wires:
            assert wire.rest() == b""
            wire.close()
        assert "Traceback" not in service.log.read_text()


# Behind a proxy -------------------------------------------------------------------------------------------------------


def next_page(wire: Wire, user: str, headers: Headers) -> str:
    wire.send(request(user, headers=headers, rest="?limit=1"))
    status, answered, _ = wire.answer()
    assert status == 200
    link = re.fullmatch(r'<([!#-;=?-~]+)>; rel="next"', answered["Link"])
    assert link is not None, answered["Link"]
    return link[1].partition("?")[0]


def with_two_tasks(wire: Wire, user: str) -> None:
    for _ in range(2):
        wire.send(with_length(user, TASK))
        assert wire.answer()[0] == 201


FORWARDED = {"Host": "tasks.example.org", "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}


def test_a_link_has_the_scheme_that_a_trusted_proxy_was_asked_with(wire: Wire, user: str) -> None:
    with_two_tasks(wire, user)
    path = f"/api/{user}/tasks"
    assert next_page(wire, user, {"Host": "tasks.example.org"}) == "http://tasks.example.org" + path
    assert next_page(wire, user, {"Host": "tasks.example.org:8443"}) == "http://tasks.example.org:8443" + path
    assert next_page(wire, user, FORWARDED) == "https://tasks.example.org" + path
    assert next_page(wire, user, {"Host": "x", "X-Forwarded-Proto": "gopher"}) == "http://x" + path
    assert next_page(wire, user, {"Host": "x", "X-Forwarded-Host": "evil.example"}) == "http://x" + path


def test_a_link_does_not_believe_an_address_that_is_not_trusted(tmp_path: Path, database_url: str, user: str) -> None:
    environment = {"DATABASE_URL": database_url, "BETTER_AUTH_SECRET": SECRET, "FORWARDED_ALLOW_IPS": "192.0.2.1"}
    with serving(tmp_path, **environment) as service:
        wire = Wire(service)
        with_two_tasks(wire, user)
        assert next_page(wire, user, FORWARDED) == f"http://tasks.example.org/api/{user}/tasks"
        wire.close()


@pytest.mark.parametrize(
    "host", ['x>; rel="next", <http://evil.example/', "a b", "x/y", "x?y", "x#y", "user@x", '"', "é", "x:port", ""]
)
def test_a_host_that_is_none_gets_into_no_link(wire: Wire, served: Served, user: str, host: str) -> None:
    with_two_tasks(wire, user)
    wire.send(request(user, headers={"Host": host}, rest="?limit=1"))
    status, headers, _ = wire.answer()
    assert status in (200, 400)
    if status == 200:
        assert re.fullmatch(rf'<{served.address}/api/{user}/tasks\?[\w&=-]+>; rel="next"', headers["Link"])


def test_a_304_has_no_body_and_the_connection_goes_on(wire: Wire, user: str) -> None:
    for method in ("GET", "HEAD"):
        wire.send(request(user, method, headers={"If-None-Match": 'W/"0"'}))
        status, headers, _ = wire.answer(body=False)
        assert (status, headers["ETag"], headers["Content-Length"]) == (304, 'W/"0"', None)
        assert headers["Transfer-Encoding"] is None
    works(wire, user)


def test_a_query_that_is_no_utf_8_is_a_422(wire: Wire, user: str) -> None:
    wire.send(request(user, rest="?q=x").replace(b"?q=x", b"?q=\xff\xfe"))
    assert wire.answer()[0] in (400, 422)
