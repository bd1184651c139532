"""Which of Citus' nodes stand still.

A node that is away refuses connections, so that its users' calls fail at once. One that stands still (a stopped
machine, a disk that hangs, a network that swallows packets) does not, and the coordinator cannot even cancel what it
has sent there: each such call would keep one of our connections, and one of the coordinator's, until nobody has any.

So when a call takes long, its user's node is probed. While one stands still, calls for its users are rejected at once,
and the probe is repeated until it answers.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any

from service.db.pool import Pool, Unavailable

logger = logging.getLogger(__name__)

# The node of a user, as host:port. No file of sql/: without Citus, PostgreSQL cannot prepare it.
NODE_OF_USER = """-- account_node
    select (
        select nodename || ':' || nodeport
        from pg_dist_placement join pg_dist_node using (groupid)
        where noderole = 'primary' and shardid = get_shard_id_for_distribution_column('tasks.account', $1::text)
    ) as node
"""
# What a node answers at once: no lock keeps it from that
PROBE = "select (select version from tasks.account where user_id = $1) as version"

PROBE_SECONDS = 0.5
REPEAT_SECONDS = 30  # nobody answers on a connection that the network has lost
PAUSE_SECONDS = 1


class Nodes:
    """Knows which nodes stand still, and which users are theirs, as far as that had to be found out."""

    def __init__(self, pool: Pool, found_still: Callable[[], Awaitable[None]]) -> None:
        self.still: set[str] = set()
        self._pool = pool
        self._found_still = found_still  # called when one more stands still
        self._of: dict[str, str] = {}  # by user; empty while no node is suspected
        self._probes: set[str] = set()  # the nodes that are probed
        self._tasks: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Ends the probes."""
        for task in self._tasks:
            task.cancel()

    def suspect(self, users: Collection[str]) -> None:
        """Has the nodes of these users probed, whose calls take long, if there are nodes."""
        if self._pool.is_citus:
            self._start(self._suspect(users))

    async def of(self, users: Collection[str]) -> dict[str, str]:
        """Returns the node of each user. Raises Unavailable.

        It asks on a connection of its own: those of the pool may all be kept by a node that stands still.
        """
        unknown = [user for user in users if user not in self._of]
        if unknown:
            async with self._pool.apart() as connection:
                rows = await connection.fetchmany(NODE_OF_USER, [(user,) for user in unknown])
            self._of |= {user: node for user, (node,) in zip(unknown, rows, strict=True)}
        return {user: self._of[user] for user in users}

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the event loop keeps only weak references to tasks
        task.add_done_callback(self._tasks.discard)

    async def _suspect(self, users: Collection[str]) -> None:
        try:
            nodes = await self.of(users)
        except Unavailable as error:  # it is no single node's trouble
            logger.debug("the nodes of users cannot be read: %s", error)
            return
        for user, node in nodes.items():
            if node not in self._probes:
                self._probes.add(node)
                self._start(self._probe(node, user))

    async def _probe(self, node: str, user: str) -> None:
        """Probes the node of this user until it answers at once, be it with an error."""
        try:
            while not await self._answers(node, user):  # noqa: ASYNC110 -- nobody could tell otherwise that it does
                await asyncio.sleep(PAUSE_SECONDS)
            if node in self.still:
                logger.warning("the database's node answers again: %s", node)
        except Unavailable as error:  # it is no single node's trouble
            logger.debug("a node cannot be probed: %s", error)
        finally:
            self.still.discard(node)
            self._probes.remove(node)
            if not self._probes:
                self._of.clear()

    async def _answers(self, node: str, user: str) -> bool:
        async with self._pool.apart() as connection:
            asking = asyncio.create_task(connection.fetchval(PROBE, user))
            try:
                await asyncio.wait([asking], timeout=PROBE_SECONDS)
                if asking.done():
                    asking.exception()  # which its users' calls get at once, too
                    return True
                if node not in self.still:
                    logger.warning("a node of the database stands still, its users get a 503: %s", node)
                    self.still.add(node)
                    await self._found_still()
                await asyncio.wait([asking], timeout=REPEAT_SECONDS)
                return asking.done() and asking.exception() is None
            finally:
                asking.cancel()
