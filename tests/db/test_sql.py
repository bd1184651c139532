"""The SQL: each statement and each function says what it takes, knows its user only, and stays fast on a big table."""

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from service.db import embedded
from service.db.address import parse_address
from service.db.coalescer import Statement
from service.db.migrations import migrate
from service.queries import accounts, changes, purge, schema, tags, zones
from service.queries import tasks as queries
from service.queries.tasks import Search
from service.web.search import DUE, SORTS
from tests.conftest import ROOT, User, empty_database, eventually, watched

SQL = ROOT / "sql"
LOADED = {
    value.sql: value
    for module in (queries, accounts, changes, purge, schema, tags, zones)
    for value in vars(module).values()
    if isinstance(value, Statement)
}

# Reads are statements, one a file; `migrate` and `distribute` run these by themselves, and install the functions.
BY_THEMSELVES = ("prepare", "distribute", "distributed")
FILES = sorted(
    path
    for path in SQL.rglob("*.sql")
    if path.parent.name not in ("debug", "functions") and path.stem not in BY_THEMSELVES
)
STATEMENTS = {path.stem: path.read_text() for path in FILES}
# About more than one user: whose changes are watched, what is to be purged or renumbered, the schema, and time zones
OF_NO_USER = (
    *("account_page", "change_counters", "change_oldest", "key_oldest"),
    *("schema_applied", "trash_oldest", "zone_known"),
)
OF_A_USER = [name for name in STATEMENTS if name not in OF_NO_USER]

# Writes are functions, one a file; the statements that call them, by the function's name.
FUNCTIONS = {path.stem: path.read_text() for path in sorted((SQL / "functions").glob("*.sql"))}
# Those that do not change are made by migrations: what they return is in checks, or may be in indexes.
FROM_MIGRATIONS = [
    *("search_folded", "check_task", "is_time_zone", "check_tags", "tag_key", "are_unlike", "moment"),
    *("check_fields", "check_time_zone"),  # from distribute.sql
]
CALL = re.compile(r"select (?:\* from )?tasks\.(\w+)\(\$1(?:, (?:\$\d+|null))*\)")
CALLS = {found[1]: sql for sql in LOADED if (found := CALL.fullmatch(sql))}

TABLES = ("account", "change", "idempotency", "task")
TABLE = f"(?:{'|'.join(TABLES)})"
TYPE_NAMES = {"bool": "boolean", "int4": "integer", "int8": "bigint", "int8[]": "bigint[]"}
LOCK_TIMEOUT = "1s"
LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)
NEVER = datetime(2101, 1, 1, tzinfo=UTC)

# Arguments, after the user, with which each statement finds something, and after the user and the lock timeout, with
# which each call does. {task} and {trashed} become a task's id, {new} one that is not taken.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "change_feed": (0, 1000, None),
    "change_history": ("{task}", None, 1000),
    "tag_list": (None,),
    "task_find": ("{task}", None),
    "task_list": (None,),
    "task_search": (
        *(None, ["pending"], ["low", "medium"], False, ["title"], LONG_AGO, None, LONG_AGO, None, None, None, False),
        *("title", False, 0, "", UUID(int=0), 1000, ["id", "user_id"], True),
        *(None, None, None, None, None, None, None),
    ),
}
BATCH = [
    {"op": "create", "id": "{new}", "task": {"title": "Title"}},
    {"op": "update", "id": "{task}", "task": {"title": "Changed"}},
    {"op": "complete", "id": "{task}"},
    {"op": "delete", "id": "{task}"},
    {"op": "restore", "id": "{trashed}"},
]
DONE = '{"title": "Title", "status": "completed", "due_date": "2026-01-31", "recurrence": "FREQ=DAILY"}'
NEXT = '{"successor": {"id": "{next}", "due_date": "2026-02-01"}}'
WRITES: list[tuple[str, tuple[Any, ...]]] = [
    ("insert_task", ("{new}", '{"title": "Title"}', None, None, None)),
    ("insert_task", ("{new}", '{"title": "Title"}', "another-key", bytes(32), None)),
    ("insert_task", ("{new}", DONE, None, None, NEXT)),
    ("change_task", ("update", "{task}", '{"title": "Changed"}', None, None)),
    ("change_task", ("update", "{task}", '{"due_date": "2026-01-31", "due_time": "09:00"}', None, None)),
    ("change_task", ("complete", "{task}", None, None, None)),
    ("change_task", ("delete", "{task}", None, None, None)),
    ("change_task", ("restore", "{trashed}", None, None, None)),
    ("run_batch", (json.dumps(BATCH), None, True, False)),
    ("purge_tasks", (["{trashed}"], NEVER)),
    ("purge_keys", (["key"], NEVER)),
    ("purge_changes", (NEVER, NEVER, 1000)),
    ("undo_change", ("{version}",)),
    ("rename_tag", ("home", "Garden")),
    ("rename_tag", ("home", None)),
    ("erase_user", (1000,)),
    ("renumber_user", ()),
]
each_write = pytest.mark.parametrize(("name", "arguments"), WRITES, ids=[name for name, _ in WRITES])
each_mode = pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection whose work is rolled back, and in which a name without its schema finds nothing of ours."""
    opened: Any = await asyncpg.connect(database_url)
    transaction = opened.transaction()
    await transaction.start()
    await opened.execute("set local search_path = ''")
    yield opened
    await transaction.rollback()
    await opened.close()


@dataclass(frozen=True)
class Filled:
    """What a user has, to whom something can happen."""

    task: UUID
    trashed: UUID
    version: int  # of the task

    def fill(self, value: Any) -> Any:
        """Returns an argument, with these in their places."""
        if isinstance(value, (list, tuple)):
            return [self.fill(one) for one in value]
        if value == "{version}":
            return self.version
        if not isinstance(value, str):
            return value
        places = {"task": self.task, "trashed": self.trashed, "version": self.version, "new": uuid4(), "next": uuid4()}
        return re.sub(r"\{(\w+)\}", lambda place: str(places.get(place[1], place[0])), value)


async def fill_for(connection: asyncpg.Connection, user: str, task: UUID, trashed: UUID) -> Filled:
    """Gives the user a task with a key, and one in the trash."""
    fields = '{"title": "Same title", "priority": "low", "tags": ["home", "garden"]}'
    await connection.fetch(CALLS["insert_task"], user, LOCK_TIMEOUT, trashed, fields, None, None, None)
    await connection.fetch(CALLS["change_task"], user, LOCK_TIMEOUT, "delete", trashed, None, None, None)
    sent = user, LOCK_TIMEOUT, task, fields, "key", bytes(32), None
    _, version, *_ = await connection.fetchval(CALLS["insert_task"], *sent)
    return Filled(task, trashed, version)


async def rows_of(connection: asyncpg.Connection, user: str) -> list[Any]:
    return [
        [tuple(row) for row in await connection.fetch(f"select * from tasks.{table} where user_id = $1", user)]  # noqa: S608
        for table in TABLES
    ]


# Reads ----------------------------------------------------------------------------------------------------------------


def test_every_file_is_loaded_and_every_read_has_a_file() -> None:
    assert set(STATEMENTS.values()) == {sql for sql, statement in LOADED.items() if not statement.writes}
    assert set(ARGUMENTS) == set(OF_A_USER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_opens_with_its_name_and_stays_static(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(f"-- {path.name}: ")
    assert not text.rstrip().endswith(";"), "with a semicolon it could not be pasted before \\bind"
    assert not re.search(r"\{\w*\}", text)
    assert "%s" not in text
    assert not capitals(text), "keywords are in lower case"


def capitals(text: str) -> list[str]:
    return re.findall(r"\b(SELECT|FROM|WHERE|INSERT|UPDATE|AND|OR)\b", re.sub(r"--.*", "", text))


@pytest.mark.parametrize("name", STATEMENTS)
async def test_the_header_tells_the_types_that_postgresql_infers(connection: asyncpg.Connection, name: str) -> None:
    told = re.findall(r"^-- \$(\d+) ([\w\[\]]+): \S", STATEMENTS[name], re.MULTILINE)
    prepared = await connection.prepare(STATEMENTS[name])
    inferred = [TYPE_NAMES.get(parameter.name, parameter.name) for parameter in prepared.get_parameters()]
    assert [type_ for _, type_ in told] == inferred
    assert [int(number) for number, _ in told] == list(range(1, len(told) + 1))


@pytest.mark.parametrize("name", OF_A_USER)
def test_the_first_parameter_is_the_user_of_every_table(name: str) -> None:
    sql = re.sub(r"--.*", "", STATEMENTS[name])
    assert re.search(r"^-- \$1 text: the user$", STATEMENTS[name], re.MULTILINE)
    reads = len(re.findall(rf"\b(?:from|join) tasks\.{TABLE}\b", sql))
    assert reads > 0
    assert len(re.findall(r"user_id = \$1", sql)) == reads, "each table is restricted by its own user_id = $1"


@pytest.mark.parametrize("name", OF_A_USER)
async def test_a_statement_reads_its_own_user_only(connection: asyncpg.Connection, name: str) -> None:
    mine, theirs, task, trashed = "mine", "theirs", uuid4(), uuid4()
    for user in (theirs, mine):  # the same id for both: only the user tells them apart
        filled = await fill_for(connection, user, task, trashed)
    arguments = filled.fill(ARGUMENTS[name])

    (row,) = await connection.fetch(STATEMENTS[name], mine, *arguments)
    assert theirs not in str(row)
    assert found_in(row) not in (None, "[]")

    (row,) = await connection.fetch(STATEMENTS[name], "nobody", *arguments)  # one row, whatever it finds
    assert found_in(row) in (None, "[]")
    assert not row.get("version")


def found_in(row: asyncpg.Record) -> Any:
    return next(row[name] for name in ("task", "tasks", "tags", "entries") if name in row.keys())  # noqa: SIM118  (a record)


# Writes ---------------------------------------------------------------------------------------------------------------


def test_every_call_names_a_function_and_every_function_is_called() -> None:
    assert set(CALLS.values()) == {sql for sql, statement in LOADED.items() if statement.writes}
    assert set(CALLS) == {name for name, _ in WRITES}
    for name in FUNCTIONS:
        texts = [text for other, text in (FUNCTIONS | STATEMENTS).items() if other != name]
        assert (name in CALLS) or any(f"tasks.{name}(" in text for text in texts), name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_s_file_opens_with_its_name_and_explains_each_parameter(name: str) -> None:
    text = FUNCTIONS[name]
    assert text.startswith(f"-- {name}: ")
    assert re.findall(r"^create .*", text, re.MULTILINE) == [
        line for line in text.splitlines() if line.startswith(f"create or replace function tasks.{name}(")
    ]
    header, body = text.split("create or replace function ")
    parameters = re.findall(r"\bp_\w+(?= [a-z])", body.split("$$")[0])
    obvious = [parameter for parameter in parameters if parameter == "p_user"]
    assert obvious + re.findall(r"^-- (p_\w+): \S", header, re.MULTILINE) == parameters
    assert not capitals(text), "keywords are in lower case"


async def test_what_saves_one_task_and_what_saves_many_write_each_column_that_can_change(
    connection: asyncpg.Connection,
) -> None:
    columns = await connection.fetchval("""
        select array_agg(attname::text)
        from pg_attribute
        where attrelid = 'tasks.task'::regclass and attnum > 0 and not attisdropped and attgenerated = ''
            and attname not in ('user_id', 'id', 'created_at')
    """)
    for name in ("save_task", "save_tasks"):
        written = re.findall(r"^ +(?:set )?(\w+) = (?:p_wanted|w)\.\1\b", FUNCTIONS[name], re.MULTILINE)
        assert sorted(written) == sorted(columns)


async def test_the_database_has_these_functions_and_no_other(connection: asyncpg.Connection) -> None:
    found = await connection.fetch(
        """
        select
            proname, provolatile = 'v' as is_volatile, proargnames[1:2] as names, proargtypes[0:1]::regtype[] as types
        from pg_proc
        where pronamespace = 'tasks'::regnamespace and proname <> all ($1)
    """,
        FROM_MIGRATIONS,
    )
    assert sorted(row["proname"] for row in found) == sorted(FUNCTIONS), "one signature each"
    for row in found:
        if row["proname"] in CALLS:
            assert row["is_volatile"], "so each statement in it sees what was committed before it began"
            assert (row["names"], row["types"]) == (["p_user", "p_lock_timeout"], ["text", "text"])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_names_each_schema_and_its_user_for_each_table(name: str) -> None:
    sql = re.sub(r"--.*", "", FUNCTIONS[name])
    assert not re.findall(rf"\b(?:from|join|using|insert into|update|only)\s+{TABLE}\b", sql)
    assert not re.findall(rf"(?<!tasks\.)\b(?:{'|'.join(FUNCTIONS)})\(", sql)
    restricted = len(re.findall(rf"\b(?:(?<!into )from|join|using|(?<!do )update)\s+tasks\.{TABLE}\b(?!\()", sql))
    assert len(re.findall(r"\buser_id = p_(?:user|wanted\.user_id)\b", sql)) == restricted
    inserted = len(re.findall(rf"\binsert into tasks\.{TABLE}\b", sql))
    assert len(re.findall(r"\binsert into tasks\.\w+ (?:as \w+ )?\(\s*user_id\b", sql)) == inserted
    assert len(re.findall(r"\b(?:values \(|select)\s*p_(?:user|wanted\.user_id)\b", sql)) == inserted


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_has_a_signature_that_there_is(connection: asyncpg.Connection, name: str) -> None:
    numbers = [int(number) for number in re.findall(r"\$(\d+)", CALLS[name])]
    assert numbers == list(range(1, len(numbers) + 1))
    prepared = await connection.prepare(CALLS[name])
    assert [parameter.name for parameter in prepared.get_parameters()][:2] == ["text", "text"]
    query = "select pronargs from pg_proc where oid = $1::regproc"
    assert CALLS[name].count(", ") + 1 == await connection.fetchval(query, f"tasks.{name}"), "none is left out"


@each_write
async def test_a_function_changes_its_own_user_only(
    connection: asyncpg.Connection, name: str, arguments: tuple[Any, ...]
) -> None:
    mine, theirs, task, trashed = "mine", "theirs", uuid4(), uuid4()
    for user in (theirs, mine):  # the same id for both: only the user tells them apart
        filled = await fill_for(connection, user, task, trashed)
    before, mine_before = await rows_of(connection, theirs), await rows_of(connection, mine)
    sent = LOCK_TIMEOUT, *filled.fill(arguments)

    (row,) = await connection.fetch(CALLS[name], mine, *sent)
    assert theirs not in str(row)
    assert all(outcome in ("created", "changed") or outcome > 0 for outcome in outcomes(row))
    assert await rows_of(connection, mine) != mine_before, "it found something to do"
    assert await rows_of(connection, theirs) == before

    (row,) = await connection.fetch(CALLS[name], "nobody", *sent)  # one row, whatever it finds
    assert await rows_of(connection, theirs) == before
    if "{new}" not in str(arguments):
        assert outcomes(row) <= {"not_found", 0}
        assert not any(await rows_of(connection, "nobody"))


def outcomes(row: asyncpg.Record) -> set[Any]:
    """Returns what became of a call: the words, or the number of those that it has erased."""
    if "outcomes" in row.keys():  # noqa: SIM118  (a record)
        return set(row["outcomes"])
    if [*row.keys()] == ["version", "tasks"]:
        return {row["tasks"]}
    return {row[0][0] if isinstance(row[0], tuple) else row[0]}


# Plans ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def big_table(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database of its own, with 100,000 tasks of 2,000 users."""
    with empty_database(database_url) as url:
        migrate(parse_address(url))
        opened: Any = await asyncpg.connect(url)
        await opened.execute("insert into tasks.account select 'user-' || n, 50 from generate_series(1, 2000) n")
        await opened.execute("""
            insert into tasks.task (id, user_id, title, version, tags)
            select gen_random_uuid(), 'user-' || n % 2000 + 1, 'Title ' || n, n / 2000 + 1, '{home,work}'
            from generate_series(0, 99999) n
        """)
        await opened.execute(
            "update tasks.task set deleted_at = now() where id in (select id from tasks.task where version = 1)"
        )
        await opened.execute("""
            insert into tasks.idempotency (user_id, key, request_hash, answer)
            select 'user-' || n % 2000 + 1, case when n < 2000 then 'key' else 'key-' || n end, sha256('x'), '{}'
            from generate_series(0, 19999) n
        """)
        await opened.execute("""
            insert into tasks.change (user_id, version, task_id, at, operation, after)
            select user_id, version, id, created_at, 'create', '{}' from tasks.task
        """)
        await opened.execute("vacuum analyze")
        yield opened
        await opened.close()


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in nodes(child))]


@each_mode
@pytest.mark.parametrize("name", OF_A_USER)
async def test_a_plan_uses_an_index_and_reads_this_user_s_rows_only(
    big_table: asyncpg.Connection, name: str, mode: str
) -> None:
    filled = await tasks_of(big_table, "user-77")
    for node in nodes(await explained(big_table, mode, name, "user-77", *filled.fill(ARGUMENTS[name]))):
        assert node["Node Type"] != "Seq Scan", node
        # 50 tasks, the trashed one that a list leaves out, and dead entries that rolled back tests left
        assert node["Actual Rows"] + node.get("Rows Removed by Filter", 0) <= 100, node


@each_mode
@each_write
async def test_a_function_uses_indexes_and_reads_few_rows(
    big_table: asyncpg.Connection, name: str, arguments: tuple[Any, ...], mode: str
) -> None:
    """PostgreSQL shows no plan of what a function runs, but counts what each table was read for."""
    filled = await tasks_of(big_table, "user-77")
    query = (
        "select relname, seq_scan, idx_scan, idx_tup_fetch from pg_stat_xact_user_tables"
        " where schemaname = 'tasks' and relname <> 'number_floor'"  # which has one row, and no index
    )
    transaction = big_table.transaction()
    await transaction.start()
    try:
        await big_table.execute(f"set local plan_cache_mode = {mode}")
        before = {row["relname"]: row for row in await big_table.fetch(query)}
        await big_table.fetch(CALLS[name], "user-77", LOCK_TIMEOUT, *filled.fill(arguments))
        after = {row["relname"]: row for row in await big_table.fetch(query)}
    finally:
        await transaction.rollback()
    assert after["account"]["idx_scan"] > before["account"]["idx_scan"]
    for table, row in after.items():
        assert row["seq_scan"] == before[table]["seq_scan"], table
        assert row["idx_tup_fetch"] - before[table]["idx_tup_fetch"] <= 200, table  # twice what the user has, or less


async def tasks_of(connection: asyncpg.Connection, user: str) -> Filled:
    """Returns a live task of the user, and one in the trash."""
    query = "select id, version from tasks.task where user_id = $1 and (deleted_at is null) = $2 limit 1"
    (live,), (trashed,) = [await connection.fetch(query, user, is_live) for is_live in (True, False)]
    return Filled(live["id"], trashed["id"], live["version"])


async def explained(connection: asyncpg.Connection, mode: str, name: str, *arguments: Any) -> dict[str, Any]:
    """Returns the plan by which the statement has run; what it did is rolled back."""
    literals = ", ".join(literal(argument) for argument in arguments)
    transaction = connection.transaction()
    await transaction.start()
    try:
        # prepared, since the mode says nothing to a statement that is explained directly
        await connection.execute(f"set local plan_cache_mode = {mode}")
        await connection.execute(f"prepare explained as {STATEMENTS[name]}")
        (found,) = json.loads(
            await connection.fetchval(f"explain (analyze, format json) execute explained({literals})")
        )
    finally:
        await transaction.rollback()
        await connection.execute("deallocate explained")
    plan: dict[str, Any] = found["Plan"]
    return plan


def literal(argument: Any) -> str:
    """Returns a plain argument as SQL writes it."""
    match argument:
        case None:
            return "null"
        case list():
            return f"'{{{', '.join(map(str, argument))}}}'"  # of whatever type the statement wants
        case bool() | int():
            return str(argument)
    return f"'{argument}'"


SEARCHES = [
    Search(limit=10),
    *(Search(sort=sign + sort, limit=10) for sort in SORTS for sign in ("", "-")),
    Search(status=["completed"], priority=["high"], is_completed=True),
    Search(q=["title", "7"], count=True),
    Search(created_after=LONG_AGO, updated_after=LONG_AGO, completed_after=LONG_AGO),
    Search(trashed=True, fields=["title"]),
    Search(sort="title", after=(0, "title 7", str(UUID(int=0)))),
    Search(due_after="2001-01-01", due_before="2101-01-01", sort="due", limit=10),
    *(Search(due=due, time_zone="Europe/Berlin", limit=10) for due in DUE),
    Search(tags=["home"]),
    Search(tags=["home"], tags_all=["garden", "home"]),
]


@each_mode
@pytest.mark.parametrize("search", SEARCHES)
async def test_every_search_reads_this_user_s_rows_only(
    big_table: asyncpg.Connection, search: Search, mode: str
) -> None:
    arguments = queries.search_arguments("user-77", search, None)
    for node in nodes(await explained(big_table, mode, "task_search", *arguments)):
        assert node["Node Type"] != "Seq Scan", node
        if "Relation Name" in node:
            condition = node.get("Index Cond", node.get("Recheck Cond", "")).replace("(user_id)::text", "user_id")
            assert "user_id = " in condition, node
            assert node["Actual Rows"] + node.get("Rows Removed by Filter", 0) <= 100, node


@each_mode
@pytest.mark.parametrize("known", [["50"], ["*"], ["7", "50"]])
@pytest.mark.parametrize("name", ["task_list", "task_search"])
async def test_a_list_whose_version_is_known_reads_one_row_of_account_and_no_task(
    big_table: asyncpg.Connection, name: str, known: list[str], mode: str
) -> None:
    user = "user-77"
    arguments = [user, known] if name == "task_list" else queries.search_arguments(user, Search(q=["title"]), known)
    loops: dict[str, list[int]] = {"account": [], "task": []}
    for node in nodes(await explained(big_table, mode, name, *arguments)):
        if "Relation Name" in node:
            loops[node["Relation Name"]].append(node["Actual Loops"])
            assert node["Actual Rows"] <= 1
    assert loops["account"] == [1]
    assert set(loops["task"]) <= {0}, "never executed"


# For people in psql ---------------------------------------------------------------------------------------------------


def psql(url: str, commands: str) -> str:
    """Returns what psql prints for the commands, run from the project's folder; any error fails."""
    done = subprocess.run(
        [embedded.PSQL, url, "--no-psqlrc", "--set", "ON_ERROR_STOP=1"],
        input=commands,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


async def test_the_statements_for_debugging_run(database_url: str, user: User) -> None:
    task = await user.create(title="Seen in psql", due_date="2026-01-31", due_time="09:00", due_time_zone="Asia/Tokyo")
    printed = {
        path.name: psql(database_url, f"\\set user {user.id}\n\\i sql/debug/{path.name}\n")
        for path in sorted((SQL / "debug").glob("*.sql"))
    }
    assert set(printed) == {
        *(
            "due.sql",
            "inner_statements.sql",
            "last_changes.sql",
            "list_plan.sql",
            "running.sql",
            "sizes.sql",
            "user_tasks.sql",
            "write.sql",
        ),
    }
    assert task["id"] in printed["user_tasks.sql"]
    assert re.search(r" overdue +\| 2026-01-31 \| 09:00:00 \| Asia/Tokyo +\| Seen in psql ", printed["due.sql"])
    assert "task_newest_first" in printed["sizes.sql"]
    assert "actual time" in printed["list_plan.sql"]
    assert "create extension pg_stat_statements" in printed["inner_statements.sql"]
    words = r"^ *(?:\d+ \| )?(created|changed|unchanged|other_version|not_found|exists)\b"
    expected = ["created", "changed", "other_version", "changed", "changed", "created"]
    assert re.findall(words, printed["write.sql"], re.MULTILINE) == expected
    assert [kept["id"] for kept in (await user.call("GET")).json()] == [task["id"]], "it is rolled back"


def test_what_the_functions_run_is_shown_where_it_is_counted(postgres_15: str) -> None:
    psql(postgres_15, "create extension if not exists pg_stat_statements;\n\\i sql/debug/write.sql\n")
    printed = psql(postgres_15, "\\i sql/debug/inner_statements.sql\n")
    assert re.search(r"^ +\d+ \| +[\d.]+ \| +[\d.]+ \| +\d+ \| insert into tasks\.account ", printed, re.MULTILINE)


@pytest.mark.not_on("citus", "the statement waits on a worker, which running.sql does not ask")
async def test_what_runs_is_shown_by_the_name_of_its_file_or_function(database_url: str, user: User) -> None:
    task = await user.create()
    holder: Any = await asyncpg.connect(database_url)
    async with holder.transaction():
        await holder.execute("select from tasks.account where user_id = $1 for update", user.id)
        write = asyncio.create_task(user.call("PUT", f"/{task['id']}", json={"title": "y"}))
        query = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like $1"
        await eventually(lambda: watched(holder, query, "%tasks.change_task(%"))
        printed = psql(database_url, "\\i sql/debug/running.sql\n")
    assert (await write).status_code == 200
    assert re.search(r" tasks\.change_task +\| active .* Lock: ", printed)

    async with holder.transaction():
        await holder.execute("lock table tasks.task in access exclusive mode")
        read = asyncio.create_task(user.call("GET", f"/{task['id']}"))
        await eventually(lambda: watched(holder, query, "-- task_find.sql%"))
        printed = psql(database_url, "\\i sql/debug/running.sql\n")
    assert (await read).status_code == 200
    assert re.search(r" task_find\.sql +\| active .* Lock: ", printed)
    await holder.close()


# \bind cannot say null: an empty array does as well, and where it does not, there are other arguments
MOMENTS = ("-infinity", "infinity") * 3
PASTED: list[tuple[str, tuple[Any, ...]]] = [
    ("change_feed", (0, 1000, "{}")),
    ("change_history", ("{task}", "{version}0", 1000)),
    ("task_find", ("{task}", "{}")),
    ("task_list", ("{}",)),
    (
        "task_search",
        (
            *("{}", "{completed}", "{medium}", "true", "{milk}", *MOMENTS, "false"),
            *("title", "true", 0, "zzz", UUID(int=0), 1, "{id,user_id}", "true"),
            *("-infinity", "infinity", "week", "2026-11-23", "UTC", "{home}", "{home}"),
        ),
    ),
    ("insert_task", (LOCK_TIMEOUT, "{new}", '{"title": "Title"}', "key", r"\\x" + bytes(32).hex(), "{}")),
    ("change_task", (LOCK_TIMEOUT, "update", "{task}", '{"title": "Changed"}', "{{version}}", "{}")),
    ("undo_change", (LOCK_TIMEOUT, "{version}")),
    ("rename_tag", (LOCK_TIMEOUT, "home", "garden")),
    ("tag_list", ("{}",)),
    ("run_batch", (LOCK_TIMEOUT, json.dumps(BATCH[:3]), "[]", "true", "false")),
    ("purge_tasks", (LOCK_TIMEOUT, "{}", "infinity")),
    ("purge_keys", (LOCK_TIMEOUT, "{}", "infinity")),
    ("purge_changes", (LOCK_TIMEOUT, "-infinity", "-infinity", 1000)),
    ("erase_user", (LOCK_TIMEOUT, 0)),
    ("renumber_user", (LOCK_TIMEOUT,)),
]


def test_everything_is_pasted() -> None:
    assert {name for name, _ in PASTED} == {*OF_A_USER, *CALLS}


@pytest.mark.parametrize(("name", "arguments"), PASTED, ids=[name for name, _ in PASTED])
async def test_a_statement_can_be_pasted_and_run_with_bind(
    database_url: str, user: User, name: str, arguments: tuple[Any, ...]
) -> None:
    task = await user.create(status="completed")
    filled = Filled(UUID(task["id"]), UUID(task["id"]), task["version"])
    change = "update tasks.task set due_date = '2026-11-24', tags = '{home}' where id = $1 \\bind %s \\g\n"
    psql(database_url, change % task["id"])
    quoted = " ".join(f"'{value}'" for value in [user.id, *filled.fill(arguments)])
    printed = psql(database_url, f"{STATEMENTS.get(name) or CALLS[name]}\n\\bind {quoted} \\g\n")
    assert "(1 row)" in printed
    is_silent = name.startswith(("purge", "erase", "renumber", "rename_tag", "tag_list"))
    assert user.id in printed or task["id"] in printed or is_silent
