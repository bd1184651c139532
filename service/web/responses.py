"""What goes out: JSON, with the headers of a task, of a list or of a new task; and the links in them."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from service.queries.tasks import Written
from service.web.errors import Problem, invalid

# What a write that did not happen is answered, in a batch too: by the outcome, status and detail
FAILED = {
    "not_found": (404, "Task not found"),
    "exists": (409, "Task already exists"),
    "other_version": (412, "Task has changed"),
}

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
    headers = _etag(written)
    return JsonResponse(written.task or b"", 200, headers)


def no_content(written: Written) -> Response:
    """Returns the answer without a body; raises Problem: a 404 when there is no task, a 412 when it has changed."""
    return Response(status_code=204, headers=_etag(written))


def created_response(request: Request, written: Written, task_id: str) -> Response:
    """Returns the answer with this new task, or with the one that the first request with the same key has made.

    Raises Problem: a 409 when the id is taken, a 422 when the key is.
    """
    if written.outcome == "key_used":
        message = "Another request was sent with this key before: a new request needs a new key"
        raise invalid(["header", "Idempotency-Key"], message, "idempotency_key")
    headers = _etag(written)
    task = written.task or b""
    if written.outcome == "replayed":
        headers["Idempotent-Replayed"] = "true"
        task_id = json.loads(task)["id"]  # which the server has made, perhaps
    headers["Location"] = f"{list_path(request)}/{task_id}"
    return JsonResponse(task, 201, headers)


def _etag(written: Written) -> dict[str, str]:
    """Returns the header with the task's version; raises Problem when nothing was to be written."""
    headers = {} if written.version is None else {"ETag": f'"{written.version}"'}
    if written.outcome in FAILED:
        raise Problem(*FAILED[written.outcome], headers)
    return headers


def not_found() -> Problem:
    """Returns the 404 for a task that is not there."""
    return Problem(*FAILED["not_found"])


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
