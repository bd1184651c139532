"""Due dates, recurrence and tags: what a task may have, and what comes after a recurring one."""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from time import process_time
from typing import Any
from unicodedata import normalize
from uuid import UUID, uuid4, uuid5

import asyncpg
import httpx
import pytest
from starlette.applications import Starlette

from service.models import BatchResult, HistoryEntry, Task
from service.queries import planning, zones
from service.zones import today
from tests.conftest import Served, User, serving
from tests.processes import Client, external

Json = dict[str, Any]
PLAIN: Json = {
    "due_date": None,
    "due_time": None,
    "due_time_zone": None,
    "recurrence": None,
    "recurrence_anchor": "due",
    "recurrence_start": None,
    "series_id": None,
    "occurrence": None,
    "tags": [],
}
DAILY: Json = {"due_date": "2026-01-31", "recurrence": "FREQ=DAILY"}
WHOLE: Json = {
    "due_date": "2026-01-31",
    "due_time": "09:30",
    "due_time_zone": "Europe/Berlin",
    "recurrence": "FREQ=MONTHLY",
    "tags": ["Home", "élan"],
}


async def call(user: User, method: str, path: str, **options: Any) -> httpx.Response:
    """Calls the API below the user's path."""
    return await user.client.request(method, f"/api/{user.id}/{path}", headers=user.headers, **options)


async def patched(user: User, task: Json, **fields: Any) -> Json:
    response = await user.call("PATCH", f"/{task['id']}", json=fields)
    assert response.status_code == 200, response.text
    changed: Json = response.json()
    return changed


async def refused(user: User, task: Json | None, fields: Json) -> list[tuple[Any, str]]:
    """Returns place and message of each error, the same for a create or an update and in a batch."""
    if task is None:
        response = await user.call("POST", json={"title": "x"} | fields)
        operation: Json = {"op": "create", "task": {"title": "x"} | fields}
    else:
        response = await user.call("PATCH", f"/{task['id']}", json=fields)
        operation = {"op": "update", "id": task["id"], "task": fields}
    assert response.status_code == 422, response.text
    batch = await call(user, "POST", "batch", json={"operations": [operation]})
    assert batch.status_code == 409
    assert batch.json()["results"] == [{"status": 422, "detail": response.json()["detail"]}]
    return [(entry["loc"], entry["msg"]) for entry in response.json()["detail"]]


async def every_task(user: User) -> dict[str, Json]:
    tasks = (await call(user, "GET", "changes", params={"limit": 1000})).json()["tasks"]
    return {task["id"]: task for task in tasks}


async def history(user: User, task: Json) -> list[Json]:
    entries: list[Json] = (await call(user, "GET", "history", params={"task_id": task["id"]})).json()
    for entry in entries:
        HistoryEntry.model_validate(entry)
    return entries


def successor_of(task: Json) -> str:
    """Returns the id that the contract gives the task after this one."""
    return str(uuid5(UUID(task["series_id"]), str(task["occurrence"] + 1)))


async def complete(user: User, task: Json, **options: Any) -> tuple[Json, Json | None]:
    """Completes the task; returns it and its successor, which the answer names."""
    response = await user.call("PATCH", f"/{task['id']}/complete", json={"is_completed": True}, **options)
    assert response.status_code == 200, response.text
    Task.model_validate_json(response.content)
    location = response.headers.get("Location")
    if location is None:
        return response.json(), None
    assert location == f"{user.tasks}/{successor_of(response.json())}"
    return response.json(), (await every_task(user))[location.rsplit("/", 1)[1]]


async def reopen(user: User, task: Json) -> Json:
    response = await user.call("PATCH", f"/{task['id']}/complete", json={"is_completed": False})
    assert response.status_code == 200, response.text
    assert "Location" not in response.headers
    reopened: Json = response.json()
    return reopened


async def undo(user: User, version: int) -> Json:
    response = await call(user, "POST", "undo", json={"version": version})
    assert response.status_code == 200, response.text
    undone: Json = response.json()
    return undone


# The fields -----------------------------------------------------------------------------------------------------------


async def test_a_task_has_nothing_of_this_unless_it_is_given(user: User) -> None:
    task = await user.create()
    assert {name: task[name] for name in PLAIN} == PLAIN
    assert [*task] == [*Task.model_fields]


async def test_what_is_given_is_answered_everywhere(user: User) -> None:
    task = await user.create(**WHOLE)
    answered = WHOLE | {
        "due_time": "09:30:00",
        "recurrence": "FREQ=MONTHLY;BYMONTHDAY=31",
        "recurrence_anchor": "due",
        "recurrence_start": "2026-01-31",
        "series_id": task["id"],
        "occurrence": 1,
    }
    assert {name: task[name] for name in PLAIN} == answered
    assert (await user.call("GET", f"/{task['id']}")).json() == task
    assert (await user.call("GET")).json() == [task]
    assert await every_task(user) == {task["id"]: task}
    (entry,) = await history(user, task)
    assert answered.items() <= entry["after"].items()
    await user.call("DELETE", f"/{task['id']}")
    (trashed,) = (await user.call("GET", "?trashed=true")).json()
    assert answered.items() <= trashed.items()
    batch = await call(user, "POST", "batch", json={"operations": [{"op": "create", "task": {"title": "x"} | WHOLE}]})
    (result,) = batch.json()["results"]
    assert answered | {"series_id": result["task"]["id"]} == {name: result["task"][name] for name in PLAIN}


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_an_update_writes_what_is_sent_and_leaves_the_rest(user: User, method: str) -> None:
    task = await user.create(**WHOLE)
    changes: list[tuple[Json, Json]] = [
        ({"due_date": "2026-03-01"}, {}),
        ({"due_time": "23:59:59"}, {}),
        ({"due_time_zone": "Asia/Kathmandu"}, {}),
        ({"due_time_zone": None}, {}),
        ({"tags": ["b", "a"]}, {}),
        ({"tags": []}, {}),
        ({"due_time": None}, {}),
        ({"recurrence": None}, {"recurrence_start": None, "series_id": None, "occurrence": None}),
        ({"due_date": None}, {}),
    ]
    for sent, follows in changes:
        response = await user.call(method, f"/{task['id']}", json=sent)
        assert response.status_code == 200, response.text
        expected = task | sent | follows
        task = response.json()
        assert {**task, "updated_at": None, "version": None} == {**expected, "updated_at": None, "version": None}
        (entry, *_) = await history(user, task)
        assert entry["after"] == sent | follows
        again = await user.call(method, f"/{task['id']}", json=task)
        assert again.json() == task, "a whole task sent back changes nothing"


@pytest.mark.parametrize(
    ("cleared", "left"),
    [
        ("due_date", ["tags"]),
        ("due_time", ["due_date", "recurrence", "recurrence_start", "series_id", "occurrence", "tags"]),
        (
            "due_time_zone",
            ["due_date", "due_time", "recurrence", "recurrence_start", "series_id", "occurrence", "tags"],
        ),
        ("recurrence", ["due_date", "due_time", "due_time_zone", "tags"]),
    ],
)
async def test_clearing_a_field_clears_what_needs_it_and_undo_brings_all_back(
    user: User, cleared: str, left: list[str]
) -> None:
    rule = {"recurrence": "FREQ=MONTHLY", "recurrence_anchor": "completion"}
    task = await user.create(**WHOLE | rule)
    if cleared not in ("due_date", "recurrence"):
        left = [*left, "recurrence_anchor"]
    changed = await patched(user, task, **{cleared: None})
    assert {name: changed[name] for name in PLAIN} == PLAIN | {name: task[name] for name in left}
    (entry, *_) = await history(user, task)
    assert entry["before"] == {name: task[name] for name in PLAIN if name not in left}
    undone = await undo(user, changed["version"])
    assert {name: undone["tasks"][0][name] for name in PLAIN} == {name: task[name] for name in PLAIN}
    redone = await undo(user, undone["version"])
    assert {name: redone["tasks"][0][name] for name in PLAIN} == {name: changed[name] for name in PLAIN}


GOOD: list[tuple[Json, Json]] = [
    ({"due_date": "0001-01-01"}, {}),
    ({"due_date": "9999-12-31"}, {}),
    ({"due_date": "2028-02-29"}, {}),
    ({"due_date": "2026-01-01", "due_time": "00:00"}, {"due_time": "00:00:00"}),
    ({"due_date": "2026-01-01", "due_time": "23:59:59"}, {}),
    ({"due_date": "2026-03-29", "due_time": "02:30", "due_time_zone": "Europe/Berlin"}, {"due_time": "02:30:00"}),
    ({"due_date": "2026-01-01", "due_time": "09:00:00", "due_time_zone": "UTC"}, {}),
    ({"due_date": "2026-01-01", "due_time": "09:00:00", "due_time_zone": "America/Argentina/ComodRivadavia"}, {}),
    ({"due_date": "2026-01-01", "due_time": "09:00:00", "due_time_zone": "Etc/GMT+12"}, {}),
    ({"due_date": "2026-01-01", "due_time": "09:00:00", "due_time_zone": "EST5EDT"}, {}),
    ({"tags": [str(number) for number in range(20)]}, {}),
    ({"tags": ["x" * 50, "𝕏" * 50]}, {}),
    ({"tags": [" a b\u3000", "\u0085c\u2028"]}, {"tags": ["a b", "c"]}),
    ({"tags": ["e\u0301"]}, {"tags": ["é"]}),
    ({"tags": ["e\u0301" * 50]}, {"tags": ["é" * 50]}),
    ({"tags": ["\x1c", '"{}\\', "ẞtrasse", "null", "NULL\u200b", ";:#%&+/"]}, {}),
]


@pytest.mark.parametrize(("fields", "differing"), GOOD)
async def test_what_is_at_a_limit_is_taken(user: User, fields: Json, differing: Json) -> None:
    expected = PLAIN | fields | differing
    created = await user.create(**fields)
    assert {name: created[name] for name in PLAIN} == expected
    updated = await patched(user, await user.create(), **fields)
    assert {name: updated[name] for name in PLAIN} == expected


DAY = "a day of the calendar, YYYY-MM-DD"
CLOCK = "a time of the day, HH:MM or HH:MM:SS, 00:00 to 23:59:59"
ZONE = "a time zone of the tz database"
TAG = "A tag should have 1 to 50 characters without commas"
BAD: list[tuple[Json, str, str, str]] = [
    # what is sent, the field, what would be right, and what of it the message shows
    *(
        ({"due_date": day}, "due_date", DAY, json.dumps(day))
        for day in (
            *(
                "2026-02-29",
                "2026-13-01",
                "2026-00-10",
                "2026-01-00",
                "0000-01-01",
                "10000-01-01",
                "2026-1-1",
                "20260101",
            ),
            *(
                "2026-01-01T00:00:00Z",
                "2026-01-01 ",
                "2026-W01-1",
                "-2026-01-01",
                "+002026-01-01",
                "",
                "today",
                "２０２６-01-01",
            ),
        )
    ),
    *(
        ({"due_date": "2026-01-01", "due_time": time}, "due_time", CLOCK, json.dumps(time))
        for time in (
            *("24:00", "23:60", "23:59:60", "9:00", "09:00:00.5", "09:00Z", "09:00+01:00", "09", "0900", "", "9 am"),
            *("09:00:00:00", "T09:00", "-1:00", "٠٩:00", "09:00 "),
        )
    ),
    *(
        (
            {"due_date": "2026-01-01", "due_time": "09:00", "due_time_zone": zone},
            "due_time_zone",
            ZONE,
            json.dumps(zone),
        )
        for zone in (
            *("europe/berlin", "Europe/Bielefeld", "CET+1", "+01:00", "FOO3", "localtime", "posix/Europe/Berlin", ""),
            *("Europe/Berlin ", "Factory/", "../Europe/Berlin", "\u0000"),
        )
    ),
    *(
        ({"due_date": 20260101}, "due_date", "valid string", "20260101"),
        ({"due_date": 1.5}, "due_date", "valid string", "1.5"),
        ({"due_date": True}, "due_date", "valid string", "true"),
        ({"due_date": ["2026-01-01"]}, "due_date", "valid string", '["2026-01-01"]'),
        ({"due_date": "2026-01-01", "due_time": 9}, "due_time", "valid string", "9"),
        ({"due_date": "2026-01-01", "due_time": "09:00", "due_time_zone": 1}, "due_time_zone", "valid string", "1"),
        ({"due_date": "2026-01-01", "recurrence": {}}, "recurrence", "valid string", "{}"),
        ({"recurrence_anchor": None}, "recurrence_anchor", "'due' or 'completion'", "null"),
        ({"recurrence_anchor": "Due"}, "recurrence_anchor", "'due' or 'completion'", '"Due"'),
        ({"tags": None}, "tags", "array", "null"),
        ({"tags": "a,b"}, "tags", "array", '"a,b"'),
        ({"tags": {"a": 1}}, "tags", "array", '{"a": 1}'),
        ({"tags": [1]}, "tags.0", "valid string", "1"),
        ({"tags": ["a", None]}, "tags.1", "valid string", "null"),
    ),
    *(
        ({"tags": [str(number) for number in range(21)]}, "tags", "at most 20 tags", "21"),
        ({"tags": ["x"] * 9000}, "tags", "at most 20 tags", "9000"),
        ({"tags": ["x" * 51]}, "tags.0", TAG, '"' + "x" * 51 + '"'),
        ({"tags": ["x", "𝕏" * 51]}, "tags.1", TAG, r'"\ud835\udd4f'),
        ({"tags": [""]}, "tags.0", TAG, '""'),
        ({"tags": [" \u3000\t"]}, "tags.0", TAG, '" '),
        ({"tags": ["a,b"]}, "tags.0", TAG, '"a,b"'),
        ({"tags": [","]}, "tags.0", TAG, '","'),
        ({"tags": ["a\u0000"]}, "tags.0", TAG, '"a'),
        ({"tags": ["a", "a"]}, "tags", "No two tags should be alike", "'a' and 'a'"),
        ({"tags": ["Home", "x", "hOME"]}, "tags", "No two tags should be alike", "'Home' and 'hOME'"),
        ({"tags": ["é", "e\u0301"]}, "tags", "No two tags should be alike", "'é' and 'é'"),
        ({"tags": ["É", "e\u0301"]}, "tags", "No two tags should be alike", "'É' and 'é'"),
        ({"tags": ["Straße", "STRASSE"]}, "tags", "No two tags should be alike", "'Straße' and 'STRASSE'"),
        ({"tags": ["a", " a "]}, "tags", "No two tags should be alike", "'a' and 'a'"),
    ),
]


@pytest.mark.parametrize(("fields", "field", "right", "shown"), BAD)
async def test_what_is_none_is_refused_with_what_would_be_right(
    user: User, fields: Json, field: str, right: str, shown: str
) -> None:
    place = ["body", *(int(part) if part.isdigit() else part for part in field.split("."))]
    for task in (None, await user.create()):
        ((loc, message),) = await refused(user, task, fields)
        assert loc == place
        assert right in message
        assert shown in message
    assert len(await every_task(user)) == 1


@pytest.mark.parametrize("tag", ["a" + "\u0301\u0327" * 500, "\u1100\u1161\u11a8" * 51, "\u0390" * 51])
async def test_a_tag_that_is_too_long_in_all_forms_is_refused(user: User, tag: str) -> None:
    ((place, message),) = await refused(user, None, {"tags": [tag]})
    assert place == ["body", "tags", 0]
    assert TAG in message


async def test_a_tag_of_characters_that_become_one_is_counted_after_that(user: User) -> None:
    for tag in ("\u1100\u1161\u11a8", "\u03b1\u0313\u0300\u0345"):
        for size in (49, 50):
            assert (await user.create(tags=[tag * size]))["tags"] == [normalize("NFC", tag) * size]
        await refused(user, None, {"tags": [tag * 51]})


async def test_a_tag_of_marks_takes_no_time(user: User) -> None:
    began = process_time()
    response = await user.call("POST", json={"title": "x", "tags": ["a" + "\u0301\u0327" * 15_000]})
    assert response.status_code == 422
    assert process_time() - began < 0.3, "to put it into NFC takes longer"


async def test_a_rule_that_is_none_is_told_beside_what_else_is_wrong(user: User) -> None:
    for task in (None, await user.create()):
        for day in ({}, {"due_date": None}, {"due_date": "2026-02-29"}):
            told = await refused(user, task, day | {"recurrence": "FREQ=SECONDLY"})
            assert ["body", "recurrence"] in [place for place, _ in told]
            assert "FREQ cannot be 'SECONDLY'" in told[-1][1]
            assert len(told) == (2 if day.get("due_date") else 1)


async def test_a_zone_that_may_have_been_meant_is_named(user: User) -> None:
    for sent, meant in (("europe/berlin", "Europe/Berlin"), ("Europe/Kyev", "Europe/Kyiv"), ("utc", "UTC")):
        ((_, message),) = await refused(
            user, None, {"due_date": "2026-01-01", "due_time": "09:00", "due_time_zone": sent}
        )
        assert message.endswith(f"(did you mean {meant}?)")
        response = await user.call("POST", params={"time_zone": sent}, json={"title": "x"})
        assert response.status_code == 422
        assert f"(did you mean {meant}?)" in response.json()["detail"][0]["msg"]


async def test_a_zone_that_postgresql_does_not_know_is_refused(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    task = await user.create()
    monkeypatch.setitem(zones._known, "Asia/Kolkata", False)  # as if its tz database were older
    fields = {"due_date": "2026-01-01", "due_time": "09:00", "due_time_zone": "Asia/Kolkata"}
    for each in (None, task):
        ((place, message),) = await refused(user, each, fields)
        assert place == ["body", "due_time_zone"]
        assert 'a time zone that the database knows too, like UTC, not "Asia/Kolkata"' in message
    response = await user.call("PATCH", f"/{task['id']}/complete", params={"time_zone": "Asia/Kolkata"})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["query", "time_zone"]
    answer = await call(
        user,
        "POST",
        "batch",
        json={
            "atomic": False,
            "operations": [
                {"op": "update", "id": task["id"], "task": fields},
                {"op": "update", "id": task["id"], "task": fields | {"due_time_zone": "UTC"}},
            ],
        },
    )
    assert [result["status"] for result in answer.json()["results"]] == [422, 200]


@pytest.mark.parametrize(
    ("fields", "field", "needed"),
    [
        ({"due_time": "09:00"}, "due_time", "due_date"),
        ({"due_time_zone": "UTC"}, "due_time_zone", "due_time"),
        ({"due_date": "2026-01-01", "due_time_zone": "UTC"}, "due_time_zone", "due_time"),
        ({"recurrence": "FREQ=DAILY"}, "recurrence", "due_date"),
        ({"recurrence_anchor": "completion"}, "recurrence_anchor", "recurrence"),
        ({"due_date": "2026-01-01", "recurrence_anchor": "completion"}, "recurrence_anchor", "recurrence"),
    ],
)
async def test_a_field_without_the_one_that_it_needs_is_refused(
    user: User, fields: Json, field: str, needed: str
) -> None:
    for task in (None, await user.create()):
        ((place, message),) = await refused(user, task, fields)
        assert place == ["body", field]
        assert f"needs {needed}, which " in message
        assert str(fields[field]) in message
    whole = await user.create(**WHOLE)
    ((place, message),) = await refused(user, whole, fields | {needed: None})
    assert place == ["body", field]
    assert f"needs {needed}, which is null" in message
    assert (await user.call("GET", f"/{whole['id']}")).json() == whole


async def test_fields_that_are_there_already_are_enough(user: User) -> None:
    task = await user.create(due_date="2026-01-31")
    task = await patched(user, task, due_time="09:00")
    task = await patched(user, task, due_time_zone="UTC", recurrence="FREQ=DAILY")
    task = await patched(user, task, recurrence_anchor="completion")
    assert (task["due_time"], task["due_time_zone"], task["recurrence_anchor"]) == ("09:00:00", "UTC", "completion")


async def test_what_only_the_server_writes_is_ignored(user: User) -> None:
    fields: Json = {"recurrence_start": "1999-01-01", "series_id": str(uuid4()), "occurrence": 7}
    task = await user.create(**DAILY, **fields)
    assert (task["recurrence_start"], task["series_id"], task["occurrence"]) == ("2026-01-31", task["id"], 1)
    assert await patched(user, task, **fields) == task
    assert {name: (await user.create(**fields))[name] for name in PLAIN} == PLAIN


# The rule -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("FREQ=SECONDLY", "FREQ cannot be 'SECONDLY'"),
        ("FREQ=HOURLY", "FREQ cannot be"),
        ("FREQ=DAILY;COUNT=3;UNTIL=20270101", "COUNT and UNTIL exclude each other"),
        ("FREQ=DAILY;INTERVAL=0", "INTERVAL cannot be '0'"),
        ("FREQ=DAILY;INTERVAL=1000", "INTERVAL cannot be '1000'"),
        ("FREQ=DAILY;COUNT=10000", "COUNT cannot be '10000'"),
        ("FREQ=DAILY;COUNT=0", "COUNT cannot be '0'"),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "never has a day 30"),
        ("FREQ=MONTHLY;BYMONTHDAY=32", "BYMONTHDAY cannot be '32'"),
        ("FREQ=MONTHLY;BYDAY=5MO", "BYDAY cannot be '5MO'"),
        ("FREQ=DAILY;" + "X" * 9989, "at most 200 characters, not 10000"),
        ("every day", "is not understood"),
        ("", "is not understood"),
        ("FREQ=DAILY\u0000", "FREQ cannot be"),
        ("FREQ=DAİLY", "ASCII"),
        ("DTSTART:20260101\nRRULE:FREQ=DAILY", "is not understood"),
        ("FREQ=DAILY;UNTIL=20260131T000000Z", "UNTIL cannot be"),
    ],
)
async def test_what_is_no_rule_is_refused_with_what_is_understood(user: User, rule: str, said: str) -> None:
    for task in (None, await user.create(due_date="2026-01-31")):
        ((place, message),) = await refused(user, task, {"due_date": "2026-01-31", "recurrence": rule})
        assert place == ["body", "recurrence"]
        assert said in message
        assert "Understood are: FREQ=DAILY" in message
        assert len(message) < 1000


async def test_what_only_the_due_date_or_the_anchor_rules_out_is_refused(user: User) -> None:
    task = await user.create(due_date="2026-01-31")
    ((place, message),) = await refused(user, task, {"recurrence": "FREQ=DAILY;UNTIL=20260130"})
    assert (place, "UNTIL=20260130 is before the due date, 2026-01-31" in message) == (["body", "recurrence"], True)
    assert (await patched(user, task, recurrence="FREQ=DAILY;UNTIL=20260131"))[
        "recurrence"
    ] == "FREQ=DAILY;UNTIL=20260131"
    weekly = await user.create(due_date="2026-01-31", recurrence="FREQ=WEEKLY;BYDAY=MO,TU")
    ((place, message),) = await refused(user, weekly, {"recurrence_anchor": "completion"})
    assert (place, "BYDAY cannot be combined" in message) == (["body", "recurrence_anchor"], True)
    ((place, message),) = await refused(
        user, task, {"recurrence_anchor": "completion", "recurrence": "FREQ=DAILY;COUNT=2"}
    )
    assert (place, "COUNT cannot be combined" in message) == (["body", "recurrence"], True)
    assert "FREQ=DAILY, WEEKLY, MONTHLY or YEARLY, and INTERVAL=1 to 999" in message


async def test_a_rule_in_any_spelling_is_the_same_rule(user: User) -> None:
    task = await user.create(due_date="2026-01-31", recurrence=" rrule:freq=weekly;interval=01;byday=tu,mo,tu;wkst=mo ")
    assert task["recurrence"] == "FREQ=WEEKLY;BYDAY=MO,TU"
    for rule in ("FREQ=WEEKLY;BYDAY=MO,TU", "RRULE:FREQ=WEEKLY;BYDAY=TU,MO"):
        assert await patched(user, task, recurrence=rule) == task, "nothing changes"


async def test_a_changed_rule_begins_a_new_series_and_the_same_rule_does_not(user: User) -> None:
    first = await user.create(**DAILY | {"recurrence": "FREQ=DAILY;UNTIL=20260205"})
    _, second = await complete(user, first)
    assert second is not None
    series = {name: second[name] for name in ("recurrence_start", "series_id", "occurrence")}
    moved = await patched(user, second, due_date="2026-03-01")
    assert series.items() <= moved.items(), "this one alone moves"
    assert series.items() <= (await patched(user, moved, recurrence=moved["recurrence"], title="y")).items(), (
        "past UNTIL"
    )
    sent = {"recurrence": "FREQ=WEEKLY", "due_date": "2026-03-03"}
    changed = await patched(user, moved, **sent)
    assert {
        "recurrence": "FREQ=WEEKLY;BYDAY=TU",
        "recurrence_start": "2026-03-03",
        "series_id": second["id"],
    }.items() <= (changed.items())
    assert changed["occurrence"] == 1
    anchored = await patched(user, changed, recurrence_anchor="completion")
    assert (anchored["recurrence"], anchored["recurrence_anchor"]) == ("FREQ=WEEKLY", "completion")
    back = await patched(user, anchored, recurrence_anchor="due", due_date="2026-03-04")
    assert (back["recurrence"], back["recurrence_start"]) == ("FREQ=WEEKLY;BYDAY=WE", "2026-03-04")


# The next one ---------------------------------------------------------------------------------------------------------


async def test_completing_makes_the_next_one(user: User) -> None:
    task = await user.create(**WHOLE, description="d", priority="high", status="in_progress")
    done, successor = await complete(user, task)
    assert successor is not None
    assert done == task | {
        name: done[name] for name in ("status", "is_completed", "completed_at", "updated_at", "version")
    }
    assert successor == task | {
        "id": successor_of(task),
        "status": "pending",
        "due_date": "2026-02-28",
        "occurrence": 2,
        **{name: successor[name] for name in ("created_at", "updated_at")},
        "version": done["version"],
    }
    assert successor["created_at"] == successor["updated_at"]
    entries = (await call(user, "GET", "history", params={"limit": 2})).json()
    assert {(entry["task_id"], entry["version"], entry["operation"]) for entry in entries} == {
        (task["id"], done["version"], "complete"),
        (successor["id"], done["version"], "complete"),
    }
    assert {entry["before"] is None for entry in entries if entry["task_id"] == successor["id"]} == {True}
    page = (await call(user, "GET", "changes", params={"since": task["version"]})).json()
    assert {each["id"] for each in page["tasks"]} == {task["id"], successor["id"]}
    days = [task["due_date"], successor["due_date"]]
    for _ in range(3):
        _, successor = await complete(user, successor)
        assert successor is not None
        days.append(successor["due_date"])
    assert days == ["2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30", "2026-05-31"]
    assert (successor["occurrence"], successor["series_id"]) == (5, task["id"])


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/complete", None),
        ("PATCH", "/complete", {"is_completed": True}),
        ("PUT", "", {"status": "completed"}),
        ("PATCH", "", {"is_completed": True, "title": "y"}),
        ("PATCH", "", {"status": "completed", "is_completed": True}),
    ],
)
async def test_every_way_to_complete_does_so(user: User, method: str, path: str, body: Json | None) -> None:
    task = await user.create(**DAILY)
    options: Json = {} if body is None else {"json": body}
    response = await user.call(method, f"/{task['id']}{path}", **options)
    assert response.status_code == 200
    assert response.json()["is_completed"]
    assert response.headers["Location"] == f"{user.tasks}/{successor_of(task)}"
    successor = (await user.call("GET", f"/{successor_of(task)}")).json()
    assert (successor["due_date"], successor["version"]) == ("2026-02-01", response.json()["version"])
    assert successor["title"] == response.json()["title"]


async def test_a_create_as_completed_does_so_too(user: User) -> None:
    for body in (DAILY | {"status": "completed"}, DAILY | {"is_completed": True}):
        sent: Json = {"headers": {"Idempotency-Key": str(uuid4())}, "json": {"title": "x"} | body}
        created, again = await user.call("POST", **sent), await user.call("POST", **sent)
        assert created.status_code == again.status_code == 201
        assert created.json() == again.json()
        assert again.headers["Idempotent-Replayed"] == "true"
        place = f"{user.tasks}/{successor_of(created.json())}"
        assert created.headers["Location"] == again.headers["Location"] == place
        successor = (await every_task(user))[successor_of(created.json())]
        assert (successor["due_date"], successor["version"]) == ("2026-02-01", created.json()["version"])
    ended = await user.call(
        "POST", json={"title": "x", "is_completed": True} | DAILY | {"recurrence": "FREQ=DAILY;COUNT=1"}
    )
    assert ended.headers["Location"] == f"{user.tasks}/{ended.json()['id']}"
    assert len(await every_task(user)) == 5


async def test_a_retry_changes_nothing_and_names_the_same_one(user: User) -> None:
    task = await user.create(**DAILY)
    done, successor = await complete(user, task)
    before = await every_task(user)
    assert await complete(user, task) == (done, successor)
    response = await user.call("PUT", f"/{task['id']}", json=done)
    assert response.headers["Location"].endswith(successor_of(task))
    assert "Location" not in (await user.call("PATCH", f"/{task['id']}", json={"title": "Buy milk"})).headers
    assert await every_task(user) == before
    plain = await user.create()
    assert "Location" not in (await user.call("PATCH", f"/{plain['id']}/complete")).headers


@pytest.mark.parametrize("rule", ["FREQ=DAILY;COUNT=1", "FREQ=DAILY;UNTIL=20260131"])
async def test_a_rule_at_its_end_has_no_next_one(user: User, rule: str) -> None:
    task = await user.create(**DAILY | {"recurrence": rule})
    done, successor = await complete(user, task)
    assert successor is None
    assert done["recurrence"] == rule
    assert len(await every_task(user)) == 1
    assert (await reopen(user, task))["recurrence"] == rule, "it keeps its rule"
    last = await user.create(due_date="9999-12-31", recurrence="FREQ=YEARLY")
    assert (await complete(user, last))[1] is None


async def test_count_counts_the_first_one(user: User) -> None:
    task: Json | None = await user.create(**DAILY | {"recurrence": "FREQ=DAILY;COUNT=3"})
    days = []
    while task is not None:
        days.append(task["due_date"])
        _, task = await complete(user, task)
    assert days == ["2026-01-31", "2026-02-01", "2026-02-02"]


async def test_the_next_one_counts_from_the_rule_wherever_this_one_was_moved(user: User) -> None:
    task = await user.create(due_date="2026-01-05", recurrence="FREQ=WEEKLY")
    await patched(user, task, due_date="2026-01-08", due_time="10:00")
    _, successor = await complete(user, task)
    assert successor is not None
    assert (successor["due_date"], successor["due_time"]) == ("2026-01-12", "10:00:00")


async def test_a_rule_and_a_completion_in_one_request(user: User) -> None:
    task = await user.create()
    done = await patched(user, task, status="completed", due_date="2026-01-31", recurrence="FREQ=MONTHLY")
    assert (done["recurrence"], done["occurrence"]) == ("FREQ=MONTHLY;BYMONTHDAY=31", 1)
    assert (await every_task(user))[successor_of(done)]["due_date"] == "2026-02-28"
    other = await user.create(**DAILY)
    await patched(user, other, status="completed", recurrence=None)
    assert len(await every_task(user)) == 3, "a series that ends has no next one"


async def test_the_day_of_completion_is_the_one_in_the_zone(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = datetime(2026, 6, 15, 23, 30, tzinfo=UTC)
    monkeypatch.setattr(planning, "today", lambda zone, _: today(zone, moment))
    rule = {"due_date": "2026-01-31", "recurrence": "FREQ=DAILY", "recurrence_anchor": "completion"}
    pinned = rule | {"due_time": "09:00", "due_time_zone": "Pacific/Kiritimati"}
    for fields, zone, expected in (
        (rule, None, "2026-06-16"),
        (rule, "UTC", "2026-06-16"),
        (rule, "Europe/Berlin", "2026-06-17"),
        (rule, "America/Anchorage", "2026-06-16"),
        (pinned, None, "2026-06-17"),
        (pinned, "America/Anchorage", "2026-06-17"),
    ):
        parameters = {} if zone is None else {"time_zone": zone}
        _, successor = await complete(user, await user.create(**fields), params=parameters)
        assert successor is not None
        assert successor["due_date"] == expected
        created = await user.call("POST", params=parameters, json={"title": "x", "is_completed": True} | fields)
        assert (await every_task(user))[successor_of(created.json())]["due_date"] == expected
        task = await user.create(**fields)
        body = {"operations": [{"op": "complete", "id": task["id"]}]}
        (result,) = (await call(user, "POST", "batch", params=parameters, json=body)).json()["results"]
        assert result["successor"]["due_date"] == expected
        task = await user.create(**fields)
        await user.call("PUT", f"/{task['id']}", params=parameters, json={"status": "completed"})
        assert (await every_task(user))[successor_of(task)]["due_date"] == expected


async def test_completion_counts_from_today(user: User) -> None:
    _, successor = await complete(
        user,
        await user.create(due_date="2026-01-31", recurrence="FREQ=DAILY;INTERVAL=10", recurrence_anchor="completion"),
    )
    assert successor is not None
    days = {today("UTC", datetime.now(UTC) - timedelta(minutes=1)), today("UTC", datetime.now(UTC))}
    assert date.fromisoformat(successor["due_date"]) - timedelta(days=10) in days


@pytest.mark.parametrize("zone", ["europe/berlin", "", "x" * 5000, "UTC\u0000", "FOO3"])
async def test_a_time_zone_that_is_none_is_refused(user: User, zone: str) -> None:
    task = await user.create()
    for method, path, body in (
        ("POST", "tasks", {"title": "x"}),
        ("PUT", f"tasks/{task['id']}", {}),
        ("PATCH", f"tasks/{task['id']}", {}),
        ("PATCH", f"tasks/{task['id']}/complete", {"is_completed": True}),
        ("POST", "batch", {"operations": [{"op": "complete", "id": task["id"]}]}),
    ):
        response = await call(user, method, path, params={"time_zone": zone}, json=body)
        assert response.status_code == 422
        assert response.json()["detail"][0]["loc"] == ["query", "time_zone"]
        assert len(response.text) < 400
        response = await call(user, method, path, params={"timezone": "UTC"}, json=body)
        assert response.json()["detail"][0]["msg"].startswith("Unknown parameter (did you mean time_zone?)")


async def test_an_id_that_is_taken_stays_as_it_is(user: User) -> None:
    task = await user.create(**DAILY)
    taken = await user.create(id=successor_of(task), title="Another")
    done, successor = await complete(user, task)
    assert successor == taken
    assert await every_task(user) == {task["id"]: done, taken["id"]: taken}

    task = await user.create(**DAILY)
    taken = await user.create(id=successor_of(task), title="Another")
    await user.call("DELETE", f"/{taken['id']}")
    trashed = (await every_task(user))[taken["id"]]
    _, successor = await complete(user, task)
    assert successor == trashed


# At the same instant --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, database_url: str) -> Iterator[tuple[Served, Served]]:
    """Two processes on one database."""
    folder = tmp_path_factory.mktemp("two")
    with serving(folder, **external(database_url)) as one, serving(folder, **external(database_url)) as other:
        yield one, other


def test_two_devices_that_complete_the_same_one_over_two_processes_make_one_successor(
    two: tuple[Served, Served],
) -> None:
    user = f"two-{uuid4()}"
    clients = [Client(service, user) for service in two]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(30):
            task = clients[0].call("POST", "", json={"title": "x"} | DAILY).json()

            def completed(client: Client, task: Json = task) -> httpx.Response:
                return client.call("PATCH", f"/{task['id']}/complete", json={"is_completed": True})

            answers = [*threads.map(completed, clients)]
            assert {answer.status_code for answer in answers} == {200}
            assert len({answer.content for answer in answers}) == 1
            (place,) = {answer.headers["Location"] for answer in answers}
            successor = clients[0].call("GET", "/" + place.rsplit("/", 1)[1]).json()
            assert (successor["due_date"], successor["version"]) == ("2026-02-01", answers[0].json()["version"])
            assert answers[0].json()["version"] == task["version"] + 1
    assert len(clients[0].call("GET").json()) == 60


async def test_a_rule_that_changes_while_the_next_date_is_reckoned_is_reckoned_anew(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await user.create(**DAILY)
    real = planning.plan_for
    changes = ["FREQ=DAILY;INTERVAL=2", "FREQ=DAILY;INTERVAL=3"]
    asked: list[Json] = []

    def slow(question: Json, zone: str | None) -> planning.Plan:
        asked.append(question)
        return real(question, zone)

    monkeypatch.setattr(planning, "plan_for", slow)
    completing = [user.call("PATCH", f"/{task['id']}", json={"is_completed": True})]
    changing = [user.call("PATCH", f"/{task['id']}", json={"recurrence": rule}) for rule in changes]
    answers = await asyncio.gather(*completing, *changing)
    assert {answer.status_code for answer in answers} == {200}
    tasks = await every_task(user)
    successor = tasks[successor_of(task)]
    assert (successor["recurrence"], successor["due_date"]) in [
        (rule, f"2026-02-0{number}") for number, rule in enumerate(["FREQ=DAILY", *changes], 1)
    ]
    assert len(asked) >= 3


# Back -----------------------------------------------------------------------------------------------------------------


async def test_undo_takes_both_back_and_redo_brings_both(user: User) -> None:
    task = await user.create(**DAILY)
    done, successor = await complete(user, task)
    assert successor is not None
    undone = await undo(user, done["version"])
    assert {each["id"] for each in undone["tasks"]} == {task["id"], successor["id"]}
    tasks = await every_task(user)
    assert (tasks[task["id"]]["status"], tasks[task["id"]]["recurrence"]) == ("pending", "FREQ=DAILY")
    assert tasks[successor["id"]]["deleted_at"] is not None
    await undo(user, undone["version"])
    tasks = await every_task(user)
    assert tasks[task["id"]]["completed_at"] == done["completed_at"]
    assert tasks[successor["id"]]["deleted_at"] is None
    again = await undo(user, tasks[task["id"]]["version"])
    assert again["version"] is not None
    _, restored = await complete(user, task)
    assert restored is not None
    assert restored["deleted_at"] is None, "it was in the trash because of this task"


async def test_reopening_takes_an_untouched_successor_to_the_trash(user: User) -> None:
    task = await user.create(**DAILY)
    done, successor = await complete(user, task)
    assert successor is not None
    reopened = await reopen(user, task)
    assert reopened["version"] == done["version"] + 1
    assert (reopened["recurrence"], reopened["status"], reopened["completed_at"]) == ("FREQ=DAILY", "pending", None)
    trashed = (await every_task(user))[successor["id"]]
    assert trashed["deleted_at"] is not None
    assert trashed["version"] == reopened["version"]
    undone = await undo(user, reopened["version"])
    assert {each["id"] for each in undone["tasks"]} == {task["id"], successor["id"]}
    tasks = await every_task(user)
    assert (tasks[task["id"]]["completed_at"], tasks[successor["id"]]["deleted_at"]) == (done["completed_at"], None)
    await reopen(user, task)
    await patched(user, task, title="Renamed", due_time="09:00")
    _, successor = await complete(user, task)
    assert successor is not None
    assert {"title": "Renamed", "due_time": "09:00:00", "deleted_at": None, "due_date": "2026-02-01"}.items() <= (
        successor.items()
    ), "it comes back with what the task has now"
    await reopen(user, task)
    assert (await every_task(user))[successor["id"]]["deleted_at"] is not None, "nobody has touched it yet"


@pytest.mark.parametrize("back", ["reopened", "undone", "reopened in the same batch"])
async def test_a_tag_that_is_renamed_in_the_trash_does_not_end_the_series(user: User, back: str) -> None:
    task = await user.create(**DAILY, tags=["old"])
    if back == "reopened in the same batch":
        await batch(user, *[{"op": "complete", "id": task["id"]}] * 2)
    else:
        done, _ = await complete(user, task)
        await (reopen(user, task) if back == "reopened" else undo(user, done["version"]))
    await patched(user, task, tags=[])
    renamed = (await call(user, "POST", "tags/rename", json={"from": "old", "to": "new"})).json()
    assert renamed["tasks"] == 1, "the successor's, in the trash"
    _, successor = await complete(user, task)
    assert successor is not None
    assert (successor["deleted_at"], successor["tags"]) == (None, ["new"])


@pytest.mark.parametrize("touch", ["update", "complete", "trash", "there and back"])
async def test_a_successor_that_was_touched_stays_and_the_reopened_task_loses_its_rule(user: User, touch: str) -> None:
    task = await user.create(**DAILY)
    _, successor = await complete(user, task)
    assert successor is not None
    if touch == "update":
        await patched(user, successor, title="Changed")
    elif touch == "complete":
        await complete(user, successor)
    elif touch == "trash":
        await user.call("DELETE", f"/{successor['id']}")
    else:
        await patched(user, successor, title="Changed")
        await patched(user, successor, title=successor["title"])
    before = (await every_task(user))[successor["id"]]
    reopened = await reopen(user, task)
    assert {name: reopened[name] for name in PLAIN} == PLAIN | {"due_date": task["due_date"]}
    assert (await every_task(user))[successor["id"]] == before
    undone = await undo(user, reopened["version"])
    assert [each["id"] for each in undone["tasks"]] == [task["id"]]
    assert undone["tasks"][0]["recurrence"] == "FREQ=DAILY"


async def test_a_successor_that_was_erased_is_none(user: User, database_url: str) -> None:
    task = await user.create(**DAILY)
    done, successor = await complete(user, task)
    assert successor is not None
    await user.call("DELETE", f"/{successor['id']}")
    connection: Any = await asyncpg.connect(database_url)
    query = "select tasks.purge_tasks($1, '1s', array[$2::uuid], now() + interval '1 day')"
    assert await connection.fetchval(query, user.id, successor["id"]) == 1
    await connection.close()
    response = await user.call("PATCH", f"/{task['id']}/complete", json={"is_completed": True})
    assert "Location" not in response.headers
    assert response.json() == done
    assert (await reopen(user, task))["recurrence"] == "FREQ=DAILY"


async def test_reopening_with_another_rule_begins_a_series(user: User) -> None:
    task = await user.create(**DAILY)
    _, successor = await complete(user, task)
    assert successor is not None
    await patched(user, successor, title="Changed")
    changed = await patched(user, task, status="in_progress", recurrence="FREQ=DAILY;INTERVAL=2")
    assert (changed["recurrence"], changed["occurrence"]) == ("FREQ=DAILY;INTERVAL=2", 1)
    await patched(user, task, status="completed")
    same = await patched(user, task, status="pending", recurrence="FREQ=DAILY;INTERVAL=2")
    assert same["recurrence"] is None, "the same rule is no other one"


async def test_what_an_undo_would_leave_without_what_it_needs_is_a_conflict(user: User) -> None:
    async def conflicts(version: int) -> list[str]:
        response = await call(user, "POST", "undo", json={"version": version})
        assert response.status_code == 409, response.text
        (conflict,) = response.json()["conflicts"]
        return sorted(conflict["fields"])

    task = await user.create()
    dated = await patched(user, task, due_date="2026-01-31")
    await patched(user, task, due_time="09:00")
    assert await conflicts(dated["version"]) == ["due_time"]
    untimed = await patched(user, task, due_time=None)
    await patched(user, task, due_date=None)
    assert await conflicts(untimed["version"]) == ["due_date"]
    ruled = await patched(user, task, due_date="2026-01-31", recurrence="FREQ=DAILY")
    await patched(user, task, recurrence_anchor="completion")
    assert await conflicts(ruled["version"]) == ["recurrence_anchor"]
    anchored = await patched(user, task, recurrence_anchor="due")
    await patched(user, task, recurrence="FREQ=WEEKLY")
    assert "recurrence" in await conflicts(anchored["version"])
    tagged = await patched(user, task, tags=["a"])
    await patched(user, task, tags=["a", "b"])
    assert await conflicts(tagged["version"]) == ["tags"]


# Batches --------------------------------------------------------------------------------------------------------------


async def batch(user: User, *operations: Json, **options: Any) -> Json:
    response = await call(user, "POST", "batch", json={"operations": operations} | options)
    assert response.status_code in (200, 409), response.text
    BatchResult.model_validate_json(response.content)
    answer: Json = response.json()
    return answer


async def test_a_batch_that_completes_a_hundred_has_one_number_and_one_undo(user: User) -> None:
    ids = [str(uuid4()) for _ in range(100)]
    await batch(user, *({"op": "create", "id": id_, "task": {"title": "x"} | DAILY} for id_ in ids))
    answer = await batch(user, *({"op": "complete", "id": id_, "task": {"is_completed": True}} for id_ in ids))
    assert {(result["status"], result["task"]["version"]) for result in answer["results"]} == {(200, answer["version"])}
    tasks = await every_task(user)
    assert len(tasks) == 200
    assert {task["version"] for task in tasks.values()} == {answer["version"]}
    for result in answer["results"]:
        assert result["successor"] == tasks[successor_of(result["task"])]
        assert result["successor"]["due_date"] == "2026-02-01"
    undone = await undo(user, answer["version"])
    assert len(undone["tasks"]) == 200


async def test_an_operation_sees_the_rule_and_the_successor_of_an_earlier_one(user: User) -> None:
    task = await user.create()
    first = str(uuid5(UUID(task["id"]), "2"))
    second = str(uuid5(UUID(task["id"]), "3"))
    answer = await batch(
        user,
        {"op": "update", "id": task["id"], "task": {"due_date": "2026-01-31", "recurrence": "FREQ=MONTHLY"}},
        {"op": "complete", "id": task["id"]},
        {"op": "update", "id": first, "task": {"title": "Next"}},
        {"op": "complete", "id": first},
        {"op": "complete", "id": first},
        {"op": "complete", "id": task["id"], "task": {"is_completed": True}},
        {"op": "delete", "id": second},
        atomic=False,
        dry_run=True,
    )
    assert [result["status"] for result in answer["results"]] == [200, 200, 200, 200, 200, 200, 404]

    answer = await batch(
        user,
        {"op": "update", "id": task["id"], "task": {"due_date": "2026-01-31", "recurrence": "FREQ=MONTHLY"}},
        {"op": "complete", "id": task["id"]},
        {"op": "update", "id": first, "task": {"title": "Next"}},
        {"op": "complete", "id": first},
    )
    tasks = await every_task(user)
    assert {task["version"] for task in tasks.values()} == {answer["version"]}
    assert [tasks[id_]["due_date"] for id_ in (task["id"], first, second)] == ["2026-01-31", "2026-02-28", "2026-03-31"]
    assert tasks[second]["title"] == "Next"
    assert [result.get("successor", {}).get("id") for result in answer["results"]] == [None, first, None, second]


async def test_an_operation_that_cannot_be_is_told_and_the_others_stand_or_fall_with_it(user: User) -> None:
    task, other = await user.create(due_date="2026-01-31"), await user.create()
    operations: list[Json] = [
        {"op": "update", "id": task["id"], "task": {"recurrence": "FREQ=DAILY;UNTIL=20260101"}},
        {"op": "update", "id": other["id"], "task": {"due_time": "09:00"}},
        {"op": "update", "id": task["id"], "task": {"recurrence": "FREQ=DAILY"}},
        {"op": "complete", "id": task["id"]},
    ]
    before = await every_task(user)
    answer = await batch(user, *operations)
    assert [result["status"] for result in answer["results"]] == [422, 422, 424, 424]
    assert await every_task(user) == before
    dry = await batch(user, *operations, dry_run=True, atomic=False)
    assert [result["status"] for result in dry["results"]] == [422, 422, 200, 200]
    assert dry["results"][3]["successor"]["due_date"] == "2026-02-01"
    assert await every_task(user) == before
    answer = await batch(user, *operations, atomic=False)
    assert [result["status"] for result in answer["results"]] == [422, 422, 200, 200]
    assert answer["results"][0]["detail"][0]["loc"] == ["body", "recurrence"]
    assert (
        answer["results"][1]["detail"][0]["msg"] == 'due_time "09:00:00" needs due_date, which the task does not have'
    )
    assert len(await every_task(user)) == 3


async def test_a_hundred_rules_for_one_task_in_one_batch(user: User) -> None:
    task = await user.create(due_date="2026-01-31")
    answer = await batch(
        user,
        *(
            {"op": "update", "id": task["id"], "task": {"recurrence": f"FREQ=DAILY;INTERVAL={number}"}}
            for number in range(2, 102)
        ),
    )
    assert answer["results"][-1]["task"]["recurrence"] == "FREQ=DAILY;INTERVAL=101"


async def test_a_series_is_completed_to_its_end_in_one_batch_without_a_call_for_each(
    user: User, app: Starlette, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await user.create(**DAILY | {"recurrence": "FREQ=DAILY;COUNT=100"})
    ids = [task["id"], *(str(uuid5(UUID(task["id"]), str(number))) for number in range(2, 101))]
    calls = []
    fetch = app.state.db.fetch

    async def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return await fetch(*arguments)

    monkeypatch.setattr(app.state.db, "fetch", counted)
    answer = await batch(user, *({"op": "complete", "id": id_} for id_ in ids))
    assert answer["committed"]
    assert answer["results"][-1]["task"]["due_date"] == "2026-05-10"
    assert "successor" not in answer["results"][-1]
    assert len(calls) == 2, "one that asks, and one that has all answers"


async def test_each_operation_may_have_a_rule_and_complete_the_one_before(user: User) -> None:
    task = await user.create(due_date="2026-01-31")
    operations: list[Json] = []
    id_ = task["id"]
    for interval in range(2, 22):
        rule = {"recurrence": f"FREQ=DAILY;INTERVAL={interval}", "status": "completed"}
        operations.append({"op": "update", "id": id_, "task": rule})
        id_ = str(uuid5(UUID(id_), "2"))
    answer = await batch(user, *operations)
    assert answer["committed"]
    assert answer["results"][-1]["successor"]["due_date"] == str(date(2026, 1, 31) + timedelta(days=sum(range(2, 22))))
