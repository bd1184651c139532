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

from service.db.hub import Hub
from service.db.pool import Pool, Unavailable

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
    """One statement, and whether it locks and writes. It returns exactly one row.

    The first argument of one that writes is the user; the second, which is added here, is the lock timeout.
    """

    sql: str
    writes: bool


@dataclass(slots=True, eq=False)
class _Line:
    """The calls of one user that read, or that write, in their order."""

    user: Any
    calls: "deque[_Call]" = field(default_factory=deque)
    cost: float = CHEAP  # seconds that one of them takes, as far as is known
    lane: int = SHARED
    place: int = 0  # among the lines that wait
    is_under_way: bool = False

    def note_cost(self, seconds: float) -> None:
        """Notes what one of the calls has taken, and chooses the lane for the next one."""
        seconds = max(seconds, self.cost / FORGIVEN)
        self.cost = seconds if seconds > WORTH_NOTING else CHEAP
        self.lane = SHARED if self.cost < TOGETHER else ALONE if self.cost < SOON else SLOW


@dataclass(slots=True, eq=False)
class _Call:
    line: _Line
    statement: Statement
    arguments: tuple[Any, ...]
    answer: asyncio.Future[Any]
    started: float  # time.monotonic()
    waits: list[float]  # the request's
    is_suspect: bool = False  # it was taken back once, and goes on alone

    def end(self, row: Any, error: BaseException | None = None) -> None:
        """Gives the caller the row or the error, unless it has an answer or has gone."""
        if not self.answer.done():
            self.waits.append((time.monotonic() - self.started) * 1000)
            if error is None:
                self.answer.set_result(row)
            else:
                self.answer.set_exception(error)

    def refuse(self, reason: str) -> None:
        """Tells the caller that there will be no answer."""
        self.end(None, Unavailable(reason))


@dataclass(slots=True, eq=False)
class _Lane:
    width: int  # round trips at once
    queues: dict[Statement, deque[_Line]] = field(default_factory=dict)  # lines, by the statement of their next call
    waiting: int = 0  # lines
    under_way: int = 0  # round trips

    def first(self) -> deque[_Line]:
        """Returns the queue whose first line has waited longest. Raises ValueError when none is waiting."""
        return min((queue for queue in self.queues.values() if queue), key=_place)


class _Side:
    """All lines that read, or all that write, and the lanes in which they wait."""

    def __init__(self, spare: int) -> None:
        self.lanes = _Lane(ALIKE), _Lane(ALIKE), _Lane(spare)
        self.lines: dict[Any, _Line] = {}  # by user: those that have calls
        self._dear: dict[Any, _Line] = {}  # and those that were not cheap when they last had one
        self._places = 0

    def new_line(self, user: Any) -> _Line:
        """Returns the line of a user who has none in use."""
        line = self.lines[user] = self._dear.pop(user) if user in self._dear else _Line(user)
        return line

    def expected_wait(self, line: _Line) -> float:
        """Returns the seconds until the turn of one more call: a round of the lane for each that is before it."""
        lane = self.lanes[line.lane]
        round_ = line.cost * lane.waiting / lane.width
        return round_ + (len(line.calls) + line.is_under_way) * max(round_, line.cost)

    def let_wait(self, line: _Line) -> None:
        """Lets the line wait for its turn, behind the others."""
        call = line.calls[0]
        lane = self.lanes[max(line.lane, ALONE) if call.is_suspect else line.lane]
        self._places += 1
        line.place = self._places
        if (queue := lane.queues.get(call.statement)) is None:
            queue = lane.queues[call.statement] = deque()
        queue.append(line)
        lane.waiting += 1

    def let_go(self, line: _Line) -> None:
        """Lets a line whose turn is over wait for its next one, or forgets it."""
        line.is_under_way = False
        if line.calls:
            self.let_wait(line)
            return
        del self.lines[line.user]
        if line.cost > CHEAP or line.lane != SHARED:
            self._dear[line.user] = line
            if len(self._dear) > REMEMBERED:
                del self._dear[next(iter(self._dear))]  # the one that was used longest ago

    def take(self, number: int) -> "_Trip | None":
        """Returns the next round trip of this lane: a call of each line, then more of the same lines if there is room.

        None when all that could go came too late.
        """
        lane = self.lanes[number]
        queue = lane.first()
        statement = queue[0].calls[0].statement
        room = min(LARGEST, max(FULL, len(queue) // ALIKE)) if number == SHARED else 1
        now, budget = time.monotonic(), TOGETHER
        calls: list[_Call] = []
        lines: list[_Line] = []
        while queue and len(calls) < room and (not calls or queue[0].cost <= budget):
            line = queue.popleft()
            lane.waiting -= 1
            call = line.calls.popleft()
            if now - call.started > LONGEST_WAIT or now - call.started + line.cost > DEADLINE:
                call.refuse(TOO_LATE)
            if call.answer.done():  # its caller may have gone, too
                self.let_go(line)
                continue
            line.is_under_way = True
            budget -= line.cost
            calls.append(call)
            lines.append(line)
        for line in lines:
            while line.calls and len(calls) < room and line.cost <= budget:
                if line.calls[0].statement is not statement or line.calls[0].is_suspect:
                    break
                budget -= line.cost
                calls.append(line.calls.popleft())
        return _Trip(self, number, statement, calls, lines, now) if calls else None


@dataclass(slots=True, eq=False)
class _Trip:
    """A round trip that is under way."""

    side: _Side
    lane: int
    statement: Statement
    calls: list[_Call]
    lines: list[_Line]  # whose calls these are
    started: float
    looks: int = 0  # of the watch; they are fewer when the event loop is busy, whose time does not count
    task: asyncio.Task[None] | None = None

    def longest(self) -> float:
        """Returns the seconds that it may last until it is taken back."""
        if self.lane == SLOW:
            return self.calls[0].started + DEADLINE - self.started
        return SUSPECTED if self.calls[0].is_suspect else SOON

    def take_back(self) -> None:
        """Puts the calls back where they were, to go on in the next lane."""
        calls, lines = self.calls, self.lines
        self.calls, self.lines = [], []
        for call in reversed(calls):
            call.line.calls.appendleft(call)
            call.is_suspect = True
        if len(calls) == 1:
            lines[0].lane = SLOW
        for line in lines:
            self.side.let_go(line)


class Coalescer:
    """The calls that wait, and those that are under way."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.hub = Hub()  # for whoever waits for what is written here
        spare = max(1, (pool.largest - IN_FLIGHT) // 3)  # locks and dear statements must not take every connection
        self._sides = _Side(spare), _Side(spare)  # of reads, and of writes
        self._trips: set[_Trip] = set()
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
        side = self._sides[statement.writes]
        # what is about all users, or many, is in nobody's line
        user = arguments[0] if arguments and isinstance(arguments[0], str) else None
        line = side.lines.get(user) or side.new_line(user)
        call = _Call(line, statement, arguments, self._loop.create_future(), time.monotonic(), waited.get())
        if (line.is_under_way or line.cost > CHEAP) and side.expected_wait(line) > LONGEST_WAIT:
            call.refuse(TOO_LATE)
            if not line.calls and not line.is_under_way:
                side.let_go(line)
            return call.answer
        line.calls.append(call)
        if not line.is_under_way and len(line.calls) == 1:
            side.let_wait(line)
            if not self._is_scheduled:
                self._is_scheduled = True
                self._loop.call_soon(self._send)
        return call.answer

    def _send(self) -> None:
        self._is_scheduled = False
        for number in (SHARED, ALONE, SLOW):
            while (side := self._next_side(number)) is not None:
                if (trip := side.take(number)) is not None:
                    side.lanes[number].under_way += 1
                    self._trips.add(trip)
                    self._loop.create_task(self._run(trip))  # the loop keeps it until it begins, and then the trip does

    def _next_side(self, number: int) -> _Side | None:
        """Returns the side which has room in this lane for a line that waits; of both, where one has waited longer."""
        lanes = [side.lanes[number] for side in self._sides]
        if number == SHARED and lanes[False].under_way + lanes[True].under_way >= IN_FLIGHT:
            return None
        reads, writes = (lane.waiting and lane.under_way < lane.width for lane in lanes)
        if reads and writes:
            reads = _place(lanes[False].first()) <= _place(lanes[True].first())
        return self._sides[False] if reads else self._sides[True] if writes else None

    async def _run(self, trip: _Trip) -> None:
        trip.task = asyncio.current_task()  # not before: one that is cancelled before it begins never gets to its end
        try:
            rows = await self._rows(trip)
        except asyncpg.PostgresError as error:
            self._sort_out(trip, error)
        except BaseException as error:
            for call in trip.calls:
                call.end(None, error)
            if not isinstance(error, Unavailable):
                raise
        else:
            self._learn(trip, rows)
            for call, row in zip(trip.calls, rows, strict=True):
                call.end(row)
        finally:
            self._trips.remove(trip)
            trip.side.lanes[trip.lane].under_way -= 1
            for line in trip.lines:
                trip.side.let_go(line)
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
        return await self._pool.run(sql, [(call.arguments[0], lock_timeout, *call.arguments[1:]) for call in calls])

    def _sort_out(self, trip: _Trip, error: asyncpg.PostgresError) -> None:
        """Nothing has happened. Lets calls that travelled together go on alone; tells the one that is to blame."""
        call, is_locked = trip.calls[0], isinstance(error, asyncpg.LockNotAvailableError)
        may_be_repeated = isinstance(error, asyncpg.SerializationError | asyncpg.DeadlockDetectedError)
        if len(trip.calls) > 1 or (is_locked and trip.lane != SLOW) or (may_be_repeated and not call.is_suspect):
            trip.take_back()
        elif is_locked:
            call.refuse("somebody holds a lock on the user's account or task")
        elif may_be_repeated or isinstance(error, STOPPED):
            call.refuse(f"the database has stopped the statement: {error}")
        else:
            call.end(None, error)

    def _learn(self, trip: _Trip, rows: Sequence[Any]) -> None:
        """Notes what the calls cost: what was more than a round trip, in shares as large as their answers."""
        self._answered = time.monotonic()
        seconds = self._answered - trip.started
        self._round_trip = min(self._round_trip, seconds)
        work = seconds - self._round_trip - 2 * self._lag
        if len(rows) == 1:
            trip.lines[0].note_cost(work)
        elif work >= TOGETHER:
            sizes = [_size(row) for row in rows]
            for call, size in zip(trip.calls, sizes, strict=True):
                call.line.note_cost(work * size / sum(sizes))
        else:
            for line in trip.lines:
                if line.cost > CHEAP:
                    line.note_cost(0)

    async def _watch_the_clock(self) -> None:
        now = time.monotonic()
        while True:
            await asyncio.sleep(LOOK)
            before, now = now, time.monotonic()
            self._lag = max(now - before - LOOK, self._lag / 2)
            self._round_trip = min(self._round_trip * 1.02, TOGETHER)  # so that a way which became longer is found out
            for side in self._sides:
                for line in side.lines.values():
                    _refuse_late(line.calls, now, "no connection came free in time")
            for trip in [*self._trips]:
                self._look_at(trip, now)
            self._send()
            self._pool.close_idle()

    def _look_at(self, trip: _Trip, now: float) -> None:
        """Cancels what nobody waits for any more, and takes back what goes on in the next lane."""
        _refuse_late(trip.calls, now, "no answer in time")
        is_done = all(call.answer.done() for call in trip.calls)
        is_read = not trip.statement.writes
        trip.looks += 1
        if not is_done and not (is_read and trip.lane != SLOW and trip.looks * LOOK > trip.longest()):
            return
        if is_read and len(trip.calls) == 1 and self._answered > trip.started:
            trip.lines[0].note_cost(now - trip.started)  # it is dear: the database answers others
        if trip.task is not None and not trip.task.cancelling():
            trip.task.cancel()  # the server is told
        if not is_done:
            trip.take_back()


def _place(queue: deque[_Line]) -> int:
    return queue[0].place


def _refuse_late(calls: Iterable[_Call], now: float, reason: str) -> None:
    for call in calls:
        if now - call.started > DEADLINE:
            call.refuse(reason)


def _size(row: Any) -> int:
    """Returns how many bytes of JSON the row has, and a little for the rest."""
    return 100 + sum(len(value) for value in row if isinstance(value, bytes))
