"""What the routes are made of: a path with an operation for each of its methods, which also say what the docs tell."""

import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from service.web.parameters import Parameter

NO_QUERY: Mapping[str, Parameter] = {}

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass(frozen=True)
class Description:
    """What an operation says of itself, beside its name and its docstring."""

    status: int
    result: str
    body: type[BaseModel] | None
    body_required: bool
    many: bool
    errors: tuple[int, ...]
    headers: tuple[str, ...]
    health: bool
    query: Mapping[str, Parameter]
    answer: type[BaseModel] | None  # a task, when it is None
    conflict: type[BaseModel] | None  # what a 409 answers, when that is more than a detail
    streams: bool  # whether it answers with server-sent events, whose data is the answer
    conditional: bool  # whether If-None-Match may spare the client the answer
    takes_versions: bool  # whether If-Match may keep the change from being made
    takes_key: bool  # whether Idempotency-Key makes a retry safe


class Endpoint:
    """A handler, with its name in the document and what it says of itself."""

    def __init__(self, handler: Handler, description: Description, name: str) -> None:
        self.handler = handler
        self.description = description
        self.name = name

    def named(self, name: str) -> "Endpoint":
        """Returns the same operation under another name, for a second method."""
        return Endpoint(self.handler, self.description, name)


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


def describe(
    status: int,
    result: str,
    *,
    body: type[BaseModel] | None = None,
    body_required: bool = True,
    many: bool = False,
    errors: tuple[int, ...] = (),
    headers: tuple[str, ...] = (),
    health: bool = False,
    query: Mapping[str, Parameter] = NO_QUERY,
    answer: type[BaseModel] | None = None,
    conflict: type[BaseModel] | None = None,
    streams: bool = False,
    conditional: bool = False,
    takes_versions: bool = False,
    takes_key: bool = False,
) -> Callable[[Handler], Endpoint]:
    """Returns a decorator that makes an operation of a handler, with what it takes and answers."""
    description = Description(
        status,
        result,
        body,
        body_required,
        many,
        errors,
        headers,
        health,
        query,
        answer,
        conflict,
        streams,
        conditional,
        takes_versions,
        takes_key,
    )
    return lambda handler: Endpoint(handler, description, handler.__name__)
