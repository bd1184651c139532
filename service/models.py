"""The models of request and response bodies."""

import re
from typing import Annotated, Any, Literal, Self
from uuid import uuid4

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SkipValidation,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

# The only form in the API; Python's parser also accepts braces, underscores and the like.
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
# Unicode's White_Space, which pydantic trims; \s differs between dialects of regular expressions
WHITE_SPACE = r"\u0009-\u000d\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
USER_ID_LENGTH = 255
BIGGEST_VERSION = 2**53 - 1  # the largest exact integer in JavaScript
NO_NUL = {"pattern": r"^[^\u0000]*$"}  # PostgreSQL's text has no NUL


def canonical_uuid(value: str) -> str:
    """Returns the UUID in lower case; raises PydanticCustomError, type `uuid`."""
    if not UUID.fullmatch(value):
        raise PydanticCustomError("uuid", "Input should be a UUID like 0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e11")
    return value.lower()


def without_nul(value: str) -> str:
    """Returns the text if it has no NUL; raises PydanticCustomError, type `nul`."""
    if "\0" in value:
        raise PydanticCustomError("nul", "String should not contain the character NUL")
    return value


TaskId = Annotated[str, AfterValidator(canonical_uuid), WithJsonSchema({"type": "string", "format": "uuid"})]
Title = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=100),
    AfterValidator(without_nul),
    Field(
        description="1–100 characters; surrounding white space is trimmed before they are counted",
        # at least one character that is not white space, and no NUL
        json_schema_extra={"pattern": rf"^[^\u0000]*[^\u0000{WHITE_SPACE}][^\u0000]*$"},
        examples=["Buy milk"],
    ),
]
Description = Annotated[
    str,
    StringConstraints(max_length=500),
    AfterValidator(without_nul),
    Field(json_schema_extra=NO_NUL, examples=["Two litres"]),
]
Status = Literal["pending", "in_progress", "completed"]
Priority = Literal["low", "medium", "high"]
IsCompleted = Annotated[
    bool, Field(description="true sets `status` to completed; false sets a completed task to pending")
]


NOT_SENT: Any = None  # default of a field that may be absent, but never null

# A field that only the server writes is ignored in requests, so that clients can send a whole task back.
READ_ONLY = {"readOnly": True}
Ignored = Annotated[Any, Field(json_schema_extra=READ_ONLY, exclude=True)]


def _without_ignored(schema: dict[str, Any]) -> None:
    """Removes a body's ignored fields from its JSON schema, and says that they may be sent.

    As properties, even read-only ones, they would be in the types that generators make for requests.
    """
    fields = schema["properties"]
    schema["properties"] = {name: field for name, field in fields.items() if not field.get("readOnly")}
    schema["propertyNames"] = {"enum": [*fields]}
    del schema["additionalProperties"]
    schema["description"] += " Fields of a task that only the server writes may be sent, and are ignored."


def writable(model: type[BaseModel]) -> list[str]:
    """Returns the names of the model's fields that are not ignored."""
    return [name for name, field in model.model_fields.items() if field.json_schema_extra != READ_ONLY]


class Body(BaseModel):
    """A request body: no coercion, and unknown fields are errors."""

    model_config = ConfigDict(strict=True, extra="forbid", json_schema_extra=_without_ignored)

    user_id: Ignored = None
    completed_at: Ignored = None
    created_at: Ignored = None
    updated_at: Ignored = None
    deleted_at: Ignored = None
    version: Ignored = None


def _with_agreement(schema: dict[str, Any]) -> None:
    _without_ignored(schema)
    schema["dependentSchemas"] = {  # instead of `not` or `anyOf`, which some generators turn into types
        "status": {
            "if": {"properties": {"status": {"const": "completed"}}},
            "then": {"properties": {"is_completed": {"const": True}}},
            "else": {"properties": {"is_completed": {"const": False}}},
        }
    }


class TaskBody(Body):
    """The base of bodies with `status` and `is_completed`."""

    model_config = ConfigDict(json_schema_extra=_with_agreement)

    status: Status = NOT_SENT
    is_completed: IsCompleted = NOT_SENT

    @model_validator(mode="after")
    def status_and_is_completed_agree(self) -> Self:
        """Rejects a body in which the two contradict each other."""
        if {"status", "is_completed"} <= self.model_fields_set and self.is_completed != (self.status == "completed"):
            raise PydanticCustomError(
                "contradiction",
                "status '{status}' and is_completed {is_completed} contradict each other",
                {"status": self.status, "is_completed": str(self.is_completed).lower()},
            )
        return self


class TaskCreate(TaskBody):
    """A new task. The client may choose its `id`, which makes retries safe."""

    id: TaskId = Field(default_factory=lambda: str(uuid4()), description="made by the server when it is not sent")
    title: Title
    description: Description | None = None
    priority: Priority = Field(default="medium", description="`medium` when it is not sent")


class TaskUpdate(TaskBody):
    """The fields to change; others stay. Only `description` can be null, which clears it."""

    id: Ignored = None
    title: Title = NOT_SENT
    description: Description | None = None
    priority: Priority = NOT_SENT


class TaskComplete(Body):
    """Whether the task is completed."""

    is_completed: IsCompleted


class Task(BaseModel):
    """A task in a response."""

    model_config = ConfigDict(extra="forbid")

    id: TaskId = Field(description="unique within its user")
    user_id: str = Field(min_length=1, max_length=USER_ID_LENGTH, description="the token's `sub`")
    title: Title
    description: Description | None
    status: Status
    priority: Priority
    is_completed: bool = Field(description='always equal to `status == "completed"`')
    completed_at: AwareDatetime | None = Field(description="when it became completed; null while it is not")
    created_at: AwareDatetime
    updated_at: AwareDatetime = Field(description="moves on every change")
    deleted_at: AwareDatetime | None = Field(description="null for every live task")
    version: int = Field(ge=1, le=BIGGEST_VERSION, description="the number of the change that last touched this task")


# Batches --------------------------------------------------------------------------------------------------------------

OPERATIONS = 100  # at most in one batch


def whole_number(value: Any) -> Any:
    """Returns 7 for 7.0, which are the same number in JSON and JavaScript."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


IfVersion = Annotated[
    int,
    Field(ge=1, le=BIGGEST_VERSION, description="a 412 when the task has another version"),
    BeforeValidator(whole_number),
]


class _Part(BaseModel):
    """No coercion, and unknown fields are errors."""

    model_config = ConfigDict(strict=True, extra="forbid")


class _Existing(_Part):
    id: TaskId
    if_version: IfVersion = NOT_SENT


# An invalid `task` fails its operation, not the whole request, so it is validated later; so is each operation, by its
# kind: see `read_operations` in routes/batch.py.


class BatchCreate(_Part):
    """Creates a task; its `id` may be here or in the task."""

    op: Literal["create"]
    id: TaskId = NOT_SENT
    task: SkipValidation[TaskCreate]


class BatchUpdate(_Existing):
    """Changes exactly the fields that are sent."""

    op: Literal["update"]
    task: SkipValidation[TaskUpdate]


class BatchComplete(_Existing):
    """Completes or reopens a task; toggles without `task`."""

    op: Literal["complete"]
    task: SkipValidation[TaskComplete] = NOT_SENT


class BatchDelete(_Existing):
    """Moves a task to the trash."""

    op: Literal["delete"]


class BatchRestore(_Existing):
    """Takes a task out of the trash."""

    op: Literal["restore"]


BatchOperation = Annotated[
    BatchCreate | BatchUpdate | BatchComplete | BatchDelete | BatchRestore, Field(discriminator="op")
]
KINDS: dict[str, type[BatchCreate | BatchUpdate | BatchComplete | BatchDelete | BatchRestore]] = {
    "create": BatchCreate,
    "update": BatchUpdate,
    "complete": BatchComplete,
    "delete": BatchDelete,
    "restore": BatchRestore,
}


class Batch(_Part):
    """Operations, performed in order."""

    operations: Annotated[
        list[Annotated[SkipValidation[BatchOperation], Field(title="BatchOperation")]],
        Field(min_length=1, max_length=OPERATIONS),
    ]
    atomic: bool = Field(
        default=True, description="whether one failure rolls everything back; true when it is not sent"
    )
    dry_run: bool = Field(
        default=False,
        description="whether everything is rolled back after the results are known; false when it is not sent",
    )


class InvalidField(BaseModel):
    """One error: the place, a message and a type."""

    model_config = ConfigDict(extra="forbid")

    loc: list[str | int] = Field(min_length=1, description="`body`, `query`, `path` or `header`, then the field's name")
    msg: str
    type: str


class BatchResultItem(BaseModel):
    """The response that the single request would have had; 424 when another failure rolled it back."""

    model_config = ConfigDict(extra="forbid")

    status: Literal[200, 201, 204, 404, 409, 412, 422, 424]
    task: Task = NOT_SENT
    detail: str | list[InvalidField] = NOT_SENT


class BatchResult(BaseModel):
    """The results, in the order of the operations."""

    model_config = ConfigDict(extra="forbid")

    committed: bool = Field(description="whether anything is kept")
    version: int | None = Field(
        ge=1,
        le=BIGGEST_VERSION,
        description="the version of everything it has changed; null when it has changed nothing",
    )
    results: list[BatchResultItem]


# The account ----------------------------------------------------------------------------------------------------------


class UserErase(_Part):
    """Says that the user is to be erased."""

    model_config = ConfigDict(json_schema_extra={"required": ["confirm"]})  # missing or wrong, the handler says it

    confirm: SkipValidation[str] = Field(default=NOT_SENT, description="the user's id, as the token has it")


# Changes --------------------------------------------------------------------------------------------------------------


class ChangesPage(BaseModel):
    """What has changed since a version."""

    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=0, le=BIGGEST_VERSION, description="up to which version this is complete: the next `since`")
    has_more: bool = Field(description="whether another page follows")
    tasks: list[Task] = Field(description="as they are now, by version, including those in the trash")
    erased: list[TaskId] = Field(description="the ids of tasks that were erased for good")


class ChangedFields(BaseModel):
    """Fields of a task that a change has written; those that it left alone are not there."""

    model_config = ConfigDict(extra="forbid")

    title: Title = NOT_SENT
    description: Description | None = None
    status: Status = NOT_SENT
    priority: Priority = NOT_SENT
    completed_at: AwareDatetime | None = None
    deleted_at: AwareDatetime | None = None


class HistoryEntry(BaseModel):
    """What one change did to one task."""

    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1, le=BIGGEST_VERSION, description="the number of the change")
    at: AwareDatetime
    operation: str = Field(description="the request's: create, update, complete, delete, restore, batch, undo")
    task_id: TaskId
    before: ChangedFields | None = Field(description="the changed fields, before; null for a new task")
    after: ChangedFields = Field(description="the same fields, after")


class ChangeUndo(_Part):
    """Which change to undo."""

    version: Annotated[
        int, Field(ge=1, le=BIGGEST_VERSION, description="the number of the change"), BeforeValidator(whole_number)
    ]


class TaskConflict(BaseModel):
    """Fields of a task that have changed since."""

    model_config = ConfigDict(extra="forbid")

    task_id: TaskId
    fields: list[str]


class UndoConflict(BaseModel):
    """Why nothing was undone."""

    model_config = ConfigDict(extra="forbid")

    detail: str
    conflicts: list[TaskConflict]


class UndoResult(BaseModel):
    """What an undo has changed."""

    model_config = ConfigDict(extra="forbid")

    version: int | None = Field(
        ge=1, le=BIGGEST_VERSION, description="its version, to undo it in turn; null when there was nothing to change"
    )
    tasks: list[Task] = Field(description="the tasks it has changed, as they are now")
