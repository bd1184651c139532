"""The tasks of a user."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, NamedTuple

from service.db.coalescer import Coalescer, Statement
from service.db.pool import Unavailable
from service.models import Body, TaskComplete, TaskCreate, TaskUpdate
from service.queries import call, planning, read

TASK_FIND = read("tasks/task_find")
TASK_LIST = read("tasks/task_list")
TASK_SEARCH = read("tasks/task_search")
# With all arguments: one that is left to its default would also fit a later version's function, which has more.
# `select * from` would cost 2 to 10 µs more: PostgreSQL would put the row away, and read it again.
INSERT_TASK = call("select tasks.insert_task($1, $2, $3, $4, $5, $6, null, $7, null)")
CHANGE_TASK = call("select tasks.change_task($1, $2, $3, $4, $5, $6, null, $7)")
RUN_BATCH = call("select * from tasks.run_batch($1, $2, $3, $4, $5, $6)")

ROUNDS = 5  # of calls until a plan fits; the second does, unless somebody changes the rule in between
PageKey = tuple[int, str, str]  # the rank, name and id by which a task has its place in a list
DEFAULT_SORT = "-created_at"


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a list with parameters is asked for; what is None is no condition."""

    status: list[str] | None = None
    priority: list[str] | None = None
    is_completed: bool | None = None
    q: list[str] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    updated_after: datetime | None = None
    updated_before: datetime | None = None
    completed_after: datetime | None = None
    completed_before: datetime | None = None
    due_after: str | None = None  # a date
    due_before: str | None = None
    due: str | None = None
    time_zone: str | None = None  # in which `due` is told
    now: datetime | None = None  # by which `due` is told: the present, but in tests
    tags: list[str] | None = None
    tags_all: list[str] | None = None
    trashed: bool = False
    sort: str = DEFAULT_SORT
    limit: int | None = None
    cursor: str | None = None
    fields: list[str] | None = None
    count: bool = False
    after: PageKey | None = None  # what the cursor says

    @property
    def is_told_by_the_clock(self) -> bool:
        """Whether what it finds changes without a write, as time goes by."""
        return self.due not in (None, "none")


class Written(NamedTuple):
    """What became of a write, in the words of `sql/functions/`: `created`, `changed`, `not_found` and so on."""

    outcome: str
    version: int | None  # of the task as it is now; None where there is none
    task: bytes | None  # None when nothing was to be written
    successor: bytes | None = None  # the next task of the series, when this one is recurring and was completed
    problem: str | None = None  # what is wrong with the rule, for `invalid_recurrence`


class Page(NamedTuple):
    """A list, or a part of one."""

    version: int  # the user's counter
    tasks: bytes | None  # a JSON array; None when the caller knows this version
    last: PageKey | None = None  # the last task's place, when another page follows
    total: int | None = None  # of all pages, when it was asked for


async def list_tasks(db: Coalescer, user_id: str, if_none_match: list[str] | None = None) -> Page:
    """Returns the user's live tasks, newest first, unless their version is known."""
    row = await db.fetch(TASK_LIST, user_id, if_none_match)
    return Page(row["version"], row["tasks"])


async def search_tasks(db: Coalescer, user_id: str, search: Search, if_none_match: list[str] | None = None) -> Page:
    """Returns the tasks that the search asks for, unless the user's version is known."""
    row = await db.fetch(TASK_SEARCH, *search_arguments(user_id, search, if_none_match))
    last = (row["next_rank"], row["next_name"], str(row["next_id"])) if row["is_followed"] else None
    return Page(row["version"], row["tasks"], last, row["total"])


def search_arguments(user_id: str, search: Search, if_none_match: list[str] | None) -> tuple[Any, ...]:
    """Returns the arguments of task_search.sql."""
    return (
        user_id,
        if_none_match,
        search.status,
        search.priority,
        search.is_completed,
        search.q,
        search.created_after,
        search.created_before,
        search.updated_after,
        search.updated_before,
        search.completed_after,
        search.completed_before,
        search.trashed,
        search.sort.removeprefix("-"),
        search.sort.startswith("-"),
        *(search.after or (None, None, None)),
        search.limit,
        search.fields and ["id", *search.fields],
        search.count,
        search.due_after,
        search.due_before,
        search.due,
        (search.now or datetime.now(UTC)) if search.is_told_by_the_clock else None,
        search.time_zone,
        search.tags,
        search.tags_all,
    )


async def find_task(
    db: Coalescer, user_id: str, task_id: str, if_none_match: list[str] | None
) -> tuple[int | None, bytes | None]:
    """Returns the live task's version, and the task unless that version is known; None and None when there is none."""
    row = await db.fetch(TASK_FIND, user_id, task_id, if_none_match)
    return row["version"], row["task"]


async def insert_task(
    db: Coalescer, user_id: str, task: TaskCreate, key: str | None = None, time_zone: str | None = None
) -> Written:
    """Creates a task: `created`, or `exists` when the id is taken.

    With a key also `replayed`, with the answer that the same request got before, or `key_used` by another request. The
    zone is where the user is: it tells the day on which a recurring task is completed.
    """
    request_hash = key and _hash(task, time_zone)
    plan = planning.plan_of_new(task, task.id, time_zone)
    return await _write(
        db, INSERT_TASK, user_id, task.id, _sent(task), key, request_hash, json.dumps(plan) if plan else None
    )


async def _write(db: Coalescer, statement: Statement, user_id: str, *arguments: Any) -> Written:
    (answer,) = await db.fetch(statement, user_id, *arguments)
    written = Written(*answer)
    if written.outcome in ("created", "changed"):
        db.hub.tell(user_id, written.version or 0)
    return written


def _sent(body: Body) -> str:
    """Returns as JSON the fields that were sent; those that only the server writes are not among them."""
    return body.model_dump_json(exclude_unset=True, exclude={"id"})


def _patch(change: TaskUpdate | TaskComplete) -> str:
    """Returns as JSON the fields to change, as change_task takes them: a recurrence by the name `rule`."""
    if isinstance(change, TaskComplete) or change.recurrence is None:
        return _sent(change)
    fields = change.model_dump(exclude_unset=True)
    fields["rule"] = fields.pop("recurrence")
    return json.dumps(fields)


def _hash(task: TaskCreate, time_zone: str | None) -> bytes:
    """Returns what two requests have in common when they say the same, in whatever order and spelling."""
    sent = task.model_dump(mode="json", exclude_unset=True)
    if time_zone is not None:
        sent["time_zone"] = time_zone
    return sha256(json.dumps(sent, sort_keys=True).encode()).digest()


async def _change(
    db: Coalescer,
    user_id: str,
    operation: str,
    task_id: str,
    patch: str | None,
    if_match: list[str] | None,
    time_zone: str | None = None,
) -> Written:
    """Calls change_task until its questions about the dates of a rule are answered; most calls have none."""
    plan: planning.Plan = {}
    for _ in range(ROUNDS):
        sent = json.dumps(plan) if plan else None
        written = await _write(db, CHANGE_TASK, user_id, operation, task_id, patch, if_match, sent)
        if written.outcome != "unplanned" or written.task is None:
            return written
        plan |= planning.plan_for(json.loads(written.task), time_zone)
        if (problem := planning.problem_of(plan)) is not None:
            return Written("invalid_recurrence", None, None, problem=problem)
    raise Unavailable("the task's rule is changed faster than its dates can be reckoned")


async def update_task(
    db: Coalescer,
    user_id: str,
    task_id: str,
    change: TaskUpdate,
    if_match: list[str] | None = None,
    time_zone: str | None = None,
) -> Written:
    """Changes the fields of the live task that were sent.

    `changed`, `unchanged`, `not_found` or `other_version`; `invalid_recurrence`; `…_needs_…` for a field that the task
    cannot have without another one.
    """
    return await _change(db, user_id, "update", task_id, _patch(change), if_match, time_zone)


async def toggle_task(
    db: Coalescer, user_id: str, task_id: str, if_match: list[str] | None = None, time_zone: str | None = None
) -> Written:
    """Completes the live task if it was not, else makes it pending: `changed`, `not_found` or `other_version`."""
    return await _change(db, user_id, "complete", task_id, None, if_match, time_zone)


async def complete_task(
    db: Coalescer,
    user_id: str,
    task_id: str,
    change: TaskComplete,
    if_match: list[str] | None = None,
    time_zone: str | None = None,
) -> Written:
    """Completes the live task or reopens it: `changed`, `unchanged`, `not_found` or `other_version`."""
    return await _change(db, user_id, "complete", task_id, _patch(change), if_match, time_zone)


async def delete_task(db: Coalescer, user_id: str, task_id: str, if_match: list[str] | None = None) -> Written:
    """Moves the live task to the trash: `changed`, `not_found` or `other_version`."""
    return await _change(db, user_id, "delete", task_id, None, if_match)


async def restore_task(db: Coalescer, user_id: str, task_id: str, if_match: list[str] | None = None) -> Written:
    """Takes the task out of the trash: `changed`, `not_found` (there) or `other_version`."""
    return await _change(db, user_id, "restore", task_id, None, if_match)


class Operation(NamedTuple):
    """One operation of a batch: create, update, complete, delete or restore."""

    op: str
    id: str
    if_version: int | None = None
    task: TaskCreate | TaskUpdate | None = None

    def json(self) -> str:
        """Returns it as run_batch takes it."""
        match self.task:
            case None:
                task = "null"
            case TaskCreate():
                task = _sent(self.task)
            case _:
                task = _patch(self.task)
        return f'{{"op":"{self.op}","id":"{self.id}","if_version":{self.if_version or "null"},"task":{task}}}'


class Ran(NamedTuple):
    """What became of a batch."""

    version: int | None  # of all that it has changed; None when nothing was, or nothing is kept
    results: list[Written]  # what became of each operation


async def run_batch(
    db: Coalescer,
    user_id: str,
    operations: Sequence[Operation],
    *,
    atomic: bool,
    dry_run: bool,
    time_zone: str | None = None,
) -> Ran:
    """Does all of it as one change, in its order; each operation sees the earlier ones.

    Nothing is kept of a dry run, nor when it is atomic and one of them fails.
    """
    text = f"[{','.join(operation.json() for operation in operations)}]"
    plans = [
        planning.plan_of_new(operation.task, operation.id, time_zone) if isinstance(operation.task, TaskCreate) else {}
        for operation in operations
    ]
    # an operation may ask only when an earlier one has its answers, for a rule and then for a successor
    for _ in range(2 * len(operations) + ROUNDS):
        sent = json.dumps(plans) if any(plans) else None
        version, outcomes, tasks, successors = await db.fetch(RUN_BATCH, user_id, text, sent, atomic, dry_run)
        asking = [number for number, outcome in enumerate(outcomes) if outcome == "unplanned"]
        if not asking:
            db.hub.tell(user_id, version or 0)
            successors += [None] * (len(outcomes) - len(successors))
            problems = map(planning.problem_of, plans)
            return Ran(version, list(map(Written, outcomes, [None] * len(outcomes), tasks, successors, problems)))
        for number in asking:
            question = json.loads(tasks[number])
            plans[number] |= planning.plan_for(question, time_zone)
            if "rule" not in question:
                _plan_ahead(plans, operations, number, time_zone)
    raise Unavailable("the tasks' rules are changed faster than their dates can be reckoned")


def _plan_ahead(
    plans: list[planning.Plan], operations: Sequence[Operation], number: int, time_zone: str | None
) -> None:
    """Plans for the later operations that may complete the successor of this one, and its successors in turn.

    They would ask one after the other, which is a call of the whole batch for each. A plan for another question than
    the one that comes is not used.
    """
    for later in range(number + 1, len(operations)):
        if operations[later].id == plans[number]["successor"]["id"]:
            question = planning.question_after(plans[number])
            plans[later] |= planning.plan_for(question, time_zone)
            number = later
