"""uvicorn's HTTP protocol, and what it lacks: requests have to end, errors are JSON, an answer leaves in one piece."""

import asyncio
import json
import logging
from secrets import token_hex
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

log = logging.getLogger(__name__)

HEAD_SECONDS = 20  # from a connection's beginning, or a head's first byte, to the head's end
BODY_SECONDS = 5  # for the whole body, from the moment that somebody waits for it
HEAD_BYTES = 256 * 1024  # of a request line and headers that do not end; beyond what Service has an answer for
LARGE_BYTES = 256 * 1024  # of a body


class Protocol(HttpToolsProtocol):
    """The protocol of one connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Begins the connection."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the connection."""
        self._forget_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes what the client sent; ends the connection when its headers seem to have no end."""
        super().data_received(data)
        if self.scope is not None and "method" in self.scope:  # the usual case: a request's head comes in one piece
            self._head_bytes = 0
            self._forget_timer()
            return
        self._head_bytes += len(data)
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)
        if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("Request headers too large")

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP request, as JSON and with an id that the log has; ends the connection."""
        request_id = token_hex(16)
        log.warning("400 id=%s", request_id)
        body = json.dumps({"detail": msg}).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\n"
            "content-type: application/json\r\n"
            f"content-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\n"
            "x-content-type-options: nosniff\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        cycle.__class__ = Cycle  # uvicorn has made it, and lets nobody choose of what class
        super()._start_asgi_task(cycle, app)

    def _forget_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class Cycle(RequestResponseCycle):
    """A request and its answer, which leaves in one piece unless it is large.

    uvicorn writes an answer's head and body apart, and uvloop makes a system call of each; and it searches every header
    for what must not be there. To do both once an answer saves an eighth of all the time that a small one takes.
    """

    _head: Any = None  # the answer's first message, until the second comes
    _body_until: float | None = None  # the event loop's time

    async def receive(self) -> Any:
        """Returns the next part of the body, or says that the client has gone. Raises TimeoutError."""
        if self.message_event.is_set() or not self.more_body:  # the usual case: the body has come with the head
            return await super().receive()
        if self._body_until is None:
            self._body_until = asyncio.get_running_loop().time() + BODY_SECONDS
        async with asyncio.timeout_at(self._body_until):
            return await super().receive()

    async def send(self, message: Any) -> None:
        """Sends an answer: its head with the body when that comes whole, else as uvicorn does."""
        if not self.response_started:
            self._head = message
            self.response_started = True
            return
        head, self._head = self._head, None
        if head is None:
            await super().send(message)
        elif message.get("more_body") or self.flow.write_paused:
            self.response_started = False
            await super().send(head)
            await super().send(message)
        elif not self.disconnected:
            self._write(head["status"], head["headers"], message["body"])

    def _write(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        lines = [b"%b: %b\r\n" % header for header in headers]
        if (b"connection", b"close") in headers:
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        if head.count(b"\n") + head.count(b"\r") != 2 * len(lines) or b"\0" in head:
            raise ValueError("a header's value would end its line")
        if self.scope["method"] == "HEAD":
            body = b""
        if len(body) < LARGE_BYTES:
            self.transport.write(b"".join((STATUS_LINE[status], head, b"\r\n", body)))
        else:  # a copy would take longer than a second system call, while everybody else waits
            self.transport.write(b"".join((STATUS_LINE[status], head, b"\r\n")))
            self.transport.write(body)
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
