"""Behind a proxy that takes away the beginning of the path, and speaks TLS: what the client is told is right for it."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urljoin
from uuid import uuid4

import httpx
import pytest
from starlette.applications import Starlette

from service.app import create_app
from tests.conftest import ADDRESS, User, make_settings

STRANGER = "192.0.2.7"


def reached_from(app: Starlette, address: str) -> httpx.AsyncClient:
    """Returns a client whose connections come from this address."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(address, 5)), base_url=ADDRESS)


def at(client: httpx.AsyncClient) -> User:
    return User(f"user-{uuid4()}", client)


async def told(user: User, headers: dict[str, str]) -> tuple[str, str, str, str]:
    """Returns Location and Link (without its query), the place that `/` redirects to, and the document's server."""
    for _ in range(2):
        created = await user.call("POST", json={"title": "x"}, headers=headers)
    listed = await user.call("GET", "?limit=1", headers=headers)
    root = await user.client.get("/", headers=headers)
    document = (await user.client.get("/openapi.json", headers=headers)).json()
    (server,) = document["servers"]
    location = created.headers["Location"].removesuffix("/" + created.json()["id"])
    return location, listed.links["next"]["url"].partition("?")[0], root.headers["Location"], server["url"]


def expected(user: User, prefix: str, origin: str = ADDRESS) -> tuple[str, str, str, str]:
    return prefix + user.tasks, origin + prefix + user.tasks, prefix + "/docs", origin + prefix


async def test_without_a_proxy_there_is_no_prefix(user: User) -> None:
    assert await told(user, {}) == expected(user, "")


@pytest.mark.parametrize(
    ("sent", "prefix"),
    [("/svc", "/svc"), ("/svc/", "/svc"), ("/a/b-c_d.e~f/1", "/a/b-c_d.e~f/1"), (" /svc ", "/svc"), ("/..a", "/..a")],
)
async def test_a_trusted_proxy_says_what_it_has_taken_away(user: User, sent: str, prefix: str) -> None:
    assert await told(user, {"X-Forwarded-Prefix": sent}) == expected(user, prefix)
    own = User("me", user.client, user.headers["Authorization"].split()[1])
    assert (await told(own, {"X-Forwarded-Prefix": sent}))[0] == prefix + "/api/me/tasks"


@pytest.mark.parametrize(
    "sent",
    [
        *(
            "",
            "/",
            "svc",
            "//evil.test",
            "//",
            "/svc//x",
            "/../x",
            "/svc/..",
            "/./x",
            "https://evil.test",
            "/a b",
            "/a?b",
        ),
        *(
            "/a#b",
            '/a"b',
            "/<b>",
            "/a\\b",
            "/a%0d%0aX",
            "/a;b",
            "/a,/b",
            "/é".encode().decode("latin-1"),
            "/a>",
            "/a\tb",
        ),
    ],
)
async def test_a_prefix_that_is_no_plain_path_is_ignored(user: User, sent: str) -> None:
    headers: Any = [(b"X-Forwarded-Prefix", sent.encode("latin-1"))]
    root = await user.client.get("/", headers=headers)
    assert root.headers["Location"] == "/docs"


@pytest.mark.parametrize(
    ("sent", "scheme"),
    [
        *(("https", "https"), ("https,http", "https"), ("https, http, http", "https"), ("http,https", "http")),
        *((" HTTPS ", "https"), ("", "http"), ("ftp", "http"), ("javascript:", "http"), (",https", "http")),
    ],
)
async def test_the_leftmost_scheme_is_the_client_s(user: User, sent: str, scheme: str) -> None:
    origin = ADDRESS.replace("http", scheme)
    assert await told(user, {"X-Forwarded-Proto": sent}) == expected(user, "", origin)
    both = {"X-Forwarded-Proto": sent, "X-Forwarded-Prefix": "/svc"}
    assert await told(user, both) == expected(user, "/svc", origin)


async def test_of_several_lines_the_first_counts(user: User) -> None:
    headers = [*user.headers.items(), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Proto", "http")]
    document = (await user.client.get("/openapi.json", headers=headers)).json()
    assert document["servers"] == [{"url": ADDRESS.replace("http", "https")}]


async def test_nobody_else_is_believed(app: Starlette) -> None:
    headers = {"X-Forwarded-Prefix": "/svc", "X-Forwarded-Proto": "https"}
    for address in (STRANGER, "::ffff:" + STRANGER, "2001:db8::1", "testclient", ""):
        async with reached_from(app, address) as client:
            user = at(client)
            assert await told(user, headers) == expected(user, "")
    for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        async with reached_from(app, address) as client:
            user = at(client)
            assert (await told(user, headers))[0] == "/svc" + user.tasks


@pytest.mark.parametrize(
    ("allowed", "trusted", "others"),
    [
        ("*", ["10.0.0.1", STRANGER, "::1"], []),
        ("10.0.0.0/8, 192.0.2.7", ["10.255.0.1", STRANGER, "::ffff:10.1.1.1"], ["11.0.0.1", "192.0.2.8", "127.0.0.1"]),
        ("2001:db8::/32", ["2001:db8::5"], ["2001:db9::5", "127.0.0.1", "::ffff:10.0.0.1"]),
    ],
)
async def test_which_proxies_are_trusted_is_set(
    database_url: str, allowed: str, trusted: list[str], others: list[str]
) -> None:
    app = create_app(make_settings(database_url, forwarded_allow_ips=allowed))
    for address in trusted + others:
        async with reached_from(app, address) as client:
            root = await client.get("/", headers={"X-Forwarded-Prefix": "/svc"})
            assert root.headers["Location"] == ("/svc/docs" if address in trusted else "/docs"), address


@pytest.fixture
async def under_svc(database_url: str) -> AsyncIterator[Starlette]:
    """The application with ROOT_PATH."""
    app = create_app(make_settings(database_url, root_path="/svc", db_pool_min=1))
    async with app.router.lifespan_context(app):
        yield app


async def test_the_prefix_may_be_set(under_svc: Starlette) -> None:
    async with reached_from(under_svc, STRANGER) as client:
        user = at(client)
        assert await told(user, {}) == expected(user, "/svc")
        assert await told(user, {"X-Forwarded-Prefix": "/evil"}) == expected(user, "/svc")
    async with reached_from(under_svc, "127.0.0.1") as client:
        user = at(client)
        assert await told(user, {"X-Forwarded-Prefix": "/other"}) == expected(user, "/other"), "the proxy knows best"
        assert await told(user, {"X-Forwarded-Prefix": "//no"}) == expected(user, "/svc")


@pytest.mark.parametrize("prefix", ["", "/svc", "/a/b"])
async def test_what_the_page_loads_is_beside_it_whatever_stands_before(client: httpx.AsyncClient, prefix: str) -> None:
    page = await client.get("/docs")
    script = (await client.get("/docs/assets/docs.js")).text
    loaded = [part.partition('"')[0] for part in page.text.replace('href="', 'src="').split('src="')[1:]]
    loaded.append(script.partition('url: "')[2].partition('"')[0])
    assert len(loaded) == 5
    for url in loaded:
        seen = urljoin(f"https://app.test{prefix}/docs", url).removeprefix("https://app.test")
        assert seen.startswith(prefix + "/"), url
        assert (await client.get(seen.removeprefix(prefix))).status_code == 200, url
