"""The pool of connections: it opens when the database is there, pings what sat idle, and knows what is an outage."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import asyncpg

from service.address import Address
from service.connect import connect

log = logging.getLogger(__name__)

IDLE_SECONDS = 30  # a connection that sat longer is pinged: a serverless database may have closed it
PING_SECONDS = 1
CLOSE_SECONDS = 2

LOST = (
    OSError,  # TimeoutError and the refused connection among them
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the server has said goodbye, and its end of the connection is just closing
    asyncpg.OperatorInterventionError,  # starting up, shutting down, cancelled
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.ReadOnlySQLTransactionError,  # a failover left us with the standby
)
BEHIND_SCHEMA = (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError)
POOLER = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)


_Work = Callable[..., Coroutine[Any, Any, Sequence[Any]]]


class Unavailable(Exception):
    """The database did not answer; the message is for the log."""


class SchemaBehind(Unavailable):
    """The database answers, and lacks a table or a column: it wants `python -m service migrate`."""


class RightMissing(Unavailable):
    """The database answers, and refuses its user something."""


class _Connection(asyncpg.Connection):
    used_at = 0.0  # the event loop's time


async def _prepare(connection: Any) -> None:
    # PostgreSQL makes the JSON, and its bytes are passed on as they are
    await connection.set_type_codec("json", schema="pg_catalog", encoder=bytes, decoder=bytes, format="binary")
    await _note_use(connection)


async def _note_use(connection: Any) -> None:
    connection.used_at = asyncio.get_running_loop().time()


class Pool:
    """The connections to one PostgreSQL."""

    def __init__(self, address: Address, smallest: int, largest: int, statement_cache: int) -> None:
        self._address = address
        self._sizes = smallest, largest
        self._statement_cache = statement_cache
        self._pool: asyncpg.Pool | None = None
        # Between two uses they stay out of asyncpg's pool, whose acquire and release take longer than a query.
        self._at_hand: list[tuple[Any, float]] = []  # a connection, and when it was last used: the event loop's time
        self._waiting = 0  # those who wait until asyncpg's pool has one for them
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop

    async def open(self) -> None:
        """Opens the pool. When the database is away, returns all the same and goes on trying once a second."""
        self._loop = asyncio.get_running_loop()  # to ask for it costs a system call
        try:
            await self._connect()
        except (*LOST, asyncpg.PostgresError) as error:
            log.warning("the database is away, trying again every second: %s: %s", self._address, _explain(error))
            self._in_background(self._connect_later())

    async def close(self) -> None:
        """Closes the pool once its connections are free, or after a few seconds without."""
        pool, self._pool = self._pool, None
        if pool is None:
            for task in self._tasks:
                task.cancel()
            return
        self._release_at_hand(pool)
        try:
            await asyncio.wait_for(pool.close(), CLOSE_SECONDS)
        except TimeoutError:
            pool.terminate()
        if self._tasks:  # connections on their way back; they end now, whatever the server does
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)

    async def run(self, sql: str, executions: Sequence[Sequence[Any]]) -> Sequence[Any]:
        """Runs the statement once for each list of arguments, in one round trip and one transaction.

        Returns the rows, one an execution. Raises Unavailable when the connection was lost or none could be had, and
        asyncpg.PostgresError when an execution failed, in which case none of them has happened.
        """
        return await self._translated(self._run, sql, executions)

    async def transact(
        self,
        lock: str,
        lock_arguments: Sequence[Any],
        sql: str,
        executions: Sequence[Sequence[Any]],
        is_kept: Callable[[Sequence[Any]], bool],
    ) -> Sequence[Any]:
        """Runs the lock and then the executions in a transaction: four round trips, however many there are.

        Returns the rows, one an execution. They are rolled back unless is_kept says of them that they stay. Raises
        what run() does.
        """
        return await self._translated(self._transact, lock, lock_arguments, sql, executions, is_kept)

    async def _translated(self, work: _Work, *arguments: Any) -> Sequence[Any]:
        if self._pool is None:
            raise Unavailable("no connection yet")
        try:
            return await work(self._pool, *arguments)
        except (*LOST, *BEHIND_SCHEMA, *POOLER) as error:
            raise _as_unavailable(error) from None
        except asyncpg.PostgresError as error:
            error.detail = None  # it quotes the row, and nobody's text belongs in a log
            raise

    async def _run(self, pool: asyncpg.Pool, sql: str, executions: Sequence[Sequence[Any]]) -> Sequence[Any]:
        connection = await self._acquire(pool)
        try:
            rows: list[asyncpg.Record] = await connection.fetchmany(sql, executions)
        except BaseException as error:
            if isinstance(error, LOST):
                connection.terminate()
            # behind the caller's back: after a cancellation it waits for the server's answer
            self._in_background(_release(pool, connection))
            raise
        self._put_back(pool, connection)
        return rows

    async def _transact(
        self,
        pool: asyncpg.Pool,
        lock: str,
        lock_arguments: Sequence[Any],
        sql: str,
        executions: Sequence[Sequence[Any]],
        is_kept: Callable[[Sequence[Any]], bool],
    ) -> Sequence[Any]:
        connection = await self._acquire(pool)
        try:
            transaction = connection.transaction()
            await transaction.start()
            try:
                await connection.fetch(lock, *lock_arguments)
                rows: list[asyncpg.Record] = await connection.fetchmany(sql, executions)
            except asyncpg.PostgresError as error:
                if not isinstance(error, LOST):
                    await transaction.rollback()
                raise
            await (transaction.commit() if is_kept(rows) else transaction.rollback())
        except BaseException as error:
            if (
                not isinstance(error, asyncpg.PostgresError)
                or isinstance(error, LOST)
                or connection.is_in_transaction()
            ):
                connection.terminate()  # the server rolls back; an open transaction must not go back into the pool
            self._in_background(_release(pool, connection))
            raise
        self._put_back(pool, connection)
        return rows

    def _put_back(self, pool: asyncpg.Pool, connection: Any) -> None:
        if self._pool is pool and not self._waiting:
            self._at_hand.append((connection, self._loop.time()))
        else:
            self._in_background(_release(pool, connection))

    def close_idle(self) -> None:
        """Closes the connections that were not used for a while, but for the smallest number."""
        long_ago = self._loop.time() - IDLE_SECONDS
        while self._pool is not None and len(self._at_hand) > self._sizes[0] and self._at_hand[0][1] < long_ago:
            self._in_background(_close(self._at_hand.pop(0)[0]))

    async def _acquire(self, pool: asyncpg.Pool) -> Any:
        connection, used_at = self._from_hand(pool)
        if connection is None:
            connection = await self._acquire_from(pool)
            used_at = connection.used_at
        if self._loop.time() - used_at < IDLE_SECONDS:
            return connection
        try:
            await connection.execute("select 1", timeout=PING_SECONDS)
            return connection
        except LOST:
            connection.terminate()
            self._release_at_hand(pool)  # its neighbours sat idle just as long
            await pool.expire_connections()
        except BaseException:
            self._in_background(_release(pool, connection))
            raise
        await _release(pool, connection)
        return await self._acquire_from(pool)

    async def _acquire_from(self, pool: asyncpg.Pool) -> Any:
        self._waiting += 1  # whoever is done meanwhile gives the connection back to the pool, and so to us
        try:
            return await pool.acquire()
        finally:
            self._waiting -= 1

    def _from_hand(self, pool: asyncpg.Pool) -> tuple[Any, float]:
        while self._at_hand:
            connection, used_at = self._at_hand.pop()  # the one used last, so that the others may go idle
            try:
                if not connection.is_closed():
                    return connection, used_at
                self._in_background(_release(pool, connection))
            except asyncpg.InterfaceError:
                pass  # the server has closed it, and it went back into the pool by itself
        return None, 0

    def _release_at_hand(self, pool: asyncpg.Pool) -> None:
        for connection, _ in self._at_hand:
            self._in_background(_release(pool, connection))
        self._at_hand.clear()

    async def _connect(self) -> None:
        options = self._address.options
        name = options.get("application_name") or options.get("fallback_application_name") or "task-service"
        # every timestamp in an answer is in UTC; this and the name pass through PgBouncer
        settings = {"application_name": name, "timezone": "UTC"}
        if "options" in options:
            settings["options"] = options["options"]
        self._pool = await asyncpg.create_pool(
            connect=partial(connect, self._address, self._address.tls()),
            min_size=self._sizes[0],
            max_size=self._sizes[1],
            statement_cache_size=self._statement_cache,
            connection_class=_Connection,
            init=_prepare,
            reset=_note_use,  # instead of a round trip: no statement leaves anything behind in its session
            server_settings=settings,
        )

    async def _connect_later(self) -> None:
        while self._pool is None:
            await asyncio.sleep(1)
            try:
                await self._connect()
                log.warning("the database is back: %s", self._address)
            except (*LOST, asyncpg.PostgresError) as error:
                log.debug("the database is still away: %s", _explain(error))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)  # the event loop itself keeps no task alive
        task.add_done_callback(self._tasks.discard)


async def _close(connection: Any) -> None:
    try:
        await connection.close(timeout=CLOSE_SECONDS)  # which tells the pool that there is room for another
    except LOST as error:
        log.debug("a connection was given up: %s", _explain(error))


async def _release(pool: asyncpg.Pool, connection: Any) -> None:
    try:
        await pool.release(connection, timeout=CLOSE_SECONDS)
    except LOST as error:
        log.debug("a connection was given up: %s", _explain(error))


def _explain(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _as_unavailable(error: BaseException) -> Unavailable:
    if isinstance(error, POOLER):
        return Unavailable(f"{_explain(error)}. Is this a transaction-mode pooler? Set DB_STATEMENT_CACHE=0")
    if isinstance(error, BEHIND_SCHEMA):
        return SchemaBehind(f"{_explain(error)}. Run `python -m service migrate`")
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return RightMissing(f"{error}: grant it to the user of DATABASE_URL")
    return Unavailable(_explain(error))
