"""Which of Citus' nodes stand still.

A node that is away refuses connections, so that its users' calls fail at once. One that stands still (a stopped
machine, a disk that hangs, a network that swallows packets) does not, and the coordinator cannot even cancel what it
has sent there: each such call would keep one of our connections, and one of the coordinator's, until nobody has any.

So when a call takes long, the nodes of its users are probed. While one stands still, calls for its users are rejected
at once, and the probe is repeated until it answers. Probes have connections of their own: the pool's may all be kept.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any

from service.db.pool import Pool, Unavailable

logger = logging.getLogger(__name__)

# The node of a user, as host:port. These are no files of sql/: without Citus, PostgreSQL cannot prepare them.
NODE_OF_USER = """-- account_node
    select (
        select nodename || ':' || nodeport
        from pg_dist_placement join pg_dist_node using (groupid)
        where noderole = 'primary' and shardid = get_shard_id_for_distribution_column('tasks.account', $1::text)
    ) as node
"""
# Whether the node answers a new connection. No table: a lock on one would look like a node that stands still.
PROBE = "select citus_check_connection_to_node(substring($1::text, '(.*):'), substring($1, '[0-9]+$')::int)"

PROBE_LOOKS, LOOK_SECONDS = 5, 0.1  # looks, not one timeout: that passes too while our own event loop is busy
REPEAT_SECONDS = 30  # nobody answers on a connection that the network has lost
PAUSE_SECONDS = 1
FIND_SECONDS = 2


class Nodes:
    """Knows which nodes stand still, and which users are theirs, as far as that had to be found out."""

    def __init__(self, pool: Pool, found_still: Callable[[], Awaitable[None]]) -> None:
        self.still: set[str] = set()
        self.of_users: dict[str, str] = {}  # as far as they are known; empty unless a node is probed
        self._pool = pool
        self._found_still = found_still  # called when one more stands still
        self._suspected: set[str] = set()  # users whose calls take long
        self._is_looking = False
        self._probed: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Ends the probes."""
        for task in self._tasks:
            task.cancel()

    def suspect(self, users: Collection[str]) -> None:
        """Has the nodes of these users probed, whose calls take long, if there are nodes."""
        if self._pool.is_citus and users:
            self._suspected.update(users)
            if not self._is_looking:
                self._is_looking = True
                self._start(self._look())

    async def of(self, users: Collection[str]) -> dict[str, str]:
        """Returns the node of each user. Raises Unavailable."""
        known = {user: self.of_users[user] for user in users if user in self.of_users}
        if unknown := [user for user in users if user not in known]:
            async with self._pool.apart() as connection, asyncio.timeout(FIND_SECONDS):
                rows = await connection.fetchmany(NODE_OF_USER, [(user,) for user in unknown])
            for user, (node,) in zip(unknown, rows, strict=True):
                self.remember(user, node)
                known[user] = node
        return known

    def remember(self, user: str, node: str) -> None:
        """Notes the node of a user, for as long as one is probed: later the user may be on another."""
        if self._probed:
            self.of_users[user] = node

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the event loop keeps only weak references to tasks
        task.add_done_callback(self._tasks.discard)

    async def _look(self) -> None:
        """Starts probes of the suspected users' nodes, until no user is suspected."""
        try:
            while self._suspected:
                users, self._suspected = self._suspected, set()
                for node in set((await self.of(users)).values()) - self._probed:
                    self._probed.add(node)
                    self._start(self._probe(node))
        except Unavailable as error:  # it is no single node's trouble
            logger.debug("the nodes of users cannot be read: %s", error)
        finally:
            self._is_looking = False

    async def _probe(self, node: str) -> None:
        """Probes the node until it answers, or refuses, at once."""
        try:
            while not await self._answers(node):  # noqa: ASYNC110 -- nobody could tell otherwise that it does
                await asyncio.sleep(PAUSE_SECONDS)
            if node in self.still:
                logger.warning("the database's node stands still no longer: %s", node)
        except Unavailable as error:  # it is no single node's trouble
            logger.debug("a node cannot be probed: %s", error)
        finally:
            self.still.discard(node)
            self._probed.remove(node)
            if not self._probed:
                self.of_users.clear()

    async def _answers(self, node: str) -> bool:
        async with self._pool.apart() as connection:
            asking = asyncio.create_task(connection.fetchval(PROBE, node))
            try:
                for _ in range(PROBE_LOOKS):
                    await asyncio.wait([asking], timeout=LOOK_SECONDS)
                if asking.done():
                    asking.exception()  # which its users' calls get at once, too
                    return True
                if node not in self.still:
                    logger.warning("a node of the database stands still, its users get a 503: %s", node)
                    self.still.add(node)
                    await self._found_still()
                await asyncio.wait([asking], timeout=REPEAT_SECONDS)
                return asking.done() and asking.exception() is None and asking.result()
            finally:
                asking.cancel()
