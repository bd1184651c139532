"""Parses query parameters, and reports errors in them."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from service.web.errors import Invalid, Wrong, cut, guess, shown

Json = dict[str, Any]


@dataclass(frozen=True)
class Parameter:
    """A query parameter: how to read its value, and its documentation."""

    read: Callable[[str], Any]  # raises ValueError with what is accepted
    description: str
    schema: Json
    example: Any


def sent_parameters(query_string: bytes) -> dict[str, list[str]]:
    """Returns the values of each parameter in the query string."""
    # invalid UTF-8 becomes surrogates, and nothing else does
    text = query_string.decode("utf-8", "surrogateescape")
    found: dict[str, list[str]] = {}
    for name, value in parse_qsl(text, keep_blank_values=True, errors="surrogateescape"):
        found.setdefault(name, []).append(value)
    return found


def read_parameters(query_string: bytes, known: Mapping[str, Parameter]) -> dict[str, Any]:
    """Returns the values of the parameters that were sent; raises Problem, a 422 that names all errors."""
    values: dict[str, Any] = {}
    problems: list[tuple[str, str, str]] = []  # name, message, type; an unknown one's message is made later
    for name, texts in sent_parameters(query_string).items():
        text = ",".join(texts)
        problem = _general_problem(name, text, len(texts), known)
        if problem is None:
            try:
                values[name] = known[name].read(text)
            except ValueError as error:
                problem = f"Input should be {error}, not {shown(text)}", "invalid"
        if problem is not None:
            problems.append((name, *problem))
    if problems:
        raise Wrong((_entry(*problem, known) for problem in problems), len(problems))
    return values


def _entry(name: str, message: str, type_: str, known: Mapping[str, Parameter]) -> Invalid:
    if type_ == "extra":
        message = f"Unknown parameter{guess(name, known)}; known are {', '.join(known)}"
    return Invalid(loc=["query", cut(name)], msg=message, type=type_)


def _general_problem(name: str, text: str, times: int, known: Mapping[str, Parameter]) -> tuple[str, str] | None:
    """Returns message and type of an error that any parameter can have, or None."""
    if name not in known:
        return "", "extra"
    schema = known[name].schema
    if times > 1 and schema["type"] != "array":  # some generated clients repeat it for each value
        return f"Parameter should be given once, not {times} times", "repeated"
    if re.search("[\ud800-\udfff]", text):
        return "String should be UTF-8", "string_unicode"
    if "\0" in text:
        return "String should not contain the character NUL", "nul"
    longest = schema.get("maxLength")
    if longest is not None and len(text) > longest:
        return f"String should have at most {longest} characters, not {len(text)}", "string_too_long"
    return None


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Returns a reader for whole numbers within these limits."""

    def read(value: str) -> int:
        if not re.fullmatch("0|[1-9][0-9]{0,15}", value, re.ASCII) or not least <= int(value) <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return int(value)

    return read
