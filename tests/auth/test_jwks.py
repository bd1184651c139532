"""Published keys: which tokens they make good, how they are kept, and what a server that is no good does to nobody."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler
from itertools import count
from typing import Any
from uuid import uuid4

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service.app import create_app
from service.auth import jwks as keys
from service.settings import Settings
from tests.conftest import ADDRESS, eventually, make_settings, make_token
from tests.jwks import KeyPair, Publisher, key_pair, publishing, send

ALGORITHMS = ["EdDSA", "ES256", "ES512", "RS256", "PS256"]
KEYS = {algorithm: key_pair(f"key-{algorithm}", algorithm) for algorithm in ALGORITHMS}
ED = KEYS["EdDSA"]
STARTED = time.monotonic()
REFUSED = (401, {"detail": "Invalid token"})
UNAVAILABLE = (503, {"detail": "Service unavailable"})


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with publishing() as server:
        server.keys = list(KEYS.values())
        yield server


class Service:
    """The application, with published keys."""

    def __init__(self, app: Any, http: httpx.AsyncClient) -> None:
        self.app = app
        self.http = http

    @property
    def remembered(self) -> dict[bytes, Any]:
        found: dict[bytes, Any] = self.app.state.tokens._remembered
        return found

    async def get(self, token: str, user: str = "u") -> tuple[int, Any]:
        """Returns the answer's status, and its body unless that is a list of tasks."""
        response = await self.http.get(f"/api/{user}/tasks", headers={"Authorization": f"Bearer {token}"})
        return response.status_code, None if response.status_code == 200 else response.json()

    async def accepts(self, token: str, user: str = "u") -> bool:
        return (await self.get(token, user))[0] == 200

    async def ready(self) -> httpx.Response:
        return await self.http.get("/readyz")


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Service]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=ADDRESS) as http:
            yield Service(app, http)


@pytest.fixture
def settings(database_url: str, publisher: Publisher) -> Settings:
    return make_settings(database_url, better_auth_url=publisher.url, db_pool_min=1)


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    async with serving(settings) as running:
        await eventually(lambda: is_ready(running))
        yield running


async def is_ready(service: Service) -> bool:
    return (await service.ready()).status_code == 200


class Clock:
    """The time that the published keys are kept by; it stands still until a test moves it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return STARTED + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(keys, "time", clock)
    return clock


def encoded(part: Any) -> str:
    text = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


# Which tokens count ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_published_key_makes_its_tokens_good(service: Service, publisher: Publisher, algorithm: str) -> None:
    token = publisher.token("u", KEYS[algorithm])
    assert await service.accepts(token)
    assert await service.get(token, "other") == (401, {"detail": "User ID mismatch"})
    for wrong in (token[:-4] + "AAAA", token.replace(".", ".e30", 1), token + "A"):
        assert await service.get(wrong) == REFUSED


async def test_a_key_without_an_algorithm_is_for_those_of_its_type(service: Service, publisher: Publisher) -> None:
    pair = KEYS["RS256"]
    publisher.answer = lambda request: send(
        request, json.dumps({"keys": [pair.public | {"kid": "plain", "use": "sig", "key_ops": ["verify"]}]}).encode()
    )
    for algorithm, status in (("RS256", 200), ("PS256", 200), ("RS512", 401)):
        token = publisher.token("u", KeyPair("plain", pair.private, algorithm, {}))
        assert (await service.get(token))[0] == status, algorithm


async def test_the_secret_s_tokens_count_beside_them(service: Service, publisher: Publisher) -> None:
    assert await service.accepts(make_token("u"))
    assert await service.accepts(make_token("u", headers={"kid": ED.id})), "the secret, whatever key is named"
    assert await service.get(publisher.token("u", ED)) == (200, None)


async def test_without_a_secret_no_hs256_token_counts(database_url: str, publisher: Publisher) -> None:
    settings = make_settings(database_url, better_auth_secret="", better_auth_url=publisher.url, db_pool_min=1)
    async with serving(settings) as service:
        assert await service.get(publisher.token("u", ED)) == (200, None)
        assert await service.get(make_token("u")) == REFUSED
        claims = {"sub": "u", "exp": int(time.time()) + 60, "iss": publisher.url, "aud": publisher.url}
        assert await service.get(hand_signed({"alg": "HS256"}, claims, b"")) == REFUSED


async def test_issuer_and_audience_are_the_server_s_origin(service: Service, publisher: Publisher) -> None:
    for claims in ({"iss": "https://evil.test"}, {"aud": "other"}, {"iss": None}, {"aud": None}, {"aud": 7}):
        assert await service.get(publisher.token("u", ED, **claims)) == REFUSED, claims
    assert await service.accepts(publisher.token("u", ED, aud=["other", publisher.url]))


async def test_issuer_and_audience_can_be_others(database_url: str, publisher: Publisher) -> None:
    settings = make_settings(
        database_url, better_auth_url=publisher.url, jwt_issuer="https://a.test", jwt_audience="tasks", db_pool_min=1
    )
    good = {"iss": "https://a.test", "aud": "tasks"}
    async with serving(settings) as service:
        assert await service.accepts(publisher.token("u", ED, **good))
        assert await service.get(publisher.token("u", ED)) == REFUSED
        assert await service.accepts(make_token("u", **good)), "they hold for the secret's tokens, too"
        assert await service.get(make_token("u")) == REFUSED


async def test_claims_are_checked_as_ever(service: Service, publisher: Publisher) -> None:
    now = int(time.time())
    assert await service.get(publisher.token("u", ED, exp=now - 12)) == (401, {"detail": "Token has expired"})
    assert await service.accepts(publisher.token("u", ED, exp=now - 7))
    for claims in ({"exp": None}, {"exp": "soon"}, {"exp": float("inf")}, {"nbf": now + 60}, {"iat": "x"}):
        assert await service.get(publisher.token("u", ED, **claims)) == REFUSED, claims
    for sub in (None, "", 7, ["u"]):
        assert await service.get(publisher.token(sub, ED)) == (401, {"detail": "Token missing 'sub' claim"})


# Attacks --------------------------------------------------------------------------------------------------------------


def hand_signed(header: Any, claims: Any, secret: bytes) -> str:
    """Returns an HS256 token with any secret: PyJWT refuses to sign with some that a forger would take."""
    signed = f"{encoded(header)}.{encoded(claims)}"
    return f"{signed}.{encoded(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_public_key_is_no_secret(service: Service, publisher: Publisher, algorithm: str) -> None:
    pair = KEYS[algorithm]
    public = pair.private.public_key()
    claims = {"sub": "u", "exp": int(time.time()) + 60, "iss": publisher.url, "aud": publisher.url}
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    texts = [
        pem,
        pem.strip(),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(pair.jwk).encode(),
        json.dumps(pair.public).encode(),
        str(pair.public.get("x", pair.public.get("n"))).encode(),
        pair.id.encode(),
        b"",
    ]
    for text in texts:
        for header in ({"alg": "HS256", "kid": pair.id}, {"alg": "HS256"}, {"alg": algorithm, "kid": pair.id}):
            assert await service.get(hand_signed(header, claims, text)) == REFUSED, (header, text)


async def test_a_token_cannot_choose_its_algorithm(service: Service, publisher: Publisher) -> None:
    claims = {"sub": "u", "exp": int(time.time()) + 60, "iss": publisher.url, "aud": publisher.url}
    for algorithm in (
        "none",
        "None",
        "",
        None,
        7,
        ["EdDSA"],
        {"EdDSA": 1},
        "HS384",
        "HS512",
        "ES384",
        "eddsa",
        "RS512",
    ):
        for signature in ("", encoded(b"x" * 64)):
            token = f"{encoded({'alg': algorithm, 'kid': ED.id})}.{encoded(claims)}.{signature}"
            assert await service.get(token) == REFUSED, algorithm


async def test_a_key_signs_with_its_own_algorithm_only(service: Service, publisher: Publisher) -> None:
    for pair in KEYS.values():
        for named in KEYS.values():
            token = publisher.token("u", KeyPair(named.id, pair.private, pair.algorithm, {}))
            assert await service.accepts(token) is (pair is named), (pair.algorithm, named.algorithm)
    for algorithm, other in (("RS256", "PS256"), ("PS256", "RS256")):
        pair = KEYS[algorithm]  # the same type of key, published for the other algorithm
        assert await service.get(publisher.token("u", KeyPair(pair.id, pair.private, other, {}))) == REFUSED


async def test_a_curve_that_is_not_meant(service: Service, publisher: Publisher) -> None:
    p384 = key_pair("p384", "ES384")
    lying = KeyPair("lying", p384.private, "ES512", p384.public)
    publisher.keys += [p384, lying]
    for pair in (p384, KeyPair("p384", KEYS["ES512"].private, "ES512", {}), KeyPair("lying", ED.private, "EdDSA", {})):
        assert await service.get(publisher.token("u", pair)) == REFUSED


async def test_keys_that_a_token_brings_along_are_not_looked_at(service: Service, publisher: Publisher) -> None:
    evil = key_pair(ED.id)
    with publishing() as elsewhere:
        elsewhere.keys = [evil, key_pair("new")]
        for kid in (ED.id, "new"):
            for extra in (
                {"jku": elsewhere.url + "/api/auth/jwks"},
                {"x5u": elsewhere.url},
                {"jwk": evil.jwk},
                {"x5c": ["x"], "x5t": "x"},
            ):
                claims = {"iss": publisher.url, "aud": publisher.url}
                header = {"kid": kid, **extra}
                token = make_token("u", key=evil.private, algorithm="EdDSA", headers=header, **claims)
                assert await service.get(token) == REFUSED, extra
        assert elsewhere.paths == []


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["x"], "x": 1},
        {"crit": ["exp"]},
        {"crit": []},
        {"crit": "x"},
        {"crit": [7]},
        {"crit": None},
        {"b64": False},
        {"kid": None},
        {"kid": 7},
        {"kid": ["key-EdDSA"]},
        {"kid": {}},
        {"kid": ""},
        {"kid": "key-EdDSA\0"},
    ],
    ids=str,
)
async def test_headers_of_a_wrong_kind(service: Service, publisher: Publisher, header: dict[str, Any]) -> None:
    claims = {"sub": "u", "exp": int(time.time()) + 60, "iss": publisher.url, "aud": publisher.url}
    signed = f"{encoded({'alg': 'EdDSA', 'kid': ED.id} | header)}.{encoded(claims)}"
    token = f"{signed}.{encoded(ED.private.sign(signed.encode()))}"
    assert await service.get(token) == REFUSED


async def test_a_token_without_a_key_id(service: Service, publisher: Publisher) -> None:
    token = make_token("u", key=ED.private, algorithm="EdDSA", iss=publisher.url, aud=publisher.url)
    assert await service.get(token) == REFUSED


async def test_a_key_id_of_10_000_characters(
    service: Service, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    long = KeyPair("k" * 10_000, ED.private, "EdDSA", {})
    assert await service.get(publisher.token("u", long)) == REFUSED
    assert await service.get(publisher.token("u", ED)) == (200, None)
    assert "kkk" not in caplog.text
    assert len(service.remembered) == 1


async def test_a_token_of_100_kib(service: Service, publisher: Publisher) -> None:
    status, body = await service.get(publisher.token("u", ED, note="x" * 100 * 1024))
    assert status == 431
    assert body["detail"].startswith("Request headers too large")


# Keys are kept, and fetched again -------------------------------------------------------------------------------------


async def test_the_keys_are_fetched_once_from_where_better_auth_publishes_them(
    service: Service, publisher: Publisher
) -> None:
    for _ in range(20):
        assert await service.accepts(publisher.token(f"{uuid4()}", ED)) is False
        assert await service.accepts(publisher.token("u", ED, jti=str(uuid4())))
    assert publisher.paths == ["/api/auth/jwks"]


async def test_a_new_key_is_fetched_when_a_token_names_it(service: Service, publisher: Publisher, clock: Clock) -> None:
    for number in range(3):  # one after the other, however soon: a search that finds something does not count
        new = key_pair(f"new-{number}")
        publisher.keys.append(new)
        tokens = [publisher.token("u", new, jti=str(n)) for n in range(20)]
        assert all(await asyncio.gather(*map(service.accepts, tokens)))
        assert len(publisher.paths) == 2 + number, "one fetch serves all who wait"


async def test_bad_tokens_have_the_keys_fetched_once_in_ten_seconds(
    service: Service, publisher: Publisher, clock: Clock
) -> None:
    def bad(number: int) -> str:
        return publisher.token("u", KeyPair(f"bad-{number}", ED.private, "EdDSA", {}))

    fetches = len(publisher.paths)
    for seconds in (0, 9, 10.1, 19, 20.2):
        clock.ahead = seconds
        answers = await asyncio.gather(*(service.get(bad(number)) for number in range(100)))
        assert answers == [REFUSED] * 100
        assert await service.accepts(publisher.token("u", ED)), "nobody else is held up"
        assert len(publisher.paths) - fetches == int(seconds / 10) + 1


async def test_a_key_that_comes_during_a_fetch_is_found(service: Service, publisher: Publisher) -> None:
    """The fetch that is under way saw the keys as they were before: another one has to follow."""
    new = key_pair("new")

    def late(request: BaseHTTPRequestHandler) -> None:
        body = json.dumps({"keys": [ED.jwk]}).encode()
        publisher.keys, publisher.answer = [ED, new], publisher.publish
        time.sleep(0.3)
        send(request, body)

    publisher.answer = late
    fetching = asyncio.create_task(service.app.state.tokens.published._fetch(in_search=False))
    await eventually(lambda: is_true(lambda: publisher.answer == publisher.publish))
    assert await service.accepts(publisher.token("u", new))
    await fetching


async def is_true(condition: Callable[[], bool]) -> bool:
    return condition()


async def test_who_looks_for_a_key_in_the_very_moment_when_a_fetch_ends_stops_nobody(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(settings) as service:
        published = service.app.state.tokens.published
        download, fetch = published._download, published._fetch
        looking, fetches = [], count()

        async def downloaded() -> Any:
            body = await download()
            looking.append(
                asyncio.create_task(published.look_for("unknown"))
            )  # runs before anything the fetch calls back
            return body

        async def fetched(in_search: bool) -> None:
            assert next(fetches) < 100, "it goes on for ever"
            await fetch(in_search)

        monkeypatch.setattr(published, "_download", downloaded)
        monkeypatch.setattr(published, "_fetch", fetched)
        await published._fetch(in_search=False)
        await looking[0]


async def test_old_keys_are_fetched_again_and_one_that_is_gone_counts_no_longer(
    settings: Settings, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "FRESH_SECONDS", 0.05)
    gone, stays = publisher.token("u", ED), publisher.token("u", KEYS["ES256"])
    async with serving(settings) as service:
        assert await service.accepts(gone)
        assert await service.accepts(stays)
        assert len(service.remembered) == 2
        publisher.keys = [KEYS["ES256"]]
        await eventually(lambda: is_true(lambda: ED.id not in service.app.state.tokens.published.by_id))
        assert await service.get(gone) == REFUSED
        assert await service.accepts(stays)
        publisher.keys = [KeyPair("key-ES256", None, "ES256", key_pair("x", "ES256").public)]
        assert await refused_eventually(service, stays), "another key under the same id is another key"
        publisher.keys = []
        await eventually(lambda: is_true(lambda: not service.app.state.tokens.published.by_id))
        assert await service.get(stays) == REFUSED
        assert (await service.ready()).json()["detail"].startswith("keys: ")


async def refused_eventually(service: Service, token: str) -> bool:
    async def refused() -> bool:
        return await service.get(token) == REFUSED

    await eventually(refused)
    return True


async def test_the_last_keys_serve_while_the_server_is_away(
    settings: Settings, publisher: Publisher, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(settings) as service:
        assert await service.get(publisher.token("u", ED)) == (200, None)
        publisher.answer = lambda request: send(request, b"", 502)
        for number in range(3):
            clock.ahead += 11
            assert await service.get(publisher.token("u", key_pair(f"new-{number}"))) == REFUSED
            assert await service.accepts(publisher.token("u", KEYS["ES512"], jti=str(number)))
        assert (await service.ready()).status_code == 200
        publisher.answer = publisher.publish
        clock.ahead += 11
        assert await service.get(publisher.token("u", key_pair("new"))) == REFUSED
    host = publisher.url.removeprefix("http://")
    assert [record.getMessage() for record in caplog.records if record.name == "service.auth.jwks"] == [
        f"the keys of {host} cannot be fetched, the last ones stay in use: it answers with status 502",
        f"the keys of {host} are there again",
    ]


async def test_a_server_that_comes_after_the_service(
    settings: Settings, publisher: Publisher, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    publisher.answer = lambda request: send(request, b"", 404)
    async with serving(settings) as service:
        token = publisher.token("u", ED)
        response = await service.http.get("/api/u/tasks", headers={"Authorization": f"Bearer {token}"})
        assert (response.status_code, response.json()) == UNAVAILABLE
        assert 1 <= int(response.headers["Retry-After"]) <= 10
        assert await service.accepts(make_token("u")), "the secret needs no server"
        assert await service.get(token[:-8] + "AAAAAAAA") == UNAVAILABLE, "nobody can tell"
        for wrong in ("x.y.z", make_token("u", key="x" * 64), f"{encoded({'alg': 'none', 'kid': 'x'})}.e30."):
            assert await service.get(wrong) == REFUSED
        answer = await service.http.get("/api/u/nothing", headers={"Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()) == UNAVAILABLE
        ready = await service.ready()
        assert (ready.status_code, ready.json()["detail"].partition(":")[0]) == (503, "keys")
        assert int(ready.headers["Retry-After"]) > 0
        assert len(publisher.paths) == 1

        publisher.answer = publisher.publish
        clock.ahead += 11
        assert await service.accepts(token)
        assert (await service.ready()).status_code == 200
    assert "none are known yet: it answers with status 404" in caplog.text
    assert token not in caplog.text


async def test_nobody_listens(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with publishing() as gone:
        pass
    async with serving(make_settings(database_url, better_auth_url=gone.url, db_pool_min=1)) as service:
        assert await service.get(gone.token("u", ED)) == UNAVAILABLE
    assert "cannot be fetched, none are known yet: ConnectError" in caplog.text


# What the server answers ----------------------------------------------------------------------------------------------


def slow(request: BaseHTTPRequestHandler) -> None:
    """Sends a byte now and then, for longer than anybody should wait."""
    request.send_response(200)
    request.end_headers()
    for _ in range(100):
        request.wfile.write(b" ")
        time.sleep(0.05)


def silent(request: BaseHTTPRequestHandler) -> None:
    time.sleep(2)


def huge(request: BaseHTTPRequestHandler) -> None:
    send(request, b'{"keys": [' + b" " * 10 * 2**20 + b"]}")


def endless(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    for _ in range(10_000):
        request.wfile.write(b"x" * 100_000)


def redirecting(request: BaseHTTPRequestHandler) -> None:
    if request.path == "/elsewhere":
        send(request, json.dumps({"keys": [ED.jwk]}).encode())
    else:
        send(request, b"", 302, Location="/elsewhere")


def nonsense(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"what?\r\n\r\n")


def body(content: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda request: send(request, content)


BAD: list[tuple[Callable[[BaseHTTPRequestHandler], None], str]] = [
    (body(b"<!doctype html><title>Sign in</title>"), "is no JWKS"),
    (body(b""), "is no JWKS"),
    (body(b"\xff\xfe"), "is no JWKS"),
    (body(b"[]"), "is no JWKS"),
    (body(b'"keys"'), "is no JWKS"),
    (body(b'{"keys": {}}'), "is no JWKS"),
    (body(b"[" * 100_000), "is no JWKS"),
    (body(b'{"keys": []}'), "no key that can be used"),
    (body(b'{"keys": [' + b",".join([b"{}"] * 101) + b"]}"), "101 keys"),
    (huge, "over 262144 bytes"),
    (endless, "over 262144 bytes"),
    (slow, "does not answer within"),
    (silent, "does not answer within"),
    (redirecting, "redirects (status 302), which is not followed"),
    (lambda request: send(request, b"{}", 500), "status 500"),
    (nonsense, "RemoteProtocolError"),
    (lambda request: send(request, b"", 200, **{"X-Long": "x" * 200_000}), "RemoteProtocolError"),
]


@pytest.mark.parametrize(("answer", "cause"), BAD, ids=[f"{n} {cause}" for n, (_, cause) in enumerate(BAD)])
async def test_a_bad_answer_is_named_and_blocks_nobody(
    settings: Settings,
    publisher: Publisher,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    answer: Callable[[BaseHTTPRequestHandler], None],
    cause: str,
) -> None:
    monkeypatch.setattr(keys, "FETCH_SECONDS", 0.5)
    publisher.answer = answer
    async with serving(settings) as service:
        token = publisher.token("u", ED)
        waiting = [asyncio.create_task(service.get(token)) for _ in range(20)]
        while not all(task.done() for task in waiting):
            began = time.monotonic()
            assert await service.accepts(make_token("u")), "the others are served meanwhile"
            assert time.monotonic() - began < 0.4
        assert [task.result() for task in waiting] == [UNAVAILABLE] * 20
        (warning,) = [record.getMessage() for record in caplog.records if record.name == "service.auth.jwks"]
        assert cause in warning
        assert len(warning) < 300
        assert token not in caplog.text
        assert len(publisher.paths) == 1


UNUSABLE: list[tuple[Any, str]] = [
    (7, "none: it has no `kid`"),
    ({"kty": "OKP"}, "none: it has no `kid`"),
    ({"kid": ["x"]}, "a list: it has no `kid`"),
    ({"kid": "x"}, '"x": its type is none none'),
    ({"kid": "x", "kty": "oct", "k": "c2VjcmV0"}, '"x": its type is "oct" none'),
    ({"kid": "x", "kty": ["OKP"], "crv": {}}, '"x": its type is a list a dict'),
    ({"kid": "x", "kty": "OKP", "crv": "X25519", "x": "AA"}, '"x": its type is "OKP" "X25519"'),
    ({"kid": "x", "kty": "OKP", "crv": "Ed25519", "x": "AA"}, '"x": its x are no public key'),
    ({"kid": "x", "kty": "OKP", "crv": "Ed25519", "x": 7}, '"x": its x are no public key'),
    ({"kid": "x", "kty": "OKP", "crv": "Ed25519"}, '"x": its x are no public key'),
    ({"kid": "x", "kty": "EC", "crv": "P-256", "x": "A" * 43, "y": "A" * 43}, '"x": its x, y are no public key'),
    ({"kid": "x", "kty": "RSA", "n": "AQAB", "e": "AQAB"}, '"x": '),
    ({**key_pair("x", "ES384").jwk}, '"x": its type is "EC" "P-384"'),
    ({**ED.jwk, "kid": "x", "alg": "RS256"}, '"x": its `alg` is "RS256", its type "OKP" "Ed25519"'),
    ({**ED.jwk, "kid": "x", "alg": ["EdDSA"]}, '"x": its `alg` is a list'),
    ({**KEYS["RS256"].jwk, "kid": "x", "alg": "HS256"}, '"x": its `alg` is "HS256"'),
    ({**ED.jwk, "kid": "x", "use": "enc"}, '"x": its `use` is not sig'),
    ({**ED.jwk, "kid": "x", "key_ops": 7}, '"x": its `key_ops` are without verify'),
    ({**key_pair(ED.id).jwk}, '"key-EdDSA": its `kid` is taken by another'),
    ({**ED.jwk, "kid": "x\n" * 5_000, "use": "enc"}, '"x\\nx\\n'),
]


@pytest.mark.parametrize(("jwk", "complaint"), UNUSABLE, ids=range(len(UNUSABLE)))
async def test_an_unusable_key_among_good_ones(
    settings: Settings,
    publisher: Publisher,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    jwk: Any,
    complaint: str,
) -> None:
    published = json.dumps({"keys": [KEYS["ES256"].jwk, ED.jwk, jwk, KEYS["PS256"].jwk]}).encode()
    publisher.answer = body(published)
    async with serving(settings) as service:
        for algorithm in ("ES256", "EdDSA", "PS256"):
            assert await service.accepts(publisher.token("u", KEYS[algorithm])), algorithm
        clock.ahead += 11
        assert await service.get(publisher.token("u", KeyPair("x", ED.private, "EdDSA", {}))) == REFUSED
        assert len(publisher.paths) == 2
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"cannot be used: {complaint}" in warning
    assert len(warning) < 300
    assert "\n" not in warning


async def test_an_rsa_key_that_is_too_short(
    settings: Settings, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    modulus = base64.urlsafe_b64encode((2**1024 - 1).to_bytes(128)).decode().rstrip("=")
    short = {"kid": "short", "kty": "RSA", "n": modulus, "e": "AQAB"}
    publisher.answer = body(json.dumps({"keys": [ED.jwk, short]}).encode())
    async with serving(settings) as service:
        assert await service.get(publisher.token("u", ED)) == (200, None)
    assert '"short": it has 1024 bits and needs 2048' in caplog.text


async def test_a_private_key_that_is_published_is_used_as_a_public_one(
    service: Service, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    new = key_pair("private")
    private = encoded(new.private.private_bytes_raw())
    publisher.answer = body(json.dumps({"keys": [{**new.jwk, "d": private}]}).encode())
    assert await service.accepts(publisher.token("u", new))
    assert private not in caplog.text


# Remembered tokens ----------------------------------------------------------------------------------------------------


async def test_a_remembered_token_costs_no_signature_check(
    service: Service, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = publisher.token("u", ED)
    assert await service.accepts(token)
    monkeypatch.setattr("service.auth.tokens.jwt.decode", None)
    assert await service.accepts(token)


async def test_a_remembered_token_is_refused_once_it_expires(
    service: Service, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = publisher.token("u", ED)
    assert await service.accepts(token)
    now = time.time()
    monkeypatch.setattr("service.auth.tokens.time.time", lambda: now + 3611)
    assert await service.get(token) == (401, {"detail": "Token has expired"})
    assert not service.remembered
