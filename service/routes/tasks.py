"""The tasks of a user."""

from starlette.requests import Request
from starlette.responses import Response

from service.auth.tokens import authenticate
from service.models import TaskComplete, TaskCreate, TaskUpdate
from service.queries import tasks
from service.web.preconditions import idempotency_key, if_match, if_none_match
from service.web.request import path_uuid, read_body, read_optional_body, refuse_query
from service.web.responses import (
    JsonResponse,
    created_response,
    next_link,
    no_content,
    not_found,
    read_response,
    task_response,
)
from service.web.route import Resource, describe
from service.web.search import PARAMETERS, next_query, read_search
from service.web.zones import WRITE_PARAMETERS, read_time_zone, require_zone


@describe(
    200,
    "The tasks: newest first, or as asked for. With `fields` they have those alone, and less than their type says",
    many=True,
    headers=("Link", "X-Total-Count"),
    query=PARAMETERS,
    conditional=True,
)
async def list_tasks(request: Request) -> Response:
    """List the user's tasks.

    Without parameters: all live tasks, newest first. The parameters combine, with "and". A page is
    followed by the one in its `Link`; a task that stays put is seen exactly once, whatever is written between pages.
    """
    user_id = await authenticate(request)
    db, query, known = request.app.state.db, request.scope["query_string"], if_none_match(request)
    if not query:
        page = await tasks.list_tasks(db, user_id, known)
        return read_response(page.tasks, f'W/"{page.version}"')
    search = read_search(query, user_id)
    await require_zone(db, search.time_zone, ["query", "time_zone"])
    page = await tasks.search_tasks(db, user_id, search, None if search.is_told_by_the_clock else known)
    headers = {} if page.total is None else {"X-Total-Count": str(page.total)}
    if page.last is not None:
        headers["Link"] = next_link(request, next_query(query, search, user_id, page.last))
    if search.is_told_by_the_clock:
        return JsonResponse(page.tasks or b"", headers=headers)
    return read_response(page.tasks, f'W/"{page.version}"', headers)


@describe(
    201,
    "The new task",
    body=TaskCreate,
    errors=(409,),
    headers=("Location", "ETag"),
    takes_key=True,
    query=WRITE_PARAMETERS,
)
async def create_task(request: Request) -> Response:
    """Create a task.

    To repeat the request safely, send an `Idempotency-Key`: the second time it gets the first answer again. An `id`
    that the client chooses does as well: the second time it is a 409.
    """
    user_id = await authenticate(request)
    time_zone = await read_time_zone(request)
    key = idempotency_key(request)
    task = await read_body(request, TaskCreate)
    await require_zone(request.app.state.db, task.due_time_zone, ["body", "due_time_zone"])
    created = await tasks.insert_task(request.app.state.db, user_id, task, key, time_zone)
    return created_response(request, created, task.id)


@describe(200, "The task", errors=(404,), conditional=True)
async def find_task(request: Request) -> Response:
    """Read one task."""
    user_id = await authenticate(request)
    task_id = path_uuid(request, "task_id")
    refuse_query(request)
    version, task = await tasks.find_task(request.app.state.db, user_id, task_id, if_none_match(request))
    if version is None:
        raise not_found()
    return read_response(task, f'"{version}"')


@describe(
    200,
    "The task after the change",
    body=TaskUpdate,
    errors=(404,),
    headers=("ETag", "Location"),
    takes_versions=True,
    query=WRITE_PARAMETERS,
)
async def update_task(request: Request) -> Response:
    """Change exactly the fields that are sent.

    PUT and PATCH do the same. `{}`, or values equal to the stored ones, change nothing, `version` included.
    """
    user_id = await authenticate(request)
    task_id = path_uuid(request, "task_id")
    time_zone = await read_time_zone(request)
    versions = if_match(request)
    change = await read_body(request, TaskUpdate)
    await require_zone(request.app.state.db, change.due_time_zone, ["body", "due_time_zone"])
    written = await tasks.update_task(request.app.state.db, user_id, task_id, change, versions, time_zone)
    return task_response(request, written, change)


@describe(204, "The task is in the trash", errors=(404,), headers=("ETag",), takes_versions=True)
async def delete_task(request: Request) -> Response:
    """Move a task to the trash.

    It leaves every read but the list of the trash, and keeps its `id`. After 30 days it may be erased for good.
    """
    user_id = await authenticate(request)
    task_id = path_uuid(request, "task_id")
    refuse_query(request)
    return no_content(await tasks.delete_task(request.app.state.db, user_id, task_id, if_match(request)))


@describe(200, "The task, live again", errors=(404,), headers=("ETag",), takes_versions=True)
async def restore_task(request: Request) -> Response:
    """Take a task out of the trash.

    A task that is not in the trash is a 404.
    """
    user_id = await authenticate(request)
    task_id = path_uuid(request, "task_id")
    refuse_query(request)
    return task_response(request, await tasks.restore_task(request.app.state.db, user_id, task_id, if_match(request)))


@describe(
    200,
    "The task after the change",
    body=TaskComplete,
    body_required=False,
    errors=(404,),
    headers=("ETag", "Location"),
    takes_versions=True,
    query=WRITE_PARAMETERS,
)
async def complete_task(request: Request) -> Response:
    """Complete or reopen a task.

    Without a body it toggles; with one it sets, so that a repeated request is safe. To complete a recurring task, in
    whatever way, makes the next one, which `Location` names.
    """
    user_id = await authenticate(request)
    task_id = path_uuid(request, "task_id")
    time_zone = await read_time_zone(request)
    versions = if_match(request)
    change = await read_optional_body(request, TaskComplete)
    db = request.app.state.db
    if change is None:
        return task_response(request, await tasks.toggle_task(db, user_id, task_id, versions, time_zone))
    return task_response(request, await tasks.complete_task(db, user_id, task_id, change, versions, time_zone))


TASKS = "/api/{user_id}/tasks"
TASK = TASKS + "/{task_id}"

routes = [  # in the order in which they are searched
    Resource(TASK, GET=find_task, PATCH=update_task, PUT=update_task.named("put_task"), DELETE=delete_task),
    Resource(TASKS, GET=list_tasks, POST=create_task),
    Resource(TASK + "/complete", PATCH=complete_task),
    Resource(TASK + "/restore", POST=restore_task),
]
