"""The paths and methods that do not exist."""

from starlette.exceptions import HTTPException
from starlette.requests import Request

from service.auth.tokens import authenticate, verified_token
from service.web.errors import Problem
from service.web.limit import charge


async def no_route(error: HTTPException, request: Request) -> Problem:
    """Returns the answer for the router's own 404 or 405; below /api/ they are told only to those who may ask there."""
    if request.scope["path"].startswith("/api/"):
        try:
            if error.status_code == 404:
                # A path that does not exist is nobody's: a client that mistypes one must not think it is signed out.
                charge(request, (await verified_token(request)).subject)
            else:
                await authenticate(request)
        except Problem as refusal:
            return refusal
    headers = dict(error.headers or {})
    if error.status_code == 405:
        allowed = headers.get("Allow", "GET, HEAD").split(", ")  # a static file's refusal has none
        headers["Allow"] = ", ".join(sorted(allowed))
    return Problem(error.status_code, error.detail, headers)
