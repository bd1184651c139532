"""Streams through everything that stands between: nginx, PgBouncer, several workers, restarts, outages."""

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest

from service.db.address import parse_address
from service.db.migrations import migrate
from tests.conftest import Served, serving, wait_until
from tests.feed import Stream, apply, erase_trash, tasks_in
from tests.processes import Client, Postgres, external, free_port, own_folder, pgbouncer, stop

pytestmark = pytest.mark.slow


def create(client: Client, **fields: Any) -> dict[str, Any]:
    response = client.call("POST", json={"title": "Buy milk"} | fields)
    assert response.status_code == 201, response.text
    task: dict[str, Any] = response.json()
    return task


def batch(client: Client, number: int, **fields: Any) -> None:
    operations = [{"op": "create", "task": {"title": f"Task {n}"} | fields} for n in range(number)]
    url = client.tasks.removesuffix("/tasks") + "/batch"
    assert httpx.post(url, headers=client.headers, json={"operations": operations}).status_code == 200


def opened(port: int, client: Client, query: str = "", **headers: str) -> Stream:
    stream = Stream(port, client.user, client.headers | headers, query)
    assert stream.status == 200
    return stream


def connections(process: psutil.Process, port: int) -> int:
    """Returns how many clients are connected to the process at this port."""
    return sum(
        connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == port
        for connection in process.net_connections("tcp")
    )


# The end of the process -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_process_ends_soon_and_its_streams_at_once_and_in_order(
    tmp_path: Path, database_url: str, number: signal.Signals, workers: str
) -> None:
    with serving(tmp_path, **external(database_url), WEB_CONCURRENCY=workers) as service:
        clients = [Client(service) for _ in range(10)]
        streams = [opened(service.port, client) for client in clients for _ in range(3)]
        for stream in streams:
            stream.page()
        started = time.monotonic()
        service.process.send_signal(number)
        for stream in streams:
            assert stream.end() == []
        assert time.monotonic() - started < 1
        assert service.process.wait(5) == 0
        assert time.monotonic() - started < 4
        assert "Traceback" not in service.log.read_text()
        for stream in streams:
            stream.close()


def test_a_stream_whose_client_reads_nothing_does_not_keep_the_process(tmp_path: Path, database_url: str) -> None:
    with serving(tmp_path, **external(database_url)) as service:
        client = Client(service)
        for _ in range(30):
            batch(client, 100, description="x" * 500)
        stuck = Stream(service.port, client.user, client.headers, "?since=0", receive_buffer=4096)
        stuck.page()
        time.sleep(0.5)
        started = time.monotonic()
        assert stop(service) == 0
        assert time.monotonic() - started < 8
        stuck.close()


class Writer(threading.Thread):
    """Creates tasks one after the other, each with its own number for a title; one that has no answer is sent again."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.client = client
        self.written = 0
        self.is_over = threading.Event()

    def run(self) -> None:
        with httpx.Client(headers=self.client.headers, timeout=5) as http:
            while not self.is_over.is_set():
                body = {"id": str(uuid4()), "title": f"{self.written}"}
                while not self._is_done(http, body):
                    time.sleep(0.05)
                self.written += 1

    def _is_done(self, http: httpx.Client, body: dict[str, str]) -> bool:
        try:
            return http.post(self.client.tasks, json=body).status_code in (201, 409)
        except httpx.HTTPError:
            return False


class Reader(threading.Thread):
    """Reads streams, each from where the one before it has ended, until there is a task with the title `end`."""

    def __init__(self, client: Client, port: int) -> None:
        super().__init__()
        self.client, self.port = client, port
        self.copy: dict[str, str] = {}
        self.titles: list[str] = []
        self.ids: list[int] = [0]
        self.streams = 0

    def run(self) -> None:
        while "end" not in self.titles:
            try:
                stream = Stream(self.port, self.client.user, self.client.headers | {"Last-Event-ID": f"{self.ids[-1]}"})
            except (OSError, AssertionError):
                time.sleep(0.05)
                continue
            self.streams += 1
            self._read(stream)
            stream.close()

    def _read(self, stream: Stream) -> None:
        assert stream.status == 200
        while "end" not in self.titles and (event := stream.event()) is not None:
            told = apply(self.copy, event.data)
            self.ids.append(told["version"])
            self.titles += [task["title"] for task in told["tasks"]]


def test_a_client_that_resumes_through_restarts_under_load_misses_nothing_and_sees_nothing_twice(
    tmp_path: Path, database_url: str
) -> None:
    port = free_port()
    settings = external(database_url) | {"PORT": str(port)}
    client = Client(Served(None, f"http://127.0.0.1:{port}", tmp_path))  # type: ignore[arg-type]  # it comes and goes
    writer, reader = Writer(client), Reader(client, port)
    writer.start()
    reader.start()
    for _ in range(3):
        with serving(tmp_path, **settings) as service:
            seen = len(reader.ids)
            wait_until(lambda seen=seen: len(reader.ids) > seen + 20)  # type: ignore[misc]
            assert stop(service) == 0
    with serving(tmp_path, **settings):
        seen = len(reader.ids)
        wait_until(lambda: len(reader.ids) > seen + 5)
        writer.is_over.set()
        writer.join(10)
        create(client, title="end")
        reader.join(10)
    assert reader.copy == tasks_in(database_url, client.user)
    assert reader.titles == [*(f"{number}" for number in range(writer.written)), "end"], "each once, in their order"
    assert reader.ids == sorted(set(reader.ids))
    assert reader.streams >= 4


# Several workers ------------------------------------------------------------------------------------------------------


def test_a_write_through_one_worker_reaches_the_streams_of_the_other_within_a_second(
    tmp_path: Path, database_url: str
) -> None:
    with serving(tmp_path, **external(database_url), WEB_CONCURRENCY="2") as service:
        client, parent = Client(service), psutil.Process(service.process.pid)
        workers = [child for child in parent.children() if "spawn_main" in " ".join(child.cmdline())]
        streams: list[Stream] = []

        def of_both() -> bool:
            streams.append(opened(service.port, client))
            streams[-1].page()
            return all(connections(worker, service.port) for worker in workers)

        wait_until(of_both)
        taken = []
        for _ in range(5):
            task = create(client)
            started = time.monotonic()
            for stream in streams[-10:]:
                assert stream.page()["tasks"] == [task]
            taken.append(time.monotonic() - started)
            time.sleep(0.13)
        assert max(taken) < 1.2
        for stream in streams:
            stream.close()
        wait_until(lambda: not any(connections(worker, service.port) for worker in workers), seconds=3)


# nginx ----------------------------------------------------------------------------------------------------------------

NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/errors;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder};
    scgi_temp_path {folder};
    {options}
    server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{service}; }} }}
}}
"""


@contextmanager
def nginx(service: int, options: str) -> Iterator[int]:
    """Runs nginx in front of the service, with its defaults and these options; yields its port."""
    if shutil.which("nginx") is None:
        pytest.skip("needs nginx")
    port = free_port()
    with own_folder() as folder:
        file = folder / "nginx.conf"
        file.write_text(NGINX.format(folder=folder, port=port, service=service, options=options))
        process = subprocess.Popen(["nginx", "-e", f"{folder}/errors", "-p", str(folder), "-c", str(file)])
        try:
            wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200)
            yield port
        finally:
            process.terminate()
            process.wait()


HTTP_1_1 = 'proxy_http_version 1.1; proxy_set_header Connection "";'
GZIP = "gzip on; gzip_proxied any; gzip_min_length 0;"


@pytest.mark.parametrize("options", ["", HTTP_1_1, GZIP], ids=["defaults", "HTTP/1.1", "gzip"])
def test_through_nginx(tmp_path: Path, database_url: str, options: str) -> None:
    with serving(tmp_path, **external(database_url)) as service, nginx(service.port, options) as port:
        client, process = Client(service), psutil.Process(service.process.pid)
        stream = opened(port, client, **{"Accept-Encoding": "gzip"})
        assert stream.headers["Content-Type"] == "text/event-stream"
        assert stream.headers["Cache-Control"] == "no-cache, no-transform"
        assert "Content-Encoding" not in stream.headers
        assert stream.page()["tasks"] == []
        taken = []
        for _ in range(5):
            started = time.monotonic()
            task = create(client)
            assert stream.page()["tasks"] == [task]
            taken.append(time.monotonic() - started)
        assert sorted(taken)[2] < 0.3, "nothing waits in nginx's buffers"
        for _ in range(6):
            batch(client, 100, description="x" * 500)
            told = stream.page()
            assert len(told["tasks"]) == 100
        url = f"http://127.0.0.1:{port}/api/{client.user}/changes"
        threading.Timer(0.3, create, [client]).start()
        waited = httpx.get(url, params={"since": told["version"], "wait": 20}, headers=client.headers, timeout=20)
        assert len(waited.json()["tasks"]) == 1
        stream.page()
        clients = connections(process, service.port)
        stream.close()
        wait_until(lambda: connections(process, service.port) < clients, seconds=3)
        last = opened(port, client)
        last.page()
        assert stop(service) == 0
        assert last.end() == [], "its end comes through, in order"
        last.close()


# PgBouncer ------------------------------------------------------------------------------------------------------------


def test_behind_pgbouncer_in_transaction_mode(tmp_path: Path, database_url: str) -> None:
    with pgbouncer(database_url) as url:
        settings = external(url) | {"DB_STATEMENT_CACHE": "0"}
        with serving(tmp_path, **settings) as one, serving(tmp_path, **settings) as two:
            client = Client(one)
            here, there = opened(one.port, client), opened(two.port, client)
            for stream in (here, there):
                stream.page()
            for _ in range(3):
                task = create(client)
                started = time.monotonic()
                assert here.page()["tasks"] == [task]
                assert time.monotonic() - started < 0.3
                assert there.page()["tasks"] == [task]
                assert time.monotonic() - started < 1.3
            client.call("DELETE", f"/{task['id']}")
            erase_trash(url, client.user)
            for stream in (here, there):
                while not (told := stream.page())["erased"]:
                    pass
                assert told["erased"] == [task["id"]]
                stream.close()
            for service in (one, two):
                assert "Traceback" not in service.log.read_text()
                assert "503" not in service.log.read_text()


# A database that goes away --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with own_folder() as folder:
        postgres = Postgres(folder)
        migrate(parse_address(postgres.url))
        yield postgres


def test_an_idle_stream_outlives_an_outage_and_misses_nothing(tmp_path: Path, postgres: Postgres) -> None:
    with serving(tmp_path, **external(postgres.url)) as service:
        client = Client(service)
        stream = opened(service.port, client)
        stream.page()
        first = create(client)
        assert stream.page()["tasks"] == [first]
        postgres.stop()
        assert client.call("POST", json={"title": "x"}).status_code == 503
        time.sleep(1.5)
        for query, headers in (("", {}), ("?since=0", {}), ("", {"Last-Event-ID": str(first["version"])})):
            refused = Stream(service.port, client.user, client.headers | headers, query)
            assert refused.status == 503
            assert int(refused.headers["Retry-After"]) > 0
            refused.close()
        postgres.start()
        wait_until(lambda: client.create("after").status_code == 201, seconds=5)
        assert [task["title"] for task in stream.page()["tasks"]] == ["after"]
        stream.close()


def test_a_stream_that_cannot_read_on_ends_and_who_comes_back_misses_nothing(
    tmp_path: Path, postgres: Postgres
) -> None:
    with serving(tmp_path, **external(postgres.url)) as service:
        client = Client(service)
        for _ in range(60):
            batch(client, 100, description="x" * 500)
        stream = Stream(service.port, client.user, client.headers, "?since=0", receive_buffer=50_000)
        copy: dict[str, str] = {}
        first = stream.event()
        assert first is not None
        since = apply(copy, first.data)["version"]
        with postgres.hanging():
            for event in stream.end():
                told = apply(copy, event.data)
                assert told["has_more"], "it cannot have come to the end"
                since = told["version"]
            again = Stream(service.port, client.user, client.headers | {"Last-Event-ID": str(since)})
            assert again.status == 503
        wait_until(lambda: client.create("after").status_code == 201, seconds=5)
        more = opened(service.port, client, **{"Last-Event-ID": str(since)})
        while True:
            following = more.event()
            assert following is not None
            told = apply(copy, following.data)
            if not told["has_more"] and len(copy) == 6001:
                break
        assert copy == tasks_in(postgres.url, client.user)
        for each in (stream, again, more):
            each.close()
