"""Many changes as one."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from service.auth.tokens import authenticate
from service.db.coalescer import Coalescer
from service.models import (
    KINDS,
    Batch,
    BatchComplete,
    BatchCreate,
    BatchOperation,
    BatchResult,
    BatchUpdate,
    TaskComplete,
    TaskCreate,
    TaskUpdate,
)
from service.queries import tasks
from service.queries.tasks import Operation, Written
from service.web.errors import MOST_ENTRIES, Invalid, Wrong, shown
from service.web.limit import charge_operations
from service.web.request import read_batch, validated
from service.web.responses import FAILED, JsonResponse, refusal
from service.web.route import Resource, describe
from service.web.zones import WRITE_PARAMETERS, read_time_zone, require_zone

STATUSES = {"created": 201, "changed": 200, "unchanged": 200}
BATCH_ENTRIES = 200  # of all its operations' tasks together; beyond them each operation tells one


class _Result(NamedTuple):
    """What an operation answers."""

    status: int
    task: bytes | None = None
    successor: bytes | None = None
    detail: str | list[Invalid] | None = None


TAKEN_BACK = _Result(424, detail="Another operation failed")


@describe(
    200,
    "The results, in the order of the operations",
    body=Batch,
    answer=BatchResult,
    conflict=BatchResult,
    query=WRITE_PARAMETERS,
)
async def run_batch(request: Request) -> Response:
    """Make many changes as one.

    Each operation sees what the earlier ones did, and all that is changed gets the one number `version`. Unless
    `atomic` is false, one failure takes all of them back: that is a 409 with the same body, where `status` says which
    failed, and 424 which did not. With `dry_run` nothing is kept, and the answer is always a 200. The body may have
    1 MiB.
    """
    user_id = await authenticate(request)
    time_zone = await read_time_zone(request)
    batch = validated(await read_batch(request), Batch)
    charge_operations(request, user_id, len(batch.operations))
    db = request.app.state.db
    changes = [await _with_known_zone(db, change) for change in _changes(_operations(batch))]
    operations = [change for change in changes if isinstance(change, Operation)]
    dry_run = batch.dry_run or (batch.atomic and len(operations) < len(changes))  # what fails is told, nothing is kept
    ran = await tasks.run_batch(db, user_id, operations, atomic=batch.atomic, dry_run=dry_run, time_zone=time_zone)
    done = iter(map(_result, operations, ran.results))
    results = [_Result(422, detail=change) if isinstance(change, list) else next(done) for change in changes]
    failed = batch.atomic and any(result.status >= 400 for result in results)
    if failed:
        results = [result if result.status >= 400 else TAKEN_BACK for result in results]
    is_kept = not batch.dry_run and any(result.status < 400 for result in results)
    return JsonResponse(_body(results, ran.version, is_kept=is_kept), 409 if failed and not batch.dry_run else 200)


def _operations(batch: Batch) -> list[BatchOperation]:
    """Returns the operations, each as its kind has to be; raises Wrong with what is wrong with all of them."""
    found: list[BatchOperation] = []
    told: list[Invalid] = []
    count = 0
    for number, operation in enumerate(batch.operations):
        try:
            found.append(_operation(operation, ["body", "operations", number], MOST_ENTRIES - len(told)))
        except Wrong as wrong:
            told += wrong.told
            count += wrong.count
    if count:
        raise Wrong(told, count)
    return found


def _operation(value: Any, place: list[str | int], most: int) -> BatchOperation:
    kind = value.get("op") if isinstance(value, dict) else "delete"  # whichever: it is no object
    if isinstance(kind, str) and kind in KINDS:
        return validated(value, KINDS[kind], place, most)
    if "op" not in value:
        entry = Invalid(loc=[*place, "op"], msg="Field required", type="missing")
    else:
        message = f"Input should be one of {', '.join(KINDS)}, not {shown(kind)}"
        entry = Invalid(loc=[*place, "op"], msg=message, type="literal_error")
    raise Wrong([entry], 1, most)


def _changes(operations: Sequence[BatchOperation]) -> list[Operation | list[Invalid]]:
    """Returns what each operation does, or what is wrong with its task."""
    found: list[Operation | list[Invalid]] = []
    left = BATCH_ENTRIES
    for operation in operations:
        try:
            found.append(_change(operation, min(MOST_ENTRIES, max(1, left))))
        except Wrong as wrong:
            left -= len(wrong.told)
            found.append(wrong.entries)
    return found


def _change(operation: BatchOperation, most: int) -> Operation:
    match operation:
        case BatchCreate():
            return _create(operation, validated(operation.task, TaskCreate, most=most))
        case BatchUpdate():
            task = validated(operation.task, TaskUpdate, most=most)
            return Operation("update", operation.id, operation.if_version, task)
        case BatchComplete() if "task" in operation.model_fields_set:
            wanted = validated(operation.task, TaskComplete, most=most)
            task = TaskUpdate(is_completed=wanted.is_completed)
            return Operation("update", operation.id, operation.if_version, task)
        case BatchComplete():
            return Operation("complete", operation.id, operation.if_version)
        case _:
            return Operation(operation.op, operation.id, operation.if_version)


def _create(operation: BatchCreate, task: TaskCreate) -> Operation:
    task_id = operation.id or task.id
    if "id" in task.model_fields_set and task.id != task_id:
        message = f"The operation has another id, not {shown(task.id)}"
        raise Wrong([Invalid(loc=["body", "id"], msg=message, type="contradiction")], 1)
    return Operation("create", task_id, None, task)


async def _with_known_zone(db: Coalescer, change: Operation | list[Invalid]) -> Operation | list[Invalid]:
    """Returns the same, or what is wrong when its zone is none of the database."""
    if isinstance(change, Operation) and change.task is not None and change.task.due_time_zone is not None:
        try:
            await require_zone(db, change.task.due_time_zone, ["body", "due_time_zone"])
        except Wrong as wrong:
            return wrong.entries
    return change


def _result(operation: Operation, written: Written) -> _Result:
    """Returns what the single request would have answered."""
    if written.outcome in FAILED:
        status, detail = FAILED[written.outcome]
        return _Result(status, detail=detail)
    if (refused := refusal(written, operation.task)) is not None:
        return _Result(422, detail=[refused])
    return (
        _Result(204)
        if operation.op == "delete"
        else _Result(STATUSES[written.outcome], written.task, written.successor)
    )


def _body(results: Sequence[_Result], version: int | None, *, is_kept: bool) -> bytes:
    """Puts the answer together around the tasks, which are PostgreSQL's bytes."""
    head = json.dumps({"committed": is_kept, "version": version}).encode()
    return b'%s, "results": [%s]}' % (head.removesuffix(b"}"), b",".join(map(_json, results)))


def _json(result: _Result) -> bytes:
    if result.successor is not None:
        return b'{"status":%d,"task":%s,"successor":%s}' % (result.status, result.task, result.successor)
    if result.task is not None:
        return b'{"status":%d,"task":%s}' % (result.status, result.task)
    answer: dict[str, Any] = {"status": result.status} | ({"detail": result.detail} if result.detail else {})
    return json.dumps(answer, ensure_ascii=False).encode("utf-8", "backslashreplace")


routes = [Resource("/api/{user_id}/batch", POST=run_batch)]
