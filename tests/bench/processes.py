"""The peers' processes: started, watched and stopped."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

START_SECONDS = 60
SETTLE_SECONDS = 60


class Failure(Exception):
    """Why the benchmark cannot go on, or must not; printed as it is."""


@dataclass(frozen=True)
class Running:
    """A process under test."""

    title: str
    pid: int
    port: int
    log: Path

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running(title: str, command: list[str], environment: dict[str, str], folder: Path) -> Iterator[Running]:
    """Runs the command, which listens on $PORT; yields it once it does, and ends it afterwards."""
    port = free_port()
    log = folder / f"{title.replace(' ', '-')}-{port}.log"
    with log.open("a") as output:
        process = subprocess.Popen(
            [word.replace("$PORT", str(port)) for word in command],
            cwd=folder,  # no .env of the developer's here
            env=environment_of_its_own(environment | {"PORT": str(port)}),
            stdout=output,
            stderr=output,
        )
    peer = Running(title, process.pid, port, log)
    try:
        _wait_until_it_listens(process, peer)
        yield peer
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def environment_of_its_own(settings: dict[str, str]) -> dict[str, str]:
    """Returns an environment with these settings, in which nothing of the developer's configures a peer."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | settings


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def cpu_seconds(pid: int) -> float:
    """Returns the CPU seconds that the process and its children have used, those that have ended included."""
    total = 0.0
    for process in _family(pid):
        with suppress(psutil.NoSuchProcess):  # it has just ended: its parent's times have its own
            total += sum(process.cpu_times()[:4])  # own, then those of ended children; user and system
    return total


def memory_mib(pid: int) -> float:
    """Returns the resident memory (VmRSS) of the process and its children."""
    return sum(process.memory_info().rss for process in _family(pid)) / 2**20


def settle(*pids: int) -> None:
    """Waits until the processes are idle: what a load left behind belongs into nobody's measurement."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        before = sum(cpu_seconds(pid) for pid in pids)
        time.sleep(0.25)
        if sum(cpu_seconds(pid) for pid in pids) - before <= 0.02:
            return
    raise Failure(f"A process is still busy {SETTLE_SECONDS} s after its load has ended")


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _wait_until_it_listens(process: subprocess.Popen[bytes], peer: Running) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", peer.port), 1):
            return
        time.sleep(0.05)
    raise Failure(f"{peer.title} does not start:\n{tail(peer.log)}")


def tail(log: Path) -> str:
    """Returns the log's last lines."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
