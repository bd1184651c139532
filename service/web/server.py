"""The server: in this process, or in workers that this process watches and replaces. Either ends without a reset.

All workers accept from one listening socket, so a new connection goes to one that is free, never to one that hangs.
"""

import asyncio
import ctypes
import logging
import multiprocessing
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE

from service.db import embedded
from service.settings import Settings, SettingsError, load
from service.web import log
from service.web.protocol import Protocol

SHUTDOWN_SECONDS = 5  # for the requests that have begun; the pool and the database take the rest of ten
CONNECTING_SECONDS = 0.3  # a handshake's way across the world and back
QUEUE_ROUNDS = 200  # of 0.01 s at most, until those who have connected are accepted
ARRIVING_SECONDS = 0.1  # from the last handshake to the request, which follows at once

ROUND_SECONDS = 0.1  # between two looks at the workers, and between two beats of a worker
HUNG_ROUNDS = 30  # without a beat; a client that waits longer than 5 s is gone
START_ROUNDS = 600  # until the first beat: Python's imports on a slow machine
CLOSE_ROUNDS = 10  # until nobody connects any more, whoever hangs
END_ROUNDS = 80  # for all workers to end; the embedded database has the rest of ten seconds

SERVER_OPTIONS: dict[str, Any] = {  # uvicorn's; the benchmark's applications run under the same
    "loop": "uvloop",
    "http": Protocol,
    "ws": "none",
    "log_config": None,
    "access_log": False,
    "proxy_headers": False,  # the service reads them itself, and only where there are any
    "server_header": False,
    "timeout_graceful_shutdown": SHUTDOWN_SECONDS,
}

CreateApp = Callable[[Settings], ASGIApp]  # a function of a module: a worker imports it

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SO_ATTACH_FILTER = 26  # asm-generic/socket.h
SPAWN = multiprocessing.get_context("spawn")

logger = logging.getLogger(__name__)


class CannotStart(Exception):
    """The server, or one of its workers, does not get as far as to serve; printed as it is."""


def end_on_signals() -> None:
    """Makes Ctrl+C, SIGTERM and a closed terminal end the process in order: `with` blocks are left, the status is 0."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        # uvicorn knows nothing of this signal
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def run(create_app: CreateApp, settings: Settings, listener: socket.socket) -> None:
    """Serves until a signal ends the process. Raises CannotStart, and what a start in this process raises."""
    if settings.web_concurrency > 1:
        _run_workers(create_app, settings.web_concurrency, listener)
        return
    try:
        Server(create_app, settings, listener).run([listener])
    except SystemExit as end:
        if end.code == STARTUP_FAILURE:
            raise CannotStart("The service cannot start: the lines above say why") from None
        raise


class Server(uvicorn.Server):
    """uvicorn's server; its end resets nobody, and in a worker it beats while its event loop runs."""

    def __init__(
        self, create_app: CreateApp, settings: Settings, listener: socket.socket, beats: Connection | None = None
    ) -> None:
        options = SERVER_OPTIONS | {"timeout_keep_alive": settings.keep_alive}
        super().__init__(uvicorn.Config(lambda: create_app(settings), factory=True, **options))
        self._listener = listener
        self._beats = beats

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until a signal comes, or the process that watches has gone."""
        beating = asyncio.create_task(self._beat())
        try:
            await super().serve(sockets)
        finally:
            beating.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends; whoever has connected is answered first.

        uvicorn alone closes the listening socket, which resets those in its queue, and closes every connection that has
        no request yet.
        """
        self.config.loaded_app.state.db.hub.close()  # streams end at once, so that their clients come back elsewhere
        if self._beats is None:  # else there are others to accept, or the process that watches does it
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

    async def _beat(self) -> None:
        while self._beats is not None:
            try:
                self._beats.send(self.started)
            except BlockingIOError:  # nobody listens at the moment: all were stopped, in a terminal
                pass
            except OSError:  # killed, and could not tell
                self._beats = None
                self.should_exit = True
            await asyncio.sleep(ROUND_SECONDS)


def stop_connecting(listener: socket.socket) -> None:
    """Lets nobody begin to connect any more, in whichever process; those who have begun can still be accepted.

    A listening socket resets, when it is closed, all who have connected and are not accepted yet. So they have to be
    accepted before, while nobody else comes. Only Linux can do that: by a filter that drops each connection's first
    packet. The client repeats it after a second, and then is refused.
    """
    if sys.platform != "linux":
        return
    instructions = (  # BPF's: code, jumps if true and if false, operand
        (0x30, 0, 0, 13),  # load the byte of the TCP header that has the flags
        (0x45, 0, 1, 0x02),  # SYN?
        (0x06, 0, 0, 0),  # drop
        (0x06, 0, 0, 0xFFFFFFFF),  # else pass
    )
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in instructions))
    with suppress(OSError):  # without it a few may be reset, no more
        value = struct.pack("HP", len(instructions), ctypes.addressof(program))
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, value)


def _has_queue(listener: socket.socket) -> bool:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))


def _run_workers(create_app: CreateApp, number: int, listener: socket.socket) -> None:
    workers: list[_Worker] = []
    try:
        for _ in range(number):
            with _undisturbed():
                workers.append(_Worker(create_app, listener))
        while True:
            time.sleep(ROUND_SECONDS)
            for index, worker in enumerate(workers):
                if (end := worker.end()) is None:
                    continue
                if worker.cannot_start:
                    raise CannotStart(f"A worker {end} before it could serve: the lines above may say why")
                logger.error("worker %d %s: another takes its place", worker.process.pid, end)
                with _undisturbed():
                    workers[index] = _Worker(create_app, listener)
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # once is enough
        _end(workers, listener)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keeps the signals that end the process for later; a worker that is started meanwhile has to let them in."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


class _Worker:
    """A process that serves, as its parent sees it."""

    def __init__(self, create_app: CreateApp, listener: socket.socket) -> None:
        self._beats, beats = SPAWN.Pipe(duplex=False)
        self._silent_rounds = 0
        self._is_up = False  # its event loop has run
        self._has_served = False
        self.process = SPAWN.Process(target=_work, args=(create_app, listener, beats), daemon=True)
        self.process.start()
        beats.close()

    @property
    def cannot_start(self) -> bool:
        """Whether another one would end in the same way: it failed by itself, before it served."""
        return not self._has_served and (self.process.exitcode or 0) > 0

    def end(self) -> str | None:
        """Returns how the worker ended, None while it works. To be asked once a round: one that hangs is killed."""
        with suppress(EOFError, OSError):  # it is just ending
            while self._beats.poll():
                self._has_served |= self._beats.recv()
                self._is_up = True
                self._silent_rounds = 0
        # not by a clock: after Ctrl+Z and fg, or a laptop's sleep, nobody hangs
        self._silent_rounds += 1
        if self._silent_rounds > (HUNG_ROUNDS if self._is_up else START_ROUNDS):
            self.kill()
            return "hung and was killed"
        if self.process.is_alive():
            return None
        status = self.process.exitcode or 0
        return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"

    def kill(self) -> None:
        """Ends it at once; returns when it is gone."""
        self.process.kill()
        self.process.join()


def _work(create_app: CreateApp, listener: socket.socket, beats: Connection) -> None:
    end_on_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    os.set_blocking(beats.fileno(), False)
    try:
        settings = load()
        log.set_up(settings.log_level, settings.log_format)
        Server(create_app, settings, listener, beats).run([listener])
    except (embedded.Unusable, SettingsError) as error:
        sys.exit(str(error))


def _end(workers: list[_Worker], listener: socket.socket) -> None:
    stop_connecting(listener)
    for worker in workers:
        worker.process.terminate()
    for number in range(END_ROUNDS):
        time.sleep(ROUND_SECONDS)
        workers = [worker for worker in workers if worker.end() is None]
        if not workers:
            return
        if number == CLOSE_ROUNDS:
            with suppress(OSError):  # a worker that hangs still holds it, and nobody shall wait for that one
                listener.shutdown(socket.SHUT_RDWR)
    for worker in workers:
        worker.kill()
