"""A proxy variable that does not concern the keys' URL breaks nothing; one that does, and cannot be used, is named."""

import gzip
import json
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import brotli
import pytest

from service.auth.jwks import JWKS_BYTES
from service.auth.proxy import UnusableProxy, proxy_for
from tests.auth.test_jwks import is_ready, serving
from tests.conftest import eventually, make_settings
from tests.jwks import Publisher, key_pair, publishing, send

VARIABLES = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"]
KEY = key_pair("key")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with publishing() as server:
        server.keys = [KEY]
        yield server


EXEMPT = [
    ("http://127.0.0.1:3000/x", ["127.0.0.1", "localhost,[::1],127.0.0.1", "127.0.0.0/8", " 127.0.0.1 , x", "*", "x,*",
                                 "127.0.0.1:3000", "http://127.0.0.1", "x 127.0.0.1", ",,127.0.0.1,"]),
    ("http://[::1]:3000/x", ["[::1]", "::1", "[::1]:3000", "::/64", "0:0:0:0:0:0:0:1", "*"]),
    ("https://auth.corp.local/x", ["auth.corp.local", ".corp.local", "*.corp.local", "corp.local", "*.local", ".local",
                                   "local", "AUTH.Corp.Local", "auth.corp.local:443", "auth.corp.local."]),
    ("https://10.1.2.3/x", ["10.0.0.0/8", "10.1.2.3/32", "10.1.2.3", "192.168.0.0/16,10.0.0.0/8"]),
]  # fmt: skip
NOT_EXEMPT = [
    ("http://127.0.0.1:3000/x", ["", ",", " ", "127.0.0.1:3001", "128.0.0.0/8", "27.0.0.1", "localhost", "[::1]", "::1",
                                 "127.0.0.1/33", "[", "]", "[]", "/", ":", "*.local", "**", ".", "%", "[x:"]),
    ("https://auth.corp.local/x", ["orp.local", "h.corp.local", "auth.corp.local:80", "x.auth.corp.local", "corp"]),
]  # fmt: skip


@pytest.mark.parametrize(("url", "no_proxy"), [(url, text) for url, texts in EXEMPT for text in texts])
def test_what_exempts_a_host(url: str, no_proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", no_proxy)
    monkeypatch.setenv("ALL_PROXY", "socks5://proxy.test:1080")
    assert proxy_for(url) is None


@pytest.mark.parametrize(("url", "no_proxy"), [(url, text) for url, texts in NOT_EXEMPT for text in texts])
def test_what_does_not(url: str, no_proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", no_proxy)
    monkeypatch.setenv("ALL_PROXY", "proxy.test:3128")
    proxy = proxy_for(url)
    assert proxy is not None
    assert proxy.url == "http://proxy.test:3128"


def test_a_scheme_s_own_proxy_goes_before_the_one_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "socks5://nonsense")
    assert proxy_for("https://a.test") is None
    monkeypatch.setenv("https_proxy", "http://u:p@proxy.test:1")
    monkeypatch.setenv("ALL_PROXY", "nonsense://")
    proxy = proxy_for("https://a.test")
    assert proxy is not None
    assert proxy.raw_auth == (b"u", b"p")


@pytest.mark.parametrize("proxy", ["socks5://u:hidden@p.test:1", "socks5h://p.test", "ftp://p.test", "http://", "http://[::1",
                                   "http://p.test:port", "://", "http://u:hidden@p:x"])  # fmt: skip
def test_a_proxy_that_cannot_be_used(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(UnusableProxy, match="the proxy of HTTP_PROXY or ALL_PROXY") as refused:
        proxy_for("http://a.test")
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(
    "variables",
    [
        {"NO_PROXY": "localhost,[::1]"},
        {"NO_PROXY": "localhost,[::1],127.0.0.1", "HTTP_PROXY": "http://127.0.0.1:1"},
        {"ALL_PROXY": "socks5://127.0.0.1:1", "NO_PROXY": "127.0.0.1"},
        {"HTTPS_PROXY": "socks5://127.0.0.1:1"},
        {"HTTP_PROXY": "", "ALL_PROXY": ""},
    ],
    ids=str,
)
async def test_the_keys_are_fetched_whatever_is_said_of_others(
    database_url: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    async with serving(make_settings(database_url, better_auth_url=publisher.url, db_pool_min=1)) as service:
        await eventually(lambda: is_ready(service))
        assert await service.accepts(publisher.token("u", KEY))


async def test_a_proxy_is_used(database_url: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", publisher.url)
    settings = make_settings(database_url, better_auth_url="http://auth.test:3000", db_pool_min=1)
    async with serving(settings) as service:
        await eventually(lambda: is_ready(service))
    assert publisher.paths == ["http://auth.test:3000/api/auth/jwks"]


async def test_a_proxy_that_cannot_be_used_is_in_the_log(
    database_url: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://u:hidden@127.0.0.1:1")
    async with serving(make_settings(database_url, better_auth_url=publisher.url, db_pool_min=1)) as service:
        assert (await service.get(publisher.token("u", KEY)))[0] == 503
    assert "the proxy of HTTP_PROXY or ALL_PROXY is socks5://127.0.0.1, and only http:// and https://" in caplog.text
    assert "NO_PROXY=127.0.0.1 goes without" in caplog.text
    assert "hidden" not in caplog.text


# What a server packs unasked ------------------------------------------------------------------------------------------


def bare_deflate(text: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(text) + packer.flush()


PACKED = {
    "gzip": gzip.compress,
    "X-GZip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate ": bare_deflate,
    "br": brotli.compress,
    "identity": bytes,
}


@pytest.mark.parametrize("encoding", PACKED)
async def test_keys_that_are_packed_unasked(database_url: str, publisher: Publisher, encoding: str) -> None:
    text = json.dumps({"keys": [KEY.jwk]}).encode()
    text += b" " * (JWKS_BYTES - len(text))  # as long as it may be
    publisher.answer = lambda request: send(request, PACKED[encoding](text), 200, **{"Content-Encoding": encoding})
    async with serving(make_settings(database_url, better_auth_url=publisher.url, db_pool_min=1)) as service:
        assert await service.accepts(publisher.token("u", KEY))


@pytest.mark.parametrize(
    ("encoding", "body", "cause"),
    [
        ("gzip", gzip.compress(b" " * (JWKS_BYTES + 1)), "over 262144 bytes"),
        ("gzip", gzip.compress(b" " * 100 * 2**20), "over 262144 bytes"),
        ("deflate", zlib.compress(b" " * 100 * 2**20), "over 262144 bytes"),
        ("br", brotli.compress(b" " * 100 * 2**20), "over 262144 bytes"),
        ("gzip", b'{"keys": []}', 'is not what its Content-Encoding says, "gzip"'),
        ("br", b'{"keys": []}', 'is not what its Content-Encoding says, "br"'),
        ("deflate", b"\xff\xff", 'is not what its Content-Encoding says, "deflate"'),
        ("gzip", gzip.compress(b'{"keys": []}')[:-12], "is no JWKS"),
        ("zstd", b"x", 'is packed as "zstd", which was not asked for'),
        ("gzip, br", b"x", 'is packed as "gzip, br"'),
    ],
    ids=range(10),
)
async def test_what_is_packed_and_of_no_use(
    database_url: str, publisher: Publisher, caplog: pytest.LogCaptureFixture, encoding: str, body: bytes, cause: str
) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        send(request, body, 200, **{"Content-Encoding": encoding})

    publisher.answer = answer
    async with serving(make_settings(database_url, better_auth_url=publisher.url, db_pool_min=1)) as service:
        assert (await service.get(publisher.token("u", KEY)))[0] == 503
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "service.auth.jwks"]
    assert cause in warning


async def test_certificates_that_cannot_be_loaded_break_only_what_needs_them(
    database_url: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/not/there")
    async with serving(make_settings(database_url, better_auth_url="https://127.0.0.1:1", db_pool_min=1)) as service:
        assert (await service.get(publisher.token("u", KEY)))[0] == 503
    assert "the certificates of SSL_CERT_FILE or SSL_CERT_DIR cannot be loaded" in caplog.text
    async with serving(make_settings(database_url, better_auth_url=publisher.url, db_pool_min=1)) as service:
        assert await service.accepts(publisher.token("u", KEY))
