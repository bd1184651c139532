"""Errors and bodies: every row of the table of errors, and what a JSON parser may trip over."""

import time
from typing import Any
from uuid import uuid4

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.routes.docs import ASSETS
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
    ids=["list", "task", "complete"],
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


@pytest.mark.parametrize("value", ["s" * 10_000, ["s"] * 10_000, {"s" * 10_000: 1}, [[[["s" * 10_000]]]], 10**4000])
async def test_a_long_value_is_shown_shortened(user: User, value: Any) -> None:
    response = await user.call("POST", json={"title": "x", "status": value})
    assert len(response.text) < 300


# Bounds of a 422 ------------------------------------------------------------------------------------------------------


def told(response: httpx.Response) -> list[Any]:
    """Returns the entries of a 422, once they are seen to be few and short."""
    assert response.status_code == 422, response.text
    assert len(response.content) < 10_000
    entries: list[Any] = response.json()["detail"]
    return entries


@pytest.mark.parametrize("number", [1, 19, 20, 21, 22, 5_000])
async def test_a_422_has_20_entries_and_says_how_many_more_there_are(user: User, number: int) -> None:
    names = [f"x{name}" for name in range(number)]
    path = f"/{uuid4()}"
    fields = dict.fromkeys(names, 1)
    for response in (
        await user.call("GET", "?" + "&".join(names)),
        await user.call("GET", path + "?" + "&".join(names)),
        await user.call("POST", json={"title": "x"} | fields),
        await user.call("PATCH", path, json=fields),
        await user.call("PATCH", path + "/complete", json={"is_completed": True} | fields),
    ):
        entries = told(response)
        assert [entry["loc"][1] for entry in entries[:20]] == names[:20]
        rest = [{"loc": entries[0]["loc"][:1], "msg": f"and {number - 20} more", "type": "more"}]
        assert entries[20:] == (rest if number > 20 else [])


@pytest.mark.parametrize("length", [59, 60, 61, 30_000])
async def test_a_long_name_is_shown_shortened(user: User, length: int) -> None:
    name = "x" * length
    for response in (
        await user.call("GET", f"?{name}=1"),
        await user.call("POST", f"?{name}=1"),
        await user.call("POST", json={"title": "x", name: 1}),
    ):
        (entry,) = told(response)
        assert entry["loc"][1] == (name if length <= 60 else "x" * 60 + "…")


@pytest.mark.parametrize(
    "query",
    [
        *("&" * 32_000, "a&" * 15_000, "limit=1&" * 4_000, "%41&" * 7_500, "%ff=%fe&" * 3_500, "=&" * 15_000),
        *("status=" + "a," * 15_000, "fields=id&" * 3_000, "limit=" + "1" * 30_000, "q=" + "%20" * 10_000),
        *("created_after=" + "1%20" * 7_500, "cursor=" + "A" * 30_000, "&".join(f"{n:x}" for n in range(6_500))),
        "created_after=2026-01-01T00:00:00." + "0" * 30_000,
    ],
)
async def test_no_query_string_takes_long_or_a_long_answer(user: User, query: str) -> None:
    began = time.perf_counter()
    for path in (user.tasks, f"{user.tasks}/{uuid4()}", "/healthz"):
        response = await user.client.get(f"{path}?{query}", headers=user.headers)
        assert response.status_code == 422 or path == user.tasks
        assert len(response.content) < 10_000
    assert time.perf_counter() - began < 2, "the first of these used to take seconds, and all are linear now"


@pytest.mark.parametrize(
    ("field", "known"),
    [
        *(("completed", "is_completed"), ("isCompleted", "is_completed"), ("Title", "title"), ("desc", "description")),
        *(("prio", "priority"), ("state", "status"), ("createdAt", "created_at"), ("ids", "id")),
    ],
)
async def test_an_unknown_field_is_refused_with_the_known_one_that_is_like_it(
    user: User, field: str, known: str
) -> None:
    for method, path in (("POST", ""), ("PATCH", f"/{uuid4()}")):
        (entry,) = told(await user.call(method, path, json={"title": "x", field: 1}))
        assert entry["msg"].startswith(f"Unknown field (did you mean {known}?); known are ")
        assert ("id, " in entry["msg"]) is (method == "POST")


async def test_an_unknown_field_that_is_like_none_is_refused_with_the_known_ones(user: User) -> None:
    when = "due_date, due_time, due_time_zone, recurrence, recurrence_anchor, tags"
    for method, path, known in (
        ("POST", "", f"id, title, description, status, priority, is_completed, {when}"),
        ("PATCH", f"/{uuid4()}", f"title, description, status, priority, is_completed, {when}"),
        ("PATCH", f"/{uuid4()}/complete", "is_completed"),
    ):
        response = await user.call(method, path, json={"title": "x", "is_completed": True, "zzz": 1})
        entry = told(response)[-1]
        assert set(entry["msg"].removeprefix("Unknown field; known are ").split(", ")) == set(known.split(", "))


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"nan", b"[NaN]", b'{"x": [1, Infinity]}'])
async def test_no_json_has_such_numbers_in_ignored_fields_neither(user: User, value: bytes) -> None:
    path = f"/{(await user.create())['id']}"
    for method, rest in (("POST", ""), ("PUT", path), ("PATCH", path), ("PATCH", path + "/complete")):
        body = b'{"title": "x", "is_completed": true, "version": ' + value + b"}"
        (entry,) = told(await user.call(method, rest, content=body, headers=JSON))
        assert (entry["loc"], entry["type"]) == (["body"], "json_invalid")
    assert len((await user.call("GET")).json()) == 1


@pytest.mark.parametrize(
    "body",
    [
        *(b'{"version": ' + b"1" * 60_000 + b"}", b"[" * 30_000 + b"]" * 30_000, b"[" + b"1," * 30_000 + b"1]"),
        *(b'{"deleted_at": ' + b"[" * 30_000 + b"]" * 30_000 + b"}", b'{"title": [' + b"[]," * 20_000 + b"1]}"),
        *(
            b'{"title": "' + b"x" * 65_000 + b'"}',
            b'{"' + b"x" * 65_000 + b'": 1}',
            b'{"title": ' + b"1" * 4_300 + b"}",
        ),
    ],
)
async def test_no_body_takes_a_long_answer(user: User, body: bytes) -> None:
    path = f"/{(await user.create())['id']}"
    for method, rest in (("POST", ""), ("PATCH", path), ("PATCH", path + "/complete")):
        told(await user.call(method, rest, content=body, headers=JSON))


# The other paths ------------------------------------------------------------------------------------------------------


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


async def test_whatever_is_not_below_api_can_neither_be_framed_nor_run_what_is_not_its_own(
    client: httpx.AsyncClient,
) -> None:
    assets = [str(file.relative_to(ASSETS)) for file in ASSETS.rglob("*") if file.is_file()]
    assert not [asset for asset in assets if asset.endswith((".html", ".htm", ".svg", ".xml"))], "a page of its own"
    paths = ["/", "/docs", "/openapi.json", "/healthz", "/readyz", "/nothing", "/api", "/docs/assets/docs.html"]
    for path in [*paths, "/docs/", "/DOCS", "//api/x", *(f"/docs/assets/{asset}" for asset in assets)]:
        for method in ("GET", "POST"):
            response = await client.request(method, path)
            policy = response.headers["Content-Security-Policy"]
            assert "frame-ancestors 'none'" in policy, path
            assert "default-src 'none'" in policy
            if response.headers.get("Content-Type", "").startswith("text/html"):
                assert path == "/docs"
    too_much = await client.get("/docs", headers={"X-Padding": "x" * 33_000})
    assert (too_much.status_code, "Content-Security-Policy" in too_much.headers) == (431, True)


@pytest.mark.parametrize(
    "path", ["x/" * 15_000, "..%2f" * 6_000, "%00", "x" * 5_000, "", "swagger-ui", "swagger-ui/", "..%2fdocs.html", "é"]
)
async def test_an_asset_that_is_not_there(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get("/docs/assets/" + path)).status_code == 404
