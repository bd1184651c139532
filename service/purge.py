"""The purge: erases for good what nobody can want back, in small steps, while the service serves.

Two at once are safe: whatever one of them has erased, the other does not find.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from service import queries
from service.batches import Batches, waited

STEP = 1000  # rows that one statement looks for, and erases at most
KEY_HOURS = 24


class Purged(NamedTuple):
    """What has been erased."""

    tasks: int
    users: int  # whose tasks these were
    keys: int


async def purge(db: Batches, days: int) -> Purged:
    """Erases the tasks that have been in the trash for more days, and the keys of retries that are a day old.

    Raises Unavailable; what was erased by then stays erased.
    """
    waited.set([])  # each call of the database notes there how long it took; here nobody asks
    now = datetime.now(UTC)
    tasks = await _erase(db, now - timedelta(days=days), queries.oldest_trash, queries.purge_tasks)
    keys = await _erase(db, now - timedelta(hours=KEY_HOURS), queries.oldest_keys, queries.purge_keys)
    return Purged(sum(tasks.values()), len(tasks), sum(keys.values()))


async def _erase(
    db: Batches,
    before: datetime,
    oldest: Callable[[Batches, datetime, int], Awaitable[dict[str, list[Any]]]],
    erase: Callable[[Batches, str, list[Any], datetime], Awaitable[int]],
) -> dict[str, int]:
    """Erases step by step, one user at a time, so that no user's writes wait long; returns how many of each user."""
    erased: dict[str, int] = {}
    while found := await oldest(db, before, STEP):
        for user, rows in found.items():
            if number := await erase(db, user, rows, before):
                erased[user] = erased.get(user, 0) + number
    return erased
