"""What the routes share: the path and the body in, JSON out, and an answer for every error."""

import json
import logging
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar
from urllib.parse import parse_qsl, quote

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.auth import authenticate_at_once
from service.database import Unavailable
from service.errors import Invalid, Problem, invalid, shown, unavailable
from service.models import canonical_uuid
from service.queries import Created, KeyTaken, TaskExists, Written

log = logging.getLogger(__name__)

BODY_BYTES = 64 * 1024
BATCH_BYTES = 1024 * 1024

ENTITY_TAG = re.compile(r'"([\x21\x23-\x7e\x80-\xff]*)"')

_VERSION = r'[ \t]*"(?:0|[1-9][0-9]*)"[ \t]*'
VERSIONS = re.compile(f"{_VERSION}(?:,{_VERSION})*")
KEY = re.compile(rb"[\x21-\x7e]{1,255}")

# What is told of a task that is not there, is there already, or has another version, in a batch too
DETAILS = {404: "Task not found", 409: "Task already exists", 412: "Task has changed"}

NO_HEADERS: Mapping[str, str] = MappingProxyType({})

BodyModel = TypeVar("BodyModel", bound=BaseModel)


def path_uuid(request: Request, name: str) -> str:
    """Returns the path's UUID in lower case; raises Problem, a 422."""
    try:
        return canonical_uuid(request.path_params[name])
    except ValueError as error:
        raise invalid(["path", name], f"{error}, not {shown(request.path_params[name])}", "uuid") from None


def refuse_query(request: Request) -> None:
    """Raises Problem, a 422 that names them, when the query string has parameters: this route knows none."""
    if not request.scope["query_string"]:
        return
    names = [name for name, _ in parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)]
    raise Problem(422, [Invalid(loc=["query", name], msg="Unknown parameter", type="extra") for name in names or [""]])


def known_versions(request: Request) -> list[str] | None:
    """Returns what If-None-Match lists, weak or not: what a version is, or `*`; None when it was not sent.

    What is no entity tag matches nothing, so that the answer is the whole one, which is always right.
    """
    sent = _sent(request, b"if-none-match")
    if not sent:
        return None
    text = b",".join(sent).decode("latin-1")
    return ["*"] if text.strip() == "*" else ENTITY_TAG.findall(text)


def wanted_versions(request: Request) -> list[str] | None:
    """Returns the versions that If-Match lists; None when any will do: it says `*`, or was not sent.

    Raises Problem, a 422: whoever makes a change depend on something must not have it made regardless.
    """
    sent = _sent(request, b"if-match")
    if not sent:
        return None
    text = b",".join(sent).decode("latin-1")
    if text.strip(" \t") == "*":
        return None
    if not VERSIONS.fullmatch(text):
        message = f'Should be * or quoted versions like "7" or "7", "9", not {shown(text)}'
        raise invalid(["header", "If-Match"], message, "if_match")
    return re.findall("[0-9]+", text)


def idempotency_key(request: Request) -> str | None:
    """Returns the Idempotency-Key, or None when it was not sent; raises Problem, a 422."""
    sent = _sent(request, b"idempotency-key")
    if not sent:
        return None
    if len(sent) > 1:
        raise invalid(["header", "Idempotency-Key"], "Should be sent once", "idempotency_key")
    if not KEY.fullmatch(sent[0]):
        message = f"Should be 1 to 255 visible ASCII characters, not {shown(sent[0].decode('latin-1'))}"
        if len(sent[0]) > 255:
            message += f", which are {len(sent[0])}"
        raise invalid(["header", "Idempotency-Key"], message, "idempotency_key")
    key: str = sent[0].decode("ascii")
    return key


def _sent(request: Request, header: bytes) -> list[bytes]:
    """Returns the header's values, one for each time that it was sent; without a Headers object for one look."""
    return [value for name, value in request.scope["headers"] if name == header]


async def read_body(request: Request, model: type[BodyModel], limit: int = BODY_BYTES) -> BodyModel:
    """Returns the validated body; raises Problem: 408, 413, 415 or 422."""
    return _validated(await _json_bytes(request, limit), model)


async def read_optional_body(request: Request, model: type[BodyModel]) -> BodyModel | None:
    """Returns the validated body, or None when there is none; raises Problem: 408, 413, 415 or 422."""
    body = await _json_bytes(request)
    return _validated(body, model) if body else None


async def _json_bytes(request: Request, limit: int = BODY_BYTES) -> bytes:
    # Starlette's max_body_size does the same, and answers in plain text what ought to be JSON.
    headers = dict(request.scope["headers"])  # without a Headers object, which takes as long as the whole rest
    declared = int(headers.get(b"content-length", b"0"))
    if declared > limit:
        raise Problem(413, "Request body too large")
    parts: list[bytes] = []
    size, is_followed = 0, True
    while is_followed:
        try:
            message = await request.receive()
        except TimeoutError:  # Protocol's
            raise Problem(408, "Request body incomplete", {"Connection": "close"}) from None
        if message["type"] == "http.disconnect":
            raise Problem(400, "Request body incomplete")  # nobody is there to read it; the log is
        parts.append(message.get("body", b""))
        is_followed = message.get("more_body", False)
        size += len(parts[-1])
        if size > limit:
            raise Problem(413, "Request body too large")
    body = b"".join(parts)
    if body:
        media_type = headers.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()
        if media_type != b"application/json" and not (
            media_type.startswith(b"application/") and media_type.endswith(b"+json")
        ):
            raise Problem(415, "Unsupported media type")
    return body


def _validated(body: bytes, model: type[BodyModel]) -> BodyModel:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise Problem(422, entries(error)) from None


def entries(error: ValidationError) -> list[Invalid]:
    """Returns the 422's entries: one for each thing that is wrong with a body."""
    return [_entry(problem) for problem in error.errors(include_url=False)]


def _entry(problem: ErrorDetails) -> Invalid:
    message, value = problem["msg"], problem["input"]
    if problem["loc"][:1] == ("operations",):
        return _entry_of_a_batch(problem)
    if problem["type"] == "model_type":
        message = "Input should be an object"  # of an operation's task, pydantic would name the Python class
    if problem["type"] == "string_too_long":
        message += f", not {len(value.strip() if problem['loc'] == ('title',) else value)}"
    elif problem["type"] == "string_too_short":
        message += " that is not white space"
    elif problem["type"] not in ("json_invalid", "missing", "extra_forbidden", "contradiction", "nul"):
        message += f", not {shown(value)}"
    return Invalid(loc=["body", *problem["loc"]], msg=message, type=problem["type"])


def _entry_of_a_batch(problem: ErrorDetails) -> Invalid:
    """Names the place as the client knows it: pydantic puts the operation's kind into it, behind its number."""
    place, message, type_ = list(problem["loc"]), problem["msg"], problem["type"]
    if type_ == "union_tag_not_found":
        place, message, type_ = [*place, "op"], "Field required", "missing"
    elif type_ == "union_tag_invalid":
        place, type_ = [*place, "op"], "literal_error"
        expected = problem["ctx"]["expected_tags"]
        message = f"Input should be one of {expected}, not {shown(problem['input']['op'])}"
    elif type_ not in ("missing", "extra_forbidden", "too_long", "too_short"):
        message += f", not {shown(problem['input'])}"
    return Invalid(loc=["body", *place[:2], *place[2 if "op" in place[2:3] else 3 :]], msg=message, type=type_)


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
    """Returns the answer with this JSON, or a 304 when the client has it already: there is no body then."""
    headers = {"ETag": etag, **headers}
    return Response(status_code=304, headers=headers) if body is None else JsonResponse(body, 200, headers)


def task_response(written: Written) -> Response:
    """Returns the answer with this task; raises Problem: a 404 when there is none, a 412 when it has changed."""
    if written.task is None:
        raise not_written(written.version)
    return JsonResponse(written.task, 200, {"ETag": f'"{written.version}"'})


def created_response(user_id: str, created: Created) -> Response:
    """Returns the answer with this new task, or with the one that the first request with the same key has made."""
    headers = {"Location": task_path(user_id, created.id), "ETag": f'"{created.version}"'}
    if created.is_replayed:
        headers["Idempotent-Replayed"] = "true"
    return JsonResponse(created.task, 201, headers)


def not_written(version: int | None) -> Problem:
    """Returns the 412 for a task that has this version and should have another, or the 404 when it has none."""
    if version is None:
        return Problem(404, DETAILS[404])
    return Problem(412, DETAILS[412], {"ETag": f'"{version}"'})


def list_path(user_id: str) -> str:
    """Returns the path of the user's list."""
    return f"/api/{quote(user_id, safe='')}/tasks"


def task_path(user_id: str, task_id: str) -> str:
    """Returns the task's path, as it goes into `Location`."""
    return f"{list_path(user_id)}/{task_id}"


def next_link(request: Request, path: str, query: str) -> str:
    """Returns the `Link` to the next page: complete, with the scheme and the host that the client used.

    Service has put the scheme right behind a proxy that it trusts; Starlette takes the host for none unless it is one.
    """
    return f'<{request.url.scheme}://{request.url.netloc}{path}?{query}>; rel="next"'


def error_response(problem: Problem) -> Response:
    """Returns the answer that the problem stands for."""
    body = json.dumps({"detail": problem.detail}, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return JsonResponse(body, problem.status, problem.headers or NO_HEADERS)


def problem_of(error: Exception, request: Request) -> Problem | None:
    """Returns what the client is told of this error; None when it is a bug."""
    match error:
        case Problem():
            return error
        case TaskExists():
            return Problem(409, DETAILS[409])
        case KeyTaken():
            message = "Another request was sent with this key before: a new request needs a new key"
            return invalid(["header", "Idempotency-Key"], message, "idempotency_key")
        case Unavailable():
            log.warning("503: %s", error)
            return unavailable("Service unavailable")
        case HTTPException():
            return _no_route(error, request)
    return None


def _no_route(error: HTTPException, request: Request) -> Problem:
    """The router's own 404 and 405; below /api/ it is told only to those who may ask there."""
    path = request.scope["path"]
    if path.startswith("/api/"):
        request.scope.setdefault("path_params", {"user_id": path.split("/")[2]})
        try:
            authenticate_at_once(request)
        except Problem as refusal:
            return refusal
    headers = dict(error.headers or {})
    if error.status_code == 405:
        allowed = headers.get("Allow", "GET, HEAD").split(", ")  # a static file's refusal has none
        headers["Allow"] = ", ".join(sorted(allowed))
    return Problem(error.status_code, error.detail, headers)
