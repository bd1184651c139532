"""The query module: every statement of `sql/` has one function here, and no other code runs SQL.

JSON comes back as the bytes that PostgreSQL made. Every function raises database.Unavailable when the database does
not answer in time; a write that raises it may or may not have happened.
"""

from pathlib import Path

import asyncpg

from service.batches import Batches, Statement
from service.models import TaskCreate, TaskUpdate

FOLDER = Path(__file__).parent.parent / "sql"


class TaskExists(Exception):
    """The user already has a task with this id, live or in the trash."""


def _load(name: str, *, writes: bool = False) -> Statement:
    return Statement(name, (FOLDER / f"{name}.sql").read_text(), writes)


SCHEMA_APPLIED = _load("schema_applied")
TASK_DELETE = _load("task_delete", writes=True)
TASK_FIND = _load("task_find")
TASK_INSERT = _load("task_insert", writes=True)
TASK_LIST = _load("task_list")
TASK_TOGGLE = _load("task_toggle", writes=True)
TASK_UPDATE = _load("task_update", writes=True)


async def list_tasks(db: Batches, user_id: str) -> bytes:
    """Returns the user's live tasks, newest first, as a JSON array."""
    row = await db.fetch(TASK_LIST, user_id)
    tasks: bytes = row["tasks"]
    return tasks


async def find_task(db: Batches, user_id: str, task_id: str) -> bytes | None:
    """Returns the live task, or None when the user has no such task."""
    row = await db.fetch(TASK_FIND, user_id, task_id)
    task: bytes | None = row["task"]
    return task


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


async def applied_migrations(db: Batches) -> set[str]:
    """Returns the names of the migrations that the database has. Raises database.SchemaBehind when it never had one."""
    row = await db.fetch(SCHEMA_APPLIED)
    return set(row["migrations"])
