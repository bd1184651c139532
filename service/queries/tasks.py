"""The tasks of a user."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple

import asyncpg

from service.db.coalescer import Coalescer, Transaction
from service.models import TaskCreate, TaskUpdate
from service.queries import read, text, write

PageKey = tuple[int, str, str]  # the rank, name and id by which a task has its place in a list
DEFAULT_SORT = "-created_at"


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a list with parameters is asked for; what is None is no condition."""

    status: list[str] | None = None
    priority: list[str] | None = None
    is_completed: bool | None = None
    q: list[str] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    updated_after: datetime | None = None
    updated_before: datetime | None = None
    completed_after: datetime | None = None
    completed_before: datetime | None = None
    trashed: bool = False
    sort: str = DEFAULT_SORT
    limit: int | None = None
    cursor: str | None = None
    fields: list[str] | None = None
    count: bool = False
    after: PageKey | None = None  # what the cursor says


class TaskExists(Exception):
    """The user already has a task with this id, live or in the trash."""


class KeyTaken(Exception):
    """The user has sent another request with this key before."""


ANSWER_FIND = read("tasks/answer_find")
TASK_DELETE = write("tasks/task_delete")
TASK_FIND = read("tasks/task_find")
TASK_INSERT = write("tasks/task_insert")
TASK_INSERT_ONCE = write("tasks/task_insert_once")
TASK_LIST = read("tasks/task_list")
TASK_OPERATE = Transaction("task_operate", text("tasks/task_operate"), writes=True, lock=text("tasks/account_lock"))
TASK_RESTORE = write("tasks/task_restore")
TASK_SEARCH = read("tasks/task_search")
TASK_TOGGLE = write("tasks/task_toggle")
TASK_UPDATE = write("tasks/task_update")


class Written(NamedTuple):
    """What has become of a task that was to be changed."""

    version: int | None  # as it is now; None when the user has no such task
    task: bytes | None  # None, too, when the version is not one that the caller named: nothing was written then


class Created(NamedTuple):
    """A new task, or the one that the first request with the same key has made."""

    id: str
    version: int
    task: bytes
    is_replayed: bool


class Page(NamedTuple):
    """A list, or a part of one."""

    version: int  # the user's counter
    tasks: bytes | None  # a JSON array; None when the caller knows this version
    last: PageKey | None = None  # the last task's place, when another page follows
    total: int | None = None  # of all pages, when it was asked for


async def list_tasks(db: Coalescer, user_id: str, if_none_match: list[str] | None = None) -> Page:
    """Returns the user's live tasks, newest first, unless their version is known."""
    row = await db.fetch(TASK_LIST, user_id, if_none_match)
    return Page(row["version"], row["tasks"])


async def search_tasks(db: Coalescer, user_id: str, search: Search, if_none_match: list[str] | None = None) -> Page:
    """Returns the tasks that the search asks for, unless the user's version is known."""
    row = await db.fetch(TASK_SEARCH, *search_arguments(user_id, search, if_none_match))
    last = (row["next_rank"], row["next_name"], str(row["next_id"])) if row["is_followed"] else None
    return Page(row["version"], row["tasks"], last, row["total"])


def search_arguments(user_id: str, search: Search, if_none_match: list[str] | None) -> tuple[Any, ...]:
    """Returns the arguments of task_search.sql."""
    return (
        user_id,
        if_none_match,
        search.status,
        search.priority,
        search.is_completed,
        search.q,
        search.created_after,
        search.created_before,
        search.updated_after,
        search.updated_before,
        search.completed_after,
        search.completed_before,
        search.trashed,
        search.sort.removeprefix("-"),
        search.sort.startswith("-"),
        *(search.after or (None, None, None)),
        search.limit,
        search.fields and ["id", *search.fields],
        search.count,
    )


async def find_task(
    db: Coalescer, user_id: str, task_id: str, if_none_match: list[str] | None
) -> tuple[int | None, bytes | None]:
    """Returns the live task's version, and the task unless that version is known; None and None when there is none."""
    row = await db.fetch(TASK_FIND, user_id, task_id, if_none_match)
    return row["version"], row["task"]


async def insert_task(db: Coalescer, user_id: str, task: TaskCreate) -> Created:
    """Returns the new task. Raises TaskExists."""
    try:
        row = await db.fetch(
            TASK_INSERT, user_id, task.id, task.title, task.description, task.initial_status, task.priority
        )
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "task_pkey":
            raise
        raise TaskExists from None
    return Created(task.id, row["version"], row["task"], is_replayed=False)


async def insert_task_once(db: Coalescer, user_id: str, task: TaskCreate, key: str) -> Created:
    """Returns the new task, or the answer that the same request got under this key before.

    Raises KeyTaken when it was another request, and TaskExists.
    """
    request_hash = _hash(task)
    fields = task.id, task.title, task.description, task.initial_status, task.priority
    while True:
        try:
            row = await db.fetch(TASK_INSERT_ONCE, user_id, *fields, key, request_hash)
            return Created(task.id, row["version"], row["task"], is_replayed=False)
        except asyncpg.UniqueViolationError as error:
            constraint = error.constraint_name
            if constraint not in ("task_pkey", "idempotency_pkey"):
                raise
        # A statement of its own sees what the one that was in the way has committed.
        found = await db.fetch(ANSWER_FIND, user_id, key)
        if found["request_hash"] == request_hash:
            return Created(found["id"], found["version"], found["task"], is_replayed=True)
        if found["request_hash"] is not None:
            raise KeyTaken
        if constraint == "task_pkey":
            raise TaskExists
        # the purge has erased the key between the two statements: it is free again


def _hash(task: TaskCreate) -> bytes:
    """Returns what two requests have in common when they say the same, in whatever order and spelling."""
    sent = task.model_dump(mode="json", exclude_unset=True)
    return sha256(json.dumps(sent, sort_keys=True).encode()).digest()


async def update_task(
    db: Coalescer, user_id: str, task_id: str, change: TaskUpdate, if_match: list[str] | None = None
) -> Written:
    """Changes the fields of the live task that were sent, if it has one of these versions."""
    row = await db.fetch(
        TASK_UPDATE,
        user_id,
        task_id,
        change.title,
        "description" in change.model_fields_set,
        change.description,
        change.status,
        change.priority,
        change.is_completed,
        if_match,
    )
    return Written(row["version"], row["task"])


async def toggle_task(db: Coalescer, user_id: str, task_id: str, if_match: list[str] | None = None) -> Written:
    """Completes the live task if it was not, else makes it pending, if it has one of these versions."""
    row = await db.fetch(TASK_TOGGLE, user_id, task_id, if_match)
    return Written(row["version"], row["task"])


async def delete_task(
    db: Coalescer, user_id: str, task_id: str, if_match: list[str] | None = None
) -> tuple[int | None, bool]:
    """Moves the live task to the trash, if it has one of these versions.

    Returns its version, None when the user has no such task; and whether it went.
    """
    row = await db.fetch(TASK_DELETE, user_id, task_id, if_match)
    return row["version"], row["deleted"]


async def restore_task(db: Coalescer, user_id: str, task_id: str, if_match: list[str] | None = None) -> Written:
    """Takes the task out of the trash, if it has one of these versions; its version is None when it is not there."""
    row = await db.fetch(TASK_RESTORE, user_id, task_id, if_match)
    return Written(row["version"], row["task"])


class Change(NamedTuple):
    """One operation of a batch: create, update, complete, delete or restore."""

    op: str
    id: str
    if_version: int | None = None
    task: TaskCreate | TaskUpdate | None = None


class Outcome(NamedTuple):
    """What became of an operation of a batch."""

    status: int
    task: bytes | None = None
    detail: Any = None


async def operate(
    db: Coalescer, user_id: str, changes: Sequence[Change | Outcome], *, atomic: bool, dry_run: bool
) -> list[Outcome]:
    """Makes the changes, in their order and in one transaction, each of which sees the earlier ones.

    What has failed already is passed on. Nothing is kept of a dry run, nor when it is atomic and one of them fails.
    """
    failed = [change for change in changes if isinstance(change, Outcome)]
    executions = [_execution(user_id, change) for change in changes if isinstance(change, Change)]

    def is_kept(rows: Sequence[asyncpg.Record]) -> bool:
        statuses: list[int] = [row["status"] for row in rows]
        if dry_run or (atomic and (failed or max(statuses) >= 400)):
            return False
        return min(statuses) < 400  # else a new user's account would stay behind

    rows = iter(await db.fetch(TASK_OPERATE, user_id, executions, is_kept) if executions else ())
    return [change if isinstance(change, Outcome) else Outcome(*next(rows)) for change in changes]


def _execution(user_id: str, change: Change) -> tuple[Any, ...]:
    task = change.task
    if task is None:
        fields: tuple[Any, ...] = (None, False, None, None, None, None)
    elif isinstance(task, TaskCreate):
        fields = (task.title, True, task.description, task.initial_status, task.priority, None)
    else:
        is_described = "description" in task.model_fields_set
        fields = (task.title, is_described, task.description, task.status, task.priority, task.is_completed)
    return (user_id, change.op, change.id, change.if_version, *fields)
