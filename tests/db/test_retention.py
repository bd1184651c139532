"""How long history is kept: 30 days, and for 400 days what was erased for good. The purge works beside the service."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest

from service.db.address import parse_address
from service.db.migrations import migrate
from service.queries.purge import ERASED_DAYS, HISTORY_DAYS, STEP
from tests.conftest import empty_database, serving
from tests.processes import Client, external, run_service

GONE = (410, {"detail": "Start again from since=0"})
FIRST = 1000  # the number of a user's first change here


@pytest.fixture
def url(database_url: str) -> Iterator[str]:
    """A database of the test's own: a purge is for all users."""
    with empty_database(database_url) as own:
        migrate(parse_address(own))
        yield own


def execute(url: str, query: str, *arguments: Any) -> list[Any]:
    with psycopg.connect(url) as connection:
        done = connection.execute(query.encode(), arguments)
        return done.fetchall() if done.description else []


def fill(url: str, user: str, changes: int, days: float = 0) -> UUID:
    """Gives a new user a task and so many changes to it, the last of them so many days ago, a second apart.

    Returns the task's id.
    """
    task_id = uuid4()
    last = FIRST + changes - 1
    execute(
        url,
        "insert into tasks.account (user_id, version, first_version) values (%s, %s, %s)",
        *(user, last, FIRST),
    )
    execute(
        url,
        "insert into tasks.task (id, user_id, title, version) values (%s, %s, %s, %s)",
        *(task_id, user, f"Title {last}", last),
    )
    execute(
        url,
        """
        insert into tasks.change (user_id, version, task_id, at, operation, before, after)
        select
            %s, n, %s, now() - make_interval(secs => %s + %s::bigint - n),
            case when n = %s then 'create' else 'update' end,
            case when n > %s then json_build_object('title', 'Title ' || n - 1) end,
            json_build_object('title', 'Title ' || n)
        from generate_series(%s::bigint, %s) n
        """,
        *(user, task_id, days * 86_400, last, FIRST, FIRST, FIRST, last),
    )
    return task_id


def left(url: str) -> dict[str, list[int]]:
    """Returns the numbers of the changes that each user has a history of."""
    query = "select user_id, array_agg(version order by version) from tasks.change group by user_id"
    return dict(execute(url, query))


def floors(url: str, user: str) -> tuple[int, int]:
    """Returns the number up to which the user's history is erased, and that up to which nobody tells what was."""
    found: tuple[int, int] = execute(
        url, "select history_floor, erased_floor from tasks.account where user_id = %s", user
    )[0]
    return found


def purge(tmp_path: Path, url: str, *arguments: str) -> str:
    ended = run_service(tmp_path, "purge", *arguments, **external(url))
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def said(history: str, tasks: str = "0 tasks of 0 users") -> str:
    return f"erased {tasks}, 0 retry keys and {history}\n"


def feed(client: Client, since: int) -> httpx.Response:
    return httpx.get(
        client.tasks.removesuffix("/tasks") + "/changes", params={"since": since}, headers=client.headers, timeout=20
    )


def told(client: Client, since: int) -> tuple[int, list[int], list[str]]:
    """Returns up to which number the feed tells all, the versions of the tasks in it, and what was erased."""
    response = feed(client, since)
    assert response.status_code == 200, response.text
    page = response.json()
    return page["version"], [task["version"] for task in page["tasks"]], page["erased"]


def test_history_of_more_than_thirty_days_is_erased(tmp_path: Path, url: str) -> None:
    assert HISTORY_DAYS == 30
    fill(url, "new", 3, 29.9)
    fill(url, "old", 3, 30.1)
    fill(url, "both", 3, 30.1)
    execute(url, "update tasks.change set at = now() where user_id = 'both' and version = %s", FIRST + 2)
    execute(url, "insert into tasks.account (user_id) values ('without history')")
    assert purge(tmp_path, url) == said("5 history entries")
    assert left(url) == {"new": [FIRST, FIRST + 1, FIRST + 2], "both": [FIRST + 2]}
    assert floors(url, "new") == (0, 0)
    assert floors(url, "old") == (FIRST + 2, 0)
    assert floors(url, "both") == (FIRST + 1, 0)
    assert purge(tmp_path, url) == said("0 history entries"), "nothing is left to do"
    execute(url, "update tasks.change set at = now() - interval '31 days' where user_id = 'both'")
    assert purge(tmp_path, url) == said("1 history entry")
    versions = execute(url, "select version from tasks.account where user_id <> 'without history'")
    assert versions == [(FIRST + 2,)] * 3, "the purge of history is no change"


def test_below_the_floor_the_feed_answers_from_the_tasks(tmp_path: Path, url: str) -> None:
    fill(url, "me", 5, 31)
    execute(
        url,
        "insert into tasks.task (id, user_id, title, version) values (gen_random_uuid(), 'me', 'Between', %s)",
        FIRST + 2,
    )
    execute(url, "delete from tasks.change where user_id = 'me' and version = %s", FIRST + 2)
    with serving(tmp_path, **external(url)) as service:
        client = Client(service, "me")
        before = {since: feed(client, since).json() for since in (0, *range(FIRST, FIRST + 5))}
        purge(tmp_path, url)
        assert left(url) == {}
        assert floors(url, "me") == (FIRST + 4, 0)
        assert told(client, FIRST + 1) == (FIRST + 4, [FIRST + 2, FIRST + 4], [])
        assert told(client, FIRST + 2) == (FIRST + 4, [FIRST + 4], [])
        assert told(client, FIRST + 4) == (FIRST + 4, [], [])
        assert feed(client, 0).json() == before[0]
        assert feed(client, FIRST + 3).json() == before[FIRST + 3]
        assert (feed(client, FIRST - 1).status_code, feed(client, FIRST + 5).status_code) == (410, 410)
        history = httpx.get(client.tasks.removesuffix("/tasks") + "/history", headers=client.headers)
        assert history.json() == []


def trash(url: str, user: str, task_id: UUID) -> None:
    """Has the task in the trash for 31 days."""
    execute(url, "select * from tasks.change_task(%s, '1s', 'delete', %s, null, null, null, null)", user, task_id)
    execute(url, "update tasks.task set deleted_at = now() - interval '31 days' where user_id = %s", user)


def test_what_was_erased_is_told_for_four_hundred_days(tmp_path: Path, url: str) -> None:
    assert ERASED_DAYS == 400
    task_id = fill(url, "me", 2)
    trash(url, "me", task_id)
    erased = FIRST + 3
    older = "update tasks.change set at = now() - make_interval(days => %s) where user_id = 'me' and version = %s"
    with serving(tmp_path, **external(url)) as service:
        client = Client(service, "me")
        assert purge(tmp_path, url) == said("0 history entries", "1 task of 1 user")
        assert told(client, FIRST + 2) == (erased, [], [str(task_id)])
        assert told(client, 0) == (erased, [], []), "a full copy has no need of it"
        execute(
            url, "update tasks.change set at = at - interval '31 days' where user_id = 'me' and version < %s", erased
        )
        execute(url, older, 399, erased)
        assert purge(tmp_path, url) == said("3 history entries")
        assert left(url) == {"me": [erased]}
        assert floors(url, "me") == (erased - 1, 0)
        for since in (FIRST, erased - 1):
            assert told(client, since) == (erased, [], [str(task_id)])

        last = client.create("Since then").json()["version"]
        assert told(client, erased) == (last, [last], [])
        execute(url, older, 401, erased)
        assert purge(tmp_path, url) == said("1 history entry")
        assert left(url) == {"me": [last]}
        assert floors(url, "me") == (erased - 1, erased)
        for since in (FIRST, erased - 1):
            assert ((response := feed(client, since)).status_code, response.json()) == GONE
        assert told(client, erased) == (last, [last], []), "from there on nothing was missed"
        assert told(client, 0) == (last, [last], [])


def test_old_history_behind_what_is_told_for_longer_is_erased(tmp_path: Path, url: str) -> None:
    task_id = fill(url, "me", 1, 100)
    trash(url, "me", task_id)
    purge(tmp_path, url)
    execute(url, "update tasks.change set at = now() - interval '90 days' where user_id = 'me'")
    execute(
        url,
        "select tasks.insert_task("
        """'me', '1s', gen_random_uuid(), '{"title": "x"}', null, null, null, null, null) from generate_series(1, 3)""",
    )
    execute(url, "update tasks.change set at = now() - interval '40 days' where version = %s", FIRST + 3)
    assert purge(tmp_path, url) == said("2 history entries"), "the delete, and a change after the purge"
    assert left(url) == {"me": [FIRST + 2, FIRST + 4, FIRST + 5]}
    assert floors(url, "me") == (FIRST + 3, 0)


def test_every_user_is_looked_at(tmp_path: Path, url: str) -> None:
    """In steps of so many users, in whatever order their ids are."""
    execute(url, "insert into tasks.account (user_id) select md5(n::text) from generate_series(1, %s) n", 2 * STEP + 10)
    execute(
        url,
        """
        insert into tasks.change (user_id, version, task_id, at, operation, after)
        select user_id, 1, gen_random_uuid(), '2001-01-01', 'create', '{}' from tasks.account where user_id < 'a'
        """,
    )
    for user in ("Ä", "ä", "a b", "B", "'", "🎉"):
        fill(url, user, 1, 31)
    ((count,),) = execute(url, "select count(*) from tasks.change")
    assert count > STEP
    assert purge(tmp_path, url) == said(f"{count} history entries")
    assert left(url) == {}


def test_a_step_is_bounded_and_the_oldest_go_first(url: str) -> None:
    fill(url, "me", 25, 31)
    step = "select tasks.purge_changes('me', '1s', now() - interval '30 days', now() - interval '400 days', 10)"
    for gone, end in ((10, 10), (10, 20), (5, 25), (0, 25)):
        assert execute(url, step) == [(gone,)]
        assert left(url).get("me", []) == list(range(FIRST + end, FIRST + 25))
        assert floors(url, "me") == (FIRST + end - 1, 0)
    assert execute(url, step.replace("'me'", "'nobody'")) == [(0,)]


def test_two_at_once_beside_a_service_erase_ten_thousand_rows_once(tmp_path: Path, url: str) -> None:
    task_id = fill(url, "me", 10 * STEP, 31)
    with serving(tmp_path, **external(url)) as service, ThreadPoolExecutor(3) as threads:
        client = Client(service, "me")
        both = [threads.submit(purge, tmp_path, url) for _ in range(2)]
        written = [FIRST + 10 * STEP - 1]
        while not all(one.done() for one in both) or len(written) < 10:
            response = client.call("PATCH", f"/{task_id}", json={"title": f"x{len(written)}"})
            assert response.status_code == 200
            assert response.json()["version"] == written[-1] + 1
            assert told(client, written[-1])[1] == [written[-1] + 1]
            written.append(written[-1] + 1)
        printed = [re.fullmatch(r"erased 0 tasks .* and (\d+) history entr(?:y|ies)\n", one.result()) for one in both]
        assert sum(int(one[1]) for one in printed if one) == 10 * STEP
        assert left(url) == {"me": written[1:]}
        assert floors(url, "me") == (written[0], 0)
        assert told(client, FIRST)[1] == [written[-1]]


def test_the_help_says_what_it_erases(tmp_path: Path) -> None:
    assert "history" in run_service(tmp_path, "--help").stdout
    ended = run_service(tmp_path, "purge", "--help")
    assert ended.returncode == 0
    assert f"history of more than {HISTORY_DAYS} days" in " ".join(ended.stdout.split())
