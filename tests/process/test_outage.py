"""A database that goes away, hangs, or is not what it should be: the service says so, stays up, and recovers."""

import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from uuid import uuid4

import httpx
import psycopg
import pytest

from service.db.address import parse_address
from service.db.migrations import known_migrations, migrate
from tests.conftest import Served, empty_database, serving, wait_until
from tests.processes import Client, Postgres, external, own_folder, run_service, stop

pytestmark = pytest.mark.slow

LONGEST = 5  # seconds for any answer, whatever the database does


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with own_folder() as path:
        yield path


@pytest.fixture(scope="module")
def postgres(folder: Path) -> Postgres:
    postgres = Postgres(folder)
    migrate(parse_address(postgres.url))
    return postgres


@pytest.fixture(scope="module")
def service(folder: Path, postgres: Postgres) -> Iterator[Served]:
    with serving(folder, **external(postgres.url)) as service:
        yield service


@pytest.fixture
def client(service: Served) -> Client:
    """A new user, who has one task."""
    client = Client(service)
    assert client.create("before").status_code == 201
    return client


def ready(service: Served) -> httpx.Response:
    return httpx.get(service.address + "/readyz", timeout=20)


def is_ready(service: Served) -> bool:
    return ready(service).status_code == 200


def in_time(response: httpx.Response) -> httpx.Response:
    assert response.elapsed.total_seconds() < LONGEST
    return response


def refuses_everything(service: Served, client: Client) -> None:
    """Reads and writes, sent together, are all answered 503 in time, and only because of the database."""
    task = "/0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e11"
    requests = [("GET", ""), ("GET", task), ("DELETE", task), ("PATCH", task + "/complete")] * 5
    with ThreadPoolExecutor(len(requests) + 2) as threads:
        answers = [threads.submit(client.call, method, path) for method, path in requests]
        answers.append(threads.submit(client.create, "refused"))
        readiness = threads.submit(ready, service)
        assert httpx.get(service.address + "/healthz", timeout=1).status_code == 200
        for answer in answers:
            response = in_time(answer.result())
            assert (response.status_code, response.json()) == (503, {"detail": "Service unavailable"})
            assert int(response.headers["Retry-After"]) > 0
        response = in_time(readiness.result())
        assert (response.status_code, response.json()["detail"].partition(":")[0]) == (503, "database")
    assert service.process.poll() is None


def works(client: Client) -> None:
    assert client.create("after").status_code == 201
    assert client.titles()[0] == "after"


def test_a_database_that_is_stopped_and_started_again(service: Served, postgres: Postgres, client: Client) -> None:
    postgres.stop()
    for _ in range(2):
        refuses_everything(service, client)
    postgres.start()
    wait_until(lambda: is_ready(service), seconds=5)
    works(client)
    assert client.titles() == ["after", "before"]


def test_a_database_that_comes_after_the_service(folder: Path, postgres: Postgres) -> None:
    postgres.stop()
    with serving(folder, **external(postgres.url)) as service:
        client = Client(service)
        refuses_everything(service, client)
        postgres.start()
        wait_until(lambda: is_ready(service), seconds=5)
        works(client)


def test_a_database_that_hangs(service: Served, postgres: Postgres, client: Client) -> None:
    with postgres.hanging():
        refuses_everything(service, client)
    wait_until(lambda: is_ready(service), seconds=5)
    works(client)
    assert client.titles().count("refused") <= 1, "a refused write is done once or not at all"


def test_a_service_can_be_stopped_while_its_database_hangs(folder: Path, postgres: Postgres) -> None:
    with serving(folder, **external(postgres.url)) as service:
        client = Client(service)
        under_way = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
        with postgres.hanging(), closing(under_way):
            under_way.request("GET", f"/api/{client.user}/tasks", headers=client.headers)
            assert httpx.get(service.address + "/healthz").status_code == 200
            assert stop(service) == 0
            assert under_way.getresponse().status == 503
        assert "Traceback" not in service.log.read_text()


def test_a_lock_on_a_user_s_row_holds_up_that_user_s_writes_only(
    service: Served, postgres: Postgres, client: Client
) -> None:
    with psycopg.connect(postgres.url) as somebody, ThreadPoolExecutor() as threads:
        somebody.execute("select from tasks.account where user_id = %s for update", [client.user])
        refused = threads.submit(client.create, "refused")
        deadline = time.monotonic() + LONGEST
        while not refused.done() and time.monotonic() < deadline:
            other = Client(service)
            for response in (other.create("x"), other.call("GET"), client.call("GET")):
                assert response.status_code in (200, 201)
                assert response.elapsed.total_seconds() < 1
        assert in_time(refused.result()).status_code == 503
        waiting = "select count(*) from pg_locks where not granted"
        wait_until(lambda: somebody.execute(waiting).fetchone() == (0,), seconds=2)
    assert client.titles() == ["before"], "what was refused was taken back, and is not done later"
    works(client)


def test_a_database_without_the_schema(folder: Path, database_url: str) -> None:
    with empty_database(database_url) as url, serving(folder, **external(url)) as service:
        client = Client(service)
        for response in (client.call("GET"), client.create("x")):
            assert (response.status_code, response.json()) == (503, {"detail": "Service unavailable"})
            assert int(response.headers["Retry-After"]) > 0
        response = ready(service)
        assert (response.status_code, response.json()["detail"].partition(":")[0]) == (503, "schema")
        assert "python -m service migrate" in response.json()["detail"]
        log = service.log.read_text()
        assert log.splitlines()[0].endswith(f"WARNING not ready: {response.json()['detail']}"), "said at the start"
        for name in known_migrations():
            assert name in response.json()["detail"]

        assert run_service(folder, "migrate", **external(url)).returncode == 0
        wait_until(lambda: is_ready(service), seconds=5)
        works(client)


def test_a_batch_when_the_database_hangs_or_goes(service: Served, postgres: Postgres, client: Client) -> None:
    url = f"{service.address}/api/{client.user}/batch"
    operations = [{"op": "create", "task": {"title": "in a batch"}}] * 3

    def batch() -> httpx.Response:
        return httpx.post(url, headers=client.headers, json={"operations": operations}, timeout=20)

    assert batch().status_code == 200
    with postgres.hanging():
        assert in_time(batch()).status_code == 503
    wait_until(lambda: is_ready(service), seconds=5)
    postgres.stop()
    assert in_time(batch()).status_code == 503
    postgres.start()
    wait_until(lambda: is_ready(service), seconds=5)
    done = client.titles().count("in a batch")
    assert done in (3, 6), "what was refused while it hung is done whole or not at all, the other is not done"
    assert batch().status_code == 200


# A database that gives less than was asked for ------------------------------------------------------------------------


@pytest.fixture
def own_database(postgres: Postgres) -> Iterator[str]:
    """The URL of a migrated database of the test's own, on a server that may be changed."""
    with empty_database(postgres.url) as url:
        migrate(parse_address(url))
        yield url


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def statuses(work: Callable[[int], httpx.Response], times: int = 60) -> Counter[int]:
    """Does the work so many times, many at once; returns how often it had which status."""
    with ThreadPoolExecutor(20) as threads:
        return Counter(response.status_code for response in threads.map(work, range(times)))


def as_role(url: str, role: str) -> str:
    """Returns the URL for another role."""
    assert "//postgres:@" in url
    return url.replace("//postgres:@", f"//{role}:@")


TABLES = "tasks.account, tasks.change, tasks.idempotency, tasks.number_floor, tasks.task"
LEAST_RIGHTS = (
    "usage on schema tasks",
    "select on tasks._yoyo_migration, tasks.installed_functions",
    f"select, insert, update, delete on {TABLES}",
)


@pytest.fixture
def role(own_database: str) -> Iterator[str]:
    """A role that may do nothing in the test's own database."""
    name = f"weak_{uuid4().hex}"
    execute(own_database, f"create role {name} login")
    yield name
    execute(own_database, f"drop owned by {name}", f"drop role {name}")


def test_a_role_gets_its_rights_one_by_one_and_is_told_which_it_lacks(
    folder: Path, own_database: str, role: str
) -> None:
    said = (
        "permission denied for schema tasks",
        "permission denied for table _yoyo_migration",
        "permission denied for select on tasks.account, insert on tasks.account, update on tasks.account, ",
    )
    with serving(folder, **external(as_role(own_database, role))) as service:
        for number, (right, missing) in enumerate(zip(LEAST_RIGHTS, said, strict=True)):
            response = ready(service)
            assert response.status_code == 503
            detail = response.json()["detail"]
            assert detail.startswith(f"database: {missing}")
            assert detail.endswith(": grant it to the user of DATABASE_URL")
            times = 1 if number else 2  # at the start, too
            assert service.log.read_text().count(f"not ready: {detail}") == times
            execute(own_database, f"grant {right} to {role}")
        wait_until(lambda: is_ready(service), seconds=5)
        client = Client(service)
        works(client)
        task = client.call("GET").json()[0]["id"]
        assert client.call("DELETE", f"/{task}").status_code == 204
        assert client.call("POST", f"/{task}/restore").status_code == 200
    purge = run_service(folder, "purge", "--days", "0", **external(as_role(own_database, role)))
    assert purge.returncode == 0, purge.stderr


def test_each_right_that_is_taken_away_is_named(folder: Path, own_database: str, role: str) -> None:
    execute(own_database, *(f"grant {right} to {role}" for right in LEAST_RIGHTS))
    rights = [
        (f"{right} on", table) for right in ("select", "insert", "update", "delete") for table in TABLES.split(", ")
    ]
    with psycopg.connect(own_database) as connection:
        query = "select oid::regprocedure::text, proname from pg_proc where pronamespace = 'tasks'::regnamespace"
        functions = connection.execute(query).fetchall()
    execute(own_database, *(f"revoke execute on function {function} from public" for function, _ in functions))
    execute(own_database, *(f"grant execute on function {function} to {role}" for function, _ in functions))
    with serving(folder, **external(as_role(own_database, role))) as service:
        assert is_ready(service)
        for right, what in rights + [("execute on function", function) for function, _ in functions]:
            execute(own_database, f"revoke {right} {what} from {role}")
            missing = f"{right} {what.partition('(')[0]}"
            said = ready(service).json()["detail"]
            assert said == f"database: permission denied for {missing}: grant it to the user of DATABASE_URL"
            execute(own_database, f"grant {right} {what} to {role}")
        assert is_ready(service)
        works(Client(service))


@pytest.mark.parametrize("most", [1, 3, 6])
def test_a_role_that_may_have_few_connections(folder: Path, own_database: str, role: str, most: int) -> None:
    execute(own_database, f"alter role {role} connection limit {most}")
    execute(own_database, *(f"grant {right} to {role}" for right in LEAST_RIGHTS))
    with serving(folder, **external(as_role(own_database, role)), DB_POOL_MIN="5") as service:
        wait_until(lambda: is_ready(service))
        clients = [Client(service) for _ in range(20)]
        assert statuses(lambda number: clients[number % 20].create("x")) == {201: 60}
        assert statuses(lambda number: clients[number % 20].call("GET")) == {200: 60}
        log = service.log.read_text()
        assert log.count("refuses a further connection") < 10
        assert "too many connections for role" in log or most == 6, "at the latest at the start, where five are wanted"


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_database_with_a_stricter_isolation(folder: Path, own_database: str, isolation: str) -> None:
    name = own_database.partition("?")[0].rsplit("/", 1)[1]
    execute(own_database, f"alter database {name} set default_transaction_isolation = '{isolation}'")
    with serving(folder, **external(own_database)) as one, serving(folder, **external(own_database)) as two:
        clients = [Client(one), Client(two)]
        clients[1] = Client(two, clients[0].user)
        found = statuses(lambda number: clients[number % 2].create(f"{number}"))
        assert set(found) <= {201, 503}
        assert len(clients[0].titles()) == found[201], "what was refused did not happen"
        assert clients[0].create("x").status_code == 201
        for service in (one, two):
            assert "Traceback" not in service.log.read_text()


def test_a_database_that_allows_no_connections(folder: Path, postgres: Postgres, own_database: str) -> None:
    name = own_database.partition("?")[0].rsplit("/", 1)[1]
    kick = "select pg_terminate_backend(pid) from pg_stat_activity where datname like 'empty%'"
    with serving(folder, **external(own_database)) as service:
        client = Client(service)
        works(client)
        execute(postgres.url, f"alter database {name} allow_connections false", kick)
        for _ in range(2):
            refuses_everything(service, client)
        assert "not currently accepting connections" in service.log.read_text()
        execute(postgres.url, f"alter database {name} allow_connections true")
        wait_until(lambda: is_ready(service), seconds=5)
        works(client)
        assert "Traceback" not in service.log.read_text()


def test_a_database_that_only_reads(folder: Path, own_database: str) -> None:
    name = own_database.partition("?")[0].rsplit("/", 1)[1]
    execute(own_database, f"alter database {name} set default_transaction_read_only = on")
    with serving(folder, **external(own_database)) as service:
        client = Client(service)
        assert client.create("x").status_code == 503
        assert client.call("GET").status_code == 200
        assert "read-only transaction" in service.log.read_text()


class Proxy:
    """A way to PostgreSQL on which connections can die silently: what is sent on them is taken, and never answered."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._alive: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._path)
                self._sockets += [client, server]
                self._alive.add(client)
                for pair in ((client, server), (server, client)):
                    self._threads.append(threading.Thread(target=self._pass_on, args=[client, *pair]))
                    self._threads[-1].start()

    def _pass_on(self, client: socket.socket, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if client in self._alive:
                    target.sendall(data)
            if client in self._alive:
                target.shutdown(socket.SHUT_WR)

    def let_all_die(self) -> None:
        """Lets the connections that there are die; new ones work."""
        self._alive.clear()

    def close(self) -> None:
        """Ends all connections, and takes no more."""
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join()


def test_connections_that_die_silently(folder: Path, postgres: Postgres, own_database: str) -> None:
    host = parse_address(own_database).hosts[0]
    proxy = Proxy(f"{host.name}/.s.PGSQL.{host.port}")
    url = f"postgresql://postgres@127.0.0.1:{proxy.port}/{parse_address(own_database).database}"
    with closing(proxy), serving(folder, **external(url)) as service:
        clients = [Client(service) for _ in range(20)]
        assert statuses(lambda number: clients[number % 20].create("x")) == {201: 60}
        for method, status in (("POST", 201), ("GET", 200)):
            time.sleep(5.5)  # so that they count as idle: each is tried shortly before it is used
            proxy.let_all_die()
            assert in_time(clients[0].call(method, json={"title": "y"})).status_code == status
            assert statuses(lambda number: clients[number % 20].call("GET")) == {200: 60}
        proxy.let_all_die()  # a moment after they were used: reads find another connection, a write is told once
        assert in_time(clients[1].call("GET")).status_code == 200
        proxy.let_all_die()
        assert in_time(clients[2].create("z")).status_code in (201, 503)
        assert in_time(clients[2].create("z")).status_code == 201
