"""What every answer gets, the errors too: a request id, security and CORS headers, timings, and a line in the log.

It stands where Starlette has three layers (ServerErrorMiddleware, CORSMiddleware, ExceptionMiddleware).
Starlette's CORSMiddleware is not used: it sends CORS headers to origins that are not listed, too, and plain text where
this API promises JSON. Everything is done in one pass over the request's headers and one over the answer's.
"""

import itertools
import logging
import re
import time
from collections.abc import Sequence
from secrets import token_hex
from typing import Any, cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import Lifespan, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service import log
from service.batches import waited
from service.errors import Problem
from service.web import error_response, problem_of

logger = logging.getLogger(__name__)

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
HEADER_BYTES = 32 * 1024  # of request line and headers; browsers and proxies stay below 16 KiB
LINE_BYTES, FIELD_BYTES = len(b"  HTTP/1.1\r\n"), len(b": \r\n")  # what stands between their parts

METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
REQUEST_HEADERS = "Authorization, Content-Type, If-Match, If-None-Match, Idempotency-Key, Last-Event-ID, X-Request-Id"
EXPOSED_HEADERS = "ETag, Link, Location, Retry-After, X-Request-Id, X-Total-Count, Idempotent-Replayed, Server-Timing"
PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": METHODS,
    "Access-Control-Allow-Headers": REQUEST_HEADERS,
    "Access-Control-Max-Age": str(24 * 60 * 60),
}

Headers = list[tuple[bytes, bytes]]
API_HEADERS: Headers = [(b"cache-control", b"private, no-cache"), (b"vary", b"Authorization, Origin")]
OTHER_HEADERS: Headers = [(b"vary", b"Origin")]


# Unique without a system call for each: a random number for this process, and a count.
_PROCESS = token_hex(8)
_count = itertools.count(1)


def _new_request_id() -> str:
    return f"{_PROCESS}-{next(_count):x}"


class Service(Starlette):
    """Starlette with these things done around its router, and nothing else in between."""

    def __init__(
        self, routes: Sequence[BaseRoute], lifespan: Lifespan[Any], origins: tuple[str, ...], proxies: str
    ) -> None:
        super().__init__(routes=routes, lifespan=lifespan)
        self.router.redirect_slashes = False  # a path with a trailing slash is another path
        self._behind_proxy: Any = ProxyHeadersMiddleware(cast("Any", self.router.app), proxies)
        self._cors: dict[bytes, Headers] = {
            origin.encode(): [
                (b"access-control-allow-origin", origin.encode()),
                (b"access-control-allow-credentials", b"true"),
                (b"access-control-expose-headers", EXPOSED_HEADERS.encode()),
            ]
            for origin in origins
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        scope["app"] = self
        if scope["type"] != "http":
            await self.router(scope, receive, send)
            return
        exchange = _Exchange(scope, send, self._cors)
        token = waited.set(exchange.waits)
        try:
            if exchange.header_bytes > HEADER_BYTES:
                detail = f"Request headers too large: {exchange.header_bytes} bytes, at most {HEADER_BYTES}"
                raise Problem(431, detail)
            if exchange.is_preflight and exchange.cors:
                await Response(status_code=204, headers=PREFLIGHT_HEADERS)(scope, receive, exchange.send)
            elif exchange.is_forwarded:
                await self._behind_proxy(scope, receive, exchange.send)
            else:
                await self.router.app(scope, receive, exchange.send)
        except Exception as error:
            problem = problem_of(error, Request(scope))
            if problem is None:
                logger.exception("500 in request %s", exchange.request_id)
                problem = Problem(500, "Internal server error")
            if exchange.status:
                raise  # the answer had begun: the server closes the connection
            await error_response(problem)(scope, receive, exchange.send)
        finally:
            waited.reset(token)
            exchange.write_log()


class _Exchange:
    """One request and its answer."""

    __slots__ = (
        "_scope",
        "_send",
        "_started",
        "cors",
        "header_bytes",
        "is_forwarded",
        "is_preflight",
        "request_id",
        "status",
        "waits",
    )

    def __init__(self, scope: Scope, send: Send, cors: dict[bytes, Headers]) -> None:
        self._started = time.perf_counter()
        self._scope = scope
        self._send = send
        self.waits: list[float] = []  # milliseconds, one for each wait for the database
        self.status = 0
        query = scope["query_string"]
        target_bytes = len(scope["raw_path"]) + len(query) + bool(query)
        self.header_bytes = len(scope["method"]) + target_bytes + LINE_BYTES
        self.is_preflight = False
        self.is_forwarded = False
        self.cors: Headers = []
        request_id = b""
        for name, value in scope["headers"]:
            self.header_bytes += len(name) + len(value) + FIELD_BYTES
            if name == b"origin":
                self.cors = cors.get(value, [])
            elif name == b"x-request-id":
                request_id = value
            elif name == b"access-control-request-method":
                self.is_preflight = scope["method"] == "OPTIONS"
            elif name == b"x-forwarded-proto":
                self.is_forwarded = True
        self.request_id = request_id.decode() if REQUEST_ID.fullmatch(request_id) else _new_request_id()

    async def send(self, message: Message) -> None:
        """Sends a part of the answer, the first with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            timing = b"total;dur=%.2f, db;dur=%.2f" % (self._milliseconds(), sum(self.waits))
            headers: Headers = message.setdefault("headers", [])
            headers += [
                (b"x-request-id", self.request_id.encode()),
                (b"x-content-type-options", b"nosniff"),
                (b"server-timing", timing),
            ]
            headers += API_HEADERS if self._scope["path"].startswith("/api/") else OTHER_HEADERS
            headers += self.cors
        await self._send(message)

    def write_log(self) -> None:
        """Writes the request's line."""
        if log.requests is not None:
            route = self._scope.get("route")
            log.requests.add(
                self._scope["method"],
                route.path if route else "-",
                self.status,
                self._milliseconds(),
                sum(self.waits),
                self._scope.get("user_id"),
                self.request_id,
            )

    def _milliseconds(self) -> float:
        return (time.perf_counter() - self._started) * 1000
