"""`python -m service` as a person meets it: what it prints, what signals do to it, and what it leaves behind."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from service.db.address import parse_address
from service.db.migrations import migrate
from tests.conftest import ROOT, SECRET, Served, empty_database, service_environment, serving, wait_until
from tests.docs.pages import blocks
from tests.processes import (
    STOP_SECONDS,
    Client,
    embedded_url,
    external,
    kill,
    own_folder,
    postgres_processes,
    run_service,
    stop,
)

pytestmark = pytest.mark.slow

SHOW_TITLES = "-At -c 'select title from tasks.task'"
NOBODY_LISTENS = "postgresql://me:hush-hush@127.0.0.1:1/tasks"


@pytest.fixture
def folder() -> Iterator[Path]:
    with own_folder() as path:
        yield path


@pytest.fixture(scope="module")
def migrated_folder() -> Iterator[Path]:
    with own_folder() as path:
        assert run_service(path, "migrate").returncode == 0
        yield path


@pytest.fixture
def used_folder(migrated_folder: Path) -> Iterator[Path]:
    """A folder in which a service ran before and has stopped: to start there takes half the time."""
    yield migrated_folder
    kill(postgres_processes(migrated_folder))
    (migrated_folder / ".data" / "postgres" / "postmaster.pid").unlink(missing_ok=True)


def paste(folder: Path, line: str) -> str:
    """Runs the line as a shell in the folder does; returns what it prints."""
    command, environment = ["sh", "-c", line], service_environment()
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=30, check=True)
    return ended.stdout


def accepts(service: Served) -> bool:
    try:
        httpx.get(service.address + "/healthz", timeout=0.5)
    except httpx.HTTPError:
        return False
    return True


# The embedded database ------------------------------------------------------------------------------------------------


def test_what_a_first_run_prints_works_when_pasted(folder: Path) -> None:
    with serving(folder) as service:
        assert service.process.stdout is not None
        docs, psql, *curl = (service.process.stdout.readline() for _ in range(5))
        label, docs = docs.split()
        assert (label, httpx.get(docs).status_code) == ("docs", 200)

        created = paste(folder, "".join(curl).strip().removeprefix("try"))
        assert created.startswith("HTTP/1.1 201 ")
        show = f"{psql.strip().removeprefix('psql')} {SHOW_TITLES}"
        assert paste(folder, show) == "Buy milk\n"
        assert stop(service) == 0
    assert postgres_processes(folder) == []
    assert paste(folder, show) == "Buy milk\n", "psql needs no running service"
    assert postgres_processes(folder) == []

    with serving(folder) as service:
        token = re.findall(r"Bearer ([^']+)", "".join(curl))[0]
        tasks = httpx.get(service.address + "/api/demo/tasks", headers={"Authorization": f"Bearer {token}"}).json()
        assert [task["title"] for task in tasks] == ["Buy milk"], "tasks and tokens outlive a restart"
        assert stop(service, signal.SIGINT) == 0
    assert postgres_processes(folder) == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_lets_a_request_finish_and_stops_everything(used_folder: Path, workers: str) -> None:
    with (
        serving(used_folder, BETTER_AUTH_SECRET=SECRET, WEB_CONCURRENCY=workers) as service,
        ThreadPoolExecutor() as threads,
    ):
        client = Client(service)
        client.create("first")
        with psycopg.connect(embedded_url(used_folder)) as somebody:
            somebody.execute("select from tasks.account where user_id = %s for update", [client.user])
            request = threads.submit(client.create, "second")
            waiting = "select count(*) from pg_locks where not granted"
            wait_until(lambda: somebody.execute(waiting).fetchone() == (1,))

            service.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not accepts(service))
            assert not request.done()
        assert request.result().status_code == 201
        assert service.process.wait(10) == 0
    assert postgres_processes(used_folder) == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_service_can_be_started_again_at_the_same_address(used_folder: Path, workers: str) -> None:
    settings = {"BETTER_AUTH_SECRET": SECRET, "WEB_CONCURRENCY": workers}
    with serving(used_folder, **settings) as service:
        first = Client(service)
        first.create("kept")
        left_behind = psutil.Process(service.process.pid).children(recursive=True)
        service.process.kill()
        service.process.wait()
    assert postgres_processes(used_folder)
    try:
        wait_until(lambda: not accepts(service), seconds=5)
        with serving(used_folder, PORT=str(service.port), **settings) as service:
            assert Client(service, first.user).titles() == ["kept"]
            assert stop(service) == 0
        assert postgres_processes(used_folder) == []
    finally:
        kill([process for process in left_behind if process.is_running()])


@pytest.mark.parametrize("program", ["unrelated", "postgres"])
def test_after_a_power_cut_the_next_start_works(used_folder: Path, tmp_path: Path, program: str) -> None:
    with serving(used_folder, BETTER_AUTH_SECRET=SECRET) as service:
        client = Client(service)
        client.create("kept")
        service.process.kill()
        service.process.wait()
        kill(postgres_processes(used_folder))

    another = tmp_path / program
    another.symlink_to(shutil.which("sleep") or "sleep")
    with subprocess.Popen([another, "60"]) as living:
        pid_file = used_folder / ".data" / "postgres" / "postmaster.pid"
        _, rest = pid_file.read_text().split("\n", 1)
        pid_file.write_text(f"{living.pid}\n{rest}")  # the number is another's now
        try:
            with serving(used_folder, BETTER_AUTH_SECRET=SECRET) as service:
                assert Client(service, client.user).titles() == ["kept"]
                assert stop(service) == 0
            assert living.poll() is None, "nobody else is stopped"
        finally:
            living.kill()
    assert postgres_processes(used_folder) == []


def test_two_services_in_one_folder_share_its_database_until_the_last_has_gone(folder: Path) -> None:
    with ExitStack() as stack, ThreadPoolExecutor() as threads:
        starting = [serving(folder, BETTER_AUTH_SECRET=SECRET) for _ in range(2)]
        first, second = threads.map(stack.enter_context, starting)
        client = Client(first)
        client.create("shared")
        assert stop(first) == 0
        assert Client(second, client.user).titles() == ["shared"]
        assert stop(second) == 0
    assert postgres_processes(folder) == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_closing_the_terminal_stops_everything_too(used_folder: Path, workers: str) -> None:
    with serving(used_folder, WEB_CONCURRENCY=workers) as service:
        assert stop(service, signal.SIGHUP) == 0
    assert postgres_processes(used_folder) == []


def test_a_start_can_be_interrupted_and_the_next_one_works(folder: Path) -> None:
    for half_way in (".data", ".data/postgres.unfinished/PG_VERSION", ".data/postgres/postmaster.pid"):
        if (folder / half_way).is_file():
            (folder / half_way).unlink()  # left by the start before: this one is to come so far by itself
        starting = subprocess.Popen([sys.executable, "-m", "service"], cwd=folder, env=service_environment(PORT="0"))
        while not (folder / half_way).exists():  # without a pause: the moment is short
            assert starting.poll() is None
        starting.send_signal(signal.SIGTERM)
        assert starting.wait(10) == 0
        assert postgres_processes(folder) == [], half_way


# The commands ---------------------------------------------------------------------------------------------------------


def test_a_new_database_knows_all_letters_whatever_the_locale(folder: Path) -> None:
    with serving(folder, LC_ALL="C", BETTER_AUTH_SECRET=SECRET) as service:
        client = Client(service)
        client.create("ÄRGER im Büro")
        assert len(client.call("GET", "?q=ärg%20BURO").json()) == 1


def test_help_lists_the_commands(folder: Path) -> None:
    ended = run_service(folder, "--help")
    assert ended.returncode == 0
    commands = re.findall(r"^    (\w+)  ", ended.stdout, re.MULTILINE)
    assert commands == ["serve", "migrate", "purge", "undo", "erase", "renumber", "token", "psql"]


@pytest.mark.parametrize(
    ("command", "texts"),
    [
        ("serve", ["HOST, 127.0.0.1", "PORT, 8000", "WEB_CONCURRENCY", "DATABASE_URL", "BETTER_AUTH_URL"]),
        ("migrate", ["DATABASE_URL", "before a new version serves", "safe to repeat"]),
        ("purge", ["30 days", "--days", "keys", "more than a day old", "daily"]),
        ("undo", ["Takes back one change", "USER", "VERSION", "30 days"]),
        ("erase", ["for good", "all that the user has", "USER", "asks nothing", "safe to repeat"]),
        ("renumber", ["restored", "before the service serves again", "safe to repeat"]),
        ("token", ["12 hours", "BETTER_AUTH_SECRET", "/api/USER/tasks", "Authorization: Bearer"]),
        ("psql", ["passed on", "psql -c", "-c, --command"]),
    ],
)
def test_each_command_s_help_says_what_a_newcomer_needs(folder: Path, command: str, texts: list[str]) -> None:
    ended = run_service(folder, command, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    for text in texts:
        assert text in " ".join(ended.stdout.split())


def test_version(folder: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert run_service(folder, "--version").stdout == project["version"] + "\n"


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (
            ["serv"],
            ["'serv'", "'serve'", "'migrate'", "'purge'", "'undo'", "'erase'", "'renumber'", "'token'", "'psql'"],
        ),
        (["serve", "--port", "9000"], ["'--port' is unknown", "environment variables, as in PORT=8001 python -m"]),
        (["migrate", "now"], ["'now' is unknown"]),
        (["token"], ["required: USER", "token --help"]),
        (["erase"], ["required: USER", "erase --help"]),
        *(
            ([command, "", *others], ["1 to 255 characters in UTF-8, not ''"])
            for command, *others in (("erase",), ("token",), ("undo", "1"))
        ),
        (["erase", "x" * 256], ["1 to 255 characters", "x" * 256]),
        (["erase", "a\udcff"], ["in UTF-8, not 'a\\udcff'"]),
        (["renumber", "7"], ["'7' is unknown"]),
        (["purge", "--days", "-1"], ["--days"]),
        (["purge", "--days", "36501"], ["--days", "from 0 to 36500, not '36501'", "purge --help"]),
    ],
    ids=str,
)
def test_wrong_arguments_are_named_in_one_line(folder: Path, arguments: list[str], texts: list[str]) -> None:
    ended = run_service(folder, *arguments)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    for text in texts:
        assert text in ended.stderr


def test_a_token_is_accepted_by_the_service(folder: Path, served: Served, database_url: str) -> None:
    ended = run_service(folder, "token", "ünal smith", **external(database_url))
    assert ended.returncode == 0, ended.stderr
    headers = {"Authorization": f"Bearer {ended.stdout.strip()}"}
    assert httpx.get(served.address + "/api/ünal smith/tasks", headers=headers).json() == []
    assert httpx.get(served.address + "/api/other/tasks", headers=headers).status_code == 401


@pytest.mark.parametrize(
    ("arguments", "status", "printed"),
    [
        (["-At", "-c", "select 'x' where current_database() = 'postgres'"], 0, "x\n"),
        (["-v", "ON_ERROR_STOP=1", "-f", "wrong.sql"], 3, ""),
        (["-c", "select nonsense"], 1, ""),
    ],
)
def test_psql_gets_its_arguments_and_gives_its_exit_status(
    folder: Path, database_url: str, arguments: list[str], status: int, printed: str
) -> None:
    (folder / "wrong.sql").write_text("select nonsense;")
    ended = run_service(folder, "psql", *arguments, **external(database_url))
    assert (ended.returncode, ended.stdout) == (status, printed), ended.stderr


with_search_path = pytest.mark.not_on("pooler", "there psql says on stderr that names need their schema")


@with_search_path
@pytest.mark.parametrize("options", ["", "&options=-c%20work_mem=5MB%20-c%20search_path%3Dpublic"])
def test_psql_finds_the_tables_without_their_schema(folder: Path, database_url: str, options: str) -> None:
    commands = ("-c", r"\dt", "-c", "select count(*) >= 0 from task", "-c", "show work_mem")
    ended = run_service(folder, "psql", "-At", *commands, **external(database_url + options))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "tasks|task|table|postgres\n" in ended.stdout
    assert ended.stdout.endswith("t\n5MB\n" if options else "t\n4MB\n")


@pytest.mark.not_on("older", "event triggers at login came with PostgreSQL 17")
@pytest.mark.parametrize(
    "what", ["raise 'unsupported startup parameter: options'", "perform set_config('search_path', 'public', false)"]
)
def test_psql_opens_where_the_search_path_is_not_kept_and_says_so(folder: Path, database_url: str, what: str) -> None:
    """PostgreSQL does here what a pooler does that refuses the startup parameter, or ignores it."""
    with empty_database(database_url) as url:
        migrate(parse_address(url))
        with psycopg.connect(url) as admin:
            admin.execute(
                "create function pooler() returns event_trigger language plpgsql as $$ begin"
                f" if current_setting('search_path') like '%tasks%' then {what}; end if; end $$".encode()
            )
            admin.execute("create event trigger pooler on login execute function pooler()")
        ended = run_service(folder, "psql", "-At", "-c", "select count(*) from tasks.task", **external(url))
        assert (ended.returncode, ended.stdout) == (0, "0\n")
        assert ended.stderr == "The pooler in between keeps no search path: names need their schema, as in tasks.task\n"


def test_psql_itself_says_that_nobody_listens(folder: Path) -> None:
    ended = run_service(folder, "psql", "-c", "select 1", **external(NOBODY_LISTENS))
    assert ended.returncode == 2
    assert ended.stderr.startswith("psql: error: connection to server")
    assert "Connection refused" in ended.stderr


@with_search_path
def test_ctrl_c_in_psql_ends_the_query_and_is_no_end_of_psql(folder: Path, database_url: str) -> None:
    command = [sys.executable, "-m", "service", "psql", "-c", "select pg_sleep(20)"]
    psql = subprocess.Popen(
        command,
        cwd=folder,
        env=service_environment(**external(database_url)),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # as in a terminal, where Ctrl+C goes to all of a command's processes
    )
    running = "select count(*) from pg_stat_activity where query = 'select pg_sleep(20)' and state = 'active'"
    with psycopg.connect(database_url, autocommit=True) as somebody:
        wait_until(lambda: somebody.execute(running).fetchone() == (1,))
    os.killpg(psql.pid, signal.SIGINT)
    _, said = psql.communicate(timeout=10)
    assert (psql.returncode, said) == (1, "Cancel request sent\nERROR:  canceling statement due to user request\n")


def test_migrate_says_what_it_applied_also_when_two_run_at_once(folder: Path, database_url: str) -> None:
    with empty_database(database_url) as url, ThreadPoolExecutor() as threads:
        both = list(threads.map(lambda _: run_service(folder, "migrate", **external(url)), range(2)))
        assert [ended.returncode for ended in both] == [0, 0], both
        applied, nothing = sorted(ended.stdout for ended in both)
        assert applied.startswith("applied ")
        assert nothing == "nothing to apply: the schema is current\n"


def test_migrate_works_after_one_that_was_killed(folder: Path, database_url: str) -> None:
    with empty_database(database_url) as url:
        applied = run_service(folder, "migrate", **external(url)).stdout
        with psycopg.connect(url) as somebody:
            somebody.execute("alter schema tasks rename to killed")
            somebody.execute("create schema tasks")
            for table in ("_yoyo_migration", "_yoyo_log", "_yoyo_version", "yoyo_lock"):
                somebody.execute(f"alter table killed.{table} set schema tasks".encode())
            somebody.execute("delete from tasks._yoyo_migration")
            somebody.execute("insert into tasks.yoyo_lock (locked, ctime, pid) values (1, now(), 1)")
        ended = run_service(folder, "migrate", **external(url))
        assert (ended.returncode, ended.stdout) == (0, applied), ended.stderr


def test_migrate_takes_a_url_without_a_host_between_its_slashes(folder: Path, database_url: str) -> None:
    address = parse_address(database_url)
    host = address.hosts[0]
    url = f"postgresql:///{address.database}?user={address.user}&host={host.name}&port={host.port}&sslmode=prefer"
    ended = run_service(folder, "migrate", **external(url))
    assert (ended.returncode, ended.stderr) == (0, "")


def test_serve_takes_a_url_with_options_that_only_libpq_knows(folder: Path, database_url: str) -> None:
    with serving(folder, **external(f"{database_url}&keepalives=1")) as service:
        assert httpx.get(service.address + "/readyz").status_code == 200


# The settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "texts"),
    [
        ({"DATABASE_URL": NOBODY_LISTENS}, ["BETTER_AUTH_SECRET", "is required with DATABASE_URL"]),
        ({"BETTER_AUTH_SECRET": "hush-hush"}, ["BETTER_AUTH_SECRET", "has 9 characters and needs at least 32"]),
        (external("mysql://me:hush-hush@127.0.0.1/x"), ["DATABASE_URL: must begin with postgresql://"]),
        ({"PORT": "70000"}, ["PORT: ", "65535"]),
        ({"DB_POOL_MIN": "20"}, ["DB_POOL_MAX: is 15, below DB_POOL_MIN, which is 20"]),
        (
            {"PORT": "abc", "FRONTEND_URL": "*", "LOG_LEVEL": "loud"},
            ["PORT: ", "FRONTEND_URL: '*' is no origin", "LOG_LEVEL: "],
        ),
        (
            {"PORT": "abc", "DB_POOL_MIN": "20", "BETTER_AUTH_SECRET": "hush-hush"},
            ["PORT", "DB_POOL_MIN", "BETTER_AUTH_SECRET"],
        ),
    ],
    ids=str,
)
def test_wrong_settings_are_named(folder: Path, settings: dict[str, str], texts: list[str]) -> None:
    said = refused(folder, **settings)
    for text in texts:
        assert text in said
    assert list(folder.iterdir()) == [], "nothing was begun"


def refused(folder: Path, *arguments: str, **settings: str) -> str:
    """Returns what a command that cannot work says of it: on standard error only, for people, and no secret."""
    ended = run_service(folder, *arguments, **settings)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    assert "hush-hush" not in ended.stderr
    return ended.stderr


def test_a_taken_port_is_named(folder: Path, served: Served, database_url: str) -> None:
    said = refused(folder, PORT=str(served.port), **external(database_url))
    assert said.startswith(f"Port {served.port} is taken")
    assert said.endswith(f"PORT={served.port + 1} make run\n")


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("192.0.2.1", "HOST 192.0.2.1 is no address of this machine"),
        ("a..b", "Cannot listen on HOST a..b"),
        ("http://127.0.0.1", "Cannot listen on HOST http://127.0.0.1"),
    ],
)
def test_a_host_that_is_none_is_named(folder: Path, database_url: str, host: str, said: str) -> None:
    text = refused(folder, HOST=host, PORT="0", **external(database_url))
    assert text.startswith(said)
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("::", ["127.0.0.1", "::1"]),
        ("[::]", ["127.0.0.1", "::1"]),
        ("*", ["127.0.0.1", "::1"]),
        ("0.0.0.0", ["127.0.0.1"]),  # noqa: S104
        ("::1", ["::1"]),
        ("localhost", ["127.0.0.1"]),
        ("", ["127.0.0.1"]),
    ],
)
def test_where_it_listens(folder: Path, database_url: str, host: str, reached: list[str]) -> None:
    with serving(folder, HOST=host, **external(database_url)) as service:
        assert service.process.stdout is not None
        docs = service.process.stdout.readline().split()[-1]
        assert httpx.get(docs).status_code == 200
        for address in ("127.0.0.1", "::1"):
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as client:
                assert (client.connect_ex((address, service.port)) == 0) == (address in reached)


@pytest.mark.parametrize("command", ["migrate", pytest.param("psql", marks=with_search_path), "purge", "renumber"])
def test_commands_for_the_database_need_no_other_settings(folder: Path, database_url: str, command: str) -> None:
    wrong = {"BETTER_AUTH_SECRET": "short", "PORT": "x", "FRONTEND_URL": "*"}
    for settings in ({}, wrong):
        arguments = [command, "-c", "select 1"] if command == "psql" else [command]
        ended = run_service(folder, *arguments, DATABASE_URL=database_url, **settings)
        assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("command", ["serve", "token"])
def test_commands_that_need_a_secret_ask_for_it(folder: Path, database_url: str, command: str) -> None:
    arguments = [command, "me"] if command == "token" else [command]
    assert "BETTER_AUTH_SECRET: is required with DATABASE_URL" in refused(folder, *arguments, DATABASE_URL=database_url)


@pytest.mark.parametrize("command", ["serve", "token"])
def test_a_data_folder_that_cannot_be_written_is_named(folder: Path, command: str) -> None:
    (folder / ".data").touch()  # a file: for root, who may run this, no folder is read-only
    arguments = [command, "me"] if command == "token" else [command]
    assert f"The data folder {folder / '.data'} is not writable" in refused(folder, *arguments)


def test_without_a_secret_there_is_no_token(folder: Path) -> None:
    said = refused(folder, "token", "me", DATABASE_URL=NOBODY_LISTENS, BETTER_AUTH_URL="http://127.0.0.1:9")
    assert "Without BETTER_AUTH_SECRET only the Better Auth server can make tokens" in said


def test_migrate_says_that_nobody_listens(folder: Path) -> None:
    assert "Connection refused" in refused(folder, "migrate", **external(NOBODY_LISTENS))


def test_serve_starts_without_its_database_and_says_so(folder: Path) -> None:
    with serving(folder, **external(NOBODY_LISTENS)) as service:
        assert httpx.get(service.address + "/healthz").status_code == 200
        response = Client(service).call("GET")
        assert (response.status_code, response.json()) == (503, {"detail": "Service unavailable"})
        assert int(response.headers["Retry-After"]) > 0
        ready = httpx.get(service.address + "/readyz")
        assert (ready.status_code, ready.json()["detail"][:9]) == (503, "database:")
        assert "the database is away" in service.log.read_text()
        assert "hush-hush" not in service.log.read_text()
        assert stop(service) == 0


# The Procfile ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(folder: Path) -> Path:
    """A folder with the Procfile, and what `make run` and `pip install honcho` leave in .venv."""
    shutil.copy(ROOT / "Procfile", folder)
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "activate").write_text(f'PATH="{binaries}:$PATH"\nexport PATH\n')
    for name in ("python", "honcho", "pip"):
        module = "" if name == "python" else f"-m {name} "
        (binaries / name).write_text(f'#!/bin/sh\nexec {sys.executable} {module}"$@"\n')
        (binaries / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_procfile_runs_in_a_fresh_shell_as_the_documents_say(checkout: Path, number: signal.Signals) -> None:
    commands = next(block.text for block in blocks("docs/operations.md", "sh") if "honcho" in block.text)
    assert "pip install honcho\n" in commands
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shell = subprocess.Popen(
        ["sh", "-c", commands.replace("pip install honcho\n", "")],
        cwd=checkout,
        env=service_environment(PORT=str(port)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200, seconds=60)
        os.killpg(
            shell.pid, number
        )  # honcho is all of a terminal's foreground; its processes have sessions of their own
        said = shell.communicate(timeout=2 * STOP_SECONDS)[0]  # of two processes, one after the other
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
    assert "applied 0001" in said
    assert re.search(r"release\.1 stopped \(rc=0\)", said)
    assert "Serving on http://0.0.0.0:" in said
    assert re.search(r"web\.1 stopped \(rc=0\)", said), said
    assert postgres_processes(checkout) == []


# Make -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def makefile(tmp_path: Path) -> Path:
    """A folder with the project's Makefile, its lists of dependencies, and a Python that does nothing."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    names = ["requirements-embedded.txt", "requirements-dev.txt"]
    for tests in ("better_auth", "generators"):
        names += [f"tests/{tests}/package-lock.json", f"tests/{tests}/node_modules/.package-lock.json"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").symlink_to("/bin/true")
    return tmp_path


def make(folder: Path, target: str, python: str = "true") -> str:
    command = ["make", target, f"PYTHON={python}"]
    # without what `make test` tells the makes below it
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    return ended.stdout + ended.stderr


def test_make_says_what_takes_long(makefile: Path) -> None:
    assert make(makefile, "run") == "Installing the dependencies into .venv, half a minute or so …\n"
    assert make(makefile, "run") == "", "once"
    said = make(makefile, "test")
    assert "Installing what tests and checks need into .venv" in said
    assert "All tests: that takes several minutes." in said


def test_make_says_which_python_it_needs(makefile: Path) -> None:
    (makefile / ".venv" / "bin" / "python").unlink()
    old = makefile / "python3.9"
    program = "import sys; sys.version_info = (3, 9); exec(sys.argv[1])"
    old.write_text(f"""#!/bin/sh\nexec {sys.executable} -c '{program}' "$2"\n""")
    old.chmod(0o755)
    assert "Python 3.11 or newer is needed" in make(makefile, "run", str(old))


def test_make_keeps_an_environment_that_works(makefile: Path) -> None:
    """Another Python on the PATH, mixed into it when the dependencies change, would break it."""
    assert "Error" not in make(makefile, "run", "false")
    (makefile / "requirements-embedded.txt").touch()
    assert "Error" not in make(makefile, "run", "false")
    (makefile / ".venv" / "bin" / "python").unlink()
    (makefile / "requirements-embedded.txt").touch()
    assert "Error" in make(makefile, "run", "false"), "one that does not is made anew"


# The log --------------------------------------------------------------------------------------------------------------


LINE = re.compile(
    r"20\S+Z (INFO|WARNING) (GET|POST) (-|/\S+) (?P<status>\d{3}) [\d.]+ms db=[\d.]+ms"
    r' user=(?P<user>-|".+") id=(?P<request_id>\S+)'
)


def logged(folder: Path, database_url: str, **settings: str) -> list[str]:
    """Serves a few requests, good and bad; returns the log's lines, once it is seen that they hold nobody's text."""
    with serving(folder, **external(database_url), **settings) as service:
        client = Client(service, "two\nlines")
        requests: list[tuple[str, dict[str, Any]]] = [
            ("201", {"json": {"title": "SECRET-TEXT"}}),
            ("422", {"json": {"title": "x", "status": "SECRET-TEXT"}}),
            ("401", {"json": {"title": "x"}, "headers": {"Authorization": "Bearer SECRET-TEXT"}}),
        ]
        for status, options in requests:
            headers = {"X-Request-Id": f"request-{status}"} | options.pop("headers", {})
            assert client.call("POST", headers=headers, **options).status_code == int(status)
        assert stop(service) == 0
        log = service.log.read_text()
    for secret in ("SECRET-TEXT", client.headers["Authorization"].split(".")[1], SECRET):
        assert secret not in log
    lines = log.splitlines()
    causes = [line for line in lines if "token" in line]
    assert all("request-401" in line for line in causes), "why a token was refused, once"
    assert len(causes) == (settings.get("LOG_LEVEL") != "warning")
    return [line for line in lines if line not in causes]


def test_the_log_as_text_has_one_line_a_request(folder: Path, database_url: str) -> None:
    lines = [LINE.fullmatch(line) for line in logged(folder, database_url)]
    assert None not in lines
    found = [line.group("request_id", "status", "user") for line in lines if line and line["status"] != "200"]
    user = r'"two\nlines"'
    assert found == [("request-201", "201", user), ("request-422", "422", user), ("request-401", "401", "-")]


@pytest.mark.parametrize(("level", "form"), [("info", "json"), ("INFO", "JSON"), (" Info ", "Json")])
def test_the_log_as_json_has_one_object_a_request(folder: Path, database_url: str, level: str, form: str) -> None:
    lines = [json.loads(line) for line in logged(folder, database_url, LOG_LEVEL=level, LOG_FORMAT=form)]
    created, invalid, refused = [line for line in lines if line["status"] != 200]
    for line in lines:
        assert line["total_ms"] >= line["database_ms"] >= 0
        assert line["level"] == "info"
    assert created["database_ms"] > 0
    common = {"method": "POST", "route": "/api/{user_id}/tasks", "user": "two\nlines"}
    assert created.items() >= (common | {"status": 201, "request_id": "request-201"}).items()
    assert invalid.items() >= (common | {"status": 422, "request_id": "request-422"}).items()
    assert refused.items() >= (common | {"status": 401, "request_id": "request-401", "user": None}).items()


def test_the_log_of_warnings_has_no_line_for_a_request(folder: Path, database_url: str) -> None:
    assert logged(folder, database_url, LOG_LEVEL="warning") == []
