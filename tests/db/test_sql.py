"""The statements: each prepares, says what it takes, knows its user only, and has a plan that stays fast."""

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator
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
from service.queries import purge, schema
from service.queries import tasks as queries
from service.queries.tasks import Search
from service.web.search import SORTS
from tests.conftest import ROOT, User, empty_database, eventually, watched

SQL = ROOT / "sql"
STATEMENTS = {
    value.name: value
    for module in (queries, purge, schema)
    for value in vars(module).values()
    if isinstance(value, Statement)
} | {"account_lock": Statement("account_lock", queries.TASK_OPERATE.lock, writes=True)}
FILES = sorted(path for path in SQL.rglob("*.sql") if path.parent.name != "debug")
OF_NO_USER = (
    "key_oldest",
    "schema_applied",
    "trash_oldest",
)  # what is about all users: the schema, and what is to be purged
OF_A_USER = [name for name in STATEMENTS if name not in OF_NO_USER]
TYPE_NAMES = {"bool": "boolean", "int4": "integer", "int8": "bigint"}

LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)
NEVER = datetime(2101, 1, 1, tzinfo=UTC)

# Arguments, after the user, with which each statement finds something; {task} and {trashed} become
# a task's id.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "account_lock": ("1s",),
    "answer_find": ("key",),
    "key_purge": (["key"], NEVER, "1s"),
    "task_delete": ("{task}", None, "1s"),
    "task_find": ("{task}", None),
    "task_insert": ("{new}", "Title", None, "pending", "medium", "1s"),
    "task_insert_once": ("{new}", "Title", None, "pending", "medium", "another-key", bytes(32), "1s"),
    "task_list": (None,),
    "task_operate": ("update", "{task}", None, "Changed", False, None, None, None, None),
    "task_purge": (["{trashed}"], NEVER, "1s"),
    "task_restore": ("{trashed}", None, "1s"),
    "task_search": (
        *(None, ["pending"], ["low", "medium"], False, ["title"], LONG_AGO, None, LONG_AGO, None, None, None, False),
        *("title", False, 0, "", UUID(int=0), 1000, ["id", "user_id"], True),
    ),
    "task_toggle": ("{task}", None, "1s"),
    "task_update": ("{task}", "Changed", False, None, None, None, None, None, "1s"),
}


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection whose work is rolled back."""
    opened: Any = await asyncpg.connect(database_url)
    transaction = opened.transaction()
    await transaction.start()
    yield opened
    await transaction.rollback()
    await opened.close()


def arguments_of(name: str, task: UUID, trashed: UUID) -> list[Any]:
    replaced: dict[str, UUID] = {"{task}": task, "{trashed}": trashed, "{new}": uuid4()}

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(one) for one in value]
        return replaced.get(value, value) if isinstance(value, str) else value

    return [filled(value) for value in ARGUMENTS[name]]


def answer(row: asyncpg.Record) -> Any:
    """Returns the column that has what was asked for."""
    return next(row[name] for name in ("task", "tasks", "deleted", "erased", "made") if name in row.keys())  # noqa: SIM118  (a record)


def test_every_file_is_loaded_and_every_statement_has_a_file() -> None:
    assert {path.stem for path in FILES} == set(STATEMENTS)
    assert set(ARGUMENTS) == set(OF_A_USER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_opens_with_its_name_and_stays_static(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(f"-- {path.name}: ")
    assert not text.rstrip().endswith(";"), "with a semicolon it could not be pasted before \\bind"
    assert not re.search(r"\{\w*\}", text)
    assert "%s" not in text
    keywords = re.findall(r"\b(SELECT|FROM|WHERE|INSERT|UPDATE|AND|OR)\b", re.sub(r"--.*", "", text))
    assert not keywords, "keywords are in lower case"


@pytest.mark.parametrize("name", STATEMENTS)
async def test_the_header_tells_the_types_that_postgresql_infers(connection: asyncpg.Connection, name: str) -> None:
    sql = STATEMENTS[name].sql
    told = re.findall(r"^-- \$(\d+) ([\w\[\]]+): \S", sql, re.MULTILINE)
    prepared = await connection.prepare(sql)
    inferred = [TYPE_NAMES.get(parameter.name, parameter.name) for parameter in prepared.get_parameters()]
    assert [type_ for _, type_ in told] == inferred
    assert [int(number) for number, _ in told] == list(range(1, len(told) + 1))


@pytest.mark.parametrize("name", OF_A_USER)
def test_the_first_parameter_is_the_user_of_every_table(name: str) -> None:
    sql = re.sub(r"--.*", "", STATEMENTS[name].sql)
    assert re.search(r"^-- \$1 text: the user$", STATEMENTS[name].sql, re.MULTILINE)
    reads = len(re.findall(r"\b(?:from|join|update|using)\s+(?:task|account|idempotency)\b", sql))
    assert len(re.findall(r"user_id = \$1", sql)) == reads, "each table is restricted by its own user_id = $1"
    if "insert into" in sql:
        assert len(re.findall(r"insert into \w+ \(user_id\b", sql)) == sql.count("insert into")


@pytest.mark.parametrize("name", OF_A_USER)
async def test_a_statement_touches_its_own_user_only(connection: asyncpg.Connection, name: str) -> None:
    mine, theirs, task, trashed = "mine", "theirs", uuid4(), uuid4()
    for user in (theirs, mine):  # the same id for both: only the user tells them apart
        values = "Same title", None, "pending", "low"
        await connection.fetch(STATEMENTS["task_insert_once"].sql, user, task, *values, "key", bytes(32), "1s")
        await connection.fetch(STATEMENTS["task_insert"].sql, user, trashed, *values, "1s")
        await connection.fetch(STATEMENTS["task_delete"].sql, user, trashed, None, "1s")

    async def rows_of(user: str) -> list[Any]:
        return [
            [tuple(row) for row in await connection.fetch(f"select * from {table} where user_id = $1", user)]  # noqa: S608
            for table in ("account", "task", "idempotency")
        ]

    before = await rows_of(theirs)
    arguments = arguments_of(name, task, trashed)
    rows = await connection.fetch(STATEMENTS[name].sql, mine, *arguments)
    assert len(rows) == 1
    assert theirs not in str(rows[0])
    if name != "account_lock":
        assert answer(rows[0]) not in (None, "[]", False, 0), "it found something to do"
    assert await rows_of(theirs) == before

    rows = await connection.fetch(STATEMENTS[name].sql, "nobody", *arguments)
    assert len(rows) == 1, "one row, whatever it finds"
    if name not in ("task_insert", "task_insert_once", "account_lock"):
        assert answer(rows[0]) in (None, "[]", False, 0)
        assert not rows[0].get("version")
    assert await rows_of(theirs) == before


# Plans ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def big_table(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database of its own, with 100,000 tasks of 2,000 users."""
    with empty_database(database_url) as url:
        migrate(parse_address(url))
        opened: Any = await asyncpg.connect(url)
        await opened.execute("insert into tasks.account select 'user-' || n, 50 from generate_series(1, 2000) n")
        await opened.execute("""
            insert into tasks.task (id, user_id, title, version)
            select gen_random_uuid(), 'user-' || n % 2000 + 1, 'Title ' || n, n / 2000 + 1
            from generate_series(0, 99999) n
        """)
        await opened.execute(
            "update tasks.task set deleted_at = now() where id in (select id from tasks.task where version = 1)"
        )
        await opened.execute("""
            insert into tasks.idempotency (user_id, key, request_hash, answer)
            select 'user-' || n % 2000 + 1, 'key-' || n, sha256('x'), '{}'
            from generate_series(0, 19999) n
        """)
        await opened.execute("vacuum analyze")
        yield opened
        await opened.close()


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in nodes(child))]


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("name", OF_A_USER)
async def test_a_plan_uses_an_index_and_reads_this_user_s_rows_only(
    big_table: asyncpg.Connection, name: str, mode: str
) -> None:
    user = "user-77"
    query = "select id from tasks.task where user_id = $1 and (deleted_at is null) = $2 limit 1"
    task, trashed = [await big_table.fetchval(query, user, is_live) for is_live in (True, False)]
    for node in nodes(await explained(big_table, mode, name, user, *arguments_of(name, task, trashed))):
        assert node["Node Type"] != "Seq Scan", node
        # 50 tasks, the trashed one that a list leaves out, and dead entries that rolled back tests left
        assert node["Actual Rows"] + node.get("Rows Removed by Filter", 0) <= 100, node


async def explained(connection: asyncpg.Connection, mode: str, name: str, *arguments: Any) -> dict[str, Any]:
    """Returns the plan by which the statement has run; what it did is rolled back."""
    literals = ", ".join(literal(argument) for argument in arguments)
    transaction = connection.transaction()
    await transaction.start()
    try:
        # prepared, since the mode says nothing to a statement that is explained directly
        await connection.execute(f"set local plan_cache_mode = {mode}")
        await connection.execute(f"prepare explained as {STATEMENTS[name].sql}")
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
        case bytes():
            return f"'\\x{argument.hex()}'"
    return f"'{argument}'"


SEARCHES = [
    Search(limit=10),
    *(Search(sort=sign + sort, limit=10) for sort in SORTS for sign in ("", "-")),
    Search(status=["completed"], priority=["high"], is_completed=True),
    Search(q=["title", "7"], count=True),
    Search(created_after=LONG_AGO, updated_after=LONG_AGO, completed_after=LONG_AGO),
    Search(trashed=True, fields=["title"]),
    Search(sort="title", after=(0, "title 7", str(UUID(int=0)))),
]


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("search", SEARCHES)
async def test_every_search_reads_this_user_s_rows_only(
    big_table: asyncpg.Connection, search: Search, mode: str
) -> None:
    arguments = queries.search_arguments("user-77", search, None)
    for node in nodes(await explained(big_table, mode, "task_search", *arguments)):
        assert node["Node Type"] != "Seq Scan", node
        if "Relation Name" in node:
            assert "user_id = " in node.get("Index Cond", node.get("Recheck Cond", "")), node
            assert node["Actual Rows"] + node.get("Rows Removed by Filter", 0) <= 100, node


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
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
    task = await user.create(title="Seen in psql")
    printed = {
        path.name: psql(database_url, f"\\set user {user.id}\n\\i sql/debug/{path.name}\n")
        for path in sorted((SQL / "debug").glob("*.sql"))
    }
    assert set(printed) == {"list_plan.sql", "running.sql", "sizes.sql", "user_tasks.sql"}
    assert task["id"] in printed["user_tasks.sql"]
    assert "task_newest_first" in printed["sizes.sql"]
    assert "actual time" in printed["list_plan.sql"]


async def test_what_runs_is_shown_by_the_name_of_its_file(database_url: str, user: User) -> None:
    task = await user.create()
    holder: Any = await asyncpg.connect(database_url)
    async with holder.transaction():
        await holder.execute("select from tasks.account where user_id = $1 for update", user.id)
        waiting = asyncio.create_task(user.call("PUT", f"/{task['id']}", json={"title": "y"}))
        query = (
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '-- task_update.sql%'"
        )
        await eventually(lambda: watched(holder, query))
        printed = psql(database_url, "\\i sql/debug/running.sql\n")
    assert (await waiting).status_code == 200
    await holder.close()
    assert re.search(r"task_update\.sql .* active .* Lock: ", printed)


FINDS_NOTHING = (
    "account_lock",
    "answer_find",
    "key_purge",
    "task_delete",
    "task_purge",
    "task_restore",
)  # or does not show the task


@pytest.mark.parametrize("name", OF_A_USER)
async def test_a_statement_can_be_pasted_and_run_with_bind(database_url: str, user: User, name: str) -> None:
    task = await user.create(status="completed")
    # \bind cannot say null: an empty array does as well, and where it does not, there are other arguments
    arguments = ["{}" if value is None else value for value in arguments_of(name, task["id"], task["id"])]
    arguments = [f"{{{value[0]}}}" if isinstance(value, list) else value for value in arguments]
    if name in ("task_insert", "task_insert_once"):
        arguments[2] = ""
        arguments = [f"\\\\x{value.hex()}" if isinstance(value, bytes) else value for value in arguments]
    elif name == "task_update":
        arguments = [task["id"], "Changed", "false", "", "pending", "low", "false", f"{{{task['version']}}}", "1s"]
    elif name == "task_toggle":
        arguments[1] = f"{{{task['version']}}}"
    elif name == "task_operate":
        arguments = ["complete", task["id"], task["version"], "Changed", "false", "", "pending", "low", "false"]
    elif name == "task_search":
        moments = ["-infinity", "infinity"] * 3
        arguments = ["{}", "{completed}", "{medium}", "true", "{milk}", *moments, "false", "title", "true"]
        arguments += [0, "zzz", UUID(int=0), 1, "{id,user_id}", "true"]
    quoted = " ".join(f"'{argument}'" for argument in [user.id, *arguments])
    printed = psql(database_url, f"{STATEMENTS[name].sql}\n\\bind {quoted} \\g\n")
    assert "(1 row)" in printed
    assert user.id in printed or name in FINDS_NOTHING
