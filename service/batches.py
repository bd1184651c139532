"""How calls share a round trip.

Calls of the same statement that wait in the same turn of the event loop go to PostgreSQL together: one network round
trip, one transaction, an execution and a row for each. A call that is alone leaves at once.
What has to be right about it, and is:

- A batch of writes is sorted by user, so that two batches lock the users' accounts in the same order.
- When an execution fails, the whole batch is rolled back; its calls are then run one by one, and only the guilty fails.
- A connection that is lost while a write is under way leaves the outcome unknown: the caller is told so, and nothing
  is repeated. A read is repeated once.
- Each statement has its own queue and few batches in flight, so that cheap ones do not wait behind dear ones.
- A batch that meets a lock which somebody holds is rolled back after half a second, and its calls are run each alone;
  only the users whose account is locked wait, and their further writes are held back.
- Every call ends within DEADLINE, whatever the database does.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import asyncpg

from service.database import Pool, Unavailable

IN_FLIGHT = 2  # batches per statement
BATCH = 64  # calls per batch
DEADLINE = 4.5  # seconds from a call to its answer
LOCK = 0.5  # seconds that calls which went together wait for a lock
SLOW = 0.5  # seconds after which a batch no longer counts as in flight
SLOW_BATCHES = 4  # of one statement; beyond them, slow ones count: dear statements must not take every connection
TRANSACTIONS = 4  # at once, so that those that wait for a lock leave connections to the rest
LOOK = 0.25  # seconds between two looks at what takes long

# Milliseconds that the current request has waited for the database; the log and Server-Timing tell them.
waited: ContextVar[list[float]] = ContextVar("waited")


@dataclass(frozen=True, eq=False)
class Statement:
    """One file of `sql/`: its name, its text, and whether it locks and writes. It returns exactly one row.

    The first argument of one that writes is the user; its last, which is added here, how long to wait for a lock.
    """

    name: str
    sql: str
    writes: bool


@dataclass(slots=True, eq=False)
class _Call:
    arguments: tuple[Any, ...]
    answer: asyncio.Future[asyncpg.Record]
    started: float  # the event loop's time


@dataclass(slots=True, eq=False)
class _Queue:
    statement: Statement
    waiting: list[_Call] = field(default_factory=list)
    in_flight: int = 0
    slow: int = 0
    is_scheduled: bool = False


@dataclass(slots=True, eq=False)
class _Batch:
    queue: _Queue
    calls: list[_Call]
    started: float
    is_slow: bool = False
    task: asyncio.Task[None] | None = None


class Batches:
    """The calls that wait, and those that are under way."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._queues: dict[Statement, _Queue] = {}
        self._under_way: set[_Batch] = set()
        self._watch: asyncio.Task[None] | None = None
        self._transactions = asyncio.Semaphore(TRANSACTIONS)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # gone when nobody waits
        self._loop: asyncio.AbstractEventLoop

    async def open(self) -> None:
        """Opens the pool; goes on without the database when it is away."""
        self._loop = asyncio.get_running_loop()  # to ask for it costs a system call
        await self._pool.open()
        self._watch = self._loop.create_task(self._watch_the_clock())

    async def close(self) -> None:
        """Closes the pool; what is still under way is given up after a few seconds."""
        if self._watch is not None:
            self._watch.cancel()
        await self._pool.close()

    async def fetch(self, statement: Statement, *arguments: Any) -> asyncpg.Record:
        """Runs the statement; returns its row.

        Raises Unavailable when the database does not answer within DEADLINE, and asyncpg.PostgresError for what the
        statement itself did wrong.
        """
        queue = self._queues.get(statement)
        if queue is None:
            queue = self._queues[statement] = _Queue(statement)
        if not queue.is_scheduled:
            queue.is_scheduled = True
            self._loop.call_soon(self._send, queue)
        call = _Call(arguments, self._loop.create_future(), self._loop.time())
        queue.waiting.append(call)
        started = time.perf_counter()
        try:
            return await call.answer
        finally:
            waited.get().append((time.perf_counter() - started) * 1000)

    async def transact(
        self,
        lock: Statement,
        statement: Statement,
        executions: Sequence[tuple[Any, ...]],
        is_kept: Callable[[Sequence[asyncpg.Record]], bool],
    ) -> Sequence[asyncpg.Record]:
        """Locks the account of the user, who is the first argument of all, and runs the executions in their order.

        Returns their rows. Everything is rolled back unless is_kept says of these that it stays. Raises Unavailable
        when that is not done within DEADLINE, and asyncpg.PostgresError when an execution failed.
        """
        user_id = executions[0][0]
        started, until = time.perf_counter(), self._loop.time() + DEADLINE
        try:
            async with (
                asyncio.timeout_at(until),
                self._turns.setdefault(user_id, asyncio.Lock()),  # a user who waits for himself takes no connection
                self._transactions,
            ):
                patience = f"{max(1, int(1000 * (until - self._loop.time())))}ms"
                return await self._pool.transact(lock.sql, (user_id, patience), statement.sql, executions, is_kept)
        except TimeoutError:
            raise Unavailable("no answer in time") from None
        except asyncpg.LockNotAvailableError:
            raise Unavailable("somebody holds a lock on the user's account or task") from None
        finally:
            waited.get().append((time.perf_counter() - started) * 1000)

    def _send(self, queue: _Queue) -> None:
        queue.is_scheduled = False
        while queue.in_flight < IN_FLIGHT and (calls := self._next_calls(queue)):
            queue.in_flight += 1
            batch = _Batch(queue, calls, self._loop.time())
            self._under_way.add(batch)
            batch.task = self._loop.create_task(self._run(batch))

    def _next_calls(self, queue: _Queue) -> list[_Call]:
        held_back = {
            call.arguments[0]
            for batch in self._under_way
            if batch.is_slow and batch.queue.statement.writes
            for call in batch.calls
            if not call.answer.done()
        }
        if held_back and queue.statement.writes:
            calls = [call for call in queue.waiting if call.arguments[0] not in held_back][:BATCH]
            sent = set(calls)
            queue.waiting = [call for call in queue.waiting if call not in sent]
        else:
            calls = queue.waiting[:BATCH]
            del queue.waiting[:BATCH]
        return calls

    async def _run(self, batch: _Batch) -> None:
        try:
            await self._answer(batch.queue.statement, batch.calls)
        finally:
            self._under_way.remove(batch)
            if batch.is_slow:
                batch.queue.slow -= 1
                for queue in self._queues.values():  # its users' calls may wait in any
                    self._send(queue)
            else:
                batch.queue.in_flight -= 1
                self._send(batch.queue)

    async def _answer(self, statement: Statement, calls: list[_Call]) -> None:
        if statement.writes:
            calls.sort(key=lambda call: call.arguments[0])  # one order of locks for all
        try:
            rows = await self._rows(statement, self._executions(statement, calls))
        except asyncpg.PostgresError as error:
            await self._sort_out(statement, calls, error)
        except BaseException as error:
            _fail(calls, error)
            if not isinstance(error, Unavailable):
                raise
        else:
            for call, row in zip(calls, rows, strict=True):
                if not call.answer.done():
                    call.answer.set_result(row)

    async def _sort_out(self, statement: Statement, calls: list[_Call], error: asyncpg.PostgresError) -> None:
        """Nothing has happened: tells the call that is to blame, or finds it by running each alone."""
        is_locked = isinstance(error, asyncpg.LockNotAvailableError)
        if len(calls) == 1:
            _fail(calls, Unavailable("somebody holds a lock on the user's account or task") if is_locked else error)
        elif is_locked:
            await asyncio.gather(*(self._answer(statement, [call]) for call in calls))  # one of them will wait
        else:
            for call in calls:
                await self._answer(statement, [call])

    def _executions(self, statement: Statement, calls: list[_Call]) -> list[tuple[Any, ...]]:
        if not statement.writes:
            return [call.arguments for call in calls]
        left = calls[0].started + DEADLINE - self._loop.time()
        patience = f"{max(1, int(1000 * (left if len(calls) == 1 else LOCK)))}ms"
        return [(*call.arguments, patience) for call in calls]

    async def _rows(self, statement: Statement, executions: list[tuple[Any, ...]]) -> Any:
        try:
            return await self._pool.run(statement.sql, executions)
        except Unavailable:
            if statement.writes:
                raise
            return await self._pool.run(statement.sql, executions)

    async def _watch_the_clock(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            now = self._loop.time()
            for queue in self._queues.values():
                late = [call for call in queue.waiting if now - call.started > DEADLINE]
                _fail(late, Unavailable("no connection came free in time"))
                queue.waiting = [call for call in queue.waiting if now - call.started <= DEADLINE]
            for batch in self._under_way:
                late = [call for call in batch.calls if now - call.started > DEADLINE]
                _fail(late, Unavailable("no answer in time"))
                if all(call.answer.done() for call in batch.calls) and batch.task is not None:
                    batch.task.cancel()  # nobody waits for it any more; the server is told
                elif not batch.is_slow and now - batch.started > SLOW and batch.queue.slow < SLOW_BATCHES:
                    batch.is_slow = True
                    batch.queue.slow += 1
                    batch.queue.in_flight -= 1
            for queue in self._queues.values():
                self._send(queue)


def _fail(calls: list[_Call], error: BaseException) -> None:
    for call in calls:
        if not call.answer.done():
            call.answer.set_exception(error)
