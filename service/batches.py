"""Which calls go to the database, when, and which of them share a round trip.

Calls of the same statement that wait in the same turn of the event loop go to PostgreSQL together: one network round
trip, one transaction, an execution and a row for each. A call that is alone leaves at once.

One idea keeps users out of each other's way: **a user's calls form a line, and the lines take turns.** A user has a
line for reads and one for writes; a line has one round trip under way at a time. There are three lanes:

- SHARED: cheap calls of many lines travel together, up to TOGETHER seconds of work in a round trip.
- ALONE: a line whose calls are dearer than that has round trips of its own.
- SLOW: so has a line whose calls do not end within SOON. Only here may a round trip last until the deadline.

What is under way for longer than SOON in one of the first two lanes is taken back (a read is cancelled, a write waits
no longer than that for a lock) and goes on in the next one: what travelled together goes on alone, where the guilty
shows itself. So a large list, a dear search, a locked account and a statement that the server stops are one case: the
user whose call it was waits for it, and the others lose SOON once. A line that is cheap again goes back.

A call that cannot be in time is refused at once, so that under any load what is begun is also finished.

What else has to be right about a shared round trip:

- A batch of writes is sorted by user, so that two batches lock the users' accounts in the same order.
- When an execution fails, the whole batch is rolled back; each of its calls is then run alone, and the guilty fails.
- A connection that is lost while a write is under way leaves the outcome unknown: the caller is told so, and nothing
  is repeated. A read is repeated once.
- Every call ends within DEADLINE, whatever the database does.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from service.database import Pool, Unavailable

SHARED, ALONE, SLOW = range(3)

# On two cores. A batch that PostgreSQL works on keeps it busy while Python makes the answers of another; with more of
# them its processes take the processor from Python. Many small ones cost round trips, few large ones cost waiting.
IN_FLIGHT = 3  # shared round trips
ALIKE = 2  # of those: that read, and that write; and as many that travel alone
FULL = 16  # calls in a batch; when very many wait, each batch takes its share of them
LARGEST = 64

TOGETHER = 0.03  # seconds of work in a shared round trip; a list of 10,000 tasks alone takes as long
CHEAP = 0.0003  # seconds that a call costs as long as nothing else is known
WORTH_NOTING = TOGETHER / FULL  # a cost below that is as good as cheap
FORGIVEN = 8  # a line's cost falls to this part of it with each cheaper call, so that who alternates is not forgiven
SOON = 0.4  # seconds
SUSPECTED = 0.1  # seconds for one that was taken back already: most have only travelled with the guilty
DEADLINE = 4.5  # seconds from a call to its answer
LONGEST_WAIT = 3.0  # seconds; a call that would have to wait longer for its turn is refused
LOOK = 0.05  # seconds between two looks at what takes long
REMEMBERED = 10_000  # lines that were dear when they were last used

STOPPED = (asyncpg.QueryCanceledError, asyncpg.TransactionTimeoutError)
TOO_LATE = "its turn would come, or came, too late"

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


@dataclass(frozen=True, eq=False)
class Transaction(Statement):
    """A statement that is run several times in a transaction of its own, which begins with the statement `lock`.

    Its arguments are the user, the executions, and a function that says of their rows whether anything is kept. What it
    returns are these rows.
    """

    lock: str


@dataclass(slots=True, eq=False)
class _Line:
    """The calls of one user that read, or that write, in their order."""

    key: tuple[bool, Any]
    calls: "deque[_Call]" = field(default_factory=deque)
    cost: float = CHEAP  # seconds that one of them takes, as far as is known
    lane: int = SHARED
    place: int = 0  # among the lines that wait
    is_under_way: bool = False


@dataclass(slots=True, eq=False)
class _Call:
    line: _Line
    statement: Statement
    arguments: tuple[Any, ...]
    answer: asyncio.Future[Any]
    started: float  # time.monotonic()
    waits: list[float]  # the request's
    is_suspect: bool = False  # it was taken back once, and goes on alone

    def goes_with(self, statement: Statement) -> bool:
        """Returns whether it may share a round trip of this statement."""
        return self.statement is statement and not self.is_suspect

    def succeed(self, row: Any) -> None:
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
class _Lane:
    """The lines that wait for round trips of one kind, by the statement of their next call."""

    width: int  # round trips at once
    queues: dict[Statement, deque[_Line]] = field(default_factory=dict)
    waiting: int = 0  # lines
    under_way: int = 0  # round trips

    def add(self, line: _Line) -> None:
        """Lets the line wait, behind the others."""
        statement = line.calls[0].statement
        if (queue := self.queues.get(statement)) is None:
            queue = self.queues[statement] = deque()
        queue.append(line)
        self.waiting += 1

    def first(self) -> deque[_Line]:
        """Returns the queue whose first line has waited longest. Raises ValueError when none is waiting."""
        return min((queue for queue in self.queues.values() if queue), key=_place)

    def pop(self, queue: deque[_Line]) -> _Line:
        """Returns the first line of the queue, which waits no longer."""
        self.waiting -= 1
        return queue.popleft()


@dataclass(slots=True, eq=False)
class _Trip:
    """A round trip that is under way."""

    lane: int
    statement: Statement
    calls: list[_Call]
    started: float
    looks: int = (
        0  # at it while it was under way; a busy event loop makes them fewer, and they count no time but its own
    )
    task: asyncio.Task[None] | None = None

    def longest(self) -> float:
        """Returns the seconds that it may last until it is taken back."""
        if self.lane == SLOW:
            return self.calls[0].started + DEADLINE - self.started
        return SUSPECTED if self.calls[0].is_suspect else SOON


class Batches:
    """The calls that wait, and those that are under way."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        spare = max(1, (pool.largest - IN_FLIGHT) // 3)  # locks and dear statements must not take every connection
        self._lanes = {writes: (_Lane(ALIKE), _Lane(ALIKE), _Lane(spare)) for writes in (False, True)}
        self._lines: dict[tuple[bool, Any], _Line] = {}  # those that have calls
        self._dear: dict[tuple[bool, Any], _Line] = {}  # and those that were not cheap when they last had one
        self._trips: set[_Trip] = set()
        self._places = 0
        self._round_trip = TOGETHER  # seconds that the cheapest of the latest round trips took
        self._answered = 0.0  # when the database answered last; time.monotonic()
        self._lag = 0.0  # seconds that whatever happens waits for a busy event loop
        self._is_scheduled = False
        self._watch: asyncio.Task[None] | None = None
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

    def fetch(self, statement: Statement, *arguments: Any) -> asyncio.Future[Any]:
        """Runs the statement; its row is to be awaited.

        That raises Unavailable when the database does not answer within DEADLINE, or cannot be expected to, and
        asyncpg.PostgresError for what the statement itself did wrong.
        """
        key = statement.writes, arguments[0] if arguments else None
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = self._dear.pop(key) if key in self._dear else _Line(key)
        call = _Call(line, statement, arguments, self._loop.create_future(), time.monotonic(), waited.get())
        if self._expected_wait(line) > LONGEST_WAIT:
            call.fail(Unavailable(TOO_LATE))
            if not line.calls and not line.is_under_way:
                self._let_go(line)
            return call.answer
        line.calls.append(call)
        if len(line.calls) == 1 and not line.is_under_way:
            self._let_wait(line)
            if not self._is_scheduled:
                self._is_scheduled = True
                self._loop.call_soon(self._send)
        return call.answer

    def _expected_wait(self, line: _Line) -> float:
        """Returns the seconds until the turn of one more call: a round of the lane for each that is before it."""
        lane = self._lanes[line.key[0]][line.lane]
        round_ = line.cost * lane.waiting / lane.width
        return round_ + (len(line.calls) + line.is_under_way) * max(round_, line.cost)

    def _let_wait(self, line: _Line) -> None:
        self._places += 1
        line.place = self._places
        lane = max(line.lane, ALONE) if line.calls[0].is_suspect else line.lane
        self._lanes[line.key[0]][lane].add(line)

    def _send(self) -> None:
        self._is_scheduled = False
        for number in (SHARED, ALONE, SLOW):
            lanes = [lanes[number] for lanes in self._lanes.values()]
            while ready := [(lane, lane.first()) for lane in lanes if lane.waiting and self._has_room(lane, number)]:
                lane, queue = min(ready, key=lambda found: _place(found[1]))
                if calls := self._take(lane, queue, number):
                    lane.under_way += 1
                    trip = _Trip(number, calls[0].statement, calls, time.monotonic())
                    self._trips.add(trip)
                    self._loop.create_task(self._run(trip))  # the loop keeps it until it begins, and then the trip does

    def _has_room(self, lane: _Lane, number: int) -> bool:
        if number == SHARED and sum(lanes[SHARED].under_way for lanes in self._lanes.values()) >= IN_FLIGHT:
            return False
        return lane.under_way < lane.width

    def _take(self, lane: _Lane, queue: deque[_Line], number: int) -> list[_Call]:
        """Returns the calls of the next round trip: one of each line, then more of the same lines if there is room."""
        statement = queue[0].calls[0].statement
        is_shared = number == SHARED and not isinstance(statement, Transaction)
        room = min(LARGEST, max(FULL, len(queue) // ALIKE)) if is_shared else 1
        now = time.monotonic()
        budget = TOGETHER
        calls: list[_Call] = []
        while queue and len(calls) < room and (not calls or queue[0].cost <= budget):
            line = lane.pop(queue)
            call = line.calls.popleft()
            if now - call.started > min(LONGEST_WAIT, DEADLINE - line.cost):
                call.fail(Unavailable(TOO_LATE))
            if call.answer.done():  # late, or its caller has gone
                self._let_go(line)
                continue
            line.is_under_way = True
            budget -= line.cost
            calls.append(call)
        for call in calls[:]:
            line = call.line
            while len(calls) < room and line.calls and line.calls[0].goes_with(statement) and line.cost <= budget:
                budget -= line.cost
                calls.append(line.calls.popleft())
        return calls

    async def _run(self, trip: _Trip) -> None:
        trip.task = asyncio.current_task()  # not before: one that is cancelled before it begins never gets to its end
        try:
            rows = await self._rows(trip)
        except asyncpg.PostgresError as error:
            self._sort_out(trip, error)
        except BaseException as error:
            for call in trip.calls:
                call.fail(error)
            if not isinstance(error, Unavailable):
                raise
        else:
            self._learn(trip, rows)
            for call, row in zip(trip.calls, rows, strict=True):
                call.succeed(row)
        finally:
            self._trips.remove(trip)
            self._lanes[trip.statement.writes][trip.lane].under_way -= 1
            for line in {call.line for call in trip.calls}:
                self._let_go(line)
            self._send()

    async def _rows(self, trip: _Trip) -> Sequence[Any]:
        sql, calls = trip.statement.sql, trip.calls
        if not trip.statement.writes:
            executions = [call.arguments for call in calls]
            try:
                return await self._pool.run(sql, executions)
            except Unavailable:
                return await self._pool.run(sql, executions)
        calls.sort(key=lambda call: call.arguments[0])  # one order of locks for all
        lock_timeout = f"{max(1, int(1000 * trip.longest()))}ms"
        if isinstance(trip.statement, Transaction):
            user_id, executions, is_kept = calls[0].arguments
            lock = trip.statement.lock, (user_id, lock_timeout)
            return [await self._pool.transact(*lock, sql, executions, is_kept)]
        return await self._pool.run(sql, [(*call.arguments, lock_timeout) for call in calls])

    def _sort_out(self, trip: _Trip, error: asyncpg.PostgresError) -> None:
        """Nothing has happened. Lets calls that travelled together go on alone; tells the one that is to blame."""
        call, is_locked = trip.calls[0], isinstance(error, asyncpg.LockNotAvailableError)
        may_be_repeated = isinstance(error, asyncpg.SerializationError | asyncpg.DeadlockDetectedError)
        if len(trip.calls) > 1 or (is_locked and trip.lane != SLOW) or (may_be_repeated and not call.is_suspect):
            self._take_back(trip)
        elif is_locked:
            call.fail(Unavailable("somebody holds a lock on the user's account or task"))
        elif may_be_repeated or isinstance(error, STOPPED):
            call.fail(Unavailable(f"the database has stopped the statement: {error}"))
        else:
            call.fail(error)

    def _take_back(self, trip: _Trip) -> None:
        """Puts the calls back where they were, to go on in the next lane."""
        calls, trip.calls = trip.calls, []
        for call in reversed(calls):
            call.line.calls.appendleft(call)
            call.is_suspect = True
        if len(calls) == 1:
            calls[0].line.lane = SLOW
        for line in {call.line for call in calls}:
            self._let_go(line)

    def _let_go(self, line: _Line) -> None:
        """Lets a line that is no longer under way wait for its next turn, or forgets it."""
        line.is_under_way = False
        if line.calls:
            self._let_wait(line)
            return
        del self._lines[line.key]
        if line.cost > CHEAP or line.lane != SHARED:
            self._dear[line.key] = line
            if len(self._dear) > REMEMBERED:
                del self._dear[next(iter(self._dear))]  # the one that was used longest ago

    def _learn(self, trip: _Trip, rows: Sequence[Any]) -> None:
        """Notes what the calls cost: what was more than a round trip, in shares as large as their answers."""
        self._answered = time.monotonic()
        seconds = self._answered - trip.started
        self._round_trip = min(self._round_trip, seconds)
        work = seconds - self._round_trip - 2 * self._lag
        if len(rows) > 1 and work < TOGETHER:
            shares = [0.0] * len(rows)
        else:
            sizes = [1] if len(rows) == 1 else [_size(row) for row in rows]
            shares = [work * size / sum(sizes) for size in sizes]
        for call, share in zip(trip.calls, shares, strict=True):
            _note_cost(call.line, share)

    async def _watch_the_clock(self) -> None:
        now = time.monotonic()
        while True:
            await asyncio.sleep(LOOK)
            before, now = now, time.monotonic()
            self._lag = max(now - before - LOOK, self._lag / 2)
            self._round_trip = min(self._round_trip * 1.02, TOGETHER)  # so that a way which became longer is found out
            for line in self._lines.values():
                _fail_late(line.calls, now, "no connection came free in time")
            for trip in [*self._trips]:
                _fail_late(trip.calls, now, "no answer in time")
                if all(call.answer.done() for call in trip.calls):  # nobody waits for it any more; the server is told
                    self._give_up(trip, now)
                elif trip.lane != SLOW and not trip.statement.writes and trip.looks * LOOK > trip.longest():
                    self._give_up(trip, now)
                    self._take_back(trip)
                trip.looks += 1
            self._send()
            self._pool.close_idle()

    def _give_up(self, trip: _Trip, now: float) -> None:
        if len(trip.calls) == 1 and not trip.statement.writes and self._answered > trip.started:
            _note_cost(trip.calls[0].line, now - trip.started)  # it is dear: the database answers others
        if trip.task is not None and not trip.task.cancelling():
            trip.task.cancel()


def _place(queue: deque[_Line]) -> int:
    return queue[0].place


def _fail_late(calls: Iterable[_Call], now: float, message: str) -> None:
    for call in calls:
        if now - call.started > DEADLINE:
            call.fail(Unavailable(message))


def _note_cost(line: _Line, seconds: float) -> None:
    """Notes what one of the line's calls has taken, and chooses the lane for the next one."""
    seconds = max(seconds, line.cost / FORGIVEN)
    line.cost = seconds if seconds > WORTH_NOTING else CHEAP
    line.lane = SHARED if line.cost < TOGETHER else ALONE if line.cost < SOON else SLOW


def _size(row: Any) -> int:
    """Returns how many bytes of JSON the row has, and a little for the rest."""
    return 100 + sum(len(value) for value in row if isinstance(value, bytes))
