"""The HTTP/1.1 server's side of a connection, for uvicorn to run; and what keeps one that nobody wants from staying.

One request at a time: what comes behind a request stays as it came, unread, until the answer is complete. So answers
leave in the order of their requests, an error for the next one too, and a connection holds one read beside what it is
working on. Each connection has a deadline, and one sweep over all of them looks at it: a timer for each would cost more
than all the rest that is done here for a request.

Of uvicorn it uses what tests/test_protocol.py names.
"""

import asyncio
import fcntl
import json
import logging
import math
import socket
import struct
import termios
from collections.abc import Iterable
from http import HTTPStatus
from secrets import token_hex
from typing import Any
from urllib.parse import unquote
from weakref import WeakSet

from httptools import HttpRequestParser
from starlette.types import ASGIApp, Message, Scope

from service.web.errors import Problem, unavailable
from service.web.framing import Body, Head, check_beginning, check_more

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 0.5  # between two looks at all connections
HEAD_SECONDS = 20  # from a connection's beginning, or a head's first byte, to the head's end
BODY_SECONDS = 5  # from the head's end to the body's, and beyond that a second for each BODY_RATE bytes that have come
BODY_RATE = 64 * 1024
ANSWER_SECONDS = 30  # while the client takes nothing of an answer
CROWDED_SECONDS = 2  # the same, while more than UNSENT_BYTES of answers wait in this process
UNSENT_BYTES = 64 * 1024 * 1024
LAST_SECONDS = 2  # for the client to read the last answer, while what it still sends is dropped
LAST_BYTES = 16 * 1024 * 1024
DROPPED_BYTES = 1024 * 1024  # of a body that nobody wants any more; a larger one costs the connection
HEAD_BYTES = 128 * 1024  # of a head that does not end; Service has the answer for one that does and is too large
BODY_BYTES = 64 * 1024  # that wait for the application; then reading stops
LARGE_BYTES = 256 * 1024  # of an answer's body
CLOSING_SECONDS = 0.2  # for a request that may be on its way, when the process is shut down

NEVER = math.inf
ASGI = {"version": "3.0", "spec_version": "2.3"}
STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in HTTPStatus}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
WRONG_LENGTH = "the answer's body is not as long as it says"


class Protocol(asyncio.Protocol):
    """One connection."""

    def __init__(
        self,
        config: Any,
        server_state: Any,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.loop = _loop or asyncio.get_running_loop()
        self.state = server_state
        self._app: ASGIApp = config.loaded_app
        self._root_path: str = config.root_path
        self._raw_root_path = self._root_path.encode("ascii")
        self._idle_seconds: float = config.timeout_keep_alive
        self._app_state = app_state
        self._deadline = self.loop.time() + HEAD_SECONDS
        self._rest = b""  # what has come and cannot be worked on yet
        self._beginning: HttpRequestParser | None = None  # of a head that has not come whole
        self._looked_at = 0  # bytes of it
        self._body: Body | None = None  # of the request that is coming
        self._dropped = 0  # bytes that came for nobody
        self._exchange: Exchange | None = None  # the request that is being answered
        self._is_idle = False  # between two requests
        self._is_last = False  # nothing more is read on this connection
        self._has_eof = False  # nothing more comes
        self._is_reading = True
        self.is_writable = True  # the client takes what is written
        self.is_shutting_down = False
        self._written = 0  # bytes, in all
        self._taken = 0  # bytes that the client has acknowledged, in all, when that was looked at
        self.stalled_since = self.loop.time()

    # What the event loop and uvicorn call

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as it is in TCP
        """Begins the connection."""
        self.transport = transport
        self._server = _address(transport, "sockname")
        self._client = _address(transport, "peername")
        self.state.connections.add(self)
        _keep_sweeping(self.state, self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the connection."""
        self.state.connections.discard(self)
        self._rest = b""
        if self._exchange is not None:
            self._exchange.lose_client()
            self._exchange = None

    def data_received(self, data: bytes) -> None:
        """Takes what the client sent."""
        if self._is_last:
            self._dropped += len(data)
            if self._dropped > LAST_BYTES:
                self.transport.abort()
            return
        self._rest = self._rest + data if self._rest else data
        self._advance()

    def eof_received(self) -> bool:
        """Takes that the client sends nothing more; returns whether it still gets its answer."""
        self._has_eof = True
        return self._exchange is not None and self._body is None and not self._exchange.is_endless

    def pause_writing(self) -> None:
        """Takes that the client does not keep up with what is written."""
        self.is_writable = False

    def resume_writing(self) -> None:
        """Takes that it has caught up."""
        self.is_writable = True
        if self._exchange is not None:
            self._exchange.wake()
        elif not self._is_last:
            self._advance()

    def shutdown(self) -> None:
        """Ends the connection when the request that is under way, or will be in a moment, is answered."""
        self.is_shutting_down = True
        if self._exchange is None and self._body is None and not self._rest:
            self._deadline = min(self._deadline, self.loop.time() + CLOSING_SECONDS)

    # What comes

    def _advance(self) -> None:
        """Takes what can be worked on of what has come; stops reading while anything has to wait for this side."""
        try:
            while self._rest and self._can_take() and self._take():
                pass
        except Problem as problem:
            self.refuse(problem)
        self._read(not self._rest or self._can_take())

    def _can_take(self) -> bool:
        if self._body is not None:
            return self._exchange is None or self._exchange.unread < BODY_BYTES
        return self._exchange is None and self.is_writable

    def _take(self) -> bool:
        return self._take_head() if self._body is None else self._take_body(self._body)

    def _read(self, wanted: bool) -> None:
        if wanted == self._is_reading or self._has_eof:
            return
        self._is_reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()
            if self._body is not None:
                self._deadline = NEVER  # it is not the client that is waited for

    def _take_head(self) -> bool:
        data = self._rest = self._rest.lstrip(b"\r\n")  # RFC 9112, 2.2
        end = data.find(b"\r\n\r\n") + len(b"\r\n\r\n")
        if end < len(b"\r\n\r\n"):
            if data:
                self._await_head(data)
            return False
        self._rest = data[end:]
        self._beginning = None
        self._is_idle = False
        head = Head(data[:end])
        self._body = head.body
        self._deadline = NEVER if head.body is None else self.loop.time() + BODY_SECONDS
        self._exchange = Exchange(self, head, self._scope(head))
        task = self.loop.create_task(self._exchange.run(self._app))
        self.state.tasks.add(task)
        task.add_done_callback(self.state.tasks.discard)
        return True

    def _await_head(self, data: bytes) -> None:
        if self._beginning is None:
            if self._is_idle:
                self._is_idle = False
                self._deadline = self.loop.time() + HEAD_SECONDS
            self._beginning = check_beginning(data)
        else:
            check_more(self._beginning, data[self._looked_at :])
        self._looked_at = len(data)
        if len(data) > HEAD_BYTES:
            raise Problem(431, f"Request headers too large: over {HEAD_BYTES} bytes, and no end")

    def _scope(self, head: Head) -> Scope:
        path = unquote(head.path) if "%" in head.path else head.path
        return {
            "type": "http",
            "asgi": ASGI,
            "http_version": head.version,
            "server": self._server,
            "client": self._client,
            "scheme": "http",
            "method": head.method,
            "root_path": self._root_path,
            "path": self._root_path + path,
            "raw_path": self._raw_root_path + head.raw_path,
            "query_string": head.query,
            "headers": head.headers,
            "state": self._app_state.copy(),
        }

    def _take_body(self, body: Body) -> bool:
        part, used = body.take(self._rest, BODY_BYTES)
        self._rest = self._rest[used:]
        self._deadline += len(part) / BODY_RATE
        if body.is_whole:
            self._body = None
            self._deadline = NEVER
        if self._exchange is not None:
            self._exchange.add(part, used, is_whole=body.is_whole)
        else:
            self._drop(used)
        return used > 0

    def _drop(self, size: int) -> None:
        self._dropped += size
        if self._body is None:
            self._be_idle()
        elif self._dropped > DROPPED_BYTES:
            self._end(gently=True)

    def go_on_with_body(self) -> None:
        """Takes more of the body, and gives the client the time for it if it had to wait."""
        if self._body is not None:
            if self._deadline == NEVER:
                self._deadline = self.loop.time() + BODY_SECONDS
            self._advance()

    def ask_for_body(self) -> None:
        """Tells a client that waits for it that it may send the body, whose time begins now."""
        self.write(CONTINUE)
        self._deadline = self.loop.time() + BODY_SECONDS

    # What is answered

    def write(self, data: bytes) -> None:
        """Writes, with a system call."""
        if not self.transport.is_closing():
            self._written += len(data)
            self.transport.write(data)

    def begin_stream(self) -> None:
        """Has the kernel give up a client that has vanished: what it does not acknowledge waits there, not here."""
        option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux's
        if option is not None and not self.transport.is_closing():
            connection = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, option, int(1000 * ANSWER_SECONDS))

    def loses_its_place(self, exchange: "Exchange") -> bool:
        """Tells whether nobody can say where the next request will begin, or it would take too long to get there."""
        return self._body is not None and (exchange.expects_continue or self._body.missing > DROPPED_BYTES)

    def answered(self, *, is_last: bool) -> None:
        """Goes on to the next request, or ends the connection."""
        self.state.total_requests += 1
        self._exchange = None
        self._dropped = 0
        if is_last:
            self._end(gently=self._body is not None or bool(self._rest))
        elif self._body is None:
            self._be_idle()
            if self._rest:
                self._advance()
        else:
            self.go_on_with_body()

    def _be_idle(self) -> None:
        self._is_idle = True
        self._deadline = self.loop.time() + self._idle_seconds
        if self._has_eof and not self._rest:
            self._end(gently=False)

    def refuse(self, problem: Problem) -> None:
        """Answers what never came to the application, or was left by it without an answer; ends the connection."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.lose_client()
            if exchange.has_begun:
                self.transport.abort()  # what has gone out must not pass for the whole answer
                return
        elif self._body is not None:  # it is answered
            self._end(gently=True)
            return
        request_id = token_hex(16)
        logger.warning("%d id=%s: %s", problem.status, request_id, problem.detail)
        body = json.dumps({"detail": problem.detail}).encode()
        headers = [
            *self.state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
            *[(name.lower().encode(), value.encode()) for name, value in (problem.headers or {}).items()],
            (b"connection", b"close"),
        ]
        self.write(head_bytes(problem.status, headers) + b"\r\n" + body)
        self._end(gently=True)

    def _end(self, *, gently: bool) -> None:
        """Closes the connection; gently, the client may read the last answer before what it sends meets a reset."""
        self._is_last = True
        self._is_idle = False
        self._rest = b""
        if self.transport.is_closing():
            return
        if gently and not self._has_eof:
            self._deadline = self.loop.time() + LAST_SECONDS
            self.transport.write_eof()
            self._read(wanted=True)
        else:
            self.transport.close()

    # What is due

    def check(self, now: float) -> int:
        """Ends what has taken too long; returns how many bytes wait to be sent."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent:
            self.stalled_since = now
        else:
            taken = self._written - unsent - _unacknowledged(self.transport)
            if taken > self._taken:
                self._taken = taken
                self.stalled_since = now
            elif now - self.stalled_since > ANSWER_SECONDS:
                self.transport.abort()
            if self._is_idle and not self.is_shutting_down:
                self._deadline = now + self._idle_seconds  # it is not idle yet
        if now > self._deadline:
            self._deadline = NEVER
            if self._exchange is not None:
                self._exchange.miss_body()
            else:
                self._is_last = True
                self.transport.close()
        return unsent


class Exchange:
    """A request and its answer, as ASGI has them.

    An answer's head waits for its body, and both leave together: uvloop makes a system call of each write.
    """

    def __init__(self, connection: Protocol, head: Head, scope: Scope) -> None:
        self._connection = connection
        self._scope = scope
        self._method = head.method
        self._version = head.version
        self._keeps_alive = head.keep_alive and head.version == "1.1"
        self.expects_continue = head.expects_continue
        self._is_whole = head.body is None  # the request has come
        self._has_given_all = False  # to the application
        self._is_late = False
        self._has_client = True
        self._parts: list[bytes] = []  # of the body
        self.unread = 0  # bytes that came for them
        self._start: Message | None = None  # the answer's first message, until the second comes
        self.has_begun = False  # something of the answer is written
        self.is_endless = False  # events are sent for as long as the client is there: its end is the answer's
        self._is_answered = False
        self._is_bodiless = False  # the answer has no body, whatever the application says
        self._is_chunked = False
        self._left: int | None = None  # of the answer's body, as far as that is declared
        self._changed: asyncio.Event | None = None

    async def run(self, app: ASGIApp) -> None:
        """Has the application answer, and answers in its place when it does not."""
        try:
            await app(self._scope, self.receive, self.send)
        except asyncio.CancelledError:  # uvicorn's, when the time for shutting down is over
            self._give_up(unavailable("Service unavailable"))
            self._connection.transport.close()
            raise
        except Exception:
            logger.exception("The application failed")
        self._give_up(Problem(500, "Internal server error"))

    def _give_up(self, problem: Problem) -> None:
        if self._has_client and not self._is_answered:
            self._connection.refuse(problem)

    # What the connection tells

    def add(self, part: bytes, used: int, *, is_whole: bool) -> None:
        """Adds to the body a part that took so many bytes to send."""
        self._is_whole = is_whole
        self.unread += used
        if part:
            self._parts.append(part)
        if part or is_whole:
            self.wake()

    def miss_body(self) -> None:
        """Takes that the body has not come in time."""
        self._is_late = True
        self.wake()

    def lose_client(self) -> None:
        """Takes that no answer is wanted any more."""
        self._has_client = False
        self.wake()

    def wake(self) -> None:
        """Has those who wait for a change look for it."""
        if self._changed is not None:
            self._changed.set()

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = asyncio.Event()
        self._changed.clear()
        await self._changed.wait()

    # What the application calls

    async def receive(self) -> Message:
        """Returns the next part of the body, or says that the client has gone. Raises TimeoutError."""
        while self._has_client and not self._is_answered:
            if self._parts or (self._is_whole and not self._has_given_all):
                return self._next_part()
            if self._is_late:
                raise TimeoutError
            if self.expects_continue and not self._is_whole:
                self.expects_continue = False
                self._connection.ask_for_body()
            await self._change()
        return {"type": "http.disconnect"}

    def _next_part(self) -> Message:
        body = b"".join(self._parts)
        self._parts.clear()
        self.unread = 0
        self._has_given_all = self._is_whole
        message = {"type": "http.request", "body": body, "more_body": not self._is_whole}
        self._connection.go_on_with_body()
        return message

    async def send(self, message: Message) -> None:
        """Sends a part of the answer. Waits while the client does not keep up with a long one."""
        if not self._has_client:
            return
        if message["type"] == "http.response.start":
            if self.has_begun:
                raise RuntimeError("the answer has begun")
            self._start = message
            return
        body, is_followed = message.get("body", b""), message.get("more_body", False)
        if self._start is not None and not is_followed:
            self._write_whole(self._start, body)
            return
        if self._start is not None:
            self._write_head(self._start)
        elif not self.has_begun or self._is_answered:
            raise RuntimeError("a part of an answer that has not begun, or is complete")
        self._write_part(body, is_followed=is_followed)
        while not self._connection.is_writable and self._has_client and is_followed:
            await self._change()

    def _write_whole(self, start: Message, body: bytes) -> None:
        head = self._head(start)
        if self._is_bodiless:
            body = b""
        elif (length := b"\r\ncontent-length: %d\r\n" % len(body)) not in head:
            if b"\r\ncontent-length: " in head:
                raise ValueError(WRONG_LENGTH)
            head += length[len(b"\r\n") :]
        if len(body) < LARGE_BYTES:
            self._write(b"".join((head, b"\r\n", body)))
        else:  # a copy would take longer than a second system call, while everybody else waits
            self._write(head + b"\r\n")
            self._write(body)
        self._finish()

    def _write_head(self, start: Message) -> None:
        head = self._head(start)
        headers = dict(start.get("headers", ()))
        if headers.get(b"content-type") == b"text/event-stream":
            self.is_endless = True
            self._connection.begin_stream()
        declared = headers.get(b"content-length")
        if not self._is_bodiless and declared is not None:
            self._left = int(declared)
        elif not self._is_bodiless and self._version == "1.1":
            self._is_chunked = True
            head += b"transfer-encoding: chunked\r\n"
        self._write(head + b"\r\n")

    def _write_part(self, body: bytes, *, is_followed: bool) -> None:
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (self._left and not is_followed):
                raise ValueError(WRONG_LENGTH)
        if self._is_chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            body += b"" if is_followed else LAST_CHUNK
        if body and not self._is_bodiless:
            self._write(body)
        if not is_followed:
            self._finish()

    def _head(self, start: Message) -> bytes:
        """Returns the answer's head without the empty line; settles what it is followed by."""
        self._is_bodiless = self._method == "HEAD" or start["status"] in (204, 304)
        head = head_bytes(start["status"], self._connection.state.default_headers + list(start.get("headers", ())))
        if b"\r\nconnection: close\r\n" in head:
            self._keeps_alive = False
        elif not self._keeps_alive or self._connection.is_shutting_down or self._connection.loses_its_place(self):
            self._keeps_alive = False
            head += b"connection: close\r\n"
        self._start = None
        return head

    def _write(self, data: bytes) -> None:
        self.has_begun = True
        self._connection.write(data)

    def _finish(self) -> None:
        self._is_answered = True
        self.wake()
        self._connection.answered(is_last=not self._keeps_alive)


def head_bytes(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Returns an answer's head without the empty line. Raises ValueError when a header would end its line."""
    lines = [STATUS_LINES[status], *map(b": ".join, headers), b""]
    head = b"\r\n".join(lines)
    if head.count(b"\n") + head.count(b"\r") != 2 * (len(lines) - 1) or b"\0" in head:
        raise ValueError("a header's value would end its line")
    return head


_swept: WeakSet[Any] = WeakSet()  # uvicorn's ServerState, one in a process but for tests


def _keep_sweeping(state: Any, loop: asyncio.AbstractEventLoop) -> None:
    if state not in _swept:
        _swept.add(state)
        loop.call_later(SWEEP_SECONDS, _sweep, state, loop)


def _sweep(state: Any, loop: asyncio.AbstractEventLoop) -> None:
    _swept.discard(state)
    if not state.connections:
        return
    _keep_sweeping(state, loop)
    now = loop.time()
    connections: list[Protocol] = list(state.connections)
    unsent = sum(connection.check(now) for connection in connections)
    stalled = [connection for connection in connections if now - connection.stalled_since > CROWDED_SECONDS]
    for connection in sorted(stalled, key=lambda connection: connection.stalled_since):
        if unsent <= UNSENT_BYTES:
            break
        unsent -= connection.transport.get_write_buffer_size()
        connection.transport.abort()


def _unacknowledged(transport: asyncio.Transport) -> int:
    """Returns how many bytes the kernel keeps for the client; it takes more from here only once a third is gone."""
    try:
        answer = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):  # a system that does not know it; a socket that is closed
        return 0
    (size,) = struct.unpack("i", answer)
    return int(size)


def _address(transport: asyncio.Transport, name: str) -> tuple[str, int] | None:
    address = transport.get_extra_info(name)
    return (address[0], address[1]) if isinstance(address, tuple) else None
