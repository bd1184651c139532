"""`python -m service undo USER VERSION`, and what support looks at before: sql/debug/last_changes.sql."""

import subprocess
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from service.db import embedded
from service.models import BIGGEST_VERSION
from tests.conftest import ROOT
from tests.processes import external, run_service

pytestmark = pytest.mark.slow


class Support:
    """A user in the database, and what support does for that user."""

    def __init__(self, url: str, folder: Path, user: str) -> None:
        self.url = url
        self.folder = folder
        self.user = user

    def call(self, function: str, *arguments: Any) -> int:
        """Calls the function that writes; returns its number."""
        left = {"insert_task": 7, "change_task": 6}.get(function, len(arguments)) - len(arguments)
        places = ", ".join(["%s"] * len(arguments) + ["null"] * left)
        with psycopg.connect(self.url) as connection:
            query = f"select version from tasks.{function}(%s, '1s', {places})"  # noqa: S608
            row = connection.execute(query.encode(), (self.user, *arguments)).fetchone()
        assert row is not None
        version: int = row[0]
        return version

    def execute(self, query: str) -> list[Any]:
        with psycopg.connect(self.url) as connection:
            done = connection.execute(query.encode(), (self.user,))
            return done.fetchall() if done.description else []

    def tasks(self) -> list[tuple[str, str, bool, int]]:
        return self.execute(
            "select title, status, deleted_at is null, version from tasks.task where user_id = %s order by title"
        )

    def undo(self, version: int | str) -> tuple[int, str, str]:
        ended = run_service(self.folder, "undo", self.user, str(version), **external(self.url))
        return ended.returncode, ended.stdout, ended.stderr


@pytest.fixture
def support(database_url: str, tmp_path: Path) -> Support:
    return Support(database_url, tmp_path, f"user '{uuid4()}' ünknown")


def test_it_undoes_and_says_what(support: Support) -> None:
    task_id = uuid4()
    support.call("insert_task", task_id, '{"title": "Buy milk"}')
    version = support.call("change_task", "update", task_id, '{"title": "Changed", "status": "completed"}')
    assert support.undo(version) == (0, f"undone as change {version + 1}: {task_id}\n", "")
    assert support.tasks() == [("Buy milk", "pending", True, version + 1)]
    assert support.undo(version) == (0, "nothing to undo: everything is as it was before\n", "")
    assert support.undo(version + 1) == (0, f"undone as change {version + 2}: {task_id}\n", "")
    assert support.tasks() == [("Changed", "completed", True, version + 2)]
    assert support.undo(version - 1) == (0, f"undone as change {version + 3}: {task_id}\n", "")
    assert support.tasks() == [("Changed", "completed", False, version + 3)]


def test_a_batch_is_undone_as_a_whole(support: Support) -> None:
    ids = sorted(uuid4() for _ in range(2))
    operations = ", ".join(f'{{"op": "create", "id": "{one}", "task": {{"title": "x"}}}}' for one in ids)
    version = support.call("run_batch", f"[{operations}]", None, True, False)
    assert support.undo(version) == (0, f"undone as change {version + 1}: {ids[0]}, {ids[1]}\n", "")
    assert support.tasks() == [("x", "pending", False, version + 1)] * 2


def test_what_has_been_changed_since_is_told(support: Support) -> None:
    task_id = uuid4()
    support.call("insert_task", task_id, '{"title": "Buy milk"}')
    version = support.call("change_task", "update", task_id, '{"title": "x", "priority": "low"}')
    support.call("change_task", "update", task_id, '{"title": "y", "priority": "high"}')
    before = support.tasks()
    said = f"Changed since, so nothing is undone:\n  {task_id}: title, priority\n"
    assert support.undo(version) == (1, "", said)
    assert support.tasks() == before


def test_a_change_that_is_not_there_or_no_more_is_told(support: Support) -> None:
    task_id = uuid4()
    assert support.undo(7) == (1, "", f"User {support.user!r} has no change 7\n")
    version = support.call("insert_task", task_id, '{"title": "Buy milk"}')
    assert support.undo(version + 1) == (1, "", f"User {support.user!r} has no change {version + 1}\n")
    assert support.undo(BIGGEST_VERSION)[0] == 1
    support.execute("update tasks.change set at = now() - interval '31 days' where user_id = %s")
    assert support.undo(version) == (1, "", "Too old to undo: its history, or one of its tasks, is erased\n")
    assert support.tasks() == [("Buy milk", "pending", True, version)]


@pytest.mark.parametrize("version", ["0", "-1", "7.0", "x", "", " 7", "٣", str(BIGGEST_VERSION + 1), "9" * 400])
def test_what_is_no_number_is_refused(support: Support, version: str) -> None:
    status, printed, said = support.undo(version)
    assert (status, printed) == (2, "")
    assert f"a whole number from 1 to {BIGGEST_VERSION}, not " in said
    assert said.count("\n") == 1


def test_both_have_to_be_given(tmp_path: Path) -> None:
    ended = run_service(tmp_path, "undo", "me")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "VERSION" in ended.stderr


def test_a_database_that_does_not_answer_is_told(tmp_path: Path) -> None:
    ended = run_service(tmp_path, "undo", "me", "7", **external("postgresql://me:hush@127.0.0.1:1/x"))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "The database 127.0.0.1:1/x does not answer" in ended.stderr
    assert "hush" not in ended.stderr


def test_the_last_changes_can_be_read(support: Support) -> None:
    support.user = f"user-{uuid4()}"
    task_id = uuid4()
    first = support.call("insert_task", task_id, '{"title": "Buy milk"}')
    support.call("change_task", "update", task_id, '{"title": "Buy oat milk", "description": "Two litres"}')
    support.call("change_task", "delete", task_id)
    support.call("undo_change", first + 1)  # a conflict
    support.call("undo_change", first + 2)
    printed = subprocess.run(
        [embedded.PSQL, support.url, "--no-psqlrc", "--set", "ON_ERROR_STOP=1", "--no-align", "--tuples-only"],
        input=f"\\set user {support.user}\n\\i sql/debug/last_changes.sql\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    ).stdout
    fields = [line.split("|") for line in printed.splitlines() if "|" in line]
    assert [(int(row[0]), row[2], row[3], row[4]) for row in fields] == [
        (first + 3, "undo", str(task_id), "Buy oat milk"),
        (first + 2, "delete", str(task_id), "Buy oat milk"),
        (first + 1, "update", str(task_id), "Buy oat milk"),
        (first, "create", str(task_id), "Buy oat milk"),
    ]
    assert "title: Buy milk → Buy oat milk\ndescription: null → Two litres\n" in printed
    assert "|title: Buy milk\nstatus: pending\npriority: medium\n" in printed
    assert "|deleted_at: null → 20" in printed
    assert " → null\n" in printed
