"""How calls share a round trip.

Calls of the same statement that wait in the same turn of the event loop go to PostgreSQL together: one network round
trip, one transaction, an execution and a row for each. A call that is alone leaves at once.
What has to be right about it, and is:

- A batch of writes is sorted by user, so that two batches lock the users' accounts in the same order.
- When an execution fails, the whole batch is rolled back; its calls are then run one by one, and only the guilty fails.
- A connection that is lost while a write is under way leaves the outcome unknown: the caller is told so, and nothing
  is repeated. A read is repeated once.
- Each statement has its own queue, and only some of the few batches in flight may be alike, so that cheap statements do
  not wait behind a dear one, nor reads behind writes that wait for a lock; and one that takes long stops counting, so
  that several dear ones at once hold up the rest for less than a second. The queue whose call is oldest is next.
- A batch that meets a lock which somebody holds is rolled back after half a second, and its calls are run each alone;
  from then on only the users whose account is locked wait, and their further writes are held back.
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

# On two cores. A batch that PostgreSQL works on keeps it busy while Python makes the answers of another; with more of
# them its processes take the processor from Python. Many small ones cost round trips, few large ones cost waiting.
IN_FLIGHT = 3  # batches
ALIKE = 2  # of those: of one statement, and of all that write
FULL = 16  # calls in a batch; when very many wait, each batch takes its share of them
LARGEST = 64
LARGE_BYTES = 256 * 1024  # of a list: about 700 tasks, which take PostgreSQL ten times as long as 50
LARGE_LISTS = 10_000  # so many are remembered
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
    started: float  # time.monotonic()
    waits: list[float]  # the request's

    def succeed(self, row: asyncpg.Record) -> None:
        """Gives the caller the row, unless it has an answer or has gone."""
        if not self.answer.done():
            self.waits.append((time.monotonic() - self.started) * 1000)
            self.answer.set_result(row)

    def fail(self, error: BaseException) -> None:
        """Tells the caller what went wrong, unless it has an answer or has gone."""
        if not self.answer.done():
            self.waits.append((time.monotonic() - self.started) * 1000)
            self.answer.set_exception(error)


@dataclass(slots=True, eq=False)
class _Queue:
    statement: Statement
    waiting: list[_Call] = field(default_factory=list)
    under_way: int = 0  # batches
    slow: int = 0  # how many of those are

    def free(self, held_back: set[str]) -> list[_Call]:
        """Returns the calls that may go, the oldest first: no writes of users who are held back."""
        if not self.statement.writes or not held_back:
            return self.waiting[:]
        return [call for call in self.waiting if call.arguments[0] not in held_back]

    def take(self, calls: list[_Call]) -> None:
        """Takes these calls out; they wait no longer."""
        sent = set(calls)
        self.waiting = [call for call in self.waiting if call not in sent]


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
        self._in_flight = {False: 0, True: 0}  # how many of those are not slow: of reads, and of writes
        self._is_scheduled = False
        self.large_lists: set[str] = set()  # the users whose list was large when it was last made
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

    def fetch(self, statement: Statement, *arguments: Any) -> asyncio.Future[asyncpg.Record]:
        """Runs the statement; its row is to be awaited.

        That raises Unavailable when the database does not answer within DEADLINE, and asyncpg.PostgresError for what
        the statement itself did wrong.
        """
        queue = self._queues.get(statement)
        if queue is None:
            queue = self._queues[statement] = _Queue(statement)
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._send)
        answer = self._loop.create_future()
        queue.waiting.append(_Call(arguments, answer, time.monotonic(), waited.get()))
        return answer

    def note_size(self, user_id: str, size: int) -> None:
        """Remembers whether the user's list, of so many bytes, is large."""
        if size < LARGE_BYTES:
            self.large_lists.discard(user_id)
        elif len(self.large_lists) < LARGE_LISTS:
            self.large_lists.add(user_id)

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
        started = time.monotonic()
        until = started + DEADLINE
        try:
            async with (
                asyncio.timeout(DEADLINE),
                self._turns.setdefault(user_id, asyncio.Lock()),  # a user who waits for himself takes no connection
                self._transactions,
            ):
                patience = f"{max(1, int(1000 * (until - time.monotonic())))}ms"
                return await self._pool.transact(lock.sql, (user_id, patience), statement.sql, executions, is_kept)
        except TimeoutError:
            raise Unavailable("no answer in time") from None
        except asyncpg.LockNotAvailableError:
            raise Unavailable("somebody holds a lock on the user's account or task") from None
        finally:
            waited.get().append((time.monotonic() - started) * 1000)

    def _send(self) -> None:
        self._is_scheduled = False
        held_back = self._held_back()
        ready = [(queue, calls) for queue in self._queues.values() if (calls := queue.free(held_back))]
        for queue, calls in sorted(ready, key=_age):
            while calls and self._has_room(queue):
                size = min(LARGEST, max(FULL, len(calls) // ALIKE))
                self._start(queue, calls[:size])
                del calls[:size]

    def _held_back(self) -> set[str]:
        """Returns the users whose further writes wait here, since one of theirs seems to wait for a lock."""
        return {
            call.arguments[0]
            for batch in self._under_way
            if batch.is_slow and batch.queue.statement.writes
            for call in batch.calls
            if not call.answer.done()
        }

    def _has_room(self, queue: _Queue) -> bool:
        """Returns whether one more batch of this queue may go."""
        return (
            sum(self._in_flight.values()) < IN_FLIGHT
            and queue.under_way - min(queue.slow, SLOW_BATCHES) < ALIKE
            and (not queue.statement.writes or self._in_flight[True] < ALIKE)
        )

    def _start(self, queue: _Queue, calls: list[_Call]) -> None:
        queue.take(calls)
        queue.under_way += 1
        self._in_flight[queue.statement.writes] += 1
        batch = _Batch(queue, calls, time.monotonic())
        self._under_way.add(batch)
        self._loop.create_task(self._run(batch))  # the loop keeps it until it begins, and then the batch does

    async def _run(self, batch: _Batch) -> None:
        batch.task = asyncio.current_task()  # not before: one that is cancelled before it begins never gets to its end
        try:
            await self._answer(batch.queue.statement, batch.calls)
        finally:
            self._under_way.remove(batch)
            batch.queue.under_way -= 1
            if batch.is_slow:
                batch.queue.slow -= 1
            else:
                self._in_flight[batch.queue.statement.writes] -= 1
            self._send()

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
                call.succeed(row)

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
        left = calls[0].started + DEADLINE - time.monotonic()
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
            now = time.monotonic()
            for queue in self._queues.values():
                late = [call for call in queue.waiting if now - call.started > DEADLINE]
                _fail(late, Unavailable("no connection came free in time"))
                queue.waiting = [call for call in queue.waiting if now - call.started <= DEADLINE]
            for batch in self._under_way:
                late = [call for call in batch.calls if now - call.started > DEADLINE]
                _fail(late, Unavailable("no answer in time"))
                if all(call.answer.done() for call in batch.calls) and batch.task is not None:
                    batch.task.cancel()  # nobody waits for it any more; the server is told
                elif not batch.is_slow and now - batch.started > SLOW:
                    batch.is_slow = True
                    batch.queue.slow += 1
                    self._in_flight[batch.queue.statement.writes] -= 1
            self._send()
            self._pool.close_idle()


def _age(ready: tuple[_Queue, list[_Call]]) -> float:
    return ready[1][0].started


def _fail(calls: list[_Call], error: BaseException) -> None:
    for call in calls:
        call.fail(error)
