"""The load: wrk against a process, pgbench against PostgreSQL, and what is measured meanwhile."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from service.queries import tasks
from tests.bench import database
from tests.bench.processes import Failure, Running, cpu_seconds, memory_mib, settle, tail

SCRIPT = Path(__file__).parent / "wrk.lua"

WORKLOADS = {
    "one": "GET one task",
    "list": "GET the list of 50",
    "unchanged": "GET the list of 50 with an If-None-Match that holds: a 304 of the service; the peers send the list",
    "create": "POST a task",
    "complete": "PATCH complete, toggling",
    "update": "PUT another title",
    "mix": "60 % one, 20 % list, 6 % create, 7 % complete, 7 % update",
}
SEARCH = "search"  # for 192 words: a workload for those beside whom others are measured

PGBENCH_CLIENTS = 15  # as many as each peer has connections

USER, TASK = ":user", "md5(:user || '/' || :task)::uuid"
NEW_TASK = """'{"title": "Call the plumber", "description": "before noon", "priority": "high"}'"""
PATCH = """('{"title": "' || :number || '"}')::jsonb"""
# The arguments of the service's statements, $1 first. A literal that is null or false costs PostgreSQL no more than
# a parameter; the new title is a number, since pgbench makes nothing else.
STATEMENTS = {
    "one": (tasks.TASK_FIND, (USER, TASK, "null::text[]")),
    "list": (tasks.TASK_LIST, (USER, "null::text[]")),
    "unchanged": (tasks.TASK_LIST, (USER, "'{*}'::text[]")),
    "create": (tasks.INSERT_TASK, (USER, "'500ms'", "gen_random_uuid()", NEW_TASK, "null", "null", "null")),
    "complete": (tasks.CHANGE_TASK, (USER, "'500ms'", "'complete'", TASK, "null", "null", "null")),
    "update": (tasks.CHANGE_TASK, (USER, "'500ms'", "'update'", TASK, PATCH, "null", "null")),
}
MIX = {"one": 60, "list": 20, "create": 6, "complete": 7, "update": 7}


@dataclass(frozen=True)
class Ground:
    """What a measurement takes place on: a seeded database, and its users with their tokens."""

    server: database.Server | None  # None: one elsewhere, whose processes are not looked at
    url: str
    users: int
    users_file: Path


@dataclass(frozen=True)
class Timing:
    """How long each measurement takes, in seconds."""

    warm_up: int
    measured: int


@dataclass(frozen=True)
class Answers:
    """What wrk says of one run; milliseconds."""

    requests: int
    speed: float  # requests per second
    p50: float
    p99: float


@dataclass(frozen=True)
class Sample:
    """One measurement; None is what cannot be known of pgbench, or of a database elsewhere."""

    speed: float  # requests per second
    p50: float | None  # milliseconds
    p99: float | None
    cpu: float | None  # CPU seconds per 1,000 requests, of the process
    database_cpu: float | None  # and of PostgreSQL
    memory: float | None  # MiB


def measure(
    ground: Ground,
    peer: Running,
    workload: str,
    connections: int,
    seed: int,
    timing: Timing,
    meanwhile: AbstractContextManager[None] | None = None,
) -> Sample:
    """Measures one workload on tables of their first size, warmed up. Raises Failure on any wrong answer.

    What happens meanwhile counts into the CPU seconds.
    """
    prepare(ground, peer)
    wrk(peer, workload, ground.users_file, connections, timing.warm_up, seed)
    _settle(ground, peer)  # wrk leaves in the middle of its last requests
    cpu, database_cpu = cpu_seconds(peer.pid), _database_cpu(ground)
    with meanwhile or nullcontext():
        answers = wrk(peer, workload, ground.users_file, connections, timing.measured, seed + 1)
    if not answers.requests:
        raise Failure(f"{workload}, {connections} connections: no answer of {peer.title} in time; give more --seconds")
    return Sample(
        speed=answers.speed,
        p50=answers.p50,
        p99=answers.p99,
        cpu=(cpu_seconds(peer.pid) - cpu) * 1000 / answers.requests,
        database_cpu=(_database_cpu(ground) - database_cpu) * 1000 / answers.requests if ground.server else None,
        memory=memory_mib(peer.pid),
    )


def prepare(ground: Ground, peer: Running) -> None:
    """Waits until nothing is left of the last load, and brings the tables back to their first size."""
    _settle(ground, peer)
    database.reset(ground.url)
    os.truncate(peer.log, 0)  # a line a request fills a disk


def _settle(ground: Ground, peer: Running) -> None:
    settle(peer.pid, *([ground.server.pid] if ground.server else []))


def _database_cpu(ground: Ground) -> float:
    return cpu_seconds(ground.server.pid) if ground.server else 0.0


def wrk(peer: Running, workload: str, users: Path, connections: int, seconds: int, seed: int) -> Answers:
    """Runs wrk. Raises Failure when an answer was not a success, or did not come."""
    result = subprocess.run(
        _wrk_command(peer, workload, users, connections, seconds, seed), capture_output=True, text=True, check=False
    )
    return _read(result.stdout, f"{workload}, {connections} connections: {peer.title}", result.stderr, peer.log)


@contextmanager
def beside(peer: Running, workload: str, users: Path, seconds: int, connections: int = 1) -> Iterator[None]:
    """Runs a second client meanwhile. Raises Failure when it had no answer; with one connection, when one was wrong."""
    command = _wrk_command(peer, workload, users, connections, seconds, 1)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield
            stdout, stderr = process.communicate()
        finally:
            process.kill()
    _read(stdout, f"{workload}, the second client: {peer.title}", stderr, peer.log, may_be_refused=connections > 1)


@contextmanager
def busy_loop() -> Iterator[None]:
    """Keeps a core busy with nothing meanwhile: shows what sharing the processor costs, whoever it is shared with."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def pgbench(ground: Ground, workload: str, folder: Path, seconds: int) -> Sample:
    """Measures the same workload with PostgreSQL alone: the service's own statements, prepared, without a server."""
    assert ground.server is not None
    settle(ground.server.pid)
    database.reset(ground.url)
    parts = MIX if workload == "mix" else {workload: 1}
    scripts = [
        argument for part, weight in parts.items() for argument in ("-f", f"{_script(ground, part, folder)}@{weight}")
    ]
    options = ["-n", "-M", "prepared", "-c", str(PGBENCH_CLIENTS), "-T", str(seconds), *scripts, ground.url]
    before = cpu_seconds(ground.server.pid)
    result = subprocess.run([database.BINARIES / "pgbench", *options], capture_output=True, text=True, check=False)
    used = cpu_seconds(ground.server.pid) - before
    speed = re.search(r"^tps = ([\d.]+)", result.stdout, re.MULTILINE)
    failed = re.search(r"^number of failed transactions: (\d+)", result.stdout, re.MULTILINE)
    if result.returncode or speed is None or failed is None or failed[1] != "0":
        raise Failure(f"pgbench fails:\n{result.stdout}{result.stderr}")
    return Sample(float(speed[1]), None, None, None, used * 1000 / (float(speed[1]) * seconds), None)


def _wrk_command(peer: Running, workload: str, users: Path, connections: int, seconds: int, seed: int) -> list[str]:
    # one thread: the cores are for those who are measured; FastAPI needs the patience at 512 connections
    options = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", "-s", str(SCRIPT), peer.address]
    return ["wrk", *options, "--", workload, str(users), str(seed)]


def _read(output: str, what: str, errors: str, log: Path, *, may_be_refused: bool = False) -> Answers:
    found = re.search(r"^\{.*\}$", output, re.MULTILINE)
    if found is None:
        raise Failure(f"{what}: wrk fails:\n{output}{errors}")
    result = json.loads(found[0])
    wrong = {kind: result[kind] for kind in ("status", "connect", "read", "write", "timeout") if result[kind]}
    if wrong and not may_be_refused:
        raise Failure(f"{what}: wrong answers {wrong} among {result['requests']}; its log ends:\n{tail(log)}")
    return Answers(result["requests"], result["requests"] / result["seconds"], result["p50"], result["p99"])


def _script(ground: Ground, workload: str, folder: Path) -> Path:
    """Writes the service's statement as a script for pgbench; returns its path."""
    statement, arguments = STATEMENTS[workload]
    text = "\n".join(line for line in statement.sql.splitlines() if not line.lstrip().startswith("--"))
    text = re.sub(r"\$(\d+)", lambda match: arguments[int(match[1]) - 1], text)
    step = database.caller_step(ground.users)
    path = folder / f"{workload}.pgbench"
    path.write_text(
        f"\\set user {database.FIRST_USER} + {step} * random(0, {database.CALLERS - 1})\n"
        f"\\set task random(1, {database.TASKS_EACH})\n"
        "\\set number random(1, 1000000)\n"
        f"{text};\n"
    )
    return path
