"""The purge: erases for good what nobody can want back, in small steps, while the service serves.

Two at once are safe: whatever one of them has erased, the other does not find.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from service.db.coalescer import Coalescer
from service.queries import call, read

CHANGE_OLDEST = read("changes/change_oldest", is_of_user=False)
KEY_OLDEST = read("keys/key_oldest", is_of_user=False)
PURGE_CHANGES = call("select tasks.purge_changes($1, $2, $3, $4, $5)")
PURGE_KEYS = call("select tasks.purge_keys($1, $2, $3, $4)")
PURGE_TASKS = call("select tasks.purge_tasks($1, $2, $3, $4)")
TRASH_OLDEST = read("tasks/trash_oldest", is_of_user=False)

Value = TypeVar("Value")

STEP = 1000  # rows that one statement looks for, and erases at most
KEY_HOURS = 24
HISTORY_DAYS = 30
ERASED_DAYS = 400  # so long the feed tells which tasks were erased


class Purged(NamedTuple):
    """What has been erased."""

    tasks: int
    users: int  # whose tasks these were
    keys: int
    changes: int  # rows of history


async def purge(db: Coalescer, days: int) -> Purged:
    """Erases tasks that have been in the trash for more days, keys of retries that are a day old, and old history.

    Raises Unavailable; what was erased by then stays erased.
    """
    now = datetime.now(UTC)
    tasks = await _erase(db, now - timedelta(days=days), oldest_trash, purge_tasks)
    keys = await _erase(db, now - timedelta(hours=KEY_HOURS), oldest_keys, purge_keys)
    changes = await _erase_history(db, now)
    return Purged(sum(tasks.values()), len(tasks), sum(keys.values()), changes)


async def _erase_history(db: Coalescer, now: datetime) -> int:
    """Erases history step by step, of one user after the other; returns how many rows."""
    before, erased_before = now - timedelta(days=HISTORY_DAYS), now - timedelta(days=ERASED_DAYS)
    erased, last = 0, ""
    while last is not None:
        last, users = await db.fetch(CHANGE_OLDEST, last, before, erased_before, STEP)
        for user in users:
            while gone := (await db.fetch(PURGE_CHANGES, user, before, erased_before, STEP))[0]:
                erased += gone
    return erased


async def _erase(
    db: Coalescer,
    before: datetime,
    oldest: Callable[[Coalescer, datetime, int], Awaitable[dict[str, list[Any]]]],
    erase: Callable[[Coalescer, str, list[Any], datetime], Awaitable[int]],
) -> dict[str, int]:
    """Erases step by step, one user at a time, so that no user's writes wait long; returns how many of each user."""
    erased: dict[str, int] = {}
    while found := await oldest(db, before, STEP):
        for user, rows in found.items():
            if number := await erase(db, user, rows, before):
                erased[user] = erased.get(user, 0) + number
    return erased


async def oldest_trash(db: Coalescer, before: datetime, limit: int) -> dict[str, list[UUID]]:
    """Returns the tasks of each user that went to the trash before that moment, at most so many, the oldest of all."""
    row = await db.fetch(TRASH_OLDEST, before, limit)
    return _by_user(row["users"], row["tasks"])


async def purge_tasks(db: Coalescer, user_id: str, tasks: list[UUID], before: datetime) -> int:
    """Erases those of the user's tasks that went to the trash before that moment; returns how many."""
    (erased,) = await db.fetch(PURGE_TASKS, user_id, tasks, before)
    return int(erased)


async def oldest_keys(db: Coalescer, before: datetime, limit: int) -> dict[str, list[str]]:
    """Returns the keys of each user that are from before that moment, at most so many, the oldest of all."""
    row = await db.fetch(KEY_OLDEST, before, limit)
    return _by_user(row["users"], row["keys"])


async def purge_keys(db: Coalescer, user_id: str, keys: list[str], before: datetime) -> int:
    """Erases those of the user's keys that are from before that moment; returns how many."""
    (erased,) = await db.fetch(PURGE_KEYS, user_id, keys, before)
    return int(erased)


def _by_user(users: list[str], values: list[Value]) -> dict[str, list[Value]]:
    found: dict[str, list[Value]] = {}
    for user, value in zip(users, values, strict=True):
        found.setdefault(user, []).append(value)
    return found
