"""The operations of a batch: what comes in, and what each of them answers."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SkipValidation

from service.models import NOT_SENT, Task, TaskComplete, TaskCreate, TaskId, TaskUpdate

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

    committed: bool = Field(description="whether what succeeded is kept")
    results: list[BatchResultItem]
