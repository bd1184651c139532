"""The one error that a handler's helpers raise: an HTTP status and what the answer's `detail` says."""

import json
from collections.abc import Mapping
from typing import Any, TypedDict


class Invalid(TypedDict):
    """One entry of a 422: where (`body`, `query`, `path` or `header`, then the field), what, and a name for it."""

    loc: list[str | int]
    msg: str
    type: str


class Problem(Exception):
    """An answer that is an error: `status`, the body's `detail`, and headers that go with it."""

    def __init__(self, status: int, detail: str | list[Invalid], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail
        self.headers = headers


RETRY_SECONDS = 1  # what `Retry-After` says


def unavailable(detail: str) -> Problem:
    """Returns the 503, which says when to ask again."""
    return Problem(503, detail, {"Retry-After": str(RETRY_SECONDS)})


def invalid(loc: list[str | int], msg: str, type_: str) -> Problem:
    """Returns the 422 with a single entry."""
    return Problem(422, [Invalid(loc=loc, msg=msg, type=type_)])


def shown(value: Any) -> str:
    """Returns what was sent, as a message quotes it."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:60] + "…"
