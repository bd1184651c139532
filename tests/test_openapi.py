"""The OpenAPI document: valid, complete, and true of the running service."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.applications import Starlette
from starlette.routing import Route

from service.lists import PARAMETERS
from service.models import Task
from tests.conftest import ROOT, Served, User, make_token


@pytest.fixture
async def document(client: httpx.AsyncClient) -> dict[str, Any]:
    fetched: dict[str, Any] = (await client.get("/openapi.json")).json()
    return fetched


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, operation) for path, item in document["paths"].items() for method, operation in item.items()]


async def test_it_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(document).validate()


async def test_it_has_every_route_of_the_api(app: Starlette, document: dict[str, Any]) -> None:
    routes = {
        (route.path, method.lower())
        for route in app.routes
        if isinstance(route, Route) and route.path.startswith(("/api/", "/healthz", "/readyz"))
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert {(path, method) for path, method, _ in operations(document)} == routes
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids) == 11


async def test_every_operation_is_described(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        statuses = set(operation["responses"])
        assert operation["summary"]
        assert {"422", "431", "500"} <= statuses
        if path.startswith("/api/"):
            assert operation["security"] == [{"bearer": []}]
            assert {"401", "503"} <= statuses
        if "requestBody" in operation:
            assert {"408", "413", "415"} <= statuses
        for status, response in operation["responses"].items():
            assert {"X-Request-Id", "X-Content-Type-Options", "Server-Timing", "Vary"} <= set(response["headers"])
            assert ("content" in response) is (status not in ("204", "304"))


async def test_it_tells_every_limit(document: dict[str, Any]) -> None:
    task, create = (document["components"]["schemas"][name]["properties"] for name in ("Task", "TaskCreate"))
    assert (create["title"]["minLength"], create["title"]["maxLength"]) == (1, 100)
    assert create["description"]["anyOf"][0]["maxLength"] == 500
    assert create["status"]["enum"] == ["pending", "in_progress", "completed"]
    assert create["priority"]["enum"] == ["low", "medium", "high"]
    assert (task["user_id"]["minLength"], task["user_id"]["maxLength"]) == (1, 255)
    assert list(task) == list(Task.model_fields)


async def test_it_has_every_parameter_of_a_list_with_an_example_that_works(
    document: dict[str, Any], user: User
) -> None:
    listed = document["paths"]["/api/{user_id}/tasks"]["get"]
    parameters = [parameter for parameter in listed["parameters"] if parameter["in"] == "query"]
    assert [parameter["name"] for parameter in parameters] == list(PARAMETERS)
    for parameter in parameters:
        if parameter["name"] != "cursor":
            example = parameter["example"]
            text = ",".join(example) if isinstance(example, list) else json.dumps(example).strip('"')
            assert (await user.call("GET", params={parameter["name"]: text})).status_code == 200
    assert {"ETag", "Link", "X-Total-Count"} <= set(listed["responses"]["200"]["headers"])
    assert "ETag" in listed["responses"]["304"]["headers"]


async def test_it_tells_of_the_headers_that_make_writes_safe(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        if not path.startswith("/api/"):
            continue
        names = {parameter["name"] for parameter in operation["parameters"]}
        changes_a_task = method != "get" and "{task_id}" in path
        assert ("If-Match" in names) is changes_a_task is ("412" in operation["responses"])
        assert ("Idempotency-Key" in names) is (operation["operationId"] == "create_task")
        if changes_a_task:
            assert "ETag" in operation["responses"]["412"]["headers"]
    created = document["paths"]["/api/{user_id}/tasks"]["post"]["responses"]["201"]
    assert {"ETag", "Idempotent-Replayed", "Location"} <= set(created["headers"])


async def test_its_examples_work(document: dict[str, Any], user: User) -> None:
    task = await user.create()
    for path, method, operation in operations(document):
        if operation["operationId"] == "restore_task":
            await user.call("DELETE", f"/{task['id']}")
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
        url = path.format(user_id=user.id, task_id=task["id"])
        response = await user.client.request(method, url, headers=user.headers, json=body)
        success = next(iter(operation["responses"]))
        assert str(response.status_code) == success, operation["operationId"]
        if method == "delete":
            task = await user.create()


async def test_the_documents_assets_are_all_here(client: httpx.AsyncClient) -> None:
    page = (ROOT / "service" / "docs.html").read_text()
    assets = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(assets) == 4
    for asset in assets:
        assert (ROOT / "service" / "static" / asset.removeprefix("docs/assets/")).is_file()


def test_the_service_does_what_the_document_says(served: Served, tmp_path: Path) -> None:
    user = "schemathesis"
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(
        f'[parameters]\n"path.user_id" = "{user}"\n'
        # a request that is as it should be may meet a task that is not there, or has not changed
        '[checks]\npositive_data_acceptance.expected-statuses = ["2xx", "304", "404", "409"]\n'
    )
    document = httpx.get(served.address + "/openapi.json").json()
    # None of these can be made up: a cursor, the version that a task happens to have, and a key for each new task.
    left_out = {"cursor", "If-Match", "Idempotency-Key"}
    for _, _, operation in operations(document):
        parameters = operation.get("parameters", [])
        operation["parameters"] = [parameter for parameter in parameters if parameter["name"] not in left_out]
    trimmed = tmp_path / "openapi.json"
    trimmed.write_text(json.dumps(document))
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        f"--config-file={configuration}",
        "run",
        str(trimmed),
        f"--url={served.address}",
        f"--header=Authorization: Bearer {make_token(user)}",
        "--checks=all",
        # a deleted task is there again once it is restored, and one that was just created is not in the trash
        "--exclude-checks=use_after_free,ensure_resource_availability",
        "--max-examples=50",
        "--generation-deterministic",
        "--no-color",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
