"""Reads a request: the ids in the path, and the body as a model."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.requests import Request

from service.models import canonical_uuid, writable
from service.web.errors import MOST_ENTRIES, Invalid, Problem, Wrong, cut, guess, invalid, shown
from service.web.parameters import sent_parameters
from service.web.zones import zone_guess

BODY_BYTES = 64 * 1024
BATCH_BYTES = 1024 * 1024
COSTLY_BYTES = 192 * 1024  # of a batch's JSON outside strings, brackets counted thrice; 100 whole tasks have 20 KiB

BodyModel = TypeVar("BodyModel", bound=BaseModel)


def path_uuid(request: Request, name: str) -> str:
    """Returns the path's UUID in lower case; raises Problem, a 422."""
    try:
        return canonical_uuid(request.path_params[name])
    except ValueError as error:
        raise invalid(["path", name], f"{error}, not {shown(request.path_params[name])}", "uuid") from None


def refuse_query(request: Request) -> None:
    """Raises Problem, a 422 that names them, when the query string has parameters: this route takes none."""
    if not request.scope["query_string"]:
        return
    names = sent_parameters(request.scope["query_string"]) or [""]
    message = "Unknown parameter; there is none here"
    raise Wrong((Invalid(loc=["query", cut(name)], msg=message, type="extra") for name in names), len(names))


async def read_body(request: Request, model: type[BodyModel]) -> BodyModel:
    """Returns the validated body; raises Problem: 408, 413, 415 or 422."""
    return validated(_parsed(await _json_bytes(request)), model)


async def read_batch(request: Request) -> Any:
    """Returns the parsed JSON of a batch; raises Problem: 408, 413, 415 or 422."""
    body = await _json_bytes(request, BATCH_BYTES)
    if len(body) > BODY_BYTES:
        _reject_costly_json(body)
    return _parsed(body)


async def read_optional_body(request: Request, model: type[BodyModel]) -> BodyModel | None:
    """Returns the validated body, or None when there is none; raises Problem: 408, 413, 415 or 422."""
    body = await _json_bytes(request)
    return validated(_parsed(body), model) if body else None


async def _json_bytes(request: Request, limit: int = BODY_BYTES) -> bytes:
    # Starlette's max_body_size responds in plain text where this API promises JSON.
    headers = dict(request.scope["headers"])  # a Headers object takes as long as all the rest
    declared = int(headers.get(b"content-length", b"0"))
    if declared > limit:
        raise Problem(413, "Request body too large")
    parts: list[bytes] = []
    size, has_more = 0, True
    while has_more:
        try:
            message = await request.receive()
        except TimeoutError:  # from Exchange.receive
            raise Problem(408, "Request body incomplete", {"Connection": "close"}) from None
        if message["type"] == "http.disconnect":
            raise Problem(400, "Request body incomplete")  # for the log: the client has gone
        parts.append(message.get("body", b""))
        has_more = message.get("more_body", False)
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


def _reject_costly_json(body: bytes) -> None:
    """Raises Problem, a 422, when parsing this JSON would block the event loop for too long.

    Strings parse fast; names, numbers and above all brackets do not. The most expensive body that is accepted takes
    35 ms, as measured.
    """
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # now every " delimits a string
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
    """Returns the parsed JSON (RFC 8259: no NaN, no Infinity); raises Problem, a 422."""
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise invalid(["body"], f"Invalid JSON: {error}", "json_invalid") from None


def validated(
    value: Any, model: type[BodyModel], place: Sequence[str | int] = ("body",), most: int = MOST_ENTRIES
) -> BodyModel:
    """Returns this JSON as the model; raises Wrong, with entries whose `loc` begins with the place.

    Unknown fields are checked here: pydantic would build an error for each, however many there are.
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
        message = "Input should be an object"  # pydantic names the Python class
    elif type_ == "list_type":
        message = "Input should be an array"
    if type_ == "string_too_long":
        message += f", not {len(value.strip() if problem['loc'] == ('title',) else value)}"
    elif type_ == "string_too_short":
        message += " that is not white space"
    elif type_ not in ("missing", "too_long", "too_short", "contradiction", "nul", "recurrence", "tags_alike"):
        message += f", not {shown(value)}"
    if type_ == "time_zone":
        message += zone_guess(value)
    # of a check of the whole body, the field that it names
    loc = problem["loc"] or [name for name in [problem.get("ctx", {}).get("field")] if name]
    return Invalid(loc=[*place, *loc], msg=message, type=type_)
