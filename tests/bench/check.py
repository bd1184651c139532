"""Before anything is measured: every peer gives the service's answers, and refuses what it refuses."""

from datetime import datetime
from typing import Any

import httpx

from tests.bench import database
from tests.bench.processes import Failure, Running

# Two users whose tasks no workload touches.
READER, WRITER = str(database.FIRST_USER + 1), str(database.FIRST_USER + 2)
NO_TASK = "00000000-0000-4000-8000-000000000000"
INVALID = (400, 422)  # Fastify's habit is the one, FastAPI's the other
# What a peer's tasks do not have: it reads and answers nine fields less
OF_THE_SERVICE = {
    *("due_date", "due_time", "due_time_zone", "recurrence", "recurrence_anchor"),
    *("recurrence_start", "series_id", "occurrence", "tags"),
}
WRONG_BODIES: list[dict[str, Any]] = [
    {"title": " "},
    {"title": "x" * 101},
    {"title": "x", "description": "x" * 501},
    {"title": "x", "status": "done"},
    {"title": "x", "priority": 1},
    {"title": "x", "colour": "red"},
]


def same_answers(service: Running, peers: list[Running]) -> None:
    """Raises Failure when a peer does other work than the service."""
    with _client(service, READER) as client:
        expected = {path: _normalized(client.get(path).json()) for path in ("/tasks", _task(READER))}
        _same(client.get("/tasks", headers={"If-None-Match": "*"}).status_code, 304)
    for peer in [service, *peers]:
        try:
            with _client(peer, READER) as client:
                for path, body in expected.items():
                    _same(_normalized(_success(client.get(path), 200)), body)
                if peer is not service:  # they know nothing of it: what is measured there is the list
                    _same(
                        _normalized(_success(client.get("/tasks", headers={"If-None-Match": "*"}), 200)),
                        expected["/tasks"],
                    )
            with _client(peer, WRITER) as client:
                _check_writes(client)
                _check_refusals(client)
        except (AssertionError, ValueError, httpx.HTTPError) as error:
            raise Failure(f"{peer.title} does not do the same work: {error}") from error


def _check_writes(client: httpx.Client) -> None:
    created = _success(client.post("/tasks", json={"title": " tea\n", "priority": "low", "status": "completed"}), 201)
    _same((created["title"], created["priority"], created["is_completed"]), ("tea", "low", True))
    path, version = f"/tasks/{created['id']}", created["version"]
    renamed = _success(client.put(path, json={"title": "Tee 🫖", "description": "green"}), 200)
    changed = {"title": "Tee 🫖", "description": "green", "version": version + 1, "updated_at": renamed["updated_at"]}
    _same(_normalized(renamed), _normalized(created | changed))
    cleared = _success(client.put(path, json={"description": None}), 200)
    _same((cleared["title"], cleared["description"], cleared["version"]), ("Tee 🫖", None, version + 2))
    reopened = _success(client.patch(path + "/complete"), 200)
    _same((reopened["status"], reopened["completed_at"], reopened["version"]), ("pending", None, version + 3))
    completed = _success(client.patch(path + "/complete"), 200)
    _same((completed["status"], completed["is_completed"], completed["version"]), ("completed", True, version + 4))
    _same(_normalized(_success(client.get(path), 200)), _normalized(completed))


def _check_refusals(client: httpx.Client) -> None:
    for wrong in WRONG_BODIES:
        response = client.post("/tasks", json=wrong)
        assert response.status_code in INVALID, f"{response.status_code} to the body {str(wrong)[:60]}"
    _same(client.get(f"/tasks/{NO_TASK}").status_code, 404)
    _same(client.put(f"/tasks/{NO_TASK}", json={"title": "x"}).status_code, 404)
    stranger = {"Authorization": f"Bearer {database.token('stranger')}"}
    forged = {"Authorization": client.headers["Authorization"][:-4] + "AAAA"}
    for headers in (stranger, forged, {"Authorization": "Bearer no"}):
        _same(client.get("/tasks", headers=headers).status_code, 401)
    _same(httpx.get(f"{client.base_url}tasks").status_code, 401)


def _client(peer: Running, user: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {database.token(user)}"}
    return httpx.Client(base_url=f"{peer.address}/api/{user}", headers=headers)


def _task(user: str) -> str:
    return f"/tasks/{database.task_id(user, 7)}"


def _success(response: httpx.Response, status: int) -> Any:
    request = response.request
    assert response.status_code == status, f"{response.status_code} to {request.method} {request.url}: {response.text}"
    return response.json()


def _same(value: Any, expected: Any) -> None:
    assert value == expected, f"{value} instead of {expected}"


def _normalized(answer: Any) -> Any:
    """Returns what the answer has in common with a peer's; times are cut to milliseconds, which JavaScript knows."""
    if isinstance(answer, list):
        return [_normalized(task) for task in answer]
    return {
        key: _cut(value) if key.endswith("_at") and value else value
        for key, value in answer.items()
        if key not in OF_THE_SERVICE
    }


def _cut(time: str) -> datetime:
    exact = datetime.fromisoformat(time)
    return exact.replace(microsecond=exact.microsecond // 1000 * 1000)
