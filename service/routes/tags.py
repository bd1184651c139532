"""The tags of a user's tasks: which there are, and new names for them."""

from starlette.requests import Request
from starlette.responses import Response

from service.auth.tokens import authenticate
from service.models import TagCount, TagRename, TagRenamed
from service.queries import tags
from service.web.preconditions import if_none_match
from service.web.request import read_body, refuse_query
from service.web.responses import JsonResponse, read_response
from service.web.route import Resource, describe


@describe(200, "The tags, most used first", answer=TagCount, many=True, conditional=True)
async def list_tags(request: Request) -> Response:
    """List the tags of the live tasks.

    Tags that differ only in case are one, in the spelling that most tasks have.
    """
    user_id = await authenticate(request)
    refuse_query(request)
    version, found = await tags.list_tags(request.app.state.db, user_id, if_none_match(request))
    return read_response(found, f'W/"{version}"')


@describe(200, "The number of the change, and how many tasks it has changed", body=TagRename, answer=TagRenamed)
async def rename_tag(request: Request) -> Response:
    """Rename a tag, merge it with another, or remove it.

    That is one change of all tasks that have the tag, those in the trash too, so one undo takes it back. In each task
    the new tag takes the old one's place; where both were, it is there once.
    """
    user_id = await authenticate(request)
    refuse_query(request)
    rename = (await read_body(request, TagRename)).model_dump()
    renamed = await tags.rename_tag(request.app.state.db, user_id, rename["from"], rename["to"])
    version = b"null" if renamed.version is None else b"%d" % renamed.version
    return JsonResponse(b'{"version": %s, "tasks": %d}' % (version, renamed.tasks))


routes = [
    Resource("/api/{user_id}/tags", GET=list_tags),
    Resource("/api/{user_id}/tags/rename", POST=rename_tag),
]
