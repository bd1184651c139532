"""The migrations, and the limits that the database itself keeps."""

import os
import subprocess
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import yoyo

from service import embedded
from service.address import Address, parse_address
from service.schema import FOLDER, backend, known_migrations, migrate
from tests.conftest import empty_database


@pytest.fixture
def empty(database_url: str) -> Iterator[Address]:
    with empty_database(database_url) as url:
        yield parse_address(url)


def dumped(address: Address) -> str:
    """Returns the schema as pg_dump writes it, without what changes from one run to the next."""
    command = [str(embedded.PSQL.parent / "pg_dump"), "--schema-only", "--exclude-table=*yoyo*"]
    environment = os.environ | address.for_psql()
    text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return "\n".join(line for line in text.splitlines() if not line.startswith(("--", "\\")))


def roll_back(address: Address) -> None:
    with backend(address) as database:
        database.rollback_migrations(database.to_rollback(yoyo.read_migrations(str(FOLDER))))


def test_up_down_and_up_again_leave_the_same_schema(empty: Address) -> None:
    nothing = dumped(empty)
    assert set(migrate(empty)) == known_migrations()
    schema = dumped(empty)
    assert "CREATE TABLE public.task" in schema
    roll_back(empty)
    assert dumped(empty) == nothing
    migrate(empty)
    assert dumped(empty) == schema


def test_a_second_migrate_has_nothing_to_do(empty: Address) -> None:
    assert migrate(empty)
    assert migrate(empty) == []


def test_every_migration_has_its_way_back() -> None:
    for name in known_migrations():
        assert (FOLDER / f"{name}.rollback.sql").read_text().strip()


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
