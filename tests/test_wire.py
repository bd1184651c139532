"""What comes over the wire and no HTTP library would send: the service answers, and works on."""

import http.client
import json
import re
import select
import socket
import struct
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest

from service.protocol import HEAD_BYTES
from service.web import BODY_BYTES
from tests.conftest import SECRET, Served, make_token, serving, wait_until

Headers = dict[str, str]

# Java's HttpClient sends this with everything, until it is told that the service speaks HTTP/1.1.
HTTP_2_OFFER = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABk"}
CHUNKED = {"Transfer-Encoding": "chunked"}
NONE: Headers = {}
TASK = b'{"title": "Buy milk"}'
WAIT = 10  # seconds for an answer; the longest that is meant to be waited for takes 5


class Wire:
    """One connection, on which the test itself chooses every byte."""

    def __init__(self, served: Served) -> None:
        self.socket = socket.create_connection(("127.0.0.1", served.port), timeout=WAIT)
        self._received = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self, *, body: bool = True) -> tuple[int, Message, bytes]:
        """Returns the next answer's status, headers and body, once it has been seen to carry what every answer does."""
        status = int(self._received.readline().split()[1])
        headers = http.client.parse_headers(self._received)
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", headers.get("X-Request-Id", ""))
        assert headers["X-Content-Type-Options"] == "nosniff"
        return status, headers, self._received.read(int(headers.get("Content-Length", 0))) if body else b""

    def rest(self) -> bytes:
        """Returns everything until the service closes the connection."""
        return self._received.read()

    def close(self) -> None:
        self._received.close()
        self.socket.close()


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


def in_chunks(body: bytes, size: int = 10_000) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])


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


def test_headers_of_64_kib_are_refused(wire: Wire, user: str) -> None:
    wire.send(request(user, headers={"Cookie": "x" * 65_536}))
    status, headers, body = wire.answer()
    assert status == 431
    assert body.startswith(b'{"detail": "Request headers too large: ')
    assert headers["Content-Type"] == "application/json"
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
