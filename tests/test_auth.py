"""Identity: every way in which a token can be wrong, and what is checked before what."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from starlette.applications import Starlette

from service.auth import REMEMBERED, Tokens
from service.errors import Problem
from tests.conftest import SECRET, User, make_token

PUBLIC_KEY = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
"""
NOW = int(time.time())


def encoded(part: Any) -> str:
    text = part if isinstance(part, str) else json.dumps(part)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def unsigned(header: Any, sub: str) -> str:
    return f"{encoded(header)}.{encoded({'sub': sub, 'exp': NOW + 3600})}."


def bearer(token: str) -> bytes:
    return f"Bearer {token}".encode()


async def refusal(user: User, authorization: str | None) -> str:
    """Returns the 401's detail, once its form is checked on every route."""
    details = set()
    task = "/0b6c2b38-3b5f-4a7e-9f0e-2f4d5a3c1e11"
    headers = {"Authorization": authorization} if authorization is not None else {}
    for method, path in (
        ("GET", ""),
        ("POST", ""),
        ("GET", task),
        ("PUT", task),
        ("PATCH", task),
        ("DELETE", task),
        ("PATCH", task + "/complete"),
    ):
        response = await user.client.request(method, user.tasks + path, headers=headers)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        details.add(response.json()["detail"])
    (detail,) = details
    return str(detail)


async def test_no_header(user: User) -> None:
    assert await refusal(user, None) == "Missing authorization header"


@pytest.mark.parametrize(
    "form",
    ["{}", "Basic {}", "Bearer", "Bearer ", "Bearer {} {}", "Bearer  {}", "Bearer {} ", "Bearer,{}", "", "Token {}"],
)
async def test_a_header_of_another_form(user: User, form: str) -> None:
    token = make_token(user.id)
    assert await refusal(user, form.format(token, token)) == "Invalid authorization header format"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
async def test_the_scheme_is_matched_without_regard_to_case(user: User, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {make_token(user.id)}"}
    assert (await user.client.get(user.tasks, headers=headers)).status_code == 200


@pytest.mark.parametrize("exp", [0, -1, NOW - 3600, NOW - 12])
async def test_an_expired_token(user: User, exp: int) -> None:
    assert await refusal(user, f"Bearer {make_token(user.id, exp=exp)}") == "Token has expired"


async def test_clocks_may_differ_by_ten_seconds(user: User) -> None:
    for claims in ({"exp": int(time.time()) - 7}, {"nbf": int(time.time()) + 7}, {"iat": int(time.time()) + 7}):
        headers = {"Authorization": f"Bearer {make_token(user.id, **claims)}"}
        assert (await user.client.get(user.tasks, headers=headers)).status_code == 200, claims


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "x.y.z",
        "ey.ey.ey",
        "..",
        make_token("{user}") + "x",
        make_token("{user}")[:-3],
        f"{encoded('[' * 5000)}.{encoded('{}')}.{encoded('x')}",
        f"{encoded([])}.{encoded({})}.{encoded('x')}",
        f"{encoded({'alg': 'HS256', 'crit': ['x'], 'x': 1})}.{encoded({})}.{encoded('x')}",
        f"{encoded({'alg': ['HS256']})}.{encoded({})}.{encoded('x')}",
    ],
)
async def test_what_is_no_token_of_ours(user: User, token: str) -> None:
    assert await refusal(user, f"Bearer {token}") == "Invalid token"


def padded_token(user: User, size: int) -> str:
    """Returns a good token of this size."""
    most = size * 3 // 4
    tokens = (
        make_token(user.id, note="x" * padding, headers={"x": "y" * letters})  # base64 has no text of any length
        for letters in range(3)
        for padding in range(most - 400, most)
    )
    return next(token for token in tokens if len(token) == size)


async def test_a_token_is_looked_at_up_to_8_kib(user: User) -> None:
    for size, status in ((8191, 200), (8192, 200), (8193, 401), (30_000, 401)):
        headers = {"Authorization": f"Bearer {padded_token(user, size)}"}
        response = await user.client.get(user.tasks, headers=headers)
        assert response.status_code == status
    assert response.json() == {"detail": "Invalid token"}


def signed(payload: str, header: str = '{"alg": "HS256"}') -> str:
    """Returns a token with this JSON, which may be none, and a good signature."""
    text = f"{encoded(header)}.{encoded(payload)}"
    digest = hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("value", ["1e400", "-1e400", "NaN", "1" * 5000, "[]", "{}", '"soon"', "[" * 2900])
async def test_moments_that_are_none(user: User, claim: str, value: str) -> None:
    exp = "" if claim == "exp" else f', "exp": {NOW + 3600}'
    payload = f'{{"sub": "{user.id}"{exp}, "{claim}": {value}}}'
    assert await refusal(user, f"Bearer {signed(payload)}") == "Invalid token"


@pytest.mark.parametrize(
    "token",
    [
        *("." * 8192, "." * 30_000, "x" * 8192, ".".join(["e30"] * 2000), f"{encoded('[' * 6000)}.e30.eA"),
        f"{encoded({'alg': 'HS256', 'kid': 'k' * 6000})}.e30.eA",
        f"{encoded({'alg': 'HS256', 'crit': ['x'] * 1000})}.e30.eA",
        f"{encoded({'alg': 'HS256', 'b64': False})}.e30.eA",
        *(signed("[" * 2900), signed("{" * 2900), signed("null"), signed("[]"), signed("1"), signed('"x"')),
        *(signed("{}", header) for header in ("[]", "null", "1", '{"alg": 1}', '{"alg": null}', "{" * 2900)),
    ],
)
async def test_hostile_tokens(user: User, token: str) -> None:
    assert await refusal(user, f"Bearer {token}") == "Invalid token"


async def test_signatures_that_do_not_count(user: User) -> None:
    forged = [
        make_token(user.id, key=SECRET[::-1]),
        make_token(user.id, key=SECRET.upper()),
        make_token(user.id, algorithm="HS512"),
        make_token(user.id, algorithm="HS384"),
        make_token(user.id, algorithm="none", key=""),
        unsigned({"alg": "none", "typ": "JWT"}, user.id),
        unsigned({"alg": "NONE"}, user.id),
        unsigned({"alg": "HS256"}, user.id),
        unsigned({}, user.id),
    ]
    for token in forged:
        assert await refusal(user, f"Bearer {token}") == "Invalid token", token


async def test_a_public_key_is_no_secret(user: User) -> None:
    # PyJWT itself refuses to sign with such a key, so the forger signs by hand
    signed = f"{encoded({'alg': 'HS256'})}.{encoded({'sub': user.id, 'exp': NOW + 3600})}"
    digest = hmac.new(PUBLIC_KEY.encode(), signed.encode(), hashlib.sha256).digest()
    token = f"{signed}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"
    assert await refusal(user, f"Bearer {token}") == "Invalid token"


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": None},
        {"exp": "soon"},
        {"exp": [1]},
        {"exp": float("inf")},
        {"nbf": NOW + 3600},
        {"nbf": "x"},
        {"iat": NOW + 3600},
        {"iat": "x"},
    ],
)
async def test_claims_of_a_wrong_kind(user: User, claims: dict[str, Any]) -> None:
    assert await refusal(user, f"Bearer {make_token(user.id, **claims)}") == "Invalid token"


@pytest.mark.parametrize("sub", [None, "", 7, True, ["x"], {"id": "x"}])
async def test_a_sub_that_is_no_text(user: User, sub: Any) -> None:
    assert await refusal(user, f"Bearer {make_token(sub)}") == "Token missing 'sub' claim"


async def test_another_user_s_token(user: User, other: User) -> None:
    task = await other.create()
    for sub in (other.id, user.id.upper(), user.id + " ", user.id[:-1]):
        assert await refusal(user, f"Bearer {make_token(sub)}") == "User ID mismatch"
    assert (await other.call("GET")).json() == [task]


async def test_an_audience_and_an_issuer_count_only_where_they_are_set(user: User) -> None:
    headers = {"Authorization": f"Bearer {make_token(user.id, aud='any', iss='any')}"}
    assert (await user.client.get(user.tasks, headers=headers)).status_code == 200

    tokens = Tokens(SECRET, issuer="https://login.test", audience="tasks")
    good = {"iss": "https://login.test", "aud": "tasks"}
    assert tokens.subject(bearer(make_token("x", **good))) == "x"
    assert tokens.subject(bearer(make_token("x", **good | {"aud": ["other", "tasks"]}))) == "x"
    for claims in ({"iss": "https://evil.test"}, {"aud": "other"}, {"iss": None}, {"aud": None}, {"aud": 7}):
        with pytest.raises(Problem) as refused:
            tokens.subject(bearer(make_token("x", **good | claims)))
        assert refused.value.detail == "Invalid token"


async def test_identity_is_checked_before_everything_else(user: User) -> None:
    for method, path, body in (
        ("GET", user.tasks + "?colour=red", None),
        ("GET", user.tasks + "/no-uuid", None),
        ("POST", user.tasks, "{"),
        ("POST", user.tasks, "x" * 70_000),
        ("DELETE", user.tasks, None),
        ("OPTIONS", user.tasks, None),
        ("GET", user.tasks + "/", None),
        ("GET", f"/api/{user.id}/nothing", None),
        ("GET", "/api/", None),
    ):
        response = await user.client.request(method, path, content=body)
        assert (response.status_code, response.json()) == (401, {"detail": "Missing authorization header"}), path
    assert (await user.call("DELETE")).status_code == 405
    assert (await user.call("GET", "/")).json() == {"detail": "Not Found"}


@pytest.mark.parametrize(
    "user_id", ["a", "x" * 255, "auth0|5f7c8ec7c33c6c004bbafe82", "jörg@example.org", "你好 🎉", "a.b", "%"]
)
async def test_user_ids_of_many_kinds(client: httpx.AsyncClient, user_id: str) -> None:
    path = f"/api/{quote(user_id, safe='')}/tasks"
    headers = {"Authorization": f"Bearer {make_token(user_id)}"}
    response = await client.post(path, headers=headers, json={"title": "x"})
    assert response.status_code == 201
    assert response.json()["user_id"] == user_id
    assert (await client.get(response.headers["Location"], headers=headers)).json() == response.json()


@pytest.mark.parametrize(
    ("user_id", "message"),
    [("x" * 256, "String should have at most 255 characters, not 256"), ("a\0b", "String should not contain")],
)
async def test_user_ids_out_of_bounds(client: httpx.AsyncClient, user_id: str, message: str) -> None:
    path = f"/api/{user_id.replace(chr(0), '%00')}/tasks"
    response = await client.get(path, headers={"Authorization": f"Bearer {make_token(user_id)}"})
    assert response.status_code == 422
    (entry,) = response.json()["detail"]
    assert entry["loc"] == ["path", "user_id"]
    assert entry["msg"].startswith(message)


# Remembered tokens ----------------------------------------------------------------------------------------------------


async def test_a_remembered_token_is_refused_once_it_expires(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = user.headers
    assert (await user.client.get(user.tasks, headers=headers)).status_code == 200
    now = time.time()
    monkeypatch.setattr("service.auth.time.time", lambda: now + 3600 + 11)
    response = await user.client.get(user.tasks, headers=headers)
    assert (response.status_code, response.json()) == (401, {"detail": "Token has expired"})


async def test_a_remembered_token_is_good_for_its_own_user_only(user: User, other: User) -> None:
    assert (await user.call("GET")).status_code == 200
    assert await refusal(other, user.headers["Authorization"]) == "User ID mismatch"


def test_no_more_tokens_are_remembered_than_the_bound(app: Starlette, monkeypatch: pytest.MonkeyPatch) -> None:
    assert REMEMBERED >= 1_000, "a thousand users at once are nothing special"
    monkeypatch.setattr("service.auth.REMEMBERED", 3)
    tokens = Tokens(SECRET, None, None)
    for number in range(10):
        assert tokens.subject(bearer(make_token(f"user {number}"))) == f"user {number}"
    assert len(tokens._remembered) == 3


def test_a_token_of_extraordinary_length_is_not_remembered() -> None:
    tokens = Tokens(SECRET, None, None)
    assert tokens.subject(bearer(make_token("x", note="x" * 3000))) == "x"
    assert not tokens._remembered


def test_what_was_refused_is_not_remembered() -> None:
    tokens = Tokens(SECRET, None, None)
    for token in ("x", make_token("x", key=SECRET.upper()), make_token(None), make_token("x", exp=1)):
        with pytest.raises(Problem):
            tokens.subject(bearer(token))
    assert not tokens._remembered
