"""Many changes as one."""

import json
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from service import queries
from service.auth import authenticate
from service.errors import Invalid, shown
from service.models import TaskComplete, TaskCreate, TaskUpdate
from service.operations import Batch, BatchComplete, BatchCreate, BatchOperation, BatchResult, BatchUpdate
from service.queries import Change, Outcome
from service.resource import Resource, describe
from service.web import BATCH_BYTES, DETAILS, JsonResponse, entries, read_body, refuse_query

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
    batch = await read_body(request, Batch, BATCH_BYTES)
    changes = [_change(operation) for operation in batch.operations]
    outcomes = await queries.operate(request.app.state.db, user_id, changes, atomic=batch.atomic, dry_run=batch.dry_run)
    failed = batch.atomic and any(outcome.status >= 400 for outcome in outcomes)
    if failed:
        outcomes = [outcome if outcome.status >= 400 else TAKEN_BACK for outcome in outcomes]
    body = _body(outcomes, committed=not failed and not batch.dry_run)
    return JsonResponse(body, 409 if failed and not batch.dry_run else 200)


def _change(operation: BatchOperation) -> Change | Outcome:
    """Returns what the operation does, or its failure when its task is not as it should be."""
    try:
        match operation:
            case BatchCreate():
                return _create(operation, TaskCreate.model_validate(operation.task))
            case BatchUpdate():
                return Change("update", operation.id, operation.if_version, TaskUpdate.model_validate(operation.task))
            case BatchComplete() if "task" in operation.model_fields_set:
                wanted = TaskComplete.model_validate(operation.task)
                task = TaskUpdate(is_completed=wanted.is_completed)
                return Change("complete", operation.id, operation.if_version, task)
            case _:
                return Change(operation.op, operation.id, operation.if_version)
    except ValidationError as error:
        return Outcome(422, detail=entries(error))


def _create(operation: BatchCreate, task: TaskCreate) -> Change | Outcome:
    task_id = operation.id or task.id
    if "id" in task.model_fields_set and task.id != task_id:
        message = f"The operation has another id, not {shown(task.id)}"
        return Outcome(422, detail=[Invalid(loc=["body", "id"], msg=message, type="contradiction")])
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
