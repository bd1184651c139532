"""The building blocks of the routes: a path, with an operation and its documentation for each method."""

import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from service.models import Task
from service.web.parameters import Parameter

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Endpoint:
    """A handler, with its name and description in the OpenAPI document."""

    def __init__(self, handler: Handler, description: "describe", name: str) -> None:
        self.handler = handler
        self.description = description
        self.name = name

    def named(self, name: str) -> "Endpoint":
        """Returns the same operation under another name, for a second method."""
        return Endpoint(self.handler, self.description, name)


@dataclass(frozen=True)
class describe:  # noqa: N801  (it is used as a decorator)
    """An operation's description, beside its name and docstring; a decorator that makes the handler an Endpoint."""

    status: int
    result: str
    _: KW_ONLY
    body: type[BaseModel] | None = None
    body_required: bool = True
    answer: type[BaseModel] = Task
    many: bool = False  # whether the response is an array
    conflict: type[BaseModel] | None = None  # the body of a 409, if it is more than a detail
    streams: bool = False  # whether the response is server-sent events, with `answer` as data
    errors: tuple[int, ...] = ()
    details: Mapping[int, str] = field(default_factory=dict)  # of errors that say something else than elsewhere
    headers: tuple[str, ...] = ()
    health: bool = False
    query: Mapping[str, Parameter] = field(default_factory=dict)
    conditional: bool = False  # whether it supports If-None-Match
    takes_versions: bool = False  # whether it supports If-Match
    takes_key: bool = False  # whether it supports Idempotency-Key

    def __call__(self, handler: Handler) -> Endpoint:
        """Returns the handler with this description."""
        return Endpoint(handler, self, handler.__name__)


class Resource(Route):
    """A path with its operations, one a method.

    One route for all methods of a path leaves fewer to search, and knows the methods for `Allow`. It is faster than
    Starlette's, since it supports less: no mounts, only text parameters, and exceptions are handled by Service.
    """

    def __init__(self, path: str, **operations: Endpoint) -> None:
        self.operations = operations
        self._handlers = {method: operation.handler for method, operation in operations.items()}
        if "GET" in operations:
            self._handlers["HEAD"] = operations["GET"].handler
        super().__init__(path, self.handle, methods=list(operations))
        # Starlette's ends with $, which also matches before a trailing line break
        self.path_regex = re.compile(self.path_regex.pattern.removesuffix("$") + r"\Z")

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Returns whether the path matches (PARTIAL if it lacks the method), and the path's parameters."""
        found = self.path_regex.match(scope["path"])
        if found is None or scope["type"] != "http":
            return Match.NONE, {}
        match = Match.FULL if scope["method"] in self._handlers else Match.PARTIAL
        return match, {"endpoint": self.endpoint, "path_params": found.groupdict()}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the method's handler. Raises HTTPException, a 405, when there is none."""
        handler = self._handlers.get(scope["method"])
        if handler is None:
            raise HTTPException(405, headers={"Allow": ", ".join(self._handlers)})
        response = await handler(Request(scope, receive, send))
        await response(scope, receive, send)
