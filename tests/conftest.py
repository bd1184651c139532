"""A real PostgreSQL for all tests, the application on it, and a user of its own for each test.

Isolation between users is what the service promises, so it is also what isolates the tests from each other.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import httpx
import jwt
import psycopg
import pytest
from starlette.applications import Starlette

from service.app import create_app
from service.db import embedded
from service.db.address import parse_address
from service.db.migrations import distribute, migrate
from service.settings import Settings

ROOT = Path(__file__).parent.parent
SECRET = "a secret for the tests, as long as the longest HMAC in them wants it: 64 characters and more"  # noqa: S105
ORIGIN = "http://frontend.test:3000"
ADDRESS = "http://service.test"


def make_token(sub: Any, *, key: Any = SECRET, algorithm: Any = "HS256", headers: Any = None, **claims: Any) -> str:
    """Returns a token that is good for an hour, but for what the arguments say; a claim that is None is left out."""
    payload = {"sub": sub, "exp": int(time.time()) + 3600} | claims
    payload = {name: value for name, value in payload.items() if value is not None}
    return jwt.encode(payload, key, algorithm=algorithm, headers=headers)


@dataclass
class User:
    """A user, and the client that calls the API with the user's token."""

    id: str
    client: httpx.AsyncClient
    token: str | None = None  # one of its own, in place of a new one for each call

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token or make_token(self.id)}"}

    @property
    def tasks(self) -> str:
        return f"/api/{self.id}/tasks"

    async def call(self, method: str, path: str = "", **options: Any) -> httpx.Response:
        """Calls the API below the user's tasks."""
        headers = self.headers | options.pop("headers", {})
        return await self.client.request(method, self.tasks + path, headers=headers, **options)

    async def create(self, **fields: Any) -> dict[str, Any]:
        """Creates a task, with a title when none is given; returns it."""
        response = await self.call("POST", json={"title": "Buy milk"} | fields)
        assert response.status_code == 201, response.text
        created: dict[str, Any] = response.json()
        return created


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--database-url", help="run on this database, whose server the tests may do anything to")


def pytest_configure() -> None:
    # the tests' own connections, behind a pooler that tracks no prepared statements
    if os.environ.get("DB_STATEMENT_CACHE") == "0":
        asyncpg.connect = partial(asyncpg.connect, statement_cache_size=0)  # type: ignore[assignment]  # overloads
        psycopg.connect = partial(psycopg.connect, prepare_threshold=None)


@pytest.fixture(scope="session")
def kinds(database_url: str) -> set[str]:
    """What the database of --database-url is that the embedded one is not: `citus`, `older`, a `pooler`."""
    with psycopg.connect(database_url) as connection:
        query = "select from pg_extension where extname = 'citus'"
        is_citus = connection.execute(query).fetchone() is not None
        is_older = connection.info.server_version < 180000
        (pid,) = connection.execute("select pg_backend_pid()").fetchone() or (0,)
        is_pooler = pid != connection.info.backend_pid
    return {name for name, is_so in (("citus", is_citus), ("older", is_older), ("pooler", is_pooler)) if is_so}


@pytest.fixture(autouse=True)
def _suitable(request: pytest.FixtureRequest) -> None:
    """Skips what cannot hold on this database, with the reason that the test gives."""
    for mark in request.node.iter_markers("not_on"):
        kind, reason = mark.args
        if kind in request.getfixturevalue("kinds"):
            pytest.skip(f"not on {kind}: {reason}")


@pytest.fixture(scope="session")
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a PostgreSQL that holds the current schema: that of --database-url, or an embedded one."""
    if url := request.config.getoption("database_url"):
        prepare(url)
        yield url if "?" in url else url + "?sslmode=prefer"  # tests append options
        return
    # Not in pytest's own temporary folder: each pytest that starts closes that folder to all users but its own, and
    # root's PostgreSQL runs as another one.
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "DATA", Path(folder) / ".data")
        with embedded.running() as url:
            migrate(parse_address(url))
            yield url


def prepare(url: str) -> None:
    """Migrates the database; one on Citus is distributed, too."""
    address = parse_address(url)
    migrate(address)
    with psycopg.connect(url) as connection:
        if connection.execute("select from pg_extension where extname = 'citus'").fetchone() is not None:
            distribute(address)


async def execute(url: str, sql: str, *arguments: Any) -> None:
    """Runs the statement on a connection of its own."""
    connection: Any = await asyncpg.connect(url)
    try:
        await connection.execute(sql, *arguments)
    finally:
        await connection.close()


@contextmanager
def empty_database(url: str, options: str = "") -> Iterator[str]:
    """Yields the URL of an empty database of its own on the tests' server."""
    name = f"empty_{uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as server:
        server.execute(f"create database {name} {options}".encode())
        yield urlsplit(url)._replace(path=f"/{name}").geturl()
        server.execute(f"drop database {name} with (force)")


@pytest.fixture(scope="session")
def settings(database_url: str) -> Settings:
    return make_settings(database_url)


def make_settings(url: str, **others: Any) -> Settings:
    """Returns settings that nothing in the environment has a say in."""
    values = {"database_url": url, "better_auth_secret": SECRET, "frontend_url": ORIGIN} | others
    return Settings(_env_file=None, **values)


@pytest.fixture(scope="session")
async def app(settings: Settings) -> AsyncIterator[Starlette]:
    """The application, with its pool open."""
    application = create_app(settings)
    async with application.router.lifespan_context(application):
        yield application


@pytest.fixture(scope="session")
async def client(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, without a token."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=ADDRESS) as http:
        yield http


@pytest.fixture
def user(client: httpx.AsyncClient) -> User:
    return User(f"user-{uuid4()}", client)


@pytest.fixture
def other(client: httpx.AsyncClient) -> User:
    """A second user, whose tasks must never meet the first one's."""
    return User(f"other-{uuid4()}", client)


def service_environment(**settings: str) -> dict[str, str]:
    """Returns the environment for a `python -m service` that is configured by these settings alone."""
    names = ("PATH", "HOME", "LANG", "DB_STATEMENT_CACHE")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | settings


@dataclass
class Served:
    """A service that runs as a process of its own."""

    process: subprocess.Popen[str]
    address: str  # http://127.0.0.1:port
    log: Path  # its standard error

    @property
    def port(self) -> int:
        return int(self.address.rsplit(":", 1)[1])


@contextmanager
def serving(folder: Path, **settings: str) -> Iterator[Served]:
    """Runs `python -m service serve` in the folder, on a free port unless PORT is set; kills it in the end.

    Waits until it answers /healthz.
    """
    log = folder / f"service-{uuid4()}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "service"],
            cwd=folder,
            env=service_environment(**({"PORT": "0"} | settings)),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith("Serving on "), first + log.read_text()
        served = Served(process, first.split()[-1], log)
        wait_until(lambda: process.poll() is not None or httpx.get(served.address + "/healthz").status_code == 200)
        assert process.poll() is None, log.read_text()
        yield served
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> None:
    """Returns once the condition holds; an httpx error counts as "not yet". Fails after some seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


async def eventually(condition: Callable[[], Awaitable[Any]], seconds: float = 20) -> None:
    """Returns once the condition holds; fails after some seconds. The event loop goes on meanwhile."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


async def watched(connection: Any, query: str, *arguments: Any) -> Any:
    """Returns the first value that the query finds in PostgreSQL's statistics as they are now.

    Within a transaction they would otherwise stay what they were at the first look.
    """
    await connection.execute("select pg_stat_clear_snapshot()")
    return await connection.fetchval(query, *arguments)


async def is_blocked(connection: Any, pid: int) -> Any:
    """Returns whether the session of this server process waits for a lock; on Citus, on whatever node."""
    if await connection.fetchval("select to_regclass('citus_stat_activity')") is None:
        return await watched(connection, "select cardinality(pg_blocking_pids($1)) > 0", pid)
    query = "select count(*) from citus_stat_activity where wait_event_type = 'Lock' and global_pid % 10000000000 = $1"
    return await watched(connection, query, pid)


async def waits_for_lock(connection: Any, function: str) -> Any:
    """Returns whether a call of this function waits for a lock; on Citus, on whatever node."""
    view = await connection.fetchval("select coalesce(to_regclass('citus_stat_activity'), 'pg_stat_activity')::text")
    query = f"select count(*) from {view} where wait_event_type = 'Lock' and query like $1"  # noqa: S608
    return await watched(connection, query, f"%tasks.{function}(%")


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, database_url: str) -> Iterator[Served]:
    """The service behind a real uvicorn, on the tests' database."""
    folder = tmp_path_factory.mktemp("served")
    with serving(folder, DATABASE_URL=database_url, BETTER_AUTH_SECRET=SECRET, FRONTEND_URL=ORIGIN) as service:
        yield service
