"""What Prometheus is told: counted in every process that answers requests, put together in the one that was started.

Names and units are those of OpenTelemetry's semantic conventions, in Prometheus' spelling; what these do not know
begins with `task_service_`. Once a second each worker sends all that it has counted to its supervisor, which answers
the scrapes. So a worker that hangs delays no scrape, one that is killed takes a second's counts with it, and no counter
ever falls. Nothing is written to a disk, which prometheus-client's own way with several processes needs.
"""

import pickle
import socket
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from service.db.coalescer import Coalescer
from service.db.pool import Overloaded, Pool, Unavailable
from service.db.statistics import TRIP_CALLS, TRIP_SECONDS, RoundTrips, Series
from service.web.errors import Problem

PUBLISH_SECONDS = 1.0
MESSAGE_BYTES = 1024 * 1024  # of what a worker sends; it has some 10 KiB

OTHER_METHOD = "_OTHER"  # OpenTelemetry's word: anyone can send a method of any name
METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE", OTHER_METHOD})
REFUSALS = ("database", "overload", "protocol", "rate_limit")
# OpenTelemetry's, and two below them: most requests take less than its smallest
REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
REQUEST_MS = tuple(1000 * seconds for seconds in REQUEST_SECONDS)

Snapshot = dict[str, Series]  # by the family's name
Publish = Callable[[Snapshot], None]


class Family(NamedTuple):
    """A metric: its Prometheus type, what it is, the names of its labels, and a histogram's bounds."""

    type: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


FAMILIES = {
    "http_server_request_duration_seconds": Family(
        "histogram",
        "Requests, by how long the answer took; of a stream, how long it lasted.",
        ("http_request_method", "http_route", "http_response_status_code"),
        REQUEST_SECONDS,
    ),
    "task_service_request_database_seconds": Family(
        "counter",
        "Time that requests waited for the database, queues included.",
        ("http_request_method", "http_route"),
    ),
    "task_service_refused_requests": Family(
        "counter",
        "Requests that were refused: no HTTP (protocol), over the user's limit (rate_limit), too many calls before "
        "theirs (overload), or the database did not answer (database).",
        ("reason",),
    ),
    "http_server_active_requests": Family("gauge", "Requests that are being answered, streams included."),
    "task_service_connections": Family("gauge", "Connections of clients, idle ones included."),
    "task_service_streams": Family("gauge", "Open streams of events."),
    "task_service_waiting_calls": Family(
        "gauge", "Calls that wait for a round trip to the database: reads, and writes.", ("kind",)
    ),
    "task_service_round_trip_calls": Family(
        "histogram", "Round trips to the database, by how many calls shared them.", (), TRIP_CALLS
    ),
    "db_client_operation_duration_seconds": Family(
        "histogram",
        "Round trips to the database, by how long they took.",
        ("db_query_summary",),
        TRIP_SECONDS,
    ),
    "db_client_connection_count": Family(
        "gauge", "Connections to the database, used and idle.", ("db_client_connection_state",)
    ),
    "db_client_connection_max": Family("gauge", "Connections to the database that there may be."),
    "db_client_connection_pending_requests": Family("gauge", "Round trips that wait for a connection."),
    "process_cpu_seconds": Family("counter", "CPU time of the processes that answer requests, user and system."),
    "task_service_workers": Family("gauge", "Processes that answer requests."),
}


class Metrics:
    """What one process counts."""

    def __init__(self, db: Coalescer, pool: Pool) -> None:
        self._db = db
        self._pool = pool
        self._round_trips = db.round_trips = RoundTrips()
        # By method, route and status: how many requests are in each bucket, how many above all, the sum of their
        # milliseconds, and of those in the database. A request costs one look-up and three additions.
        self._requests: dict[tuple[str, str, int], list[float]] = {}
        self._refused: Series = {(reason,): [0] for reason in REFUSALS}

    def add(self, method: str, route: str, status: int, milliseconds: float, database_ms: float) -> None:
        """Counts a request; the route is its pattern, or empty when the path has none."""
        found = self._requests.get((method, route, status))
        if found is None:
            if method not in METHODS:
                self.add(OTHER_METHOD, route, status, milliseconds, database_ms)
                return
            found = self._requests[method, route, status] = [0] * (len(REQUEST_SECONDS) + 1) + [0.0, 0.0]
        found[bisect_left(REQUEST_MS, milliseconds)] += 1
        found[-2] += milliseconds
        found[-1] += database_ms

    def refuse(self, error: Exception) -> None:
        """Counts the request as refused, if that is what the error means."""
        match error:
            case Overloaded():
                reason = "overload"
            case Unavailable():
                reason = "database"
            case Problem(status=429):
                reason = "rate_limit"
            case _:
                return
        self._refused[reason,][0] += 1

    def snapshot(self, server_state: Any) -> Snapshot:
        """Returns all that was counted, which the caller must not change, and how things are now.

        `server_state` is uvicorn's, with what this service's protocol adds.
        """
        pool, trips = self._pool, self._round_trips
        reads, writes = self._db.waiting_calls()
        requests: Series = {}
        database_seconds: Series = {}
        for (method, route, status), numbers in self._requests.items():
            requests[method, route, str(status) if status else ""] = [*numbers[:-2], numbers[-2] / 1000]
            database_seconds.setdefault((method, route), [0.0])[0] += numbers[-1] / 1000
        refused = self._refused | {("protocol",): [getattr(server_state, "refused_requests", 0)]}
        return {
            "http_server_request_duration_seconds": requests,
            "task_service_request_database_seconds": database_seconds,
            "task_service_refused_requests": refused,
            "http_server_active_requests": {(): [len(server_state.tasks)]},
            "task_service_connections": {(): [len(server_state.connections)]},
            "task_service_streams": {(): [self._db.hub.streams]},
            "task_service_waiting_calls": {("read",): [reads], ("write",): [writes]},
            "task_service_round_trip_calls": trips.calls.series,
            "db_client_operation_duration_seconds": trips.seconds.series,
            "db_client_connection_count": {("used",): [pool.used], ("idle",): [pool.idle]},
            "db_client_connection_max": {(): [pool.largest]},
            "db_client_connection_pending_requests": {(): [pool.pending]},
            "process_cpu_seconds": {(): [time.process_time()]},
            "task_service_workers": {(): [1]},
        }


class Board:
    """What all processes have published, for whoever scrapes; it is read in another thread than it is written."""

    def __init__(self) -> None:
        self._state: tuple[Snapshot, dict[int, Snapshot]] = ({}, {})  # of ended processes; of the others by their pids

    def publish(self, pid: int, snapshot: Snapshot) -> None:
        """Takes the process's latest snapshot."""
        ended, living = self._state
        self._state = ended, living | {pid: snapshot}

    def end(self, pid: int) -> None:
        """Keeps what the process has counted, and forgets how things were in it: it has ended."""
        ended, living = self._state
        counted = {name: series for name, series in living.get(pid, {}).items() if FAMILIES[name].type != "gauge"}
        rest = {other: snapshot for other, snapshot in living.items() if other != pid}
        self._state = merged([ended, counted]), rest

    def read(self) -> Snapshot:
        """Returns all of it together."""
        ended, living = self._state
        return merged([ended, *living.values()])


def copied(snapshot: Snapshot) -> Snapshot:
    """Returns a copy, which stays as it is."""
    return merged([snapshot])


def merged(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Returns the sums of all numbers."""
    total: Snapshot = {}
    for snapshot in snapshots:
        for name, series in snapshot.items():
            sums = total.setdefault(name, {})
            for labels, numbers in series.items():
                known = sums.get(labels)
                sums[labels] = numbers.copy() if known is None else [a + b for a, b in zip(known, numbers, strict=True)]
    return total


class Inlet:
    """Where the snapshots of a worker come in, each as one message: whole, or not at all."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._arriving, self.leaving = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (self._arriving, self.leaving):
            end.setblocking(False)
        self.leaving.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_BYTES)

    def take(self, pid: int, *, is_last: bool) -> None:
        """Has the board show the worker's latest snapshot, or keep its last one."""
        latest = None
        with suppress(OSError):  # there is no more, or its last was taken before
            while True:
                latest = self._arriving.recv(MESSAGE_BYTES)
        if latest is not None:
            self._board.publish(pid, pickle.loads(latest))  # noqa: S301  (its own worker has sent it)
        if is_last:
            self._board.end(pid)
            self._arriving.close()


def send(leaving: socket.socket, snapshot: Snapshot) -> None:
    """Sends a snapshot; the next one makes up for one that the supervisor, suspended or gone, does not take."""
    with suppress(BlockingIOError, ConnectionError):
        leaving.send(pickle.dumps(snapshot))
