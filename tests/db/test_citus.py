"""On Citus: a user's statements stay on the user's node, and what happens on one node harms nobody on another.

What Citus itself does is tested where the suite runs on it (--database-url); how the service takes it, anywhere.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import psycopg
import pytest

from service.db import coalescer, migrations, nodes
from service.db.address import parse_address
from service.db.coalescer import SOON, Coalescer, Statement
from service.db.migrations import LIMITS, connect, distribute, migrate
from service.db.pool import NodeUnavailable
from service.models import TaskCreate, TaskUpdate
from service.queries import changes, schema
from service.queries import tasks as queries
from tests.conftest import empty_database, eventually
from tests.db.test_coalescer import WatchedPool, open_on
from tests.db.test_sql import ARGUMENTS, CALLS, LOCK_TIMEOUT, OF_NO_USER, STATEMENTS, TABLES, WRITES, Filled, fill_for
from tests.processes import external, run_service

sessions = pytest.mark.not_on("pooler", "it needs sessions of its own, with settings and functions")


def is_citus(url: str) -> bool:
    with psycopg.connect(url) as connection:
        return connection.execute("select from pg_extension where extname = 'citus'").fetchone() is not None


@pytest.fixture(scope="module")
def like_citus(database_url: str) -> str:
    """The URL of a database that the service takes for Citus, by a setting that any PostgreSQL accepts."""
    return database_url if is_citus(database_url) else database_url + "&options=-c%20citus.version%3D13"


@pytest.fixture
async def pool(database_url: str) -> WatchedPool:
    return WatchedPool(database_url)


@pytest.fixture
async def db(pool: WatchedPool) -> AsyncIterator[Coalescer]:
    async for opened in open_on(pool):
        yield opened


# On any PostgreSQL ----------------------------------------------------------------------------------------------------


async def test_where_writes_commit_one_by_one_none_is_done_twice_when_another_fails(db: Coalescer) -> None:
    users = {f"user-{uuid4()}": TaskCreate(title="x") for _ in range(8)}
    first = await asyncio.gather(*(queries.insert_task(db, user, task) for user, task in users.items()))
    toggles = [queries.toggle_task(db, user, task.id) for user, task in users.items()]
    (guilty, task) = next(iter(users.items()))
    wrong = TaskUpdate(title="x").model_copy(update={"title": " "})  # which the table refuses
    toggles.insert(4, queries.update_task(db, guilty, task.id, wrong))
    toggled = await asyncio.gather(*toggles, return_exceptions=True)
    assert isinstance(toggled.pop(4), asyncpg.CheckViolationError)
    for before, after in zip(first, toggled, strict=True):
        assert not isinstance(after, BaseException)
        assert after.version == (before.version or 0) + 1
        assert b'"is_completed":true' in (after.task or b"")


@sessions
async def test_on_citus_a_write_goes_alone_and_reads_go_together(like_citus: str) -> None:
    pool = WatchedPool(like_citus)
    async for db in open_on(pool):
        users = [f"user-{uuid4()}" for _ in range(10)]
        await asyncio.gather(*(queries.insert_task(db, user, TaskCreate(title="x")) for user in users))
        assert pool.sizes == [1] * 10
        await asyncio.gather(*(queries.list_tasks(db, user) for user in users))
        assert pool.sizes[10:] == [10]


async def test_until_it_is_known_whether_it_is_citus_a_write_goes_alone(database_url: str) -> None:
    pool = WatchedPool(database_url)
    assert pool.is_citus


# A node that is away, as Citus says it: on a connection that stays open, with the same error. One that stands still:
# nobody gets its lock.
NODES = r"""
    create function pg_temp.asked(name text) returns text language plpgsql as $$
    begin
        if name like 'away%' then
            raise exception 'connection to the remote node postgres@10.0.0.1:5432 failed' using errcode = '08006';
        elsif name like 'still%' then
            perform pg_advisory_xact_lock_shared(hashtext(substring(name, '^\w+')));
        end if;
        return name;
    end
    $$
"""


class PoolWithNodes(WatchedPool):
    """A pool on whose connections a statement can ask for users of other nodes."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.statements: list[str] = []

    async def run(self, sql: str, executions: Any) -> Any:
        self.statements.append(sql)
        return await super().run(sql, executions)

    async def _new_connection(self) -> Any:
        connection = await super()._new_connection()
        await connection.execute(NODES)
        return connection


READ = Statement("select pg_temp.asked($1)", writes=False)
WRITE = Statement("select pg_temp.asked($1) || left($2, 0)", writes=True)
ASKED = """
    select array_agg(pg_temp.asked(name)) as users, array_agg(known + 1) as versions
    from unnest($1::text[], $2::bigint[]) as watched (name, known)
"""


@sessions
async def test_a_node_that_is_away_concerns_its_own_users_only(like_citus: str) -> None:
    pool = PoolWithNodes(like_citus)
    async for db in open_on(pool):
        for statement in (READ, WRITE):
            for _ in range(3):
                names = [f"{'away' if number == 4 else 'here'}-{uuid4()}" for number in range(9)]
                answers = await asyncio.gather(*(db.fetch(statement, name) for name in names), return_exceptions=True)
                for name, answer in zip(names, answers, strict=True):
                    if name.startswith("away"):
                        assert isinstance(answer, NodeUnavailable)
                        assert str(answer) == "connection to the remote node postgres@10.0.0.1:5432 failed"
                    else:
                        assert answer == (name,)
        assert len(pool._idle) == pool._open, "no connection was lost"


@sessions
async def test_whose_node_is_away_spoils_no_more_round_trips(like_citus: str) -> None:
    pool = PoolWithNodes(like_citus)
    async for db in open_on(pool):
        with pytest.raises(NodeUnavailable):
            await db.fetch(READ, "away")
        assert pool.sizes == [1, 1], "a read is repeated once"
        pool.sizes.clear()
        names = [*(f"here-{number}" for number in range(5)), "away"]
        await asyncio.gather(*(db.fetch(READ, name) for name in names), return_exceptions=True)
        assert sorted(pool.sizes) == [1, 1, 5]
        pool.sizes.clear()
        with pytest.raises(NodeUnavailable):
            await db.fetch(WRITE, "away")
        assert pool.sizes == [1], "of a write nobody knows whether it was done"


@pytest.fixture
def nodes_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has each user on a node of the same name."""
    node_of_user = "select split_part($1, '-', 1) || ':5432' as node"
    monkeypatch.setattr(nodes, "NODE_OF_USER", node_of_user)
    monkeypatch.setattr(coalescer, "FIND_NODE", Statement(node_of_user, writes=False, is_of_user=False))
    monkeypatch.setattr(nodes, "PROBE", "select pg_temp.asked($1)")


async def answers_again(db: Coalescer) -> bool:
    return not db.nodes.still


@asynccontextmanager
async def standing_still(url: str, node: str) -> AsyncIterator[Any]:
    """Has the node stand still; yields the connection that does it, until it is closed."""
    connection: Any = await asyncpg.connect(url)
    await connection.execute("select pg_advisory_lock(hashtext($1))", node)
    yield connection
    await connection.close()


@sessions
@pytest.mark.usefixtures("nodes_of_users")
async def test_a_node_that_stands_still_concerns_its_own_users_only(
    like_citus: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = PoolWithNodes(like_citus)
    still = f"still{uuid4().hex}"
    async for db in open_on(pool):
        async with standing_still(like_citus, still):
            for statement in (READ, WRITE):
                # more than there are connections
                names = [name for number in range(40) for name in (f"{still}-{number}", f"here-{number}")]
                answers = await asyncio.gather(*(db.fetch(statement, name) for name in names), return_exceptions=True)
                for name, answer in zip(names, answers, strict=True):
                    if name.startswith("here"):
                        assert answer == (name,)
                    else:
                        assert isinstance(answer, NodeUnavailable)
            assert db.nodes.still == {f"{still}:5432"}

            pool.statements.clear()
            with pytest.raises(NodeUnavailable, match="it stands still: still"):
                await db.fetch(READ, f"{still}-new")
            assert READ.sql not in pool.statements, "it was not sent"
        await eventually(partial(answers_again, db))
        assert await db.fetch(READ, f"{still}-new") == (f"{still}-new",)
    assert [record.getMessage() for record in caplog.records if record.name == nodes.logger.name] == [
        f"a node of the database stands still, its users get a 503: {still}:5432",
        f"the database's node stands still no longer: {still}:5432",
    ]


@sessions
@pytest.mark.usefixtures("nodes_of_users")
async def test_whoever_comes_while_a_node_is_found_to_stand_still_is_answered(like_citus: str) -> None:
    still = f"still{uuid4().hex}"
    async for db in open_on(PoolWithNodes(like_citus)):
        async with standing_still(like_citus, still):
            calls = [db.fetch(statement, f"{still}-{statement.writes}") for statement in (READ, WRITE)]
            names: list[str] = []
            while not all(call.done() for call in calls[:2]):
                names.append(f"here-{len(names)}")
                calls.append(db.fetch((READ, WRITE)[len(names) % 2], names[-1]))
                await asyncio.sleep(0.002)
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(answer) for answer in answers[:2]] == [NodeUnavailable] * 2
            assert answers[2:] == [(name,) for name in names]


@sessions
@pytest.mark.usefixtures("nodes_of_users")
async def test_a_call_that_takes_long_on_a_node_that_answers_is_waited_for(
    like_citus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "PROBE", "select $1::text")
    still = f"still{uuid4().hex}"
    async for db in open_on(PoolWithNodes(like_citus)):
        async with standing_still(like_citus, still):
            slow = [db.fetch(statement, f"{still}-{statement.writes}") for statement in (READ, WRITE)]
            await asyncio.sleep(2 * SOON + nodes.PROBE_LOOKS * nodes.LOOK_SECONDS)
            assert not db.nodes.still
        assert [row for (row,) in await asyncio.gather(*slow)] == [f"{still}-False", f"{still}-True"]


@sessions
async def test_without_citus_nothing_is_probed(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "NODE_OF_USER", "select")
    pool = PoolWithNodes(database_url)
    monkeypatch.setattr(pool, "apart", pytest.fail)
    still = f"still{uuid4().hex}"
    async for db in open_on(pool):
        pool.is_citus = False
        async with standing_still(database_url, still):
            slow = db.fetch(READ, still)
            await asyncio.sleep(3 * SOON)
        assert await slow == (still,)


@asynccontextmanager
async def watching(
    url: str, monkeypatch: pytest.MonkeyPatch, counters: dict[str, int]
) -> AsyncIterator[dict[str, int]]:
    """Has the counters of these users watched, each of which has gone up by one; yields those that are told."""
    monkeypatch.setattr(changes, "CHANGE_COUNTERS", Statement(ASKED, writes=False, is_of_user=False))
    monkeypatch.setattr(changes, "WATCH_SECONDS", 0.01)
    told: dict[str, int] = {}
    async for db in open_on(PoolWithNodes(url)):
        monkeypatch.setattr(db.hub, "tell", lambda user, version, _: told.update({user: version}))
        monkeypatch.setattr(db.hub, "counters", counters)
        watch = asyncio.create_task(changes.watch_counters(db))
        yield told
        watch.cancel()


@sessions
async def test_streams_of_users_on_other_nodes_are_told_while_a_node_is_away(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watching(database_url, monkeypatch, {"here": 7, "away": 7, "here too": 8}) as told:
        await eventually(lambda: asyncio.sleep(0, len(told) > 1))
    assert told == {"here": 8, "here too": 9}


@sessions
@pytest.mark.usefixtures("nodes_of_users")
async def test_streams_of_users_on_other_nodes_are_told_while_a_node_stands_still(
    like_citus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = f"still{uuid4().hex}"
    async with (
        standing_still(like_citus, still) as node,
        watching(like_citus, monkeypatch, {"here": 7, still: 7, "here-too": 8}) as told,
    ):
        await eventually(lambda: asyncio.sleep(0, len(told) > 1))
        assert told == {"here": 8, "here-too": 9}
        await node.close()
        await eventually(lambda: asyncio.sleep(0, still in told))


async def test_the_tables_are_such_as_citus_can_distribute(database_url: str) -> None:
    connection: Any = await asyncpg.connect(database_url)
    try:
        types = await connection.fetch("""
            select attrelid::regclass::text as table, atttypid::regtype::text as type
            from pg_attribute join pg_class on attrelid = pg_class.oid
            where relnamespace = 'tasks'::regnamespace and relkind in ('r', 'p') and attname = 'user_id'
        """)
        assert {row["table"] for row in types} >= {f"tasks.{table}" for table in TABLES}
        assert {row["type"] for row in types} == {"text"}, "by a domain Citus finds nothing"
        keyless = await connection.fetch("""
            select relname from pg_class
            where relnamespace = 'tasks'::regnamespace and relkind in ('r', 'p')
                and not exists (select from pg_index where indrelid = pg_class.oid and indisprimary)
        """)
        assert not keyless, "Citus moves rows to another node by their keys"
        checks = await connection.fetch("""
            select conname, pg_get_constraintdef(oid) as text
            from pg_constraint
            where connamespace = 'tasks'::regnamespace and contype = 'c' and conrelid <> 0
        """)
        of_rows = {row["conname"] for row in checks if ".*" in row["text"]}
        assert of_rows <= {"task_consistent"}, "rows there have other types; distribute.sql replaces this one"
    finally:
        await connection.close()


def test_without_citus_distribute_says_what_is_missing(tmp_path: Path, database_url: str) -> None:
    with empty_database(database_url) as url:
        migrate(parse_address(url))
        ended = run_service(tmp_path, "distribute", **external(url))
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr.startswith("Citus is not there: on every node, set shared_preload_libraries")
        assert "Traceback" not in ended.stderr


# On Citus -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def citus_url(database_url: str) -> str:
    """The URL of the database, if it is a Citus' coordinator."""
    if not is_citus(database_url):
        pytest.skip("needs a Citus with two workers: --database-url")
    return database_url


@pytest.fixture
async def citus(citus_url: str) -> AsyncIterator[Any]:
    """A connection outside of a transaction: within one, Citus runs functions on the coordinator."""
    connection = await asyncpg.connect(citus_url)
    yield connection
    await connection.close()


async def node_of(citus: Any, user: str) -> str:
    """Returns the node that has the user's rows, as host:port."""
    query = """
        select nodename || ':' || nodeport
        from citus_shards
        where shardid = get_shard_id_for_distribution_column('tasks.account', $1::text)
    """
    found: str = await citus.fetchval(query, user)
    return found


async def user_on(citus: Any, node: str) -> str:
    """Returns a new user whose rows will be on this node."""
    while await node_of(citus, user := f"user-{uuid4()}") != node:
        pass
    return user


async def workers(citus: Any) -> list[str]:
    query = "select node_name || ':' || node_port from citus_get_active_worker_nodes() order by 1"
    return [row[0] for row in await citus.fetch(query)]


def at(url: str, node: str) -> str:
    """Returns the URL of the same database on this node."""
    parts = urlsplit(url)
    user, has_user, _ = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user}{has_user}{node}").geturl()


async def filled_user(citus: Any, user: str) -> Filled:
    return await fill_for(citus, user, uuid4(), uuid4())


def task_counts(plan: Any) -> list[int]:
    """Returns how many shards each part of the plan touches that Citus carries out."""
    match plan:
        case {"Task Count": int(count), **others}:
            return [count, *task_counts(others)]
        case dict():
            return [count for value in plan.values() for count in task_counts(value)]
        case list():
            return [count for value in plan for count in task_counts(value)]
    return []


async def touched(citus: Any, sql: str, *arguments: Any) -> list[int]:
    """Returns how many shards each part of the statement touches that Citus carries out; it is not run."""
    await citus.execute(f"prepare explained as {sql}")
    try:
        literals = f"({', '.join(literal(argument) for argument in arguments)})" if arguments else ""
        return task_counts(json.loads(await citus.fetchval(f"explain (format json) execute explained{literals}")))
    finally:
        await citus.execute("deallocate explained")


def literal(argument: Any) -> str:
    match argument:
        case None:
            return "null"
        case list():
            return f"'{{{','.join(map(str, argument))}}}'"
        case bytes():
            return rf"'\x{argument.hex()}'"
    return f"'{argument}'"


@pytest.mark.parametrize("name", [name for name in STATEMENTS if name not in OF_NO_USER])
async def test_a_statement_of_a_user_touches_one_shard(citus: Any, name: str) -> None:
    user = f"user-{uuid4()}"
    arguments = (await filled_user(citus, user)).fill(ARGUMENTS[name])
    assert await touched(citus, STATEMENTS[name], user, *arguments) == [1]


@pytest.mark.parametrize(("name", "arguments"), WRITES, ids=[name for name, _ in WRITES])
async def test_a_write_touches_one_shard_and_runs_there(citus: Any, name: str, arguments: tuple[Any, ...]) -> None:
    """PostgreSQL shows no plan of what a function runs; Citus tells when it asks another node."""
    user = f"user-{uuid4()}"
    sent = LOCK_TIMEOUT, *(await filled_user(citus, user)).fill(arguments)
    assert await touched(citus, CALLS[name], user, *sent) == [1], "it is delegated"

    own = await node_of(citus, user)
    for node in await workers(citus):
        messages = await said(at(citus_dsn(citus), node), user, name, sent)
        if name != "erase_user":  # which notes on every node how high the numbers of so young a user were
            assert any("issuing " in message for message in messages) == (node != own), messages


async def test_erasing_asks_no_other_node_once_the_clock_is_an_hour_ahead_of_the_user_s_number(citus: Any) -> None:
    user = f"user-{uuid4()}"
    await filled_user(citus, user)
    query = "update tasks.account set version = version - 3660000, first_version = 1 where user_id = $1"
    await citus.execute(query, user)
    messages = await said(at(citus_dsn(citus), await node_of(citus, user)), user, "erase_user", (LOCK_TIMEOUT, 1000))
    assert not any("issuing " in message for message in messages), messages
    assert await citus.fetchval("select count(*) from tasks.account where user_id = $1", user) == 0


async def said(url: str, user: str, name: str, arguments: tuple[Any, ...]) -> list[str]:
    """Returns what Citus tells of its work when this node is called."""
    node: Any = await asyncpg.connect(url)
    messages: list[str] = []
    node.add_log_listener(lambda _, message: messages.append(message.message))
    await node.execute("set citus.log_remote_commands = on; set client_min_messages = log")
    await node.fetch(CALLS[name], user, *arguments)
    await asyncio.sleep(0)  # listeners are called in the next turn
    await node.close()
    return messages


def citus_dsn(citus: Any) -> str:
    address, parameters = citus._addr, citus._params
    return f"postgresql://{parameters.user}@{address[0]}:{address[1]}/{parameters.database}"


async def test_only_these_statements_touch_more_than_one_shard(citus: Any) -> None:
    moment = "2001-01-01"
    arguments: dict[str, tuple[Any, ...]] = {
        "account_page": ("", 10),
        "change_counters": (["a", "b", "c", "d", "e"], [1, 1, 1, 1, 1]),
        "change_oldest": ("", moment, moment, 10),
        "key_oldest": (moment, 10),
        "schema_applied": (),
        "trash_oldest": (moment, 10),
        "zone_known": ("Europe/Berlin",),
    }
    assert set(arguments) == set(OF_NO_USER)
    counts = {name: await touched(citus, STATEMENTS[name], *values) for name, values in arguments.items()}
    assert counts.pop("schema_applied") == [1], "a copy of what migrate has noted is on every node"
    assert counts.pop("zone_known") == []
    assert 1 < max(counts.pop("change_counters")) <= 5, "it asks for the users that are watched"
    for name, touching in counts.items():
        assert max(touching) > 1, name


async def test_who_is_locked_holds_up_nobody_else(citus: Any, db: Coalescer) -> None:
    """The time limit of locks is kept on the node that has the lock."""
    node, *_ = await workers(citus)
    locked, others = await user_on(citus, node), [f"user-{uuid4()}" for _ in range(30)]
    await queries.insert_task(db, locked, TaskCreate(title="x"))
    async with citus.transaction():
        await citus.execute("select from tasks.account where user_id = $1 for update", locked)
        waits = [asyncio.create_task(queries.insert_task(db, locked, TaskCreate(title="x"))) for _ in range(3)]
        for _ in range(3):
            calls = [queries.insert_task(db, user, TaskCreate(title="x")) for user in others]
            done = await asyncio.wait_for(asyncio.gather(*calls), 2)
            assert all(each.outcome == "created" for each in done)
        with pytest.raises(asyncpg.LockNotAvailableError):
            await asyncio.wait_for(direct(citus_dsn(citus), locked), 1)
        assert not any(each.done() for each in waits)
    assert [each.outcome for each in await asyncio.gather(*waits)] == ["created"] * 3


async def direct(url: str, user: str) -> None:
    connection: Any = await asyncpg.connect(url)
    try:
        await connection.fetch(CALLS["insert_task"], user, "50ms", uuid4(), '{"title": "x"}', None, None, None)
    finally:
        await connection.close()


async def test_every_node_can_be_asked_for_every_user(citus: Any) -> None:
    nodes = await workers(citus)
    assert len(nodes) > 1
    users = [await user_on(citus, node) for node in nodes]
    for node in nodes:
        async for db in open_on(WatchedPool(at(citus_dsn(citus), node))):
            found = await schema.applied(db)
            assert found == await applied(citus)
            for user in users:
                task = TaskCreate(title="x")
                assert (await queries.insert_task(db, user, task)).outcome == "created"
                assert (await queries.toggle_task(db, user, task.id)).outcome == "changed"
                assert str(UUID(task.id)).encode() in ((await queries.list_tasks(db, user)).tasks or b"")


async def applied(citus: Any) -> schema.Applied:
    migrations, functions, rights = await citus.fetchrow(STATEMENTS["schema_applied"])
    return schema.Applied(set(migrations), set(functions), rights)


def test_without_tables_distribute_asks_for_them(tmp_path: Path, citus_url: str) -> None:
    with empty_database(citus_url) as url:
        with psycopg.connect(url) as connection:
            connection.execute("create extension citus")
        ended = run_service(tmp_path, "distribute", **external(url))
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr == "There are no tables yet: run `python -m service migrate`\n"


ROWS = """
    select tasks.insert_task(name, '5s', gen_random_uuid(), fields, null, null, null, null, null)
    from unnest(array['a', 'b', 'c', 'd']) name, (values
        ('{"title": "x", "tags": ["a"]}'::jsonb),
        ('{"title": "x", "due_date": "2026-01-31", "due_time": "09:00", "due_time_zone": "Asia/Tokyo"}'),
        ('{"title": "x", "due_date": "2026-01-31", "recurrence": "FREQ=DAILY"}')
    ) as tasks (fields)
"""


def test_what_was_there_before_is_moved_and_a_write_may_run_on_the_coordinator(citus_url: str) -> None:
    with empty_database(citus_url) as url, psycopg.connect(citus_url, autocommit=True) as server:
        nodes = [f"{host}:{port}" for host, port in server.execute("select * from citus_get_active_worker_nodes()")]
        name = urlsplit(url).path[1:]
        with ExitStack() as stack:
            for node in nodes:
                worker = stack.enter_context(psycopg.connect(at(citus_url, node), autocommit=True))
                worker.execute(f"create database {name}".encode())
                stack.callback(worker.execute, f"drop database {name} with (force)".encode())
            for each in (url, *(at(url, node) for node in nodes)):
                with psycopg.connect(each, autocommit=True) as connection:
                    connection.execute("create extension citus")
            with psycopg.connect(url, autocommit=True) as connection:
                own = server.execute("select nodename, nodeport from pg_dist_node where groupid = 0").fetchone()
                connection.execute("select citus_set_coordinator_host(%s, %s)", own)
                for node in nodes:
                    connection.execute("select citus_add_node(%s, %s)", node.split(":"))
                migrate(parse_address(url))
                connection.execute(ROWS.encode())
                assert "tasks.task" in distribute(parse_address(url))
                connection.execute(ROWS.encode())  # such a statement is not delegated
                counts = connection.execute("select user_id, count(*) from tasks.task group by 1 order by 1")
                assert counts.fetchall() == [(user, 6) for user in "abcd"]
                broken = "update tasks.task set due_time = '09:00', due_date = null"
                with pytest.raises(psycopg.errors.CheckViolation):
                    connection.execute(broken.encode())
                with pytest.raises(psycopg.errors.InvalidParameterValue):
                    connection.execute("update tasks.task set due_time_zone = 'Europe/Nowhere'")


def test_distribute_and_migrate_can_be_repeated(citus_url: str) -> None:
    address = parse_address(citus_url)
    assert distribute(address) == []
    assert migrate(address) == []


def test_a_migration_can_change_tables_and_functions_at_once(citus_url: str) -> None:
    """What is taken back here, since others use the tables."""
    with connect(parse_address(citus_url)) as connection:
        connection.execute(LIMITS)
        connection.execute("alter table tasks.idempotency add column trial text")
        connection.execute("create table tasks.trial (user_id text primary key)")
        connection.execute("update tasks.idempotency set trial = 'x'")
        connection.execute(migrations._functions())
        connection.execute("create function tasks.trial() returns int language sql as 'select 1'")
        connection.rollback()
