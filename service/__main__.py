"""python -m service: serve (the default), migrate, purge, token, psql."""

import argparse
import asyncio
import logging
import multiprocessing
import multiprocessing.process
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import jwt
import psycopg
import uvicorn
from starlette.applications import Starlette
from uvicorn.supervisors import Multiprocess

from service import embedded, log
from service.address import Address, parse_address
from service.app import create_app
from service.batches import Batches
from service.database import Pool, Unavailable
from service.protocol import Protocol
from service.psql import INSTALL, NoPsql, Psql, best_psql
from service.purge import Purged, purge
from service.schema import Blocked, migrate
from service.settings import Settings, SettingsError, load

TOKEN_HOURS = 12
TRASH_DAYS = 30  # what DELETE says of the trash
MOST_DAYS = 36_500  # a hundred years: what goes further is a mistake
SHUTDOWN_SECONDS = 5  # for the requests that have begun; the pool and the database take the rest of ten
SERVER_OPTIONS: dict[str, Any] = {  # uvicorn's; the benchmark's applications run under the same
    "loop": "uvloop",
    "http": Protocol,
    "ws": "none",
    "log_config": None,
    "access_log": False,
    "proxy_headers": False,  # the service reads them itself, and only where there are any
    "server_header": False,
    "timeout_graceful_shutdown": SHUTDOWN_SECONDS,
}
DEMO_USER = "demo"
PASSWORDLESS = "\nDATABASE_URL has no password; PGPASSWORD and ~/.pgpass are not read"
PSQL_LOST = 2  # psql's exit status when the connection failed or went away

_log = logging.getLogger(__name__)


class Failure(Exception):
    """Why a command cannot do its work; printed as it is."""


def main() -> None:
    """Runs the command; exits with 0, or with 1 and a message on standard error."""
    # Ctrl+C and SIGTERM end the process in order: `with` blocks are left, and the exit status is 0.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    # A terminal that is closed ends it, too; uvicorn knows nothing of that signal.
    signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    arguments = _parser().parse_args()
    try:
        settings = load()
        sys.exit(arguments.run(settings, arguments))
    except SettingsError as error:
        sys.exit(f"The settings are not right (environment or .env):\n{_indented(str(error))}")
    except (embedded.Unusable, Failure, Blocked, NoPsql) as error:
        sys.exit(str(error))


def application() -> Starlette:
    """What uvicorn calls in each worker."""
    settings = load()
    log.set_up(settings.log_level, settings.log_format)
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=[parent], daemon=True).start()
    return create_app(settings)


def serve(settings: Settings, arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or Ctrl+C."""
    log.set_up(settings.log_level, settings.log_format)
    with _database(settings) as address, _listening_socket(settings) as listener:
        if settings.database_url is None:
            migrate(address)
        config = uvicorn.Config(
            "service.__main__:application",
            factory=True,
            workers=settings.web_concurrency,
            timeout_keep_alive=settings.keep_alive,
            **SERVER_OPTIONS,
        )
        print(_welcome(settings, listener), flush=True)
        if settings.web_concurrency > 1:
            Multiprocess(config, sockets=[listener]).run()
        else:
            uvicorn.Server(config).run(sockets=[listener])
    return 0


def run_migrate(settings: Settings, arguments: argparse.Namespace) -> int:
    """Applies the migrations that are not applied yet, and says which."""
    with _database(settings) as address:
        applied = migrate(address)
    print("\n".join(f"applied {name}" for name in applied) or "nothing to apply: the schema is current")
    return 0


def run_purge(settings: Settings, arguments: argparse.Namespace) -> int:
    """Erases old trash and old keys of retries, and says how many."""
    log.set_up(settings.log_level, settings.log_format)
    with _database(settings) as address:
        try:
            purged = asyncio.run(_purge(settings, address, arguments.days))
        except Unavailable as error:
            raise Failure(f"The database {address} does not answer: {error}") from None
    print(
        f"erased {_counted(purged.tasks, 'task')} of {_counted(purged.users, 'user')}"
        f" and {_counted(purged.keys, 'retry key')}"
    )
    return 0


def run_token(settings: Settings, arguments: argparse.Namespace) -> int:
    """Prints a token for the user."""
    print(_token(settings, arguments.user))
    return 0


def run_psql(settings: Settings, arguments: argparse.Namespace) -> int:
    """Runs psql on the service's database; returns its exit status."""
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl+C is for psql, which cancels its query
    with _database(settings) as address:
        psql = Psql(embedded.PSQL, (), False) if settings.database_url is None else best_psql(address, embedded.PSQL)
        # the password goes through the environment: a command line is there for every user of the machine to read
        status = subprocess.call([psql.path, *arguments.arguments], env=os.environ | address.for_psql())  # noqa: S603
    if status == PSQL_LOST and address.may_need_tls and not psql.has_tls:
        print(f"{psql.path} has no TLS. If that is what the server misses, {INSTALL}", file=sys.stderr)
    return status


async def _purge(settings: Settings, address: Address, days: int) -> Purged:
    db = Batches(Pool(address, 1, 1, settings.db_statement_cache))
    await db.open()
    try:
        return await purge(db, days)
    finally:
        await db.close()


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _days(text: str) -> int:
    """Returns the number of days; raises what argparse makes a message of."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MOST_DAYS)) and int(text) <= MOST_DAYS):
        raise argparse.ArgumentTypeError(f"a whole number from 0 to {MOST_DAYS}, not {text!r}")
    return int(text)


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    """Ends this worker once its parent is gone, even one that was killed and could not tell."""
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="The task service. Its settings are environment variables, or lines in .env; the README lists them."
        " Without DATABASE_URL it uses a PostgreSQL of its own, in .data/.",
    )
    commands = parser.add_subparsers(title="commands", metavar="")
    parser.set_defaults(run=serve)
    commands.add_parser("serve", help="answer requests (the default)").set_defaults(run=serve)
    commands.add_parser("migrate", help="bring the database's tables up to date").set_defaults(run=run_migrate)
    purge_command = commands.add_parser("purge", help="erase what has been in the trash for long, and old retry keys")
    days = f"how long a task stays in the trash ({TRASH_DAYS})"
    purge_command.add_argument("--days", type=_days, default=TRASH_DAYS, help=days)
    purge_command.set_defaults(run=run_purge)
    token = commands.add_parser("token", help="print a token to try the API with")
    token.add_argument("user", help="the user's id, as it stands in the path: /api/USER/tasks")
    token.set_defaults(run=run_token)
    psql = commands.add_parser("psql", help="open psql on the service's database", add_help=False, prefix_chars="\0")
    psql.add_argument("arguments", nargs="*", help="psql's own arguments")
    psql.set_defaults(run=run_psql)
    return parser


@contextmanager
def _database(settings: Settings) -> Iterator[Address]:
    """Yields the database's address, and says once what of DATABASE_URL is not kept. Raises Failure when it refuses."""
    with ExitStack() as stack:
        if (address := settings.database_url) is None:
            address = parse_address(stack.enter_context(embedded.running()))
        if address.ignored:
            _log.warning("DATABASE_URL has options of other tools, which are ignored: %s", ", ".join(address.ignored))
        if address.options.get("channel_binding") == "require":
            _log.warning(
                "channel_binding=require holds for migrate and psql; the pool's asyncpg knows no channel binding"
            )
        try:
            yield address
        except psycopg.Error as error:
            hint = PASSWORDLESS if address.password is None and "no password" in str(error) else ""
            raise Failure(f"The database {address} refuses: {str(error).strip()}{hint}") from None


@contextmanager
def _listening_socket(settings: Settings) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise Failure(
            f"Cannot listen on HOST {settings.host}, PORT {settings.port}: {error.strerror}. "
            "Is it running already? Else set PORT to a free one."
        ) from None
    with listener:
        listener.set_inheritable(True)
        yield listener


def _welcome(settings: Settings, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    python = os.path.relpath(sys.executable) if sys.prefix != sys.base_prefix else "python3"
    lines = [
        f"Serving on {address}",
        f"  docs   {address}/docs",
        f"  psql   {python} -m service psql",
    ]
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
