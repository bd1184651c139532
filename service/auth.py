"""Who is asking: the JWT checks, called by the routes.

A token is accepted when it is signed HS256 with the service's secret, is not expired, has been valid already, comes
from the issuer and is meant for the audience that are set, and names as `sub` the user whose path is asked for.
The algorithm is fixed here; what the token's header says of it is only ever compared with that.
"""

import time
from typing import Any

import jwt
from starlette.requests import Request

from service.errors import Problem, invalid

ALGORITHMS = ["HS256"]
LEEWAY = 10  # seconds that the issuer's clock and ours may differ
REMEMBERED = 10_000  # tokens
REMEMBERED_BYTES = 2048  # of the longest that is: together they take 20 MiB at most
USER_ID_LENGTH = 255


class Tokens:
    """Checks tokens, and remembers the good ones until they expire: the signature of each is checked once."""

    def __init__(self, secret: str, issuer: str | None, audience: str | None) -> None:
        self._secret = secret
        self._issuer = issuer
        self._audience = audience
        self._remembered: dict[bytes, tuple[str, float]] = {}

    def subject(self, authorization: bytes | None) -> str:
        """Returns the `sub` of the header's token; raises Problem, a 401 that says what is wrong."""
        if authorization is None:
            raise _refusal("Missing authorization header")
        known = self._remembered.get(authorization)
        if known is not None:
            known_subject, expires = known
            if time.time() < expires:
                return known_subject
            del self._remembered[authorization]
            raise _refusal("Token has expired")
        scheme, _, token = authorization.decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not token or " " in token:
            raise _refusal("Invalid authorization header format")
        claims = self._verified(token)
        subject = claims.get("sub")
        if not isinstance(subject, str) or not subject:
            raise _refusal("Token missing 'sub' claim")
        if len(authorization) <= REMEMBERED_BYTES:
            if len(self._remembered) >= REMEMBERED:
                del self._remembered[next(iter(self._remembered))]  # the oldest
            self._remembered[authorization] = (subject, int(claims["exp"]) + LEEWAY)
        return subject

    def _verified(self, token: str) -> dict[str, Any]:
        try:
            return jwt.decode(
                token,
                self._secret,
                algorithms=ALGORITHMS,
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY,
                # `sub` has an answer of its own, above; an audience is only compared when one is set
                options={"require": ["exp"], "verify_sub": False, "verify_aud": self._audience is not None},
            )
        except jwt.ExpiredSignatureError:
            raise _refusal("Token has expired") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            # beside its own errors PyJWT lets through what odd numbers and deep nesting raise
            raise _refusal("Invalid token") from None


def authenticate(request: Request) -> str:
    """Returns the user whose path this is, once the token says the same; raises Problem, 401 or 422."""
    user_id: str = request.path_params.get("user_id", "")
    tokens: Tokens = request.app.state.tokens
    if tokens.subject(_authorization(request)) != user_id:
        raise _refusal("User ID mismatch")
    if len(user_id) > USER_ID_LENGTH:
        raise invalid(
            ["path", "user_id"],
            f"String should have at most {USER_ID_LENGTH} characters, not {len(user_id)}",
            "string_too_long",
        )
    if "\0" in user_id:
        raise invalid(["path", "user_id"], "String should not contain the character NUL", "nul")
    request.scope["user_id"] = user_id  # for the log's line
    return user_id


def _authorization(request: Request) -> bytes | None:
    for name, value in request.scope["headers"]:  # without a Headers object for one look
        if name == b"authorization":
            return bytes(value)
    return None


def _refusal(detail: str) -> Problem:
    return Problem(401, detail, {"WWW-Authenticate": "Bearer"})
