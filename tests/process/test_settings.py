"""The environment: every form of a database URL works, and what is wrong is named without giving a secret away."""

from pathlib import Path
from typing import Any

import pytest

from service.db import embedded
from service.settings import Settings, SettingsError, load
from tests.conftest import SECRET, make_settings

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hides the settings, and the .env, of whoever runs the tests."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("http://localhost:3000", ("http://localhost:3000",)),
        ("https://a.test/, https://B.test", ("https://a.test", "https://b.test")),
        (
            "https://a.test:443,,http://a.test:80,http://a.test:443",
            ("https://a.test", "http://a.test", "http://a.test:443"),
        ),
        ("capacitor://localhost, app://-", ("capacitor://localhost", "app://-")),
    ],
)
def test_origins(value: str, expected: tuple[str, ...]) -> None:
    assert make_settings("postgresql://db.test", frontend_url=value).frontend_url == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [("/svc", "/svc"), ("/svc/", "/svc"), ("/", ""), ("/a/b", "/a/b"), ("/.well/~x", "/.well/~x")],
)
def test_root_paths(value: str, expected: str) -> None:
    assert make_settings("postgresql://db.test", root_path=value).root_path == expected


@pytest.mark.parametrize(("sent", "seconds"), [({}, 75), ({"keep_alive": 1}, 1), ({"keep_alive": 86_400}, 86_400)])
def test_how_long_an_idle_connection_is_kept(sent: dict[str, int], seconds: int) -> None:
    assert make_settings("postgresql://db.test", **sent).keep_alive == seconds


WRONG: list[tuple[dict[str, str], list[str]]] = [
    ({"DATABASE_URL": "postgresql://u:hidden@db.test/x"}, ["BETTER_AUTH_SECRET: is required with DATABASE_URL"]),
    *(
        ({"FRONTEND_URL": f"https://a.test,{wrong}"}, [f"FRONTEND_URL: {wrong!r} is no origin; write scheme://host"])
        for wrong in (
            *("*", "null", "a.test", "https://*.a.test", "https://a.test/app", "https://u@a.test", "https://a.test?x"),
            *("https://a.test:99999", "https://a.test:x", "https://", "://a.test", "https://a b.test", "https://[::g]"),
            *("https://xn--\u2028.test", "file:///", "https:a.test", "https://a.test#x", "https://a%2eb.test"),
        )
    ),
    *(
        ({"ROOT_PATH": wrong}, ["ROOT_PATH: is no path like /svc"])
        for wrong in ("svc", "//x", "/a//b", "/../x", "/a/.", "https://a.test/svc", "/a b", "/a?b", "/ä")
    ),
    ({"CORS_HEADERS": "X-One, X Two"}, ["CORS_HEADERS: 'X Two' is no name of a header"]),
    ({"CORS_HEADERS": "*"}, ["CORS_HEADERS: '*' is no name of a header"]),
    ({"BETTER_AUTH_SECRET": "x" * 31}, ["BETTER_AUTH_SECRET: has 31 characters and needs at least 32"]),
    ({"DATABASE_URL": "mysql://u:hidden@db.test/x"}, ["DATABASE_URL: must begin with postgresql://"]),
    ({"BETTER_AUTH_URL": "ftp://a.test"}, ["BETTER_AUTH_URL: must begin with http:// or https:// and a host"]),
    ({"BETTER_AUTH_URL": "a.test:3000"}, ["BETTER_AUTH_URL: must begin with http:// or https:// and a host"]),
    ({"BETTER_AUTH_URL": "https:///x"}, ["BETTER_AUTH_URL: must begin with http:// or https:// and a host"]),
    ({"BETTER_AUTH_URL": "https://a.test:port"}, ["BETTER_AUTH_URL: is no URL"]),
    ({"BETTER_AUTH_URL": "https://u:hidden@a.test"}, ["BETTER_AUTH_URL: must be without a user"]),
    ({"BETTER_AUTH_URL": "https://a.test/?x=1"}, ["BETTER_AUTH_URL: must be without a query"]),
    ({"BETTER_AUTH_JWKS_URL": "https://a.test/a b"}, ["BETTER_AUTH_JWKS_URL: must be without"]),
    ({"BETTER_AUTH_JWKS_URL": "file:///etc/passwd"}, ["BETTER_AUTH_JWKS_URL: must begin with http"]),
    (
        {"DATABASE_URL": "postgresql://db.test/x", "BETTER_AUTH_URL": "ftp://a.test", "PORT": "x"},
        ["BETTER_AUTH_URL: ", "PORT: "],
    ),
    ({"FRONTEND_URL": "*"}, ["FRONTEND_URL: '*' is no origin"]),
    ({"FRONTEND_URL": "https://a.test,https://b.test/path"}, ["FRONTEND_URL: 'https://b.test/path' is no origin"]),
    ({"PORT": "65536", "WEB_CONCURRENCY": "0"}, ["PORT: ", "65535", "WEB_CONCURRENCY: "]),
    *(
        ({"RATE_LIMIT": wrong}, ["RATE_LIMIT: is no rate like 600/minute: a whole number from 1 to 999999999"])
        for wrong in (
            "600",
            "0/minute",
            "-1/minute",
            "1.5/minute",
            "600/week",
            "600/minutes",
            "600 per minute",
            "1000000000/day",
            "06/day",
        )
    ),
    ({"METRICS_PORT": "8000"}, ["METRICS_PORT: is 8000, as PORT is"]),
    ({"PORT": "9000", "METRICS_PORT": "9000"}, ["METRICS_PORT: is 9000, as PORT is"]),
    ({"METRICS_PORT": "65536"}, ["METRICS_PORT: ", "65535"]),
    ({"METRICS_PORT": "-1", "RATE_LIMIT": "x"}, ["METRICS_PORT: ", "greater than or equal to 0", "RATE_LIMIT: "]),
    ({"KEEP_ALIVE": "0"}, ["KEEP_ALIVE: ", "greater than or equal to 1"]),
    ({"KEEP_ALIVE": "86401"}, ["KEEP_ALIVE: ", "less than or equal to 86400"]),
    ({"LOG_LEVEL": "loud", "LOG_FORMAT": "xml"}, ["LOG_LEVEL: ", "'warning'", "LOG_FORMAT: ", "'json'"]),
    ({"FORWARDED_ALLOW_IPS": "10.0.0.1, 10.0.0.0/33"}, ["FORWARDED_ALLOW_IPS: '10.0.0.0/33' is neither"]),
    ({"FORWARDED_ALLOW_IPS": "10.0.0.1,*"}, ["FORWARDED_ALLOW_IPS: '*' is neither"]),
    ({"DB_POOL_MIN": "6", "DB_POOL_MAX": "5"}, ["DB_POOL_MAX: is 5, below DB_POOL_MIN, which is 6"]),
]


@pytest.mark.parametrize(("environment", "messages"), WRONG)
def test_what_is_wrong_is_named(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], messages: list[str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        load()
    for message in messages:
        assert message in str(refused.value)
    assert "hidden" not in str(refused.value)


def test_a_dotenv_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"PORT=\xff")
    with pytest.raises(SettingsError, match=r"\.env cannot be read"):
        load()


SERVERS: list[tuple[dict[str, str], str, str | None]] = [
    ({"better_auth_url": "https://a.test"}, "https://a.test/api/auth/jwks", "https://a.test"),
    ({"better_auth_url": "HTTPS://A.test:443/"}, "HTTPS://A.test:443/api/auth/jwks", "https://a.test"),
    ({"better_auth_url": "http://a.test:3000"}, "http://a.test:3000/api/auth/jwks", "http://a.test:3000"),
    ({"better_auth_url": "http://[::1]:80"}, "http://[::1]:80/api/auth/jwks", "http://[::1]"),
    ({"better_auth_url": "https://a.test/api/auth/"}, "https://a.test/api/auth/jwks", "https://a.test"),
    ({"better_auth_url": "https://a.test/login"}, "https://a.test/login/jwks", "https://a.test"),
    (
        {"better_auth_url": "https://a.test", "better_auth_jwks_url": "http://auth:3000/keys?x=1"},
        "http://auth:3000/keys?x=1",
        "https://a.test",
    ),
    ({"better_auth_jwks_url": "http://auth:3000/keys"}, "http://auth:3000/keys", None),
]


@pytest.mark.parametrize(("values", "jwks_url", "origin"), SERVERS)
def test_where_keys_are_published_and_by_whom(values: dict[str, str], jwks_url: str, origin: str | None) -> None:
    settings = make_settings("postgresql://db.test", **values)
    found = (settings.jwks_url, settings.published_issuer, settings.published_audience)
    assert found == (jwks_url, origin, origin)
    settings = make_settings("postgresql://db.test", jwt_issuer="me", jwt_audience="tasks", **values)
    assert (settings.published_issuer, settings.published_audience) == ("me", "tasks")


def test_a_server_s_address_is_enough_without_a_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BETTER_AUTH_URL", "https://a.test")
    monkeypatch.setattr(embedded, "DATA", tmp_path / ".data")
    assert len(load().secret or "") >= 32, "the embedded database has its own, which `token` signs with"
    monkeypatch.setenv("DATABASE_URL", "postgresql://db.test/x")
    assert load().secret is None
    monkeypatch.setenv("BETTER_AUTH_SECRET", "x" * 32)
    assert load().secret == "x" * 32


def test_32_characters_of_secret_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BETTER_AUTH_SECRET", "x" * 32)
    assert load().secret == "x" * 32


def test_a_dotenv_file_is_read_and_what_is_empty_is_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("PORT=9000\nDATABASE_URL=\nOTHER=x\n")
    monkeypatch.setenv("HOST", "")
    settings = load()
    assert (settings.port, settings.host, settings.database_url) == (9000, "127.0.0.1", None)


@pytest.mark.parametrize("proxies", ["*", "10.0.0.1", "10.0.0.0/8, ::1", "192.0.2.1,fd00::/8"])
def test_proxies_are_addresses_and_networks_or_all(proxies: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", proxies)
    assert load().forwarded_allow_ips == proxies


def test_secrets_do_not_show() -> None:
    settings = make_settings("postgresql://u:hidden@db.test/x")
    for text in (repr(settings), str(settings), settings.model_dump_json()):
        assert "hidden" not in text
        assert SECRET not in text


def test_the_embedded_database_s_secret_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded, "DATA", tmp_path / ".data")
    settings: Any = load()
    secret = settings.secret
    assert len(secret) >= 32
    assert load().secret == secret
    assert (tmp_path / ".data" / "secret").stat().st_mode & 0o777 == 0o600
