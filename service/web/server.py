"""The server: in this process, or in workers that this process supervises. Its graceful shutdown resets no connection.

All workers accept from one listening socket, so a new connection goes to a free worker, never to one that hangs.
"""

import asyncio
import logging
import multiprocessing
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE

from service.db import embedded
from service.settings import Settings, SettingsError, load
from service.web import log
from service.web.metrics import PUBLISH_SECONDS, Board, Inlet, Publish, Snapshot, copied, send
from service.web.protocol import Protocol

SHUTDOWN_SECONDS = 5  # for the requests in progress; the pool and the database have the rest of ten
CONNECTING_SECONDS = 0.3  # a round trip around the world, to complete TCP handshakes
QUEUE_ROUNDS = 200  # of 0.01 s at most, to accept the connections in the socket's queue
ARRIVING_SECONDS = 0.1  # for the first request, which follows the handshake at once

ROUND_SECONDS = 0.1  # between checks of the workers, and between a worker's heartbeats
HUNG_ROUNDS = 30  # without a heartbeat; clients give up after 5 s
START_ROUNDS = 600  # until the first heartbeat: imports on a slow machine
CLOSE_ROUNDS = 10  # until the listening socket is closed, even if a worker hangs
END_ROUNDS = 80  # for all workers to end; the embedded database has the rest of ten seconds

SERVER_OPTIONS: dict[str, Any] = {  # for uvicorn; the benchmark uses them too
    "loop": "uvloop",
    "http": Protocol,
    "ws": "none",
    "log_config": None,
    "access_log": False,
    "proxy_headers": False,  # see web/forwarded.py
    "server_header": False,
    "workers": 1,  # else it reads WEB_CONCURRENCY itself, and fails where that is empty
    "timeout_graceful_shutdown": SHUTDOWN_SECONDS,
}

CreateApp = Callable[[Settings], ASGIApp]  # a module's function, which workers import

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SO_BINDTOIFINDEX = 62  # asm-generic/socket.h
NO_INTERFACE = 2**31 - 1  # the highest index; they are counted from 1
SPAWN = multiprocessing.get_context("spawn")

logger = logging.getLogger(__name__)


class CannotStart(Exception):
    """The server or a worker fails before it serves; the message is for the user."""


def end_on_signals(end: Callable[[int], object] = sys.exit) -> None:
    """Makes Ctrl+C, SIGTERM and a closed terminal exit with status 0; by sys.exit, `with` blocks are left."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end(0))
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))  # uvicorn does not handle it


def run(create_app: CreateApp, settings: Settings, listener: socket.socket, board: Board | None = None) -> None:
    """Serves until a signal ends the process; publishes on the board what is counted.

    Raises CannotStart, and without workers what create_app raises.
    """
    if settings.web_concurrency > 1:
        _run_workers(create_app, settings.web_concurrency, listener, board)
        return

    def publish(snapshot: Snapshot) -> None:
        if board is not None:
            board.publish(os.getpid(), copied(snapshot))

    try:
        Server(create_app, settings, listener, publish=publish).run([listener])
    except SystemExit as end:
        if end.code == STARTUP_FAILURE:
            raise CannotStart("The service cannot start: the lines above say why") from None
        raise


class Server(uvicorn.Server):
    """uvicorn's server with a graceful shutdown that resets no connection, and in a worker a heartbeat."""

    def __init__(
        self,
        create_app: CreateApp,
        settings: Settings,
        listener: socket.socket,
        heartbeats: Connection | None = None,
        publish: Publish | None = None,
    ) -> None:
        options = SERVER_OPTIONS | {"timeout_keep_alive": settings.keep_alive}
        super().__init__(uvicorn.Config(lambda: create_app(settings), factory=True, **options))
        self._listener = listener
        self._heartbeats = heartbeats
        self._publish = publish

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until a signal arrives, or the supervising process has gone."""
        tasks = [asyncio.create_task(self._send_heartbeats()), asyncio.create_task(self._publish_metrics())]
        try:
            await super().serve(sockets)
        finally:
            for task in tasks:
                task.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shuts down after all who have connected have a response.

        uvicorn alone would close the listening socket, which resets the connections in its queue, and every connection
        without a request.
        """
        self.config.loaded_app.state.db.hub.close()  # ends streams at once: their clients reconnect elsewhere
        if self._heartbeats is None:  # else other workers accept, or the supervisor has done it
            stop_connecting(self._listener)
        await asyncio.sleep(CONNECTING_SECONDS)
        for _ in range(QUEUE_ROUNDS):
            if not _has_queue(self._listener):
                break
            await asyncio.sleep(0.01)
        for server in self.servers:
            server.close()
        await asyncio.sleep(ARRIVING_SECONDS)
        await super().shutdown(sockets)

    async def _send_heartbeats(self) -> None:
        while self._heartbeats is not None:
            try:
                self._heartbeats.send(self.started)
            except BlockingIOError:  # the supervisor does not read: suspended in a terminal
                pass
            except OSError:  # the supervisor was killed
                self._heartbeats = None
                self.should_exit = True
            await asyncio.sleep(ROUND_SECONDS)

    async def _publish_metrics(self) -> None:
        while self._publish is not None:
            await asyncio.sleep(PUBLISH_SECONDS)
            if self.started and (metrics := self.config.loaded_app.metrics) is not None:
                self._publish(metrics.snapshot(self.server_state))


def stop_connecting(listener: socket.socket) -> None:
    """Refuses new connections to the socket, in all processes; those that are queued can still be accepted.

    Closing a listening socket resets the connections that are not accepted yet. So they must be accepted first, while
    no new ones arrive. On Linux a socket can be bound to one network interface: bound to one that does not exist, it
    gets no packet that begins a connection. This takes no right, which a filter of packets does.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # before Linux 5.7, for others than root: a few connections may be reset
            listener.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, NO_INTERFACE)


def _has_queue(listener: socket.socket) -> bool:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))


def _run_workers(create_app: CreateApp, number: int, listener: socket.socket, board: Board | None) -> None:
    workers: list[_Worker] = []
    try:
        for _ in range(number):
            with _signals_blocked():
                workers.append(_Worker(create_app, listener, board))
        while True:
            time.sleep(ROUND_SECONDS)
            for index, worker in enumerate(workers):
                if (end := worker.end()) is None:
                    continue
                if worker.cannot_start:
                    raise CannotStart(f"A worker {end} before it could serve: the lines above may say why")
                logger.error("worker %d %s: another takes its place", worker.process.pid, end)
                with _signals_blocked():
                    workers[index] = _Worker(create_app, listener, board)
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # a second signal changes nothing
        _stop(workers, listener)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Defers the signals that end the process; a worker started meanwhile inherits this and must unblock them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


class _Worker:
    """A worker process, as its supervisor sees it."""

    def __init__(self, create_app: CreateApp, listener: socket.socket, board: Board | None) -> None:
        self._heartbeats, heartbeats = SPAWN.Pipe(duplex=False)
        self._inlet = None if board is None else Inlet(board)
        leaving = None if self._inlet is None else self._inlet.leaving
        self._silent_rounds = 0
        self._is_up = False  # its event loop runs
        self._has_served = False
        self.process = SPAWN.Process(target=_work, args=(create_app, listener, heartbeats, leaving), daemon=True)
        self.process.start()
        heartbeats.close()
        if leaving is not None:
            leaving.close()

    @property
    def cannot_start(self) -> bool:
        """Whether a new worker would fail in the same way: it exited with an error before it served."""
        return not self._has_served and (self.process.exitcode or 0) > 0

    def end(self) -> str | None:
        """Returns how the worker ended, None while it works. Must be called once a round; kills a worker that hangs."""
        with suppress(EOFError, OSError):  # it is exiting
            while self._heartbeats.poll():
                self._has_served |= self._heartbeats.recv()
                self._is_up = True
                self._silent_rounds = 0
        # rounds, not a clock, which runs on while everything is suspended (Ctrl+Z, a laptop's sleep)
        self._silent_rounds += 1
        if self._silent_rounds > (HUNG_ROUNDS if self._is_up else START_ROUNDS):
            self.kill()
            how = "hung and was killed"
        elif self.process.is_alive():
            how = None
        else:
            status = self.process.exitcode or 0
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        if self._inlet is not None:
            self._inlet.take(self.process.pid or 0, is_last=how is not None)
        return how

    def kill(self) -> None:
        """Kills the process, and waits until it is gone."""
        self.process.kill()
        self.process.join()


def _work(
    create_app: CreateApp, listener: socket.socket, heartbeats: Connection, snapshots: socket.socket | None
) -> None:
    # At once: there is nothing to leave before uvicorn handles signals, nor after. An exception between any two
    # instructions of a start would be told in the log.
    end_on_signals(os._exit)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    os.set_blocking(heartbeats.fileno(), False)
    try:
        settings = load()
        log.set_up(settings.log_level, settings.log_format)
        publish = None if snapshots is None else partial(send, snapshots)
        Server(create_app, settings, listener, heartbeats, publish).run([listener])
    except (embedded.Unusable, SettingsError) as error:
        sys.exit(str(error))


def _stop(workers: list[_Worker], listener: socket.socket) -> None:
    stop_connecting(listener)
    for worker in workers:
        worker.process.terminate()
    for number in range(END_ROUNDS):
        time.sleep(ROUND_SECONDS)
        workers = [worker for worker in workers if worker.end() is None]
        if not workers:
            return
        if number == CLOSE_ROUNDS:
            with suppress(OSError):  # a worker that hangs holds it open, and clients must not wait for that one
                listener.shutdown(socket.SHUT_RDWR)
    for worker in workers:
        worker.kill()
