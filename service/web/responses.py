"""What goes out: JSON, with the headers of a task, of a list or of a new task; and the links in them."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from service.queries.tasks import Created, Written
from service.web.errors import Problem

# What is told of a task that is not there, is there already, or has another version, in a batch too
DETAILS = {404: "Task not found", 409: "Task already exists", 412: "Task has changed"}

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class JsonResponse(Response):
    """An answer whose body is JSON already. Starlette's own looks through the headers for what these always have."""

    def __init__(self, body: bytes, status: int = 200, headers: Mapping[str, str] = NO_HEADERS) -> None:
        self.status_code = status
        self.background = None
        self.body = body
        self.raw_headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *[(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
        ]


def read_response(body: bytes | None, etag: str, headers: Mapping[str, str] = NO_HEADERS) -> Response:
    """Returns the answer with this JSON, or a 304 when the client has it already: there is no body then.

    The headers are of the body: a 304 leaves them out, since what they would say is not known then.
    """
    if body is None:
        return Response(status_code=304, headers={"ETag": etag})
    return JsonResponse(body, 200, {"ETag": etag, **headers})


def task_response(written: Written) -> Response:
    """Returns the answer with this task; raises Problem: a 404 when there is none, a 412 when it has changed."""
    if written.task is None:
        raise not_written(written.version)
    return JsonResponse(written.task, 200, {"ETag": f'"{written.version}"'})


def created_response(request: Request, created: Created) -> Response:
    """Returns the answer with this new task, or with the one that the first request with the same key has made."""
    headers = {"Location": f"{list_path(request)}/{created.id}", "ETag": f'"{created.version}"'}
    if created.is_replayed:
        headers["Idempotent-Replayed"] = "true"
    return JsonResponse(created.task, 201, headers)


def not_written(version: int | None) -> Problem:
    """Returns the 412 for a task that has this version and should have another, or the 404 when it has none."""
    if version is None:
        return Problem(404, DETAILS[404])
    return Problem(412, DETAILS[412], {"ETag": f'"{version}"'})


def error_response(problem: Problem) -> Response:
    """Returns the answer that the problem stands for."""
    body = json.dumps({"detail": problem.detail}, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return JsonResponse(body, problem.status, problem.headers or NO_HEADERS)


def prefix(request: Request) -> str:
    """Returns what a proxy has taken away at the path's beginning, like `/svc`; empty when there is none, or no word
    of it. Middleware has put it there.
    """
    found: str = request.scope["prefix"]
    return found


def list_path(request: Request) -> str:
    """Returns the path of the user's list, as the client has to ask for it: with `me` when it did so."""
    return f"{prefix(request)}/api/{quote(request.path_params['user_id'], safe='')}/tasks"


def service_url(request: Request) -> str:
    """Returns the service's own URL, with the scheme, the host and the prefix that the client used.

    Middleware has put the scheme right behind a proxy that is trusted; Starlette takes the host for none unless it is
    one.
    """
    return f"{request.url.scheme}://{request.url.netloc}{prefix(request)}"


def next_link(request: Request, query: str) -> str:
    """Returns the `Link` to the list's next page, complete."""
    return f'<{request.url.scheme}://{request.url.netloc}{list_path(request)}?{query}>; rel="next"'
