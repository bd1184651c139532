"""The migrations, and the limits that the database itself keeps."""

import os
import re
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

import httpx
import psycopg
import pytest
import yoyo
from psycopg import sql
from psycopg.conninfo import make_conninfo
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.migrations import default_migration_table

from service.db import embedded
from service.db import migrations as schema
from service.db.address import Address, parse_address
from service.db.migrations import FOLDER, Blocked, backend, connect, known_migrations, migrate
from tests.conftest import ROOT, Served, empty_database, serving
from tests.processes import Client, external, pgbouncer, run_service

pytestmark = pytest.mark.slow

NAMELESS = "it does not pass on the name of the check that was violated"


@pytest.fixture
def empty(database_url: str) -> Iterator[Address]:
    with empty_database(database_url) as url:
        yield parse_address(url)


def dumped(address: Address) -> str:
    """Returns the schema as pg_dump writes it, without what changes from one run to the next."""
    command = [str(embedded.PSQL.parent / "pg_dump"), "--schema-only", "--exclude-table=*.*yoyo*"]
    environment = os.environ | address.for_psql()
    text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    # Debian's 15.20 numbers the columns of each table anew, which its own pg_dump leaves out
    return "\n".join(
        line for line in text.splitlines() if not line.startswith(("--", "\\")) and "pg_attver" not in line
    )


def execute(address: Address, *statements: str) -> None:
    with schema.connect(address, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def roll_back(address: Address, first: str = "") -> None:
    """Rolls back this migration and all that came after it."""
    migrations = yoyo.read_migrations(str(FOLDER)).filter(lambda migration: migration.id >= first)
    with backend(address) as database:
        database.rollback_migrations(database.to_rollback(migrations))


def test_up_down_and_up_again_leave_the_same_schema(empty: Address) -> None:
    assert set(migrate(empty)) == known_migrations() | {"functions"}
    all_there = dumped(empty)
    assert "CREATE TABLE tasks.task" in all_there
    assert "CREATE FUNCTION tasks.lock_account" in all_there
    roll_back(empty)
    left = dumped(empty)
    execute(empty, "drop schema tasks cascade", "create schema tasks")
    assert left == dumped(empty)
    migrate(empty)
    assert dumped(empty) == all_there


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


@pytest.mark.not_on("citus", NAMELESS)
@pytest.mark.parametrize(("version", "is_kept"), [(0, False), (1, True), (2**53 - 1, True), (2**53, False)])
def test_a_counter_stays_exact_in_javascript(database_url: str, version: int, is_kept: bool) -> None:
    with psycopg.connect(database_url) as connection:
        try:
            connection.execute("insert into tasks.account values ('counter', %s)", (version,))
            violated = None
        except psycopg.errors.CheckViolation as error:
            violated = error.diag.constraint_name
        connection.rollback()
    assert violated == (None if is_kept else "version_exact")


GOOD: dict[str, Any] = {"user_id": "x", "title": "x", "version": 1}
DUE: dict[str, Any] = {"due_date": "2026-01-31"}
RULE = DUE | {"recurrence": "FREQ=DAILY", "recurrence_start": "2026-01-31", "series_id": uuid4(), "occurrence": 1}
MOMENT = "2026-01-01T00:00:00Z"


@pytest.mark.not_on("citus", NAMELESS)
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
        ({"version": 0}, "version_exact"),
        (DUE, None),
        ({"due_date": "0001-01-01"}, None),
        ({"due_date": "9999-12-31"}, None),
        ({"due_date": "10000-01-01"}, "task_due_date_years"),
        ({"due_date": "0001-12-31 BC"}, "task_due_date_years"),
        ({"due_date": "infinity"}, "task_due_date_years"),
        (DUE | {"due_time": "23:59:59"}, None),
        (DUE | {"due_time": "24:00"}, "task_due_time_on_the_clock"),
        ({"due_time": "09:00"}, "task_due_time_needs_due_date"),
        (DUE | {"due_time": "09:00", "due_time_zone": "Asia/Kathmandu"}, None),
        (DUE | {"due_time_zone": "UTC"}, "task_due_time_zone_needs_due_time"),
        *(
            (DUE | {"due_time": "09:00", "due_time_zone": zone}, "task_due_time_zone_known")
            for zone in (
                "europe/berlin",
                "Europe/Bielefeld",
                "FOO3",
                "+01",
                "2",
                "",
                "localtime ",
                "CET-1CEST",
                "default",
            )
        ),
        (RULE, None),
        (RULE | {"occurrence": 2**31 - 1}, None),
        (RULE | {"occurrence": 0}, "task_occurrence_positive"),
        (RULE | {"due_date": None}, "task_recurrence_needs_due_date"),
        (RULE | {"recurrence_start": None}, "task_series_complete"),
        (RULE | {"series_id": None}, "task_series_complete"),
        (RULE | {"occurrence": None}, "task_series_complete"),
        (RULE | {"recurrence": None}, "task_series_complete"),
        (DUE | {"recurrence_anchor": "completion"}, "task_recurrence_anchor_needs_recurrence"),
        (RULE | {"recurrence_anchor": "completion"}, None),
        (RULE | {"recurrence_anchor": "now"}, "task_recurrence_anchor_known"),
        (RULE | {"recurrence": "FREQ=WEEKLY;INTERVAL=2", "recurrence_anchor": "completion"}, None),
        (RULE | {"recurrence": "FREQ=WEEKLY"}, "task_recurrence_has_its_day"),
        (RULE | {"recurrence": "FREQ=YEARLY;INTERVAL=2"}, "task_recurrence_has_its_day"),
        (
            RULE | {"recurrence": "FREQ=WEEKLY;BYDAY=MO", "recurrence_anchor": "completion"},
            "task_recurrence_after_completion_is_plain",
        ),
        *(
            (RULE | {"recurrence": rule}, None)
            for rule in (
                "FREQ=DAILY;INTERVAL=999;COUNT=9999",
                "FREQ=WEEKLY;BYDAY=MO,SU;WKST=SU;UNTIL=20281231",
                "FREQ=MONTHLY;BYMONTHDAY=-1",
                "FREQ=MONTHLY;BYDAY=-1MO",
                "FREQ=YEARLY;BYMONTH=12;BYDAY=4SU",
                "FREQ=YEARLY;INTERVAL=4;BYMONTH=2;BYMONTHDAY=29;COUNT=1",
            )
        ),
        *(
            (RULE | {"recurrence": rule}, "task_recurrence_canonical")
            for rule in (
                *("", "FREQ=SECONDLY", "freq=daily", "RRULE:FREQ=DAILY", "FREQ=DAILY;", "FREQ=DAILY;INTERVAL=1"),
                *("FREQ=DAILY;INTERVAL=1000", "FREQ=DAILY;COUNT=0", "FREQ=DAILY;COUNT=2;UNTIL=20281231"),
                *(
                    "FREQ=DAILY;UNTIL=20281331",
                    "FREQ=DAILY;UNTIL=20281200",
                    "FREQ=DAILY;BYDAY=MO",
                    "FREQ=DAILY;WKST=SU",
                ),
                *(
                    "FREQ=WEEKLY;BYDAY=1MO",
                    "FREQ=WEEKLY;BYDAY=MO;WKST=MO",
                    "FREQ=WEEKLY;COUNT=2",
                    "FREQ=WEEKLY;WKST=SU",
                ),
                *("FREQ=MONTHLY;BYMONTHDAY=32", "FREQ=MONTHLY;BYMONTHDAY=0", "FREQ=MONTHLY;BYDAY=5MO"),
                *("FREQ=MONTHLY;BYDAY=MO", "FREQ=MONTHLY;BYMONTH=2;BYMONTHDAY=1", "FREQ=MONTHLY;BYDAY=1MO,2MO"),
                *("FREQ=YEARLY;BYMONTHDAY=1", "FREQ=YEARLY;BYMONTH=13;BYMONTHDAY=1", "FREQ=DAILY\n"),
            )
        ),
        ({"tags": [str(number) for number in range(20)]}, None),
        ({"tags": [str(number) for number in range(21)]}, "task_tags_number"),
        ({"tags": ["𝕏" * 50, "x" * 50]}, None),
        ({"tags": ["𝕏" * 51]}, "task_tags_length"),
        ({"tags": ["a", "x" * 51]}, "task_tags_length"),
        ({"tags": ["a", ""]}, "task_tags_length"),
        ({"tags": [""]}, "task_tags_length"),
        ({"tags": ["a,b"]}, "task_tags_commas"),
        ({"tags": ["a", None]}, "task_tags_alike"),
        ({"tags": [["a", "b"], ["c", "d"]]}, "task_tags_commas"),
        ({"tags": ["a", " b"]}, "task_tags_trimmed"),
        ({"tags": ["a\u3000", "b"]}, "task_tags_trimmed"),
        ({"tags": ["a b", "\x1c"]}, None),
        ({"tags": ["e\u0301"]}, "task_tags_normalized"),
        ({"tags": ["🎉", "é", "👩\u200d👩"]}, None),
        ({"tags": ["Home", "hOME"]}, "task_tags_alike"),
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


by_pid = pytest.mark.not_on("pooler", "the pooler hides the server's process numbers")


# Behind somebody's lock -----------------------------------------------------------------------------------------------


@pytest.fixture
def pending(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Adds a migration to the others that changes a table which is in use."""
    for path in FOLDER.glob("*.sql"):
        shutil.copy(path, tmp_path)
    (tmp_path / "9999-change.sql").write_text("alter table tasks.task add column another int;")
    monkeypatch.setattr(schema, "FOLDER", tmp_path)


@by_pid
def test_a_migration_behind_an_open_transaction_holds_up_nobody_and_is_done_afterwards(
    empty: Address, tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    migrate(empty)
    request.getfixturevalue("pending")
    with (
        serving(tmp_path, **external_to(empty)) as service,
        schema.connect(empty, application_name="report") as somebody,
    ):
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


@by_pid
@pytest.mark.parametrize(
    "table", ["_yoyo_migration", "_yoyo_version", "_yoyo_log", "yoyo_lock", "task", "installed_functions"]
)
def test_a_lock_that_stays_ends_in_a_message(
    empty: Address, table: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(empty)
    request.getfixturevalue("pending")
    monkeypatch.setattr(schema, "ATTEMPTS", 2)
    monkeypatch.setattr(schema, "PAUSE_SECONDS", 0.1)
    with (
        schema.connect(empty, application_name="unrelated") as unrelated,
        schema.connect(empty, application_name="somebody") as somebody,
    ):
        unrelated.execute("create table public.of_another_application ()")
        somebody.execute(f"lock table tasks.{table} in access exclusive mode".encode())
        with pytest.raises(Blocked, match=rf"held by pid {somebody.info.backend_pid} \(somebody, idle in transaction,"):
            migrate(empty)
        somebody.rollback()
    assert migrate(empty) == (["9999-change"] if table != "installed_functions" else []), "that is looked at last"


# Behind a pooler ------------------------------------------------------------------------------------------------------


def test_a_pooler_may_give_each_transaction_another_session(database_url: str) -> None:
    with pgbouncer(database_url) as url, connect(parse_address(url), autocommit=True) as connection:
        for _ in range(10):  # psycopg would prepare it at the fifth
            connection.execute("select 1", ())
        with psycopg.connect(url) as other:
            other.execute("select 1")  # and has the session to itself
            assert connection.execute("select 1", ()).fetchone() == (1,)


by_user = pytest.mark.not_on("pooler", "a pooler may log everybody in as one user")


# Rights ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def weak(empty: Address) -> Iterator[Address]:
    """The empty database, for a role that may do nothing there."""
    role = f"weak_{uuid4().hex}"
    execute(empty, f"create role {role} login")
    yield replace(empty, user=role)
    execute(empty, f"drop owned by {role}", f"drop role {role}")


def external_to(address: Address) -> dict[str, str]:
    """Returns the settings for a service on the tests' server."""
    host = address.hosts[0]
    return external(f"postgresql://{address.user}@/{address.database}?host={quote(host.name)}&port={host.port}")


@by_user
def test_who_may_not_make_the_schema_is_told_so_and_the_message_helps(
    empty: Address, weak: Address, tmp_path: Path
) -> None:
    ended = run_service(tmp_path, "migrate", **external_to(weak))
    grant, make = (
        f"grant create on database {weak.database} to {weak.user}",
        f"create schema tasks authorization {weak.user}",
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.endswith(
        f" refuses: the user {weak.user} may not create the schema tasks: {grant}, or {make}\n"
    )
    execute(empty, make)
    assert set(migrate(weak)) == known_migrations() | {"functions"}
    execute(empty, "drop schema tasks cascade", grant)
    assert set(migrate(weak)) == known_migrations() | {"functions"}


@by_user
@pytest.mark.parametrize("granted", ["", "usage", "create"])
def test_a_schema_that_somebody_else_has_made_needs_both_rights(empty: Address, weak: Address, granted: str) -> None:
    execute(empty, "create schema tasks")
    if granted:
        execute(empty, f"grant {granted} on schema tasks to {weak.user}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege) as refused:
        migrate(weak)
    message, _, advice = str(refused.value).partition(": ")
    assert message == f"the user {weak.user} may not create tables in the schema tasks"
    execute(empty, advice)
    assert set(migrate(weak)) == known_migrations() | {"functions"}


# What an earlier version has left -------------------------------------------------------------------------------------


class Former(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo has no types
    """yoyo as it was used before there was a schema `tasks`: its tables are where the search path begins."""

    def connect(self, address: Address) -> Any:
        return schema.connect(address, autocommit=True)


def migrate_as_before(address: Address, last: str = "0005") -> None:
    """Applies the migrations up to this one, as a version did that knew no schema."""
    migrations = yoyo.read_migrations(str(FOLDER)).filter(lambda migration: migration.id[:4] <= last)
    with Former(address, default_migration_table) as database:
        database.init_database()
        database.apply_migrations(database.to_apply(migrations))


OURS = ["_yoyo_log", "_yoyo_migration", "account", "idempotency", "task"]
LATER = [*sorted(name for name in known_migrations() if name > "0006"), "functions"]
NEIGHBOURS = (
    'create table {0}.account (id text, "providerId" text)',
    "create table {0}.task (id int)",
    "insert into {0}.account values ('1', 'credential')",
    "insert into {0}.task values (1), (2)",
)
ANOTHER = "0001-another"
NOTED = "insert into _yoyo_migration values ('hash', '0001-another', now())"
NOTED_TOO = "insert into _yoyo_log (id, migration_hash, migration_id) values ('1', 'hash', '0001-another')"


Rows = list[dict[str, str | None]]


def rows(address: Address, place: str) -> dict[str, Rows]:
    """Returns all rows of the tables in this schema, without those that yoyo notes for another application."""
    query = sql.SQL(
        "select (select json_object_agg(key, value) from json_each_text(row_to_json(t))) from {} t order by t::text"
    )
    with schema.connect(address) as connection:
        found = {name: connection.execute(query.format(sql.Identifier(place, name))).fetchall() for name in OURS}
    return {name: [row for (row,) in of_one if row.get("migration_id") != ANOTHER] for name, of_one in found.items()}


def are_kept(before: dict[str, Rows], after: dict[str, Rows]) -> bool:
    """Tells whether all rows are the same in all the columns that there were; yoyo's and no others may be more."""
    for name in OURS:
        columns = before[name][0].keys()
        now = [{column: row[column] for column in columns} for row in after[name]]
        if "yoyo" in name:
            now = [row for row in now if row in before[name]]
        if now != before[name]:
            return False
    return True


def names(address: Address, place: str) -> list[str]:
    """Returns what is in the schema: tables, indexes, functions."""
    with schema.connect(address) as connection:
        found = connection.execute(
            "select relname from pg_class join pg_namespace n on n.oid = relnamespace where nspname = %(place)s"
            " union all"
            " select proname from pg_proc join pg_namespace n on n.oid = pronamespace where nspname = %(place)s"
            " order by 1",
            {"place": place},
        )
        return [name for (name,) in found]


def noted(address: Address) -> list[tuple[str]]:
    """Returns whose migrations yoyo has noted outside of our schema."""
    with schema.connect(address) as connection:
        return connection.execute("select migration_id from _yoyo_migration").fetchall()


def fill(address: Address) -> None:
    """Gives the user `anna` a live task, one in the trash and a key, in the search path."""
    execute(
        address,
        "insert into account values ('anna', 7), ('ben', 9007199254740991)",
        "insert into task (id, user_id, title, description, status, completed_at, deleted_at, version) values"
        " (gen_random_uuid(), 'anna', 'Größe 🎉', E'\\n', 'completed', now(), null, 6),"
        " (gen_random_uuid(), 'anna', 'in the trash', null, 'pending', null, now(), 7)",
        "insert into idempotency values ('anna', 'key', sha256('x'), '{\"a\":  1}')",
    )


by_session = pytest.mark.not_on("pooler", "the pooler's sessions began before the role's search_path was set")


@by_session
@pytest.mark.parametrize("has_neighbours", [False, True])
@pytest.mark.parametrize("place", ["public", 'the "app"'])
def test_a_database_of_before_is_moved_without_losing_a_row(
    empty: Address, tmp_path: Path, place: str, has_neighbours: bool
) -> None:
    later = "later" if place == "public" else "public"
    home = place.replace('"', '""')
    execute(
        empty,
        *(f'create schema if not exists "{name}"' for name in (home, later)),
        f'alter role postgres in database {empty.database} set search_path = "{home}", {later}',
    )
    if has_neighbours:
        execute(empty, *(statement.format(later) for statement in NEIGHBOURS))
    migrate_as_before(empty)
    fill(empty)
    if has_neighbours:
        execute(empty, NOTED, NOTED_TOO)
    neighbours, before = names(empty, later), rows(empty, place)
    assert [len(before[name]) for name in OURS] == [5, 5, 2, 1, 2]

    assert migrate(empty) == LATER
    assert are_kept(before, rows(empty, "tasks"))
    assert migrate(empty) == []

    left = names(empty, place)
    assert left == [name for name in left if "yoyo" in name]
    assert bool(left) == has_neighbours
    assert names(empty, later) == neighbours
    if has_neighbours:
        assert noted(empty) == [(ANOTHER,)]

    with serving(tmp_path, **external_to(empty)) as service:
        client = Client(service, "anna")
        assert httpx.get(service.address + "/readyz").status_code == 200
        assert client.titles() == ["Größe 🎉"]
        (trashed,) = client.call("GET", "?trashed=true&q=trash").json()
        assert client.call("POST", f"/{trashed['id']}/restore").status_code == 200
        assert client.create("new").json()["version"] > trashed["version"]


@pytest.mark.parametrize("last", ["0001", "0002", "0003", "0004", "0005"])
def test_a_database_that_was_moved_has_the_schema_of_a_new_one(empty: Address, last: str) -> None:
    migrate_as_before(empty, last)
    migrate(empty)
    moved = dumped(empty)
    execute(empty, "drop schema tasks cascade")
    migrate(empty)
    assert moved == dumped(empty)


def test_two_that_move_a_database_at_once_are_safe(empty: Address) -> None:
    migrate_as_before(empty)
    fill(empty)
    before = rows(empty, "public")
    with ThreadPoolExecutor() as threads:
        both = sorted(threads.map(migrate, [empty, empty]))
    assert both == [[], LATER]
    assert are_kept(before, rows(empty, "tasks"))


@by_pid
@pytest.mark.parametrize("table", OURS)
def test_a_lock_leaves_all_of_it_where_it_was(empty: Address, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate_as_before(empty)
    fill(empty)
    before, there = rows(empty, "public"), names(empty, "public")
    monkeypatch.setattr(schema, "ATTEMPTS", 1)
    with schema.connect(empty) as somebody:
        somebody.execute(f"lock table {table} in share mode".encode())
        with pytest.raises(Blocked, match=f"held by pid {somebody.info.backend_pid} "):
            migrate(empty)
        assert (rows(empty, "public"), names(empty, "public")) == (before, there)
        assert names(empty, "tasks") == []


def test_tasks_in_two_schemas_are_not_forgotten(empty: Address) -> None:
    """As they come to be when an earlier version migrates and serves once more."""
    migrate(empty)
    migrate_as_before(empty)
    assert migrate(empty) == [], "there are none in the second"
    fill(empty)
    with pytest.raises(psycopg.errors.RaiseException, match=r"^public\.task has tasks of an earlier version"):
        migrate(empty)


def test_what_another_application_has_is_left_alone_by_a_new_database(empty: Address) -> None:
    execute(
        empty,
        *(statement.format("public") for statement in NEIGHBOURS),
        "create table _yoyo_migration (migration_hash text, migration_id text, applied_at_utc timestamp)",
        NOTED.replace(ANOTHER, "0001-tasks"),
    )
    before = names(empty, "public")
    assert set(migrate(empty)) == known_migrations() | {"functions"}
    assert names(empty, "public") == before
    assert noted(empty) == [("0001-tasks",)]


# The functions --------------------------------------------------------------------------------------------------------


def test_a_session_that_has_written_goes_on_when_a_column_gets_another_type(empty: Address) -> None:
    migrate(empty)
    roll_back(empty, "0008")
    with schema.connect(empty, autocommit=True) as session:
        session.execute("""
            create function tasks.rename(p_title text) returns void language plpgsql as $$
            declare
                wanted tasks.task;
            begin
                wanted.title := coalesce(wanted.title, p_title);
                update tasks.task t set title = wanted.title;
            end
            $$
        """)
        session.execute("select tasks.rename('x')")
        migrate(empty)
        session.execute("select tasks.rename('y')")


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """The folder of a later version: one of its functions does something else, and one that it calls takes more."""
    folder = tmp_path / "newer"
    for name in ("migrations", "service", "sql"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    change(folder / "sql" / "functions" / "next_version.sql", r"version \+ 1", "version + 10")
    function = folder / "sql" / "functions" / "change_task.sql"
    change(function, r"p_plan jsonb,", "p_plan jsonb, p_reason text,")  # without a default, as a call could mean both
    change(folder / "service" / "queries" / "tasks.py", r"(tasks.change_task\([^)]*)\)", r"\1, 'a reason')")
    return folder


def change(path: Path, old: str, new: str) -> None:
    text = re.sub(old, new, path.read_text())
    assert text != path.read_text()
    path.write_text(text)


def readiness(service: Served) -> tuple[int, str]:
    answer = httpx.get(service.address + "/readyz")
    return answer.status_code, answer.text


def works(service: Served) -> None:
    """All that writes does."""
    client = Client(service)
    task = client.create("x").json()
    assert client.call("PUT", f"/{task['id']}", json={"title": "y"}).status_code == 200
    assert client.call("PATCH", f"/{task['id']}/complete").status_code == 200
    assert client.call("DELETE", f"/{task['id']}").status_code == 204
    assert client.call("POST", f"/{task['id']}/restore").status_code == 200
    operations = [{"op": "create", "task": {"title": "z"}}, {"op": "complete", "id": task["id"]}]
    batch = httpx.post(
        client.tasks.replace("/tasks", "/batch"), headers=client.headers, json={"operations": operations}
    )
    assert batch.status_code == 200, batch.text


def test_two_versions_work_beside_each_other(empty: Address, newer: Path, tmp_path: Path) -> None:
    migrate(empty)
    settings = external_to(empty)
    of_newer = settings | {"PYTHONPATH": str(newer)}
    with serving(tmp_path, **settings) as old, serving(tmp_path, **of_newer) as new:
        assert readiness(old)[0] == 200
        status, text = readiness(new)
        assert status == 503
        assert "schema: functions not applied; run `python -m service migrate`" in text
        for which, said in (
            (of_newer, "applied functions\n"),
            (of_newer, "nothing to apply: "),
            (settings, "applied f"),
        ):
            assert run_service(tmp_path, "migrate", **which).stdout.startswith(said)
            for service in (old, new):
                assert readiness(service)[0] == 200
                works(service)


def test_a_function_that_cannot_be_made_leaves_nothing_half_done(empty: Address, newer: Path, tmp_path: Path) -> None:
    migrate(empty)
    before = dumped(empty)
    (newer / "sql" / "functions" / "zz.sql").write_text(
        "create function tasks.zz() returns nonsense language sql as '';"
    )
    ended = run_service(tmp_path, "migrate", **external_to(empty), PYTHONPATH=str(newer))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert 'type "nonsense" does not exist' in ended.stderr
    assert dumped(empty) == before
    assert migrate(empty) == []


# A dump ---------------------------------------------------------------------------------------------------------------


@pytest.mark.not_on("older", "what pg_dump 18 writes is for 17 and newer")
@pytest.mark.parametrize("what", [[], ["--schema=tasks"]])
def test_a_dump_is_restored_into_an_empty_database(
    empty: Address, database_url: str, tmp_path: Path, what: list[str]
) -> None:
    migrate(empty)
    with serving(tmp_path, **external_to(empty)) as service:
        Client(service, "anna").create("Café ﬁnd me")
    before = rows(empty, "tasks")
    programs = embedded.PSQL.parent
    command: list[str | Path] = [programs / "pg_dump", *what]
    dump = subprocess.run(command, env=empty.for_psql(), capture_output=True, check=True).stdout
    with empty_database(database_url) as url:
        restored = parse_address(url)
        command = [programs / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1"]
        subprocess.run(command, env=restored.for_psql(), input=dump, capture_output=True, check=True)
        assert rows(restored, "tasks") == before
        assert migrate(restored) == []
        with serving(tmp_path, **external_to(restored)) as service:
            assert readiness(service)[0] == 200
            assert len(Client(service, "anna").call("GET", "?q=cafe%20find").json()) == 1
            works(service)
