"""The user's account."""

import json

from starlette.requests import Request
from starlette.responses import Response

from service.auth.tokens import authenticate
from service.models import UserErase
from service.queries import accounts
from service.web.errors import invalid, shown
from service.web.request import read_optional_body, refuse_query
from service.web.route import Resource, describe


@describe(204, "Nothing of the user is left", body=UserErase)
async def erase_user(request: Request) -> Response:
    """Erase all that the user has, for good: tasks, trash, history and keys of retries.

    It cannot be undone. Streams end, with `reset`. It may be repeated, which also finishes one that was interrupted.
    Who signs up again begins with nothing, and with higher numbers. The sign-in itself is not kept here, nor erased.
    """
    user_id = await authenticate(request)
    refuse_query(request)
    body = await read_optional_body(request, UserErase)
    sent = body.confirm if body is not None else None
    if sent != user_id:
        right = json.dumps(user_id, ensure_ascii=False)
        was = "it is missing" if sent is None else f"not {shown(sent)}"
        raise invalid(["body", "confirm"], f"Should be {right}, the id of the user who is erased; {was}", "confirm")
    await accounts.erase_user(request.app.state.db, user_id)
    return Response(status_code=204)


routes = [Resource("/api/{user_id}", DELETE=erase_user)]
