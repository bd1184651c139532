"""The accounts of users: to erase one, and to lift all counters after a backup was restored.

Both work in small steps, while the service serves. Two at once are safe; the next finishes what was interrupted.
"""

import asyncio
from typing import NamedTuple

from service.db.coalescer import Coalescer
from service.queries import call, read

ACCOUNT_PAGE = read("accounts/account_page", is_of_user=False)
ERASE_USER = call("select * from tasks.erase_user($1, $2, $3)")
RENUMBER_USER = call("select tasks.renumber_user($1, $2)")

STEP = 1000  # rows that one statement erases, and users that it looks for, at most


class Erased(NamedTuple):
    """How many rows of a user have been erased."""

    tasks: int
    changes: int  # rows of history
    keys: int


async def erase_user(db: Coalescer, user_id: str) -> Erased:
    """Erases all that the user has, for good. Raises Unavailable; what was erased by then stays erased."""
    erased, is_done = Erased(0, 0, 0), False
    while not is_done:
        *step, is_done = await db.fetch(ERASE_USER, user_id, STEP)
        erased = Erased(*map(sum, zip(erased, step, strict=True)))
    db.hub.tell(user_id, 0, db.hub.counters.get(user_id))
    return erased


async def renumber(db: Coalescer) -> int:
    """Lifts all counters beyond every number that was given before a backup was restored; returns how many.

    Raises Unavailable; it may be repeated at any time: clients only fetch all their tasks once more.
    """
    renumbered, last = 0, ""
    while users := (await db.fetch(ACCOUNT_PAGE, last, STEP))[0]:
        for (lifted,) in await asyncio.gather(*(db.fetch(RENUMBER_USER, user) for user in users)):
            renumbered += lifted
        last = users[-1]
    return renumbered
