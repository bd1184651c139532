"""For whoever watches over the service: is the process alive, can it work?"""

from starlette.requests import Request
from starlette.responses import Response

from service import queries
from service.database import SchemaBehind, Unavailable
from service.errors import unavailable
from service.resource import Resource, describe
from service.schema import known_migrations
from service.web import JsonResponse, refuse_query

OK = b'{"status": "ok"}'


@describe(200, "The process is alive", health=True)
async def healthz(request: Request) -> Response:
    """Tell whether the process is alive; never touches the database."""
    refuse_query(request)
    return JsonResponse(OK)


@describe(200, "A query answers, the schema is current, the keys are known", health=True, errors=(503,))
async def readyz(request: Request) -> Response:
    """Tell whether the service can work."""
    refuse_query(request)
    try:
        missing = known_migrations() - await queries.applied_migrations(request.app.state.db)
    except SchemaBehind:
        raise unavailable("schema: no migration is applied; run `python -m service migrate`") from None
    except Unavailable:
        raise unavailable("database: it does not answer") from None
    if missing:
        names = ", ".join(sorted(missing))
        raise unavailable(f"schema: {names} not applied; run `python -m service migrate`")
    published = request.app.state.tokens.published
    if published is not None and not published.by_id:
        raise unavailable("keys: the Better Auth server's are not known; the log says why")
    return JsonResponse(OK)


routes = [Resource("/healthz", GET=healthz), Resource("/readyz", GET=readyz)]
