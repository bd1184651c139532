"""The environment: every form of a database URL works, and what is wrong is named without giving a secret away."""

from pathlib import Path
from typing import Any

import pytest

from service import embedded, queries
from service.__main__ import libpq_environment
from service.batches import Batches, waited
from service.database import Pool
from service.schema import migrate
from service.settings import SettingsError, load
from tests.conftest import SECRET, make_settings


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hides the settings, and the .env, of whoever runs the tests."""
    for name in ("DATABASE_URL", "BETTER_AUTH_SECRET", "FRONTEND_URL", "HOST", "PORT", "WEB_CONCURRENCY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


FORMS = [
    "postgresql://{rest}",
    "postgres://{rest}",
    "postgresql+asyncpg://{rest}",
    "postgresql://{rest}&sslmode=prefer&channel_binding=prefer",
    "postgresql+asyncpg://{rest}&ssl=prefer",
    "postgres://{rest}&ssl=false&connect_timeout=5",
    "postgresql://{rest}&options=-c%20statement_timeout%3D60000",
]


@pytest.mark.parametrize("form", FORMS)
async def test_every_form_of_url_works_for_pool_migrations_and_psql(database_url: str, form: str) -> None:
    settings = make_settings(form.format(rest=database_url.partition("://")[2]))
    assert migrate(settings.url()) == []
    assert libpq_environment(settings.url())["PGDATABASE"] == "postgres"
    db = Batches(Pool(settings.url(), 1, 2, 100))
    await db.open()
    token = waited.set([])
    assert (await queries.list_tasks(db, "anybody")).tasks == b"[]"
    waited.reset(token)
    await db.close()


async def test_without_a_statement_cache_it_works_too(database_url: str) -> None:
    db = Batches(Pool(database_url, 1, 2, statement_cache=0))
    await db.open()
    token = waited.set([])
    for _ in range(3):
        assert (await queries.list_tasks(db, "anybody")).tasks == b"[]"
    waited.reset(token)
    await db.close()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgres://u:p@db.test/tasks", "postgresql://u:p@db.test/tasks"),
        ("postgresql+asyncpg://u:p@db.test/x?ssl=require", "postgresql://u:p@db.test/x?sslmode=require"),
        ("postgresql://db.test/x?ssl=true", "postgresql://db.test/x?sslmode=require"),
        ("postgresql://db.test/x?ssl=true&sslmode=verify-full", "postgresql://db.test/x?sslmode=verify-full"),
        (
            "postgresql://u:p%40ss@ep-x-pooler.eu.neon.test/db?sslmode=require&channel_binding=require",
            "postgresql://u:p%40ss@ep-x-pooler.eu.neon.test/db?sslmode=require&channel_binding=require",
        ),
    ],
)
def test_url_forms_become_one(url: str, expected: str) -> None:
    assert make_settings(url).url() == expected


def test_psql_gets_the_url_s_parts_through_its_environment() -> None:
    url = "postgresql://u:p%40ss@db.test:6432/tasks?sslmode=require&channel_binding=require"
    assert libpq_environment(url) == {
        "PGHOST": "db.test",
        "PGPORT": "6432",
        "PGUSER": "u",
        "PGPASSWORD": "p@ss",
        "PGDATABASE": "tasks",
        "PGSSLMODE": "require",
        "PGCHANNELBINDING": "require",
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("http://localhost:3000", ("http://localhost:3000",)),
        ("https://a.test/, https://B.test", ("https://a.test", "https://b.test")),
    ],
)
def test_origins(value: str, expected: tuple[str, ...]) -> None:
    assert make_settings("postgresql://db.test", frontend_url=value).frontend_url == expected


WRONG: list[tuple[dict[str, str], list[str]]] = [
    ({"DATABASE_URL": "postgresql://u:hidden@db.test/x"}, ["BETTER_AUTH_SECRET: is required with DATABASE_URL"]),
    ({"BETTER_AUTH_SECRET": "x" * 31}, ["BETTER_AUTH_SECRET: has 31 characters and needs at least 32"]),
    ({"DATABASE_URL": "mysql://u:hidden@db.test/x"}, ["DATABASE_URL: must begin with postgresql://"]),
    ({"DATABASE_URL": "postgresql://u:hidden@db.test:port/x"}, ["DATABASE_URL: is no URL"]),
    ({"DATABASE_URL": "postgresql://u:hidden%zz@db.test/x"}, ["DATABASE_URL: has a # or % that is not encoded"]),
    ({"DATABASE_URL": "postgresql://u:hidden#1@db.test/x"}, ["DATABASE_URL: has a # or % that is not encoded"]),
    ({"DATABASE_URL": "postgresql://u:hidden@a..b/x"}, ["DATABASE_URL: is no URL"]),
    ({"DATABASE_URL": "postgresql://db.test/x?sslmode=nonsense"}, ["DATABASE_URL: has an sslmode that is none of"]),
    ({"FRONTEND_URL": "*"}, ["FRONTEND_URL: '*' is no origin"]),
    ({"FRONTEND_URL": "https://a.test,https://b.test/path"}, ["FRONTEND_URL: 'https://b.test/path' is no origin"]),
    ({"PORT": "65536", "WEB_CONCURRENCY": "0"}, ["PORT: ", "65535", "WEB_CONCURRENCY: "]),
    ({"LOG_LEVEL": "loud", "LOG_FORMAT": "xml"}, ["LOG_LEVEL: ", "'warning'", "LOG_FORMAT: ", "'json'"]),
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


def test_32_characters_of_secret_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BETTER_AUTH_SECRET", "x" * 32)
    assert load().secret == "x" * 32


def test_a_dotenv_file_is_read_and_what_is_empty_is_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("PORT=9000\nDATABASE_URL=\nOTHER=x\n")
    monkeypatch.setenv("HOST", "")
    settings = load()
    assert (settings.port, settings.host, settings.database_url) == (9000, "127.0.0.1", None)


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
