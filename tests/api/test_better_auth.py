"""With the real thing: users sign up and in at a Better Auth server, and a TypeScript client works on their tasks."""

import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import httpx
import jwt
import psycopg
import pytest

from service.db.address import parse_address
from tests.conftest import ROOT, SECRET, Served, empty_database, make_token, serving, wait_until
from tests.node import node_with
from tests.processes import free_port, run_service, stop

pytestmark = pytest.mark.slow

PACKAGE = ROOT / "tests" / "better_auth"
NODE_MODULES = PACKAGE / "node_modules"
PASSWORD = "correct horse battery staple"  # noqa: S105


@pytest.fixture(scope="module", autouse=True)
def node() -> str:
    """The path of Node.js, whose packages are there."""
    return node_with(PACKAGE)


class BetterAuth:
    """A Better Auth server on a database, to be stopped and started again."""

    def __init__(self, node: str, folder: Path, url: str, **settings: str) -> None:
        self._node = node
        self._log = folder / f"better-auth-{uuid4()}.log"
        self.database = url
        address = parse_address(url)
        self._settings = {
            "PATH": os.environ["PATH"],
            "PGHOST": address.hosts[0].name,
            "PGPORT": str(address.hosts[0].port),
            "PGUSER": address.user,
            "PGPASSWORD": address.secret or "",
            "PGDATABASE": address.database,
            "SHARED_SECRET": SECRET,
            "BETTER_AUTH_TELEMETRY": "0",
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it, on the same port as the last time; returns when it answers."""
        self.port = self.port or free_port()
        with self._log.open("a") as log:
            command = [self._node, str(PACKAGE / "server.js")]
            environment = self._settings | {"PORT": str(self.port)}
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self._process = process
        wait_until(lambda: process.poll() is not None or httpx.get(self.url + "/api/auth/ok").status_code == 200, 60)
        assert process.poll() is None, self._log.read_text()

    def stop(self) -> None:
        """Ends it; returns when it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def sign_up(self) -> "Person":
        """Returns a new user, signed up and then signed in."""
        email = f"{uuid4()}@example.org"
        body = {"email": email, "password": PASSWORD, "name": "Zoë Müller 🎉"}
        for action in ("sign-up", "sign-in"):
            answer = httpx.post(f"{self.url}/api/auth/{action}/email", json=body, headers={"Origin": self.url})
            assert answer.status_code == 200, answer.text
            body.pop("name", None)
        return Person(answer.json()["user"]["id"], email, self.url, dict(answer.cookies))

    def rotate(self) -> None:
        """Ends the life of the current key: the next token has a new one. Better Auth goes on publishing the old."""
        with psycopg.connect(self.database) as connection:
            connection.execute('update jwks set "expiresAt" = now() - interval \'1 second\' where "expiresAt" is null')

    def published(self) -> list[Any]:
        keys: list[Any] = httpx.get(self.url + "/api/auth/jwks").json()["keys"]
        return keys


@dataclass
class Person:
    """A user who is signed in at the Better Auth server."""

    id: str
    email: str
    server: str
    cookies: dict[str, str]

    def token(self, path: str = "/api/auth/token") -> str:
        """Returns a new token, as a page gets it."""
        response = httpx.get(self.server + path, cookies=self.cookies, timeout=20)
        assert response.status_code == 200, response.text
        return str(response.json()["token"])

    def call(self, service: Served, token: str, method: str = "GET", path: str = "", **options: Any) -> httpx.Response:
        """Calls the service below the user's tasks."""
        url = f"{service.address}/api/{self.id}/tasks{path}"
        return httpx.request(method, url, headers={"Authorization": f"Bearer {token}"}, timeout=20, **options)


@contextmanager
def better_auth(node: str, folder: Path, database_url: str, **settings: str) -> Iterator[BetterAuth]:
    """Runs a server on an empty database of its own."""
    with empty_database(database_url) as url, better_auth_on(url, node, folder, **settings) as server:
        yield server


@contextmanager
def better_auth_on(url: str, node: str, folder: Path, **settings: str) -> Iterator[BetterAuth]:
    """Runs a server on this database; its migrations are the first that it does."""
    server = BetterAuth(node, folder, url, **settings)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("better-auth")


@pytest.fixture(scope="module")
def auth(node: str, folder: Path, database_url: str) -> Iterator[BetterAuth]:
    with better_auth(node, folder, database_url) as server:
        yield server


@pytest.fixture(scope="module")
def service(folder: Path, database_url: str, auth: BetterAuth) -> Iterator[Served]:
    """The service as a team with a Better Auth server sets it up, that is, without a secret."""
    with serving(folder, DATABASE_URL=database_url, BETTER_AUTH_URL=auth.url) as served:
        wait_until(lambda: httpx.get(served.address + "/readyz").status_code == 200)
        yield served


def works_on_tasks(person: Person, other: Person, service: Served, path: str) -> None:
    """The user's token is good for the user's tasks, and the other's is not."""
    mine, theirs = person.token(path), other.token(path)
    created = person.call(service, mine, "POST", json={"title": "Buy milk"})
    assert created.status_code == 201, created.text
    task = created.json()
    assert task["user_id"] == person.id
    assert person.call(service, mine, "PATCH", f"/{task['id']}/complete").json()["is_completed"] is True
    refused = person.call(service, theirs)
    assert (refused.status_code, refused.json()) == (401, {"detail": "User ID mismatch"})
    assert other.call(service, theirs, "GET", f"/{task['id']}").status_code == 404
    assert other.call(service, theirs).json() == []
    assert [found["id"] for found in person.call(service, mine).json()] == [task["id"]]


def test_users_sign_in_and_work_on_their_tasks(auth: BetterAuth, service: Served) -> None:
    person, other = auth.sign_up(), auth.sign_up()
    assert jwt.get_unverified_header(person.token())["alg"] == "EdDSA"
    works_on_tasks(person, other, service, "/api/auth/token")
    refused = person.call(service, make_token(person.id))
    assert (refused.status_code, refused.json()) == (401, {"detail": "Invalid token"}), "there is no secret here"


def test_with_a_shared_secret_as_a_next_js_route_signs(auth: BetterAuth, served: Served) -> None:
    person, other = auth.sign_up(), auth.sign_up()
    assert jwt.get_unverified_header(person.token("/api/token"))["alg"] == "HS256"
    works_on_tasks(person, other, served, "/api/token")
    assert person.call(served, person.token()).status_code == 401, "no server is set here"


def test_both_at_once(auth: BetterAuth, folder: Path, database_url: str) -> None:
    person, other = auth.sign_up(), auth.sign_up()
    settings = {"DATABASE_URL": database_url, "BETTER_AUTH_URL": auth.url, "BETTER_AUTH_SECRET": SECRET}
    with serving(folder, **settings) as both:
        works_on_tasks(person, other, both, "/api/auth/token")
        person, other = auth.sign_up(), auth.sign_up()
        works_on_tasks(person, other, both, "/api/token")


@pytest.mark.parametrize("is_first", [True, False])
def test_in_one_database(node: str, folder: Path, database_url: str, is_first: bool) -> None:
    with empty_database(database_url) as url, ExitStack() as stack:
        if is_first:
            auth = stack.enter_context(better_auth_on(url, node, folder))
        migrated = run_service(folder, "migrate", DATABASE_URL=url)
        assert migrated.returncode == 0, migrated.stderr
        if not is_first:
            auth = stack.enter_context(better_auth_on(url, node, folder))
        service = stack.enter_context(serving(folder, DATABASE_URL=url, BETTER_AUTH_URL=auth.url))
        wait_until(lambda: httpx.get(service.address + "/readyz").status_code == 200)
        works_on_tasks(auth.sign_up(), auth.sign_up(), service, "/api/auth/token")

        auth.stop()  # both find nothing to do the second time
        auth.start()
        assert run_service(folder, "migrate", DATABASE_URL=url).stdout.startswith("nothing to apply")
        works_on_tasks(auth.sign_up(), auth.sign_up(), service, "/api/auth/token")
        with psycopg.connect(url) as connection:
            places = connection.execute("select schemaname from pg_tables where tablename = 'account' order by 1")
            assert places.fetchall() == [("public",), ("tasks",)]


@pytest.mark.parametrize("algorithm", ["ES256", "ES512", "RS256", "PS256"])
def test_its_other_algorithms(node: str, folder: Path, database_url: str, algorithm: str) -> None:
    with better_auth(node, folder, database_url, ALGORITHM=algorithm) as auth:
        person, other = auth.sign_up(), auth.sign_up()
        assert jwt.get_unverified_header(person.token())["alg"] == algorithm
        with serving(folder, DATABASE_URL=database_url, BETTER_AUTH_URL=auth.url) as service:
            works_on_tasks(person, other, service, "/api/auth/token")


def test_keys_are_rotated_while_requests_flow(auth: BetterAuth, service: Served) -> None:
    people = [auth.sign_up() for _ in range(4)]
    before = {key["kid"] for key in auth.published()}
    done = Event()

    kids: list[set[str]] = [set() for _ in people]  # that each user's tokens had

    def keep_calling(person: Person, seen: set[str]) -> list[httpx.Response]:
        answers = []
        while not done.is_set():
            token = person.token()
            answers += [person.call(service, token) for _ in range(3)]
            seen.add(jwt.get_unverified_header(token)["kid"])
        return answers

    def all_have_seen(number: int) -> bool:
        return all(len(seen) >= number for seen in kids)

    with ThreadPoolExecutor(len(people)) as threads:
        flows = [threads.submit(keep_calling, *pair) for pair in zip(people, kids, strict=True)]
        try:
            for number in range(1, 4):
                wait_until(partial(all_have_seen, number), seconds=60)
                auth.rotate()
            wait_until(partial(all_have_seen, 4), seconds=60)
        finally:
            done.set()
        for flow in flows:
            assert {answer.status_code for answer in flow.result()} == {200}
    assert before < {key["kid"] for key in auth.published()}


def test_the_server_is_stopped_and_started_again(auth: BetterAuth, folder: Path, database_url: str) -> None:
    person, other = auth.sign_up(), auth.sign_up()
    tokens = [person.token() for _ in range(2)]
    settings = {"DATABASE_URL": database_url, "BETTER_AUTH_URL": auth.url}
    with serving(folder, **settings) as service:
        assert person.call(service, tokens[0]).status_code == 200
        auth.stop()
        try:
            assert person.call(service, tokens[0]).status_code == 200, "remembered"
            assert other.call(service, tokens[1]).status_code == 401
            assert person.call(service, tokens[1]).status_code == 200
            assert httpx.get(service.address + "/readyz").status_code == 200
            with serving(folder, **settings) as late:  # one that never had the keys
                refused = person.call(late, tokens[0])
                assert (refused.status_code, refused.json()) == (503, {"detail": "Service unavailable"})
                assert int(refused.headers["Retry-After"]) >= 1
                ready = httpx.get(late.address + "/readyz")
                assert (ready.status_code, ready.json()["detail"][:5]) == (503, "keys:")
                auth.start()
                wait_until(lambda: httpx.get(late.address + "/readyz").status_code == 200)
                works_on_tasks(person, other, late, "/api/auth/token")
                assert stop(late) == 0
                log = late.log.read_text()
        finally:
            auth.stop()
            auth.start()
        assert person.call(service, person.token()).status_code == 200
    assert "cannot be fetched, none are known yet: ConnectError" in log
    assert "are there again" in log
    assert not any(token in log for token in tokens)


def test_a_token_outlives_its_expiry(node: str, folder: Path, database_url: str) -> None:
    # ten seconds of difference between clocks are tolerated: what lives for a second is refused after eleven
    with (
        better_auth(node, folder, database_url, EXPIRATION="1s") as auth,
        serving(folder, DATABASE_URL=database_url, BETTER_AUTH_URL=auth.url) as service,
    ):
        person = auth.sign_up()
        token = person.token()
        assert person.call(service, token).status_code == 200
        expires = jwt.decode(token, options={"verify_signature": False})["exp"] + 10
        wait_until(lambda: person.call(service, token).status_code == 401)
        assert time.time() >= expires
        assert person.call(service, token).json() == {"detail": "Token has expired"}
        assert person.call(service, person.token()).status_code == 200
