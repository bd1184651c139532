"""The pool, and how calls share a round trip.

Calls of the same statement that wait in the same turn of the event loop go to PostgreSQL together: one network round
trip, one implicit transaction, an execution and a row for each. A call that is alone leaves at once.
What has to be right about it, and is:

- A batch of writes is sorted by user, so that two batches lock the users' accounts in the same order.
- When an execution fails, the whole batch is rolled back; its calls are then run one by one, and only the guilty fails.
- A connection that is lost while a write is under way leaves the outcome unknown: the caller is told so, and nothing
  is repeated. A read is repeated once.
- Each statement has its own queue and few batches in flight, so that cheap ones do not wait behind dear ones.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import asyncpg

log = logging.getLogger(__name__)

DEADLINE = 4.5  # seconds from a call to its answer, whatever the database does
CONNECT_SECONDS = 3
IDLE_SECONDS = 30  # a connection that sat longer is pinged: a serverless database may have closed it
PING_SECONDS = 1
CLOSE_SECONDS = 2
IN_FLIGHT = 2  # batches per statement
BATCH = 64  # calls per batch

# libpq's own options, which asyncpg would send to the server as settings
NOT_FOR_ASYNCPG = {"channel_binding", "connect_timeout"}

LOST = (
    OSError,  # TimeoutError and the refused connection among them
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,  # starting up, shutting down, cancelled
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ReadOnlySQLTransactionError,  # a failover left us with the standby
)
BEHIND_SCHEMA = (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError)
POOLER = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)

# Milliseconds that the current request has waited for the database; the log and Server-Timing tell them.
waited: ContextVar[list[float]] = ContextVar("waited")


class Unavailable(Exception):
    """The database did not answer; the message is for the log."""


class SchemaBehind(Unavailable):
    """The database answers, and lacks a table or a column: it wants `python -m service migrate`."""


@dataclass(frozen=True, eq=False)
class Statement:
    """One file of `sql/`: its name, its text, and whether it locks and writes. It returns exactly one row."""

    name: str
    sql: str
    writes: bool


@dataclass(slots=True)
class _Call:
    arguments: tuple[Any, ...]
    answer: asyncio.Future[Any]
    deadline: float


@dataclass(slots=True)
class _Queue:
    statement: Statement
    waiting: list[_Call] = field(default_factory=list)
    in_flight: int = 0


class _Connection(asyncpg.Connection):
    used_at = 0.0  # the event loop's time


async def _prepare_connection(connection: Any) -> None:
    # PostgreSQL makes the JSON, and its bytes are passed on as they are
    await connection.set_type_codec("json", schema="pg_catalog", encoder=bytes, decoder=bytes, format="binary")
    await _note_use(connection)


async def _note_use(connection: Any) -> None:
    connection.used_at = asyncio.get_running_loop().time()


class Database:
    """The pool of connections to one PostgreSQL."""

    def __init__(self, url: str, pool_min: int, pool_max: int, statement_cache: int) -> None:
        self._url = url
        self._sizes = pool_min, pool_max
        self._statement_cache = statement_cache
        self._pool: asyncpg.Pool | None = None
        self._queues: dict[Statement, _Queue] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Opens the pool. When the database is away, returns all the same and goes on trying once a second."""
        try:
            await self._connect()
        except LOST as error:
            log.warning("the database is away, trying again every second: %s", _explain(error))
            self._start(self._connect_later())

    async def close(self) -> None:
        """Closes the pool once what it has begun is finished, or after a few seconds without."""
        pool, self._pool = self._pool, None
        for task in self._tasks:
            if pool is None:
                task.cancel()
        if pool is not None:
            try:
                await asyncio.wait_for(pool.close(), CLOSE_SECONDS)
            except TimeoutError:
                pool.terminate()

    async def fetch(self, statement: Statement, *arguments: Any) -> Any:
        """Runs the statement; returns the first column of its row.

        Raises Unavailable when the database does not answer within DEADLINE, and asyncpg.PostgresError for what the
        statement itself did wrong. `arguments[0]` of a statement that writes is the user.
        """
        if self._pool is None:
            raise Unavailable("no connection yet")
        loop = asyncio.get_running_loop()
        queue = self._queues.get(statement)
        if queue is None:
            queue = self._queues[statement] = _Queue(statement)
        if not queue.waiting:
            loop.call_soon(self._send, queue)
        call = _Call(arguments, loop.create_future(), loop.time() + DEADLINE)
        queue.waiting.append(call)
        started = time.perf_counter()
        try:
            return await call.answer
        finally:
            waited.get().append((time.perf_counter() - started) * 1000)

    async def _connect(self) -> None:
        parts = urlsplit(self._url)
        query = [(name, value) for name, value in parse_qsl(parts.query) if name not in NOT_FOR_ASYNCPG]
        self._pool = await asyncpg.create_pool(
            parts._replace(query=urlencode(query)).geturl(),
            min_size=self._sizes[0],
            max_size=self._sizes[1],
            statement_cache_size=self._statement_cache,
            timeout=CONNECT_SECONDS,
            connection_class=_Connection,
            init=_prepare_connection,
            reset=_note_use,  # instead of a round trip: no statement leaves anything behind in its session
            # UTC is what the contract promises of timestamps; both settings pass through PgBouncer
            server_settings={"application_name": "task-service", "timezone": "UTC"},
        )

    async def _connect_later(self) -> None:
        while self._pool is None:
            await asyncio.sleep(1)
            try:
                await self._connect()
                log.warning("the database is back")
            except LOST as error:
                log.debug("the database is still away: %s", _explain(error))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the event loop itself keeps no task alive
        task.add_done_callback(self._tasks.discard)

    def _send(self, queue: _Queue) -> None:
        while queue.waiting and queue.in_flight < IN_FLIGHT:
            batch = queue.waiting[:BATCH]
            del queue.waiting[:BATCH]
            queue.in_flight += 1
            self._start(self._run(queue, batch))

    async def _run(self, queue: _Queue, batch: list[_Call]) -> None:
        try:
            await self._answer(queue.statement, batch)
        finally:
            queue.in_flight -= 1
            self._send(queue)

    async def _answer(self, statement: Statement, batch: list[_Call]) -> None:
        if statement.writes:
            batch.sort(key=lambda call: call.arguments[0])  # one order of locks for all
        try:
            rows = await self._rows(statement, batch)
        except LOST as error:
            _fail(batch, error)
        except asyncpg.PostgresError as error:
            if len(batch) == 1:
                _fail(batch, error)
            else:
                for call in batch:
                    await self._answer(statement, [call])
        except BaseException as error:
            _fail(batch, error)
            raise
        else:
            for call, row in zip(batch, rows, strict=True):
                if not call.answer.done():
                    call.answer.set_result(row[0])

    async def _rows(self, statement: Statement, batch: list[_Call]) -> Sequence[asyncpg.Record]:
        deadline = min(call.deadline for call in batch)
        try:
            return await self._execute(statement, batch, deadline)
        except LOST:
            if statement.writes:
                raise
            return await self._execute(statement, batch, deadline)

    async def _execute(self, statement: Statement, batch: list[_Call], deadline: float) -> Sequence[asyncpg.Record]:
        pool = self._pool
        if pool is None:
            raise asyncpg.InterfaceError("the pool is closed")
        async with asyncio.timeout_at(deadline):
            connection = await self._acquire(pool)
            try:
                rows: list[asyncpg.Record] = await connection.fetchmany(
                    statement.sql, [call.arguments for call in batch]
                )
            except BaseException:
                # behind the callers' backs: it may have to wait until the server has confirmed a cancellation
                self._start(_release(pool, connection))
                raise
        await pool.release(connection)
        return rows

    async def _acquire(self, pool: asyncpg.Pool) -> Any:
        connection: Any = await pool.acquire()
        if asyncio.get_running_loop().time() - connection.used_at < IDLE_SECONDS:
            return connection
        try:
            await connection.execute("select 1", timeout=PING_SECONDS)
            return connection
        except LOST:
            connection.terminate()
            await pool.expire_connections()  # its neighbours sat idle just as long
        except BaseException:
            self._start(_release(pool, connection))
            raise
        await _release(pool, connection)
        return await pool.acquire()


async def _release(pool: asyncpg.Pool, connection: Any) -> None:
    try:
        await pool.release(connection, timeout=CLOSE_SECONDS)
    except LOST as error:
        log.debug("a connection was given up: %s", _explain(error))


def _fail(batch: list[_Call], error: BaseException) -> None:
    for call in batch:
        if not call.answer.done():
            call.answer.set_exception(_translated(error))


def _explain(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _translated(error: BaseException) -> BaseException:
    if isinstance(error, asyncpg.PostgresError):
        error.detail = None  # it quotes the row, and nobody's text belongs in a log
    if isinstance(error, POOLER):
        return Unavailable(f"{_explain(error)}. Is this a transaction-mode pooler? Set DB_STATEMENT_CACHE=0")
    if isinstance(error, BEHIND_SCHEMA):
        return SchemaBehind(f"{_explain(error)}. Run `python -m service migrate`")
    if isinstance(error, LOST):
        return Unavailable(_explain(error))
    return error
