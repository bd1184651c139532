"""What the routes are made of: a path with an operation for each of its methods, which also say what the docs tell."""

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
    """A handler, with its name in the document and what it says of itself."""

    def __init__(self, handler: Handler, description: "describe", name: str) -> None:
        self.handler = handler
        self.description = description
        self.name = name

    def named(self, name: str) -> "Endpoint":
        """Returns the same operation under another name, for a second method."""
        return Endpoint(self.handler, self.description, name)


@dataclass(frozen=True)
class describe:  # noqa: N801  (it is used as a decorator)
    """What an operation says of itself, beside its name and its docstring; makes an endpoint of the handler."""

    status: int
    result: str
    _: KW_ONLY
    body: type[BaseModel] | None = None
    body_required: bool = True
    answer: type[BaseModel] = Task
    many: bool = False  # whether it answers with an array
    conflict: type[BaseModel] | None = None  # what a 409 answers, when that is more than a detail
    streams: bool = False  # whether it answers with server-sent events, whose data is the answer
    errors: tuple[int, ...] = ()
    headers: tuple[str, ...] = ()
    health: bool = False
    query: Mapping[str, Parameter] = field(default_factory=dict)
    conditional: bool = False  # whether If-None-Match may spare the client the answer
    takes_versions: bool = False  # whether If-Match may keep the change from being made
    takes_key: bool = False  # whether Idempotency-Key makes a retry safe

    def __call__(self, handler: Handler) -> Endpoint:
        """Returns the handler with this description."""
        return Endpoint(handler, self, handler.__name__)


class Resource(Route):
    """A path with its operations, one a method.

    One route for all methods of a path is fewer to search, and knows what `Allow` has to list. It does what Starlette's
    own does in less time, since less is asked of it: paths are whole, their parameters are text, and what a handler
    raises is answered elsewhere, once for all.
    """

    def __init__(self, path: str, **operations: Endpoint) -> None:
        self.operations = operations
        self._handlers = {method: operation.handler for method, operation in operations.items()}
        if "GET" in operations:
            self._handlers["HEAD"] = operations["GET"].handler
        super().__init__(path, self.handle, methods=list(operations))
        # Starlette's own ends with $, which also matches before a line break at the end
        self.path_regex = re.compile(self.path_regex.pattern.removesuffix("$") + r"\Z")

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Returns whether the path is this one, and in part when only the method is another; and its parameters."""
        found = self.path_regex.match(scope["path"])
        if found is None or scope["type"] != "http":
            return Match.NONE, {}
        match = Match.FULL if scope["method"] in self._handlers else Match.PARTIAL
        return match, {"endpoint": self.endpoint, "path_params": found.groupdict()}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the handler answer. Raises HTTPException, a 405, when the method has none."""
        handler = self._handlers.get(scope["method"])
        if handler is None:
            raise HTTPException(405, headers={"Allow": ", ".join(self._handlers)})
        response = await handler(Request(scope, receive, send))
        await response(scope, receive, send)
