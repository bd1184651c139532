"""Many changes as one."""

import json
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service.auth.tokens import authenticate
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
from service.queries.tasks import Change, Outcome, operate
from service.web.errors import MOST_ENTRIES, Invalid, Wrong, shown
from service.web.request import read_batch, refuse_query, validated
from service.web.responses import DETAILS, JsonResponse
from service.web.route import Resource, describe

BATCH_ENTRIES = 200  # of all its operations' tasks together; beyond them each operation tells one
TAKEN_BACK = Outcome(424, detail="Another operation failed")


@describe(200, "The results, in the order of the operations", body=Batch, errors=(409,), answer=BatchResult)
async def run_batch(request: Request) -> Response:
    """Make many changes as one.

    Each operation sees what the earlier ones did. Unless `atomic` is false, one failure takes all of them back: that is
    a 409 with the same body, where `status` says which failed, and 424 which did not. With `dry_run` nothing is kept,
    and the answer is always a 200. The body may have 1 MiB.
    """
    user_id = await authenticate(request)
    refuse_query(request)
    batch = validated(await read_batch(request), Batch)
    changes = _changes(_operations(batch))
    outcomes = await operate(request.app.state.db, user_id, changes, atomic=batch.atomic, dry_run=batch.dry_run)
    failed = batch.atomic and any(outcome.status >= 400 for outcome in outcomes)
    if failed:
        outcomes = [outcome if outcome.status >= 400 else TAKEN_BACK for outcome in outcomes]
    body = _body(outcomes, committed=not failed and not batch.dry_run)
    return JsonResponse(body, 409 if failed and not batch.dry_run else 200)


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


def _changes(operations: Sequence[BatchOperation]) -> list[Change | Outcome]:
    """Returns what each operation does, or its failure when its task is not as it should be."""
    found: list[Change | Outcome] = []
    left = BATCH_ENTRIES
    for operation in operations:
        try:
            found.append(_change(operation, min(MOST_ENTRIES, max(1, left))))
        except Wrong as wrong:
            left -= len(wrong.told)
            found.append(Outcome(422, detail=wrong.detail))
    return found


def _change(operation: BatchOperation, most: int) -> Change:
    match operation:
        case BatchCreate():
            return _create(operation, validated(operation.task, TaskCreate, most=most))
        case BatchUpdate():
            task = validated(operation.task, TaskUpdate, most=most)
            return Change("update", operation.id, operation.if_version, task)
        case BatchComplete() if "task" in operation.model_fields_set:
            wanted = validated(operation.task, TaskComplete, most=most)
            task = TaskUpdate(is_completed=wanted.is_completed)
            return Change("complete", operation.id, operation.if_version, task)
        case _:
            return Change(operation.op, operation.id, operation.if_version)


def _create(operation: BatchCreate, task: TaskCreate) -> Change:
    task_id = operation.id or task.id
    if "id" in task.model_fields_set and task.id != task_id:
        message = f"The operation has another id, not {shown(task.id)}"
        raise Wrong([Invalid(loc=["body", "id"], msg=message, type="contradiction")], 1)
    return Change("create", task_id, None, task)


def _body(outcomes: Sequence[Outcome], *, committed: bool) -> bytes:
    """Puts the answer together around the tasks, which are PostgreSQL's bytes."""
    results = b",".join(_result(outcome) for outcome in outcomes)
    return b'{"committed":%s,"results":[%s]}' % (b"true" if committed else b"false", results)


def _result(outcome: Outcome) -> bytes:
    if outcome.task is not None:
        return b'{"status":%d,"task":%s}' % (outcome.status, outcome.task)
    result: dict[str, Any] = {"status": outcome.status}
    if detail := outcome.detail or DETAILS.get(outcome.status):
        result["detail"] = detail
    return json.dumps(result, ensure_ascii=False).encode("utf-8", "backslashreplace")


routes = [Resource("/api/{user_id}/batch", POST=run_batch)]
