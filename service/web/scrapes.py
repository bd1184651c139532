"""What answers Prometheus' scrapes, in threads of the process that was started.

Imported only when there are metrics: prometheus-client takes a while.
"""

import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from service.web.metrics import FAMILIES, Board

SILENT_SECONDS = 10  # that a scraper may say nothing, or take nothing, as long as Prometheus waits for its answer
MOST_SCRAPES = 20  # at once; one more ends the oldest

logger = logging.getLogger(__name__)


@contextmanager
def answered(board: Board, listener: socket.socket) -> Iterator[None]:
    """Answers scrapes on the socket meanwhile."""
    registry = CollectorRegistry()
    registry.register(_Collector(board))
    with _Server(listener) as server:
        server.set_app(make_wsgi_app(registry))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the main thread
        try:
            thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


class _Collector:
    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics, as prometheus-client wants them."""
        found = self._board.read()
        for name, (type_, help_, names, bounds) in FAMILIES.items():
            series = found.get(name, {})
            if type_ == "histogram":
                histogram = HistogramMetricFamily(name, help_, labels=names)
                for labels, numbers in series.items():
                    histogram.add_metric(labels, _buckets(bounds, numbers), numbers[-1])
                yield histogram
            else:
                plain = (CounterMetricFamily if type_ == "counter" else GaugeMetricFamily)(name, help_, labels=names)
                for labels, numbers in series.items():
                    plain.add_metric(labels, numbers[0])
                yield plain

    describe = collect  # the names, which a scrape may choose from by `name[]`


class Handler(WSGIRequestHandler):
    """Answers one scrape."""

    timeout = SILENT_SECONDS

    def log_message(self, *_: Any) -> None:
        """Logs no scrape."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(listener.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = listener.getsockname()[:2]  # its own way asks the DNS for the name
        self.setup_environ()
        self._scrapes: list[socket.socket] = []  # the oldest first

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answers in a thread of its own; whoever is slow makes way for others."""
        self._scrapes.append(request)
        if len(self._scrapes) > MOST_SCRAPES:
            with suppress(OSError):  # it ends just now
                self._scrapes[0].shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Ends a connection."""
        self._scrapes.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs, for those who look for it, that a scraper went away: anyone could fill the log with it."""
        logger.debug("a scrape broke off", exc_info=True)


def _buckets(bounds: tuple[float, ...], numbers: list[float]) -> list[tuple[str, float]]:
    """Returns the upper bounds of the buckets, each with how many observations are not above it."""
    total = 0.0
    found = []
    for bound, number in zip((*bounds, float("inf")), numbers[:-1], strict=True):
        total += number
        found.append(("+Inf" if bound == float("inf") else f"{float(bound)}", total))
    return found
