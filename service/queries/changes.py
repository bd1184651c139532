"""The changes of a user: the feed, its watch, history and undo."""

import asyncio
import logging
from typing import NamedTuple

from service.db.coalescer import Coalescer, waited
from service.db.pool import NodeUnavailable, Unavailable
from service.queries import call, read

CHANGE_COUNTERS = read("changes/change_counters", is_of_user=False)
CHANGE_FEED = read("changes/change_feed")
CHANGE_HISTORY = read("changes/change_history")
UNDO_CHANGE = call("select * from tasks.undo_change($1, $2, $3)")

logger = logging.getLogger(__name__)

WATCH_SECONDS = 0.9  # between two looks at the counters: what another process has changed is told within a second


class Feed(NamedTuple):
    """A page of what has changed."""

    state: str  # `new`; `known`, when the caller knows the counter; `gone`, when nobody can tell from there on
    version: int  # up to which it tells all: the counter when no page follows
    counter: int
    is_followed: bool
    tasks: bytes  # a JSON array, as they are now
    erased: bytes  # a JSON array of ids


async def read_feed(
    db: Coalescer, user_id: str, since: int, limit: int, if_none_match: list[str] | None = None
) -> Feed:
    """Returns what has changed after the number `since`; at most so many tasks, but for the rest of a change."""
    known = db.hub.counters.get(user_id)
    feed = Feed(*await db.fetch(CHANGE_FEED, user_id, since, limit, if_none_match))
    db.hub.tell(user_id, feed.counter, known)
    return feed


async def watch_counters(db: Coalescer) -> None:
    """Tells the hub what other processes have changed: asks once a second, and not at all while nobody waits."""
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        if db.hub.counters:
            waited.set([])
            try:
                await _look_at_all(db, db.hub.counters.copy())
            except Unavailable:
                continue  # whoever waits for a change of this second gets it in a later one
            except Exception:  # nobody would find out that this has ended
                logger.exception("the counters could not be read")


async def _look_at_all(db: Coalescer, counters: dict[str, int]) -> None:
    known = {user_id: counters[user_id] for user_id in await db.reachable(counters)}
    try:
        await _look(db, known)
    except NodeUnavailable:  # who is on another node is told nevertheless
        ones = ({user_id: known[user_id]} for user_id in await db.reachable(known))
        await asyncio.gather(*(_look(db, one) for one in ones), return_exceptions=True)


async def _look(db: Coalescer, known: dict[str, int]) -> None:
    """Tells the hub which of these users' counters are others."""
    found = await db.fetch(CHANGE_COUNTERS, [*known], [*known.values()])
    for user_id, version in zip(*found, strict=True):
        db.hub.tell(user_id, version, known[user_id])


async def read_history(db: Coalescer, user_id: str, task_id: str | None, before: int | None, limit: int) -> bytes:
    """Returns what the changes did, of one task or of all, the newest first, as a JSON array."""
    (entries,) = await db.fetch(CHANGE_HISTORY, user_id, task_id, before, limit)
    return bytes(entries)


class Undone(NamedTuple):
    """What became of an undo: `changed`, `unchanged`, `conflict`, `not_found` or `too_old`."""

    outcome: str
    version: int | None  # of the undo, which is a change
    tasks: bytes | None  # a JSON array of those that it has changed
    conflicts: bytes | None  # a JSON array of {"task_id", "fields"}: what has been changed since


async def undo_change(db: Coalescer, user_id: str, version: int) -> Undone:
    """Takes back the change with this number, all of it; nothing, when a part of it has been changed since."""
    undone = Undone(*await db.fetch(UNDO_CHANGE, user_id, version))
    if undone.version is not None:
        db.hub.tell(user_id, undone.version)
    return undone
