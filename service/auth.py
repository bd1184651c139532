"""Who is asking: the JWT checks, called by the routes.

A token is accepted when it is signed HS256 with the service's secret, or with a key that the Better Auth server
publishes and an algorithm that this key is for; when it is not expired, has been valid already, comes from the issuer
and is meant for the audience that are set; and when it names as `sub` the user whose path is asked for. What the
token's header says of its algorithm is only ever compared with what its key allows; keys, or addresses of keys, that a
header brings along are never looked at.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import jwt
from starlette.requests import Request

from service.errors import Problem, invalid, unavailable
from service.keys import ALGORITHMS, PublishedKeys

LEEWAY = 10  # seconds that the issuer's clock and ours may differ
REMEMBERED = 10_000  # tokens
REMEMBERED_BYTES = 2048  # of the longest that is: together they take 20 MiB at most
USER_ID_LENGTH = 255
TOKEN_BYTES = 8192  # of the longest that is looked at: whoever has none can send any


class UnknownKey(Problem):
    """The token names a key that is not among the published ones, as far as they are known."""

    def __init__(self, problem: Problem, key_id: str) -> None:
        super().__init__(problem.status, problem.detail, problem.headers)
        self.key_id = key_id


class Tokens:
    """Checks tokens, and remembers the good ones until they expire: the signature of each is checked once.

    Issuer and audience, where they are set, hold for tokens signed with the secret; `published` has its own.
    """

    def __init__(
        self,
        secret: str | None,
        issuer: str | None,
        audience: str | None,
        published: PublishedKeys | None = None,
    ) -> None:
        self._secret = secret
        self._issuer = issuer
        self._audience = audience
        self.published = published
        self._remembered: dict[bytes, tuple[str, float]] = {}
        if published is not None:
            published.on_loss = self._remembered.clear  # a token is not good for longer than its key

    def subject(self, authorization: bytes | None) -> str:
        """Returns the `sub` of the header's token; raises Problem, a 401 that says what is wrong, or UnknownKey."""
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
        if len(token) > TOKEN_BYTES:
            raise _refusal("Invalid token")
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
            header = jwt.get_unverified_header(token)
            if header.get("alg") == "HS256":
                return self._signed_with_secret(token)
            return self._signed_with_published_key(token, header)
        except jwt.ExpiredSignatureError:
            raise _refusal("Token has expired") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            # beside its own errors PyJWT lets through what odd numbers and deep nesting raise
            raise _refusal("Invalid token") from None

    def _signed_with_secret(self, token: str) -> dict[str, Any]:
        if self._secret is None:
            raise _refusal("Invalid token")
        return _decoded(token, self._secret, ["HS256"], self._issuer, self._audience)

    def _signed_with_published_key(self, token: str, header: dict[str, Any]) -> dict[str, Any]:
        published, key_id = self.published, header.get("kid")
        if published is None or not isinstance(key_id, str) or header.get("alg") not in ALGORITHMS:
            raise _refusal("Invalid token")
        if published.by_id is None:
            wait = math.ceil(max(1, published.seconds_until_search()))
            raise UnknownKey(unavailable("Service unavailable", wait), key_id)
        if key_id not in published.by_id:
            raise UnknownKey(_refusal("Invalid token"), key_id)
        key = published.by_id[key_id]
        return _decoded(token, key.public, key.algorithms, published.issuer, published.audience)


async def authenticate(request: Request) -> str:
    """Returns the user whose path this is, once the token says the same; raises Problem, 401, 422 or 503.

    It waits only for a published key that is not known yet.
    """
    try:
        return authenticate_at_once(request)
    except UnknownKey as unknown:
        await request.app.state.tokens.published.look_for(unknown.key_id)
    return authenticate_at_once(request)


def authenticate_at_once(request: Request) -> str:
    """Does the same with the published keys that are known."""
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


def _decoded(
    token: str, key: Any, algorithms: Sequence[str], issuer: str | None, audience: str | None
) -> dict[str, Any]:
    return jwt.decode(
        token,
        key,
        algorithms=algorithms,
        issuer=issuer,
        audience=audience,
        leeway=LEEWAY,
        # `sub` has an answer of its own, above; an audience is only compared when one is set
        options={"require": ["exp"], "verify_sub": False, "verify_aud": audience is not None},
    )


def _authorization(request: Request) -> bytes | None:
    for name, value in request.scope["headers"]:  # without a Headers object for one look
        if name == b"authorization":
            return bytes(value)
    return None


def _refusal(detail: str) -> Problem:
    return Problem(401, detail, {"WWW-Authenticate": "Bearer"})
