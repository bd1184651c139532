"""The models of request and response bodies."""

import re
from datetime import date
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
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from service import tags
from service.recurrence import RULE_LENGTH, UNDERSTOOD, canonical_rule
from service.zones import is_zone

# The only form in the API; Python's parser also accepts braces, underscores and the like.
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
# Unicode's White_Space, which pydantic trims; \s differs between dialects of regular expressions
WHITE_SPACE = r"\u0009-\u000d\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
USER_ID_LENGTH = 255
BIGGEST_VERSION = 2**53 - 1  # the largest exact integer in JavaScript
BIGGEST_OCCURRENCE = 2**31 - 1  # PostgreSQL's integer
DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
TIME = re.compile(r"([01]\d|2[0-3]):[0-5]\d(:[0-5]\d)?", re.ASCII)
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


def calendar_date(value: str) -> str:
    """Returns the day as it was sent, YYYY-MM-DD; raises PydanticCustomError, type `date`, when there is none."""
    try:
        if DATE.fullmatch(value):
            date.fromisoformat(value)
            return value
    except ValueError:
        pass
    raise PydanticCustomError("date", "Input should be a day of the calendar, YYYY-MM-DD, like 2026-11-27")


def clock_time(value: str) -> str:
    """Returns the time with its seconds; raises PydanticCustomError, type `time`."""
    if not TIME.fullmatch(value):
        raise PydanticCustomError("time", "Input should be a time of the day, HH:MM or HH:MM:SS, 00:00 to 23:59:59")
    return value if len(value) == 8 else f"{value}:00"


def known_zone(value: str) -> str:
    """Returns the name if the tz database has it; raises PydanticCustomError, type `time_zone`."""
    if not is_zone(value):
        raise PydanticCustomError("time_zone", "Input should be a time zone of the tz database, like Europe/Berlin")
    return value


def plain_tag(value: str) -> str:
    """Returns the tag as it is stored; raises PydanticCustomError, type `tag`."""
    try:
        return tags.written(value)
    except ValueError as error:
        raise PydanticCustomError("tag", "A tag should have {accepted}", {"accepted": str(error)}) from None


def not_too_many(value: Any) -> Any:
    """Returns the value, unless it is a list of too many tags; raises PydanticCustomError, type `too_long`."""
    if isinstance(value, list) and len(value) > tags.MOST:
        message = "A task should have at most {most} tags, not {number}"
        raise PydanticCustomError("too_long", message, {"most": tags.MOST, "number": len(value)})
    return value


def no_two_alike(found: list[str]) -> list[str]:
    """Returns the tags; raises PydanticCustomError, type `tags_alike`, when two are the same but for case."""
    known: dict[str, str] = {}
    for tag in found:
        key = tags.key(tag)
        if key in known:
            message = "No two tags should be alike, whatever their case, but {first} and {second} are"
            raise PydanticCustomError("tags_alike", message, {"first": repr(known[key]), "second": repr(tag)})
        known[key] = tag
    return found


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
DueDate = Annotated[
    str,
    AfterValidator(calendar_date),
    Field(
        description="a day of the calendar, wherever the user is",
        json_schema_extra={"format": "date"},
        examples=["2026-11-27"],
    ),
]
DueTime = Annotated[
    str,
    AfterValidator(clock_time),
    Field(
        description="a clock time, wherever the user is; needs `due_date`; answered with seconds",
        json_schema_extra={"pattern": "^([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?$"},
        examples=["09:00"],
    ),
]
TimeZone = Annotated[
    str,
    AfterValidator(known_zone),
    Field(
        description="a name of the tz database, in its spelling; needs `due_time`, which it pins to a place",
        examples=["Europe/Berlin"],
    ),
]
Recurrence = Annotated[
    str,
    Field(
        description=f"a rule of RFC 5545; needs `due_date`; answered in canonical form. {UNDERSTOOD}",
        json_schema_extra={"maxLength": RULE_LENGTH},
        examples=["FREQ=WEEKLY;BYDAY=MO"],
    ),
]
RecurrenceAnchor = Literal["due", "completion"]
ANCHOR_TEXT = (
    "whether the next one is due on the rule's next date, or so long after the day of completion: then the rule has "
    "`FREQ` and `INTERVAL` alone"
)
TAG_PATTERN = rf"^[^,\u0000]*[^,\u0000{WHITE_SPACE}][^,\u0000]*$"
Tag = Annotated[str, AfterValidator(plain_tag), Field(json_schema_extra={"pattern": TAG_PATTERN})]
Tags = Annotated[
    list[Tag],
    BeforeValidator(not_too_many),
    AfterValidator(no_two_alike),
    Field(
        max_length=tags.MOST,
        description=(
            f"at most {tags.MOST}, in their order, no two alike but for case; each of {tags.ACCEPTED}, "
            "and it is put into Unicode's form NFC"
        ),
        json_schema_extra={"uniqueItems": True},
        examples=[["shopping"]],
    ),
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
    recurrence_start: Ignored = None
    series_id: Ignored = None
    occurrence: Ignored = None


def _with_agreement(schema: dict[str, Any]) -> None:
    _without_ignored(schema)
    schema["dependentSchemas"] = {  # instead of `not` or `anyOf`, which some generators turn into types
        "status": {
            "if": {"properties": {"status": {"const": "completed"}}},
            "then": {"properties": {"is_completed": {"const": True}}},
            "else": {"properties": {"is_completed": {"const": False}}},
        }
    }


# Which other field a field needs
NEEDS = {
    "due_time": "due_date",
    "due_time_zone": "due_time",
    "recurrence": "due_date",
    "recurrence_anchor": "recurrence",
}


def _with_needs(schema: dict[str, Any]) -> None:
    _with_agreement(schema)
    for name, needed in NEEDS.items():
        is_set = {"const": "completion"} if name == "recurrence_anchor" else {"type": "string"}
        then = {"properties": {needed: {"type": "string"}}}
        schema["dependentSchemas"][name] = {"if": {"properties": {name: is_set}}, "then": then}


def _with_all_needs(schema: dict[str, Any]) -> None:
    _with_needs(schema)
    for name, needed in NEEDS.items():
        schema["dependentSchemas"][name]["then"]["required"] = [needed]


def _canonical(rule: str, due: date, anchor: str) -> str:
    try:
        return canonical_rule(rule, due, anchor)
    except ValueError as error:
        raise PydanticCustomError("recurrence", "{problem}", {"problem": str(error), "field": "recurrence"}) from None


class TaskBody(Body):
    """The base of bodies with `status` and `is_completed`."""

    model_config = ConfigDict(json_schema_extra=_with_agreement)

    status: Status = NOT_SENT
    is_completed: IsCompleted = NOT_SENT
    due_date: DueDate | None = None
    due_time: DueTime | None = None
    due_time_zone: TimeZone | None = None
    recurrence: Recurrence | None = None
    recurrence_anchor: RecurrenceAnchor = Field(default=NOT_SENT, description=ANCHOR_TEXT)
    tags: Tags = NOT_SENT

    @field_validator("recurrence")
    @classmethod
    def recurrence_is_understood(cls, value: str | None) -> str | None:
        """Rejects what is no rule, whatever the due date; what the due date implies is added when that is known."""
        if value is not None:
            _canonical(value, date.min, "due")
        return value

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

    @model_validator(mode="after")
    def nothing_lacks_what_it_needs(self) -> Self:
        """Rejects a body that sets a field and clears the one that it needs."""
        for name, needed in NEEDS.items():
            value = getattr(self, name)
            if value not in (None, "due") and self.clears(needed):
                told = {"value": repr(value), "needed": needed, "field": name}
                told["missing"] = "null" if needed in self.model_fields_set else "not sent"
                raise PydanticCustomError("contradiction", "{field} {value} needs {needed}, which is {missing}", told)
        return self

    def clears(self, name: str) -> bool:
        """Returns whether the task has no such field after this."""
        return name in self.model_fields_set and getattr(self, name) is None


class TaskCreate(TaskBody):
    """A new task. The client may choose its `id`, which makes retries safe."""

    model_config = ConfigDict(json_schema_extra=_with_all_needs)

    id: TaskId = Field(default_factory=lambda: str(uuid4()), description="made by the server when it is not sent")
    title: Title
    description: Description | None = None
    priority: Priority = Field(default="medium", description="`medium` when it is not sent")

    def clears(self, name: str) -> bool:
        """Returns whether the task has no such field: what is not sent is null."""
        return getattr(self, name) is None

    @model_validator(mode="after")
    def recurrence_suits_the_due_date(self) -> Self:
        """Puts the rule into canonical form, with the day that the due date implies."""
        if self.recurrence is not None and self.due_date is not None:
            due, anchor = date.fromisoformat(self.due_date), self.recurrence_anchor or "due"
            self.recurrence = _canonical(self.recurrence, due, anchor)
        return self


class TaskUpdate(TaskBody):
    """The fields to change; others stay. Those that can be null are cleared by it, and with them what needs them."""

    model_config = ConfigDict(json_schema_extra=_with_needs)

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
    due_date: DueDate | None
    due_time: DueTime | None
    due_time_zone: TimeZone | None
    recurrence: Recurrence | None
    recurrence_anchor: RecurrenceAnchor = Field(description=ANCHOR_TEXT)
    recurrence_start: DueDate | None = Field(description="the due date when the rule was set, from which it counts")
    series_id: TaskId | None = Field(description="the first task of the series")
    occurrence: int | None = Field(ge=1, le=BIGGEST_OCCURRENCE, description="1, 2, 3, … in the series")
    tags: Tags


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
    successor: Task = Field(
        default=NOT_SENT, description="the next task of the series, when the operation has completed a recurring one"
    )
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
    due_date: DueDate | None = None
    due_time: DueTime | None = None
    due_time_zone: TimeZone | None = None
    recurrence: Recurrence | None = None
    recurrence_anchor: RecurrenceAnchor = NOT_SENT
    recurrence_start: DueDate | None = None
    series_id: TaskId | None = None
    occurrence: int | None = None
    tags: Tags = NOT_SENT


class HistoryEntry(BaseModel):
    """What one change did to one task."""

    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1, le=BIGGEST_VERSION, description="the number of the change")
    at: AwareDatetime
    operation: str = Field(
        description="the request's: create, update, complete, delete, restore, batch, undo, rename_tag"
    )
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


# Tags -----------------------------------------------------------------------------------------------------------------


class TagCount(BaseModel):
    """A tag of the live tasks."""

    model_config = ConfigDict(extra="forbid")

    tag: Tag = Field(description="in the spelling that most tasks have")
    tasks: int = Field(ge=1, description="how many tasks have it")
    open: int = Field(ge=0, description="how many of these are not completed")


# `from` is a word of Python's, so no class can have it; mypy takes what is unpacked for the named arguments
TagRename: type[_Part] = create_model(  # type: ignore[call-overload]
    "TagRename",
    __base__=_Part,
    __doc__="A new name for a tag.",
    **{
        "from": Annotated[Tag, Field(description="the tag, in whatever case")],
        "to": Annotated[Tag | None, Field(description="the new one, which may be there already; null removes the tag")],
    },
)


class TagRenamed(BaseModel):
    """What a renaming has changed."""

    model_config = ConfigDict(extra="forbid")

    version: int | None = Field(
        ge=1, le=BIGGEST_VERSION, description="the number of the change, to undo it; null when nothing has changed"
    )
    tasks: int = Field(ge=0, description="how many tasks have changed, those in the trash too")
