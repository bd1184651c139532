"""Calls that share a round trip do not harm each other, whatever one of them meets."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import asyncpg
import psycopg
import pytest

from service.db.address import parse_address
from service.db.coalescer import ALIKE, FULL, LARGEST, Coalescer, Statement, waited
from service.db.migrations import migrate
from service.db.pool import Pool, Unavailable
from service.models import TaskCreate, TaskUpdate
from service.queries import tasks as queries
from tests.conftest import ROOT, User, empty_database, eventually, make_settings, watched


class WatchedPool(Pool):
    """The real pool, which also notes how many executions went in each round trip."""

    def __init__(self, url: str) -> None:
        settings = make_settings(url)
        super().__init__(parse_address(url), settings.db_pool_min, settings.db_pool_max, settings.db_statement_cache)
        self.sizes: list[int] = []

    async def run(self, sql: str, executions: Any) -> Any:
        self.sizes.append(len(executions))
        return await super().run(sql, executions)


apart_on_citus = pytest.mark.not_on("citus", "it counts writes that share a round trip")


by_session = pytest.mark.not_on("pooler", "it ends and counts sessions, or sets them up, which are the pooler's there")


@pytest.fixture(scope="module")
def url(database_url: str) -> Iterator[str]:
    """A database of these tests' own, since they close connections that others would miss."""
    with empty_database(database_url) as own:
        migrate(parse_address(own))
        yield own


@pytest.fixture
async def pool(url: str) -> WatchedPool:
    return WatchedPool(url)


@pytest.fixture
async def db(pool: WatchedPool) -> AsyncIterator[Coalescer]:
    async for opened in open_on(pool):
        yield opened


async def open_on(pool: WatchedPool) -> AsyncIterator[Coalescer]:
    coalescer = Coalescer(pool)
    await coalescer.open()
    token = waited.set([])
    yield coalescer
    waited.reset(token)
    await coalescer.close()


@pytest.fixture
async def other_connection(url: str) -> AsyncIterator[Any]:
    """A connection like that of somebody in psql."""
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


def new_task(title: str = "x", **fields: Any) -> TaskCreate:
    return TaskCreate(title=title, **fields)


async def new_id(db: Coalescer, user: str) -> str:
    """Creates a task; returns its id."""
    task = new_task()
    assert (await queries.insert_task(db, user, task)).outcome == "created"
    return task.id


@apart_on_citus
async def test_calls_of_one_turn_go_together(db: Coalescer, pool: WatchedPool) -> None:
    user = f"user-{uuid4()}"
    await asyncio.gather(*(queries.insert_task(db, user, new_task(f"{number}")) for number in range(10)))
    assert pool.sizes == [10]
    await asyncio.gather(*(queries.list_tasks(db, user) for _ in range(FULL + 1)))
    assert pool.sizes == [10, FULL, 1]


async def test_when_very_many_wait_each_batch_takes_its_share(db: Coalescer, pool: WatchedPool) -> None:
    await asyncio.gather(*(queries.list_tasks(db, f"user-{number}") for number in range(ALIKE * LARGEST + 40)))
    assert pool.sizes[0] == LARGEST
    assert sum(pool.sizes) == ALIKE * LARGEST + 40
    assert max(pool.sizes) == LARGEST


async def test_a_call_that_is_alone_leaves_at_once(db: Coalescer, pool: WatchedPool) -> None:
    call = asyncio.create_task(queries.list_tasks(db, "anybody"))
    turns = 0
    while not pool.sizes:
        await asyncio.sleep(0)
        turns += 1
    assert turns <= 3, "the call's own turn, the queue's and the batch's"
    await call


async def some_turns() -> None:
    """Lets a call leave; these are too few turns of the event loop for an answer."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_few_batches_are_in_flight_and_the_rest_waits(db: Coalescer, pool: WatchedPool) -> None:
    calls = []
    for number in range(ALIKE + 3):
        calls.append(db.fetch(NAP, f"user-{number}", 0.1))
        await some_turns()
    await asyncio.gather(*calls)
    assert pool.sizes == [1] * ALIKE + [3]


@apart_on_citus
async def test_a_user_has_one_round_trip_under_way_for_reads_and_one_for_writes(
    db: Coalescer, pool: WatchedPool, user: User
) -> None:
    calls = []
    for _ in range(3):
        for statement in (NAP, WRITING_NAP):
            calls.append(db.fetch(statement, user.id, 0.02))
            await some_turns()
    assert pool.sizes == [1, 1]
    await asyncio.gather(*calls)
    assert sorted(pool.sizes[2:]) == [2, 2]


async def test_reads_do_not_wait_behind_writes_that_wait_for_a_lock(
    db: Coalescer, pool: WatchedPool, other_connection: Any, user: User
) -> None:
    task = await new_id(db, user.id)
    async with other_connection.transaction():
        await other_connection.execute("select from tasks.account where user_id = $1 for update", user.id)
        pool.sizes.clear()
        writes: list[asyncio.Task[Any]] = []
        for write in (queries.toggle_task, queries.delete_task, queries.restore_task):
            writes.append(asyncio.create_task(write(db, user.id, task)))
            await some_turns()
        assert pool.sizes == [1]
        await asyncio.wait_for(queries.list_tasks(db, user.id), 0.2)
        assert not any(call.done() for call in writes)
    await asyncio.gather(*writes)


async def test_whoever_waits_for_a_connection_gets_the_next_one(url: str) -> None:
    pool = Pool(parse_address(url), 1, 1, 100)
    await pool.open()
    executions: list[Any] = [()]
    both = asyncio.gather(*(pool.run(f"select pg_sleep(0.1), {number} as number", executions) for number in (1, 2)))
    rows = await asyncio.wait_for(both, 4)
    assert [row["number"] for (row,) in rows] == [1, 2]
    await pool.close()


@by_session
async def test_connections_beyond_the_least_are_closed_when_idle(
    url: str, other_connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool(parse_address(url), 2, 5, 100)
    await pool.open()
    executions: list[Any] = [()]
    await asyncio.gather(*(pool.run("select pg_sleep(0.1)", executions) for _ in range(5)))
    assert len(pool._idle) == 5
    pool.close_idle()
    assert len(pool._idle) == 5, "they were in use just now"
    monkeypatch.setattr("service.db.pool.CLOSE_IDLE_SECONDS", -1)
    pool.close_idle()
    assert len(pool._idle) == 2
    monkeypatch.undo()

    async def two_are_open() -> bool:
        return bool(await watched(other_connection, f"select count(*) = 2 {OURS}"))

    await eventually(two_are_open)
    await asyncio.gather(*(pool.run("select pg_sleep(0.1)", executions) for _ in range(5)))
    assert len(pool._idle) == 5, "there is room for others in their place"
    await pool.close()


async def test_a_batch_that_is_given_up_before_it_begins_leaves_room_for_the_next(
    db: Coalescer, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.db.coalescer.LOOK", 0)
    await asyncio.sleep(0.5)  # the watch wakes from its last nap; from now on it looks in each turn of the event loop
    for _ in range(ALIKE + 1):
        with monkeypatch.context() as patch:
            late = db.fetch(queries.TASK_LIST, user.id, None)
            db._send()  # the batch is made, and begins in the next turn
            patch.setattr("service.db.coalescer.DEADLINE", -1)
            with pytest.raises(Unavailable):
                await late
        await some_turns()
    assert await asyncio.wait_for(queries.list_tasks(db, user.id), 2)


@apart_on_citus
async def test_one_failing_call_leaves_the_others_done_exactly_once(db: Coalescer, pool: WatchedPool) -> None:
    user = f"user-{uuid4()}"
    first = version_of(await queries.insert_task(db, user, new_task()))
    pool.sizes.clear()

    creates = [queries.insert_task(db, user, new_task(f"{number}")) for number in range(10)]
    creates.insert(5, queries.insert_task(db, user, wrong_task("guilty ")))
    results = await asyncio.gather(*creates, return_exceptions=True)

    assert pool.sizes[0] == 11
    assert pool.sizes[1:] == [1] * 11
    assert isinstance(results.pop(5), asyncpg.CheckViolationError)
    versions = sorted(version_of(result) for result in results)
    assert versions == list(range(first + 1, first + 11)), "each once, and no number is lost"
    tasks = (await queries.list_tasks(db, user)).tasks or b""
    assert tasks.count(b'"id"') == 11
    assert b"guilty" not in tasks


def version_of(created: Any) -> int:
    version: int = created.version
    return version


def wrong_task(title: str) -> TaskCreate:
    """Returns a task that the table refuses, when the title has white space at an end: as a bug would, unvalidated."""
    return new_task().model_copy(update={"title": title})


@apart_on_citus
async def test_what_is_expected_is_no_failure_and_goes_with_the_others(db: Coalescer, pool: WatchedPool) -> None:
    user, taken = f"user-{uuid4()}", new_task()
    first = version_of(await queries.insert_task(db, user, taken))
    pool.sizes.clear()
    tasks = [new_task(), taken, new_task()]
    results = await asyncio.gather(*(queries.insert_task(db, user, task) for task in tasks))
    assert pool.sizes == [3]
    assert [(result.outcome, result.version) for result in results] == [
        ("created", first + 1),
        ("exists", None),
        ("created", first + 2),
    ]


async def test_an_execution_that_breaks_a_check_harms_nobody(db: Coalescer, user: User) -> None:
    wrong = wrong_task(" ")
    calls = [queries.insert_task(db, name, task) for name in (user.id, user.id + "-2") for task in (new_task(), wrong)]
    first, failed, second, failed_too = await asyncio.gather(*calls, return_exceptions=True)
    for name, kept in ((user.id, first), (user.id + "-2", second)):
        assert version_of(await queries.insert_task(db, name, new_task())) == version_of(kept) + 1
    for error in (failed, failed_too):
        assert isinstance(error, asyncpg.CheckViolationError)
        assert "Failing row" not in str(error), "the row is the user's, and errors go to the log"


async def test_an_argument_that_cannot_be_sent_harms_nobody(db: Coalescer, user: User) -> None:
    wrong = new_task().model_copy(update={"id": "no uuid"})
    results = await asyncio.gather(
        *(queries.insert_task(db, user.id, task) for task in (new_task(), wrong, new_task())), return_exceptions=True
    )
    assert version_of(results[2]) == version_of(results[0]) + 1
    assert isinstance(results[1], asyncpg.DataError)


OURS = "from pg_stat_activity where application_name = 'task-service' and datname = current_database()"


async def close_connections_in(state: str, connection: Any) -> None:
    """Waits until the service has connections in this state, and closes them as an administrator would."""
    closing: list[int] = []

    async def found() -> bool:
        closing.extend(await watched(connection, f"select array_agg(pid) {OURS} and state = $1", state) or [])
        return bool(closing)

    await eventually(found)
    await connection.fetch("select pg_terminate_backend(pid) from unnest($1::int[]) pid", closing)
    gone = "select count(*) = 0 from pg_stat_activity where pid = any($1::int[])"
    await eventually(lambda: watched(connection, gone, closing))


@by_session
async def test_a_write_whose_connection_is_lost_is_not_repeated(
    db: Coalescer, pool: WatchedPool, other_connection: Any, user: User
) -> None:
    task = await new_id(db, user.id)
    pool.sizes.clear()
    async with other_connection.transaction():
        await other_connection.execute("select from tasks.account where user_id = $1 for update", user.id)
        write = asyncio.create_task(queries.update_task(db, user.id, task, TaskUpdate(title="y")))
        await close_connections_in("active", other_connection)
        with pytest.raises(Unavailable):
            await write
    assert pool.sizes == [1]
    assert (await queries.update_task(db, user.id, task, TaskUpdate(title="z"))).task, (
        "the next call has a new connection"
    )


@by_session
async def test_a_read_whose_connection_is_lost_is_repeated_once(
    db: Coalescer, pool: WatchedPool, other_connection: Any, user: User
) -> None:
    await queries.insert_task(db, user.id, new_task())
    pool.sizes.clear()
    async with other_connection.transaction():
        await other_connection.execute("lock table tasks.task in access exclusive mode")
        read = asyncio.create_task(queries.list_tasks(db, user.id))
        await close_connections_in("active", other_connection)
        while len(pool.sizes) < 2:  # noqa: ASYNC110  (there is no event for it)
            await asyncio.sleep(0)
    assert b'"title":"x"' in ((await read).tasks or b"")
    assert pool.sizes == [1, 1]


async def test_connections_that_were_closed_while_idle_are_replaced(
    db: Coalescer, other_connection: Any, user: User
) -> None:
    await queries.list_tasks(db, user.id)
    await close_connections_in("idle", other_connection)
    await asyncio.sleep(0.2)  # a server's process leaves the statistics a moment before its connection ends
    assert await queries.insert_task(db, user.id, new_task()), "a write, too: it had not begun"


async def test_a_connection_that_sat_idle_is_pinged_and_a_dead_one_replaced(
    db: Coalescer, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    await queries.list_tasks(db, user.id)
    monkeypatch.setattr("service.db.pool.IDLE_SECONDS", -1)
    assert (await queries.list_tasks(db, user.id)).tasks == b"[]"
    pings = []

    async def dead(self: Any, sql: str, **options: Any) -> None:
        pings.append(sql)
        raise TimeoutError

    monkeypatch.setattr("asyncpg.connection.Connection.execute", dead)
    assert await queries.insert_task(db, user.id, new_task())
    assert pings == ["select 1"]


async def test_a_user_whose_account_is_locked_holds_up_nobody_else(
    db: Coalescer, other_connection: Any, user: User, other: User
) -> None:
    await queries.insert_task(db, other.id, new_task())
    first = version_of(await queries.insert_task(db, user.id, new_task()))
    async with other_connection.transaction():
        await other_connection.execute("select from tasks.account where user_id = $1 for update", user.id)
        held: list[asyncio.Task[Any]] = []
        for number in range(30):  # more than there are connections
            held.append(asyncio.create_task(queries.insert_task(db, user.id, new_task(f"held {number}"))))
            await asyncio.sleep(0.01)
        for _ in range(20):
            await asyncio.wait_for(queries.insert_task(db, other.id, new_task()), 2)
            await asyncio.wait_for(queries.list_tasks(db, user.id), 2)
        assert not any(task.done() for task in held)
    versions = sorted(version_of(task) for task in await asyncio.gather(*held))
    assert versions == list(range(first + 1, first + 31))


@apart_on_citus
@pytest.mark.parametrize("first", ["a", "z"])
async def test_calls_that_go_with_one_that_meets_a_lock_are_done_without_it(
    db: Coalescer, pool: WatchedPool, other_connection: Any, first: str
) -> None:
    locked, others = f"m-{uuid4()}", [f"{first}{number}-{uuid4()}" for number in range(5)]
    before = version_of(await queries.insert_task(db, locked, new_task()))
    pool.sizes.clear()
    async with other_connection.transaction():
        await other_connection.execute("select from tasks.account where user_id = $1 for update", locked)
        waits = asyncio.create_task(queries.insert_task(db, locked, new_task()))
        calls = [queries.insert_task(db, name, new_task()) for name in others]
        done = await asyncio.wait_for(asyncio.gather(*calls), 2)
        assert pool.sizes == [6] + [1] * 6
        again = [queries.insert_task(db, name, new_task()) for name in others]
        done_again = await asyncio.wait_for(asyncio.gather(*again), 2)
        assert [version_of(task) for task in done_again] == [version_of(task) + 1 for task in done]
        assert not waits.done()
    assert version_of(await waits) == before + 1


async def test_a_write_that_waits_in_vain_ends_and_does_nothing(
    db: Coalescer, other_connection: Any, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.db.coalescer.DEADLINE", 1)
    monkeypatch.setattr("service.db.coalescer.LOOK", 0.001)
    await queries.insert_task(db, user.id, new_task())
    async with other_connection.transaction():
        await other_connection.execute("select from tasks.account where user_id = $1 for update", user.id)
        with pytest.raises(Unavailable, match="somebody holds a lock"):  # and not that nobody knows what was done
            await queries.insert_task(db, user.id, new_task("in vain"))
        await eventually(lambda: watched(other_connection, f"select count(*) = 0 {OURS} and wait_event_type = 'Lock'"))
    assert b"in vain" not in ((await queries.list_tasks(db, user.id)).tasks or b"")


WRITER = """
import asyncio, os, sys, time
from service.queries import tasks as queries
from service.db.address import parse_address
from service.db.coalescer import Coalescer, waited
from service.db.pool import Pool
from service.models import TaskCreate, TaskUpdate

async def main(url, prefix, order):
    users = [f"{prefix}-{number}" for number in range(20)][::order]
    db = Coalescer(Pool(parse_address(url), 5, 15, int(os.environ.get("DB_STATEMENT_CACHE", 100))))
    await db.open()
    waited.set([])
    ids = {user: TaskCreate(title="x") for user in users}
    for user in users:
        await queries.insert_task(db, user, ids[user])
    end, writes = time.monotonic() + 3, 0
    while time.monotonic() < end:
        calls = [queries.insert_task(db, user, TaskCreate(title="x")) for user in users]
        calls += [queries.toggle_task(db, user, ids[user].id) for user in users]
        calls += [queries.update_task(db, user, ids[user].id, TaskUpdate(title=str(writes))) for user in users]
        await asyncio.gather(*calls)
        writes += len(calls)
    print(writes)
    await db.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def test_two_processes_that_write_in_opposite_orders_never_deadlock(url: str) -> None:
    prefix = f"user-{uuid4()}"
    with psycopg.connect(url) as connection:
        connection.execute("insert into tasks.account select %s || '-' || n, 1 from generate_series(0, 19) n", [prefix])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, url, prefix, order],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for order in ("1", "-1")
    ]
    writes = 0
    for process in processes:
        output, errors = process.communicate()
        assert (process.returncode, errors) == (0, "")
        writes += int(output)
    with psycopg.connect(url) as connection:
        users = connection.execute(
            "select a.version, max(t.version), count(distinct t.version) = count(*)"
            " from tasks.account a join tasks.task t using (user_id)"
            " where starts_with(user_id, %s) group by user_id, a.version",
            [prefix],
        ).fetchall()
        deadlocks = connection.execute("select deadlocks from pg_stat_database where datname = current_database()")
        assert deadlocks.fetchone() == (0,)
    assert len(users) == 20
    assert all(counter == newest and are_distinct for counter, newest, are_distinct in users)
    assert sum(counter for counter, _, _ in users) - 20 == writes + 40, "every write took exactly one number"


# Nobody slows anybody else --------------------------------------------------------------------------------------------

NAP = Statement("select pg_sleep($2::float8) is null as slept, $1::text as user_id", writes=False)
WRITING_NAP = Statement("select pg_sleep($3::float8), $1::text as user_id, $2::text as lock_timeout", writes=True)
CHEAP_READ = Statement("select $1::text as user_id, $2::float8 as nothing", writes=False)


async def answers(calls: list[Any]) -> tuple[int, int]:
    """Returns how many calls had an answer, and how many were refused. Any other outcome fails the test."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, Unavailable)]
    wrong = [outcome for outcome in outcomes if isinstance(outcome, BaseException) and outcome not in refused]
    assert not wrong
    return len(outcomes) - len(refused), len(refused)


async def others_are_served(db: Coalescer, statement: Statement, seconds: float = 1.5) -> None:
    """Sends cheap calls of other users for a while: each is answered long before its deadline."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        calls = (db.fetch(statement, f"other-{uuid4()}", 0.0) for _ in range(3))
        await asyncio.wait_for(asyncio.gather(*calls), 2.5)


@pytest.mark.parametrize("users", [1, 12])
async def test_dear_reads_hold_up_nobody_else(db: Coalescer, users: int) -> None:
    dear = [db.fetch(NAP, f"dear-{number % users}", 30.0) for number in range(12)]
    await others_are_served(db, NAP)
    await others_are_served(db, CHEAP_READ, 0.5)
    assert await answers(dear) == (0, 12)


@pytest.mark.parametrize("first", ["a", "z"])
async def test_a_dear_read_is_soon_left_behind_by_those_that_travel_with_it(db: Coalescer, first: str) -> None:
    calls = [db.fetch(NAP, f"{first}{number}", 30.0 if number == 2 else 0.0) for number in range(6)]
    cheap = [call for number, call in enumerate(calls) if number != 2]
    await asyncio.wait_for(asyncio.gather(*cheap), 3)
    assert not calls[2].done()
    assert await answers(calls[2:3]) == (0, 1)


async def test_a_dear_user_travels_alone_from_then_on(db: Coalescer, pool: WatchedPool) -> None:
    await db.fetch(NAP, "dear", 0.2)
    pool.sizes.clear()
    await asyncio.gather(*(db.fetch(NAP, name, 0.0) for name in ("one", "dear", "two")))
    assert sorted(pool.sizes) == [1, 2]
    for _ in range(3):  # it is cheap again
        await db.fetch(NAP, "dear", 0.0)
    pool.sizes.clear()
    await asyncio.gather(*(db.fetch(NAP, name, 0.0) for name in ("one", "dear", "two")))
    assert pool.sizes == [3]


async def test_large_answers_travel_alone(db: Coalescer, pool: WatchedPool) -> None:
    large = Statement(
        "select $1::text as user_id, to_json(repeat('x', $2::int)) as tasks, pg_sleep(0.02)", writes=False
    )
    users = ["large", *(f"small-{number}" for number in range(9))]

    async def sizes() -> list[int]:
        pool.sizes.clear()
        await asyncio.gather(*(db.fetch(large, user, 5_000_000 if user == "large" else 1) for user in users))
        return sorted(pool.sizes)

    assert 10 in await sizes(), "nobody knows yet"
    assert 1 in await sizes(), "the time that it took is put down to the largest answer"


async def test_one_user_with_very_many_calls_leaves_the_others_their_turn(db: Coalescer) -> None:
    greedy = [db.fetch(NAP, "greedy", 0.001) for _ in range(2000)]
    await asyncio.sleep(0.05)
    done_before = sum(call.done() for call in greedy)
    await asyncio.gather(*(db.fetch(NAP, f"modest-{number}", 0.0) for number in range(9)))
    done_meanwhile = sum(call.done() for call in greedy) - done_before
    assert done_meanwhile <= 4 * LARGEST, "those round trips that were under way, and a turn or two"
    answered, refused = await answers(greedy)
    assert answered > 1000
    assert answered + refused == 2000


async def test_a_call_behind_very_many_cheap_ones_is_not_refused(db: Coalescer) -> None:
    """Once its user had a call that cost a little, as the first of a burst seems to."""
    await db.fetch(NAP, "once", 0.025)
    cheap = [db.fetch(CHEAP_READ, f"cheap-{number}", 0.0) for number in range(500)]
    again = [db.fetch(CHEAP_READ, "once", 0.0) for _ in range(3)]
    assert await answers([*again, *cheap]) == (503, 0)


async def test_what_cannot_be_in_time_is_refused_at_once_and_what_is_begun_is_finished(
    db: Coalescer, pool: WatchedPool
) -> None:
    await db.fetch(NAP, "same", 0.2)  # now its cost is known
    pool.sizes.clear()
    flood = [db.fetch(NAP, "same", 0.2) for _ in range(500)]
    at_once = sum(call.done() for call in flood)
    assert 450 < at_once < 495, "their turn would come after more than three seconds"
    answered, refused = await answers(flood)
    assert answered == sum(pool.sizes), "nothing was begun in vain"
    assert refused >= at_once
    assert await answers([db.fetch(NAP, "same", 0.0)]) == (1, 0)


async def test_a_flood_of_many_users_is_served_in_turn_and_the_rest_refused(db: Coalescer, pool: WatchedPool) -> None:
    flood = [db.fetch(NAP, f"user-{number}", 0.05) for number in range(400)]
    started = time.monotonic()
    answered, refused = await answers(flood)
    assert time.monotonic() - started < 5, "whatever happens, an answer comes in time"
    assert answered >= 40, "two at a time would be 80 in two seconds"
    assert answered + refused == 400
    await others_are_served(db, NAP, 0.2)
    assert not any(scheduler.queues for scheduler in db._schedulers), "no empty queue is kept"


SINCE_17 = pytest.mark.not_on("older", "it came with PostgreSQL 17")


@by_session
@pytest.mark.parametrize("limit", ["statement_timeout", pytest.param("transaction_timeout", marks=SINCE_17)])
async def test_a_time_limit_of_the_database_stops_only_whom_it_is_meant_for(
    url: str, other_connection: Any, limit: str
) -> None:
    users = [f"m{number}-{uuid4()}" for number in range(5)]
    pool = WatchedPool(f"{url}&options=-c%20{limit}%3D200")
    db = Coalescer(pool)
    await db.open()
    waited.set([])
    for name in users:
        await queries.insert_task(db, name, new_task())
    async with other_connection.transaction():
        await other_connection.execute("select from tasks.account where user_id = $1 for update", users[2])
        pool.sizes.clear()
        creates = [asyncio.ensure_future(queries.insert_task(db, name, new_task("y"))) for name in users]
        locked = creates.pop(2)
        await asyncio.wait_for(asyncio.gather(*creates), 3)
        assert pool.sizes[0] == (1 if pool.is_citus else 5), "they went together"
        with pytest.raises(Unavailable):
            await locked
    assert await answers([db.fetch(NAP, "dear", 1.0), db.fetch(NAP, "cheap", 0.0)]) == (1, 1)
    await db.close()


async def test_many_locked_accounts_hold_up_nobody_else(db: Coalescer, other_connection: Any) -> None:
    users = [f"m{number}-{uuid4()}" for number in range(12)]
    for name in users:
        await queries.insert_task(db, name, new_task())
    async with other_connection.transaction():
        await other_connection.execute("select from tasks.account where user_id = any($1) for update", users)
        held = [asyncio.ensure_future(queries.insert_task(db, name, new_task())) for name in users for _ in range(3)]
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            creates = (queries.insert_task(db, f"other-{uuid4()}", new_task()) for _ in range(3))
            await asyncio.wait_for(asyncio.gather(*creates), 2.5)
    answered, refused = await answers(held)
    assert answered + refused == 36


async def test_a_batch_that_waits_for_a_lock_holds_up_no_other_batch(db: Coalescer, other_connection: Any) -> None:
    users = [f"m{number}-{uuid4()}" for number in range(8)]

    def batch(user: str) -> Any:
        creates = [queries.Operation("create", str(uuid4()), task=new_task()) for _ in range(3)]
        return asyncio.ensure_future(queries.run_batch(db, user, creates, atomic=True, dry_run=False))

    for name in users:
        await queries.insert_task(db, name, new_task())
    async with other_connection.transaction():
        await other_connection.execute("select from tasks.account where user_id = any($1) for update", users[:7])
        held = [batch(name) for name in users[:7]]
        await asyncio.wait_for(batch(users[7]), 3)
        assert not any(call.done() for call in held)
    await answers(held)
