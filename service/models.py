"""What comes in, and what goes out: a task, and a batch of changes to tasks."""

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

# The one form that the API accepts and gives; Python's own parser also takes braces, underscores and the like.
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
# Unicode's White_Space, which is what pydantic trims; regular expressions' \s differs from dialect to dialect
WHITE_SPACE = r"\u0009-\u000d\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
USER_ID_LENGTH = 255
BIGGEST_VERSION = 2**53 - 1  # JavaScript's numbers are exact up to there
NO_NUL = {"pattern": r"^[^\u0000]*$"}  # PostgreSQL's text has no NUL


def canonical_uuid(value: str) -> str:
    """Returns the UUID in lower case; raises PydanticCustomError, type `uuid`."""
    if not UUID.fullmatch(value):
        raise PydanticCustomError("uuid", "Input should be a UUID like 0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e11")
    return value.lower()


def without_nul(value: str) -> str:
    """Returns the text; raises PydanticCustomError, type `nul`."""
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
        # one character at least that is not white space, and no NUL
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


NOT_SENT: Any = None  # the default of a field that may be absent and is never null


# A field that only the server writes: a client may send a whole task back, and it is ignored.
READ_ONLY = {"readOnly": True}
Ignored = Annotated[Any, Field(json_schema_extra=READ_ONLY, exclude=True)]


def _without_ignored(schema: dict[str, Any]) -> None:
    """Leaves a body's ignored fields out of its JSON schema, but says that they may be sent.

    As properties, read-only or not, they would be in every type that a generator makes for a client to send.
    """
    fields = schema["properties"]
    schema["properties"] = {name: field for name, field in fields.items() if not field.get("readOnly")}
    schema["propertyNames"] = {"enum": [*fields]}
    del schema["additionalProperties"]
    schema["description"] += " Fields of a task that only the server writes may be sent as well, and are ignored."


def writable(model: type[BaseModel]) -> list[str]:
    """Returns the names of the model's fields that are not ignored."""
    return [name for name, field in model.model_fields.items() if field.json_schema_extra != READ_ONLY]


class Body(BaseModel):
    """A request body: nothing is coerced, and a field that no task has is an error."""

    model_config = ConfigDict(strict=True, extra="forbid", json_schema_extra=_without_ignored)

    user_id: Ignored = None
    completed_at: Ignored = None
    created_at: Ignored = None
    updated_at: Ignored = None
    deleted_at: Ignored = None
    version: Ignored = None


def _with_agreement(schema: dict[str, Any]) -> None:
    _without_ignored(schema)
    schema["dependentSchemas"] = {  # some generators make types of what stands in a `not` or `anyOf`
        "status": {
            "if": {"properties": {"status": {"const": "completed"}}},
            "then": {"properties": {"is_completed": {"const": True}}},
            "else": {"properties": {"is_completed": {"const": False}}},
        }
    }


class TaskBody(Body):
    """What the bodies that write a whole task share."""

    model_config = ConfigDict(json_schema_extra=_with_agreement)

    status: Status = NOT_SENT
    is_completed: IsCompleted = NOT_SENT

    @model_validator(mode="after")
    def status_and_is_completed_agree(self) -> Self:
        """Refuses a body whose two words for the same thing contradict each other."""
        if {"status", "is_completed"} <= self.model_fields_set and self.is_completed != (self.status == "completed"):
            raise PydanticCustomError(
                "contradiction",
                "status '{status}' and is_completed {is_completed} contradict each other",
                {"status": self.status, "is_completed": str(self.is_completed).lower()},
            )
        return self


class TaskCreate(TaskBody):
    """A new task. Its `id` may be chosen by the client, so that a create can be repeated safely."""

    id: TaskId = Field(default_factory=lambda: str(uuid4()), description="made by the server when it is not sent")
    title: Title
    description: Description | None = None
    priority: Priority = Field(default="medium", description="`medium` when it is not sent")


class TaskUpdate(TaskBody):
    """The fields to change; what is not sent stays. Only `description` can be null, which clears it."""

    id: Ignored = None
    title: Title = NOT_SENT
    description: Description | None = None
    priority: Priority = NOT_SENT


class TaskComplete(Body):
    """Whether the task is completed."""

    is_completed: IsCompleted


class Task(BaseModel):
    """A task, as every answer gives it."""

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
    """Returns 7 for 7.0: to JSON, and in every browser, they are the same number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


IfVersion = Annotated[
    int,
    Field(ge=1, le=BIGGEST_VERSION, description="a 412 when the task has another version"),
    BeforeValidator(whole_number),
]


class _Part(BaseModel):
    """Nothing is coerced, and nothing that is unknown is accepted."""

    model_config = ConfigDict(strict=True, extra="forbid")


class _Existing(_Part):
    id: TaskId
    if_version: IfVersion = NOT_SENT


# A `task` that is wrong fails its operation and not the whole request, so it is not yet validated with the rest.
# Neither is an operation, whose kind says what it has to be: `read_operations` in routes/batch.py does it.


class BatchCreate(_Part):
    """Creates a task, whose `id` may stand here or in the task."""

    op: Literal["create"]
    id: TaskId = NOT_SENT
    task: SkipValidation[TaskCreate]


class BatchUpdate(_Existing):
    """Changes exactly the fields that are sent."""

    op: Literal["update"]
    task: SkipValidation[TaskUpdate]


class BatchComplete(_Existing):
    """Completes or reopens a task: without `task` it toggles."""

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
    """Operations, to be done in their order."""

    operations: Annotated[
        list[Annotated[SkipValidation[BatchOperation], Field(title="BatchOperation")]],
        Field(min_length=1, max_length=OPERATIONS),
    ]
    atomic: bool = Field(
        default=True, description="whether one failure takes everything back; true when it is not sent"
    )
    dry_run: bool = Field(
        default=False,
        description="whether everything is taken back, and only the answer kept; false when it is not sent",
    )


class InvalidField(BaseModel):
    """One thing that is wrong: where, what, and a name for it."""

    model_config = ConfigDict(extra="forbid")

    loc: list[str | int] = Field(min_length=1, description="`body`, `query`, `path` or `header`, then the field's name")
    msg: str
    type: str


class BatchResultItem(BaseModel):
    """What the single request would have been answered; 424 when it was taken back because of another one."""

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
        description="the number of all that it has changed; null when it has changed nothing",
    )
    results: list[BatchResultItem]


# Changes --------------------------------------------------------------------------------------------------------------


class ChangesPage(BaseModel):
    """What has changed since a number."""

    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=0, le=BIGGEST_VERSION, description="up to which number this tells all: the next `since`")
    has_more: bool = Field(description="whether another page follows")
    tasks: list[Task] = Field(description="as they are now, in the order of their versions, those in the trash too")
    erased: list[TaskId] = Field(description="the tasks that were erased for good")


class HistoryEntry(BaseModel):
    """What one change did to one task."""

    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1, le=BIGGEST_VERSION, description="the number of the change")
    at: AwareDatetime
    operation: str = Field(description="the request's: create, update, complete, delete, restore, batch, undo")
    task_id: TaskId
    before: dict[str, Any] | None = Field(description="the fields that were changed, before; null for a new task")
    after: dict[str, Any] = Field(description="the same fields, after")


class Undo(_Part):
    """Which change is taken back."""

    version: Annotated[
        int, Field(ge=1, le=BIGGEST_VERSION, description="the number of the change"), BeforeValidator(whole_number)
    ]


class Conflict(BaseModel):
    """Fields of a task that have been changed since."""

    model_config = ConfigDict(extra="forbid")

    task_id: TaskId
    fields: list[str]


class UndoConflict(BaseModel):
    """Why nothing was undone."""

    model_config = ConfigDict(extra="forbid")

    detail: str
    conflicts: list[Conflict]


class UndoResult(BaseModel):
    """What the undo has changed."""

    model_config = ConfigDict(extra="forbid")

    version: int | None = Field(
        ge=1, le=BIGGEST_VERSION, description="its number, to undo it in turn; null when all was as before already"
    )
    tasks: list[Task] = Field(description="those that it has changed, as they are now")
