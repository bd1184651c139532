"""What every response gets, errors too: a request id, security and CORS headers, timings, and a line in the log.

It replaces three of Starlette's layers (ServerErrorMiddleware, CORSMiddleware, ExceptionMiddleware), in one pass over
the request's headers and one over the response's. CORSMiddleware also sends CORS headers to origins that are not
listed, and plain text where this API promises JSON.
"""

import itertools
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from secrets import token_hex
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import Lifespan, Message, Receive, Scope, Send

from service.db.coalescer import waited
from service.db.pool import Unavailable
from service.settings import Settings
from service.web import log
from service.web.errors import Problem, shown, unavailable
from service.web.forwarded import FORWARDED, Proxies, use_forwarded
from service.web.limit import RateLimit
from service.web.metrics import Metrics
from service.web.responses import API_HEADERS, Headers, error_response

logger = logging.getLogger(__name__)

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
HEADER_BYTES = 32 * 1024  # of request line and headers; browsers and proxies stay below 16 KiB
LINE_BYTES, FIELD_BYTES = len(b"  HTTP/1.1\r\n"), len(b": \r\n")  # the separators

METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
REQUEST_HEADERS = (
    *("Authorization", "Content-Type", "If-Match", "If-None-Match", "Idempotency-Key", "Last-Event-ID", "X-Request-Id"),
    *("traceparent", "tracestate", "baggage", "sentry-trace"),  # tracing by W3C and Sentry, which pages send by default
)
EXPOSED_HEADERS = "ETag, Link, Location, Retry-After, X-Request-Id, X-Total-Count, Idempotent-Replayed, Server-Timing"
LIMIT_HEADERS = ", RateLimit, RateLimit-Policy"  # exposed, too, when there is a rate limit
PREFLIGHT_SECONDS = 24 * 60 * 60
STRANGERS = 100  # origins that are not listed, at most as many are logged

NoRoute = Callable[[HTTPException, Request], Awaitable[Problem]]  # turns the router's 404 and 405 into a Problem
# For the pages, which load from and talk to this service alone; Swagger UI's styles have images as data URLs.
# Everything outside /api/ has it, so that no page can be without it.
CONTENT_SECURITY_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
OTHER_HEADERS: Headers = [(b"vary", b"Origin"), (b"content-security-policy", CONTENT_SECURITY_POLICY)]

# Request ids are unique without a system call for each: a random number for the process, and a counter.
_PROCESS = token_hex(8)
_count = itertools.count(1)


def _new_request_id() -> str:
    return f"{_PROCESS}-{next(_count):x}"


class Service(Starlette):
    """Starlette with this around its router, in place of the middleware stack."""

    def __init__(
        self, routes: Sequence[BaseRoute], no_route: NoRoute, lifespan: Lifespan[Any], settings: Settings
    ) -> None:
        super().__init__(routes=routes, lifespan=lifespan)
        self._no_route = no_route
        self.router.redirect_slashes = False  # a path with a trailing slash is another path
        self.limit = None if settings.rate_limit is None else RateLimit(settings.rate_limit)
        self.metrics: Metrics | None = None  # None: requests are not counted
        self._prefix = settings.root_path
        self._proxies = Proxies(settings.forwarded_allow_ips)
        self._unlisted: set[str] = set()
        self._preflight_headers = {
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": ", ".join([*REQUEST_HEADERS, *settings.cors_headers]),
            "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
        }
        exposed = EXPOSED_HEADERS + (LIMIT_HEADERS if self.limit else "")
        self._cors: dict[bytes, Headers] = {
            origin.encode(): [
                (b"access-control-allow-origin", origin.encode()),
                (b"access-control-allow-credentials", b"true"),
                (b"access-control-expose-headers", exposed.encode()),
            ]
            for origin in settings.frontend_url
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        scope["app"] = self
        if scope["type"] != "http":
            await self.router(scope, receive, send)
            return
        scope["prefix"] = self._prefix
        exchange = _Exchange(scope, send, self._cors)
        if exchange.is_forwarded and self._proxies.trusts(scope.get("client")):
            use_forwarded(scope)
        if exchange.origin and not exchange.cors:
            self._warn_of(exchange.origin, scope)
        token = waited.set(exchange.waits)
        try:
            if exchange.header_bytes > HEADER_BYTES:
                detail = f"Request headers too large: {exchange.header_bytes} bytes, at most {HEADER_BYTES}"
                raise Problem(431, detail)
            if exchange.is_preflight and exchange.cors:
                await Response(status_code=204, headers=self._preflight_headers)(scope, receive, exchange.send)
            else:
                await self.router.app(scope, receive, exchange.send)
        except Exception as error:
            problem = await self._problem_of(error, Request(scope))
            if problem is None:
                logger.exception("500 in request %s", exchange.request_id)
                problem = Problem(500, "Internal server error")
            if problem.cause:
                logger.info("%s in request %s: %s", problem.status, exchange.request_id, problem.cause)
            if exchange.status:
                raise  # the response had started: the server closes the connection
            await error_response(problem)(scope, receive, exchange.send)
        finally:
            waited.reset(token)
            exchange.end(self.metrics)

    async def _problem_of(self, error: Exception, request: Request) -> Problem | None:
        """Returns the problem to respond with; None when the error is a bug."""
        if isinstance(error, HTTPException):
            error = await self._no_route(error, request)
        if self.metrics is not None:
            self.metrics.refuse(error)
        match error:
            case Problem():
                return error
            case Unavailable():
                logger.warning("503: %s", error)
                return unavailable("Service unavailable")
        return None

    def _warn_of(self, origin: bytes, scope: Scope) -> None:
        """Logs, once for each, an origin that is not listed, and the setting that would allow it."""
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        name = shown(origin.decode("latin-1"))
        if name in self._unlisted or origin.endswith(b"://" + host) or len(self._unlisted) >= STRANGERS:
            return  # a page of the service's own needs no CORS headers
        self._unlisted.add(name)
        listed = b", ".join(self._cors).decode()
        advice = "if it is yours, add it to FRONTEND_URL"
        logger.warning("CORS: a page of %s asked, which may not read the answer; %s (%s)", name, advice, listed)


class _Exchange:
    """A request and its response."""

    __slots__ = (
        "_scope",
        "_send",
        "_started",
        "cors",
        "header_bytes",
        "is_forwarded",
        "is_preflight",
        "origin",
        "request_id",
        "status",
        "waits",
    )

    def __init__(self, scope: Scope, send: Send, cors: dict[bytes, Headers]) -> None:
        self._started = time.perf_counter()
        self._scope = scope
        self._send = send
        self.waits: list[float] = []  # for the database, in milliseconds
        self.status = 0
        query = scope["query_string"]
        target_bytes = len(scope["raw_path"]) + len(query) + bool(query)
        self.header_bytes = len(scope["method"]) + target_bytes + LINE_BYTES
        self.is_preflight = False
        self.is_forwarded = False
        self.cors: Headers = []
        self.origin = b""
        request_id = b""
        for name, value in scope["headers"]:
            self.header_bytes += len(name) + len(value) + FIELD_BYTES
            if name == b"origin":
                self.origin = value
                self.cors = cors.get(value, [])
            elif name == b"x-request-id":
                request_id = value
            elif name == b"access-control-request-method":
                self.is_preflight = scope["method"] == "OPTIONS"
            elif name in FORWARDED:
                self.is_forwarded = True
        self.request_id = request_id.decode() if REQUEST_ID.fullmatch(request_id) else _new_request_id()

    async def send(self, message: Message) -> None:
        """Sends a part of the response, the first with the headers that every response has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            timing = b"total;dur=%.2f, db;dur=%.2f" % (self._milliseconds(), sum(self.waits))
            headers: Headers = message.setdefault("headers", [])
            headers += [
                (b"x-request-id", self.request_id.encode()),
                (b"x-content-type-options", b"nosniff"),
                (b"server-timing", timing),
            ]
            headers += (
                self._scope.get("api_headers", API_HEADERS)
                if self._scope["path"].startswith("/api/")
                else OTHER_HEADERS
            )
            headers += self.cors
        await self._send(message)

    def end(self, metrics: Metrics | None) -> None:
        """Logs and counts the request, where that is wanted."""
        if log.requests is None and metrics is None:
            return
        method, route = self._scope["method"], self._scope.get("route")
        path = route.path if route else ""
        milliseconds, database_ms = self._milliseconds(), sum(self.waits)
        if metrics is not None:
            metrics.add(method, path, self.status, milliseconds, database_ms)
        if log.requests is not None:
            user = self._scope.get("user_id")
            log.requests.add(method, path or "-", self.status, milliseconds, database_ms, user, self.request_id)

    def _milliseconds(self) -> float:
        return (time.perf_counter() - self._started) * 1000
