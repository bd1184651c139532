"""What every answer carries: ids, security and CORS headers, timings; and the log's line."""

import json
import logging
from typing import Any
from uuid import uuid4

import httpx
import pytest

from service.log import JsonFormatter, TextFormatter
from tests.conftest import ORIGIN, User

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


# The log --------------------------------------------------------------------------------------------------------------


async def request_record(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    (record,) = [record for record in caplog.records if record.name == "service.request"]
    return record


async def test_a_request_writes_one_line(user: User, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    answer = await user.call("GET", f"/{uuid4()}", headers={"X-Request-Id": "the-one"})
    record = await request_record(caplog)

    line = json.loads(JsonFormatter().format(record))
    assert (
        line.items()
        >= {
            "level": "info",
            "method": "GET",
            "route": "/api/{user_id}/tasks/{task_id}",
            "status": answer.status_code,
            "user": user.id,
            "request_id": "the-one",
        }.items()
    )
    assert 0 < line["database_ms"] < line["total_ms"]

    text = TextFormatter().format(record)
    assert text.count("\n") == 0
    for part in ("GET /api/{user_id}/tasks/{task_id} 404", f'user="{user.id}"', "id=the-one", "db="):
        assert part in text


async def test_neither_token_nor_body_reaches_the_log(user: User, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = user.headers["Authorization"].split()[1]
    for body in ({"title": "a secret wish"}, {"title": "a secret wish", "colour": "a secret wish"}):
        await user.call("POST", json=body)
    await user.client.get(user.tasks, headers={"Authorization": f"Bearer {token}x"})
    await user.client.get(f"/nothing/{token}")
    for record in (record for record in caplog.records if not record.name.startswith("http")):  # not the client's own
        for formatter in (TextFormatter(), JsonFormatter()):
            text = formatter.format(record)
            assert token not in text
            assert "secret wish" not in text


async def test_a_user_id_cannot_break_the_line(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    hostile = User('x" 200\n2026 INFO forged', client)
    answer = await client.get("/api/x%22%20200%0A2026%20INFO%20forged/tasks", headers=hostile.headers)
    assert answer.status_code == 200
    assert TextFormatter().format(await request_record(caplog)).count("\n") == 0


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
