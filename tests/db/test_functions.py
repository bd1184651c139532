"""The functions that write: against a model of a user's tasks, two at once, and looked through by plpgsql_check."""

import asyncio
import json
import operator
import time
from collections.abc import AsyncIterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.db.address import parse_address
from service.db.migrations import migrate
from service.models import NEEDS, Task, TaskCreate
from service.queries import changes, planning, purge
from service.queries import tasks as queries
from service.recurrence import canonical_rule, next_due, successor_id
from tests.conftest import empty_database, eventually, is_blocked

Json = dict[str, Any]
Answer = tuple[Any, ...]

CREATE, CHANGE, BATCH = queries.INSERT_TASK.sql, queries.CHANGE_TASK.sql, queries.RUN_BATCH.sql
ERASE_TASKS, ERASE_KEYS, ERASE_CHANGES = purge.PURGE_TASKS.sql, purge.PURGE_KEYS.sql, purge.PURGE_CHANGES.sql
UNDO = changes.UNDO_CHANGE.sql

FIELDS = tuple(Task.model_fields)
SERIES = ("recurrence", "recurrence_anchor", "recurrence_start", "series_id", "occurrence")
LOGGED = (
    *("title", "description", "status", "priority", "completed_at", "deleted_at"),
    *("due_date", "due_time", "due_time_zone", *SERIES, "tags"),
)
NO_SERIES: Json = dict.fromkeys(SERIES) | {"recurrence_anchor": "due"}
IDS = tuple(str(UUID(int=number)) for number in range(1, 4))
# What two of them get as successors, so that something happens to these too
SUCCESSORS = successor_id(IDS[0], 2), successor_id(IDS[0], 3), successor_id(IDS[1], 2)
HASHES = bytes(32), b"\1" * 32
EVER, NEVER = datetime(2101, 1, 1, tzinfo=UTC), datetime(2001, 1, 1, tzinfo=UTC)  # all is before, or nothing


@pytest.fixture(scope="module")
async def connection(database_url: str) -> AsyncIterator[Any]:
    opened = await connect(database_url)
    yield opened
    await opened.close()


async def connect(url: str) -> Any:
    """Returns a connection like the service's, whose JSON stays text."""
    return await asyncpg.connect(url, server_settings={"timezone": "UTC"})


# The model ------------------------------------------------------------------------------------------------------------


@dataclass
class Change:
    """What a change did to a task: the request's operation, and the task before and after it."""

    operation: str
    before: Json | None = None
    after: Json | None = None

    def logged(self) -> tuple[str, Json | None, Json | None]:
        """Returns it as the history has it: with the fields that differ."""
        before, after = self.before, self.after
        if after is None:
            return self.operation, None, None
        if before is None:
            return self.operation, None, {name: after[name] for name in LOGGED if after[name] is not None}
        differing = [name for name in LOGGED if before[name] != after[name]]
        return self.operation, {name: before[name] for name in differing}, {name: after[name] for name in differing}


@dataclass
class Model:
    """A user's rows, as the calls should leave them.

    What nobody can foretell comes from the answers: when a change was made, and a user's first number. Each method gets
    the task that was answered, if any, and returns what should have been.
    """

    counter: int | None = None
    floors: tuple[int, int] = 0, 0  # below which history is gone, and what tells of erased tasks
    tasks: dict[str, Json] = field(default_factory=dict)
    keys: dict[str, tuple[bytes, Json]] = field(default_factory=dict)
    rows: dict[str, Json] = field(default_factory=dict)  # of tasks that a call has written and not answered with
    changes: dict[tuple[int, str], Change] = field(default_factory=dict)  # by number and task

    def create(
        self, seen: Json | None, task_id: str, fields: Json, key: str | None, request: bytes, next_seen: Json | None
    ) -> Answer:
        """Creates a task, once for each key, and its successor when it is both recurring and completed."""
        if key in self.keys:
            known, answer = self.keys[key]
            return ("replayed", answer["version"], answer, None) if known == request else ("key_used", None, None, None)
        if task_id in self.tasks:
            return "exists", None, None, None
        assert seen is not None
        now = seen["created_at"]
        assert abs(moment(now) - datetime.now(UTC)) < timedelta(minutes=1)
        task = dict.fromkeys(FIELDS) | {"id": task_id, "user_id": seen["user_id"], "priority": "medium"}
        task |= {"recurrence_anchor": "due", "tags": []} | fields
        if task["recurrence"] is not None:
            task |= {"recurrence_start": task["due_date"], "series_id": task_id, "occurrence": 1}
        if "status" not in fields:
            task["status"] = "completed" if fields.get("is_completed") else "pending"
        self._keep("create", None, task, now, self.next_number(seen))
        if key is not None:
            self.keys[key] = request, self.tasks[task_id]
        following = self._follow("create", None, self.tasks[task_id], next_seen) if task["is_completed"] else None
        return "created", task["version"], task, following

    def change(
        self,
        seen: Json | None,
        what: str,
        task_id: str,
        patch: Json | None,
        if_match: list[str] | None,
        next_seen: Json | None,
    ) -> Answer:
        """Changes a task, and what comes after it in its series."""
        before = self.tasks.get(task_id)
        if before is None or (before["deleted_at"] is None) == (what == "restore"):
            return "not_found", None, None, None
        if if_match is not None and str(before["version"]) not in if_match:
            return "other_version", before["version"], None, None
        if refused := self._refuses(before, patch or {}):
            return refused, None, None, None
        assert seen is not None
        now = seen["updated_at"]
        task = self._asked(before, what, patch, now)
        is_completing = task["is_completed"] and task["recurrence"] is not None
        is_named = is_completing and bool({"status", "is_completed"} & {*(patch or {})})
        moves = is_completing and not before["is_completed"]
        if before["is_completed"] and before["recurrence"] is not None and not task["is_completed"]:
            moves = self._takes_back(before, task)
        after = self.tasks.get(successor_id(task["series_id"], task["occurrence"] + 1)) if is_named else None
        if task == before:
            return "unchanged", before["version"], before, after
        assert moment(now) > moment(before["updated_at"])
        self._keep(what, before, task, now, self.next_number(seen))
        if moves:
            after = self._follow(what, before, self.tasks[task_id], next_seen)
        return "changed", task["version"], task, after

    def _asked(self, before: Json, what: str, patch: Json | None, now: str) -> Json:
        """Returns the task as it was asked for, with what follows from that for itself."""
        task = deepcopy(before)
        match what, patch:
            case "complete", None:
                task["status"] = "pending" if before["status"] == "completed" else "completed"
            case "delete", None:
                task["deleted_at"] = now
            case "restore", None:
                task["deleted_at"] = None
            case _, dict():
                task |= patch
                if "status" not in patch and patch.get("is_completed") is True:
                    task["status"] = "completed"
                if "status" not in patch and patch.get("is_completed") is False and before["status"] == "completed":
                    task["status"] = "pending"
        task["is_completed"] = task["status"] == "completed"
        self._settle(before, task)
        return task

    def _takes_back(self, before: Json, task: Json) -> bool:
        """Returns whether a reopened task takes its successor back; if not, it may lose its rule to that."""
        after = self.tasks.get(successor_id(before["series_id"], before["occurrence"] + 1))
        if after is None or (after["deleted_at"] is None and self._is_fresh(after, task["id"])):
            return True
        if (task["recurrence"], task["recurrence_anchor"]) == (before["recurrence"], before["recurrence_anchor"]):
            task |= NO_SERIES
        return False

    @staticmethod
    def _refuses(before: Json, patch: Json) -> str | None:
        """Returns how it is called that the task cannot take the patch; None when it can."""
        wanted = before | patch
        if patch.get("due_time") is not None and wanted["due_date"] is None:
            return "due_time_needs_due_date"
        if patch.get("recurrence") is not None and wanted["due_date"] is None:
            return "recurrence_needs_due_date"
        has_time = wanted["due_date"] is not None and wanted["due_time"] is not None
        if patch.get("due_time_zone") is not None and not has_time:
            return "due_time_zone_needs_due_time"
        recurs = wanted["due_date"] is not None and wanted["recurrence"] is not None
        if patch.get("recurrence_anchor") == "completion" and not recurs:
            return "recurrence_anchor_needs_recurrence"
        return None

    @staticmethod
    def _settle(before: Json, task: Json) -> None:
        """Clears what needs what was cleared, and begins a new series with a changed rule."""
        if task["due_date"] is None:
            task |= {"due_time": None, "recurrence": None}
        if task["due_time"] is None:
            task["due_time_zone"] = None
        if task["recurrence"] is None:
            task |= NO_SERIES
        elif (task["recurrence"], task["recurrence_anchor"]) != (before["recurrence"], before["recurrence_anchor"]):
            due, anchor = date.fromisoformat(task["due_date"]), task["recurrence_anchor"]
            task["recurrence"] = canonical_rule(task["recurrence"], due, anchor)
            if (task["recurrence"], anchor) != (before["recurrence"], before["recurrence_anchor"]):
                task |= {"recurrence_start": task["due_date"], "series_id": task["id"], "occurrence": 1}

    def _is_fresh(self, after: Json, task_id: str) -> bool:
        """Returns whether nothing has happened to the successor but by changes to the task before it."""
        if after["is_completed"]:
            return False
        numbers = {number for number, of in self.changes if of == after["id"]}
        return after["updated_at"] == after["created_at"] or numbers <= {
            number for number, of in self.changes if of == task_id
        }

    def _follow(self, what: str, before: Json | None, task: Json, seen: Json | None) -> Json | None:
        """Makes the successor of a task that was completed, or takes that of a reopened one to the trash."""
        series = task if task["is_completed"] else before
        if series is None or series["recurrence"] is None:
            return None
        next_id = successor_id(series["series_id"], series["occurrence"] + 1)
        known = self.tasks.get(next_id)
        if not task["is_completed"]:
            if known is not None:
                now = self.rows.get(next_id, known)["updated_at"]
                self._keep(what, known, known | {"deleted_at": now}, now, task["version"])
            return None
        rule, anchor, start = (
            task["recurrence"],
            task["recurrence_anchor"],
            date.fromisoformat(task["recurrence_start"]),
        )
        due = next_due(rule, anchor, start, task["occurrence"], datetime.now(UTC).date())
        if due is None:
            return known
        given = {"due_date": due.isoformat(), "occurrence": task["occurrence"] + 1, "status": "pending"}
        own = ("id", "user_id", "is_completed", "completed_at", "created_at", "updated_at", "deleted_at", "version")
        new = {name: value for name, value in task.items() if name not in own} | given
        if known is None:
            assert seen is not None
            blank = dict.fromkeys(FIELDS) | {"id": next_id, "user_id": task["user_id"]}
            self._keep(what, None, blank | new, seen["created_at"], task["version"])
        elif known["deleted_at"] is not None and (known["version"], task["id"]) in self.changes:
            assert seen is not None
            back = known | new | {"completed_at": None} if self._is_fresh(known, task["id"]) else known
            self._keep(what, known, back | {"deleted_at": None}, seen["updated_at"], task["version"])
        return self.tasks[next_id]

    def batch(
        self, seen: list[tuple[Json | None, Json | None]], operations: list[Json], *, atomic: bool, dry_run: bool
    ) -> Answer:
        """Does all of it with one number, or nothing."""
        batch = _Batch(self.counter, tasks=deepcopy(self.tasks), rows=self.rows, changes=deepcopy(self.changes))
        done = []
        for operation, (task, after) in zip(operations, seen, strict=True):
            fields, if_version = operation["task"], operation["if_version"]
            if operation["op"] == "create":
                done.append(deepcopy(batch.create(task, operation["id"], fields, None, b"", after)))
            else:
                if_match = None if if_version is None else [str(if_version)]
                done.append(deepcopy(batch.change(task, operation["op"], operation["id"], fields, if_match, after)))
        outcomes = [outcome for outcome, *_ in done]
        is_wrong = atomic and not {*outcomes} <= {"created", "changed", "unchanged"}
        is_kept = not dry_run and not is_wrong and bool({"created", "changed"} & {*outcomes})
        if is_kept:
            self.counter, self.tasks, self.changes = batch.number, batch.tasks, batch.changes
        return batch.number if is_kept else None, outcomes, [(task, after) for _, _, task, after in done]

    def purge_tasks(self, ids: list[str], before: datetime) -> int:
        """Erases what is in the trash."""
        erased = {task for task in ids if task in self.tasks and self.tasks[task]["deleted_at"] and before == EVER}
        if erased and self.counter is not None:
            self.counter += 1
            gone = {place: Change("erased") if place[1] in erased else kept for place, kept in self.changes.items()}
            self.changes = gone | {(self.counter, task): Change("erase") for task in erased}
        self.tasks = {task_id: task for task_id, task in self.tasks.items() if task_id not in erased}
        return len(erased)

    def purge_keys(self, keys: list[str], before: datetime) -> int:
        """Erases keys."""
        erased = {key for key in keys if key in self.keys and before == EVER}
        self.keys = {key: answer for key, answer in self.keys.items() if key not in erased}
        return len(erased)

    def purge_changes(self, before: datetime, erased_before: datetime) -> int:
        """Erases history."""
        old = {
            place: change.operation == "erase"
            for place, change in self.changes.items()
            if (erased_before if change.operation == "erase" else before) == EVER
        }
        self.changes = {place: change for place, change in self.changes.items() if place not in old}
        history, erased = self.floors
        self.floors = (
            max([history, *(number for (number, _), tells in old.items() if not tells)]),
            max([erased, *(number for (number, _), tells in old.items() if tells)]),
        )
        return len(old)

    def next_number(self, seen: Json) -> int:
        """Returns the number of one more change."""
        if self.counter is None:
            assert abs(seen["version"] - time.time() * 1000) < 60_000
            self.counter = seen["version"]
        else:
            self.counter += 1
        return self.counter

    def _keep(self, operation: str, before: Json | None, task: Json, now: str, number: int) -> None:
        task["is_completed"] = task["status"] == "completed"
        task["completed_at"] = (task["completed_at"] or now) if task["is_completed"] else None
        task["created_at"] = task["created_at"] or now
        task |= {"updated_at": now, "version": number}
        self.tasks[task["id"]] = task
        self.changes.setdefault((number, task["id"]), Change(operation, before)).after = task


class _Batch(Model):
    """The model while a batch is under way."""

    number: int | None = None

    def next_number(self, seen: Json) -> int:
        if self.number is None:
            self.number = super().next_number(seen)
        return self.number

    def _keep(self, operation: str, before: Json | None, task: Json, now: str, number: int) -> None:
        super()._keep("batch", before, task, now, number)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


# The calls ------------------------------------------------------------------------------------------------------------

TITLE = st.sampled_from(["a", "b", "\\", "Ünï 🎉 'quoted' \"twice\"", "x" * 100])
OTHERS = {
    "description": st.sampled_from([None, "", "d", " e\n"]),
    "status": st.sampled_from(["pending", "in_progress", "completed"]),
    "priority": st.sampled_from(["low", "medium", "high"]),
    "is_completed": st.booleans(),
    "due_date": st.sampled_from([None, "2026-01-31", "2026-02-28", "2028-02-29"]),
    "due_time": st.sampled_from([None, "09:00:00", "23:59:59"]),
    "due_time_zone": st.sampled_from([None, "Europe/Berlin", "UTC"]),
    "recurrence": st.sampled_from([None, "FREQ=DAILY", "FREQ=DAILY;INTERVAL=2"]),
    "recurrence_anchor": st.sampled_from(["due", "due", "completion"]),
    "tags": st.sampled_from([[], ["a"], ["b", '"\\ é,'.replace(",", "")]]),
}
# So that enough happens to series
RECURRING = st.fixed_dictionaries(
    {
        "title": TITLE,
        "due_date": st.sampled_from(["2026-01-31", "9999-12-31"]),
        "recurrence": st.sampled_from(["FREQ=DAILY", "FREQ=DAILY;COUNT=2", "FREQ=MONTHLY;BYMONTHDAY=31"]),
    },
    optional={name: OTHERS[name] for name in ("status", "priority", "tags")},
)


def agreeing(task: Json) -> Json:
    """Returns the fields as the service lets them through: its two words for the same thing do not contradict."""
    both = {"status", "is_completed"} <= task.keys()
    task = task | {"is_completed": task["status"] == "completed"} if both else task
    for name, needed in NEEDS.items():
        if task.get(name) not in (None, "due") and needed in task and task[needed] is None:
            task.pop(name)
    return task


def complete_in_itself(task: Json) -> Json:
    """Returns the fields as the service lets them through for a new task."""
    task = agreeing(task)
    for name, needed in NEEDS.items():
        if task.get(name) not in (None, "due") and task.get(needed) is None:
            task = {field: value for field, value in task.items() if field != name}
    return task


ID = st.sampled_from(IDS) | st.sampled_from((*IDS, *SUCCESSORS))
FIELDS_SENT = st.fixed_dictionaries({"title": TITLE}, optional=OTHERS).map(complete_in_itself) | RECURRING
PATCH = st.fixed_dictionaries({}, optional={"title": TITLE} | OTHERS).map(agreeing) | st.fixed_dictionaries(
    {}, optional={"title": TITLE} | {name: OTHERS[name] for name in ("status", "is_completed")}
).map(agreeing)
WHAT = st.sampled_from(["update", "update", "update", "complete", "complete", "complete", "delete", "restore"])
# What the task has, what it gets by the user's next change, or neither
VERSION = st.sampled_from(["own", "next", "other"])
KEY = st.sampled_from(["key", "another-key"])
BEFORE = st.sampled_from([EVER, NEVER])
OPERATION = st.tuples(st.just("create") | WHAT, ID, FIELDS_SENT, PATCH, st.none() | VERSION)
CREATE_CALL = st.tuples(st.just("create"), ID, FIELDS_SENT, st.none() | KEY, st.sampled_from(HASHES))
CHANGE_CALL = st.tuples(st.just("change"), WHAT, ID, PATCH, st.none() | st.lists(VERSION, max_size=3))
PURGE_CALL = st.one_of(
    st.tuples(st.just("purge_tasks"), st.lists(ID), BEFORE),
    st.tuples(st.just("purge_keys"), st.lists(KEY), BEFORE),
    st.tuples(st.just("purge_changes"), BEFORE, BEFORE),
)
BATCH_CALL = st.tuples(st.just("batch"), st.lists(OPERATION, max_size=6), st.booleans(), st.booleans())
# Of a user who has nothing, and of one who has tasks
FIRST: st.SearchStrategy[list[Any]] = st.just([]) | st.lists(CREATE_CALL, min_size=3, max_size=4)
KINDS = (CREATE_CALL, *[CHANGE_CALL] * 5, *[BATCH_CALL] * 2, PURGE_CALL)
OTHER = st.sampled_from(KINDS).flatmap(lambda calls: calls)
# Of one series, back and forth
DAILY: Json = {"title": "a", "due_date": "2026-01-31", "recurrence": "FREQ=DAILY"}
MEMBER = st.sampled_from((IDS[0], IDS[0], SUCCESSORS[0]))
STATUS = st.sampled_from(["pending", "completed"]).map(lambda status: {"status": status})
STEP: st.SearchStrategy[tuple[str, str, Json]] = st.one_of(
    st.tuples(st.just("update"), MEMBER, STATUS),
    st.tuples(st.just("complete"), MEMBER, st.just({})),
    st.tuples(st.sampled_from(["update", "delete", "restore"]), MEMBER, TITLE.map(lambda title: {"title": title})),
)
IN_SERIES = st.one_of(
    *[STEP.map(lambda step: ("change", *step, None))] * 3,
    st.lists(STEP, min_size=2, max_size=3).map(
        lambda steps: ("batch", [(what, task, DAILY, patch, None) for what, task, patch in steps], False, False)
    ),
)
SERIES_CALLS = st.lists(IN_SERIES, min_size=3, max_size=10).map(
    lambda calls: [("create", IDS[0], DAILY, None, HASHES[0]), ("change", "complete", IDS[0], {}, None), *calls]
)
CALLS = st.builds(operator.add, FIRST, st.lists(OTHER, min_size=4, max_size=12)) | SERIES_CALLS


def patch_of(what: str, fields: Json) -> Json | None:
    """Returns what a change takes of these fields: an update all, a completion at most the one that it is about."""
    if what == "complete" and "is_completed" in fields:
        return {"is_completed": fields["is_completed"]}
    return fields if what == "update" else None


def renamed(patch: Json | None) -> Json | None:
    """Returns the patch as change_task takes it: a new recurrence by the name `rule`."""
    if patch is None or patch.get("recurrence") is None:
        return patch
    return {"rule" if name == "recurrence" else name: value for name, value in patch.items()}


def plan_of_new(task_id: str, fields: Json) -> planning.Plan:
    return planning.plan_of_new(TaskCreate.model_validate(fields), task_id, None)


async def run_change(
    connection: Any, user: str, what: str, task: str, patch: Json | None, versions: list[str] | None
) -> Any:
    """Calls change_task until it has no question; returns its answer."""
    plan: planning.Plan = {}
    while True:
        sent = None if patch is None else json.dumps(renamed(patch))
        answer = await connection.fetchval(CHANGE, user, "1s", what, task, sent, versions, json.dumps(plan))
        if answer[0] != "unplanned":
            return answer
        plan |= planning.plan_for(json.loads(answer[2]), None)


async def run_batch(connection: Any, user: str, batch: list[Json], atomic: bool, dry_run: bool) -> Any:
    """Calls run_batch until it has no question; returns its answer."""
    plans = [plan_of_new(one["id"], one["task"]) if one["op"] == "create" else {} for one in batch]
    sent = json.dumps([one if one["op"] == "create" else one | {"task": renamed(one["task"])} for one in batch])
    while True:
        answer = await connection.fetchrow(BATCH, user, "1s", sent, json.dumps(plans), atomic, dry_run)
        _, outcomes, answers, _ = answer
        if "unplanned" not in outcomes:
            return answer
        for plan, outcome, question in zip(plans, outcomes, answers, strict=True):
            if outcome == "unplanned":
                plan |= planning.plan_for(json.loads(question), None)


async def compare(connection: Any, calls: list[Any]) -> None:
    """Makes the calls for a new user; each answers what the model says, and leaves the rows that it has."""
    user, model = f"user-{uuid4()}", Model()

    def version(which: str, task: str) -> str:
        own = model.tasks[task]["version"] if task in model.tasks else 1
        return str({"own": own, "next": (model.counter or 0) + 1, "other": 1}[which])

    for kind, *arguments in calls:
        match kind, arguments:
            case "create", [task, new, key, request]:
                plan = json.dumps(plan_of_new(task, new))
                sent = user, "1s", task, json.dumps(new), key, key and request, plan
                outcome, number, *answers = await connection.fetchval(CREATE, *sent)
                model.rows = (await stored(connection, user)).tasks
                answer, after = map(loaded, answers)
                assert (outcome, number, answer, after) == model.create(answer, task, new, key, request, after)
            case "change", [what, task, fields, if_match]:
                patch = patch_of(what, fields)
                versions = if_match and [version(which, task) for which in if_match]
                outcome, number, *answers = await run_change(connection, user, what, task, patch, versions)
                model.rows = (await stored(connection, user)).tasks
                answer, after = map(loaded, answers)
                assert (outcome, number, answer, after) == model.change(answer, what, task, patch, versions, after)
            case "batch", [operations, atomic, dry_run]:
                batch = [
                    {
                        "op": what,
                        "id": task,
                        "if_version": int(version(which, task)) if which and what != "create" else None,
                        "task": new if what == "create" else patch_of(what, fields),
                    }
                    for what, task, new, fields, which in operations
                ]
                number, outcomes, answers, afters = await run_batch(connection, user, batch, atomic, dry_run)
                model.rows = (await stored(connection, user)).tasks
                afters += [None] * (len(answers) - len(afters))
                seen = [(loaded(answer), loaded(after)) for answer, after in zip(answers, afters, strict=True)]
                assert (number, outcomes, seen) == model.batch(seen, batch, atomic=atomic, dry_run=dry_run)
            case "purge_tasks", [ids, before]:
                assert await connection.fetchval(ERASE_TASKS, user, "1s", ids, before) == model.purge_tasks(ids, before)
            case "purge_keys", [keys, before]:
                assert await connection.fetchval(ERASE_KEYS, user, "1s", keys, before) == model.purge_keys(keys, before)
            case "purge_changes", [before, erased_before]:
                erased = await connection.fetchval(ERASE_CHANGES, user, "1s", before, erased_before, 1000)
                assert erased == model.purge_changes(before, erased_before)
        found = await stored(connection, user)
        logged = {place: change.logged() for place, change in model.changes.items()}
        assert await history(connection, user) == logged
        assert found == replace(model, changes={}, rows={})


def loaded(answer: str | None) -> Json | None:
    """Returns the task of an answer, which has the fields in their order."""
    if answer is None:
        return None
    task: Json = json.loads(answer)
    assert tuple(task) == FIELDS
    return task


def written(after: Json, *, is_new: bool) -> Json:
    """Returns the fields that the change wrote; of a new task the whole row may be there, as it was answered."""
    return {name: after[name] for name in LOGGED if after.get(name) is not None} if is_new else after


async def history(connection: Any, user: str) -> dict[tuple[int, str], tuple[str, Json | None, Json | None]]:
    """Returns the rows of history, as Change.logged() has them."""
    rows = await connection.fetch(
        "select version, task_id::text, operation, before, after from tasks.change where user_id = $1", user
    )
    return {
        (number, task): (
            operation,
            before and json.loads(before),
            after and written(json.loads(after), is_new=before is None),
        )
        for number, task, operation, before, after in rows
    }


async def stored(connection: Any, user: str) -> Model:
    """Returns what is in the tables, but for the history."""
    tasks = await connection.fetch("select row_to_json(t) from tasks.task t where user_id = $1", user)
    keys = await connection.fetch("select key, request_hash, answer from tasks.idempotency where user_id = $1", user)
    query = "select version, history_floor, erased_floor from tasks.account where user_id = $1"
    counter, *floors = await connection.fetchrow(query, user) or (None, 0, 0)
    return Model(
        counter,
        (floors[0], floors[1]),
        {task["id"]: task for (text,) in tasks for task in [json.loads(text)]},
        {key: (request, json.loads(answer)) for key, request, answer in keys},
    )


@settings(max_examples=500, derandomize=True, database=None, deadline=None)
@given(calls=CALLS)
async def test_any_calls_answer_and_leave_what_the_model_says(connection: Any, calls: list[Any]) -> None:
    await compare(connection, calls)


@pytest.fixture(scope="module")
async def connection_15(postgres_15: str) -> AsyncIterator[Any]:
    opened = await connect(postgres_15)
    yield opened
    await opened.close()


@settings(max_examples=100, derandomize=True, database=None, deadline=None)
@given(calls=CALLS)
async def test_so_they_do_on_the_oldest_postgresql(connection_15: Any, calls: list[Any]) -> None:
    await compare(connection_15, calls)


# Two at once ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def sessions(database_url: str) -> AsyncIterator[tuple[Any, Any]]:
    opened = await connect(database_url), await connect(database_url)
    yield opened
    for session in opened:
        await session.close()


@pytest.fixture
def user() -> str:
    return f"user-{uuid4()}"


def create(user: str, task_id: str = IDS[0], key: str | None = None, lock_timeout: str = "5s") -> Answer:
    return CREATE, user, lock_timeout, task_id, '{"title": "x"}', key, key and HASHES[0], None


def change(
    user: str, what: str, patch: str | None = None, if_match: list[str] | None = None, lock_timeout: str = "5s"
) -> Answer:
    return CHANGE, user, lock_timeout, what, IDS[0], patch, if_match, None


def batch(user: str, what: str, lock_timeout: str = "5s") -> Answer:
    operations = [{"op": what, "id": IDS[0], "task": {"title": "y"}}]
    return BATCH, user, lock_timeout, json.dumps(operations), None, True, False


async def answer_to(session: Any, call: Answer) -> Answer:
    """Returns what a call answers, whether it comes as one value or as columns, but for successors: there are none."""
    row = await session.fetchrow(*call)
    answer = row[0] if isinstance(row[0], tuple) else tuple(row)
    if call[0] in (CREATE, CHANGE, BATCH):
        assert not answer[3]
        return tuple(answer[:3])
    return answer


async def meet(sessions: tuple[Any, Any], call: Answer, other: Answer, end: str = "commit") -> Answer:
    """Makes one call in a transaction; returns what the other one answers, which has to wait until that ends."""
    first, second = sessions
    await first.execute("begin")
    await first.fetchrow(*call)
    waiting = asyncio.create_task(answer_to(second, other))
    await eventually(lambda: is_blocked(first, second.get_server_pid()))
    await first.execute(end)
    return await waiting


async def test_an_undo_looks_each_task_up_also_with_a_plan_from_when_there_were_few(database_url: str) -> None:
    with empty_database(database_url) as url:
        migrate(parse_address(url))
        connection: Any = await asyncpg.connect(url)
        await connection.execute("alter table tasks.task set (autovacuum_enabled = off)")
        insert = """
            insert into tasks.task (user_id, id, title, version, tags)
            select 'anna', gen_random_uuid(), 'x', 1, array[$1::text] from generate_series(1, $2::int)
        """
        await connection.execute("insert into tasks.account values ('anna', 1, 1)")
        await connection.execute(insert, "few", 3)
        await connection.execute("vacuum analyze tasks.task")
        for _ in range(8):  # from the sixth on, plpgsql keeps the plan
            assert await renamed_and_undone(connection, "few") == 3
        await connection.execute(insert, "many", 1000)
        async with connection.transaction():
            assert await renamed_and_undone(connection, "many") == 1000
            read = await connection.fetchval(
                "select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables where relname = 'task'"
            )
        await connection.close()
    assert read < 10 * 1003


async def renamed_and_undone(connection: Any, tag: str) -> int:
    """Renames the tag in all of anna's tasks, and takes it back; returns how many the undo has changed."""
    version = await connection.fetchval("select version from tasks.rename_tag('anna', '5s', $1, 'another')", tag)
    undone = "select json_array_length(tasks) from tasks.undo_change('anna', '5s', $1)"
    number: int = await connection.fetchval(undone, version)
    return number


by_pid = pytest.mark.not_on("pooler", "the pooler hides the server's process numbers")


@by_pid
async def test_an_update_that_waited_keeps_what_was_written_meanwhile(sessions: tuple[Any, Any], user: str) -> None:
    _, version, _ = await answer_to(sessions[0], create(user))
    update = change(user, "update", '{"description": "d"}')
    outcome, number, task = await meet(sessions, change(user, "update", '{"title": "y"}'), update)
    assert (outcome, number) == ("changed", version + 2)
    assert {"title": "y", "description": "d", "version": version + 2}.items() <= json.loads(task).items()


@by_pid
async def test_if_match_is_compared_with_the_version_that_was_committed_meanwhile(
    sessions: tuple[Any, Any], user: str
) -> None:
    _, version, _ = await answer_to(sessions[0], create(user))
    update, if_match = change(user, "complete"), change(user, "complete", None, [str(version)])
    assert await meet(sessions, update, if_match) == ("other_version", version + 1, None)
    if_match = change(user, "complete", None, [str(version + 1)])
    assert (await meet(sessions, update, if_match, "rollback"))[:2] == ("changed", version + 2)


@by_pid
@pytest.mark.parametrize("has_account", [True, False])
async def test_of_two_creates_with_the_same_key_one_is_replayed(
    sessions: tuple[Any, Any], user: str, has_account: bool
) -> None:
    if has_account:
        await answer_to(sessions[0], create(user))
    first, second = create(user, IDS[1], "key"), create(user, IDS[2], "key")
    outcome, version, task = await meet(sessions, first, second)
    assert (outcome, json.loads(task)["id"], json.loads(task)["version"]) == ("replayed", IDS[1], version)
    found = await stored(sessions[0], user)
    assert (found.counter, {*found.tasks}) == (version, {IDS[0], IDS[1]} if has_account else {IDS[1]})

    first, second = create(user, IDS[2], "other"), create(user, IDS[2], "other")
    assert (await meet(sessions, first, second, "rollback"))[:2] == ("created", version + 1)


@by_pid
@pytest.mark.parametrize("has_account", [True, False])
async def test_of_two_creates_with_the_same_id_one_finds_it_taken(
    sessions: tuple[Any, Any], user: str, has_account: bool
) -> None:
    if has_account:
        await answer_to(sessions[0], create(user))
    both = create(user, IDS[1]), create(user, IDS[1])
    assert await meet(sessions, *both) == ("exists", None, None)
    found = await stored(sessions[0], user)
    assert found.counter == found.tasks[IDS[1]]["version"], "the one that failed has no number"


@by_pid
async def test_the_first_two_writes_of_a_user_have_two_numbers(sessions: tuple[Any, Any], user: str) -> None:
    _, version, _ = await meet(sessions, create(user, IDS[0]), create(user, IDS[1]))
    found = await stored(sessions[0], user)
    assert [found.tasks[task]["version"] for task in IDS[:2]] == [version - 1, version]


@by_pid
async def test_a_batch_that_waited_sees_what_was_committed_meanwhile(sessions: tuple[Any, Any], user: str) -> None:
    _, version, _ = await answer_to(sessions[0], create(user))
    assert await meet(sessions, change(user, "delete"), batch(user, "update")) == (None, ["not_found"], [None])
    assert (await meet(sessions, change(user, "restore"), batch(user, "update")))[:2] == (version + 3, ["changed"])
    assert await meet(sessions, batch(user, "delete"), change(user, "complete")) == ("not_found", None, None)


@by_pid
async def test_a_restore_or_a_purge_that_waited_finds_the_task_restored(sessions: tuple[Any, Any], user: str) -> None:
    await answer_to(sessions[0], create(user))
    for other, answer in (
        (change(user, "restore"), ("not_found", None, None)),
        ((ERASE_TASKS, user, "5s", [IDS[0]], EVER), (0,)),
    ):
        await sessions[0].fetchrow(*change(user, "delete"))
        assert await meet(sessions, change(user, "restore"), other) == answer
        assert (await stored(sessions[0], user)).tasks[IDS[0]]["deleted_at"] is None


WAITING = "20ms"


def writes(user: str) -> list[Answer]:
    return [
        create(user, IDS[1], lock_timeout=WAITING),
        create(user, IDS[1], "another-key", lock_timeout=WAITING),
        *(change(user, what, "{}", lock_timeout=WAITING) for what in ("update", "complete", "delete", "restore")),
        batch(user, "update", WAITING),
        batch(user, "create", WAITING),
        (ERASE_TASKS, user, WAITING, [IDS[0]], EVER),
        (ERASE_KEYS, user, WAITING, ["key"], EVER),
        (ERASE_CHANGES, user, WAITING, EVER, EVER, 1000),
        (UNDO, user, WAITING, 1),
    ]


async def test_whoever_waits_too_long_for_the_account_ends_and_has_done_nothing(
    sessions: tuple[Any, Any], user: str
) -> None:
    first, second = sessions
    await first.fetchrow(*create(user, key="key"))
    before = await stored(first, user)
    async with first.transaction():
        await first.execute("select from tasks.account where user_id = $1 for update", user)
        for call in writes(user):
            with pytest.raises(asyncpg.LockNotAvailableError):
                await second.fetchrow(*call)
    assert await stored(first, user) == before
    assert await second.fetchval("show lock_timeout") == "0", "it held for the transaction"


async def test_whoever_waits_too_long_for_the_task_ends_and_has_done_nothing(
    sessions: tuple[Any, Any], user: str
) -> None:
    first, second = sessions
    await first.fetchrow(*create(user))
    before = await stored(first, user)
    async with first.transaction():
        await first.execute("select from tasks.task where user_id = $1 for update", user)  # as somebody in psql may
        for call in (change(user, "complete", lock_timeout=WAITING), batch(user, "delete", WAITING)):
            with pytest.raises(asyncpg.LockNotAvailableError):
                await second.fetchrow(*call)
    assert await stored(first, user) == before


async def test_a_first_write_waits_no_longer_either(sessions: tuple[Any, Any], user: str) -> None:
    first, second = sessions
    async with first.transaction():
        await first.fetchrow(*create(user))
        for call in (create(user, IDS[1], lock_timeout=WAITING), batch(user, "create", WAITING)):
            with pytest.raises(asyncpg.LockNotAvailableError):
                await second.fetchrow(*call)
    assert {*(await stored(first, user)).tasks} == {IDS[0]}


# Made in psql ---------------------------------------------------------------------------------------------------------


async def test_a_task_that_was_inserted_without_an_account_is_changed_like_any_other(
    connection: Any, user: str
) -> None:
    insert = "insert into tasks.task (user_id, id, title, version) values ($1, $2, 'x', 1)"
    await connection.execute(insert, user, IDS[0])
    assert await answer_to(connection, change(user, "restore")) == ("not_found", None, None)
    assert await answer_to(connection, change(user, "complete", None, ["2"])) == ("other_version", 1, None)
    assert (await answer_to(connection, change(user, "update", "{}")))[:2] == ("unchanged", 1)
    assert (await stored(connection, user)).counter is None, "nothing has changed"
    assert (await answer_to(connection, create(user)))[0] == "exists"
    for what in ("update", "complete", "delete", "restore"):
        patch = '{"title": "y"}' if what == "update" else None
        outcome, version, _ = await answer_to(connection, change(user, what, patch))
        assert (outcome, version) == ("changed", (await stored(connection, user)).counter)


async def test_the_purge_of_such_a_task_makes_the_account(connection: Any, user: str) -> None:
    insert = "insert into tasks.task (user_id, id, title, version, deleted_at) values ($1, $2, 'x', 1, now())"
    await connection.execute(insert, user, IDS[0])
    assert await connection.fetchval(ERASE_TASKS, user, "1s", [IDS[0]], EVER) == 1
    assert (await stored(connection, user)).counter is not None, "so that lists change"


async def test_an_operation_that_is_none_of_the_five_is_an_error(connection: Any, user: str) -> None:
    await connection.fetchrow(*create(user))
    before = await stored(connection, user)
    for call in (change(user, "toggle"), batch(user, "toggle")):
        with pytest.raises(asyncpg.CaseNotFoundError):
            await connection.fetchrow(*call)
    assert await stored(connection, user) == before


# plpgsql_check --------------------------------------------------------------------------------------------------------

FOUND = """
    select f.oid::regprocedure::text, c.lineno, c.level, c.message
    from pg_proc f, checker.plpgsql_check_function_tb(f.oid, fatal_errors => false, all_warnings => true) c
    where f.pronamespace = 'tasks'::regnamespace
        and c.message not like 'composite OUT variable %' -- settle_series has one beside others
        and f.prolang = (select oid from pg_language where lanname = 'plpgsql')
"""


def test_plpgsql_check_finds_nothing(postgres_15: str) -> None:
    with psycopg.connect(postgres_15) as connection:
        connection.execute("create schema checker")
        connection.execute("create extension plpgsql_check schema checker")
        connection.execute("set search_path = ''")  # a name without its schema is an error
        assert connection.execute(FOUND).fetchall() == []
        connection.execute("""
            create function tasks.wrong(p_user text) returns bigint language plpgsql as $$
            declare
                number int;
            begin
                if p_user is null then
                    perform from account a where a.user_id = p_user;
                end if;
                return 1;
            end
            $$
        """)
        found = {(level, message) for _, _, level, message in connection.execute(FOUND)}
        assert found >= {("error", 'relation "account" does not exist'), ("warning", 'unused variable "number"')}
        connection.rollback()
