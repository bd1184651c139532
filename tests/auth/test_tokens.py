"""Identity: every way in which a token can be wrong, and what is checked before what."""

import base64
import hashlib
import hmac
import json
import logging
import time
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from starlette.applications import Starlette

from service.auth.tokens import REMEMBERED, Tokens
from service.web.errors import Problem
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


def signed(payload: str, header: str = '{"alg": "HS256"}') -> str:
    """Returns a token with this JSON, which may be none, and a good signature."""
    text = f"{encoded(header)}.{encoded(payload)}"
    digest = hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


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


@pytest.mark.parametrize("exp", [0, -1, NOW - 3600, NOW - 12], ids=["epoch", "before", "hour", "seconds"])
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
    if sub is not None:
        assert await refusal(user, f"Bearer {make_token(sub, user_id=user.id)}") == "Token missing 'sub' claim"
        assert await refusal(user, f"Bearer {make_token(None, user_id=sub)}") == "Token missing 'sub' claim"
    null = f'{{"sub": null, "user_id": "{user.id}", "exp": {NOW + 3600}}}'
    assert await refusal(user, f"Bearer {signed(null)}") == "Token missing 'sub' claim"


async def test_where_sub_is_missing_the_claim_user_id_counts(user: User, other: User) -> None:
    for claims, status in (
        ({"sub": None, "user_id": user.id}, 200),
        ({"sub": None, "user_id": other.id}, 401),
        ({"sub": user.id, "user_id": other.id}, 200),
        ({"sub": other.id, "user_id": user.id}, 401),
    ):
        headers = {"Authorization": f"Bearer {make_token(**claims)}"}
        for _ in range(2):  # the second time it is remembered
            assert (await user.client.get(user.tasks, headers=headers)).status_code == status


# Me -------------------------------------------------------------------------------------------------------------------


def me(user: User) -> User:
    """Returns the same user, who says `me` instead of the id."""
    return User("me", user.client, make_token(user.id))


async def test_me_is_the_token_s_own_user_on_every_path(user: User, other: User) -> None:
    theirs = await other.create()
    own = me(user)
    created = await own.call("POST", json={"title": "x"}, headers={"Idempotency-Key": "k"})
    task = created.json()
    path = f"/{task['id']}"
    assert (created.status_code, task["user_id"]) == (201, user.id)
    assert created.headers["Location"] == "/api/me/tasks" + path
    again = await user.call("POST", json={"title": "x"}, headers={"Idempotency-Key": "k"})
    assert (again.json(), again.headers["Location"]) == (task, user.tasks + path)
    assert (await own.call("GET", created.headers["Location"].removeprefix("/api/me/tasks"))).json() == task
    assert (await user.call("GET")).json() == (await own.call("GET")).json() == [task]
    for method, rest in (("PUT", path), ("PATCH", path), ("PATCH", path + "/complete")):
        changed = await own.call(method, rest, json={"is_completed": True})
        assert (changed.status_code, changed.json()["user_id"]) == (200, user.id)
    assert (await own.call("DELETE", path)).status_code == 204
    assert (await own.call("POST", path + "/restore")).json()["id"] == task["id"]
    batch = {"operations": [{"op": "create", "task": {"title": "y"}}]}
    done = await user.client.post("/api/me/batch", headers=own.headers, json=batch)
    assert done.json()["results"][0]["task"]["user_id"] == user.id
    assert (await own.call("GET", f"/{theirs['id']}")).status_code == 404
    assert (await other.call("GET")).json() == [theirs]

    first = await own.call("GET", "?limit=1")
    assert urlsplit(first.links["next"]["url"]).path == "/api/me/tasks"
    second = await own.client.get(first.links["next"]["url"], headers=own.headers)
    assert second.json() == (await user.call("GET")).json()[1:]
    theirs_too = first.links["next"]["url"].replace("/me/", f"/{user.id}/")
    assert (await own.client.get(theirs_too, headers=own.headers)).json() == second.json(), "it is the same list"


async def test_me_needs_a_token_as_well(client: httpx.AsyncClient) -> None:
    nobody = User("me", client)
    assert await refusal(nobody, None) == "Missing authorization header"
    assert await refusal(nobody, f"Bearer {make_token('u', exp=1)}") == "Token has expired"
    assert await refusal(nobody, f"Bearer {make_token(None)}") == "Token missing 'sub' claim"


async def test_a_user_whose_id_is_me(client: httpx.AsyncClient, user: User) -> None:
    really = User("me", client)
    task = await really.create()
    assert task["user_id"] == "me"
    assert task in (await really.call("GET")).json()
    assert (await me(user).call("GET")).json() == []
    await really.call("DELETE", f"/{task['id']}")


@pytest.mark.parametrize("spelling", ["%6De", "m%65"])
async def test_me_may_be_encoded_but_is_no_other_word(user: User, spelling: str) -> None:
    response = await user.client.get(f"/api/{spelling}/tasks", headers=user.headers)
    assert response.status_code == 200
    for other in ("Me", "ME", "me%20", "%20me", "self", "me%2F"):
        response = await user.client.get(f"/api/{other}/tasks", headers=user.headers)
        assert response.status_code in (401, 404)


@pytest.mark.parametrize(
    ("subject", "status"), [("x" * 255, 200), ("x" * 256, 422), ("a\0b", 422), ("\ud800", 401), ("a\udfffb", 401)]
)
async def test_a_user_who_cannot_be_is_nobody_through_me_neither(
    client: httpx.AsyncClient, subject: str, status: int
) -> None:
    headers = {"Authorization": f"Bearer {make_token(subject)}"}
    assert (await client.get("/api/me/tasks", headers=headers)).status_code == status


# Paths that do not exist ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/", "/api/x/", "/api/{}/task", "/api/x/tasks/", "/api/x/tasks/1/2/3"])
async def test_a_path_that_does_not_exist_is_a_404_for_whoever_has_a_good_token(
    user: User, other: User, path: str
) -> None:
    for named in (user.id, other.id, "me"):
        url = path.format(named)
        for method in ("GET", "POST", "DELETE"):
            response = await user.client.request(method, url, headers=user.headers)
            assert (response.status_code, response.json()) == (404, {"detail": "Not Found"}), url
        for headers, detail in (
            ({}, "Missing authorization header"),
            ({"Authorization": "Bearer x"}, "Invalid token"),
            ({"Authorization": f"Bearer {make_token(user.id, exp=1)}"}, "Token has expired"),
            ({"Authorization": f"Bearer {make_token(None)}"}, "Token missing 'sub' claim"),
        ):
            response = await user.client.get(url, headers=headers)
            assert (response.status_code, response.json()) == (401, {"detail": detail})


async def test_a_method_that_a_path_has_not_is_a_405_for_its_own_user(user: User, other: User) -> None:
    for named, status in ((user.id, 405), ("me", 405), (other.id, 401)):
        response = await user.client.delete(f"/api/{named}/tasks", headers=user.headers)
        assert response.status_code == status
    assert (await user.client.delete(user.tasks)).status_code == 401


# The log's word -------------------------------------------------------------------------------------------------------


def unlike(token: str) -> str:
    """Returns the token with another signature."""
    return token[:-6] + ("AAAAAA" if token[-6:] != "AAAAAA" else "BBBBBB")


@pytest.mark.parametrize(
    ("token", "check"),
    [
        (unlike(make_token("u")), "signature"),
        (make_token("u", key=SECRET[::-1]), "signature"),
        (make_token("u", algorithm="HS512"), "algorithm"),
        (make_token("u", algorithm="none", key=""), "algorithm"),
        (make_token("u", exp=None), "exp"),
        (make_token("u", exp="soon"), "exp"),
        (make_token("u", nbf=NOW + 3600), "nbf"),
        (make_token("u", iat=NOW + 3600), "iat"),
        (make_token("u", iat="x"), "iat"),
        (make_token("u", nbf="x"), "nbf"),
        ("x.y.z", "shape"),
        (signed("[]"), "shape"),
        (make_token("\ud800"), "shape"),
        ("x" * 8193, "size"),
    ],
    ids=lambda text: text if len(text) < 20 else "token",  # the same in every process
)
async def test_the_log_says_which_check_a_token_failed_and_nothing_of_the_token(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, token: str, check: str
) -> None:
    caplog.set_level(logging.INFO)
    headers = {"Authorization": f"Bearer {token}", "X-Request-Id": "the-one"}
    for path in ("/api/u/tasks", "/api/u/nothing"):
        caplog.clear()
        response = await client.get(path, headers=headers)
        assert (response.status_code, response.json()) == (401, {"detail": "Invalid token"})
        (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("service")]
        assert message.startswith(f"401 in request the-one: the token fails a check: {check}: ")
        assert not [part for part in token.split(".") if len(part) > 3 and part[:8] in message]


@pytest.mark.parametrize(
    ("claims", "check"),
    [
        *(({"iss": "https://evil.test"}, "issuer"), ({"iss": None}, "iss")),
        *(({"aud": "other"}, "audience"), ({"aud": None}, "aud"), ({"aud": 7}, "audience")),
    ],
)
def test_the_log_says_so_of_issuer_and_audience(claims: dict[str, Any], check: str) -> None:
    tokens = Tokens(SECRET, issuer="https://login.test", audience="tasks")
    with pytest.raises(Problem) as refused:
        tokens.verified(bearer(make_token("x", **{"iss": "https://login.test", "aud": "tasks"} | claims)))
    assert f"fails a check: {check}: " in str(refused.value.cause)


def test_the_log_says_so_where_there_is_no_secret() -> None:
    for token in (make_token("x"), make_token("x", algorithm="HS512")):
        with pytest.raises(Problem) as refused:
            Tokens(None, None, None).verified(bearer(token))
        assert "fails a check: algorithm: " in str(refused.value.cause)


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
    assert tokens.verified(bearer(make_token("x", **good))).subject == "x"
    assert tokens.verified(bearer(make_token("x", **good | {"aud": ["other", "tasks"]}))).subject == "x"
    for claims in ({"iss": "https://evil.test"}, {"aud": "other"}, {"iss": None}, {"aud": None}, {"aud": 7}):
        with pytest.raises(Problem) as refused:
            tokens.verified(bearer(make_token("x", **good | claims)))
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
    monkeypatch.setattr("service.auth.tokens.time.time", lambda: now + 3600 + 11)
    response = await user.client.get(user.tasks, headers=headers)
    assert (response.status_code, response.json()) == (401, {"detail": "Token has expired"})


async def test_a_remembered_token_is_good_for_its_own_user_only(user: User, other: User) -> None:
    assert (await user.call("GET")).status_code == 200
    assert await refusal(other, user.headers["Authorization"]) == "User ID mismatch"


def test_no_more_tokens_are_remembered_than_the_bound(app: Starlette, monkeypatch: pytest.MonkeyPatch) -> None:
    assert REMEMBERED >= 1_000, "a thousand users at once are nothing special"
    monkeypatch.setattr("service.auth.tokens.REMEMBERED", 3)
    tokens = Tokens(SECRET, None, None)
    for number in range(10):
        assert tokens.verified(bearer(make_token(f"user {number}"))).subject == f"user {number}"
    assert len(tokens._remembered) == 3


def test_a_token_of_extraordinary_length_is_not_remembered() -> None:
    tokens = Tokens(SECRET, None, None)
    assert tokens.verified(bearer(make_token("x", note="x" * 3000))).subject == "x"
    assert not tokens._remembered


def test_what_was_refused_is_not_remembered() -> None:
    tokens = Tokens(SECRET, None, None)
    for token in ("x", make_token("x", key=SECRET.upper()), make_token(None), make_token("x", exp=1)):
        with pytest.raises(Problem):
            tokens.verified(bearer(token))
    assert not tokens._remembered
