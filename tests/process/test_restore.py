"""After a disaster: a base backup, WAL replayed to a point in time, and no number that is given twice.

Also what those who wait see when a counter falls, which it does then.
"""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from service.db import embedded
from service.db.address import parse_address
from service.db.migrations import migrate
from tests.conftest import Served, empty_database, serving, wait_until
from tests.docs.pages import blocks
from tests.feed import Stream, apply, counter_in, tasks_in
from tests.processes import Client, Postgres, external, own_folder, pgexec, run_service

pytestmark = pytest.mark.slow

GONE = {"detail": "Start again from since=0"}
ARCHIVE = {
    "wal_level": "replica",
    "archive_mode": "on",
    "archive_command": "test ! -f {archive}/%f && cp %p {archive}/%f",
}
RECOVERY = """
restore_command = 'cp {archive}/%f "%p"'
recovery_target_name = 'before the disaster'
recovery_target_action = 'promote'
"""


def execute(url: str, query: str, *arguments: Any) -> Any:
    """Returns the first value of the query, if it has one."""
    with psycopg.connect(url, autocommit=True) as connection:
        done = connection.execute(query.encode(), arguments or None)
        row = done.fetchone() if done.description else None
        return row and row[0]


def opened(service: Served, client: Client, query: str = "") -> Stream:
    """Returns a stream, behind the event by which it begins."""
    stream = Stream(service.port, client.user, client.headers, query)
    assert stream.status == 200
    stream.page()
    return stream


def ends_with_reset(stream: Stream) -> bool:
    events = stream.end()
    stream.close()
    return [event.name for event in events][-1:] == ["reset"]


def ask(client: Client, path: str, **query: Any) -> httpx.Response:
    url = client.tasks.removesuffix("tasks") + path
    return httpx.get(url, headers=client.headers, params=query, timeout=20)


def undo(client: Client, version: int) -> int:
    url = client.tasks.removesuffix("tasks") + "undo"
    return httpx.post(url, headers=client.headers, json={"version": version}).status_code


def created(client: Client, title: str) -> dict[str, Any]:
    response = client.create(title)
    assert response.status_code == 201, response.text
    task: dict[str, Any] = response.json()
    return task


# The restore ----------------------------------------------------------------------------------------------------------


class Archived(Postgres):
    """A PostgreSQL that archives its WAL, and can be taken back to a moment."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.archive, self.backup = folder / "archive", folder / "backup"
        for made in (self.archive, self.backup):
            made.mkdir(0o700)
            self._give(made)
        for name, value in ARCHIVE.items():
            execute(self.url, f"alter system set {name} = '{value.format(archive=self.archive)}'")
        self.stop()
        self.start()

    def _give(self, path: Path) -> None:
        if self._server.system_user is not None:  # for root
            shutil.chown(path, self._server.system_user)

    def back_up(self) -> None:
        """Makes a base backup, without the WAL."""
        arguments = ("-D", str(self.backup), "-X", "none", "--checkpoint=fast", "-d", self.url, "--no-manifest")
        pgexec("pg_basebackup", arguments, bin_path=self._server.bin_path, user=self._server.system_user)

    def lose(self) -> None:
        """Loses the server and its data; only the backup and the archive are left."""
        last = execute(self.url, "select pg_walfile_name(pg_current_wal_lsn())")
        execute(self.url, "select pg_switch_wal()")
        wait_until((self.archive / last).exists)
        self.stop()
        shutil.rmtree(self._folder)

    def restore(self) -> None:
        """Puts the backup in its place, and has PostgreSQL replay the archive up to the named moment."""
        self.backup.rename(self._folder)
        with (self._folder / "postgresql.auto.conf").open("a") as settings:
            settings.write(RECOVERY.format(archive=self.archive))
        signal = self._folder / "recovery.signal"
        signal.touch()
        self._give(signal)
        (self._folder / ".s.PGSQL.5432.lock").unlink(missing_ok=True)  # the socket may be in the data folder
        self.start()
        wait_until(lambda: execute(self.url, "select pg_is_in_recovery()") is False)


@pytest.fixture
def postgres() -> Iterator[Archived]:
    if not (embedded.PROGRAMS / "pg_basebackup").exists():
        pytest.skip("the embedded PostgreSQL has no pg_basebackup")
    with own_folder() as folder:
        postgres = Archived(folder)
        migrate(parse_address(postgres.url))
        yield postgres


def test_after_a_restore_to_a_point_in_time_no_number_means_anything_else(tmp_path: Path, postgres: Archived) -> None:
    with serving(tmp_path, **external(postgres.url)) as service:
        client, idle = Client(service), Client(service)
        kept = created(client, "In the backup")
        renamed = client.call("PUT", f"/{kept['id']}", json={"title": "Renamed"}).json()
        created(idle, "Never touched again")
        postgres.back_up()
        replayed = created(client, "In the archive")
        known = ask(client, "changes").json()
        execute(postgres.url, "select pg_create_restore_point('before the disaster')")

        lost = created(client, "Lost")
        stream = opened(service, client)
        changed = client.call("PUT", f"/{kept['id']}", json={"title": "Lost, too"}).json()
        assert [task["id"] for task in stream.page()["tasks"]] == [kept["id"]]
        copy: dict[str, str] = {}
        lost_copy = apply(copy, ask(client, "changes").text)["version"]
        assert lost_copy == changed["version"] == known["version"] + 2
        list_tag = client.call("GET").headers["ETag"]
        postgres.lose()
        assert client.call("GET").status_code == 503
        postgres.restore()
        wait_until(lambda: client.call("GET").status_code == 200)

        # under the service, that is: it finds out that the counter fell
        assert ends_with_reset(stream)
        stream = opened(service, client)
        assert counter_in(postgres.url, client.user) == known["version"]
        ended = run_service(tmp_path, "renumber", **external(postgres.url))
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "renumbered 2 users\n", "")
        assert ends_with_reset(stream)

        for since in (1, kept["version"], known["version"], lost_copy, lost_copy + 1000):
            told = ask(client, "changes", since=since)
            assert (told.status_code, told.json()) == (410, GONE)
        copy = {}
        version = apply(copy, ask(client, "changes", since=0, limit=1).text)["version"]
        assert copy == tasks_in(postgres.url, client.user), "whole, although it is more than asked for"
        assert {kept["id"], replayed["id"]} == copy.keys()
        assert version > lost_copy
        assert ask(client, "changes", since=version).json() == {
            "version": version,
            "has_more": False,
            "tasks": [],
            "erased": [],
        }
        tags = client.call("GET", headers={"If-None-Match": f'{list_tag}, "{known["version"]}"'})
        assert tags.status_code == 200

        # the numbers from before the backup are what they were, those of what is lost are nothing
        assert client.call("GET", f"/{kept['id']}").json() == renamed
        for tag in (lost["version"], changed["version"]):
            stale = client.call("PUT", f"/{kept['id']}", json={"title": "x"}, headers={"If-Match": f'"{tag}"'})
            assert stale.status_code == 412
            assert undo(client, tag) == 410
        assert [entry["version"] for entry in ask(client, "history").json()] == [
            replayed["version"],
            renamed["version"],
            kept["version"],
        ]
        assert undo(client, renamed["version"]) == 200
        again = created(client, "Afterwards")
        assert again["version"] == version + 2
        assert [task["id"] for task in ask(client, "changes", since=version).json()["tasks"]] == [
            kept["id"],
            again["id"],
        ]
        assert counter_in(postgres.url, idle.user) > lost_copy
        assert "Traceback" not in service.log.read_text()


@pytest.mark.not_on("older", "the embedded PostgreSQL's pg_dump is newer, and its dumps are for servers as new")
def test_a_dump_is_restored_as_the_documents_say(tmp_path: Path, database_url: str) -> None:
    found = {block.text.split()[0]: block.text for block in blocks("docs/operations.md", "sh")}
    with empty_database(database_url) as dumped, empty_database(database_url) as restored:
        for url in (dumped, restored):
            migrate(parse_address(url))
        with psycopg.connect(restored) as connection:
            connection.execute("alter schema tasks rename to tasks_lost")
        with serving(tmp_path, **external(dumped)) as service:
            client = Client(service)
            task = created(client, "In the dump")
            for program, url in (("pg_dump", dumped), ("pg_restore", restored)):
                environment = {"DATABASE_URL": url, "PATH": f"{embedded.PROGRAMS}:/usr/bin:/bin"}
                subprocess.run(["sh", "-c", found[program]], cwd=tmp_path, env=environment, check=True)
            lost = created(client, "Lost")
        assert run_service(tmp_path, "migrate", **external(restored)).stdout.startswith("nothing to apply")
        assert run_service(tmp_path, "renumber", **external(restored)).stdout == "renumbered 1 user\n"
        with serving(tmp_path, **external(restored)) as service:
            client = Client(service, client.user)
            assert client.titles() == ["In the dump"]
            assert ask(client, "changes", since=lost["version"]).status_code == 410
            assert undo(client, task["version"]) == 200
            assert created(client, "Afterwards")["version"] > lost["version"]


# renumber -------------------------------------------------------------------------------------------------------------


def numbers(url: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        query = "select user_id, version, erased_floor, first_version from tasks.account order by user_id"
        return connection.execute(query.encode()).fetchall()


def test_all_counters_are_lifted_also_those_ahead_of_the_clock_and_again(tmp_path: Path, postgres: Archived) -> None:
    now = int(time.time() * 1000)
    ahead = now + 10**9
    with psycopg.connect(postgres.url) as connection:
        connection.execute(
            "insert into tasks.account (user_id, version) select 'user-' || n, n from generate_series(1, 2100) n"
        )
        connection.execute("insert into tasks.account (user_id, version) values ('ahead', %s)", (ahead,))
    for run in (1, 2):
        before = {user: version for user, version, *_ in numbers(postgres.url)}
        ended = run_service(tmp_path, "renumber", **external(postgres.url))
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "renumbered 2101 users\n", "")
        after = numbers(postgres.url)
        assert all(version == floor for _, version, floor, _ in after)
        assert all(version >= before[user] + 1_000_000 for user, version, *_ in after)
        assert min(version for _, version, *_ in after) >= now
        assert after[0][:2] == ("ahead", ahead + run * 1_000_000)


def test_it_works_while_the_service_serves(tmp_path: Path, postgres: Archived) -> None:
    with serving(tmp_path, **external(postgres.url)) as service:
        client = Client(service)
        with psycopg.connect(postgres.url) as connection:
            connection.execute(
                "insert into tasks.account (user_id, version) select 'user-' || n, n from generate_series(1, 5000) n"
            )
        runs: list[Any] = []
        thread = threading.Thread(
            target=lambda: runs.append(run_service(tmp_path, "renumber", **external(postgres.url)))
        )
        versions = [created(client, "Before")["version"]]
        thread.start()
        while thread.is_alive():
            versions.append(created(client, "Meanwhile")["version"])
        thread.join()
        assert runs[0].stdout == "renumbered 5001 users\n"
        versions.append(created(client, "After")["version"])
        assert versions == sorted(set(versions))
        assert versions[-1] >= versions[0] + 1_000_000
        copy: dict[str, str] = {}
        apply(copy, ask(client, "changes", since=0).text)
        assert copy == tasks_in(postgres.url, client.user)


def test_an_empty_database_has_nothing_to_renumber(tmp_path: Path, postgres: Archived) -> None:
    assert run_service(tmp_path, "renumber", **external(postgres.url)).stdout == "renumbered 0 users\n"


def test_without_a_database_it_says_so(tmp_path: Path) -> None:
    for arguments in (["renumber"], ["erase", "me"]):
        ended = run_service(tmp_path, *arguments, **external("postgresql://me:hush@127.0.0.1:1/x"))
        assert (ended.returncode, ended.stdout) == (1, "")
        assert "The database 127.0.0.1:1/x does not answer" in ended.stderr
        assert "hush" not in ended.stderr


# A counter that falls -------------------------------------------------------------------------------------------------


def fall(url: str, user: str, changes: int | None) -> None:
    """Takes back the user's latest changes, all when it is None, as a restored backup does."""
    counter = 0 if changes is None else counter_in(url, user) - changes
    for table in ("task", "change"):
        execute(url, f"delete from tasks.{table} where user_id = %s and version > %s", user, counter)  # noqa: S608
    if counter:
        execute(url, "update tasks.account set version = %s where user_id = %s", counter, user)
    else:
        execute(url, "delete from tasks.account where user_id = %s", user)


@pytest.mark.parametrize("lost", [5, None])
def test_who_waits_hears_of_it_within_a_second_and_nobody_asks_without_end(
    tmp_path: Path, database_url: str, lost: int | None
) -> None:
    with serving(tmp_path, **external(database_url)) as service:
        client = Client(service)
        for number in range(9):
            task = created(client, f"Task {number}")
        stream = opened(service, client)
        answers: list[httpx.Response] = []
        poll = threading.Thread(target=lambda: answers.append(ask(client, "changes", since=task["version"], wait=20)))
        poll.start()
        time.sleep(0.3)
        fall(database_url, client.user, lost)
        started = time.monotonic()
        now = counter_in(database_url, client.user)
        process = psutil.Process(service.process.pid)
        used = process.cpu_times().user
        after = opened(service, client)  # these come before the old number is known to be wrong
        waited = ask(client, "changes", since=now, wait=1)
        assert waited.json() == {"version": now, "has_more": False, "tasks": [], "erased": []}
        assert time.monotonic() - started >= 1
        assert process.cpu_times().user - used < 0.3, "nobody asks again and again"
        poll.join()
        assert (answers[0].status_code, answers[0].json()) == (410, GONE)
        assert ends_with_reset(stream)
        assert time.monotonic() - started < 2.2
        again = created(client, "Again")
        assert after.page()["tasks"] == [again]
        after.close()


# Erasure --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["route", "command"])
def test_the_streams_of_an_erased_user_end_in_all_processes(tmp_path: Path, database_url: str, by: str) -> None:
    settings = external(database_url)
    with serving(tmp_path, **settings) as one, serving(tmp_path, **settings) as two:
        client, there, other = Client(one), None, Client(one)
        there = Client(two, client.user)
        created(client, "Buy milk")
        created(other, "Buy bread")
        streams = [opened(one, client), opened(two, there)]
        untouched = opened(one, other)
        started = time.monotonic()
        if by == "route":
            url = client.tasks.removesuffix("/tasks")
            erased = httpx.request("DELETE", url, headers=client.headers, json={"confirm": client.user})
            assert erased.status_code == 204
            assert ends_with_reset(streams[0])
            assert time.monotonic() - started < 0.5, "in the process itself at once"
        else:
            said = f"erased 1 task, 0 retry keys and 1 history entry of user {client.user!r}\n"
            assert run_service(tmp_path, "erase", client.user, **settings).stdout == said
            started = time.monotonic()
            said = f"erased 0 tasks, 0 retry keys and 0 history entries of user {client.user!r}\n"
            assert ends_with_reset(streams[0])
        assert ends_with_reset(streams[1])
        assert time.monotonic() - started < 1.5
        if by == "command":
            assert run_service(tmp_path, "erase", client.user, **settings).stdout == said
        again = created(client, "Signed up again")
        fresh = Stream(two.port, there.user, there.headers, "?since=0")
        assert fresh.page()["tasks"] == [again]
        fresh.close()
        bread = created(other, "More bread")
        assert untouched.page()["tasks"] == [bread]
        untouched.close()
