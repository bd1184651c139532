"""The server side of an HTTP/1.1 connection, for uvicorn to run, with all its timeouts and limits.

One request at a time: pipelined data stays in the buffer, unparsed, until the response is complete. So responses leave
in the order of their requests, including an error for the next one, and a connection buffers one read beside the
request it handles. Each connection has a deadline, which one sweep over all connections checks: a timer each would cost
more than everything else that is done here for a request.

tests/web/test_protocol.py names what it uses of uvicorn.
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
from service.web.framing import Body, RequestHead, check_more, check_start

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 0.5  # between two checks of all connections
HEAD_SECONDS = 20  # to the end of the request head, from its first byte or the start of the connection
BODY_SECONDS = 5  # from the end of the head to the end of the body, plus a second for each BODY_RATE bytes received
BODY_RATE = 64 * 1024
ANSWER_SECONDS = 30  # without the client reading anything of the response
CROWDED_SECONDS = 2  # the same, while this process buffers more than UNSENT_BYTES of responses
UNSENT_BYTES = 64 * 1024 * 1024
LAST_SECONDS = 2  # of a lingering close: the client reads the last response, and what it still sends is discarded
LAST_BYTES = 16 * 1024 * 1024
DROPPED_BYTES = 1024 * 1024  # of a body that the application did not read; a larger one closes the connection
HEAD_BYTES = 128 * 1024  # of an incomplete head; Service rejects complete ones that are too large
BODY_BYTES = 64 * 1024  # buffered for the application; beyond that, reading is paused
CLOSING_SECONDS = 0.2  # at shutdown, for a request that may be on its way

NEVER = math.inf
ASGI = {"version": "3.0", "spec_version": "2.3"}
STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in HTTPStatus}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
WRONG_LENGTH = "the response's body does not have the declared length"


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
        self._buffer = b""  # received, not parsed yet
        self._head_parser: HttpRequestParser | None = None  # of an incomplete head
        self._checked = 0  # bytes that it has seen
        self._body: Body | None = None  # being received
        self._discarded = 0  # bytes
        self._exchange: Exchange | None = None  # the current one
        self._is_idle = False  # keep-alive, between requests
        self._is_closing = False  # no more requests are accepted
        self._has_eof = False  # the client has shut down its side
        self._is_reading = True
        self.is_writable = True  # no backpressure
        self.is_shutting_down = False
        self._written = 0  # bytes in total
        self._acknowledged = 0  # bytes in total, at the last check
        self.stalled_since = self.loop.time()

    # Called by the event loop and uvicorn

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # TCP's is one
        """Registers the connection."""
        self.transport = transport
        self._server = _address(transport, "sockname")
        self._client = _address(transport, "peername")
        self.state.connections.add(self)
        _keep_sweeping(self.state, self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
        """Removes the connection."""
        self.state.connections.discard(self)
        self._buffer = b""
        if self._exchange is not None:
            self._exchange.disconnect()
            self._exchange = None

    def data_received(self, data: bytes) -> None:
        """Handles received data."""
        if self._is_closing:
            self._discarded += len(data)
            if self._discarded > LAST_BYTES:
                self.transport.abort()
            return
        self._buffer = self._buffer + data if self._buffer else data
        self._advance()

    def eof_received(self) -> bool:
        """Handles the end of the client's data; returns whether to keep the connection for the response."""
        self._has_eof = True
        return self._exchange is not None and self._body is None and not self._exchange.is_endless

    def pause_writing(self) -> None:
        """Notes backpressure: the client reads too slowly."""
        self.is_writable = False

    def resume_writing(self) -> None:
        """Resumes after backpressure."""
        self.is_writable = True
        if self._exchange is not None:
            self._exchange.wake()
        elif not self._is_closing:
            self._advance()

    def shutdown(self) -> None:
        """Closes the connection after the current request, or one that arrives in a moment."""
        self.is_shutting_down = True
        if self._exchange is None and self._body is None and not self._buffer:
            self._deadline = min(self._deadline, self.loop.time() + CLOSING_SECONDS)

    # The request

    def _advance(self) -> None:
        """Parses as much of the buffer as possible; pauses reading while this side is not ready for the rest."""
        try:
            while self._buffer and self._can_parse() and self._parse():
                pass
        except Problem as problem:
            self.reject(problem)
        self._set_reading(not self._buffer or self._can_parse())

    def _can_parse(self) -> bool:
        if self._body is not None:
            return self._exchange is None or self._exchange.unread < BODY_BYTES
        return self._exchange is None and self.is_writable

    def _parse(self) -> bool:
        return self._parse_head() if self._body is None else self._parse_body(self._body)

    def _set_reading(self, on: bool, /) -> None:
        if on == self._is_reading or self._has_eof:
            return
        self._is_reading = on
        if on:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()
            if self._body is not None:
                self._deadline = NEVER  # the client is not the one to wait for

    def _parse_head(self) -> bool:
        data = self._buffer = self._buffer.lstrip(b"\r\n")  # RFC 9112, 2.2
        end = data.find(b"\r\n\r\n") + len(b"\r\n\r\n")
        if end < len(b"\r\n\r\n"):
            if data:
                self._check_partial_head(data)
            return False
        self._buffer = data[end:]
        self._head_parser = None
        self._is_idle = False
        head = RequestHead(data[:end])
        self._body = head.body
        self._deadline = NEVER if head.body is None else self.loop.time() + BODY_SECONDS
        self._exchange = Exchange(self, head, self._scope(head))
        task = self.loop.create_task(self._exchange.run(self._app))
        self.state.tasks.add(task)
        task.add_done_callback(self.state.tasks.discard)
        return True

    def _check_partial_head(self, data: bytes) -> None:
        if self._head_parser is None:
            if self._is_idle:
                self._is_idle = False
                self._deadline = self.loop.time() + HEAD_SECONDS
            self._head_parser = check_start(data)
        else:
            check_more(self._head_parser, data[self._checked :])
        self._checked = len(data)
        if len(data) > HEAD_BYTES:
            raise Problem(431, f"Request headers too large: over {HEAD_BYTES} bytes, and no end")

    def _scope(self, head: RequestHead) -> Scope:
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

    def _parse_body(self, body: Body) -> bool:
        part, used = body.take(self._buffer, BODY_BYTES)
        self._buffer = self._buffer[used:]
        self._deadline += len(part) / BODY_RATE
        if body.is_complete:
            self._body = None
            self._deadline = NEVER
        if self._exchange is not None:
            self._exchange.add(part, used, is_complete=body.is_complete)
        else:
            self._discard(used)
        return used > 0

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._body is None:
            self._become_idle()
        elif self._discarded > DROPPED_BYTES:
            self._close(linger=True)

    def resume_body(self) -> None:
        """Parses more of the body, and restarts its deadline after a pause."""
        if self._body is not None:
            if self._deadline == NEVER:
                self._deadline = self.loop.time() + BODY_SECONDS
            self._advance()

    def send_continue(self) -> None:
        """Sends 100 Continue, and starts the deadline of the body."""
        self.write(CONTINUE)
        self._deadline = self.loop.time() + BODY_SECONDS

    # The response

    def write(self, data: bytes) -> None:
        """Writes, which is one system call."""
        if not self.transport.is_closing():
            self._written += len(data)
            self.transport.write(data)

    def begin_stream(self) -> None:
        """Has the kernel give up a client that has vanished: what it does not acknowledge waits there, not here."""
        option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux's
        if option is not None and not self.transport.is_closing():
            connection = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, option, int(1000 * ANSWER_SECONDS))

    def cannot_skip_body(self, exchange: "Exchange") -> bool:
        """Returns whether the start of the next request is unknown, or too far away."""
        return self._body is not None and (exchange.expects_continue or self._body.remaining > DROPPED_BYTES)

    def response_sent(self, *, close: bool) -> None:
        """Continues with the next request, or closes the connection."""
        self.state.total_requests += 1
        self._exchange = None
        self._discarded = 0
        if close:
            self._close(linger=self._body is not None or bool(self._buffer))
        elif self._body is None:
            self._become_idle()
            if self._buffer:
                self._advance()
        else:
            self.resume_body()

    def _become_idle(self) -> None:
        self._is_idle = True
        self._deadline = self.loop.time() + self._idle_seconds
        if self._has_eof and not self._buffer:
            self._close(linger=False)

    def reject(self, problem: Problem) -> None:
        """Responds in place of the application, and closes the connection."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.disconnect()
            if exchange.has_started:
                self.transport.abort()  # the client must notice that the response is incomplete
                return
        elif self._body is not None:  # of a request that has its response
            self._close(linger=True)
            return
        self.state.refused_requests = getattr(self.state, "refused_requests", 0) + 1  # for the metrics
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
        self.write(response_head(problem.status, headers) + b"\r\n" + body)
        self._close(linger=True)

    def _close(self, *, linger: bool) -> None:
        """Closes the connection; lingering, so that the client reads the response before a reset."""
        self._is_closing = True
        self._is_idle = False
        self._buffer = b""
        if self.transport.is_closing():
            return
        if linger and not self._has_eof:
            self._deadline = self.loop.time() + LAST_SECONDS
            self.transport.write_eof()
            self._set_reading(True)
        else:
            self.transport.close()

    # Timeouts

    def check(self, now: float) -> int:
        """Enforces the timeouts; returns how many bytes are buffered for sending."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent:
            self.stalled_since = now
        else:
            acknowledged = self._written - unsent - _unacknowledged(self.transport)
            if acknowledged > self._acknowledged:
                self._acknowledged = acknowledged
                self.stalled_since = now
            elif now - self.stalled_since > ANSWER_SECONDS:
                self.transport.abort()
            if self._is_idle and not self.is_shutting_down:
                self._deadline = now + self._idle_seconds  # idle only once all is sent
        if now > self._deadline:
            self._deadline = NEVER
            if self._exchange is not None:
                self._exchange.time_out_body()
            else:
                self._is_closing = True
                self.transport.close()
        return unsent


class Exchange:
    """A request and its response in ASGI.

    The response's head is sent together with its body: each write of uvloop's is a system call.
    """

    def __init__(self, connection: Protocol, head: RequestHead, scope: Scope) -> None:
        self._connection = connection
        self._scope = scope
        self._method = head.method
        self._version = head.version
        self._keeps_alive = head.keep_alive and head.version == "1.1"
        self.expects_continue = head.expects_continue
        self._is_complete = head.body is None  # the request has been received
        self._is_delivered = False  # to the application
        self._has_timed_out = False
        self._has_client = True
        self._parts: list[bytes] = []  # of the body, not delivered yet
        self.unread = 0  # bytes received for them
        self._start: Message | None = None  # the response's first message, until the second
        self.has_started = False  # part of the response is written
        self.is_endless = False  # events are sent for as long as the client is there: its end is the response's
        self._is_finished = False
        self._has_no_body = False  # the response, whatever the application sends
        self._is_chunked = False
        self._remaining: int | None = None  # bytes of the response's body, if declared
        self._changed: asyncio.Event | None = None

    async def run(self, app: ASGIApp) -> None:
        """Runs the application, and responds in its place when it fails to."""
        try:
            await app(self._scope, self.receive, self.send)
        except asyncio.CancelledError:  # by uvicorn, at the end of a graceful shutdown
            self._fail(unavailable("Service unavailable"))
            self._connection.transport.close()
            raise
        except Exception:
            logger.exception("The application failed")
        self._fail(Problem(500, "Internal server error"))

    def _fail(self, problem: Problem) -> None:
        if self._has_client and not self._is_finished:
            self._connection.reject(problem)

    # Called by the connection

    def add(self, part: bytes, used: int, *, is_complete: bool) -> None:
        """Adds a part of the body, which took `used` bytes on the connection."""
        self._is_complete = is_complete
        self.unread += used
        if part:
            self._parts.append(part)
        if part or is_complete:
            self.wake()

    def time_out_body(self) -> None:
        """Notes that the body is overdue."""
        self._has_timed_out = True
        self.wake()

    def disconnect(self) -> None:
        """Notes that the client has gone."""
        self._has_client = False
        self.wake()

    def wake(self) -> None:
        """Wakes `receive` and `send` to check for a change."""
        if self._changed is not None:
            self._changed.set()

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = asyncio.Event()
        self._changed.clear()
        await self._changed.wait()

    # Called by the application

    async def receive(self) -> Message:
        """Returns the next part of the body, or the disconnect. Raises TimeoutError."""
        while self._has_client and not self._is_finished:
            if self._parts or (self._is_complete and not self._is_delivered):
                return self._next_part()
            if self._has_timed_out:
                raise TimeoutError
            if self.expects_continue and not self._is_complete:
                self.expects_continue = False
                self._connection.send_continue()
            await self._change()
        return {"type": "http.disconnect"}

    def _next_part(self) -> Message:
        body = b"".join(self._parts)
        self._parts.clear()
        self.unread = 0
        self._is_delivered = self._is_complete
        message = {"type": "http.request", "body": body, "more_body": not self._is_complete}
        self._connection.resume_body()
        return message

    async def send(self, message: Message) -> None:
        """Sends a part of the response; pauses under backpressure between parts."""
        if not self._has_client:
            return
        if message["type"] == "http.response.start":
            if self.has_started:
                raise RuntimeError("the response has started")
            self._start = message
            return
        body, has_more = message.get("body", b""), message.get("more_body", False)
        if self._start is not None and not has_more:
            self._write_whole(self._start, body)
            return
        if self._start is not None:
            self._write_head(self._start)
        elif not self.has_started or self._is_finished:
            raise RuntimeError("a part of a response that has not started, or is complete")
        self._write_part(body, has_more=has_more)
        while not self._connection.is_writable and self._has_client and has_more:
            await self._change()

    def _write_whole(self, start: Message, body: bytes) -> None:
        head = self._head(start)
        if self._has_no_body:
            body = b""
        elif (length := b"\r\ncontent-length: %d\r\n" % len(body)) not in head:
            if b"\r\ncontent-length: " in head:
                raise ValueError(WRONG_LENGTH)
            head += length[len(b"\r\n") :]
        self._write(b"".join((head, b"\r\n", body)))
        self._finish()

    def _write_head(self, start: Message) -> None:
        head = self._head(start)
        headers = dict(start.get("headers", ()))
        if headers.get(b"content-type") == b"text/event-stream":
            self.is_endless = True
            self._connection.begin_stream()
        declared = headers.get(b"content-length")
        if not self._has_no_body and declared is not None:
            self._remaining = int(declared)
        elif not self._has_no_body and self._version == "1.1":
            self._is_chunked = True
            head += b"transfer-encoding: chunked\r\n"
        self._write(head + b"\r\n")

    def _write_part(self, body: bytes, *, has_more: bool) -> None:
        if self._remaining is not None:
            self._remaining -= len(body)
            if self._remaining < 0 or (self._remaining and not has_more):
                raise ValueError(WRONG_LENGTH)
        if self._is_chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            body += b"" if has_more else LAST_CHUNK
        if body and not self._has_no_body:
            self._write(body)
        if not has_more:
            self._finish()

    def _head(self, start: Message) -> bytes:
        """Returns the response's head without the empty line; decides about body and keep-alive."""
        self._has_no_body = self._method == "HEAD" or start["status"] in (204, 304)
        head = response_head(start["status"], self._connection.state.default_headers + list(start.get("headers", ())))
        if b"\r\nconnection: close\r\n" in head:
            self._keeps_alive = False
        elif not self._keeps_alive or self._connection.is_shutting_down or self._connection.cannot_skip_body(self):
            self._keeps_alive = False
            head += b"connection: close\r\n"
        self._start = None
        return head

    def _write(self, data: bytes) -> None:
        self.has_started = True
        self._connection.write(data)

    def _finish(self) -> None:
        self._is_finished = True
        self.wake()
        self._connection.response_sent(close=not self._keeps_alive)


def response_head(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Returns a response's head without the empty line. Raises ValueError when a header has a line break or NUL."""
    lines = [STATUS_LINES[status], *map(b": ".join, headers), b""]
    head = b"\r\n".join(lines)
    if head.count(b"\n") + head.count(b"\r") != 2 * (len(lines) - 1) or b"\0" in head:
        raise ValueError("a header's value would end its line")
    return head


_swept: WeakSet[Any] = WeakSet()  # uvicorn's ServerState, one a process except in tests


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
    """Returns the bytes in the kernel's send buffer, which is refilled only once a third of it is free."""
    try:
        size = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):  # not supported by the system; socket closed
        return 0
    return int(struct.unpack("i", size)[0])


def _address(transport: asyncio.Transport, name: str) -> tuple[str, int] | None:
    address = transport.get_extra_info(name)
    return (address[0], address[1]) if isinstance(address, tuple) else None
