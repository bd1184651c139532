"""What every answer carries: ids, security and CORS headers, timings; and the log's line."""

import asyncio
import io
import json
import logging
import re
from typing import Any
from uuid import uuid4

import httpx
import pytest

from service.app import create_app
from service.web.application import STRANGERS
from service.web.log import JsonFormatter, RequestLog, TextFormatter
from tests.conftest import ADDRESS, ORIGIN, User, make_settings

EXPOSED = {
    "ETag",
    "Link",
    "Location",
    "Retry-After",
    "X-Request-Id",
    "X-Total-Count",
    "Idempotent-Replayed",
    "Server-Timing",
}
ALLOWED_HEADERS = {
    "Authorization",
    "Content-Type",
    "If-Match",
    "If-None-Match",
    "Idempotency-Key",
    "Last-Event-ID",
    "X-Request-Id",
    "traceparent",
    "tracestate",
    "baggage",
    "sentry-trace",
}


def split(value: str) -> set[str]:
    return set(value.split(", "))


async def some_answers(user: User, **headers: str) -> list[httpx.Response]:
    """Returns a 200, a 201, a 204, a 401, a 404, a 405, a 413, a 415 and a 422 of the API."""
    path = f"/{(await user.create())['id']}"
    answers = [
        await user.call("GET", headers=headers),
        await user.call("POST", json={"title": "x"}, headers=headers),
        await user.call("DELETE", path, headers=headers),
        await user.client.get(user.tasks, headers=headers),
        await user.call("GET", f"/{uuid4()}", headers=headers),
        await user.call("DELETE", headers=headers),
        await user.call("POST", content=b"x" * 70_000, headers=headers),
        await user.call("POST", content=b"x", headers=headers | {"Content-Type": "text/plain"}),
        await user.call("POST", json={}, headers=headers),
    ]
    assert [answer.status_code for answer in answers] == [200, 201, 204, 401, 404, 405, 413, 415, 422]
    return answers


async def test_every_answer_of_the_api_has_its_headers(user: User) -> None:
    for answer in await some_answers(user):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "private, no-cache"
        assert "Authorization" in split(answer.headers["Vary"])
        assert answer.headers["X-Request-Id"]
        assert answer.headers["Server-Timing"].startswith("total;dur=")
        if answer.status_code != 204:
            assert answer.headers["Content-Type"] == "application/json"


async def test_server_timing_tells_the_database_s_share(user: User) -> None:
    timings = dict(part.split(";dur=") for part in split((await user.call("GET")).headers["Server-Timing"]))
    assert 0 < float(timings["db"]) < float(timings["total"])


@pytest.mark.parametrize("request_id", ["x", "a" * 128, "A-b_c.9"])
async def test_a_good_request_id_is_kept(client: httpx.AsyncClient, request_id: str) -> None:
    for path in ("/healthz", "/api/x/tasks", "/nothing"):
        assert (await client.get(path, headers={"X-Request-Id": request_id})).headers["X-Request-Id"] == request_id


@pytest.mark.parametrize("request_id", ["", "a" * 129, "a b", "a\tb", "a/b", "{}"])
async def test_another_request_id_is_replaced(client: httpx.AsyncClient, request_id: str) -> None:
    answers = [await client.get("/healthz", headers=[("X-Request-Id", request_id)]) for _ in range(2)]
    ids = {answer.headers["X-Request-Id"] for answer in answers}
    assert len(ids) == 2
    assert request_id not in ids


# CORS -----------------------------------------------------------------------------------------------------------------


async def test_a_listed_origin_may_read_every_answer(user: User) -> None:
    for answer in await some_answers(user, Origin=ORIGIN):
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert answer.headers["Access-Control-Allow-Credentials"] == "true"
        assert split(answer.headers["Access-Control-Expose-Headers"]) == EXPOSED
        assert "Origin" in split(answer.headers["Vary"])


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_a_preflight_is_answered_without_a_token(user: User, method: str) -> None:
    headers = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    answer = await user.client.options(user.tasks, headers=headers)
    assert (answer.status_code, answer.content) == (204, b"")
    assert method in split(answer.headers["Access-Control-Allow-Methods"])
    assert split(answer.headers["Access-Control-Allow-Headers"]) == ALLOWED_HEADERS
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert answer.headers["Access-Control-Max-Age"] == "86400"


@pytest.mark.parametrize(
    "origin",
    ["http://evil.test", "null", ORIGIN + ".evil.test", ORIGIN.replace("3000", "3001"), "https" + ORIGIN[4:], ""],
)
async def test_another_origin_gets_no_cors_header(user: User, origin: str) -> None:
    answers = await some_answers(user, Origin=origin)
    preflight = {"Origin": origin, "Access-Control-Request-Method": "GET"}
    answers.append(await user.client.options(user.tasks, headers=preflight))
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert "Origin" in split(answer.headers["Vary"])


async def test_a_setting_adds_request_headers(database_url: str) -> None:
    app = create_app(make_settings(database_url, cors_headers="X-One, x-two"))
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "GET"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=ADDRESS) as client:
        answer = await client.options("/api/u/tasks", headers=headers)
    assert split(answer.headers["Access-Control-Allow-Headers"]) == ALLOWED_HEADERS | {"X-One", "x-two"}


# As browsers write the origin of a page whose address begins so; each is set in one way and asked for in the other.
@pytest.mark.parametrize(
    ("listed", "origin"),
    [
        *(("https://app.test:443", "https://app.test"), ("http://app.test:80/", "http://app.test")),
        *(("HTTPS://App.Test", "https://app.test"), ("https://app.test:8443", "https://app.test:8443")),
        *(("http://app.test:443", "http://app.test:443"), ("https://bücher.test", "https://xn--bcher-kva.test")),
        *(
            ("https://faß.test", "https://xn--fa-hia.test"),
            ("https://xn--bcher-kva.test", "https://xn--bcher-kva.test"),
        ),
        *(("http://[0:0:0:0:0:0:0:1]:3000", "http://[::1]:3000"), ("capacitor://localhost", "capacitor://localhost")),
        *(("ionic://localhost", "ionic://localhost"), ("tauri://localhost", "tauri://localhost")),
        ("chrome-extension://abcdefghijklmnopabcdefghijklmnop", "chrome-extension://abcdefghijklmnopabcdefghijklmnop"),
        ("http://localhost:03000", "http://localhost:3000"),
        ("https://a.test, capacitor://localhost ,https://b.test", "https://b.test"),
    ],
)
async def test_an_origin_is_listed_in_whatever_way_it_is_written(database_url: str, listed: str, origin: str) -> None:
    app = create_app(make_settings(database_url, frontend_url=listed))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=ADDRESS) as client:
        for path in ("/healthz", "/api/u/tasks", "/nothing"):
            answer = await client.get(path, headers={"Origin": origin})
            assert answer.headers["Access-Control-Allow-Origin"] == origin
        for other in (origin + ":1", origin + ".evil.test", "null", origin.replace("://", "s://")):
            answer = await client.get("/healthz", headers={"Origin": other})
            assert "Access-Control-Allow-Origin" not in answer.headers


async def test_the_log_says_once_which_origin_asked_and_what_to_set(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(make_settings(database_url))

    def lines() -> list[str]:
        found = [record.getMessage() for record in caplog.records if record.name == "service.web.application"]
        caplog.clear()
        return found

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=ADDRESS) as client:
        for origin in ("http://other.test", "null", "http://other.test"):
            for method in ("GET", "OPTIONS"):
                headers = {"Origin": origin, "Access-Control-Request-Method": "GET"}
                await client.request(method, "/healthz", headers=headers)
        first, second = lines()
        assert '"http://other.test"' in first
        assert "FRONTEND_URL" in first
        assert ORIGIN in first
        assert '"null"' in second
        for origin in (ORIGIN, ADDRESS, ADDRESS.replace("http", "https")):
            await client.get("/healthz", headers={"Origin": origin})
        assert not lines(), "one is listed, and the service's own page is no stranger"
        hostile: Any = [(b"Origin", b"x\x1b[31m\xff" + b"y" * 20_000)]
        for _ in range(2):
            await client.get("/healthz", headers=hostile)
        (line,) = lines()
        assert len(line) < 300
        assert line.isprintable()
        for number in range(2 * STRANGERS):
            await client.get("/healthz", headers={"Origin": f"http://{number}.test"})
        assert len(lines()) == STRANGERS - 3


# The log --------------------------------------------------------------------------------------------------------------


class Lines(io.StringIO):
    """A log that a test reads."""

    async def read_new(self) -> list[str]:
        await asyncio.sleep(0)  # they are written at the end of the event loop's turn
        lines = self.getvalue().splitlines()
        self.seek(0)
        self.truncate()
        return lines


@pytest.fixture(params=["text", "json"])
def format_(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lines(format_: str, monkeypatch: pytest.MonkeyPatch) -> Lines:
    lines = Lines()
    monkeypatch.setattr("service.web.log.requests", RequestLog(lines, format_))
    return lines


async def test_a_request_writes_one_line(user: User, lines: Lines, format_: str) -> None:
    answer = await user.call("GET", f"/{uuid4()}", headers={"X-Request-Id": "the-one"})
    (line,) = await lines.read_new()
    if format_ == "json":
        fields = json.loads(line)
        assert list(fields) == [
            "time",
            "level",
            "method",
            "route",
            "status",
            "total_ms",
            "database_ms",
            "user",
            "request_id",
        ]
        told = {"method": "GET", "route": "/api/{user_id}/tasks/{task_id}", "status": answer.status_code}
        assert fields.items() >= (told | {"user": user.id, "request_id": "the-one"}).items()
        assert 0 < fields["database_ms"] < fields["total_ms"]
    else:
        assert re.fullmatch(
            r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO GET /api/\{user_id\}/tasks/\{task_id\} 404 "
            rf'\d+\.\dms db=\d+\.\dms user="{user.id}" id=the-one',
            line,
        )


async def test_simultaneous_requests_write_a_line_each(user: User, lines: Lines) -> None:
    await asyncio.gather(*(user.call("GET", headers={"X-Request-Id": f"r{number}"}) for number in range(20)))
    written = " ".join(await lines.read_new())
    assert sorted(re.findall(r"\br\d+\b", written)) == sorted(f"r{number}" for number in range(20))


async def test_neither_token_nor_body_reaches_the_log(
    user: User, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = user.headers["Authorization"].split()[1]
    for body in ({"title": "a secret wish"}, {"title": "a secret wish", "colour": "a secret wish"}):
        await user.call("POST", json=body)
    await user.client.get(user.tasks, headers={"Authorization": f"Bearer {token}x"})
    await user.client.get(f"/nothing/{token}")
    written = await lines.read_new()
    assert len(written) == 4
    written += [record.getMessage() for record in caplog.records if not record.name.startswith("http")]
    for line in written:
        assert token not in line
        assert "secret wish" not in line


async def test_a_user_id_cannot_break_the_line(client: httpx.AsyncClient, lines: Lines, format_: str) -> None:
    hostile = User('x" 200\n2026 INFO forged', client)
    answer = await client.get("/api/x%22%20200%0A2026%20INFO%20forged/tasks", headers=hostile.headers)
    assert answer.status_code == 200
    (line,) = await lines.read_new()
    assert format_ == "text" or json.loads(line)["user"] == hostile.id


def test_a_warning_names_its_cause_and_an_error_has_its_traceback() -> None:
    def formatted(level: int, formatter: logging.Formatter) -> str:
        try:
            raise ValueError("the cause")
        except ValueError as error:
            caught: Any = (type(error), error, error.__traceback__)
        return formatter.format(logging.LogRecord("x", level, "", 0, "it happened", None, caught))

    for formatter in (TextFormatter(), JsonFormatter()):
        assert "it happened: ValueError: the cause" in formatted(logging.WARNING, formatter)
        assert "Traceback" not in formatted(logging.WARNING, formatter)
        assert "Traceback" in formatted(logging.ERROR, formatter)
