"""The keys that the Better Auth server publishes (its JWKS): fetched, cached and refreshed.

tokens.py checks tokens; this module knows the keys and their algorithms. Whatever the server responds, if anything, the
last good keys stay in use.
"""

import asyncio
import json
import logging
import math
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import brotli
import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import AllowedPublicKeys, ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from service.auth.proxy import UnusableProxy, proxy_for

logger = logging.getLogger(__name__)

FRESH_SECONDS = 300  # between refreshes, which bound how long a revoked key is accepted
PAUSE_SECONDS = 10  # after a fetch that failed, or did not find an unknown key id
FETCH_SECONDS = 3  # for the whole response
JWKS_BYTES = 256 * 1024
MOST_KEYS = 100
RSA_BITS = 2048  # the minimum of RFC 7518 for RS256 and PS256

# By a key's type and curve: the reader of its public part, the fields this needs, and the algorithms it is for
Reader = Callable[[dict[str, Any]], Any]
KINDS: dict[tuple[Any, Any], tuple[Reader, tuple[str, ...], tuple[str, ...]]] = {
    ("OKP", "Ed25519"): (OKPAlgorithm.from_jwk, ("x",), ("EdDSA",)),
    ("EC", "P-256"): (ECAlgorithm.from_jwk, ("x", "y"), ("ES256",)),
    ("EC", "P-521"): (ECAlgorithm.from_jwk, ("x", "y"), ("ES512",)),
    ("RSA", None): (RSAAlgorithm.from_jwk, ("n", "e"), ("RS256", "PS256")),
}
ALGORITHMS = [algorithm for _, _, algorithms in KINDS.values() for algorithm in algorithms]


class InvalidKeySet(Exception):
    """A response, or a key in it, is unusable; the message is for the log."""


@dataclass(frozen=True)
class PublishedKey:
    """A published key, and the algorithms it may sign with."""

    public: AllowedPublicKeys
    algorithms: tuple[str, ...]


class PublishedKeys:
    """The keys at one URL, and the `iss` and `aud` that their tokens must have, where set.

    `by_id` has the keys by their `kid`, and is None before the first successful fetch.
    """

    def __init__(self, url: str, issuer: str | None, audience: str | None) -> None:
        self.issuer = issuer
        self.audience = audience
        self.by_id: dict[str, PublishedKey] | None = None
        self.on_loss: Callable[[], object] = lambda: None  # called when a key was removed or replaced
        self._url = url
        self._host = urlsplit(url).netloc
        self._fetching: asyncio.Task[None] | None = None
        self._failure = ""
        self._unusable: set[str] = set()
        self._search_from = -math.inf  # time.monotonic()

    @asynccontextmanager
    async def kept_fresh(self) -> AsyncIterator[None]:
        """Refreshes the keys in the background until the block ends."""
        keeper = asyncio.create_task(self._keep_fresh())
        try:
            yield
        finally:
            for task in filter(None, (keeper, self._fetching)):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def look_for(self, key_id: str) -> None:
        """Fetches the keys if this one is unknown and no search is paused; may not find it.

        All callers share one fetch at a time. A search that finds no new key pauses further ones.
        """
        while self.by_id is None or key_id not in self.by_id:
            if self._under_way() is None and self.seconds_until_search() > 0:
                return
            await self._fetch(in_search=True)

    def seconds_until_search(self) -> float:
        """Returns the seconds until the next search for an unknown key is allowed."""
        return self._search_from - time.monotonic()

    async def _keep_fresh(self) -> None:
        while True:
            await self._fetch(in_search=False)
            await asyncio.sleep(PAUSE_SECONDS if self._failure else FRESH_SECONDS)

    async def _fetch(self, in_search: bool) -> None:
        fetching = self._fetching = self._under_way() or asyncio.create_task(self._refresh(in_search))
        # the fetch is shared: one caller's cancellation must not cancel it
        await asyncio.shield(fetching)

    def _under_way(self) -> asyncio.Task[None] | None:
        """Returns the fetch that is not done: to await one that is lets nobody else run, and would be done for ever."""
        return None if self._fetching is None or self._fetching.done() else self._fetching

    async def _refresh(self, in_search: bool) -> None:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                body = await self._download()
            found, unusable = read(body)
            self._warn_of_unusable(unusable)
            if not found and self.by_id is None:
                raise InvalidKeySet("it publishes no key that can be used")
        except Exception as error:  # no response of any kind may end this task
            self._pause()
            self._warn_of_failure(_explain(error))
            return
        if self._failure:
            logger.warning("the keys of %s are there again", self._host)
            self._failure = ""
        known, self.by_id = self.by_id or {}, found
        if in_search and not found.keys() - known.keys():
            self._pause()
        if any(found.get(key_id) != key for key_id, key in known.items()):
            logger.warning("a key of %s is gone; %d are left", self._host, len(found))
            self.on_loss()

    def _pause(self) -> None:
        self._search_from = time.monotonic() + PAUSE_SECONDS

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        try:
            return httpx.create_ssl_context()
        except OSError as error:
            raise InvalidKeySet(
                f"the certificates of SSL_CERT_FILE or SSL_CERT_DIR cannot be loaded: {error}"
            ) from None

    async def _download(self) -> bytes:
        # Redirects are not followed: the settings decide whose keys count. proxy_for reads only the proxy variables for
        # this URL: httpx would read all of them, and fail at one that does not concern it.
        verify = self._tls if self._url[:6].lower() == "https:" else False  # loads certificates only if needed
        options: dict[str, Any] = {"verify": verify, "proxy": proxy_for(self._url), "trust_env": False}
        async with (
            httpx.AsyncClient(timeout=None, follow_redirects=False, **options) as client,  # noqa: S113  (above)
            client.stream("GET", self._url, headers={"Accept-Encoding": "identity"}) as response,
        ):
            if response.is_redirect:
                raise InvalidKeySet(f"it redirects (status {response.status_code}), which is not followed")
            if response.status_code != 200:
                raise InvalidKeySet(f"it answers with status {response.status_code}")
            body = bytearray()
            async for chunk in response.aiter_raw():  # raw: httpx would decompress it without a limit
                body += chunk
                _check_size(body)
            return _decompressed(bytes(body), response.headers.get("Content-Encoding", ""))

    def _warn_of_failure(self, cause: str) -> None:
        if cause != self._failure:  # log a cause once, not at every attempt
            used = "none are known yet" if self.by_id is None else "the last ones stay in use"
            logger.warning("the keys of %s cannot be fetched, %s: %s", self._host, used, cause)
        self._failure = cause

    def _warn_of_unusable(self, complaints: set[str]) -> None:
        for complaint in sorted(complaints - self._unusable):  # once each
            logger.warning("a key of %s cannot be used: %s", self._host, complaint)
        self._unusable = complaints


def _decompressed(body: bytes, encoding: str) -> bytes:
    """Returns the decompressed body, limited in size too. Some servers compress it unasked."""
    try:
        match encoding.strip().lower():
            case "" | "identity":
                return body
            case "gzip" | "x-gzip" | "deflate":
                # detects gzip and zlib headers; some servers send raw deflate, which has none
                has_header = body[:2] == b"\x1f\x8b" or (body[:1] == b"\x78" and int.from_bytes(body[:2]) % 31 == 0)
                text = zlib.decompressobj(zlib.MAX_WBITS | 32 if has_header else -zlib.MAX_WBITS).decompress(
                    body, JWKS_BYTES + 1
                )
            case "br":
                text = brotli.Decompressor().process(body, output_buffer_limit=JWKS_BYTES + 1)
            case other:
                raise InvalidKeySet(f"its answer is packed as {_shown(other)}, which was not asked for")
    except (zlib.error, brotli.error):
        raise InvalidKeySet(f"its answer is not what its Content-Encoding says, {_shown(encoding)}") from None
    _check_size(text)
    return text


def _check_size(body: bytes | bytearray) -> None:
    if len(body) > JWKS_BYTES:
        raise InvalidKeySet(f"its answer is over {JWKS_BYTES} bytes")


def read(body: bytes) -> tuple[dict[str, PublishedKey], set[str]]:
    """Returns the keys by id, and what is wrong with unusable ones; raises InvalidKeySet when it is no JWKS."""
    try:
        keys = json.loads(body)["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        keys = None
    if not isinstance(keys, list):
        raise InvalidKeySet('its answer is no JWKS, that is, no JSON like {"keys": […]}')
    if len(keys) > MOST_KEYS:
        raise InvalidKeySet(f"its answer has {len(keys)} keys, more than {MOST_KEYS}")
    found: dict[str, PublishedKey] = {}
    unusable = set()
    for jwk in keys:
        key_id = jwk.get("kid") if isinstance(jwk, dict) else None
        try:
            if not isinstance(key_id, str) or not key_id:
                raise InvalidKeySet("it has no `kid`")
            if key_id in found:
                raise InvalidKeySet("its `kid` is taken by another")
            found[key_id] = _key(jwk)
        except InvalidKeySet as error:
            unusable.add(f"{_shown(key_id)}: {error}")
    return found, unusable


def _key(jwk: dict[str, Any]) -> PublishedKey:
    kind, curve = jwk.get("kty"), jwk.get("crv")
    if jwk.get("use", "sig") != "sig":
        raise InvalidKeySet("its `use` is not sig")
    if not isinstance(uses := jwk.get("key_ops", ["verify"]), list) or "verify" not in uses:
        raise InvalidKeySet("its `key_ops` are without verify")
    try:
        reader, fields, algorithms = KINDS[kind, None if kind == "RSA" else curve]
    except (KeyError, TypeError):
        raise InvalidKeySet(f"its type is {_shown(kind)} {_shown(curve)}") from None
    if (algorithm := jwk.get("alg")) is not None:
        if algorithm not in algorithms:
            raise InvalidKeySet(f"its `alg` is {_shown(algorithm)}, its type {_shown(kind)} {_shown(curve)}")
        algorithms = (algorithm,)
    try:
        # only these fields: with all of them, a private key published by mistake would be loaded as one
        public = reader({"kty": kind, "crv": curve} | {name: jwk[name] for name in fields})
    except (jwt.PyJWTError, KeyError, TypeError, ValueError, AttributeError):
        raise InvalidKeySet(f"its {', '.join(fields)} are no public key") from None
    if isinstance(public, RSAPublicKey) and public.key_size < RSA_BITS:
        raise InvalidKeySet(f"it has {public.key_size} bits and needs {RSA_BITS}")
    return PublishedKey(public, algorithms)


def _shown(value: Any) -> str:
    if not isinstance(value, str):
        return "none" if value is None else f"a {type(value).__name__}"
    return json.dumps(value if len(value) <= 60 else value[:60] + "…", ensure_ascii=True)  # no line breaks in the log


def _explain(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"it does not answer within {FETCH_SECONDS} seconds"
    if isinstance(error, InvalidKeySet | UnusableProxy):
        return str(error)
    return f"{type(error).__name__}: {error}".removesuffix(": ")
