"""The tasks of a user."""

from starlette.requests import Request
from starlette.responses import Response

from service import queries
from service.auth import authenticate
from service.lists import PARAMETERS, next_query, read_search
from service.models import TaskComplete, TaskCreate, TaskUpdate
from service.resource import Resource, describe
from service.web import (
    json_response,
    known_versions,
    list_path,
    next_link,
    path_uuid,
    read_body,
    read_optional_body,
    read_response,
    refuse_query,
    task_path,
    task_response,
)


@describe(
    200,
    "The tasks: newest first, or as asked for",
    many=True,
    headers=("Link", "X-Total-Count"),
    query=PARAMETERS,
    conditional=True,
)
async def list_tasks(request: Request) -> Response:
    """List the user's tasks.

    Without parameters: all live tasks, newest first. The parameters combine, with "and"; each is given once. A page is
    followed by the one in its `Link`; a task that stays put is seen exactly once, whatever is written between pages.
    With `fields`, tasks have those fields alone.
    """
    user_id = authenticate(request)
    query, known = request.scope["query_string"], known_versions(request)
    if not query:
        page = await queries.list_tasks(request.app.state.db, user_id, known)
        return read_response(page.tasks, f'W/"{page.version}"')
    search = read_search(query, user_id)
    page = await queries.search_tasks(request.app.state.db, user_id, search, known)
    headers = {} if page.total is None else {"X-Total-Count": str(page.total)}
    if page.last is not None:
        headers["Link"] = next_link(request, list_path(user_id), next_query(query, search, user_id, page.last))
    return read_response(page.tasks, f'W/"{page.version}"', headers)


@describe(201, "The new task", body=TaskCreate, errors=(409,), headers=("Location",))
async def create_task(request: Request) -> Response:
    """Create a task.

    An `id` that the client chooses makes it safe to repeat the request: the second time it is a 409.
    """
    user_id = authenticate(request)
    refuse_query(request)
    task = await read_body(request, TaskCreate)
    created = await queries.insert_task(request.app.state.db, user_id, task)
    return json_response(created, 201, {"Location": task_path(user_id, task.id)})


@describe(200, "The task", errors=(404,), conditional=True)
async def find_task(request: Request) -> Response:
    """Read one task."""
    user_id = authenticate(request)
    task_id = path_uuid(request, "task_id")
    refuse_query(request)
    version, task = await queries.find_task(request.app.state.db, user_id, task_id, known_versions(request))
    return task_response(None) if version is None else read_response(task, f'"{version}"')


@describe(200, "The task after the change", body=TaskUpdate, errors=(404,))
async def update_task(request: Request) -> Response:
    """Change exactly the fields that are sent.

    PUT and PATCH do the same. `{}`, or values equal to the stored ones, change nothing, `version` included.
    """
    user_id = authenticate(request)
    task_id = path_uuid(request, "task_id")
    refuse_query(request)
    change = await read_body(request, TaskUpdate)
    return task_response(await queries.update_task(request.app.state.db, user_id, task_id, change))


@describe(204, "The task is in the trash", errors=(404,))
async def delete_task(request: Request) -> Response:
    """Delete a task."""
    user_id = authenticate(request)
    task_id = path_uuid(request, "task_id")
    refuse_query(request)
    deleted = await queries.delete_task(request.app.state.db, user_id, task_id)
    return Response(status_code=204) if deleted else task_response(None)


@describe(200, "The task after the change", body=TaskComplete, body_required=False, errors=(404,))
async def complete_task(request: Request) -> Response:
    """Complete or reopen a task.

    Without a body it toggles; with one it sets, so that a repeated request is safe.
    """
    user_id = authenticate(request)
    task_id = path_uuid(request, "task_id")
    refuse_query(request)
    wanted = await read_optional_body(request, TaskComplete)
    if wanted is None:
        return task_response(await queries.toggle_task(request.app.state.db, user_id, task_id))
    change = TaskUpdate(is_completed=wanted.is_completed)
    return task_response(await queries.update_task(request.app.state.db, user_id, task_id, change))


TASKS = "/api/{user_id}/tasks"
TASK = TASKS + "/{task_id}"

routes = [
    Resource(TASKS, GET=list_tasks, POST=create_task),
    Resource(TASK, GET=find_task, PATCH=update_task, PUT=update_task.named("put_task"), DELETE=delete_task),
    Resource(TASK + "/complete", PATCH=complete_task),
]
