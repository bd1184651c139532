"""The pool of connections: opened on demand, pinged after being idle, replaced when they fail.

asyncpg's own pool takes as long as a query to acquire and release a connection, and cannot go on with the connections
it has when the database refuses another.
"""

import asyncio
import logging
import math
import ssl
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from service.db.address import Address
from service.db.connect import connect

logger = logging.getLogger(__name__)

IDLE_SECONDS = 5  # a connection idle for longer is pinged: it may be dead, or closed by a serverless database
CLOSE_IDLE_SECONDS = 30  # connections above the minimum are closed after being idle for this long
PING_SECONDS = 1
CLOSE_SECONDS = 1
RETRY_SECONDS = 1  # after a failed attempt to connect

# The connection is unusable, and the outcome of the statement unknown
LOST = (
    OSError,  # TimeoutError among them
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the server has announced that it closes the connection
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.DatabaseDroppedError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,  # a failover left us with the standby
)
# On a connection that stays open, Citus' word for a node of its own that it has lost: the outcome is unknown as well
NODE_LOST = asyncpg.PostgresConnectionError
# The statement had no effect, and neither it nor the client caused the error
OUTAGE = (
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)
BEHIND_SCHEMA = (
    asyncpg.InvalidSchemaNameError,
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedFunctionError,
)
POOLER = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)


class Unavailable(Exception):
    """The database did not answer; the message is for the log."""


class NodeUnavailable(Unavailable):
    """The database, which is Citus, answers, and does not reach one of its nodes."""


class Overloaded(Unavailable):
    """The call would come too late, or did not come at all, since others wait before it."""


class SchemaBehind(Unavailable):
    """The database answers, and lacks a table, a column or a function: run `python -m service migrate`."""


class RightMissing(Unavailable):
    """The database answers, and its user lacks a privilege."""


class Pool:
    """The connections to one PostgreSQL: at most `largest`, or as many as it accepts."""

    def __init__(self, address: Address, smallest: int, largest: int, statement_cache: int) -> None:
        self.largest = largest
        # On Citus each execution of a write commits by itself, on its user's node: one that fails takes no other back,
        # so none may share a round trip. Until the first connection says which it is, it may be one.
        self.is_citus = True
        self._address = address
        self._smallest = smallest
        self._statement_cache = statement_cache
        self._idle: list[tuple[Any, float]] = []  # connection, time of last use (loop.time())
        self._open = 0  # including those being opened or closed
        self._connecting = 0
        self._waiting: deque[asyncio.Future[None]] = deque()  # for a free connection
        self._failure = ""  # why the last attempt to connect failed
        self._retry_at = -math.inf  # loop.time()
        self._is_closed = False
        self._tls: ssl.SSLContext | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop

    async def open(self) -> None:
        """Opens the minimum number of connections, as far as the database accepts them."""
        self._loop = asyncio.get_running_loop()  # each further get_running_loop() is a system call
        for connection in await asyncio.gather(*(self._connect() for _ in range(self._smallest))):
            if connection is not None:
                self._put_back(connection)

    async def close(self) -> None:
        """Closes the connections; those in use within a few seconds."""
        self._is_closed = True
        for connection, _ in self._idle:
            self._close(connection)
        self._idle.clear()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2 * CLOSE_SECONDS)

    async def run(self, sql: str, executions: Sequence[Sequence[Any]]) -> Sequence[Any]:
        """Runs the statement once for each list of arguments, in one round trip and one transaction.

        Returns the rows, one for each execution. Raises Unavailable when the connection was lost or there was none, and
        asyncpg.PostgresError when an execution failed, which rolls all of them back: NODE_LOST, one of these, when
        Citus did not reach the node of one.
        """
        connection = await self._acquire()
        try:
            rows: list[asyncpg.Record] = await connection.fetchmany(sql, executions)
        except BaseException as error:
            raise self._after_error(connection, error) from None
        self._put_back(connection)
        return rows

    @asynccontextmanager
    async def apart(self) -> AsyncIterator[Any]:
        """Yields a new connection that is none of the pool's. Raises Unavailable when there is none, or it fails."""
        connection = None
        try:
            connection = await self._new_connection()
            yield connection
        except Exception as error:
            raise Unavailable(_explain(error)) from None
        finally:
            if connection is not None:
                connection.terminate()

    @property
    def idle(self) -> int:
        """How many connections nobody uses."""
        return len(self._idle)

    @property
    def used(self) -> int:
        """How many connections are in use, those that are being closed included."""
        return self._open - self._connecting - len(self._idle)

    @property
    def pending(self) -> int:
        """How many wait for a connection."""
        return sum(not waiter.done() for waiter in self._waiting)

    def close_idle(self) -> None:
        """Closes connections that have been idle for long, down to the minimum."""
        long_ago = self._loop.time() - CLOSE_IDLE_SECONDS
        while len(self._idle) > self._smallest and self._idle[0][1] < long_ago:
            self._close(self._idle.pop(0)[0])

    async def _acquire(self) -> Any:
        while True:
            if (connection := await self._from_idle()) is not None:
                return connection
            if self._open < self.largest and self._loop.time() >= self._retry_at:
                if (connection := await self._connect()) is not None:
                    return connection
            elif self._open == 0:
                raise Unavailable(self._failure)
            else:
                await self._wait()

    async def _from_idle(self) -> Any:
        """Returns the most recently used idle connection, so that the others stay idle; None when there is none."""
        while self._idle:
            connection, used_at = self._idle.pop()
            if connection.is_closed():
                self._terminate(connection)
            elif self._loop.time() - used_at < IDLE_SECONDS or await self._answers(connection):
                return connection
        return None

    async def _answers(self, connection: Any) -> bool:
        try:
            await connection.execute("select 1", timeout=PING_SECONDS)
        except (*LOST, asyncpg.PostgresError):
            self._terminate(connection)
            for neighbour, _ in self._idle:  # idle for at least as long
                self._terminate(neighbour)
            self._idle.clear()
            return False
        except BaseException:
            self._close(connection)
            raise
        return True

    async def _connect(self) -> Any:
        """Returns a new connection; None when that fails, and then `_failure` says why."""
        self._open += 1
        self._connecting += 1
        connection = None
        try:
            connection = await self._new_connection()
            # PostgreSQL builds the JSON, whose bytes are passed through. That of a list is put together as text, and is
            # sent as varchar: a cast to json would parse it, a third of the list's time.
            for name in ("json", "varchar"):
                await connection.set_type_codec(
                    name, schema="pg_catalog", encoder=bytes, decoder=bytes, format="binary"
                )
            self.is_citus = await connection.fetchval("select current_setting('citus.version', true)") is not None
        except BaseException as error:
            self._connecting -= 1
            self._terminate(connection)
            if not isinstance(error, Exception):
                raise
            self._note_failure(_explain(error))  # any failure to connect is an outage
            return None
        self._connecting -= 1
        if self._failure:
            logger.warning("the database takes connections again: %s", self._address)
            self._failure = ""
        return connection

    async def _new_connection(self) -> Any:
        options = self._address.options
        name = options.get("application_name") or options.get("fallback_application_name") or "task-service"
        # timestamps in responses are in UTC; PgBouncer passes both of these on
        settings = {"application_name": name, "timezone": "UTC"}
        if "options" in options:
            settings["options"] = options["options"]
        if self._tls is None:
            self._tls = self._address.tls()  # once: it reads all certificate authorities
        return await connect(
            self._address,
            self._tls,
            statement_cache_size=self._statement_cache,
            server_settings=settings,
        )

    def _note_failure(self, failure: str) -> None:
        self._retry_at = self._loop.time() + RETRY_SECONDS
        if failure != self._failure:  # log a cause once, not at every attempt
            others = self._open - self._connecting
            what = "refuses a further connection and the service works with those it has" if others else "is away"
            logger.warning("the database %s, trying again every second: %s: %s", what, self._address, failure)
            self._failure = failure

    async def _wait(self) -> None:
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._wake_next()  # pass the free connection on
            raise

    def _wake_next(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _put_back(self, connection: Any) -> None:
        if self._is_closed:
            self._close(connection)
        else:
            self._idle.append((connection, self._loop.time()))
            self._wake_next()

    def _after_error(self, connection: Any, error: BaseException) -> BaseException:
        """Keeps the connection if it is still usable after the error; returns the error to raise."""
        cause = error.__cause__
        is_node_s = isinstance(error, NODE_LOST) and not connection.is_closed()
        if isinstance(error, asyncpg.PostgresError) and (is_node_s or not isinstance(error, LOST)):
            self._close(connection) if connection.is_in_transaction() else self._put_back(connection)
            error.detail = None  # it quotes the row, and user data must not be logged
            if is_node_s:
                return error
        elif isinstance(error, LOST):
            self._terminate(connection)
        else:  # cancelled: closing waits until the server has stopped the statement
            self._close(connection)
        if isinstance(error, (asyncio.CancelledError, *LOST)):
            self._idle = [(neighbour, -math.inf) for neighbour, _ in self._idle]  # pinged next: they may be dead too
        if isinstance(cause, asyncpg.TransactionTimeoutError):
            return cause  # the server rolled back, then closed the connection
        return _as_unavailable(error)

    def _close(self, connection: Any) -> None:
        task = self._loop.create_task(self._close_in_time(connection))
        self._tasks.add(task)  # the event loop keeps only weak references to tasks
        task.add_done_callback(self._tasks.discard)

    async def _close_in_time(self, connection: Any) -> None:
        try:
            await connection.close(timeout=CLOSE_SECONDS)
        except (*LOST, asyncpg.PostgresError) as error:
            logger.debug("a connection did not close cleanly: %s", _explain(error))
        finally:
            self._terminate(connection)

    def _terminate(self, connection: Any) -> None:
        """Closes a connection at once, and makes room for another."""
        if connection is not None:
            connection.terminate()
        self._open -= 1
        self._wake_next()


def _explain(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _as_unavailable(error: BaseException) -> BaseException:
    """Returns the error as Unavailable if it is an outage, else unchanged."""
    if isinstance(error, POOLER):
        return Unavailable(f"{_explain(error)}. Is this a transaction-mode pooler? Set DB_STATEMENT_CACHE=0")
    if isinstance(error, BEHIND_SCHEMA):
        return SchemaBehind(f"{_explain(error)}. Run `python -m service migrate`")
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return RightMissing(f"{error}: grant it to the user of DATABASE_URL")
    return Unavailable(_explain(error)) if isinstance(error, (*LOST, *OUTAGE)) else error
