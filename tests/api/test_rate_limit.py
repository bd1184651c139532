"""The rate limit: who is over it gets a 429 and is told when to come back, and nobody else notices."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest

from service.app import create_app
from service.settings import Rate, Settings
from service.web import limit
from service.web.errors import Problem
from service.web.limit import RateLimit
from tests.conftest import ADDRESS, ORIGIN, User, make_settings

Users = Callable[[], User]


@pytest.fixture
def limited(database_url: str) -> Callable[[str], AbstractAsyncContextManager[Users]]:
    """Returns what starts a service with this limit, and yields what makes users of it."""

    @asynccontextmanager
    async def start(rate: str) -> AsyncIterator[Users]:
        application = create_app(make_settings(database_url, rate_limit=rate))
        async with (
            application.router.lifespan_context(application),
            httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url=ADDRESS) as http,
        ):
            yield lambda: User(f"user-{uuid4()}", http)

    return start


Limited = Callable[[str], AbstractAsyncContextManager[Users]]


def told(answer: httpx.Response) -> tuple[int, int, int, int]:
    """Returns the limit, its window in seconds, what is left, and the seconds until all is there again."""
    policy = re.fullmatch(r'"default";q=(\d+);w=(\d+)', answer.headers["RateLimit-Policy"])
    left = re.fullmatch(r'"default";r=(\d+);t=(\d+)', answer.headers["RateLimit"])
    assert policy
    assert left
    return int(policy[1]), int(policy[2]), int(left[1]), int(left[2])


def batch(user: User, number: int, **others: Any) -> Any:
    body = {"operations": [{"op": "create", "task": {"title": "Buy milk"}} for _ in range(number)]} | others
    return user.client.post(f"/api/{user.id}/batch", headers=user.headers, json=body)


async def test_the_limit_is_reached_and_not_passed(limited: Limited) -> None:
    async with limited("3/hour") as users:
        user, other = users(), users()
        answers = [await user.call("GET") for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert [told(answer)[:3] for answer in answers] == [(3, 3600, left) for left in (2, 1, 0, 0, 0)]
        assert all(3590 <= told(answer)[3] <= 3600 for answer in answers)
        assert answers[3].json() == {"detail": "Too many requests"}
        assert answers[3].headers["Retry-After"] == str(told(answers[3])[3])
        assert "Retry-After" not in answers[2].headers
        assert answers[3].headers["Cache-Control"] == "private, no-cache"
        assert (await other.call("GET")).status_code == 200, "another user has a limit of their own"


async def test_the_time_that_is_told_is_never_longer_than_the_window(
    limited: Limited, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 31768.00000000001
    assert (now + 3600) - now > 3600, "as floating-point numbers have it"
    async with limited("1/hour") as users:
        user = users()
        with monkeypatch.context() as patch:
            patch.setattr(limit, "time", SimpleNamespace(monotonic=lambda: now))
            answers = [await user.call("GET") for _ in range(2)]
        assert [told(answer)[3] for answer in answers] == [3600, 3600]
        assert answers[1].headers["Retry-After"] == "3600"


async def test_when_the_time_is_up_everything_is_allowed_again(limited: Limited) -> None:
    async with limited("2/second") as users:
        user = users()
        while (answer := await user.call("GET")).status_code == 200:
            pass
        assert answer.headers["Retry-After"] == "1"
        await asyncio.sleep(1)
        answer = await user.call("GET")
        assert (answer.status_code, told(answer)[2]) == (200, 1)


async def test_errors_count_too_and_say_what_is_left(limited: Limited) -> None:
    async with limited("10/hour") as users:
        user = users()
        answers = [
            await user.call("POST", json={}),
            await user.call("GET", f"/{uuid4()}"),
            await user.call("DELETE"),
            await user.call("GET", "?colour=red"),
            await user.client.get(f"/api/{user.id}/nothing", headers=user.headers),
            await user.client.get("/api/someone-else/nothing", headers=user.headers),
        ]
        assert [answer.status_code for answer in answers] == [422, 404, 405, 422, 404, 404]
        assert [told(answer)[2] for answer in answers] == [9, 8, 7, 6, 5, 4]


async def test_who_has_no_good_token_takes_nothing_from_the_user(limited: Limited) -> None:
    async with limited("1/hour") as users:
        user, other = users(), users()
        for headers in ({}, {"Authorization": "Bearer x"}, other.headers):
            refused = await user.client.get(user.tasks, headers=headers)
            assert refused.status_code == 401
            assert "RateLimit" not in refused.headers
        assert (await user.client.get("/healthz")).status_code == 200
        assert (await user.call("GET")).status_code == 200


async def test_the_limit_comes_before_path_and_body(limited: Limited) -> None:
    async with limited("1/hour") as users:
        user = users()
        await user.call("GET")
        for method, path, body in (("GET", "/no-uuid", None), ("POST", "", {}), ("DELETE", "", None)):
            assert (await user.call(method, path, json=body)).status_code == 429
        assert (await user.client.get("/api/me/tasks", headers=user.headers)).status_code == 429, (
            "`me` is the same user"
        )


@pytest.mark.parametrize(("number", "left"), [(1, 9), (2, 8), (9, 1), (10, 0), (11, 0), (100, 0)])
async def test_a_batch_costs_its_operations_and_at_most_everything(limited: Limited, number: int, left: int) -> None:
    async with limited("10/hour") as users:
        answer = await batch(users(), number)
        assert (answer.status_code, told(answer)[2]) == (200, left)


async def test_a_batch_that_costs_more_than_is_left_is_refused_as_a_whole(limited: Limited) -> None:
    async with limited("10/hour") as users:
        user = users()
        assert told(await batch(user, 4))[2] == 6
        refused = await batch(user, 7)
        assert (refused.status_code, told(refused)[2]) == (429, 5), "its request has counted"
        assert told(await batch(user, 5, dry_run=True))[2] == 0
        assert (await user.call("GET")).status_code == 429
        other = users()
        assert told(await batch(other, 0))[2] == 9, "one that cannot be understood costs a request"


async def test_a_limit_of_one_takes_any_batch(limited: Limited) -> None:
    async with limited("1/hour") as users:
        user = users()
        assert [(await batch(user, 3)).status_code for _ in range(2)] == [200, 429]
        assert (await user.call("GET")).status_code == 429


async def test_pages_may_read_the_headers(limited: Limited, user: User) -> None:
    async with limited("1/hour") as users:
        one = users()
        for status in (200, 429):
            answer = await one.call("GET", headers={"Origin": ORIGIN})
            assert answer.status_code == status
            exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
            assert {"RateLimit", "RateLimit-Policy", "Retry-After"} <= set(exposed)
    unlimited = await user.call("GET", headers={"Origin": ORIGIN})
    assert "RateLimit" not in unlimited.headers["Access-Control-Expose-Headers"]


async def test_without_the_setting_there_is_no_limit(user: User) -> None:
    answers = await asyncio.gather(*(user.call("GET") for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert not any("RateLimit" in answer.headers or "RateLimit-Policy" in answer.headers for answer in answers)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("600/minute", Rate(600, 60)),
        ("1/second", Rate(1, 1)),
        ("999999999/HOUR", Rate(999_999_999, 3600)),
        (" 5/day ", Rate(5, 86_400)),
    ],
)
def test_rates(text: str, rate: Rate) -> None:
    assert make_settings("postgresql://db.test", rate_limit=text).rate_limit == rate
    assert Settings.model_fields["rate_limit"].default is None


def test_users_who_are_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    limit = RateLimit(Rate(1, 60))
    for number in range(1000):
        limit.take({}, f"user-{number}", 1)
    now = 60.0
    for number in range(500):
        limit.take({}, f"new-{number}", 1)
    with pytest.raises(Problem):
        limit.take({}, "new-0", 1)
    assert len(limit._windows) == 500


async def test_the_document_s_headers_are_the_answer_s(limited: Limited) -> None:
    async with limited("1/hour") as users:
        user = users()
        document = (await user.client.get("/openapi.json")).json()
        described = document["paths"]["/api/{user_id}/tasks"]["get"]["responses"]
        for status in ("200", "429"):
            answer = await user.call("GET")
            assert str(answer.status_code) == status
            for name in ("RateLimit", "RateLimit-Policy"):
                assert name in described[status]["headers"]
                assert re.fullmatch(document["components"]["headers"][name]["schema"]["pattern"], answer.headers[name])
        assert "Retry-After" in described["429"]["headers"]
