"""What the routes share: the path and the body in, JSON out, and an answer for every error."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.auth import authenticate, token_subject
from service.database import Unavailable
from service.errors import MOST_ENTRIES, Invalid, Problem, Wrong, cut, guess, invalid, shown, unavailable
from service.lists import sent_parameters
from service.models import canonical_uuid, writable
from service.queries import Created, KeyTaken, TaskExists, Written

log = logging.getLogger(__name__)

BODY_BYTES = 64 * 1024
BATCH_BYTES = 1024 * 1024
COSTLY_BYTES = 192 * 1024  # of a batch that are in no string, brackets counted thrice; 100 whole tasks have 20 KiB

# RFC 9110, section 8.8.3, but that whether a tag is weak makes no difference here
_TAG = r'[ \t]*(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"[ \t]*'
ENTITY_TAGS = re.compile(f"{_TAG}(?:,{_TAG})*")
# A tag that is a version, and what those who compress on the way append to it: "7-gzip" is Apache's and lighttpd's,
# "7--gzip" Jetty's, others use other signs. Apache has been seen to append it at each turn.
VERSION_TAG = re.compile(
    r'"(0|[1-9][0-9]*)(?:[-;:.,/+_~]{1,2}(?:x-)?(?:gzip|gz|br|brotli|zstd|zst|deflate|compress|bzip2|dcb|dcz|identity))*"',
    re.IGNORECASE,
)
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
    names = sent_parameters(request.scope["query_string"]) or [""]
    message = "Unknown parameter; there is none here"
    raise Wrong((Invalid(loc=["query", cut(name)], msg=message, type="extra") for name in names), len(names))


def known_versions(request: Request) -> list[str] | None:
    """Returns the versions that If-None-Match lists, or `*`; None when it was not sent.

    What is no version matches nothing, so that the answer is the whole one, which is always right.
    """
    sent = _sent(request, b"if-none-match")
    if not sent:
        return None
    text = b",".join(sent).decode("latin-1")
    return ["*"] if text.strip() == "*" else VERSION_TAG.findall(text)


def wanted_versions(request: Request) -> list[str] | None:
    """Returns the versions that If-Match lists; None when any will do: it says `*`, or was not sent.

    A tag that is no version is left out: it matches nothing. Raises Problem, a 422, when the header is no list of tags:
    whoever makes a change depend on something must not have it made regardless.
    """
    sent = _sent(request, b"if-match")
    if not sent:
        return None
    text = b",".join(sent).decode("latin-1")
    if text.strip(" \t") == "*":
        return None
    if not ENTITY_TAGS.fullmatch(text):
        message = f'Should be * or quoted versions like "7" or "7", "9", not {shown(text)}'
        raise invalid(["header", "If-Match"], message, "if_match")
    return VERSION_TAG.findall(text)


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


async def read_body(request: Request, model: type[BodyModel]) -> BodyModel:
    """Returns the validated body; raises Problem: 408, 413, 415 or 422."""
    return validated(_parsed(await _json_bytes(request)), model)


async def read_batch(request: Request) -> Any:
    """Returns what the JSON of a batch says; raises Problem: 408, 413, 415 or 422."""
    body = await _json_bytes(request, BATCH_BYTES)
    if len(body) > BODY_BYTES:
        _refuse_costly_json(body)
    return _parsed(body)


async def read_optional_body(request: Request, model: type[BodyModel]) -> BodyModel | None:
    """Returns the validated body, or None when there is none; raises Problem: 408, 413, 415 or 422."""
    body = await _json_bytes(request)
    return validated(_parsed(body), model) if body else None


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


def _refuse_costly_json(body: bytes) -> None:
    """Raises Problem, a 422, when reading this JSON would keep everybody waiting.

    Text is read fast; names, numbers and above all brackets are not. Measured here, the most that is let through takes
    35 ms.
    """
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # now each " begins or ends a string
    cost = plain.count(b'"') // 2
    if cost <= COSTLY_BYTES:
        rest = b"".join(plain.split(b'"')[::2]).translate(None, b" \t\r\n")
        cost = len(rest) + 2 * (rest.count(b"[") + rest.count(b"{"))
    if cost > COSTLY_BYTES:
        message = (
            f"Should have fewer names, numbers and brackets: at most {COSTLY_BYTES} bytes outside text, not {cost}"
        )
        raise invalid(["body"], message, "too_long")


def _parsed(body: bytes) -> Any:
    """Returns what the JSON says, as RFC 8259 has it; raises Problem, a 422."""
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise invalid(["body"], f"Invalid JSON: {error}", "json_invalid") from None


def validated(
    value: Any, model: type[BodyModel], place: Sequence[str | int] = ("body",), most: int = MOST_ENTRIES
) -> BodyModel:
    """Returns the model of this JSON; raises Wrong, whose entries' `loc` begins with the place.

    Unknown fields are looked for here: pydantic makes an error of each, however many there are.
    """
    known = model.__pydantic_fields__.keys()
    unknown: list[str] = []
    if type(value) is dict and not value.keys() <= known:
        unknown = [name for name in value if name not in known]
        value = {name: value[name] for name in known if name in value}
    problems: list[ErrorDetails] = []
    try:
        found: BodyModel = model.__pydantic_validator__.validate_python(value)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    if problems or unknown:
        entries = chain(
            (_entry(problem, place) for problem in problems), (_unknown(name, model, place) for name in unknown)
        )
        raise Wrong(entries, len(problems) + len(unknown), most)
    return found


def _unknown(name: str, model: type[BaseModel], place: Sequence[str | int]) -> Invalid:
    message = f"Unknown field{guess(name, model.model_fields)}; known are {', '.join(writable(model))}"
    return Invalid(loc=[*place, cut(name)], msg=message, type="extra_forbidden")


def _entry(problem: ErrorDetails, place: Sequence[str | int]) -> Invalid:
    message, value, type_ = problem["msg"], problem["input"], problem["type"]
    if type_ == "model_type":
        message = "Input should be an object"  # pydantic would name the Python class
    elif type_ == "list_type":
        message = "Input should be an array"
    if type_ == "string_too_long":
        message += f", not {len(value.strip() if problem['loc'] == ('title',) else value)}"
    elif type_ == "string_too_short":
        message += " that is not white space"
    elif type_ not in ("missing", "too_long", "too_short", "contradiction", "nul"):
        message += f", not {shown(value)}"
    return Invalid(loc=[*place, *problem["loc"]], msg=message, type=type_)


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


def error_response(problem: Problem) -> Response:
    """Returns the answer that the problem stands for."""
    body = json.dumps({"detail": problem.detail}, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return JsonResponse(body, problem.status, problem.headers or NO_HEADERS)


async def problem_of(error: Exception, request: Request) -> Problem | None:
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
            return await _no_route(error, request)
    return None


async def _no_route(error: HTTPException, request: Request) -> Problem:
    """The router's own 404 and 405; below /api/ it is told only to those who may ask there."""
    if request.scope["path"].startswith("/api/"):
        try:
            # A path that does not exist is nobody's: a client that mistypes one must not think it is signed out.
            await (token_subject if error.status_code == 404 else authenticate)(request)
        except Problem as refusal:
            return refusal
    headers = dict(error.headers or {})
    if error.status_code == 405:
        allowed = headers.get("Allow", "GET, HEAD").split(", ")  # a static file's refusal has none
        headers["Allow"] = ", ".join(sorted(allowed))
    return Problem(error.status_code, error.detail, headers)
