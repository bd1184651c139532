"""The OpenAPI 3.1 document, made from the routes, what they say of themselves, and the models."""

import json
import tomllib
from collections.abc import Sequence
from functools import cache
from inspect import getdoc
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema
from starlette.routing import BaseRoute

from service.models import (
    USER_ID_LENGTH,
    Batch,
    BatchResult,
    ChangesPage,
    ChangeUndo,
    HistoryEntry,
    Priority,
    RecurrenceAnchor,
    Status,
    TagCount,
    TagRename,
    TagRenamed,
    Task,
    TaskComplete,
    TaskCreate,
    TaskUpdate,
    UndoConflict,
    UndoResult,
    UserErase,
)
from service.web.parameters import Parameter
from service.web.route import Endpoint, Resource, describe
from service.web.search import DUE, FIELDS, SORTS

Json = dict[str, Any]

MODELS: tuple[type[BaseModel], ...] = (
    *(Task, TaskCreate, TaskUpdate, TaskComplete, Batch, BatchResult),
    *(ChangesPage, HistoryEntry, ChangeUndo, UndoConflict, UndoResult),
    *(TagCount, TagRename, TagRenamed, UserErase),
)
REF = "#/components/schemas/"

# Values that stand in many places: with a name of their own, generators make one type of them instead of many.
ENUMS: dict[str, Json] = {
    "TaskStatus": {"type": "string", "enum": [*get_args(Status)]},
    "TaskPriority": {"type": "string", "enum": [*get_args(Priority)]},
    "RecurrenceAnchor": {"type": "string", "enum": [*get_args(RecurrenceAnchor)]},
    "TaskField": {"type": "string", "enum": [*FIELDS]},
    "TaskDue": {"type": "string", "enum": [*DUE]},
    "TaskSort": {
        "type": "string",
        "enum": [sign + name for name in SORTS for sign in ("", "-")],
        # what generators call the values, where a name cannot begin with a -
        "x-enum-varnames": [name.upper() + suffix for name in SORTS for suffix in ("", "_DESCENDING")],
    },
}
HEALTH: Json = {
    "type": "object",
    "properties": {"status": {"type": "string", "const": "ok"}},
    "required": ["status"],
    "additionalProperties": False,
}
BEARER: Json = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "JWT",
    "description": (
        "A JWT whose `sub` is the user. To try the service out, `python -m service token USER` prints one. A page gets "
        "its user's from Better Auth: `(await authClient.token()).data.token`, with the JWT plugin."
    ),
}

# What every operation below /api/ can answer, and what those with a body can.
API_ERRORS = (401, 422, 429, 431, 500, 503)
BODY_ERRORS = (400, 408, 413, 415)
HEALTH_ERRORS = (422, 431, 500)

ERRORS: dict[int, tuple[str, Any]] = {
    400: (
        "What came is no HTTP/1.1 request; the connection is closed",
        "No HTTP/1.1 request: exactly one Host header is needed, not 0",
    ),
    401: ("The token is missing, wrong, expired, or another user's", "Token has expired"),
    404: ("The user has no such task, or no such change", "Task not found"),
    408: (
        "The body did not arrive within 5 seconds, or then with less than 64 KiB a second",
        "Request body incomplete",
    ),
    409: ("The user already has a task with this id", "Task already exists"),
    410: (
        "What is asked for is gone: changes since a number that is too old, or ahead; the history of a change",
        "Start again from since=0",
    ),
    412: ("The task has another version than those of If-Match; ETag has it", "Task has changed"),
    413: ("The body is over 64 KiB, or 1 MiB for a batch", "Request body too large"),
    415: ("The body's content type is not JSON", "Unsupported media type"),
    422: (
        "A parameter, the path's id or the body is not what it should be; one entry for each thing that is wrong",
        [
            {
                "loc": ["body", "title"],
                "msg": "String should have at most 100 characters, not 101",
                "type": "string_too_long",
            }
        ],
    ),
    429: (
        "The user's rate limit, where the service has one, is reached; ask again after Retry-After",
        "Too many requests",
    ),
    431: ("Request line and headers are over 32 KiB together", "Request headers too large: 40000 bytes, at most 32768"),
    500: ("A bug; the log has what the answer has not", "Internal server error"),
    503: (
        "The database does not answer, or the token's signature cannot be checked yet, as the Better Auth server does "
        "not answer; ask again after Retry-After",
        "Service unavailable",
    ),
}

HEADERS: dict[str, tuple[str, Json]] = {
    "X-Request-Id": (
        "The request's X-Request-Id when that is 1–128 characters of [A-Za-z0-9._-], else a new one; the log has it",
        {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
    ),
    "X-Content-Type-Options": ("", {"const": "nosniff"}),
    "Server-Timing": ("Milliseconds in total and in the database", {"type": "string"}),
    "Cache-Control": ("", {"const": "private, no-cache"}),
    "Vary": ("", {"type": "string"}),
    "Location": (
        "The new task's path; of a recurring task that is completed, its successor's",
        {"type": "string", "format": "uri-reference"},
    ),
    "ETag": (
        "What If-Match and If-None-Match take: a task's version, or the user's counter for a list",
        {"type": "string", "pattern": '^(W/)?"[0-9]+"$'},
    ),
    "Idempotent-Replayed": (
        "Sent when this is the first answer again, to a repeated request with the same Idempotency-Key",
        {"const": "true"},
    ),
    "Link": ('The next page, when there is one: `<URL>; rel="next"`', {"type": "string"}),
    "X-Total-Count": ("With `count=true`: how many tasks match", {"type": "string", "pattern": "^[0-9]+$"}),
    "WWW-Authenticate": ("", {"const": "Bearer"}),
    "Retry-After": ("Seconds to wait", {"type": "string", "pattern": "^[0-9]+$"}),
    "RateLimit-Policy": (
        'Where the service has a rate limit: so many requests (`q`) in so many seconds (`w`), `"default";q=600;w=60`',
        {"type": "string", "pattern": '^"default";q=[0-9]+;w=[0-9]+$'},
    ),
    "RateLimit": (
        "Where the service has a rate limit: the requests that are left (`r`), and the seconds until all are there "
        'again (`t`), `"default";r=599;t=60`',
        {"type": "string", "pattern": '^"default";r=[0-9]+;t=[0-9]+$'},
    ),
}
API_HEADERS = ("Cache-Control", "RateLimit-Policy", "RateLimit")
ALWAYS = ("X-Request-Id", "X-Content-Type-Options", "Server-Timing", "Vary")

EXAMPLES: dict[type[BaseModel], Json] = {
    TaskCreate: {
        "title": "Buy milk",
        "description": "Two litres",
        "priority": "high",
        "due_date": "2026-11-27",
        "recurrence": "FREQ=WEEKLY;BYDAY=FR",
        "tags": ["shopping"],
    },
    TaskUpdate: {"status": "in_progress"},
    TaskComplete: {"is_completed": True},
    ChangeUndo: {"version": 1763886600124},
    TagRename: {"from": "shopping", "to": "errands"},
    UserErase: {"confirm": "demo"},
    Batch: {
        "operations": [
            {"op": "create", "id": "6f1c8a50-93d2-4b57-8f0a-1d2e3c4b5a69", "task": {"title": "Buy milk"}},
            {"op": "complete", "id": "6f1c8a50-93d2-4b57-8f0a-1d2e3c4b5a69", "task": {"is_completed": True}},
            {"op": "delete", "id": "6f1c8a50-93d2-4b57-8f0a-1d2e3c4b5a69"},
        ]
    },
}
TASK_EXAMPLE: Json = {
    "id": "0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e11",
    "user_id": "demo",
    "title": "Buy milk",
    "description": "Two litres",
    "status": "pending",
    "priority": "high",
    "is_completed": False,
    "completed_at": None,
    "created_at": "2026-11-23T08:30:00.123456+00:00",
    "updated_at": "2026-11-23T08:30:00.123456+00:00",
    "deleted_at": None,
    "version": 1763886600123,
    "due_date": "2026-11-27",
    "due_time": None,
    "due_time_zone": None,
    "recurrence": "FREQ=WEEKLY;BYDAY=FR",
    "recurrence_anchor": "due",
    "recurrence_start": "2026-11-27",
    "series_id": "0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e11",
    "occurrence": 1,
    "tags": ["shopping"],
}

ANSWERS: dict[type[BaseModel], Json] = {
    Task: TASK_EXAMPLE,
    BatchResult: {
        "committed": True,
        "version": TASK_EXAMPLE["version"],
        "results": [{"status": 201, "task": TASK_EXAMPLE}, {"status": 204}],
    },
    ChangesPage: {"version": TASK_EXAMPLE["version"], "has_more": False, "tasks": [TASK_EXAMPLE], "erased": []},
    HistoryEntry: {
        "version": 1763886600124,
        "at": "2026-11-23T08:31:00.123456+00:00",
        "operation": "update",
        "task_id": TASK_EXAMPLE["id"],
        "before": {"title": "Buy milk"},
        "after": {"title": "Buy oat milk"},
    },
    UndoResult: {"version": 1763886600125, "tasks": [TASK_EXAMPLE]},
    TagCount: {"tag": "shopping", "tasks": 3, "open": 2},
    TagRenamed: {"version": 1763886600126, "tasks": 3},
}
CONFLICTS: dict[type[BaseModel], tuple[str, Json]] = {
    BatchResult: (
        "One operation failed, so nothing is kept",
        {
            "committed": False,
            "version": None,
            "results": [
                {"status": 424, "detail": "Another operation failed"},
                {"status": 404, "detail": "Task not found"},
            ],
        },
    ),
    UndoConflict: (
        "Fields have been changed since, so nothing is undone",
        {"detail": "Changed since", "conflicts": [{"task_id": TASK_EXAMPLE["id"], "fields": ["title"]}]},
    ),
}
STREAM_HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
LAST_EVENT_ID: Json = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "the id of the last event that was received; goes before `since`",
    "schema": {"type": "string", "pattern": "^(0|[1-9][0-9]{0,15})$"},
}

PATH_PARAMETERS: dict[str, Json] = {
    "user_id": {
        "description": "the token's `sub`, or `me`, which stands for it",
        "schema": {"type": "string", "minLength": 1, "maxLength": USER_ID_LENGTH},
        "example": "me",  # the one example that Swagger UI may fill in: it is right for every token
    },
    "task_id": {"schema": {"type": "string", "format": "uuid"}},
}

IF_NONE_MATCH: Json = {
    "name": "If-None-Match",
    "in": "header",
    "description": "the `ETag` of an earlier answer: a 304 when nothing has changed since; browsers send it themselves",
    "schema": {"type": "string", "examples": ['W/"7"']},
}

IF_MATCH: Json = {
    "name": "If-Match",
    "in": "header",
    "description": "`*`, or quoted versions: a 412 when the task has none of them, and nothing is changed",
    "schema": {
        "type": "string",
        "pattern": r'^(\*|(W/)?"[!#-~]*"([ \t]*,[ \t]*(W/)?"[!#-~]*")*)$',
        "examples": ['"7"'],
    },
}
IDEMPOTENCY_KEY: Json = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": (
        "made up anew for each task, and sent again with a repeated request, which then gets the first answer again; "
        "kept for a day at least. Another request with the same key is a 422"
    ),
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$", "minLength": 1, "maxLength": 255},
}


def document(routes: Sequence[BaseRoute]) -> bytes:
    """Returns the document, as JSON, for those of the routes that describe themselves."""
    resources = [route for route in routes if isinstance(route, Resource)]
    # first the list and what creates, last what people seldom call
    resources.sort(
        key=lambda route: (not route.path.startswith("/api/"), "DELETE" in route.operations, route.path.count("/"))
    )
    paths = {
        route.path: {method.lower(): _described(route, operation) for method, operation in route.operations.items()}
        for route in resources
    }
    _, models = models_json_schema(
        [(model, "validation") for model in MODELS], ref_template=REF + "{model}", schema_generator=_Schemas
    )
    schemas: Json = {}
    _with_references([*models["$defs"].values()], schemas)
    return json.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Task service",
                "version": service_version(),
                "description": (
                    "The tasks of each user. Every path below `/api/` needs a JWT whose `sub` is the `user_id` of the "
                    "path. Characters are Unicode code points; timestamps are RFC 3339 in UTC."
                ),
            },
            "tags": [{"name": "tasks"}, {"name": "health"}],
            "paths": _with_references(paths, schemas),
            "components": {
                "schemas": schemas
                | {"Health": HEALTH, "Problem": _problem({"type": "string"}), "ValidationProblem": _VALIDATION_PROBLEM}
                | ENUMS,
                "headers": {
                    name: {"schema": schema} | ({"description": text} if text else {})
                    for name, (text, schema) in HEADERS.items()
                },
                "securitySchemes": {"bearer": BEARER},
            },
        },
        ensure_ascii=False,
    ).encode()


@cache
def service_version() -> str:
    """Returns the version in pyproject.toml."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    return str(project["version"])


class _Schemas(GenerateJsonSchema):
    """Leaves out what confuses generators: a field's title (a type's name to some), and its default.

    openapi-typescript takes what has a default for always there, in a request, too; the descriptions tell it.
    """

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def _with_references(node: Any, schemas: Json) -> Any:
    """Returns the same with a reference in the place of all that has a name, which is put into the schemas."""
    if isinstance(node, list):
        return [_with_references(item, schemas) for item in node]
    if not isinstance(node, dict):
        return node
    if "title" in node and (node.get("type") == "object" or "oneOf" in node):
        name = node["title"]
        schemas[name] = {key: _with_references(value, schemas) for key, value in node.items()}
        return {"$ref": REF + name}
    for name, schema in ENUMS.items():
        if node.get("enum") == schema["enum"]:
            return {key: value for key, value in node.items() if key not in ("enum", "type")} | {"$ref": REF + name}
    return {key: _with_references(value, schemas) for key, value in node.items()}


def _described(route: Resource, operation: Endpoint) -> Json:
    described = operation.description
    summary, _, details = (getdoc(operation.handler) or "").partition("\n\n")
    found: Json = {
        "operationId": operation.name,
        "summary": summary.rstrip("."),
        "tags": ["health" if described.health else "tasks"],
    }
    if details:
        found["description"] = details.replace("\n", " ")
    if not described.health:
        found["security"] = [{"bearer": []}]
    parameters = [
        {"name": name, "in": "path", "required": True} | PATH_PARAMETERS[name] for name in route.param_convertors
    ]
    parameters += [_query_parameter(name, parameter) for name, parameter in described.query.items()]
    if described.conditional:
        parameters.append(IF_NONE_MATCH)
    if described.takes_versions:
        parameters.append(IF_MATCH)
    if described.takes_key:
        parameters.append(IDEMPOTENCY_KEY)
    if described.streams:
        parameters.append(LAST_EVENT_ID)
    if parameters:
        found["parameters"] = parameters
    errors = (
        set(described.errors)
        | ({412} if described.takes_versions else set())
        | ({409} if described.conflict is not None else set())
        | set(HEALTH_ERRORS if described.health else API_ERRORS)
    )
    if described.body is not None:
        errors |= set(BODY_ERRORS)
        found["requestBody"] = {
            "required": described.body_required,
            "content": _json({"$ref": REF + described.body.__name__}, EXAMPLES[described.body]),
        }
    responses = {described.status: _success(described)} | {status: _failure(status, described) for status in errors}
    if described.conditional:
        headers = _headers(described, ("ETag",))
        responses[304] = {"description": "If-None-Match has the current version", "headers": headers}
    found["responses"] = {str(status): responses[status] for status in sorted(responses)}
    return found


def _query_parameter(name: str, parameter: Parameter) -> Json:
    found: Json = {"name": name, "in": "query", "schema": parameter.schema.copy()}
    if parameter.schema["type"] == "array":
        found |= {"style": "form", "explode": True}
    if parameter.description:
        found["description"] = parameter.description
    if parameter.example is not None:
        # not the parameter's: Swagger UI fills that in, and no task passes all filters at once
        found["schema"]["examples"] = [parameter.example]
    return found


def _success(described: describe) -> Json:
    extra = (("ETag",) if described.conditional else ()) + described.headers
    if described.takes_key:
        extra += ("Idempotent-Replayed",)
    response: Json = {"description": described.result, "headers": _headers(described, extra)}
    if described.health:
        response["content"] = _json({"$ref": REF + "Health"}, {"status": "ok"})
    elif described.status != 204:
        schema: Json = {"$ref": REF + described.answer.__name__}
        example = ANSWERS[described.answer]
        if described.streams:  # the schema is of each event's data, as generators take it that know such streams
            response["content"] = {"text/event-stream": {"schema": schema}}
            response["headers"] |= {name: {"schema": {"const": value}} for name, value in STREAM_HEADERS.items()}
        elif described.many:
            response["content"] = _json({"type": "array", "items": schema}, [example])
        else:
            response["content"] = _json(schema, example)
    return response


def _failure(status: int, described: describe) -> Json:
    text, detail = ERRORS[status]
    schema, example = "ValidationProblem" if status == 422 else "Problem", {"detail": detail}
    if status in described.details:
        example = {"detail": described.details[status]}
    if status == 409 and described.conflict is not None:
        schema = described.conflict.__name__
        text, example = CONFLICTS[described.conflict]
    extra = {401: ("WWW-Authenticate",), 412: ("ETag",), 429: ("Retry-After",), 503: ("Retry-After",)}.get(status, ())
    return {
        "description": text,
        "headers": _headers(described, extra),
        "content": _json({"$ref": REF + schema}, example),
    }


def _headers(described: describe, extra: tuple[str, ...]) -> Json:
    names = ALWAYS + (() if described.health else API_HEADERS) + extra
    return {name: {"$ref": "#/components/headers/" + name} for name in names}


def _json(schema: Json, example: Any) -> Json:
    return {"application/json": {"schema": schema, "example": example}}


def _problem(detail: Json) -> Json:
    return {
        "type": "object",
        "properties": {"detail": detail},
        "required": ["detail"],
        "additionalProperties": False,
    }


_VALIDATION_PROBLEM = _problem({"type": "array", "minItems": 1, "items": {"$ref": REF + "InvalidField"}})
