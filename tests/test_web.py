"""Errors and bodies: every row of the table of errors, and what a JSON parser may trip over."""

from typing import Any
from uuid import uuid4

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.conftest import ORIGIN, User

JSON = {"Content-Type": "application/json"}


async def test_an_unknown_path(client: httpx.AsyncClient, user: User) -> None:
    for path in ("/nothing", "/healthz/", "/healthz%0A", "/api", "/docs/assets/nothing.js", "/docs/assets/../app.py"):
        response = await client.get(path)
        assert (response.status_code, response.json()) == (404, {"detail": "Not Found"}), path
    for rest in ("/", "%0A"):
        assert (await user.call("GET", rest)).status_code == 404, "there are no trailing slashes"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("", "GET, HEAD, POST"),
        (f"/{uuid4()}", "DELETE, GET, HEAD, PATCH, PUT"),
        (f"/{uuid4()}/complete", "PATCH"),
    ],
)
async def test_a_method_that_the_path_has_not(user: User, path: str, allowed: str) -> None:
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - set(allowed.split(", ")):
        response = await user.call(method, path)
        assert (response.status_code, response.json()) == (405, {"detail": "Method Not Allowed"})
        assert response.headers["Allow"] == allowed


async def test_methods_of_the_other_paths(client: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/readyz", "/openapi.json", "/docs", "/"):
        response = await client.post(path)
        assert (response.status_code, response.headers["Allow"]) == (405, "GET, HEAD")


async def test_someone_else_s_task_is_no_task(user: User, other: User) -> None:
    theirs = f"/{(await other.create())['id']}"
    nobodys = f"/{uuid4()}"
    for method, rest in (("GET", ""), ("PUT", ""), ("PATCH", ""), ("DELETE", ""), ("PATCH", "/complete")):
        body = {"json": {"title": "mine"}} if method in ("PUT", "PATCH") and not rest else {}
        answers = [await user.call(method, path + rest, **body) for path in (theirs, nobodys)]
        for answer in answers:
            assert (answer.status_code, answer.json()) == (404, {"detail": "Task not found"})
        assert set(answers[0].headers) == set(answers[1].headers)


@pytest.mark.parametrize("size", [65_535, 65_536])
async def test_a_body_up_to_64_kib_is_read(user: User, size: int) -> None:
    body = b'{"title": "x"' + b" " * (size - 14) + b"}"
    assert len(body) == size
    assert (await user.call("POST", content=body)).status_code == 201


async def test_a_body_over_64_kib_is_refused(user: User) -> None:
    body = b'{"title": "x"' + b" " * (65_537 - 14) + b"}"

    async def chunks() -> Any:
        yield body[:40_000]
        yield body[40_000:]

    for content in (body, chunks()):
        response = await user.call("POST", content=content)
        assert (response.status_code, response.json()) == (413, {"detail": "Request body too large"})
    assert (await user.call("GET")).json() == []


@pytest.mark.parametrize(
    "media_type",
    ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON", "application/merge-patch+json", None],
)
async def test_content_types_that_are_json(user: User, media_type: str | None) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    assert (await user.call("POST", content=b'{"title": "x"}', headers=headers)).status_code == 201


@pytest.mark.parametrize(
    "media_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", "x+json"],
)
async def test_content_types_that_are_not(user: User, media_type: str) -> None:
    response = await user.call("POST", content=b'{"title": "x"}', headers={"Content-Type": media_type})
    assert (response.status_code, response.json()) == (415, {"detail": "Unsupported media type"})
    assert (await user.call("GET")).json() == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"{'title': 'x'}",
        b'{"title": "x",}',
        b'{"title": "x"} {}',
        b'{"title": "x"}x',
        b'{"title": x}',
        b'{"title": "\xff"}',
        b'{"title": "\xed\xa0\x80"}',
        b'\xef\xbb\xbf{"title": "x"}',
        '{"title": "x"}'.encode("utf-16"),
        rb'{"title": "\ud800"}',
        rb'{"title": "\udc00\ud800"}',
        rb'{"title": "\u12"}',
        b'{"title": "tab\tinside"}',
        b'{"title": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"title": "x", "version": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"title": ' + b'{"a":' * 8_000 + b"1" + b"}" * 8_000 + b"}",
    ],
)
async def test_json_that_does_not_parse(user: User, body: bytes) -> None:
    response = await user.call("POST", content=body, headers=JSON)
    assert response.status_code == 422
    (entry,) = response.json()["detail"]
    assert entry["loc"][0] == "body"
    assert entry["msg"].startswith("Invalid JSON: ")
    assert (await user.call("GET")).json() == []


@pytest.mark.parametrize("body", [b"null", b"[]", b'"x"', b"1", b"true", b'[{"title": "x"}]'])
async def test_json_that_is_no_object(user: User, body: bytes) -> None:
    path = f"/{(await user.create())['id']}"
    for method, rest in (("POST", ""), ("PUT", path), ("PATCH", path), ("PATCH", path + "/complete")):
        response = await user.call(method, rest, content=body, headers=JSON)
        assert response.status_code == 422
        (entry,) = response.json()["detail"]
        assert entry["loc"] == ["body"]


@pytest.mark.parametrize(
    "value",
    [b"1e999", b"-1e999", b"NaN", b"Infinity", b"1" * 5_000, b"0.1e-5000", b"-0", b"12345678901234567890123", b"01"],
)
async def test_numbers_that_a_parser_may_trip_over(user: User, value: bytes) -> None:
    for field, expected in ((b"title", {422}), (b"is_completed", {422}), (b"version", {201, 422})):
        body = b'{"title": "x", "' + field + b'": ' + value + b"}"
        assert (await user.call("POST", content=body, headers=JSON)).status_code in expected


async def test_of_a_key_that_comes_twice_the_last_counts_as_in_browsers(user: User) -> None:
    response = await user.call("POST", content=b'{"title": "first", "title": "last"}', headers=JSON)
    assert response.json()["title"] == "last"
    response = await user.call("POST", content=b'{"title": "first", "title": null}', headers=JSON)
    assert response.status_code == 422


@pytest.mark.parametrize("query", ["colour=red", "limit=0", "status", "=", "a=1&b=2", "user_id=x", "token=x"])
async def test_a_query_parameter_that_nobody_knows(user: User, query: str) -> None:
    task = await user.create()
    path = f"/{task['id']}"
    for method, rest in (("GET", ""), ("POST", ""), ("GET", path), ("PUT", path), ("DELETE", path)):
        response = await user.call(method, f"{rest}?{query}")
        assert response.status_code == 422
        names = [part.partition("=")[0] for part in query.split("&")]
        assert [entry["loc"] for entry in response.json()["detail"]] == [["query", name] for name in names]
    assert (await user.call("GET")).json() == [task]
    assert (await user.client.get("/healthz?x=1")).status_code == 422


async def test_a_long_value_is_shown_shortened(user: User) -> None:
    response = await user.call("POST", json={"title": "x", "status": "s" * 10_000})
    assert len(response.text) < 300


async def test_a_bug_is_a_500_that_tells_nothing(
    app: Starlette, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    async def bug(request: Request) -> Response:
        raise RuntimeError("inner matters")

    route = Route("/bug", bug)
    app.router.routes.append(route)
    try:
        response = await client.get("/bug", headers={"X-Request-Id": "the-one", "Origin": ORIGIN})
    finally:
        app.router.routes.remove(route)
    assert (response.status_code, response.json()) == (500, {"detail": "Internal server error"})
    assert response.headers["X-Request-Id"] == "the-one"
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "the-one" in record.getMessage()
    assert record.exc_info is not None


async def test_health(client: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/readyz"):
        response = await client.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert "db;dur=0.00" in (await client.get("/healthz")).headers["Server-Timing"]


async def test_the_root_leads_to_the_documentation(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    assert (response.status_code, response.headers["Location"]) == (307, "/docs")
    page = await client.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
