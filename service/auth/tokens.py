"""Authenticates requests: the JWT checks, called by the routes.

A token is accepted when it is signed with HS256 and the service's secret, or with a key that the Better Auth server
publishes and an algorithm of this key; when it is neither expired nor not yet valid, and has the issuer and audience in
the settings; and when its `sub`, or without one its `user_id`, is the user in the path, unless the path says `me`. The
`alg` in the token's header is only compared with the algorithms of the key; keys and URLs of keys in it are ignored.
"""

import math
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jwt
from jwt.exceptions import InvalidJTIError
from starlette.requests import Request

from service.auth.jwks import ALGORITHMS, PublishedKeys
from service.models import USER_ID_LENGTH
from service.web.errors import Problem, invalid, unavailable
from service.web.limit import charge

LEEWAY = 10  # seconds of clock difference to the issuer
REMEMBERED = 10_000  # tokens
REMEMBERED_BYTES = 2048  # of a token: together at most 20 MiB
TOKEN_BYTES = 8192  # longer ones are rejected unparsed: anyone can send them
SURROGATE = re.compile("[\ud800-\udfff]")  # possible in JSON's escapes, and not in PostgreSQL's text

# PyJWT's errors as they are logged, without anything from the token; the first match counts.
CHECKS: dict[type[Exception], str] = {
    jwt.InvalidSignatureError: "signature: the key that the settings say did not make it",
    jwt.InvalidAlgorithmError: "algorithm: it is not one that its key is for",
    jwt.InvalidKeyError: "key: it cannot be used for this algorithm",
    jwt.InvalidIssuerError: "issuer: `iss` is not what the settings say",
    jwt.InvalidAudienceError: "audience: `aud` has not what the settings say",
    jwt.InvalidIssuedAtError: "iat: it is no moment",
    InvalidJTIError: "jti: it is no text",
}


class UnknownKey(Problem):
    """The token names a key that is not among the known published ones."""

    def __init__(self, problem: Problem, key_id: str) -> None:
        super().__init__(problem.status, problem.detail, problem.headers, problem.cause)
        self.key_id = key_id


class Verified(NamedTuple):
    """The claims of a valid token."""

    subject: str
    expires: int  # seconds since 1970, including LEEWAY


class Tokens:
    """Checks tokens, and caches valid ones until they expire: each signature is checked once.

    Issuer and audience, where set, are for tokens signed with the secret; `published` has its own.
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
        self._remembered: dict[bytes, Verified] = {}
        if published is not None:
            published.on_loss = self._remembered.clear  # a token is valid only as long as its key

    def verified(self, authorization: bytes | None) -> Verified:
        """Returns what the header's token says; raises Problem, a 401 that says what is wrong, or UnknownKey."""
        if authorization is None:
            raise _unauthorized("Missing authorization header")
        known = self._remembered.get(authorization)
        if known is not None:
            if time.time() < known.expires:
                return known
            del self._remembered[authorization]
            raise _unauthorized("Token has expired")
        scheme, _, token = authorization.decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not token or " " in token:
            raise _unauthorized("Invalid authorization header format")
        claims = self._verified(token)
        subject = claims["sub"] if "sub" in claims else claims.get("user_id")
        if not isinstance(subject, str) or not subject:
            raise _unauthorized("Token missing 'sub' claim")
        if SURROGATE.search(subject):
            raise _invalid_token("shape: its user is no Unicode text")
        verified = Verified(subject, int(claims["exp"]) + LEEWAY)
        if len(authorization) <= REMEMBERED_BYTES:
            if len(self._remembered) >= REMEMBERED:
                del self._remembered[next(iter(self._remembered))]  # the oldest
            self._remembered[authorization] = verified
        return verified

    def _verified(self, token: str) -> dict[str, Any]:
        if len(token) > TOKEN_BYTES:
            raise _invalid_token(f"size: it has {len(token)} bytes, at most {TOKEN_BYTES} are looked at")
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") == "HS256":
                return self._signed_with_secret(token)
            return self._signed_with_published_key(token, header)
        except jwt.ExpiredSignatureError:
            raise _unauthorized("Token has expired") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            # odd numbers and deep nesting raise errors that PyJWT does not wrap
            raise _invalid_token(_failed_check(error)) from None

    def _signed_with_secret(self, token: str) -> dict[str, Any]:
        if self._secret is None:
            raise _invalid_token("algorithm: HS256 needs BETTER_AUTH_SECRET, which is not set")
        return _decoded(token, self._secret, ["HS256"], self._issuer, self._audience)

    def _signed_with_published_key(self, token: str, header: dict[str, Any]) -> dict[str, Any]:
        published, key_id = self.published, header.get("kid")
        if published is None:
            raise _invalid_token("algorithm: it is not HS256, and any other needs BETTER_AUTH_URL, which is not set")
        if header.get("alg") not in ALGORITHMS:
            raise _invalid_token(f"algorithm: it is none of HS256, {', '.join(ALGORITHMS)}")
        if not isinstance(key_id, str):
            raise _invalid_token("key: it names none by its `kid`")
        if published.by_id is None:
            wait = math.ceil(max(1, published.seconds_until_search()))
            raise UnknownKey(unavailable("Service unavailable", wait), key_id)
        if key_id not in published.by_id:
            raise UnknownKey(_invalid_token("key: the one that it names is not among the published ones"), key_id)
        key = published.by_id[key_id]
        return _decoded(token, key.public, key.algorithms, published.issuer, published.audience)


async def authenticate(request: Request) -> str:
    """Returns the user in the path if the token is theirs; raises Problem: 401, 422, 429 or 503.

    `me` is the token's user, and for the rate limit the request is theirs. This waits only when the token names an
    unknown published key.
    """
    subject, expires = await verified_token(request)
    user_id: str = request.path_params["user_id"]
    if user_id != subject and user_id != "me":
        raise _unauthorized("User ID mismatch")
    if len(subject) > USER_ID_LENGTH:
        raise invalid(
            ["path", "user_id"],
            f"String should have at most {USER_ID_LENGTH} characters, not {len(subject)}",
            "string_too_long",
        )
    if "\0" in subject:
        raise invalid(["path", "user_id"], "String should not contain the character NUL", "nul")
    request.scope["user_id"] = subject  # for the log
    request.scope["expires"] = expires  # for streams
    charge(request, subject)
    return subject


async def verified_token(request: Request) -> Verified:
    """Returns the token's claims, for any path; raises Problem: 401 or 503."""
    tokens: Tokens = request.app.state.tokens
    authorization = _authorization(request)
    try:
        return tokens.verified(authorization)
    except UnknownKey as unknown:
        await request.app.state.tokens.published.look_for(unknown.key_id)
    return tokens.verified(authorization)


def _failed_check(error: Exception) -> str:
    """Returns which check a token failed, without anything from the token."""
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"{error.claim}: it is missing"
    if isinstance(error, jwt.ImmatureSignatureError):
        claim = "iat" if "(iat)" in str(error) else "nbf"
        return f"{claim}: it is ahead of this machine's clock by more than {LEEWAY} s"
    for kind, check in CHECKS.items():
        if isinstance(error, kind):
            return check
    for claim in ("exp", "nbf"):
        if f"({claim})" in str(error):  # there is no class for a claim that is no number
            return f"{claim}: it is no moment"
    return "shape: it is no JWT"


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
        # `sub` is checked above; an audience is only checked when one is set
        options={"require": ["exp"], "verify_sub": False, "verify_aud": audience is not None},
    )


def _authorization(request: Request) -> bytes | None:
    for name, value in request.scope["headers"]:  # a Headers object costs more
        if name == b"authorization":
            return bytes(value)
    return None


def _unauthorized(detail: str, cause: str | None = None) -> Problem:
    return Problem(401, detail, {"WWW-Authenticate": "Bearer"}, cause)


def _invalid_token(cause: str) -> Problem:
    return _unauthorized("Invalid token", f"the token fails a check: {cause}")
