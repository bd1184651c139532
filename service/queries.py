"""The query module: every statement of `sql/` has one function here, and no other code runs SQL.

JSON comes back as the bytes that PostgreSQL made. Every function raises database.Unavailable when the database does
not answer in time; a write that raises it may or may not have happened.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import asyncpg

from service.batches import Batches, Statement, Transaction
from service.errors import Invalid
from service.lists import Key, Search
from service.models import TaskCreate, TaskUpdate

Value = TypeVar("Value")

FOLDER = Path(__file__).parent.parent / "sql"


class TaskExists(Exception):
    """The user already has a task with this id, live or in the trash."""


class KeyTaken(Exception):
    """The user has sent another request with this key before."""


def _text(name: str) -> str:
    return (FOLDER / f"{name}.sql").read_text()


def _load(name: str, *, writes: bool = False) -> Statement:
    return Statement(name, _text(name), writes)


ANSWER_FIND = _load("answer_find")
KEY_OLDEST = _load("key_oldest")
KEY_PURGE = _load("key_purge", writes=True)
SCHEMA_APPLIED = _load("schema_applied")
TASK_DELETE = _load("task_delete", writes=True)
TASK_FIND = _load("task_find")
TASK_INSERT = _load("task_insert", writes=True)
TASK_INSERT_ONCE = _load("task_insert_once", writes=True)
TASK_LIST = _load("task_list")
TASK_OPERATE = Transaction("task_operate", _text("task_operate"), writes=True, lock=_text("account_lock"))
TASK_PURGE = _load("task_purge", writes=True)
TASK_RESTORE = _load("task_restore", writes=True)
TASK_SEARCH = _load("task_search")
TASK_TOGGLE = _load("task_toggle", writes=True)
TASK_UPDATE = _load("task_update", writes=True)
TRASH_OLDEST = _load("trash_oldest")


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
    last: Key | None = None  # the last task's place, when another page follows
    total: int | None = None  # of all pages, when it was asked for


async def list_tasks(db: Batches, user_id: str, known: list[str] | None = None) -> Page:
    """Returns the user's live tasks, newest first, unless their version is known."""
    row = await db.fetch(TASK_LIST, user_id, known)
    return Page(row["version"], row["tasks"])


async def search_tasks(db: Batches, user_id: str, search: Search, known: list[str] | None = None) -> Page:
    """Returns the tasks that the search asks for, unless the user's version is known."""
    row = await db.fetch(TASK_SEARCH, *search_arguments(user_id, search, known))
    last = (row["next_rank"], row["next_name"], str(row["next_id"])) if row["is_followed"] else None
    return Page(row["version"], row["tasks"], last, row["total"])


def search_arguments(user_id: str, search: Search, known: list[str] | None) -> tuple[Any, ...]:
    """Returns the arguments of task_search.sql."""
    return (
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


async def find_task(
    db: Batches, user_id: str, task_id: str, known: list[str] | None
) -> tuple[int | None, bytes | None]:
    """Returns the live task's version, and the task unless that version is known; None and None when there is none."""
    row = await db.fetch(TASK_FIND, user_id, task_id, known)
    return row["version"], row["task"]


async def insert_task(db: Batches, user_id: str, task: TaskCreate) -> Created:
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


async def insert_task_once(db: Batches, user_id: str, task: TaskCreate, key: str) -> Created:
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
    db: Batches, user_id: str, task_id: str, change: TaskUpdate, versions: list[str] | None = None
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
        versions,
    )
    return Written(row["version"], row["task"])


async def toggle_task(db: Batches, user_id: str, task_id: str, versions: list[str] | None = None) -> Written:
    """Completes the live task if it was not, else makes it pending, if it has one of these versions."""
    row = await db.fetch(TASK_TOGGLE, user_id, task_id, versions)
    return Written(row["version"], row["task"])


async def delete_task(
    db: Batches, user_id: str, task_id: str, versions: list[str] | None = None
) -> tuple[int | None, bool]:
    """Moves the live task to the trash, if it has one of these versions.

    Returns its version, None when the user has no such task; and whether it went.
    """
    row = await db.fetch(TASK_DELETE, user_id, task_id, versions)
    return row["version"], row["deleted"]


async def restore_task(db: Batches, user_id: str, task_id: str, versions: list[str] | None = None) -> Written:
    """Takes the task out of the trash, if it has one of these versions; its version is None when it is not there."""
    row = await db.fetch(TASK_RESTORE, user_id, task_id, versions)
    return Written(row["version"], row["task"])


async def oldest_trash(db: Batches, before: datetime, limit: int) -> dict[str, list[UUID]]:
    """Returns the tasks of each user that went to the trash before that moment, at most so many, the oldest of all."""
    row = await db.fetch(TRASH_OLDEST, before, limit)
    return _by_user(row["users"], row["tasks"])


async def purge_tasks(db: Batches, user_id: str, tasks: list[UUID], before: datetime) -> int:
    """Erases those of the user's tasks that went to the trash before that moment; returns how many."""
    row = await db.fetch(TASK_PURGE, user_id, tasks, before)
    erased: int = row["erased"]
    return erased


async def oldest_keys(db: Batches, before: datetime, limit: int) -> dict[str, list[str]]:
    """Returns the keys of each user that are from before that moment, at most so many, the oldest of all."""
    row = await db.fetch(KEY_OLDEST, before, limit)
    return _by_user(row["users"], row["keys"])


async def purge_keys(db: Batches, user_id: str, keys: list[str], before: datetime) -> int:
    """Erases those of the user's keys that are from before that moment; returns how many."""
    row = await db.fetch(KEY_PURGE, user_id, keys, before)
    erased: int = row["erased"]
    return erased


def _by_user(users: list[str], values: list[Value]) -> dict[str, list[Value]]:
    found: dict[str, list[Value]] = {}
    for user, value in zip(users, values, strict=True):
        found.setdefault(user, []).append(value)
    return found


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


async def applied_migrations(db: Batches) -> set[str]:
    """Returns the names of the migrations that the database has. Raises database.SchemaBehind when it never had one."""
    row = await db.fetch(SCHEMA_APPLIED)
    return set(row["migrations"])
