"""The operations of a batch: what comes in, and what each of them answers."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SkipValidation

from service.models import NOT_SENT, Task, TaskComplete, TaskCreate, TaskId, TaskUpdate, without_null_defaults

OPERATIONS = 100  # at most in one batch


def whole_number(value: Any) -> Any:
    """Returns 7 for 7.0: to JSON, and in every browser, they are the same number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


IfVersion = Annotated[
    int,
    Field(ge=1, le=2**53 - 1, description="a 412 when the task has another version"),
    BeforeValidator(whole_number),
]


class _Part(BaseModel):
    """Nothing is coerced, and nothing that is unknown is accepted."""

    model_config = ConfigDict(strict=True, extra="forbid", json_schema_extra=without_null_defaults)


class _Existing(_Part):
    id: TaskId
    if_version: IfVersion = NOT_SENT


# A `task` that is wrong fails its operation and not the whole request, so it is not yet validated with the rest.


class Create(_Part):
    """Creates a task, whose `id` may stand here or in the task."""

    op: Literal["create"]
    id: TaskId = NOT_SENT
    task: SkipValidation[TaskCreate]


class Update(_Existing):
    """Changes exactly the fields that are sent."""

    op: Literal["update"]
    task: SkipValidation[TaskUpdate]


class Complete(_Existing):
    """Completes or reopens a task: without `task` it toggles."""

    op: Literal["complete"]
    task: SkipValidation[TaskComplete] = NOT_SENT


class Delete(_Existing):
    """Moves a task to the trash."""

    op: Literal["delete"]


class Restore(_Existing):
    """Takes a task out of the trash."""

    op: Literal["restore"]


Operation = Annotated[Create | Update | Complete | Delete | Restore, Field(discriminator="op")]


class Batch(_Part):
    """Operations, to be done in their order."""

    operations: Annotated[list[Operation], Field(min_length=1, max_length=OPERATIONS)]
    atomic: bool = Field(default=True, description="whether one failure takes everything back")
    dry_run: bool = Field(default=False, description="whether everything is taken back, and only the answer kept")


class Entry(BaseModel):
    """One thing that is wrong in an operation's `task`, as the single request would have been told."""

    model_config = ConfigDict(extra="forbid")

    loc: list[str | int]
    msg: str
    type: str


class Result(BaseModel):
    """What the single request would have been answered; 424 when it was taken back because of another one."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=without_null_defaults)

    status: Literal[200, 201, 204, 404, 409, 412, 422, 424]
    task: Task = NOT_SENT
    detail: str | list[Entry] = NOT_SENT


class BatchResult(BaseModel):
    """The results, in the order of the operations."""

    model_config = ConfigDict(extra="forbid")

    committed: bool = Field(description="whether what succeeded is kept")
    results: list[Result]
