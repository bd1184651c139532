"""`python -m service purge`: what is old goes for good, in steps, whoever else is at work."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from service.db.address import parse_address
from service.db.migrations import migrate
from service.queries.purge import STEP
from tests.conftest import empty_database, serving
from tests.processes import Client, external, run_service


@pytest.fixture
def url(database_url: str) -> Iterator[str]:
    """A database of the test's own: a purge is for all users."""
    with empty_database(database_url) as own:
        migrate(parse_address(own))
        yield own


def fill(url: str, user: str, tasks: int, days: float) -> None:
    """Gives a new user tasks that went to the trash so many days ago, and a live one."""
    with psycopg.connect(url) as connection:
        connection.execute("insert into tasks.account values (%s, %s)", (user, tasks + 1))
        connection.execute(
            "insert into tasks.task (id, user_id, title, version, deleted_at)"
            " select gen_random_uuid(), %s, 'x', n, case when n <= %s then now() - make_interval(secs => %s) end"
            " from generate_series(1, %s) n",
            (user, tasks, days * 86_400, tasks + 1),
        )


def left(url: str) -> dict[str, tuple[int, int]]:
    """Returns how many tasks each user has, and the counter."""
    with psycopg.connect(url) as connection:
        query = (
            "select user_id, version, (select count(*) from tasks.task where user_id = account.user_id)"
            " from tasks.account order by user_id"
        )
        return {user: (tasks, version) for user, version, tasks in connection.execute(query)}


def purge(tmp_path: Path, url: str, *arguments: str) -> str:
    ended = run_service(tmp_path, "purge", *arguments, **external(url))
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_it_erases_what_is_older_than_the_days_and_says_so(tmp_path: Path, url: str) -> None:
    fill(url, "new", 3, 29.9)
    fill(url, "old", 3, 30.1)
    fill(url, "older", STEP + 10, 100)
    with psycopg.connect(url) as connection:
        connection.execute(
            "insert into tasks.idempotency"
            " select 'old', 'key-' || n, sha256('x'), '{}', now() - make_interval(hours => n)"
            " from generate_series(20, 30) n"
        )
    assert purge(tmp_path, url, "--days", "101") == "erased 0 tasks of 0 users, 7 retry keys and 0 history entries\n"
    assert purge(tmp_path, url) == f"erased {STEP + 13} tasks of 2 users, 0 retry keys and 0 history entries\n"
    # one number for each step in which something of the user's was erased, so that lists change
    after = left(url)
    assert (after["new"], after["old"]) == ((4, 4), (1, 5))
    assert after["older"][0] == 1
    assert after["older"][1] in (STEP + 12, STEP + 13)
    assert purge(tmp_path, url) == "erased 0 tasks of 0 users, 0 retry keys and 0 history entries\n"
    assert left(url) == after, "nothing to do takes no number"
    assert purge(tmp_path, url, "--days", "0") == "erased 3 tasks of 1 user, 0 retry keys and 0 history entries\n"
    assert left(url)["new"] == (1, 5)


def test_rows_of_a_user_without_an_account_are_erased_too(tmp_path: Path, url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(
            "insert into tasks.task (id, user_id, title, version, deleted_at)"
            " select gen_random_uuid(), 'nobody-' || mod(n, 3), 'x', 1, '2001-01-01' from generate_series(1, %s) n",
            (STEP + 10,),
        )
        connection.execute(
            "insert into tasks.idempotency select 'keys', 'key-' || n, sha256('x'), '{}', '2001-01-01'"
            " from generate_series(1, %s) n",
            (STEP + 10,),
        )
    assert (
        purge(tmp_path, url) == f"erased {STEP + 10} tasks of 3 users, {STEP + 10} retry keys and 0 history entries\n"
    )
    assert purge(tmp_path, url) == "erased 0 tasks of 0 users, 0 retry keys and 0 history entries\n"


@pytest.mark.parametrize("days", ["-1", "1.5", "x", "", "36501", "٣"])
def test_days_that_are_no_number_of_days_are_refused(tmp_path: Path, days: str) -> None:
    ended = run_service(tmp_path, "purge", f"--days={days}")
    assert ended.returncode == 2
    assert "a whole number from 0 to 36500" in ended.stderr


def test_without_a_database_it_says_so(tmp_path: Path) -> None:
    ended = run_service(tmp_path, "purge", **external("postgresql://me:hush@127.0.0.1:1/x"))
    assert ended.returncode == 1
    assert "The database 127.0.0.1:1/x does not answer" in ended.stderr
    assert "hush" not in ended.stderr


def test_two_at_once_beside_a_service_erase_everything_once(tmp_path: Path, url: str) -> None:
    for number in range(20):
        fill(url, f"user-{number}", 150, 40)
    with serving(tmp_path, **external(url)) as service, ThreadPoolExecutor(3) as threads:
        both = [threads.submit(purge, tmp_path, url) for _ in range(2)]
        client = Client(service, "user-7")
        before = client.call("GET", params={"trashed": "true"}).headers["ETag"]
        written = 0
        while not all(one.done() for one in both):
            assert client.create("meanwhile").status_code == 201
            written += 1
        printed = [one.result() for one in both]
        assert client.call("GET", params={"trashed": "true"}).json() == []
        assert client.call("GET", params={"trashed": "true"}).headers["ETag"] != before
    assert sum(int(text.split()[1]) for text in printed) == 20 * 150
    after = left(url)
    assert after.pop("user-7")[0] == 1 + written
    assert {tasks for tasks, _ in after.values()} == {1}
