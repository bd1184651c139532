"""The migrations, and the limits that the database itself keeps."""

import subprocess
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import yoyo

from service import embedded
from service.schema import FOLDER, known_migrations, migrate
from tests.conftest import empty_database


@pytest.fixture
def empty(database_url: str) -> Iterator[str]:
    with empty_database(database_url) as url:
        yield url


def dumped(url: str) -> str:
    """Returns the schema as pg_dump writes it, without what changes from one run to the next."""
    command = [str(embedded.PSQL.parent / "pg_dump"), "--schema-only", "--exclude-table=*yoyo*", url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return "\n".join(line for line in text.splitlines() if not line.startswith(("--", "\\")))


def roll_back(url: str, first: str = "") -> None:
    """Rolls back this migration and all that came after it."""
    migrations = yoyo.read_migrations(str(FOLDER)).filter(lambda migration: migration.id >= first)
    with yoyo.get_backend(url.replace("postgresql:", "postgresql+psycopg:", 1)) as backend:
        backend.rollback_migrations(backend.to_rollback(migrations))


def test_up_down_and_up_again_leave_the_same_schema(empty: str) -> None:
    nothing = dumped(empty)
    assert set(migrate(empty)) == known_migrations()
    schema = dumped(empty)
    assert "CREATE TABLE public.task" in schema
    roll_back(empty)
    assert dumped(empty) == nothing
    migrate(empty)
    assert dumped(empty) == schema


def test_a_second_migrate_has_nothing_to_do(empty: str) -> None:
    assert migrate(empty)
    assert migrate(empty) == []


def test_every_migration_has_its_way_back() -> None:
    for name in known_migrations():
        assert (FOLDER / f"{name}.rollback.sql").read_text().strip()


def test_the_counters_that_exist_are_lifted_and_tasks_keep_their_versions(empty: str) -> None:
    migrate(empty)
    roll_back(empty, "0005-numbers")
    now = time.time_ns() // 1_000_000
    with psycopg.connect(empty) as connection:
        for user, version in (("who failed", 0), ("old", 7), ("ahead", now + 10**9)):
            connection.execute("insert into account values (%s, %s)", (user, version))
        connection.execute(
            "insert into task (id, user_id, title, version) values (gen_random_uuid(), 'old', 'x', 7),"
            " (gen_random_uuid(), 'nobody', 'x', 9)"
        )
    migrate(empty)
    with psycopg.connect(empty) as connection:
        counters: dict[str, int] = dict(connection.execute("select user_id, version from account").fetchall())
        versions: dict[str, int] = dict(connection.execute("select user_id, version from task").fetchall())
    assert versions == {"old": 7, "nobody": 9}
    assert counters.pop("ahead") == now + 10**9
    assert set(counters) == {"who failed", "old"}
    for counter in counters.values():
        assert now <= counter <= time.time_ns() // 1_000_000


@pytest.mark.parametrize(("version", "is_kept"), [(0, False), (1, True), (2**53 - 1, True), (2**53, False)])
def test_a_counter_stays_exact_in_javascript(database_url: str, version: int, is_kept: bool) -> None:
    with psycopg.connect(database_url) as connection:
        try:
            connection.execute("insert into account values ('counter', %s)", (version,))
            violated = None
        except psycopg.errors.CheckViolation as error:
            violated = error.diag.constraint_name
        connection.rollback()
    assert violated == (None if is_kept else "account_version_exact")


GOOD: dict[str, Any] = {"user_id": "x", "title": "x", "version": 1}
MOMENT = "2026-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("values", "constraint"),
    [
        ({}, None),
        ({"title": "𝕏" * 100}, None),
        ({"title": "𝕏" * 101}, "task_title_length"),
        ({"title": ""}, "task_title_length"),
        ({"title": " \t\n"}, "task_title_trimmed"),
        ({"title": "\u00a0"}, "task_title_trimmed"),
        ({"title": "x\u2009"}, "task_title_trimmed"),
        ({"title": "v"}, None),
        ({"description": "🎉" * 500}, None),
        ({"description": "🎉" * 501}, "task_description_length"),
        ({"status": "done"}, "task_status_known"),
        ({"priority": "urgent"}, "task_priority_known"),
        ({"status": "completed", "completed_at": MOMENT}, None),
        ({"status": "completed"}, "task_completed_at_matches_status"),
        ({"completed_at": MOMENT}, "task_completed_at_matches_status"),
        ({"user_id": "x" * 255}, None),
        ({"user_id": "x" * 256}, "task_user_id_length"),
        ({"user_id": ""}, "task_user_id_length"),
        ({"version": 0}, "task_version_positive"),
    ],
)
def test_the_database_keeps_the_limits_too(database_url: str, values: dict[str, Any], constraint: str | None) -> None:
    row = GOOD | {"id": uuid4()} | values
    names, marks = ", ".join(row), ", ".join(["%s"] * len(row))
    with psycopg.connect(database_url) as connection:
        try:
            connection.execute(f"insert into task ({names}) values ({marks})", list(row.values()))  # noqa: S608
            violated = None
        except psycopg.errors.CheckViolation as error:
            violated = error.diag.constraint_name
        connection.rollback()
    assert violated == constraint
