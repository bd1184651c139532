"""Builds responses: JSON, with the headers and links of a task, a list or a new task."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from service.models import NEEDS, TaskComplete, TaskUpdate
from service.queries import planning
from service.queries.tasks import Written
from service.web.errors import Invalid, Problem, Wrong, invalid, shown

# Status and detail of a write that did not happen, by its outcome; in a batch too
FAILED = {
    "not_found": (404, "Task not found"),
    "exists": (409, "Task already exists"),
    "other_version": (412, "Task has changed"),
}

# Of a task that has not what a field needs: the field, by the outcome
LACKS = {
    "due_time_needs_due_date": "due_time",
    "due_time_zone_needs_due_time": "due_time_zone",
    "recurrence_needs_due_date": "recurrence",
    "recurrence_anchor_needs_recurrence": "recurrence_anchor",
}

NO_HEADERS: Mapping[str, str] = MappingProxyType({})

Headers = list[tuple[bytes, bytes]]
API_HEADERS: Headers = [(b"cache-control", b"private, no-cache"), (b"vary", b"Authorization, Origin")]


class JsonResponse(Response):
    """A response whose body is JSON already. Starlette's class searches the headers for what is always set here."""

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
    """Returns the response with this JSON, or without a body a 304: the client has the current version.

    The headers belong to the body: their values are not known for a 304, which leaves them out.
    """
    if body is None:
        return Response(status_code=304, headers={"ETag": etag})
    return JsonResponse(body, 200, {"ETag": etag, **headers})


def task_response(request: Request, written: Written, change: TaskUpdate | TaskComplete | None = None) -> Response:
    """Returns the response with this task, and with the place of its successor when a recurring one is completed.

    Raises Problem: a 404 when there is none, a 412 when it has changed, a 422 when it cannot take this change.
    """
    if (refused := refusal(written, change)) is not None:
        raise Wrong([refused], 1)
    headers = _etag(written)
    if written.successor is not None:
        headers["Location"] = f"{list_path(request)}/{json.loads(written.successor)['id']}"
    return JsonResponse(written.task or b"", headers=headers)


def refusal(written: Written, change: Any) -> Invalid | None:
    """Returns what is wrong with a change that the task cannot take, None when nothing is; in a batch too."""
    if written.outcome == "invalid_recurrence":
        field = "recurrence_anchor" if getattr(change, "recurrence", None) is None else "recurrence"
        return Invalid(loc=["body", field], msg=written.problem or "", type="recurrence")
    if written.outcome in LACKS:
        field = LACKS[written.outcome]
        message = f"{field} {shown(getattr(change, field))} needs {NEEDS[field]}, which the task does not have"
        return Invalid(loc=["body", field], msg=message, type="contradiction")
    return None


def no_content(written: Written) -> Response:
    """Returns the response without a body; raises Problem: a 404 when there is no task, a 412 when it has changed."""
    return Response(status_code=204, headers=_etag(written))


def created_response(request: Request, written: Written, task_id: str) -> Response:
    """Returns the response with this new task, or with the one created by the first request with the same key.

    Raises Problem: a 409 when the id is taken, a 422 when the key is.
    """
    if written.outcome == "key_used":
        message = "Another request was sent with this key before: a new request needs a new key"
        raise invalid(["header", "Idempotency-Key"], message, "idempotency_key")
    headers = _etag(written)
    task = written.task or b""
    if written.outcome == "replayed":
        headers["Idempotent-Replayed"] = "true"
        first = json.loads(task)  # whose id the server may have made
        task_id = planning.successor_of(first) or first["id"]
    if written.successor is not None:
        task_id = json.loads(written.successor)["id"]
    headers["Location"] = f"{list_path(request)}/{task_id}"
    return JsonResponse(task, 201, headers)


def _etag(written: Written) -> dict[str, str]:
    """Returns the ETag header for the task's version; raises Problem when the write did not happen."""
    headers = {} if written.version is None else {"ETag": f'"{written.version}"'}
    if written.outcome in FAILED:
        raise Problem(*FAILED[written.outcome], headers)
    return headers


def not_found() -> Problem:
    """Returns the 404 for a task."""
    return Problem(*FAILED["not_found"])


def error_response(problem: Problem) -> Response:
    """Returns the response for this problem."""
    body = json.dumps({"detail": problem.detail}, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return JsonResponse(body, problem.status, problem.headers or NO_HEADERS)


def prefix(request: Request) -> str:
    """Returns the path prefix that a proxy has stripped, like `/svc`, or an empty string; Service has found it."""
    found: str = request.scope["prefix"]
    return found


def list_path(request: Request) -> str:
    """Returns the path of the user's list as the client must request it, with `me` if it used that."""
    return f"{prefix(request)}/api/{quote(request.path_params['user_id'], safe='')}/tasks"


def service_url(request: Request) -> str:
    """Returns the service's URL, with the scheme, host and prefix that the client used.

    Behind a trusted proxy, Service has set the scheme; Starlette ignores an invalid host.
    """
    return f"{request.url.scheme}://{request.url.netloc}{prefix(request)}"


def next_link(request: Request, query: str) -> str:
    """Returns the `Link` to the list's next page, with an absolute URL."""
    return f'<{request.url.scheme}://{request.url.netloc}{list_path(request)}?{query}>; rel="next"'
