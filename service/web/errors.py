"""The one error that a handler's helpers raise: an HTTP status and what the answer's `detail` says."""

import json
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from itertools import islice
from typing import Any, TypedDict

MOST_ENTRIES = 20  # of one 422; the rest is counted
SHOWN_LENGTH = 60  # characters of what was sent that an answer repeats


class Invalid(TypedDict):
    """One entry of a 422: where (`body`, `query`, `path` or `header`, then the field), what, and a name for it."""

    loc: list[str | int]
    msg: str
    type: str


class Problem(Exception):
    """An answer that is an error: `status`, the body's `detail`, and headers that go with it.

    `cause` is for the log alone.
    """

    def __init__(
        self,
        status: int,
        detail: str | list[Invalid],
        headers: Mapping[str, str] | None = None,
        cause: str | None = None,
    ) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail
        self.headers = headers
        self.cause = cause


class Wrong(Problem):
    """A 422 with one entry for each thing that is wrong: at most so many, then one that says how many more.

    `told` are the entries without that last one, `count` is how many things are wrong. No more entries are made than
    told, so they may come from a generator.
    """

    def __init__(self, entries: Iterable[Invalid], count: int, most: int = MOST_ENTRIES) -> None:
        self.told = list(islice(entries, most))
        self.count = count
        detail = list(self.told)
        if count > len(detail):
            place = self.told[0]["loc"][0] if self.told else "body"
            detail = [*detail, Invalid(loc=[place], msg=f"and {count - len(detail)} more", type="more")]
        self.entries = detail
        super().__init__(422, detail)


RETRY_SECONDS = 1  # what `Retry-After` says where nothing better is known


def unavailable(detail: str, seconds: int = RETRY_SECONDS) -> Problem:
    """Returns the 503, which says when to ask again."""
    return Problem(503, detail, {"Retry-After": str(seconds)})


def invalid(loc: list[str | int], msg: str, type_: str) -> Problem:
    """Returns the 422 with a single entry."""
    return Problem(422, [Invalid(loc=loc, msg=msg, type=type_)])


def shown(value: Any) -> str:
    """Returns what was sent, as a message quotes it: the beginning, when it is long."""
    text = ""
    for part in _ENCODER.iterencode(value):  # part by part: of a large value no more is encoded than is shown
        text += part
        if len(text) > SHOWN_LENGTH:
            break
    return cut(text)


def cut(text: str) -> str:
    """Returns the text, or its beginning when it is long."""
    return text if len(text) <= SHOWN_LENGTH else text[:SHOWN_LENGTH] + "…"


def guess(name: str, known: Collection[str]) -> str:
    """Returns a question to put into a message, which of the known names is meant; empty when none is like this one."""
    like = get_close_matches(name[:SHOWN_LENGTH].lower(), known, n=1, cutoff=0.5)
    return f" (did you mean {like[0]}?)" if like else ""


_ENCODER = json.JSONEncoder(default=str)
