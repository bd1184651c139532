"""The one exception for all error responses: an HTTP status and the body's `detail`."""

import json
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from itertools import islice
from typing import Any, TypedDict

MOST_ENTRIES = 20  # of a 422; further ones are only counted
SHOWN_LENGTH = 60  # characters of the input that a message quotes


class Invalid(TypedDict):
    """An entry of a 422: the place (`body`, `query`, `path` or `header`, then the field), a message and a type."""

    loc: list[str | int]
    msg: str
    type: str


class Problem(Exception):
    """An error response: `status`, the body's `detail` and extra headers. `cause` is only logged."""

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
    """A 422 with an entry for each error: at most `most`, then one that counts the rest.

    `told` are the entries without the counting one, and `count` is the number of all errors. Entries beyond `most` are
    never taken, so they may come from a generator.
    """

    def __init__(self, entries: Iterable[Invalid], count: int, most: int = MOST_ENTRIES) -> None:
        self.told = list(islice(entries, most))
        self.count = count
        self.entries = self.told
        if count > len(self.told):
            place = self.told[0]["loc"][0] if self.told else "body"
            self.entries = [*self.told, Invalid(loc=[place], msg=f"and {count - len(self.told)} more", type="more")]
        super().__init__(422, self.entries)


RETRY_SECONDS = 1  # `Retry-After`, if nothing better is known


def unavailable(detail: str, seconds: int = RETRY_SECONDS) -> Problem:
    """Returns a 503 with `Retry-After`."""
    return Problem(503, detail, {"Retry-After": str(seconds)})


def invalid(loc: list[str | int], msg: str, type_: str) -> Problem:
    """Returns a 422 with a single entry."""
    return Problem(422, [Invalid(loc=loc, msg=msg, type=type_)])


def shown(value: Any) -> str:
    """Returns the value as a message quotes it, cut when it is long."""
    text = ""
    for part in _ENCODER.iterencode(value):  # encodes no more of a large value than is shown
        text += part
        if len(text) > SHOWN_LENGTH:
            break
    return cut(text)


def cut(text: str) -> str:
    """Returns the text, cut when it is long."""
    return text if len(text) <= SHOWN_LENGTH else text[:SHOWN_LENGTH] + "…"


def guess(name: str, known: Collection[str]) -> str:
    """Returns a suggestion for a message, the most similar known name; empty when none is similar."""
    like = get_close_matches(name[:SHOWN_LENGTH].lower(), known, n=1, cutoff=0.5)
    return f" (did you mean {like[0]}?)" if like else ""


_ENCODER = json.JSONEncoder(default=str)
