"""The migrations, and the limits that the database itself keeps."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest
import yoyo
from psycopg.conninfo import make_conninfo

from service.db import embedded
from service.db import migrations as schema
from service.db.address import Address, parse_address
from service.db.migrations import FOLDER, Blocked, backend, known_migrations, migrate
from tests.conftest import empty_database, serving
from tests.processes import Client, external


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


def roll_back(address: Address, first: str = "") -> None:
    """Rolls back this migration and all that came after it."""
    migrations = yoyo.read_migrations(str(FOLDER)).filter(lambda migration: migration.id >= first)
    with backend(address) as database:
        database.rollback_migrations(database.to_rollback(migrations))


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


def test_the_counters_that_exist_are_lifted_and_tasks_keep_their_versions(empty: Address) -> None:
    migrate(empty)
    roll_back(empty, "0005-numbers")
    now = time.time_ns() // 1_000_000
    with psycopg.connect(make_conninfo("", **empty.for_libpq())) as connection:
        for user, version in (("who failed", 0), ("old", 7), ("ahead", now + 10**9)):
            connection.execute("insert into tasks.account values (%s, %s)", (user, version))
        connection.execute(
            "insert into tasks.task (id, user_id, title, version) values (gen_random_uuid(), 'old', 'x', 7),"
            " (gen_random_uuid(), 'nobody', 'x', 9)"
        )
    migrate(empty)
    with psycopg.connect(make_conninfo("", **empty.for_libpq())) as connection:
        counters: dict[str, int] = dict(connection.execute("select user_id, version from tasks.account").fetchall())
        versions: dict[str, int] = dict(connection.execute("select user_id, version from tasks.task").fetchall())
    assert versions == {"old": 7, "nobody": 9}
    assert counters.pop("ahead") == now + 10**9
    assert set(counters) == {"who failed", "old"}
    for counter in counters.values():
        assert now <= counter <= time.time_ns() // 1_000_000


@pytest.mark.parametrize(("version", "is_kept"), [(0, False), (1, True), (2**53 - 1, True), (2**53, False)])
def test_a_counter_stays_exact_in_javascript(database_url: str, version: int, is_kept: bool) -> None:
    with psycopg.connect(database_url) as connection:
        try:
            connection.execute("insert into tasks.account values ('counter', %s)", (version,))
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
            connection.execute(f"insert into tasks.task ({names}) values ({marks})", list(row.values()))  # noqa: S608
            violated = None
        except psycopg.errors.CheckViolation as error:
            violated = error.diag.constraint_name
        connection.rollback()
    assert violated == constraint


# Behind somebody's lock -----------------------------------------------------------------------------------------------


@pytest.fixture
def pending(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Adds a migration to the others that changes a table which is in use."""
    for path in FOLDER.glob("*.sql"):
        shutil.copy(path, tmp_path)
    (tmp_path / "9999-change.sql").write_text("alter table tasks.task add column another int;")
    monkeypatch.setattr(schema, "FOLDER", tmp_path)


def test_a_migration_behind_an_open_transaction_holds_up_nobody_and_is_done_afterwards(
    empty: Address, tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    migrate(empty)
    request.getfixturevalue("pending")
    settings = external(f"postgresql://postgres@/{empty.database}?host={quote(empty.hosts[0].name)}")
    with serving(tmp_path, **settings) as service, schema.connect(empty, application_name="report") as somebody:
        client = Client(service)
        somebody.execute("select from tasks.task")
        holder = f"pid {somebody.info.backend_pid} (report, idle in transaction, open for "
        with ThreadPoolExecutor() as threads:
            migrating = threads.submit(migrate, empty)
            number = 0
            while len(caplog.records) < 2:
                assert client.create(f"task {number}").status_code == 201
                assert client.call("GET").status_code == 200
                number += 1
            assert not migrating.done()
            somebody.commit()
            assert migrating.result() == ["9999-change"]
        assert client.create("after").status_code == 201
    said = caplog.records[0].getMessage()
    assert said.startswith("waiting, and trying again in 2 s (1 of 15): a lock on a table is held by pid ")
    assert holder in said


@pytest.mark.parametrize("table", ["_yoyo_migration", "_yoyo_version", "_yoyo_log", "yoyo_lock", "task"])
def test_a_lock_that_stays_ends_in_a_message(
    empty: Address, table: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(empty)
    request.getfixturevalue("pending")
    monkeypatch.setattr(schema, "ATTEMPTS", 2)
    monkeypatch.setattr(schema, "PAUSE_SECONDS", 0.1)
    with schema.connect(empty, application_name="somebody") as somebody:
        somebody.execute(f"lock table {table} in access exclusive mode".encode())
        with pytest.raises(Blocked, match=rf"held by pid {somebody.info.backend_pid} \(somebody, idle in transaction,"):
            migrate(empty)
        somebody.rollback()
    assert migrate(empty) == ["9999-change"]


def test_a_right_that_is_missing_is_named(empty: Address) -> None:
    with schema.connect(empty, autocommit=True) as admin:
        admin.execute("create role nobody_much login")
        try:
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for schema public"):
                migrate(replace(empty, user="nobody_much"))
        finally:
            admin.execute("drop role nobody_much")
