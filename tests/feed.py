"""The clients of the feed that the tests have: one that keeps a copy, and one that reads the stream off the wire."""

import http.client
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any

import psycopg

from tests.wire import Wire


def task_texts(page: str) -> dict[str, str]:
    """Returns the JSON text of each task of a page, byte for byte, by the task's id, in the page's order."""
    start = re.match(r'\{"version": \d+, "has_more": (?:true|false), "tasks": \[', page)
    assert start, page[:100]
    place, texts = start.end(), {}
    decoder = json.JSONDecoder()
    while page[place] != "]":
        task, end = decoder.raw_decode(page, place)
        assert task["id"] not in texts, "a task stands in a page once"
        texts[task["id"]] = page[place:end]
        place = end + len(re.match(r"[,\s]*", page[end:])[0])  # type: ignore[index]  # it matches the empty text, too
    return texts


def apply(copy: dict[str, str], page: str) -> dict[str, Any]:
    """Brings the copy, whose values are the tasks as JSON, up to what the page says; returns the page."""
    told: dict[str, Any] = json.loads(page)
    for task_id in told["erased"]:
        copy.pop(task_id, None)
    copy.update(task_texts(page))
    return told


def tasks_in(url: str, user: str) -> dict[str, str]:
    """Returns the user's tasks as the database has them, as JSON by their ids."""
    with psycopg.connect(url) as connection:
        connection.execute("set timezone to 'UTC'")
        rows = connection.execute("select id::text, row_to_json(t)::text from tasks.task t where user_id = %s", [user])
        return dict(rows.fetchall())


def counter_in(url: str, user: str) -> int:
    """Returns the user's counter."""
    with psycopg.connect(url) as connection:
        row = connection.execute("select version from tasks.account where user_id = %s", [user]).fetchone()
        return row[0] if row else 0


def erase_trash(url: str, user: str) -> int:
    """Erases what the user has in the trash, as the purge with zero days does, in a process that is not the service's.

    Returns how many tasks.
    """
    with psycopg.connect(url) as connection:
        (ids,) = connection.execute("select array_agg(id) from tasks.task where user_id = %s", [user]).fetchall()[0]
        row = connection.execute("select tasks.purge_tasks(%s, '5s', %s, now())", [user, ids]).fetchone()
    assert row is not None
    return int(row[0])


@dataclass(frozen=True)
class Event:
    """An event of a stream."""

    name: str
    id: int | None
    data: str

    @property
    def page(self) -> dict[str, Any]:
        """What its data says."""
        told: dict[str, Any] = json.loads(self.data)
        return told


class Stream:
    """A stream of changes, as it comes over the wire."""

    def __init__(
        self, port: int, user: str, headers: Mapping[str, str], query: str = "", receive_buffer: int | None = None
    ) -> None:
        self.wire = Wire(port, receive_buffer=receive_buffer)
        try:
            self.status, self.headers = self._ask(user, {"Host": "service.test"} | dict(headers), query)
        except BaseException:
            self.wire.close()
            raise
        self.retries: list[int] = []
        self.comments = 0
        self.text = b""  # as it came, without the chunks' frames
        self._read = 0
        self.is_ended = False  # in order, by the last chunk

    def _ask(self, user: str, headers: dict[str, str], query: str) -> tuple[int, Message]:
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        self.wire.send(f"GET /api/{user}/events{query} HTTP/1.1\r\n{''.join(lines)}\r\n".encode())
        line = self.wire.received.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        return int(line.split()[1]), http.client.parse_headers(self.wire.received)

    def event(self) -> Event | None:
        """Returns the next event, None when the stream has ended in order. Raises OSError or AssertionError."""
        while True:
            while (end := self.text.find(b"\n\n", self._read)) < 0:
                if not self._take_chunk():
                    return None
            block = self.text[self._read : end].decode()
            self._read = end + 2
            if (event := self._parsed(block)) is not None:
                return event

    def page(self) -> dict[str, Any]:
        """Returns what the next event says, which has to be one of changes."""
        event = self.event()
        assert event is not None, "the stream has ended"
        assert event.name == "changes"
        assert event.id == event.page["version"]
        return event.page

    def body(self) -> bytes:
        """Returns the whole body of an answer that is no stream."""
        return self.wire.received.read(int(self.headers["Content-Length"]))

    def until_comment(self) -> None:
        """Returns when one more comment has come, and nothing else before."""
        seen = self.comments
        while self.comments == seen:
            assert self._take_chunk(), "the stream has ended"
            while (end := self.text.find(b"\n\n", self._read)) >= 0:
                assert self._parsed(self.text[self._read : end].decode()) is None
                self._read = end + 2

    def end(self) -> list[Event]:
        """Returns the events until the stream ends, which it has to do in order."""
        events = []
        while (event := self.event()) is not None:
            events.append(event)
        return events

    def close(self) -> None:
        """Goes away."""
        self.wire.close()

    def _take_chunk(self) -> bool:
        if self.is_ended:
            return False
        line = self.wire.received.readline()
        if not line:
            raise ConnectionError("cut")
        size = int(line, 16)
        self.text += self.wire.received.read(size)
        assert self.wire.received.read(2) == b"\r\n"
        self.is_ended = size == 0
        return not self.is_ended

    def _parsed(self, block: str) -> Event | None:
        """Returns the event; notes what is none."""
        fields: dict[str, list[str]] = {}
        for line in block.split("\n"):
            if line.startswith(":"):
                self.comments += 1
                continue
            name, colon, value = line.partition(": ")
            assert colon, line
            fields.setdefault(name, []).append(value)
        if not fields:
            return None
        if set(fields) == {"retry"}:
            self.retries += [int(value) for value in fields["retry"]]
            return None
        assert set(fields) <= {"event", "id", "data"}, fields.keys()
        (name,) = fields["event"]
        return Event(name, int(fields["id"][0]) if "id" in fields else None, "\n".join(fields["data"]))


def seconds_until(stream: Stream, started: float) -> float:
    """Returns the seconds from then to the next event."""
    stream.page()
    return time.monotonic() - started
