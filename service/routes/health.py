"""For whoever watches over the service: is the process alive, can it work?"""

from starlette.requests import Request
from starlette.responses import Response

from service import queries
from service.database import SchemaBehind, Unavailable
from service.errors import Problem
from service.resource import Resource, describe
from service.schema import known_migrations
from service.web import RETRY_SECONDS, error_response, json_response, refuse_query

OK = b'{"status": "ok"}'


@describe(200, "The process is alive", health=True)
async def healthz(request: Request) -> Response:
    """Tell whether the process is alive; never touches the database."""
    refuse_query(request)
    return json_response(OK)


@describe(200, "A query answers and the schema is current", health=True, errors=(503,))
async def readyz(request: Request) -> Response:
    """Tell whether the service can work."""
    refuse_query(request)
    try:
        missing = known_migrations() - await queries.applied_migrations(request.app.state.db)
    except SchemaBehind:
        return _not_ready("schema: no migration is applied; run `python -m service migrate`")
    except Unavailable:
        return _not_ready("database: it does not answer")
    if missing:
        names = ", ".join(sorted(missing))
        return _not_ready(f"schema: {names} not applied; run `python -m service migrate`")
    return json_response(OK)


def _not_ready(detail: str) -> Response:
    return error_response(Problem(503, detail, {"Retry-After": str(RETRY_SECONDS)}))


routes = [Resource("/healthz", GET=healthz), Resource("/readyz", GET=readyz)]
