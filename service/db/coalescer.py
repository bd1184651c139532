"""Decides which calls go to the database, when, and which of them share a round trip.

Calls of the same statement that wait in the same turn of the event loop go to PostgreSQL together: one round trip, one
transaction, one execution and one row for each call. A call that waits alone is sent at once.

Scheduling keeps users isolated: **each user has a queue of reads and a queue of writes, and queues are served round
robin.** A queue has one round trip in flight at a time. There are three lanes:

- SHARED: cheap calls of many queues share round trips of up to SHARED_WORK seconds of work.
- ALONE: a queue whose calls are more expensive has round trips of its own.
- SLOW: so has a queue whose calls take longer than SOON. Only here may a round trip last until the deadline.

In the first two lanes a round trip ends after SOON (a read is cancelled, a write meets its lock timeout). Its calls are
requeued and retried alone in the next lane. So a large list, an expensive search, a locked account and a statement that
the server stops are one case: the user who made the call waits for it, and the others lose SOON once. A queue that is
cheap again moves back.

A call that cannot meet its deadline is rejected at once, so that under overload whatever is started is also finished.

What a shared round trip must also get right:

- Its writes are sorted by user, so that all round trips lock accounts in the same order.
- If one execution fails, all are rolled back. Each call is then retried alone, and only the failing call fails.
- If the connection is lost during a write, the outcome is unknown: the caller gets Unavailable, and nothing is retried.
  A read is retried once.
- Every call ends within DEADLINE, whatever the database does.

Citus distributes users among nodes. There each write commits by itself, on its user's node, so it has a round trip of
its own. Reads share them, and one whose node is away is retried alone, like any that fails; the others never notice.
What nodes.py finds to stand still is rejected before it is sent.
"""

import asyncio
import re
import time
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import asyncpg

from service.db.hub import Hub
from service.db.nodes import NODE_OF_USER, Nodes
from service.db.pool import NODE_LOST, NodeUnavailable, Overloaded, Pool, Unavailable
from service.db.statistics import RoundTrips

SHARED, ALONE, SLOW = range(3)

# Tuned on two cores. While PostgreSQL works on one round trip, Python builds the responses of another; with more in
# flight, PostgreSQL takes CPU from Python. Smaller round trips cost more of them, larger ones more waiting.
IN_FLIGHT = 3  # shared round trips
ALIKE = 2  # of these that read, and that write; also how many in the lane ALONE
APART = 8  # in place of IN_FLIGHT on Citus, where each write has a round trip of its own
FULL = 16  # calls in a round trip; when very many wait, each round trip takes its share of them
LARGEST = 64

SHARED_WORK = 0.03  # seconds of work in a shared round trip; a list of 10,000 tasks takes as long
CHEAP = 0.0003  # seconds that a call is assumed to cost until more is known
NEGLIGIBLE = SHARED_WORK / FULL  # a cost below this counts as CHEAP
DECAY = 8  # a queue's cost falls at most by this factor a call, so that alternating with cheap calls does not reset it
SOON = 0.4  # seconds
RETRY_SECONDS = 0.1  # SOON for a call that is retried alone: most only shared a round trip with the failing one
DEADLINE = 4.5  # seconds from a call to its result
ANSWER_SECONDS = 0.2  # of these, for the database to say that a lock was not to be had: else nobody knows what was done
LONGEST_WAIT = 3.0  # seconds; a call that would be queued for longer is rejected
LOOK = 0.05  # seconds between two checks for what takes long
SUSPICIOUS = round(SOON / LOOK)  # checks of one round trip: on Citus a node may stand still
REMEMBERED = 10_000  # expensive queues whose cost is kept while they are empty

STOPPED = (asyncpg.QueryCanceledError, asyncpg.TransactionTimeoutError)
TOO_LATE = "it was, or would be, queued for too long"

NAME = re.compile(r"(?:-- |select (?:\* from )?tasks\.)(\w+)")

# Milliseconds that the current request has waited for the database, for the log and Server-Timing
waited: ContextVar[list[float]] = ContextVar("waited")


@dataclass(frozen=True, eq=False)
class Statement:
    """A statement that returns exactly one row, whether it locks and writes, and whether it is about one user.

    Then the user is its first argument. The second of one that writes, which is added here, is the lock timeout.
    """

    sql: str
    writes: bool
    is_of_user: bool = True

    @cached_property
    def name(self) -> str:
        """The name of its file, or of the function that it calls, for metrics and traces."""
        found = NAME.match(self.sql)
        return found[1] if found else "other"


@dataclass(slots=True, eq=False)
class _UserQueue:
    """A user's reads, or writes, first in, first out."""

    user: Any
    calls: "deque[_Call]" = field(default_factory=deque)
    cost: float = CHEAP  # estimated seconds a call
    lane: int = SHARED
    position: int = 0  # among the queues that are ready
    is_in_flight: bool = False

    def note_cost(self, seconds: float) -> None:
        """Notes what a call has cost, and chooses the lane for the next one."""
        seconds = max(seconds, self.cost / DECAY)
        self.cost = seconds if seconds > NEGLIGIBLE else CHEAP
        self.lane = SHARED if self.cost < SHARED_WORK else ALONE if self.cost < SOON else SLOW


@dataclass(slots=True, eq=False)
class _Call:
    queue: _UserQueue
    statement: Statement
    arguments: tuple[Any, ...]
    result: asyncio.Future[Any]
    started: float  # time.monotonic()
    waits: list[float]  # the request's
    is_retry: bool = False  # it was requeued, and is retried alone

    def end(self, row: Any, error: BaseException | None = None) -> None:
        """Gives the caller the row or the error, unless it already has a result or has gone."""
        if not self.result.done():
            self.waits.append((time.monotonic() - self.started) * 1000)
            if error is None:
                self.result.set_result(row)
            else:
                self.result.set_exception(error)

    def reject(self, reason: str, kind: type[Unavailable] = Unavailable) -> None:
        """Ends the call with Unavailable, or with this kind of it."""
        self.end(None, kind(reason))


@dataclass(slots=True, eq=False)
class _Lane:
    width: int  # round trips at once
    ready: defaultdict[Statement, deque[_UserQueue]] = field(  # queues, by the statement of their next call
        default_factory=lambda: defaultdict(deque)
    )
    waiting: int = 0  # queues that are ready
    work: float = 0.0  # seconds that the next call of each of them is estimated to cost, in sum
    in_flight: int = 0  # round trips

    def first(self) -> deque[_UserQueue]:
        """Returns the ready queues of the statement that has waited longest. Raises ValueError when there are none."""
        return min((queues for queues in self.ready.values() if queues), key=_position)


class _Scheduler:
    """The queues of all reads, or of all writes, and the lanes that serve them round robin."""

    def __init__(self, slow: int) -> None:
        self.lanes = _Lane(ALIKE), _Lane(ALIKE), _Lane(slow)
        self.queues: dict[Any, _UserQueue] = {}  # by user: those that have calls
        self._expensive: dict[Any, _UserQueue] = {}  # empty ones that were not cheap when last used
        self._positions = 0

    def new_queue(self, user: Any) -> _UserQueue:
        """Returns a queue for a user who has none, with the cost it had when last used."""
        queue = self.queues[user] = self._expensive.pop(user) if user in self._expensive else _UserQueue(user)
        return queue

    def expected_wait(self, queue: _UserQueue) -> float:
        """Returns the seconds until one more call would be sent: one round of the lane for each call before it."""
        lane = self.lanes[queue.lane]
        round_ = lane.work / lane.width
        return round_ + (len(queue.calls) + queue.is_in_flight) * max(round_, queue.cost)

    def make_ready(self, queue: _UserQueue) -> None:
        """Puts the queue behind the others in its lane."""
        call = queue.calls[0]
        lane = self.lanes[max(queue.lane, ALONE) if call.is_retry else queue.lane]
        self._positions += 1
        queue.position = self._positions
        lane.ready[call.statement].append(queue)
        lane.waiting += 1
        lane.work += queue.cost

    def release(self, queue: _UserQueue) -> None:
        """Makes a queue that was served ready again, or removes it when it is empty."""
        queue.is_in_flight = False
        if queue.calls:
            self.make_ready(queue)
            return
        del self.queues[queue.user]
        if queue.cost > CHEAP or queue.lane != SHARED:
            self._expensive[queue.user] = queue
            if len(self._expensive) > REMEMBERED:
                del self._expensive[next(iter(self._expensive))]  # least recently used

    def next_round_trip(self, lane_number: int, is_shared: bool) -> "_RoundTrip | None":
        """Returns the lane's next round trip: one call of each ready queue, then more of the same queues if they fit.

        Returns None when all ready calls were rejected.
        """
        lane = self.lanes[lane_number]
        ready = lane.first()
        statement = ready[0].calls[0].statement
        room = min(LARGEST, max(FULL, len(ready) // ALIKE)) if is_shared else 1
        now, budget = time.monotonic(), SHARED_WORK
        calls: list[_Call] = []
        queues: list[_UserQueue] = []
        while ready and len(calls) < room and (not calls or ready[0].cost <= budget):
            queue = ready.popleft()
            lane.waiting -= 1
            lane.work = lane.work - queue.cost if lane.waiting else 0.0  # no sum of rounding errors
            call = queue.calls.popleft()
            if now - call.started > LONGEST_WAIT or now - call.started + queue.cost > DEADLINE:
                call.reject(TOO_LATE, Overloaded)
            if call.result.done():  # or its caller has gone
                self.release(queue)
                continue
            queue.is_in_flight = True
            budget -= queue.cost
            calls.append(call)
            queues.append(queue)
        for queue in queues:
            while queue.calls and len(calls) < room and queue.cost <= budget:
                if queue.calls[0].statement is not statement or queue.calls[0].is_retry:
                    break
                budget -= queue.cost
                calls.append(queue.calls.popleft())
        return _RoundTrip(self, lane_number, statement, calls, queues, now) if calls else None


@dataclass(slots=True, eq=False)
class _RoundTrip:
    """A round trip in flight."""

    scheduler: _Scheduler
    lane: int
    statement: Statement
    calls: list[_Call]
    queues: list[_UserQueue]  # of the calls
    started: float
    checks: int = 0  # measure its time: there are fewer when the event loop is busy, and that time does not count
    task: asyncio.Task[None] | None = None

    def time_limit(self) -> float:
        """Returns how many seconds it may take."""
        if self.lane == SLOW:
            return self.calls[0].started + DEADLINE - ANSWER_SECONDS - self.started
        return RETRY_SECONDS if self.calls[0].is_retry else SOON

    def requeue(self) -> None:
        """Puts the calls back at the head of their queues, to be retried alone in the next lane."""
        calls, queues = self.calls, self.queues
        self.calls, self.queues = [], []
        for call in reversed(calls):
            call.queue.calls.appendleft(call)
            call.is_retry = True
        if len(calls) == 1:
            queues[0].lane = SLOW
        for queue in queues:
            self.scheduler.release(queue)


FIND_NODE = Statement(NODE_OF_USER, writes=False, is_of_user=False)


class Coalescer:
    """Takes calls, and sends them to the database in round trips."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.round_trips: RoundTrips | None = None  # None: they are not counted
        self.hub = Hub()  # notifies those who wait for a user's changes
        self.nodes = Nodes(pool, self._reject_still)
        slow = max(1, (pool.largest - IN_FLIGHT) // 3)  # locks and expensive statements must not take all connections
        self._schedulers = _Scheduler(slow), _Scheduler(slow)  # of reads, and of writes
        self._round_trips: set[_RoundTrip] = set()  # in flight
        self._most_in_flight = IN_FLIGHT  # in the lane SHARED
        self._latency = SHARED_WORK  # seconds that the fastest of the latest round trips took
        self._last_success = 0.0  # time.monotonic()
        self._lag = 0.0  # of the event loop, in seconds
        self._is_send_scheduled = False
        self._watchdog: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop

    async def open(self) -> None:
        """Opens the pool, even when the database is away."""
        self._loop = asyncio.get_running_loop()  # each further get_running_loop() is a system call
        await self._pool.open()
        self._watchdog = self._loop.create_task(self._watch())

    async def close(self) -> None:
        """Closes the pool; what is in flight is dropped after a few seconds."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        self.nodes.close()
        await self._pool.close()

    def fetch(self, statement: Statement, *arguments: Any) -> asyncio.Future[Any]:
        """Runs the statement, and returns a future of its row.

        Awaiting it raises Unavailable when the database does not answer within DEADLINE, or is not expected to, and
        asyncpg.PostgresError when the statement itself fails.
        """
        if self.nodes.still and statement.is_of_user:
            return self._loop.create_task(self._fetch_if_node_answers(statement, arguments))
        # a statement that is not about one user has a queue of its own
        user = arguments[0] if statement.is_of_user else statement
        return self._enqueue(user, statement, arguments, time.monotonic())

    async def reachable(self, users: Collection[str]) -> Collection[str]:
        """Returns the users whose node does not stand still. Raises Unavailable."""
        if not self.nodes.still:
            return users
        nodes = await self.nodes.of(users)
        return [user for user in users if nodes[user] not in self.nodes.still]

    async def _fetch_if_node_answers(self, statement: Statement, arguments: tuple[Any, ...]) -> Any:
        user, started = arguments[0], time.monotonic()
        if (node := self.nodes.of_users.get(user)) is None:
            # in a queue of its own: it waits for no call of the user's, and says nothing of what they cost
            (node,) = await self._enqueue((FIND_NODE, user), FIND_NODE, (user,), started)
            self.nodes.remember(user, node)
        if node in self.nodes.still:
            raise NodeUnavailable(f"it stands still: {node}")
        return await self._enqueue(user, statement, arguments, started)

    def _enqueue(
        self, user: Any, statement: Statement, arguments: tuple[Any, ...], started: float
    ) -> asyncio.Future[Any]:
        scheduler = self._schedulers[statement.writes]
        queue = scheduler.queues.get(user) or scheduler.new_queue(user)
        call = _Call(queue, statement, arguments, self._loop.create_future(), started, waited.get())
        if (queue.is_in_flight or queue.cost > CHEAP) and scheduler.expected_wait(queue) > LONGEST_WAIT:
            call.reject(TOO_LATE, Overloaded)
            if not queue.calls and not queue.is_in_flight:
                scheduler.release(queue)
            return call.result
        queue.calls.append(call)
        if not queue.is_in_flight and len(queue.calls) == 1:
            scheduler.make_ready(queue)
            if not self._is_send_scheduled:
                self._is_send_scheduled = True
                self._loop.call_soon(self._send)
        return call.result

    def waiting_calls(self) -> tuple[int, int]:
        """Returns how many reads, and how many writes, wait for a round trip."""
        reads, writes = (sum(len(queue.calls) for queue in each.queues.values()) for each in self._schedulers)
        return reads, writes

    def _send(self) -> None:
        self._is_send_scheduled = False
        for lane in (SHARED, ALONE, SLOW):
            while (scheduler := self._next_scheduler(lane)) is not None:
                is_shared = lane == SHARED and not (scheduler is self._schedulers[True] and self._pool.is_citus)
                if (trip := scheduler.next_round_trip(lane, is_shared)) is not None:
                    scheduler.lanes[lane].in_flight += 1
                    self._round_trips.add(trip)
                    self._loop.create_task(self._run(trip))  # referenced by the loop until it starts, then by the trip

    def _next_scheduler(self, lane: int) -> _Scheduler | None:
        """Returns the scheduler that has room in this lane and a ready queue; of two, the one that waited longer."""
        lanes = [scheduler.lanes[lane] for scheduler in self._schedulers]
        if lane == SHARED and lanes[False].in_flight + lanes[True].in_flight >= self._most_in_flight:
            return None
        reads, writes = (each.waiting and each.in_flight < each.width for each in lanes)
        if reads and writes:
            reads = _position(lanes[False].first()) <= _position(lanes[True].first())
        return self._schedulers[False] if reads else self._schedulers[True] if writes else None

    async def _run(self, trip: _RoundTrip) -> None:
        trip.task = asyncio.current_task()  # not earlier: a task cancelled before it starts never reaches `finally`
        number = len(trip.calls)
        try:
            rows = await self._rows(trip)
        except asyncpg.PostgresError as error:
            self._handle(trip, error)
        except BaseException as error:
            for call in trip.calls:
                call.end(None, error)
            if not isinstance(error, Unavailable):
                raise
        else:
            self._note_costs(trip, rows)
            for call, row in zip(trip.calls, rows, strict=True):
                call.end(row)
        finally:
            if self.round_trips is not None:
                self.round_trips.add(trip.statement.name, number, time.monotonic() - trip.started)
            self._round_trips.remove(trip)
            trip.scheduler.lanes[trip.lane].in_flight -= 1
            for queue in trip.queues:
                trip.scheduler.release(queue)
            self._send()

    async def _rows(self, trip: _RoundTrip) -> Sequence[Any]:
        sql, calls = trip.statement.sql, trip.calls
        if not trip.statement.writes:
            executions = [call.arguments for call in calls]
            try:
                return await self._pool.run(sql, executions)
            except Unavailable:
                return await self._pool.run(sql, executions)
        calls.sort(key=lambda call: call.arguments[0])  # the order of locks
        lock_timeout = f"{max(1, int(1000 * trip.time_limit()))}ms"
        return await self._pool.run(sql, [(call.arguments[0], lock_timeout, *call.arguments[1:]) for call in calls])

    def _handle(self, trip: _RoundTrip, error: asyncpg.PostgresError) -> None:
        """Requeues the calls of a round trip that was rolled back, or fails the one call that is left in it."""
        call, is_locked = trip.calls[0], isinstance(error, asyncpg.LockNotAvailableError)
        is_transient = isinstance(error, asyncpg.SerializationError | asyncpg.DeadlockDetectedError)
        is_node_lost = isinstance(error, NODE_LOST)
        is_repeatable = is_transient or (is_node_lost and not trip.statement.writes)
        if len(trip.calls) > 1 or (is_locked and trip.lane != SLOW) or (is_repeatable and not call.is_retry):
            trip.requeue()
        elif is_node_lost:
            trip.queues[0].lane = ALONE  # while its node is away, it spoils no shared round trips
            call.end(None, NodeUnavailable(str(error).partition("\n")[0]))
        elif is_locked:
            call.reject("somebody holds a lock on the user's account or task")
        elif is_transient or isinstance(error, STOPPED):
            call.reject(f"the database has stopped the statement: {error}")
        else:
            call.end(None, error)

    def _note_costs(self, trip: _RoundTrip, rows: Sequence[Any]) -> None:
        """Divides the time beyond the latency among the calls, by the size of their rows."""
        self._last_success = time.monotonic()
        seconds = self._last_success - trip.started
        self._latency = min(self._latency, seconds)
        work = seconds - self._latency - 2 * self._lag
        if len(rows) == 1:
            trip.queues[0].note_cost(work)
        elif work >= SHARED_WORK:
            sizes = [_size(row) for row in rows]
            for call, size in zip(trip.calls, sizes, strict=True):
                call.queue.note_cost(work * size / sum(sizes))
        else:
            for queue in trip.queues:
                if queue.cost > CHEAP:
                    queue.note_cost(0)

    async def _watch(self) -> None:
        now = time.monotonic()
        while True:
            await asyncio.sleep(LOOK)
            before, now = now, time.monotonic()
            self._lag = max(now - before - LOOK, self._lag / 2)
            self._most_in_flight, self._schedulers[True].lanes[SHARED].width = (
                (APART, APART) if self._pool.is_citus else (IN_FLIGHT, ALIKE)
            )
            self._latency = min(self._latency * 1.02, SHARED_WORK)  # so that a rise of the real one is noticed
            for scheduler in self._schedulers:
                for queue in scheduler.queues.values():
                    _reject_overdue(queue.calls, now, "no connection came free in time", Overloaded)
            for trip in [*self._round_trips]:
                self._check(trip, now)
            self._send()
            self._pool.close_idle()

    def _check(self, trip: _RoundTrip, now: float) -> None:
        """Cancels a round trip that no caller waits for any more, and cancels and requeues a read over its limit."""
        _reject_overdue(trip.calls, now, "no answer in time")
        is_done = all(call.result.done() for call in trip.calls)
        is_read = not trip.statement.writes
        trip.checks += 1
        if trip.checks == SUSPICIOUS:
            self.nodes.suspect({user for call in trip.calls for user in _users(call)})
        if not is_done and not (is_read and trip.lane != SLOW and trip.checks * LOOK > trip.time_limit()):
            return
        if is_read and len(trip.calls) == 1 and self._last_success > trip.started:
            trip.queues[0].note_cost(now - trip.started)  # it is expensive: the database answers others
        if trip.task is not None and not trip.task.cancelling():
            trip.task.cancel()  # which cancels the statement on the server
        if not is_done:
            trip.requeue()

    async def _reject_still(self) -> None:
        """Rejects the calls for users whose node stands still, those in flight too. Raises Unavailable."""
        calls = [call for each in self._schedulers for queue in each.queues.values() for call in queue.calls]
        calls += [call for trip in self._round_trips for call in trip.calls]
        users = {user for call in calls for user in _users(call)}
        # calls that come meanwhile ask by themselves
        unreachable = users.difference(await self.reachable(users))
        for call in calls:
            if not unreachable.isdisjoint(_users(call)):
                call.reject("its node stands still", NodeUnavailable)


def _users(call: _Call) -> list[str]:
    """Returns the users whom the call is about."""
    first = call.arguments[0] if call.arguments else None
    if isinstance(first, str):
        return [first] if call.statement.is_of_user else []
    return first if isinstance(first, list) else []


def _position(ready: deque[_UserQueue]) -> int:
    return ready[0].position


def _reject_overdue(calls: Iterable[_Call], now: float, reason: str, kind: type[Unavailable] = Unavailable) -> None:
    for call in calls:
        if now - call.started > DEADLINE:
            call.reject(reason, kind)


def _size(row: Any) -> int:
    """Returns the row's bytes of JSON, plus a constant for the rest."""
    return 100 + sum(len(value) for value in row if isinstance(value, bytes))
