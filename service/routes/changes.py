"""What has changed: the feed, by page or as a stream; the history; and undo."""

import time
from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from service.auth.tokens import LEEWAY, authenticate
from service.db.coalescer import Coalescer, waited
from service.db.pool import Unavailable
from service.models import BIGGEST_VERSION, UUID, ChangesPage, ChangeUndo, HistoryEntry, UndoConflict, UndoResult
from service.queries import changes
from service.queries.changes import Feed
from service.web.errors import Problem, invalid, shown
from service.web.parameters import Parameter, read_parameters, whole_number
from service.web.preconditions import if_none_match
from service.web.request import read_body, refuse_query
from service.web.responses import JsonResponse, read_response
from service.web.route import Resource, describe
from service.web.stream import COMMENT, EventStream, SendPart, ended_by_client, event

MOST = 1000  # tasks, or entries, of a page that is asked for
FEED_PAGE, HISTORY_PAGE = 500, 50  # unless asked for
WAIT_SECONDS = 30
COMMENT_SECONDS = 15  # between two signs of life
GONE = "Start again from since=0"
NO_CHANGE = "Change not found"
TOO_OLD = "Too old to undo"


def _uuid(value: str) -> str:
    if not UUID.fullmatch(value):
        raise ValueError("a UUID")
    return value.lower()


SINCE = Parameter(
    whole_number(0, BIGGEST_VERSION),
    "the number up to which everything is known; 0 for all tasks",
    {"type": "integer", "minimum": 0, "maximum": BIGGEST_VERSION},
    0,
)
FEED_PARAMETERS = {
    "since": SINCE,
    "limit": Parameter(
        whole_number(1, MOST),
        f"how many tasks at most, {FEED_PAGE} when it is not sent; a page may have more by those of one change",
        {"type": "integer", "minimum": 1, "maximum": MOST},
        100,
    ),
    "wait": Parameter(
        whole_number(0, WAIT_SECONDS),
        "how many seconds to wait for a change when there is none yet",
        {"type": "integer", "minimum": 0, "maximum": WAIT_SECONDS},
        0,
    ),
}
STREAM_PARAMETERS = {"since": SINCE}
HISTORY_PARAMETERS = {
    "task_id": Parameter(_uuid, "the task; all when it is not sent", {"type": "string", "format": "uuid"}, None),
    "before": Parameter(
        whole_number(1, BIGGEST_VERSION),
        "only what is older than this number: the last entry's, for the next page",
        {"type": "integer", "minimum": 1, "maximum": BIGGEST_VERSION},
        None,
    ),
    "limit": Parameter(
        whole_number(1, MOST),
        f"how many entries at most, {HISTORY_PAGE} when it is not sent; a page may have more by those of one change",
        {"type": "integer", "minimum": 1, "maximum": MOST},
        100,
    ),
}


@describe(
    200,
    "The tasks that have changed, as they are now, in the order of their versions; and which were erased",
    errors=(410,),
    query=FEED_PARAMETERS,
    answer=ChangesPage,
    conditional=True,
)
async def list_changes(request: Request) -> Response:
    """List what has changed since a number.

    Whoever has applied the pages, until `has_more` is false, has exactly the user's tasks as they were after the change
    `version`: no change half, none missing, none twice. Tasks in the trash are among them, with their `deleted_at`.
    """
    user_id = await authenticate(request)
    db, known = request.app.state.db, if_none_match(request)
    asked = read_parameters(request.scope["query_string"], FEED_PARAMETERS)
    since, limit, wait = asked.get("since", 0), asked.get("limit", FEED_PAGE), asked.get("wait", 0)
    read = partial(changes.read_feed, db, user_id, since, limit, known)
    if not wait:
        feed = await read()
    else:
        with db.hub.watch(user_id) as watch:  # from before the reading, so that nothing is missed in between
            feed = await read()
            if _is_empty(feed):
                with ended_by_client(request.receive, watch.end):
                    if await watch.wait(feed.counter, wait):
                        feed = await read()
    if feed.state == "gone":
        raise Problem(410, GONE)
    return read_response(None if feed.state == "known" else _page(feed), f'W/"{feed.counter}"')


@describe(
    200,
    "Server-sent events: `changes`, whose data is what `/changes` answers and whose id is its `version`, and `reset`",
    errors=(410,),
    query=STREAM_PARAMETERS,
    answer=ChangesPage,
    streams=True,
)
async def stream_changes(request: Request) -> Response:
    """Get changes as they are made.

    The stream begins after `Last-Event-ID` or `since`, without either now, with an event that says at which number. It
    ends when the token expires. After `reset`, start again from `since=0`.
    """
    user_id = await authenticate(request)
    db = request.app.state.db
    since = _last_event_id(request)
    asked = read_parameters(request.scope["query_string"], STREAM_PARAMETERS)
    if since is None:
        since = asked.get("since")
    now = await changes.read_feed(db, user_id, since or 0, 1, ["*"])
    if now.state == "gone":
        raise Problem(410, GONE)
    expires = request.scope["expires"]
    if expires - LEEWAY > time.time():  # else it has begun in the time by which clocks may differ, and has the rest
        expires -= LEEWAY
    return EventStream(partial(_tell_changes, db, user_id, since, now.counter, expires, request.receive))


async def _tell_changes(
    db: Coalescer, user_id: str, since: int | None, counter: int, expires: float, receive: Receive, send: SendPart
) -> None:
    """Sends what changes after the number `since`, or after the counter when it is None, until the stream ends."""
    with db.hub.stream(user_id) as stream, ended_by_client(receive, stream.end):
        if since is None:
            since = counter
            await send(event("changes", _page(Feed("new", since, since, False, b"[]", b"[]")), since))
        while not stream.is_ended and time.time() < expires:
            waited.set([])  # the request's would grow as long as the stream goes on
            try:
                feed = await changes.read_feed(db, user_id, since, FEED_PAGE)
            except Unavailable:
                return  # the client comes back, and finds out
            if feed.state == "gone":
                await send(event("reset", b'{"detail": "%s"}' % GONE.encode()))
                return
            if not _is_empty(feed):
                await send(event("changes", _page(feed), feed.version))
            since = feed.version
            while not feed.is_followed and not await stream.wait(since, min(COMMENT_SECONDS, expires - time.time())):
                if stream.is_ended or time.time() >= expires:
                    return
                await send(COMMENT)


def _last_event_id(request: Request) -> int | None:
    sent = ",".join(values) if (values := request.headers.getlist("last-event-id")) else None
    try:
        return None if sent is None else SINCE.read(sent)
    except ValueError as error:
        message = f"Should be the id of an event, {error}, not {shown(sent)}"
        raise invalid(["header", "Last-Event-ID"], message, "last_event_id") from None


def _is_empty(feed: Feed) -> bool:
    """Returns whether there is nothing that the caller does not know."""
    return feed.state == "known" or (feed.state == "new" and feed.tasks == feed.erased == b"[]")


def _page(feed: Feed) -> bytes:
    return b'{"version": %d, "has_more": %s, "tasks": %s, "erased": %s}' % (
        feed.version,
        b"true" if feed.is_followed else b"false",
        feed.tasks,
        feed.erased,
    )


@describe(
    200,
    "The entries, the newest first: one a task and number",
    query=HISTORY_PARAMETERS,
    answer=HistoryEntry,
    many=True,
)
async def list_history(request: Request) -> Response:
    """List what the changes did.

    Each entry has the fields that the whole change wrote, before and after it; `before` is null when it created the
    task. It goes back 30 days, and a task's is gone with the task.
    """
    user_id = await authenticate(request)
    asked = read_parameters(request.scope["query_string"], HISTORY_PARAMETERS)
    limit = asked.get("limit", HISTORY_PAGE)
    return JsonResponse(
        await changes.read_history(request.app.state.db, user_id, asked.get("task_id"), asked.get("before"), limit)
    )


@describe(
    200,
    "The number of the undo, and the tasks that it has changed",
    body=ChangeUndo,
    errors=(404, 410),
    details={404: NO_CHANGE, 410: TOO_OLD},
    answer=UndoResult,
    conflict=UndoConflict,
)
async def undo_change(request: Request) -> Response:
    """Take a change back, all of it, as a change of its own.

    A field that still has the value which the change gave it gets the one that it had before. One that has been changed
    since makes the whole undo a 409, and nothing happens. To undo the undo is to redo.
    """
    user_id = await authenticate(request)
    refuse_query(request)
    undo = await read_body(request, ChangeUndo)
    undone = await changes.undo_change(request.app.state.db, user_id, undo.version)
    if undone.outcome == "not_found":
        raise Problem(404, NO_CHANGE)
    if undone.outcome == "too_old":
        raise Problem(410, TOO_OLD)
    if undone.conflicts is not None:
        return JsonResponse(b'{"detail": "Changed since", "conflicts": %s}' % undone.conflicts, 409)
    version = b"null" if undone.version is None else b"%d" % undone.version
    return JsonResponse(b'{"version": %s, "tasks": %s}' % (version, undone.tasks))


routes = [
    Resource("/api/{user_id}/changes", GET=list_changes),
    Resource("/api/{user_id}/events", GET=stream_changes),
    Resource("/api/{user_id}/history", GET=list_history),
    Resource("/api/{user_id}/undo", POST=undo_change),
]
