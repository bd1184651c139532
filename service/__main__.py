"""python -m service: serve (the default), migrate, purge, token, psql."""

import argparse
import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl, unquote, urlsplit

import jwt
import psycopg

from service import embedded, log, server
from service.batches import Batches
from service.database import Pool, Unavailable
from service.purge import Purged, purge
from service.schema import migrate
from service.settings import Settings, SettingsError, load

TOKEN_HOURS = 12
TRASH_DAYS = 30  # what DELETE says of the trash
MOST_DAYS = 36_500  # a hundred years: what goes further is a mistake
DEMO_USER = "demo"


class Failure(Exception):
    """Why a command cannot do its work; printed as it is."""


def main() -> None:
    """Runs the command; exits with 0, or with 1 and a message on standard error."""
    server.end_on_signals()
    arguments = _parser().parse_args()
    try:
        settings = load()
        sys.exit(arguments.run(settings, arguments))
    except SettingsError as error:
        sys.exit(f"The settings are not right (environment or .env):\n{_indented(str(error))}")
    except (embedded.Unusable, server.CannotStart, Failure) as error:
        sys.exit(str(error))
    except psycopg.Error as error:
        sys.exit(f"The database refuses: {error}")


def serve(settings: Settings, arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or Ctrl+C."""
    log.set_up(settings.log_level, settings.log_format)
    with _database(settings) as url, _listening_socket(settings) as listener:
        if settings.database_url is None:
            migrate(url)
        print(_welcome(settings, listener), flush=True)
        server.run(settings.web_concurrency, listener)
    return 0


def run_migrate(settings: Settings, arguments: argparse.Namespace) -> int:
    """Applies the migrations that are not applied yet, and says which."""
    with _database(settings) as url:
        applied = migrate(url)
    print("\n".join(f"applied {name}" for name in applied) or "nothing to apply: the schema is current")
    return 0


def run_purge(settings: Settings, arguments: argparse.Namespace) -> int:
    """Erases old trash and old keys of retries, and says how many."""
    log.set_up(settings.log_level, settings.log_format)
    with _database(settings) as url:
        try:
            purged = asyncio.run(_purge(settings, url, arguments.days))
        except Unavailable as error:
            raise Failure(f"The database does not answer: {error}") from None
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
    psql = None if settings.database_url is None else shutil.which("psql")
    with _database(settings) as url:
        # the password goes through the environment: a command line is there for every user of the machine to read
        return subprocess.call([psql or embedded.PSQL, *arguments.arguments], env=os.environ | libpq_environment(url))  # noqa: S603


async def _purge(settings: Settings, url: str, days: int) -> Purged:
    db = Batches(Pool(url, 1, 1, settings.db_statement_cache))
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
def _database(settings: Settings) -> Iterator[str]:
    if settings.database_url is None:
        with embedded.running() as url:
            yield url
    else:
        yield settings.url()


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


def libpq_environment(url: str) -> dict[str, str]:
    """Returns the URL's parts as the variables that psql reads."""
    parts = urlsplit(url)
    found = {
        "PGHOST": parts.hostname,
        "PGPORT": str(parts.port) if parts.port else None,
        "PGUSER": unquote(parts.username or ""),
        "PGPASSWORD": unquote(parts.password or ""),
        "PGDATABASE": unquote(parts.path[1:]),
    }
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
    names |= {"connect_timeout": "PGCONNECT_TIMEOUT", "application_name": "PGAPPNAME"}
    for name, value in parse_qsl(parts.query):
        found[names.get(name, "PG" + name.replace("_", "").upper())] = value
    return {name: value for name, value in found.items() if value}


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


if __name__ == "__main__":
    main()
