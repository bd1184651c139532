"""Traces by OpenTelemetry: each request is a span, and each of its calls of the database a child of it.

Imported only when the settings ask for traces: without them they cost nothing.
"""

import asyncio
import threading
from asyncio import Future
from functools import partial
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer
from starlette.middleware.opentelemetry import OpenTelemetryMiddleware
from starlette.types import Receive, Scope, Send

from service.db.coalescer import Coalescer, Statement
from service.db.pool import Pool
from service.web.application import Service
from service.web.openapi import service_version

NAME = "task-service"
LAST_SECONDS = 2.0  # at the end of the process, for what is not sent yet


class Tracing:
    """Makes the traced parts of an application, and sends their spans as the OTEL_* variables say."""

    def __init__(self) -> None:
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: NAME, SERVICE_VERSION: service_version()}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))

    def service(self, *arguments: Any) -> Service:
        """Returns a Service whose requests are traced."""
        return _TracedService(self._provider, *arguments)

    def coalescer(self, pool: Pool) -> Coalescer:
        """Returns a Coalescer whose calls are traced."""
        return _TracedCoalescer(self._provider.get_tracer(NAME), pool)

    async def close(self) -> None:
        """Sends what is not sent yet, if the collector takes it at once: the SDK alone would wait for it longer."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        await asyncio.to_thread(sending.join, LAST_SECONDS)


class _TracedService(Service):
    def __init__(self, provider: TracerProvider, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._traced = OpenTelemetryMiddleware(self._untraced, tracer_provider=provider)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request; hides its query, which has words that the user searches for, from the span."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        scope["untraced_query"], scope["query_string"] = scope["query_string"], b""
        await self._traced(scope, receive, send)

    async def _untraced(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["query_string"] = scope.pop("untraced_query")
        await super().__call__(scope, receive, send)


class _TracedCoalescer(Coalescer):
    def __init__(self, tracer: Tracer, pool: Pool) -> None:
        super().__init__(pool)
        self._tracer = tracer

    def fetch(self, statement: Statement, *arguments: Any) -> Future[Any]:
        """Runs the statement, as Coalescer does; the span has the time that the call waits, too."""
        result = super().fetch(statement, *arguments)
        if trace.get_current_span().is_recording():
            attributes = {"db.system.name": "postgresql", "db.query.summary": statement.name}
            span = self._tracer.start_span(statement.name, kind=SpanKind.CLIENT, attributes=attributes)
            result.add_done_callback(partial(_end, span))
        return result


def _end(span: Span, result: Future[Any]) -> None:
    error = None if result.cancelled() else result.exception()
    if error is not None:
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(StatusCode.ERROR)
    span.end()
