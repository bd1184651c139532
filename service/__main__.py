"""python -m service: serve (the default), migrate, distribute, purge, undo, erase, renumber, token, psql."""

import argparse
import asyncio
import errno
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NoReturn, TypeVar

import jwt
import psycopg

from service.app import create_app
from service.db import embedded
from service.db.address import Address, parse_address
from service.db.coalescer import Coalescer, waited
from service.db.migrations import Blocked, NotDistributable, connect, distribute, migrate
from service.db.pool import Pool, Unavailable
from service.db.psql import INSTALL, NoPsql, Psql, best_psql
from service.models import BIGGEST_VERSION, USER_ID_LENGTH
from service.queries.accounts import erase_user, renumber
from service.queries.changes import undo_change
from service.queries.purge import HISTORY_DAYS, purge
from service.settings import DatabaseSettings, Settings, SettingsError, load, load_database
from service.web import log, server
from service.web.metrics import Board
from service.web.openapi import service_version

TOKEN_HOURS = 12
TRASH_DAYS = 30  # what DELETE says of the trash
MOST_DAYS = 36_500  # a hundred years: what goes further is a mistake
DEMO_USER = "demo"
PASSWORDLESS = "\nDATABASE_URL has no password; PGPASSWORD and ~/.pgpass are not read"
PROBE_SECONDS = 3
NO_SEARCH_PATH = "The pooler in between keeps no search path: names need their schema, as in tasks.task"
PSQL_LOST = 2  # psql's exit status when the connection failed or went away
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  (not to listen there, but to know when somebody does)
PSQL_HELP = """usage: python -m service psql [ARGUMENT ...]

Opens psql on the service's database: the one of DATABASE_URL, or that in .data/. All arguments are passed on to psql,
as in `python -m service psql -c 'select title from task'`. This is what psql says of them:
"""

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Failure(Exception):
    """Why a command cannot do its work; printed as it is."""


def main() -> None:
    """Runs the command; exits with 0, or with 1 and a message on standard error."""
    server.end_on_signals()
    parser = _parser()
    arguments, others = parser.parse_known_args()
    if others:
        parser.error(f"{others[0]!r} is unknown; settings are environment variables, as in PORT=8001 {parser.prog}")
    try:
        sys.exit(arguments.run(arguments.load(), arguments))
    except SettingsError as error:
        sys.exit(f"The settings are not right (environment or .env):\n{_indented(str(error))}")
    except (embedded.Unusable, server.CannotStart, Failure, Blocked, NotDistributable, NoPsql) as error:
        sys.exit(str(error))


def serve(settings: Settings, arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or Ctrl+C."""
    log.set_up(settings.log_level, settings.log_format)
    with (
        _database(settings) as address,
        _listening_socket(settings, "PORT", settings.port) as listener,
        _metrics(settings) as (board, port),
    ):
        if settings.database_url is None:
            migrate(address)
        print(_welcome(settings, listener, port), flush=True)
        server.run(create_app, settings, listener, board)
    return 0


def run_migrate(settings: DatabaseSettings, arguments: argparse.Namespace) -> int:
    """Applies the migrations that are not applied yet, and says which."""
    with _database(settings) as address:
        applied = migrate(address)
    print("\n".join(f"applied {name}" for name in applied) or "nothing to apply: the schema is current")
    return 0


def run_distribute(settings: DatabaseSettings, arguments: argparse.Namespace) -> int:
    """Distributes among Citus' nodes what is not distributed yet, and says what."""
    with _database(settings) as address:
        done = distribute(address)
    print("\n".join(f"distributed {name}" for name in done) or "nothing to distribute: all of it is")
    return 0


def run_purge(settings: DatabaseSettings, arguments: argparse.Namespace) -> int:
    """Erases old trash, old keys of retries and old history, and says how many."""
    purged = _done(settings, lambda db: purge(db, arguments.days))
    print(
        f"erased {_counted(purged.tasks, 'task')} of {_counted(purged.users, 'user')}"
        f", {_counted(purged.keys, 'retry key')} and {_counted(purged.changes, 'history entry', 'history entries')}"
    )
    return 0


def run_undo(settings: DatabaseSettings, arguments: argparse.Namespace) -> int:
    """Takes back a change of a user's, as the API does, and says what became of it."""
    user, version = arguments.user, arguments.version
    undone = _done(settings, lambda db: undo_change(db, user, version))
    match undone.outcome:
        case "changed":
            tasks = json.loads(undone.tasks or b"[]")
            print(f"undone as change {undone.version}: {', '.join(task['id'] for task in tasks)}")
        case "unchanged":
            print("nothing to undo: everything is as it was before")
        case "conflict":
            conflicts = json.loads(undone.conflicts or b"[]")
            fields = "\n".join(f"  {one['task_id']}: {', '.join(one['fields'])}" for one in conflicts)
            raise Failure(f"Changed since, so nothing is undone:\n{fields}")
        case "not_found":
            raise Failure(f"User {user!r} has no change {version}")
        case _:
            raise Failure("Too old to undo: its history, or one of its tasks, is erased")
    return 0


def run_erase(settings: DatabaseSettings, arguments: argparse.Namespace) -> int:
    """Erases all that the user has, as the API does, and says how much that was."""
    user = arguments.user
    erased = _done(settings, lambda db: erase_user(db, user))
    print(
        f"erased {_counted(erased.tasks, 'task')}, {_counted(erased.keys, 'retry key')}"
        f" and {_counted(erased.changes, 'history entry', 'history entries')} of user {user!r}"
    )
    return 0


def run_renumber(settings: DatabaseSettings, arguments: argparse.Namespace) -> int:
    """Lifts all counters after a backup was restored, and says how many."""
    renumbered = _done(settings, renumber)
    print(f"renumbered {_counted(renumbered, 'user')}")
    return 0


def run_token(settings: Settings, arguments: argparse.Namespace) -> int:
    """Prints a token for the user."""
    print(_token(settings, arguments.user))
    return 0


def run_psql(settings: DatabaseSettings, arguments: argparse.Namespace) -> int:
    """Runs psql on the service's database; returns its exit status."""
    if "--help" in arguments.arguments:
        print(PSQL_HELP, flush=True)
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl+C is for psql, which cancels its query
    with _database(settings) as address:
        psql = Psql(embedded.PSQL, (), False) if settings.database_url is None else best_psql(address, embedded.PSQL)
        # the password goes through the environment: a command line is there for every user of the machine to read
        variables = _in_schema(address).for_psql()
        status = subprocess.call([psql.path, *arguments.arguments], env=os.environ | variables)  # noqa: S603
    if status == PSQL_LOST and address.may_need_tls and not psql.has_tls:
        print(f"{psql.path} has no TLS. If that is what the server misses, {INSTALL}", file=sys.stderr)
    return status


def _in_schema(address: Address) -> Address:
    """Returns the address with the service's schema in the search path; some poolers refuse that, others ignore it."""
    wanted = address.in_schema()
    try:
        with connect(wanted, connect_timeout=PROBE_SECONDS) as connection:
            has_path = connection.execute("select current_setting('search_path') like 'tasks,%'").fetchone() == (True,)
    except psycopg.Error as refusal:
        has_path = str(refusal) == _refusal(address)  # then it is no matter of the path, and psql says it
    if not has_path:
        print(NO_SEARCH_PATH, file=sys.stderr)
    return wanted if has_path else address


def _refusal(address: Address) -> str | None:
    """Returns why a connection cannot be made, None when it can."""
    try:
        connect(address, connect_timeout=PROBE_SECONDS).close()
    except psycopg.Error as error:
        return str(error)
    return None


def _done(settings: DatabaseSettings, work: Callable[[Coalescer], Awaitable[Result]]) -> Result:
    """Does the work in the database; returns its result. Raises Failure when the database does not answer."""
    log.set_up(settings.log_level, settings.log_format)
    with _database(settings) as address:
        try:
            return asyncio.run(_with_database(settings, address, work))
        except Unavailable as error:
            raise Failure(f"The database {address} does not answer: {error}") from None


async def _with_database(
    settings: DatabaseSettings, address: Address, work: Callable[[Coalescer], Awaitable[Result]]
) -> Result:
    db = Coalescer(Pool(address, 1, 1, settings.db_statement_cache))
    await db.open()
    try:
        waited.set([])  # each call of the database notes there how long it took; here nobody asks
        return await work(db)
    finally:
        await db.close()


def _counted(number: int, noun: str, nouns: str = "") -> str:
    return f"{number} {noun if number == 1 else nouns or noun + 's'}"


def _days(text: str) -> int:
    """Returns the number of days; raises what argparse makes a message of."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MOST_DAYS)) and int(text) <= MOST_DAYS):
        raise argparse.ArgumentTypeError(f"a whole number from 0 to {MOST_DAYS}, not {text!r}")
    return int(text)


def _version(text: str) -> int:
    """Returns the number of a change; raises what argparse makes a message of."""
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and 1 <= int(text) <= BIGGEST_VERSION):
        raise argparse.ArgumentTypeError(f"a whole number from 1 to {BIGGEST_VERSION}, not {text!r}")
    return int(text)


def _user(text: str) -> str:
    """Returns the user's id; raises what argparse makes a message of."""
    if not 1 <= len(text) <= USER_ID_LENGTH or re.search("[\ud800-\udfff]", text):  # surrogates: it is not UTF-8
        raise argparse.ArgumentTypeError(f"1 to {USER_ID_LENGTH} characters in UTF-8, not {text!r}")
    return text


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Ends the process with one line in the place of a whole usage."""
        self.exit(2, f"{message}. `{self.prog} --help` says more.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m service",
        description="The task service. Its settings are environment variables, or lines in .env; docs/operations.md"
        " lists them. Without DATABASE_URL it uses a PostgreSQL of its own, in .data/.",
    )
    parser.add_argument("--version", action="version", version=service_version(), help="print the version")
    parser.set_defaults(run=serve, load=load)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, run: Callable[..., int], load: Callable[[], DatabaseSettings], short: str, long: str) -> _Parser:
        command = commands.add_parser(name, help=short, description=long)
        command.set_defaults(run=run, load=load)
        return command

    add(
        "serve",
        serve,
        load,
        "answer requests (the default)",
        "Answers requests until Ctrl+C or SIGTERM. The settings say where (HOST, 127.0.0.1; PORT, 8000), with how many"
        " processes (WEB_CONCURRENCY, 1), on which database (DATABASE_URL; without it one in .data/, whose tables are"
        " brought up to date first) and for whom (BETTER_AUTH_URL or BETTER_AUTH_SECRET, FRONTEND_URL).",
    )
    add(
        "migrate",
        run_migrate,
        load_database,
        "bring the database's tables up to date",
        "Applies the migrations that the database of DATABASE_URL does not have yet, and says which. To be run before a"
        " new version serves; it is safe to repeat, and two at once are safe.",
    )
    add(
        "distribute",
        run_distribute,
        load_database,
        "spread the tables over the nodes of a Citus cluster",
        "Spreads the tables and functions of the migrated database of DATABASE_URL, Citus' coordinator, over its nodes,"
        " and says which. Each user's rows are on one node. It is safe to repeat; `migrate` works before and after it,"
        " and distributes what it adds.",
    )
    purge_command = add(
        "purge",
        run_purge,
        load_database,
        "erase what has been in the trash for long, old retry keys and old history",
        f"Erases for good the tasks that have been in the trash for {TRASH_DAYS} days, the keys of retries"
        f" (Idempotency-Key) that are more than a day old, and the history of more than {HISTORY_DAYS} days. Meant to"
        " be run daily, while the service serves.",
    )
    days = (
        f"how many days a task stays in the trash: 0 to {MOST_DAYS}, {TRASH_DAYS} unless given; keys are kept for a day"
        f", history for {HISTORY_DAYS}"
    )
    purge_command.add_argument("--days", type=_days, default=TRASH_DAYS, help=days)
    undo = add(
        "undo",
        run_undo,
        load_database,
        "take back a change of a user's",
        "Takes back one change, all of it, as a change of its own, as the API's undo does: nothing happens when a"
        " part of it has been changed since. History goes back 30 days; sql/debug/last_changes.sql shows it.",
    )
    undo.add_argument("user", metavar="USER", type=_user, help="the user's id")
    undo.add_argument("version", metavar="VERSION", type=_version, help="the number of the change")
    erase = add(
        "erase",
        run_erase,
        load_database,
        "erase a user: all that the user has",
        "Erases for good all that the user has: tasks, trash, history and keys of retries, as DELETE /api/USER does. It"
        " asks nothing first and cannot be undone. It is safe to repeat, also while the service serves.",
    )
    erase.add_argument("user", metavar="USER", type=_user, help="the user's id")
    add(
        "renumber",
        run_renumber,
        load_database,
        "after a backup was restored: give no number twice",
        "Lifts the counters of all users beyond every number that was given after the backup that you have restored, so"
        " that no client takes an old number for a new one: all of them fetch their tasks anew. To be run before the"
        " service serves again. It is safe to repeat, also while the service serves.",
    )
    token = add(
        "token",
        run_token,
        load,
        "print a token to try the API with",
        f"Prints a JWT that is good for {TOKEN_HOURS} hours, for the header `Authorization: Bearer TOKEN`. It is signed"
        " (HS256) with BETTER_AUTH_SECRET; without DATABASE_URL, with the secret that is kept in .data/ for that.",
    )
    token.add_argument("user", metavar="USER", type=_user, help="the user's id, as in the path: /api/USER/tasks")
    psql = commands.add_parser("psql", help="open psql on the service's database", add_help=False, prefix_chars="\0")
    psql.add_argument("arguments", nargs="*")
    psql.set_defaults(run=run_psql, load=load_database)
    return parser


@contextmanager
def _database(settings: DatabaseSettings) -> Iterator[Address]:
    """Yields the database's address, and says once what of DATABASE_URL is not kept. Raises Failure when it refuses."""
    with ExitStack() as stack:
        if (address := settings.database_url) is None:
            address = parse_address(stack.enter_context(embedded.running()))
        if address.ignored:
            logger.warning("DATABASE_URL has options of other tools, which are ignored: %s", ", ".join(address.ignored))
        if address.options.get("channel_binding") == "require":
            logger.warning(
                "channel_binding=require holds for migrate and psql; the pool's asyncpg knows no channel binding"
            )
        try:
            yield address
        except psycopg.Error as error:
            hint = PASSWORDLESS if address.password is None and "no password" in str(error) else ""
            raise Failure(f"The database {address} refuses: {str(error).strip()}{hint}") from None


@contextmanager
def _listening_socket(settings: Settings, name: str, port: int) -> Iterator[socket.socket]:
    """Yields a socket that listens on the port, which is that setting's. Raises Failure when it cannot be had."""
    host = settings.host.removeprefix("[").removesuffix("]")
    if host == "*":
        host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104  (it is what was asked for)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # `::` is IPv4, too: what containers and platforms expect of it
        listener = socket.create_server((host, port), family=family, backlog=2048, dualstack_ipv6=host == "::")
    except (OSError, UnicodeError) as error:
        raise Failure(_why_not_listening(error, settings.host, name, port)) from None
    with listener:
        yield listener


@contextmanager
def _metrics(settings: Settings) -> Iterator[tuple[Board | None, int | None]]:
    """Yields the board for the metrics, and the port that it is read on; None for both without METRICS_PORT."""
    if settings.metrics_port is None:
        yield None, None
        return
    from service.web.scrapes import answered  # only where there are metrics

    board = Board()
    with _listening_socket(settings, "METRICS_PORT", settings.metrics_port) as listener, answered(board, listener):
        yield board, listener.getsockname()[1]


def _why_not_listening(error: OSError | UnicodeError, host: str, name: str, port: int) -> str:
    match getattr(error, "errno", None):
        case errno.EADDRINUSE:
            return f"Port {port} is taken, perhaps by a service that runs already: {name}={port % 65535 + 1} make run"
        case errno.EACCES:
            return f"{name} {port} is for root alone: take one from 1024 on, as in {name}=8000 make run"
        case errno.EADDRNOTAVAIL:
            return f"HOST {host} is no address of this machine: 127.0.0.1 is for itself, * for all its networks"
        case _:
            return f"Cannot listen on HOST {host}, {name} {port}: {getattr(error, 'strerror', None) or 'it is no host'}"


def _welcome(settings: Settings, listener: socket.socket, metrics_port: int | None) -> str:
    host, port = listener.getsockname()[:2]
    served = address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if host in EVERYWHERE:  # which browsers do not open
        address = f"http://127.0.0.1:{port}"
    python = os.path.relpath(sys.executable) if sys.prefix != sys.base_prefix else "python3"
    lines = [
        f"Serving on {served}",
        f"  docs   {address}/docs",
        f"  psql   {python} -m service psql",
    ]
    if metrics_port is not None:
        lines.append(f"  metrics {address.rpartition(':')[0]}:{metrics_port}/metrics")
    if settings.database_url is None:
        lines += [
            f"  try    curl -i {address}/api/{DEMO_USER}/tasks -H 'Content-Type: application/json' \\",
            f"           -H 'Authorization: Bearer {_token(settings, DEMO_USER)}' \\",
            """           -d '{"title": "Buy milk"}'""",
        ]
    return "\n".join(lines)


def _token(settings: Settings, user: str) -> str:
    if settings.secret is None:
        raise Failure("Without BETTER_AUTH_SECRET only the Better Auth server can make tokens: sign in there")
    now = int(time.time())
    claims: dict[str, str | int] = {"sub": user, "iat": now, "exp": now + TOKEN_HOURS * 3600}
    if settings.jwt_issuer:
        claims["iss"] = settings.jwt_issuer
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience
    return jwt.encode(claims, settings.secret, algorithm="HS256")


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


if __name__ == "__main__":
    main()
