"""Time zones in requests."""

from starlette.requests import Request

from service.db.coalescer import Coalescer
from service.queries import zones
from service.web.errors import Invalid, Wrong, shown
from service.web.parameters import Parameter, read_parameters
from service.zones import is_zone, nearest

ACCEPTED = "a time zone of the tz database, like Europe/Berlin"


def zone_guess(name: str) -> str:
    """Returns a suggestion for a message, the most similar zone; empty when none is similar."""
    like = nearest(name)
    return f" (did you mean {like}?)" if like else ""


def _zone(value: str) -> str:
    if not is_zone(value):
        lost_plus = is_zone(value.replace(" ", "+"))
        hint = " (in a URL the + of a zone is written %2B)" if lost_plus else zone_guess(value)
        raise ValueError(ACCEPTED + hint)
    return value


TIME_ZONE = Parameter(
    _zone,
    "where the user is, which tells the day on which a recurring task is completed; UTC when it is not sent. A "
    "`due_time_zone` of the task goes before",
    {"type": "string"},
    "Europe/Berlin",
)
WRITE_PARAMETERS = {"time_zone": TIME_ZONE}


async def read_time_zone(request: Request) -> str | None:
    """Returns the zone of a request that writes, None when it has none; raises Problem, a 422."""
    if not request.scope["query_string"]:
        return None
    zone: str | None = read_parameters(request.scope["query_string"], WRITE_PARAMETERS).get("time_zone")
    await require_zone(request.app.state.db, zone, ["query", "time_zone"])
    return zone


async def require_zone(db: Coalescer, name: str | None, loc: list[str | int]) -> None:
    """Raises Wrong, a 422, when PostgreSQL has no such zone, though the pinned tz database has it."""
    if name is not None and not await zones.is_known(db, name):
        message = f"Input should be a time zone that the database knows too, like UTC, not {shown(name)}"
        raise Wrong([Invalid(loc=loc, msg=message, type="time_zone")], 1)
