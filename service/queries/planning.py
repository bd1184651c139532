"""The dates of a rule, which PostgreSQL does not reckon.

A function that writes answers with a question where it needs one. What is here makes the plan for the next call, which
has the question in it: no lock is held in between, and the plan is of use only while the question is the same.
"""

from datetime import UTC, date, datetime
from typing import Any

from service.models import TaskCreate
from service.recurrence import canonical_rule, next_due, successor_id
from service.zones import is_zone, today

Json = dict[str, Any]
Plan = dict[str, Json]


def plan_for(question: Json, time_zone: str | None) -> Plan:
    """Returns the plan that answers a question of settle_series.

    The day of completion is the one in the task's zone, else in this one, else in UTC.
    """
    if "rule" not in question:
        return {"successor": {"of": question} | _successor(question, time_zone)}
    due, anchor = date.fromisoformat(question["due_date"]), question["recurrence_anchor"]
    try:
        return {"rule": {"of": question, "recurrence": canonical_rule(question["rule"], due, anchor)}}
    except ValueError as error:
        return {"rule": {"of": question, "recurrence": None, "problem": str(error)}}


def question_after(plan: Plan) -> Json:
    """Returns the question that completing the planned successor asks, unless it is changed before."""
    question: Json = plan["successor"]["of"]
    return question | {"occurrence": question["occurrence"] + 1}


def successor_of(task: Json) -> str | None:
    """Returns the id of the task after this one, None when it is not completed, not recurring, or the last."""
    if not task["is_completed"] or task.get("recurrence") is None:
        return None
    successor = _successor(task, None)
    return None if successor["due_date"] is None else successor["id"]


def problem_of(plan: Plan) -> str | None:
    """Returns what is wrong with the rule, None when nothing is."""
    return plan.get("rule", {}).get("problem")


def plan_of_new(task: TaskCreate, task_id: str, time_zone: str | None) -> Plan:
    """Returns the plan for a new task, which is empty unless it is both recurring and completed."""
    if task.recurrence is None or not (task.status == "completed" or task.is_completed):
        return {}
    series = {
        "recurrence": task.recurrence,
        "recurrence_anchor": task.recurrence_anchor or "due",
        "recurrence_start": task.due_date,
        "series_id": task_id,
        "occurrence": 1,
        "due_time_zone": task.due_time_zone,
    }
    return {"successor": _successor(series, time_zone)}


def _successor(series: Json, time_zone: str | None) -> Json:
    zone = next((name for name in (series["due_time_zone"], time_zone) if name is not None and is_zone(name)), "UTC")
    start = date.fromisoformat(series["recurrence_start"])
    number = series["occurrence"]
    completed_on = today(zone, datetime.now(UTC))
    due = next_due(series["recurrence"], series["recurrence_anchor"], start, number, completed_on)
    return {"id": successor_id(series["series_id"], number + 1), "due_date": due and due.isoformat()}
