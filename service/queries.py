"""The query module: every statement of `sql/` has one function here, and no other code runs SQL.

JSON comes back as the bytes that PostgreSQL made. Every function raises database.Unavailable when the database does
not answer in time; a write that raises it may or may not have happened.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from service.batches import Batches, Statement
from service.errors import Invalid
from service.lists import Key, Search
from service.models import TaskCreate, TaskUpdate

FOLDER = Path(__file__).parent.parent / "sql"


class TaskExists(Exception):
    """The user already has a task with this id, live or in the trash."""


def _load(name: str, *, writes: bool = False) -> Statement:
    return Statement(name, (FOLDER / f"{name}.sql").read_text(), writes)


ACCOUNT_LOCK = _load("account_lock", writes=True)
SCHEMA_APPLIED = _load("schema_applied")
TASK_DELETE = _load("task_delete", writes=True)
TASK_FIND = _load("task_find")
TASK_INSERT = _load("task_insert", writes=True)
TASK_LIST = _load("task_list")
TASK_OPERATE = _load("task_operate", writes=True)
TASK_SEARCH = _load("task_search")
TASK_TOGGLE = _load("task_toggle", writes=True)
TASK_UPDATE = _load("task_update", writes=True)


class Page(NamedTuple):
    """A list, or a part of one."""

    version: int  # the user's counter
    tasks: bytes | None  # a JSON array; None when the caller knows this version
    last: Key | None = None  # the last task's place, when another page follows
    total: int | None = None  # of all pages, when it was asked for


async def list_tasks(db: Batches, user_id: str, known: list[str] | None = None) -> Page:
    """Returns the user's live tasks, newest first, unless their version is known."""
    row = await db.fetch(TASK_LIST, user_id, known)
    return Page(row["version"], row["tasks"])


async def search_tasks(db: Batches, user_id: str, search: Search, known: list[str] | None = None) -> Page:
    """Returns the tasks that the search asks for, unless the user's version is known."""
    row = await db.fetch(
        TASK_SEARCH,
        user_id,
        known,
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
    last = (row["next_rank"], row["next_name"], str(row["next_id"])) if row["is_followed"] else None
    return Page(row["version"], row["tasks"], last, row["total"])


async def find_task(
    db: Batches, user_id: str, task_id: str, known: list[str] | None
) -> tuple[int | None, bytes | None]:
    """Returns the live task's version, and the task unless that version is known; None and None when there is none."""
    row = await db.fetch(TASK_FIND, user_id, task_id, known)
    return row["version"], row["task"]


async def insert_task(db: Batches, user_id: str, task: TaskCreate) -> bytes:
    """Returns the new task. Raises TaskExists."""
    try:
        row = await db.fetch(
            TASK_INSERT, user_id, task.id, task.title, task.description, task.initial_status, task.priority
        )
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "task_pkey":
            raise
        raise TaskExists from None
    created: bytes = row["task"]
    return created


async def update_task(db: Batches, user_id: str, task_id: str, change: TaskUpdate) -> bytes | None:
    """Returns the live task after the change of the fields that were sent, or None when the user has no such task."""
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
    )
    task: bytes | None = row["task"]
    return task


async def toggle_task(db: Batches, user_id: str, task_id: str) -> bytes | None:
    """Returns the live task, completed if it was not, else pending; None when the user has no such task."""
    row = await db.fetch(TASK_TOGGLE, user_id, task_id)
    task: bytes | None = row["task"]
    return task


async def delete_task(db: Batches, user_id: str, task_id: str) -> bool:
    """Moves the live task to the trash; returns False when the user has no such task."""
    row = await db.fetch(TASK_DELETE, user_id, task_id)
    deleted: bool = row["deleted"]
    return deleted


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
    detail: str | list[Invalid] | None = None


async def operate(
    db: Batches, user_id: str, changes: Sequence[Change | Outcome], *, atomic: bool, dry_run: bool
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

    rows = iter(await db.transact(ACCOUNT_LOCK, TASK_OPERATE, executions, is_kept) if executions else ())
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


async def applied_migrations(db: Batches) -> set[str]:
    """Returns the names of the migrations that the database has. Raises database.SchemaBehind when it never had one."""
    row = await db.fetch(SCHEMA_APPLIED)
    return set(row["migrations"])
