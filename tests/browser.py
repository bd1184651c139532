"""Chromium, and pages of which only the origin matters: what the tests in a browser share."""

import os
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

COMMANDS = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> Iterator[Browser]:
    """Yields Chromium, a fixture's value; skips the tests without it, but fails in CI."""
    executable = next(filter(None, map(shutil.which, COMMANDS)), None)
    if executable is None:
        missing = f"no Chromium found: the PATH has none of {', '.join(COMMANDS)}"
        if os.environ.get("CI"):
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    expect.set_options(timeout=20_000)  # milliseconds; the usual 5 s are short for a busy machine
    with sync_playwright() as playwright:
        # Playwright itself adds --no-sandbox, and most of what keeps Chromium from talking to the internet.
        browser = playwright.chromium.launch(executable_path=executable, args=["--disable-gpu", "--disable-quic"])
        yield browser
        browser.close()


class BlankPage(BaseHTTPRequestHandler):
    """Answers every GET with a page of which only the origin matters."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>A frontend</title>")

    def log_message(self, *_: Any) -> None:
        """Writes nothing: the base class has a line for each request."""


def frontend() -> Iterator[str]:
    """Serves blank pages on a free port; yields their origin, a fixture's value."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BlankPage) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
