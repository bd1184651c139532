"""For whoever watches over the service: is the process alive, can it work?"""

import logging

from starlette.requests import Request
from starlette.responses import Response

from service.db.coalescer import Coalescer, waited
from service.db.migrations import known_functions, known_migrations
from service.db.pool import RightMissing, SchemaBehind, Unavailable
from service.queries.schema import Applied, applied
from service.web.errors import unavailable
from service.web.request import refuse_query
from service.web.responses import JsonResponse
from service.web.route import Resource, describe

logger = logging.getLogger(__name__)

OK = b'{"status": "ok"}'
NO_ANSWER = "database: it does not answer"


@describe(200, "The process is alive", health=True)
async def healthz(request: Request) -> Response:
    """Tell whether the process is alive; never touches the database."""
    refuse_query(request)
    return JsonResponse(OK)


@describe(
    200,
    "A query answers, the schema is current, the keys are known",
    health=True,
    errors=(503,),
    details={503: NO_ANSWER},
)
async def readyz(request: Request) -> Response:
    """Tell whether the service can work."""
    refuse_query(request)
    if problem := await _database_problem(request.app.state.db):
        logger.warning("not ready: %s", problem)
        raise unavailable(problem)
    published = request.app.state.tokens.published
    if published is not None and not published.by_id:
        raise unavailable("keys: the Better Auth server's are not known; the log says why")
    return JsonResponse(OK)


async def report(db: Coalescer) -> None:
    """Writes into the log what would keep the service from working, for whoever has just started it."""
    waited.set([])  # each call of the database notes there how long it took; here nobody asks
    if problem := await _database_problem(db):
        logger.warning("not ready: %s", problem)


async def _database_problem(db: Coalescer) -> str | None:
    """Returns why the database is of no use as it is, None when a query answers and the schema is current."""
    try:
        found = await applied(db)
    except SchemaBehind:
        found = Applied(set(), set(), [])
    except RightMissing as error:
        return f"database: {error}"
    except Unavailable:
        return NO_ANSWER
    missing = sorted(known_migrations() - found.migrations)
    if known_functions() not in found.functions:  # a later version's may have come after them, and serve this one, too
        missing.append("functions")
    if missing:
        return f"schema: {', '.join(missing)} not applied; run `python -m service migrate`"
    if found.missing_rights:
        return (
            f"database: permission denied for {', '.join(found.missing_rights)}: grant it to the user of DATABASE_URL"
        )
    return None


routes = [Resource("/healthz", GET=healthz), Resource("/readyz", GET=readyz)]
