"""Traces: what a collector of OpenTelemetry's gets from a service whose environment names it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.conftest import Served, serving, wait_until
from tests.processes import Client, Postgres, external, own_folder, run_service, stop

pytestmark = pytest.mark.slow

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass
class Collector:
    """What takes the spans, and keeps them."""

    url: str
    resources: list[dict[str, str]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def named(self, name: str) -> Span:
        """Waits for the span of this name, of which there is one."""
        wait_until(lambda: [span for span in self.spans if span.name == name])
        (found,) = (span for span in self.spans if span.name == name)
        return found


def attributes(of: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in of.attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for part in ExportTraceServiceRequest.FromString(body).resource_spans:
                collector.resources.append(attributes(part.resource))
                collector.spans += [span for scope in part.scope_spans for span in scope.spans]
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def to(collector: str, **others: str) -> dict[str, str]:
    """Returns the variables for a service that sends its spans there without delay."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector, "OTEL_BSP_SCHEDULE_DELAY": "50"} | others


@contextmanager
def traced(folder: Path, url: str, **others: str) -> Iterator[tuple[Served, Collector]]:
    with collecting() as collector, serving(folder, **external(url), **to(collector.url, **others)) as service:
        yield service, collector


@pytest.mark.parametrize("count", ["1", "2"])
def test_a_request_is_a_span_with_a_child_for_the_database(tmp_path: Path, database_url: str, count: str) -> None:
    with traced(tmp_path, database_url, WEB_CONCURRENCY=count) as (service, collector):
        client = Client(service)
        answer = client.call("POST", json={"title": "Buy milk"}, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
        assert answer.status_code == 201
        request, call = collector.named("POST /api/{user_id}/tasks"), collector.named("insert_task")
        assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT), "as the caller's header says"
        assert (call.trace_id, call.parent_span_id) == (request.trace_id, request.span_id)
        assert (request.kind, call.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT)
        assert request.start_time_unix_nano < call.start_time_unix_nano < call.end_time_unix_nano
        assert call.end_time_unix_nano < request.end_time_unix_nano
        told = attributes(request)
        assert (told["http.route"], told["http.response.status_code"]) == ("/api/{user_id}/tasks", 201)
        assert attributes(call) == {"db.system.name": "postgresql", "db.query.summary": "insert_task"}
        (resource,) = {resource["service.name"] for resource in collector.resources}
        assert resource == "task-service"


def test_nothing_that_a_user_writes_is_in_a_span(tmp_path: Path, database_url: str) -> None:
    with traced(tmp_path, database_url, OTEL_SERVICE_NAME="other") as (service, collector):
        client = Client(service)
        assert client.create("S3cret").status_code == 201
        found = client.call("GET", "?q=S3cret")
        assert [task["title"] for task in found.json()] == ["S3cret"], "the query is only hidden from the span"
        span = collector.named("GET /api/{user_id}/tasks")
        collector.named("task_search")
        assert "S3cret" not in str(collector.spans)
        assert client.headers["Authorization"].removeprefix("Bearer ") not in str(collector.spans)
        assert "url.query" not in attributes(span)
        assert {resource["service.name"] for resource in collector.resources} == {"other"}


def test_an_outage_is_an_error_in_both_spans() -> None:
    with own_folder() as folder:
        postgres = Postgres(folder)
        run_service(folder, "migrate", **external(postgres.url))
        with traced(folder, postgres.url) as (service, collector):
            client = Client(service)
            assert client.create("Buy milk").status_code == 201
            postgres.stop()
            assert client.call("GET").status_code == 503
            for name in ("GET /api/{user_id}/tasks", "task_list"):
                span = collector.named(name)
                assert span.status.code == Status.STATUS_CODE_ERROR
            assert attributes(collector.named("task_list"))["error.type"] == "Unavailable"


@pytest.mark.parametrize("host", ["a:99999", "[::1", "a b", "x" * 300])
def test_an_odd_host_is_answered_as_without_traces(tmp_path: Path, database_url: str, host: str) -> None:
    statuses = []
    for variables in ({}, to("http://127.0.0.1:9")):
        with serving(tmp_path, **external(database_url), **variables) as service:
            statuses.append(httpx.get(service.address + "/healthz", headers={"Host": host}).status_code)
    assert statuses[0] == statuses[1]


def test_a_collector_that_is_away_disturbs_nobody(tmp_path: Path, database_url: str) -> None:
    with serving(tmp_path, **external(database_url), **to("http://127.0.0.1:9")) as service:
        client = Client(service)
        assert {client.create("Buy milk").status_code for _ in range(20)} == {201}
        started = time.monotonic()
        assert stop(service) == 0
        assert time.monotonic() - started < 5


def test_a_dotenv_file_has_the_variables_too(tmp_path: Path, database_url: str) -> None:
    with collecting() as collector:
        (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in to(collector.url).items()))
        with serving(tmp_path, **external(database_url)):
            collector.named("GET /healthz")


@pytest.mark.parametrize(
    "variables", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}], ids=lambda each: str(*each)
)
def test_traces_can_be_switched_off(tmp_path: Path, database_url: str, variables: dict[str, str]) -> None:
    with traced(tmp_path, database_url, **variables) as (service, collector):
        assert Client(service).create("Buy milk").status_code == 201
        time.sleep(0.5)
        assert stop(service) == 0
        assert collector.spans == []


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: Input should be 'otlp' or 'none', not 'zipkin'"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL: Input should be 'http/protobuf'"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "x"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: Input should be 'http"),
        ({"OTEL_PROPAGATORS": "x"}, "OTEL_…: Propagator x not found"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "0"}, "OTEL_…: max_queue_size must be a positive integer"),
        ({"OTEL_ATTRIBUTE_COUNT_LIMIT": "x", "WEB_CONCURRENCY": "2"}, "OTEL_…: OTEL_ATTRIBUTE_COUNT_LIMIT must be"),
    ],
)
def test_what_is_not_understood_is_named(tmp_path: Path, variables: dict[str, str], message: str) -> None:
    ended = run_service(tmp_path, **external("postgresql://db.test/x"), PORT="0", **variables)
    assert ended.returncode == 1
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_without_the_packages_there_are_no_traces_and_a_warning(tmp_path: Path, database_url: str) -> None:
    (tmp_path / "opentelemetry.py").write_text("raise ImportError('not installed')\n")
    variables = to("http://127.0.0.1:9") | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    with serving(tmp_path, **external(database_url), **variables) as service:
        assert Client(service).create("Buy milk").status_code == 201
        assert "requirements-opentelemetry.txt is not installed" in service.log.read_text()
