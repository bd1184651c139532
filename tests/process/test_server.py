"""The server's processes: however they end, hang or fail to start, who has connected gets an answer."""

import inspect
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
import uvicorn

from service.app import create_app
from service.settings import Settings
from service.web.server import ENDING, HUNG_ROUNDS, ROUND_SECONDS, Server
from tests.conftest import ROOT, Served, service_environment, serving, wait_until
from tests.processes import STOP_SECONDS, external, run_service, stop

pytestmark = pytest.mark.slow

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: service.test\r\n\r\n"
WHOLE_ANSWER = b'{"status": "ok"}'


def workers(service: Served) -> list[psutil.Process]:
    """Returns the service's workers; its other children are multiprocessing's resource tracker, and PostgreSQL's."""
    children = psutil.Process(service.process.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def has_accepted(worker: psutil.Process, connection: socket.socket) -> bool:
    return any(its.raddr == connection.getsockname() for its in worker.net_connections())


def connected_to(worker: psutil.Process, service: Served) -> socket.socket:
    """Returns a connection that this worker has accepted and answered once."""
    found = []

    def try_one() -> bool:
        connection = socket.create_connection(("127.0.0.1", service.port), timeout=10)
        if asked(connection) == "answered" and has_accepted(worker, connection):
            found.append(connection)
        else:
            connection.close()
        return bool(found)

    wait_until(try_one)
    return found[0]


@contextmanager
def two_workers(folder: Path, database_url: str) -> Iterator[tuple[Served, list[psutil.Process]]]:
    """Yields a service and its workers, both of which serve already."""
    with serving(folder, **external(database_url), WEB_CONCURRENCY="2", LOG_LEVEL="error") as service:
        both = workers(service)
        try:
            for worker in both:
                connected_to(worker, service).close()
            yield service, both
        finally:
            for worker in both:  # a stopped one would not see that its parent is gone
                with suppress(psutil.NoSuchProcess):
                    worker.kill()


@pytest.fixture
def service_and_workers(tmp_path: Path, database_url: str) -> Iterator[tuple[Served, list[psutil.Process]]]:
    with two_workers(tmp_path, database_url) as found:
        yield found


# What clients see of an end -------------------------------------------------------------------------------------------


def connect_anew(port: int) -> str:
    """Opens a connection for one request; returns what became of it."""
    try:
        connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return repr(error)
    with connection:
        return asked(connection)


def asked(connection: socket.socket) -> str:
    answer = b""
    try:
        connection.sendall(REQUEST)
        while not answer.endswith(WHOLE_ANSWER):
            if not (more := connection.recv(4096)):
                return "closed without an answer"
            answer += more
    except OSError as error:
        return repr(error)
    return "answered"


def connect_until_refused(port: int) -> Counter[str]:
    seen: Counter[str] = Counter()
    while not seen["refused"]:
        seen[connect_anew(port)] += 1
    return seen


def ask_again_until_refused(port: int) -> Counter[str]:
    """Keeps its connection, as browsers do; what is sent on an idle one just when it is closed may be lost."""
    seen: Counter[str] = Counter()
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=10)
        except ConnectionRefusedError:
            return seen
        with connection:
            seen[asked(connection)] += 1
            while asked(connection) == "answered":
                time.sleep(0.001)


def what_clients_see(port: int, threads: ThreadPoolExecutor) -> Callable[[], Counter[str]]:
    """Begins to connect, and goes on until the port is closed; what is returned waits for that, and tells."""
    clients = [threads.submit(connect_until_refused, port) for _ in range(12)]
    clients += [threads.submit(ask_again_until_refused, port) for _ in range(4)]
    time.sleep(0.3)
    return lambda: sum((client.result(30) for client in clients), Counter[str]())


@pytest.mark.parametrize(
    ("count", "number", "tries"),
    [(count, number, 3 if number == signal.SIGTERM else 1) for count in ("1", "2") for number in ENDING],
)
def test_at_the_end_new_clients_are_answered_or_refused(
    tmp_path: Path, database_url: str, count: str, number: signal.Signals, tries: int
) -> None:
    for _ in range(tries):
        with (
            ThreadPoolExecutor(16) as threads,
            serving(tmp_path, **external(database_url), WEB_CONCURRENCY=count, LOG_LEVEL="error") as service,
        ):
            seen = what_clients_see(service.port, threads)
            assert stop(service, number) == 0
            assert seen().keys() == {"answered", "refused"}, seen()
            assert service.log.read_text() == ""


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_for_all_processes_at_once_is_no_other_end(
    tmp_path: Path, database_url: str, number: signal.Signals
) -> None:
    """As from a terminal, honcho or systemd; the parent is the last to know."""
    with ThreadPoolExecutor(16) as threads, two_workers(tmp_path, database_url) as (service, both):
        seen = what_clients_see(service.port, threads)
        for process in both:
            process.send_signal(number)
        assert stop(service, number) == 0
        assert seen().keys() == {"answered", "refused"}, seen()
        assert service.log.read_text() == ""


ENDED_EARLY = """
import os, signal, socket
from multiprocessing import Pipe
import uvicorn.server
from service.web import server

uvicorn.server.asyncio_run = lambda coroutine, **options: os.kill(os.getpid(), signal.SIGTERM)
server._work(None, socket.socket(), Pipe(duplex=False)[1], None)
"""


def test_a_worker_that_is_ended_in_the_middle_of_its_start_says_nothing(database_url: str) -> None:
    command, environment = [sys.executable, "-c", ENDED_EARLY], service_environment(**external(database_url))
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_service_that_is_to_outlive_its_terminal_does(tmp_path: Path, database_url: str) -> None:
    command = ["nohup", sys.executable, "-m", "service"]
    environment = service_environment(**external(database_url), PORT="0")
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: httpx.get(address + "/healthz").status_code == 200)
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_SECONDS) == 0
        finally:
            process.kill()


# Workers that die, hang, or do not start ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_is_replaced(
    service_and_workers: tuple[Served, list[psutil.Process]], number: signal.Signals
) -> None:
    service, (lost, other) = service_and_workers
    kept = [connected_to(lost, service) for _ in range(5)]
    lost.send_signal(number)
    for _ in range(200):  # while it hangs, or another one starts in its place
        assert connect_anew(service.port) == "answered"
    for connection in kept:  # its own clients are told, within these sockets' 10 seconds
        with connection:
            assert "timed out" not in asked(connection)
    wait_until(lambda: not lost.is_running() and len(workers(service)) == 2)
    assert other in workers(service)
    for worker in workers(service):
        connected_to(worker, service).close()
    reason = {signal.SIGSTOP: "hung and was killed", signal.SIGKILL: "was killed by signal 9"}
    assert f"worker {lost.pid} {reason.get(number, 'ended with status 0')}: another takes its place" in (
        service.log.read_text()
    )
    assert stop(service) == 0


def test_nobody_waits_over_five_seconds_for_a_worker_that_hangs() -> None:
    assert HUNG_ROUNDS * ROUND_SECONDS <= 4


def test_a_worker_that_ends_resets_nobody(tmp_path: Path, database_url: str) -> None:
    with ThreadPoolExecutor(16) as threads, two_workers(tmp_path, database_url) as (service, (one, _)):
        seen = what_clients_see(service.port, threads)
        one.terminate()
        wait_until(lambda: not one.is_running())
        assert stop(service) == 0
        assert seen().keys() == {"answered", "refused"}, seen()


@pytest.mark.parametrize("hung", [1, 2])
def test_workers_that_hang_do_not_keep_the_service_from_ending(
    service_and_workers: tuple[Served, list[psutil.Process]], hung: int
) -> None:
    service, both = service_and_workers
    for worker in both[:hung]:
        worker.suspend()
    service.process.send_signal(signal.SIGTERM)
    wait_until(lambda: connect_anew(service.port) == "refused")  # long before the worker that hangs is given up
    assert service.process.poll() is None
    assert service.process.wait(STOP_SECONDS) == 0
    assert not any(worker.is_running() for worker in both)


def test_processes_that_were_all_stopped_go_on(service_and_workers: tuple[Served, list[psutil.Process]]) -> None:
    """As by Ctrl+Z and fg, or a laptop that sleeps."""
    service, both = service_and_workers
    everyone = [psutil.Process(service.process.pid), *both]
    for process in everyone:
        process.suspend()
    time.sleep(HUNG_ROUNDS * ROUND_SECONDS + 1)
    for process in everyone:
        process.resume()
    time.sleep(HUNG_ROUNDS * ROUND_SECONDS + 1)
    assert workers(service) == both
    assert connect_anew(service.port) == "answered"


def test_workers_end_with_a_parent_that_was_killed(
    service_and_workers: tuple[Served, list[psutil.Process]],
) -> None:
    service, both = service_and_workers
    service.process.kill()
    wait_until(lambda: not any(worker.is_running() for worker in both))


LIFESPAN = """
from service.db.coalescer import Coalescer
async def fail(self): raise RuntimeError("no lifespan today")
Coalescer.open = fail
"""


@pytest.mark.parametrize("count", ["1", "2"])
@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("uvloop.py", "raise ImportError('no uvloop today')", "no uvloop today"),
        ("sitecustomize.py", LIFESPAN, "no lifespan today"),
    ],
)
def test_what_cannot_start_is_not_tried_for_ever(
    tmp_path: Path, database_url: str, count: str, file: str, text: str, said: str
) -> None:
    (tmp_path / file).write_text(text)
    settings = external(database_url) | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "WEB_CONCURRENCY": count, "PORT": "0"}
    ended = run_service(tmp_path, **settings)
    assert (ended.returncode, ended.stdout.count("Serving on")) == (1, 1)
    assert said in ended.stderr
    if count == "2" or file == "sitecustomize.py":
        assert ended.stderr.splitlines()[-1].endswith("say why")


def test_what_the_server_uses_of_uvicorn_is_there(settings: Settings) -> None:
    """None of it is documented but `serve`; `servers`, which uvicorn sets at the start, is in every test above."""
    for method in (uvicorn.Server.serve, uvicorn.Server.shutdown):
        assert list(inspect.signature(method).parameters) == ["self", "sockets"]
    with socket.socket() as listener:
        server = Server(create_app, settings, listener)
    assert (server.started, server.should_exit) == (False, False)
    assert uvicorn.config.STARTUP_FAILURE > 0
