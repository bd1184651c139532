"""The OpenAPI document: valid, complete, and true of the running service."""

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
    assert len(set(ids)) == len(ids) == 9


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
            assert ("content" in response) is (status != "204")


async def test_it_tells_every_limit(document: dict[str, Any]) -> None:
    task, create = (document["components"]["schemas"][name]["properties"] for name in ("Task", "TaskCreate"))
    assert (create["title"]["minLength"], create["title"]["maxLength"]) == (1, 100)
    assert create["description"]["anyOf"][0]["maxLength"] == 500
    assert create["status"]["enum"] == ["pending", "in_progress", "completed"]
    assert create["priority"]["enum"] == ["low", "medium", "high"]
    assert (task["user_id"]["minLength"], task["user_id"]["maxLength"]) == (1, 255)
    assert list(task) == list(Task.model_fields)


async def test_its_examples_work(document: dict[str, Any], user: User) -> None:
    task = await user.create()
    for path, method, operation in operations(document):
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
        url = path.format(user_id=user.id, task_id=task["id"])
        response = await user.client.request(method, url, headers=user.headers, json=body)
        success = next(iter(operation["responses"]))
        assert str(response.status_code) == success, operation["operationId"]
        if method == "delete":
            task = await user.create()


async def test_the_documents_assets_are_all_here(client: httpx.AsyncClient) -> None:
    page = (ROOT / "service" / "static" / "docs.html").read_text()
    assets = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(assets) == 4
    for asset in assets:
        assert (ROOT / "service" / "static" / asset.removeprefix("/docs/assets/")).is_file()


def test_the_service_does_what_the_document_says(served: Served, tmp_path: Path) -> None:
    user = "schemathesis"
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(f'[parameters]\n"path.user_id" = "{user}"\n')
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        f"--config-file={configuration}",
        "run",
        served.address + "/openapi.json",
        f"--header=Authorization: Bearer {make_token(user)}",
        "--checks=all",
        "--max-examples=50",
        "--generation-deterministic",
        "--no-color",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
