"""What Prometheus is told on METRICS_PORT, of one worker and of several, of those that are killed too."""

import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import psutil
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from service.web import scrapes
from service.web.metrics import FAMILIES, Board, Inlet, send
from tests.conftest import Served, service_environment, serving, wait_until
from tests.feed import Stream
from tests.process.test_server import connected_to, workers
from tests.processes import Client, Postgres, external, own_folder, run_service, stop
from tests.wire import Wire

pytestmark = pytest.mark.slow

REQUESTS = "http_server_request_duration_seconds"


class Scraped:
    """The metrics of a service, as Prometheus reads them."""

    def __init__(self, service: Served) -> None:
        assert service.process.stdout is not None
        lines = iter(service.process.stdout.readline, "")
        self.url = next(line.split()[1] for line in lines if line.startswith("  metrics "))
        self.port = int(self.url.rpartition(":")[2].removesuffix("/metrics"))

    def families(self) -> dict[str, Metric]:
        answer = httpx.get(self.url)
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("text/plain")
        return {family.name: family for family in text_string_to_metric_families(answer.text)}

    def value(self, sample: str, **labels: str) -> float:
        """Returns the sum of the sample's values with these labels."""
        return sum(
            found.value
            for family in self.families().values()
            for found in family.samples
            if found.name == sample and labels.items() <= found.labels.items()
        )

    def becomes(self, expected: float, sample: str, **labels: str) -> None:
        """Waits until the value is that, and holds that it does not go on."""
        wait_until(lambda: self.value(sample, **labels) == expected)
        time.sleep(0.2)
        assert self.value(sample, **labels) == expected


@contextmanager
def measured(folder: Path, url: str, **settings: str) -> Iterator[tuple[Served, Scraped]]:
    with serving(folder, **external(url), METRICS_PORT="0", LOG_LEVEL="error", **settings) as service:
        yield service, Scraped(service)


@pytest.fixture(params=["1", "2"])
def service(request: pytest.FixtureRequest, tmp_path: Path, database_url: str) -> Iterator[tuple[Served, Scraped]]:
    with measured(tmp_path, database_url, WEB_CONCURRENCY=request.param) as found:
        yield found


def test_requests_are_counted_by_method_pattern_and_status(service: tuple[Served, Scraped]) -> None:
    served, metrics = service
    client = Client(served)
    task = client.create("Buy milk").json()["id"]
    for _ in range(20):
        assert client.call("GET", f"/{task}").status_code == 200
    for _ in range(3):
        assert client.call("GET", f"/{uuid4()}").status_code == 404
    assert client.call("PATCH", f"/{task}", json={"title": ""}).status_code == 422
    route = "/api/{user_id}/tasks/{task_id}"
    good = {"http_request_method": "GET", "http_response_status_code": "200"}
    metrics.becomes(20, REQUESTS + "_count", http_route=route, **good)
    metrics.becomes(3, REQUESTS + "_count", http_route=route, http_response_status_code="404")
    metrics.becomes(1, REQUESTS + "_count", http_request_method="PATCH", http_response_status_code="422")
    metrics.becomes(1, REQUESTS + "_count", http_route="/api/{user_id}/tasks", http_response_status_code="201")
    metrics.becomes(24, REQUESTS + "_bucket", http_route=route, le="+Inf")
    total = metrics.value(REQUESTS + "_sum", http_route=route)
    database = metrics.value("task_service_request_database_seconds_total", http_route=route)
    assert 0 < database < total < 24 * 5, "seconds"


def test_nobody_can_make_labels(service: tuple[Served, Scraped]) -> None:
    served, metrics = service
    client = Client(served)
    paths = ["/nothing", f"/{uuid4()}", "/api/x/nothing", "/docs/assets/x", "/docs/assets/swagger-ui/x"]
    for path in paths:
        assert httpx.get(served.address + path).status_code in (401, 404)
    for method in ("PURGE", "PROPFIND", "OPTIONS"):
        assert client.call(method).status_code == 405
    metrics.becomes(2, REQUESTS + "_count", http_request_method="_OTHER", http_response_status_code="405")
    metrics.becomes(3, REQUESTS + "_count", http_route="")
    seen = {sample.labels["http_route"] for sample in metrics.families()[REQUESTS].samples}
    assert seen <= {"", "/api/{user_id}/tasks", "/docs/assets", "/healthz"}


def test_the_database_s_share_is_told(service: tuple[Served, Scraped]) -> None:
    served, metrics = service
    client = Client(served)
    for number in range(5):
        client.create(f"Task {number}")
    metrics.becomes(5, "db_client_operation_duration_seconds_count", db_query_summary="insert_task")
    metrics.becomes(5, "db_client_operation_duration_seconds_bucket", db_query_summary="insert_task", le="+Inf")
    trips = metrics.value("db_client_operation_duration_seconds_count")
    assert 6 <= trips == metrics.value("task_service_round_trip_calls_count")
    assert trips <= metrics.value("task_service_round_trip_calls_sum")
    count = int(metrics.value("task_service_workers"))
    assert metrics.value("db_client_connection_max") == 15 * count
    assert metrics.value("db_client_connection_count") == 5 * count
    assert 0 < metrics.value("process_cpu_seconds_total") < 60


def test_every_family_is_told_from_the_start(service: tuple[Served, Scraped]) -> None:
    _, metrics = service
    families = metrics.families()
    assert {name: family.type for name, family in families.items()} == {
        name: family.type for name, family in FAMILIES.items()
    }
    assert all(family.documentation == FAMILIES[name].help for name, family in families.items())


def test_connections_streams_and_refusals_are_told(service: tuple[Served, Scraped]) -> None:
    served, metrics = service
    client = Client(served)
    wires = [Wire(served.port) for _ in range(3)]
    metrics.becomes(3, "task_service_connections")
    wires[0].send(b"GET / HTTP/1.1\r\n\r\n")
    assert wires[0].answer()[0] == 400
    metrics.becomes(1, "task_service_refused_requests_total", reason="protocol")
    stream = Stream(served.port, client.user, client.headers)
    metrics.becomes(1, "task_service_streams")
    metrics.becomes(1, "http_server_active_requests")
    stream.wire.close()
    for wire in wires:
        wire.close()
    metrics.becomes(0, "task_service_streams")
    metrics.becomes(0, "task_service_connections")
    metrics.becomes(1, REQUESTS + "_count", http_route="/api/{user_id}/events")


def test_the_rate_limit_s_refusals_are_told(tmp_path: Path, database_url: str) -> None:
    with measured(tmp_path, database_url, RATE_LIMIT="2/hour") as (served, metrics):
        client = Client(served)
        assert [client.call("GET").status_code for _ in range(5)] == [200, 200, 429, 429, 429]
        assert client.call("DELETE").status_code == 429, "which would be a 405"
        assert client.call("GET", "/no/path").status_code == 429, "which would be a 404"
        metrics.becomes(5, "task_service_refused_requests_total", reason="rate_limit")
        metrics.becomes(5, REQUESTS + "_count", http_response_status_code="429")
        other = Client(served)
        stream = Stream(served.port, other.user, other.headers)
        assert stream.headers["RateLimit-Policy"] == '"default";q=2;w=3600'
        assert stream.headers["RateLimit"].startswith('"default";r=1;t=3')
        stream.wire.close()


def test_an_outage_is_told() -> None:
    with own_folder() as folder:
        postgres = Postgres(folder)
        run_service(folder, "migrate", **external(postgres.url))
        with measured(folder, postgres.url) as (served, metrics):
            client = Client(served)
            assert client.create("Buy milk").status_code == 201
            postgres.stop()
            wait_until(lambda: client.call("GET").status_code == 503)
            wait_until(lambda: metrics.value("task_service_refused_requests_total", reason="database") >= 1)
            wait_until(lambda: metrics.value("db_client_connection_count") == 0)
            assert metrics.value(REQUESTS + "_count", http_response_status_code="503") >= 1


def test_no_counter_falls_and_none_counts_twice_when_a_worker_is_killed(tmp_path: Path, database_url: str) -> None:
    with measured(tmp_path, database_url, WEB_CONCURRENCY="2") as (served, metrics):
        for worker in workers(served):
            connected_to(worker, served).close()
        client = Client(served)
        for _ in range(40):
            assert client.call("GET").status_code == 200
        route = {"http_route": "/api/{user_id}/tasks"}
        metrics.becomes(40, REQUESTS + "_count", **route)
        wait_until(lambda: metrics.value("task_service_workers") == 2)
        cpu = metrics.value("process_cpu_seconds_total")
        for victim in workers(served):
            victim.kill()
            wait_until(lambda pid=victim.pid: not psutil.pid_exists(pid))  # type: ignore[misc]  # mypy cannot infer it
            wait_until(lambda: metrics.value("task_service_workers") == 2)
        metrics.becomes(40, REQUESTS + "_count", **route)
        assert metrics.value("process_cpu_seconds_total") >= cpu
        assert metrics.value("db_client_connection_max") == 30, "what is gone has no connections"
        assert client.call("GET").status_code == 200
        metrics.becomes(41, REQUESTS + "_count", **route)


def test_a_worker_that_hangs_delays_no_scrape(tmp_path: Path, database_url: str) -> None:
    with measured(tmp_path, database_url, WEB_CONCURRENCY="2") as (served, metrics):
        wait_until(lambda: metrics.value("task_service_workers") == 2)
        victim = workers(served)[0]
        victim.suspend()
        started = time.monotonic()
        assert metrics.value("task_service_workers") == 2
        assert time.monotonic() - started < 1
        wait_until(lambda: not psutil.pid_exists(victim.pid))


@pytest.mark.parametrize("count", ["1", "2"])
def test_while_it_is_scraped_it_still_ends_in_time(tmp_path: Path, database_url: str, count: str) -> None:
    with measured(tmp_path, database_url, WEB_CONCURRENCY=count) as (served, metrics):
        hanging = Wire(metrics.port)
        hanging.send(b"GET /metrics HTTP/1.1\r\n")
        assert stop(served) == 0
        hanging.close()


def test_a_port_that_is_taken_ends_the_start_with_a_sentence(tmp_path: Path, database_url: str) -> None:
    with measured(tmp_path, database_url) as (_, metrics):
        port = metrics.port
        ended = run_service(tmp_path, **external(database_url), PORT="0", METRICS_PORT=str(port))
        assert ended.returncode == 1
        assert ended.stderr.startswith(f"Port {port} is taken")
        assert ended.stderr.endswith(f": METRICS_PORT={port % 65535 + 1} make run\n")


@pytest.mark.parametrize(("host", "there"), [("localhost", ["127.0.0.1"]), ("*", ["127.0.0.1", "[::1]"])])
def test_the_metrics_are_on_the_addresses_of_the_service(
    tmp_path: Path, database_url: str, host: str, there: list[str]
) -> None:
    with measured(tmp_path, database_url, HOST=host) as (served, metrics):
        for address in there:
            for port, path in ((served.port, "healthz"), (metrics.port, "metrics")):
                assert httpx.get(f"http://{address}:{port}/{path}").status_code == 200


@pytest.fixture
def scraped() -> Iterator[int]:
    """Returns the port of what answers scrapes, in this process."""
    board = Board()
    board.publish(1, {name: {(): [1]} for name in ("task_service_workers", "task_service_streams")})
    with socket.create_server(("127.0.0.1", 0)) as listener, scrapes.answered(board, listener):
        yield listener.getsockname()[1]


def test_who_is_slow_makes_way_and_costs_no_thread_for_good(scraped: int) -> None:
    before = threading.active_count()
    slow = [Wire(scraped) for _ in range(3 * scrapes.MOST_SCRAPES)]
    for wire in slow:
        wire.send(b"GET /metrics HTTP/1.1\r\n")
    assert httpx.get(f"http://127.0.0.1:{scraped}/metrics").status_code == 200
    assert slow[0].is_closed(), "the oldest has made way"
    wait_until(lambda: threading.active_count() <= before + scrapes.MOST_SCRAPES)
    for wire in slow:
        wire.close()
    wait_until(lambda: threading.active_count() == before)


def test_who_says_nothing_is_cut(scraped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scrapes.Handler.timeout == 10
    monkeypatch.setattr(scrapes.Handler, "timeout", 0.3)
    for said in (b"", b"GET /metrics HTTP/1.1\r\n"):
        wire = Wire(scraped)
        wire.send(said)
        assert wire.is_closed()
        wire.close()


def test_what_is_no_http_leaves_no_trace(scraped: int, capfd: pytest.CaptureFixture[str]) -> None:
    for said in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /metrics HTTP/1.1\r\n"):
        wire = Wire(scraped)
        wire.send(said)
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # resets the connection
        wire.close()
    assert httpx.get(f"http://127.0.0.1:{scraped}/metrics").status_code == 200
    assert capfd.readouterr().err == ""


def test_a_scrape_may_choose_metrics_by_name(scraped: int) -> None:
    name = "task_service_workers"
    answer = httpx.get(f"http://127.0.0.1:{scraped}/metrics", params={"name[]": name})
    assert [family.name for family in text_string_to_metric_families(answer.text)] == [name]


def test_without_the_setting_there_is_no_port_and_no_library(tmp_path: Path, database_url: str) -> None:
    with serving(tmp_path, **external(database_url)) as served:
        listening = [c for c in psutil.Process(served.process.pid).net_connections() if c.status == psutil.CONN_LISTEN]
        assert [connection.laddr.port for connection in listening] == [served.port]
    code = "import sys, service.__main__; print([name for name in sys.modules if name[:5] in ('prome', 'opent')])"
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, cwd=tmp_path, env=service_environment(), text=True) == "[]\n"


def test_the_largest_snapshot_arrives() -> None:
    board = Board()
    inlet = Inlet(board)
    paths = [f"/api/{{user_id}}/a-long-name/{{task_id}}/{number}" for number in range(50)]
    labels: list[tuple[str, ...]] = [("PATCH", path, str(status)) for path in paths for status in range(400, 420)]
    snapshot = {REQUESTS: {each: [1e9] * 17 + [1 / 3] for each in labels}}
    for _ in range(3):
        send(inlet.leaving, snapshot)
    inlet.take(1, is_last=False)
    assert board.read() == snapshot
    inlet.leaving.close()
    inlet.take(1, is_last=True)
