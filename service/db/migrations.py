"""The schema: the migrations, and the functions that write; which there are, and how they come into the database."""

import logging
import os
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg
import yoyo
from yoyo import exceptions
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.migrations import default_migration_table

from service.db.address import Address

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parents[2] / "migrations"
SQL = Path(__file__).parents[2] / "sql"

# Any number will do, as long as no other program uses it on the same database.
LOCK = 7_305_809_230_147_001

CONNECT_SECONDS = 10  # unless the address says otherwise
# Whoever comes after a statement that waits for a lock waits behind it: so it waits shortly, and leaves room to others.
# The first two are Citus': its workers keep the limit, too, and a table and a function can change in one transaction.
# Any other PostgreSQL takes them and does nothing.
LIMITS = """
    set local citus.propagate_set_commands = 'local';
    set local citus.multi_shard_modify_mode = 'sequential';
    set local lock_timeout = '1s'
"""
# A session that has run a function keeps the types that its variables had, also when a migration gives a column another
# one: the function fails there. Whatever is altered of it, the session reads it anew.
READ_FUNCTIONS_ANEW = """
    do $$
    declare
        known regprocedure;
    begin
        for known in select oid from pg_proc where pronamespace = 'tasks'::regnamespace loop
            execute 'alter function ' || known || ' cost 100';
        end loop;
    end
    $$
"""
PAUSE_SECONDS = 2
ATTEMPTS = 15

# Whose open transactions hold locks on our tables, the longest first; an earlier version's are in another schema. What
# belongs to others is shown as far as we may see.
HOLDERS = """
    select pid, coalesce(nullif(application_name, ''), 'no application name'), coalesce(state, 'state not visible'),
        coalesce(extract(epoch from now() - xact_start)::int, 0)
    from pg_stat_activity
    where pid <> pg_backend_pid() and datname = current_database() and pid in (
        select l.pid from pg_locks l join pg_class c on c.oid = l.relation
        where l.granted and (
            c.relnamespace = to_regnamespace('tasks')
            or c.relname in ('account', 'task', 'idempotency', '_yoyo_migration', '_yoyo_log')))
    order by xact_start
    limit 3
"""

# What Citus does not have on its nodes yet, and whether it is about a user: accounts first, since the others join them
TABLES = """
    select oid::regclass::text, exists (
        select from pg_attribute where attrelid = oid and attname = 'user_id' and not attisdropped
    )
    from pg_class
    where relnamespace = 'tasks'::regnamespace and relkind in ('r', 'p')
        and oid not in (select logicalrelid from pg_dist_partition)
    order by relname <> 'account', relname
"""
FUNCTIONS = """
    select oid::regprocedure::text, is_user_s
    from (select oid, pronamespace, coalesce(proargnames[1] = 'p_user', false) as is_user_s from pg_proc) made
    left join pg_dist_object on classid = 'pg_proc'::regclass and objid = oid
    where pronamespace = 'tasks'::regnamespace
        and case when is_user_s then distribution_argument_index is null else objid is null end
    order by 1
"""

# What distribute needs, and what to do where it is not there
PRECONDITIONS = {
    "select from pg_extension where extname = 'citus'": (
        "Citus is not there: on every node, set shared_preload_libraries = 'citus', and in this database run"
        " `create extension citus`; then, on the coordinator, `select citus_set_coordinator_host(…), citus_add_node(…)`"
    ),
    "select where to_regclass('tasks.account') is not null": "There are no tables yet: run `python -m service migrate`",
}


class NotDistributable(Exception):
    """The database lacks what distribute needs; the message says what to do."""


class Blocked(Exception):
    """Somebody's transaction holds a lock that the migrations need; the message says whose."""


class _Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo has no types
    """yoyo's, on connections that are made from an address, and in which nothing waits long for a lock."""

    def connect(self, address: Address) -> Any:
        """Returns a connection as yoyo wants it."""
        return connect(address, autocommit=True)

    def begin(self) -> None:
        """Begins a transaction, with its own settings: a pooler may give the next one another session."""
        super().begin()
        self.execute(LIMITS)
        self.execute("set local search_path = tasks")

    def execute(self, sql: str, params: Any = None) -> Any:
        """Runs the statement, always in a transaction, for the sake of its limit."""
        if self._in_transaction:
            return super().execute(sql, params)
        with self.transaction():
            return super().execute(sql, params)

    def create_lock_table(self) -> None:
        """Creates yoyo's table unless it is there. Where yoyo goes on without it, this says why it cannot."""
        if self.lock_table not in self.list_tables():
            with self.transaction():
                self.execute(self.format_sql(self.create_lock_table_sql))

    def apply_one(self, migration: Any, force: bool = False, mark: bool = True) -> None:
        """Applies the migration, has sessions read the functions anew, and notes it, in one transaction.

        yoyo takes three: what ends between them leaves a migration that is applied, is not known to be, and fails for
        ever after.
        """
        migration.load()
        if not migration.use_transactions:
            super().apply_one(migration, force, mark)
            return
        with self.transaction():
            migration.process_steps(self, "apply", force=force)
            self.execute(READ_FUNCTIONS_ANEW)
            self.log_migration(migration, "apply")
            self.mark_one(migration, log=False)

    def _check_transactional_ddl(self) -> bool:
        return True  # PostgreSQL's is; yoyo would create a table and drop it to see


@cache
def known_migrations() -> frozenset[str]:
    """Returns the names of the migrations in `migrations/`."""
    return frozenset(migration.id for migration in yoyo.read_migrations(str(FOLDER)))


@cache
def known_functions() -> str:
    """Returns the hash of the functions in `sql/functions/`."""
    return sha256(_functions()).hexdigest()


def _functions() -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted((SQL / "functions").glob("*.sql")))


def connect(address: Address, **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
    """Returns a connection of psycopg's. Raises psycopg.Error."""
    if address.options.get("sslrootcert") == "system":
        # The OpenSSL that came with psycopg's wheel looks where the wheel was made.
        paths = ssl.get_default_verify_paths()
        for name, path in ((paths.openssl_cafile_env, paths.cafile), (paths.openssl_capath_env, paths.capath)):
            if path is not None:
                os.environ.setdefault(name, path)
    defaults = {"connect_timeout": str(CONNECT_SECONDS), "application_name": "task-service migrate"}
    # behind a pooler, the next transaction may have a session that lacks what this one has prepared
    return psycopg.connect(prepare_threshold=None, **defaults | address.for_libpq() | options)


@contextmanager
def backend(address: Address) -> Iterator[Any]:
    """Yields yoyo's way to the database. Raises psycopg.Error."""
    with _Backend(address, default_migration_table) as found:
        found.init_database()
        yield found


def migrate(address: Address) -> list[str]:
    """Applies what is not applied yet, and installs the functions when they are others; returns the names of the
    migrations, and `functions`. On a distributed database, what is new is distributed, and named. Two at once are safe.

    Raises psycopg.Error, and Blocked when it had to wait too long and too often for somebody's lock.
    """
    # yoyo notes the user's name, and fails where the operating system has none
    os.environ.setdefault("LOGNAME", address.user)
    return _one_at_a_time(address, _migrate)


def distribute(address: Address) -> list[str]:
    """Distributes the schema among the nodes of Citus, as far as it is not yet; returns what it has distributed.

    A user's rows are all on one node, and functions of a user run there. Other tables and functions are on every node.
    Raises NotDistributable, psycopg.Error, and Blocked like migrate.
    """
    return _one_at_a_time(address, _distribute)


def _one_at_a_time(address: Address, work: Callable[[Address, list[str]], None]) -> list[str]:
    """Does the work while no other process does its own, and again when it met a lock; returns what was done."""
    # yoyo's own lock is a row, which a killed process leaves behind. This one ends with its transaction, on whatever
    # happens; it works through a transaction-mode pooler too. Who holds it knows that a row of yoyo's is a dead one.
    with connect(address) as guard:
        guard.execute("select pg_advisory_xact_lock(%s)", (LOCK,))
        done: list[str] = []
        for attempt in range(1, ATTEMPTS + 1):
            try:
                work(address, done)
            except (psycopg.errors.LockNotAvailable, exceptions.LockTimeout):
                blocked = f"a lock on a table is held by {_holders(guard)}"
                if attempt == ATTEMPTS:
                    break
                logger.warning(
                    "waiting, and trying again in %d s (%d of %d): %s", PAUSE_SECONDS, attempt, ATTEMPTS, blocked
                )
                time.sleep(PAUSE_SECONDS)
            else:
                return done
        raise Blocked(f"Not all is done, {blocked}. End that transaction, and run it again")


def _migrate(address: Address, applied: list[str]) -> None:
    _prepare_schema(address)
    _apply(address, applied)
    if _install_functions(address):
        applied.append("functions")
    with connect(address) as connection:
        has_citus = connection.execute("select to_regclass('pg_dist_partition') is not null").fetchone() == (True,)
        query = "select from pg_dist_partition where logicalrelid = 'tasks.account'::regclass"
        is_distributed = has_citus and connection.execute(query).fetchone() is not None
    if is_distributed:
        new: list[str] = []
        _distribute(address, new)
        applied += [f"distribution of {name}" for name in new]


def _prepare_schema(address: Address) -> None:
    """Makes the schema `tasks`, and moves into it what an earlier version has left elsewhere."""
    with connect(address) as connection:
        connection.execute(LIMITS)
        try:
            connection.execute((SQL / "schema" / "prepare.sql").read_bytes())
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.RaiseException) as error:
            raise type(error)(
                error.diag.message_primary or ""
            ) from None  # where in the file is of no use to an operator


def _apply(address: Address, applied: list[str]) -> None:
    """Applies what is not applied yet; adds the names one by one."""
    with backend(address) as database:
        database.break_lock()
        pending = database.to_apply(yoyo.read_migrations(str(FOLDER)))
        with database.lock():
            for migration in pending:
                database.apply_one(migration)
                applied.append(migration.id)


def _install_functions(address: Address) -> bool:
    """Creates or replaces the functions, in one transaction, unless the latest that were installed are these.

    Those with another signature stay: an earlier version of the service, which still runs, may call them. A call must
    never fit both: the new one has no defaults, and calls give all arguments.
    """
    with connect(address) as connection:
        connection.execute(LIMITS)
        latest = connection.execute("select hash from tasks.installed_functions order by installed_at desc limit 1")
        if latest.fetchone() == (known_functions(),):
            return False
        connection.execute(_functions())
        connection.execute(
            "insert into tasks.installed_functions values (%s)"
            " on conflict (hash) do update set installed_at = excluded.installed_at",
            (known_functions(),),
        )
    return True


def _distribute(address: Address, done: list[str]) -> None:
    """Distributes what is not, in one transaction."""
    with connect(address) as connection:
        connection.execute(LIMITS)
        for query, why in PRECONDITIONS.items():
            if connection.execute(query).fetchone() is None:
                raise NotDistributable(why)
        distributed: list[str] = []
        tables = connection.execute(TABLES).fetchall()
        is_first = ("tasks.task", True) in tables
        if is_first:
            connection.execute((SQL / "schema" / "distribute.sql").read_bytes())
        for name, is_user_s in tables:
            if is_user_s:
                together = "none" if name == "tasks.account" else "tasks.account"
                connection.execute(
                    "select create_distributed_table(%s, 'user_id', colocate_with => %s)", (name, together)
                )
            else:
                connection.execute("select create_reference_table(%s)", (name,))
            # the rows are on the nodes now, and still here, where nobody sees them
            connection.execute("select truncate_local_data_after_distributing_table(%s)", (name,))
            distributed.append(name)
        for name, is_user_s in connection.execute(FUNCTIONS).fetchall():
            if is_user_s:
                connection.execute(
                    "select create_distributed_function(%s, 'p_user', colocate_with => 'tasks.account')", (name,)
                )
            else:
                connection.execute("select create_distributed_function(%s)", (name,))
            distributed.append(name)
        if is_first:
            connection.execute((SQL / "schema" / "distributed.sql").read_bytes())
    done += distributed


def _holders(guard: psycopg.Connection[tuple[Any, ...]]) -> str:
    guard.execute("select pg_stat_clear_snapshot()")  # else a transaction sees what it saw at its first look
    found = guard.execute(HOLDERS).fetchall()
    return (
        " or ".join(
            f"pid {pid} ({application}, {state}, open for {seconds} s)" for pid, application, state, seconds in found
        )
        or "a session that has just ended or cannot be seen"
    )
