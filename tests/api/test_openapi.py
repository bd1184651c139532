"""The OpenAPI document: valid, complete, and true of the running service."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import jsonschema_rs
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.applications import Starlette
from starlette.routing import Route

from service.models import NEEDS, Task
from service.web.search import PARAMETERS
from tests.conftest import ROOT, Served, User, make_token
from tests.feed import Stream
from tests.processes import Client

WEB = ROOT / "service" / "web"


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
    assert len(set(ids)) == len(ids) == 18


async def test_every_operation_is_described(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        statuses = set(operation["responses"])
        assert operation["summary"]
        assert {"422", "431", "500"} <= statuses
        if path.startswith("/api/"):
            assert operation["security"] == [{"bearer": []}]
            assert {"401", "429", "503"} <= statuses
        if "requestBody" in operation:
            assert {"408", "413", "415"} <= statuses
        for status, response in operation["responses"].items():
            assert {"X-Request-Id", "X-Content-Type-Options", "Server-Timing", "Vary"} <= set(response["headers"])
            assert ("content" in response) is (status not in ("204", "304"))


async def test_it_tells_every_limit(document: dict[str, Any]) -> None:
    task, create = (document["components"]["schemas"][name]["properties"] for name in ("Task", "TaskCreate"))
    assert (create["title"]["minLength"], create["title"]["maxLength"]) == (1, 100)
    assert create["description"]["anyOf"][0]["maxLength"] == 500
    assert (create["tags"]["maxItems"], create["tags"]["items"]["maxLength"]) == (20, 50)
    assert create["recurrence"]["anyOf"][0]["maxLength"] == 200
    rename = document["components"]["schemas"]["TagRename"]["properties"]
    assert rename["from"]["maxLength"] == rename["to"]["anyOf"][0]["maxLength"] == 50
    status, priority = (document["components"]["schemas"][name] for name in ("TaskStatus", "TaskPriority"))
    assert status["enum"] == ["pending", "in_progress", "completed"]
    assert priority["enum"] == ["low", "medium", "high"]
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
            (example,) = parameter["schema"]["examples"]
            sent = example if isinstance(example, list) else json.dumps(example).strip('"')
            assert (await user.call("GET", params={parameter["name"]: sent})).status_code == 200
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


async def test_it_tells_of_the_feed_the_history_and_undo(document: dict[str, Any]) -> None:
    named = {operation["operationId"]: operation for _, _, operation in operations(document)}

    def parameters(name: str) -> dict[str, str]:
        return {part["name"]: part["in"] for part in named[name]["parameters"] if part["in"] != "path"}

    def example(name: str, status: str) -> Any:
        return named[name]["responses"][status]["content"]["application/json"]["example"]

    assert parameters("list_changes") == {
        "since": "query",
        "limit": "query",
        "wait": "query",
        "If-None-Match": "header",
    }
    assert parameters("stream_changes") == {"since": "query", "Last-Event-ID": "header"}
    assert parameters("list_history") == {"task_id": "query", "before": "query", "limit": "query"}
    assert parameters("undo_change") == {}
    for name in ("list_changes", "stream_changes"):
        assert example(name, "410") == {"detail": "Start again from since=0"}
    assert example("undo_change", "404") == {"detail": "Change not found"}
    assert example("undo_change", "410") == {"detail": "Too old to undo"}
    assert example("undo_change", "409")["detail"] == "Changed since"
    assert "have been changed" in named["undo_change"]["responses"]["409"]["description"]
    assert "nothing is kept" in named["run_batch"]["responses"]["409"]["description"]
    assert example("run_batch", "200")["version"] >= 1
    assert example("run_batch", "409")["version"] is None
    answer = named["stream_changes"]["responses"]["200"]
    assert answer["content"] == {"text/event-stream": {"schema": {"$ref": "#/components/schemas/ChangesPage"}}}
    assert {"ETag"} <= set(named["list_changes"]["responses"]["304"]["headers"])
    assert {"ETag"} <= set(named["delete_task"]["responses"]["204"]["headers"]), "the number to undo it with"


async def test_its_examples_work(document: dict[str, Any], user: User) -> None:
    task = await user.create()
    for path, method, operation in operations(document):
        name = operation["operationId"]
        if name == "restore_task":
            await user.call("DELETE", f"/{task['id']}")
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
        if name == "undo_change":
            assert body.keys() == {"version"}
            body = {"version": task["version"]}  # the example has nobody's
        if name == "erase_user":
            assert body.keys() == {"confirm"}
            body = {"confirm": user.id}
        url = path.format(user_id=user.id, task_id=task["id"])
        # without end, which this client would wait for
        method = "head" if "text/event-stream" in operation["responses"].get("200", {}).get("content", ()) else method
        response = await user.client.request(method, url, headers=user.headers, json=body)
        success = next(iter(operation["responses"]))
        assert str(response.status_code) == success, name
        for parameter in operation.get("parameters", ()) if name != "list_tasks" else ():
            if parameter["in"] == "query" and "examples" in parameter["schema"]:
                query = {parameter["name"]: parameter["schema"]["examples"][0]}
                body = body | {"atomic": False} if name == "run_batch" else body  # its new task is there by now
                response = await user.client.request(method, url, headers=user.headers, params=query, json=body)
                assert str(response.status_code) == success, (name, query)
        if method == "delete" or name == "undo_change":
            task = await user.create()


async def test_its_examples_are_as_the_schemas_say(document: dict[str, Any]) -> None:
    checked = 0
    for media in parts(document["paths"]):
        if "schema" in media and "example" in media and "in" not in media:
            jsonschema_rs.validate(media["schema"] | {"components": document["components"]}, media["example"])
            checked += 1
    assert checked > 100


# For generators -------------------------------------------------------------------------------------------------------


def parts(node: Any) -> Iterator[dict[str, Any]]:
    """Yields every object in the document, itself included, but for the examples."""
    if isinstance(node, list):
        for item in node:
            yield from parts(item)
    if isinstance(node, dict):
        yield node
        for key, value in node.items():
            if key not in ("example", "examples"):
                yield from parts(value)


async def test_every_type_has_a_name_that_says_what_it_is(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in schemas:
        # one word alone, of those that were taken before, is a type of TypeScript's or Python's, or says nothing
        assert name in ("Task", "Batch", "Problem", "Health") or re.fullmatch("([A-Z][a-z]+){2,}", name), name
    # a model or a list of texts without a name gets one from each generator, and another one at each place
    for part in [*parts(document["paths"]), *parts(document["components"]["headers"]), *parts([*schemas.values()])]:
        if part not in schemas.values():
            assert part.get("type") != "object", part
            assert not (isinstance(part.get("enum"), list) and part.get("type") == "string"), part
    assert [part["op"]["const"] for part in parts(schemas) if "op" in part] == [
        "complete",
        "create",
        "delete",
        "restore",
        "update",
    ]


async def test_it_has_nothing_that_a_generator_takes_amiss(document: dict[str, Any]) -> None:
    for part in parts(document):
        assert isinstance(part.get("const", ""), str | bool), "an object as a constant"
        assert "readOnly" not in part, "two types for one model: one to read and one to write"
        assert "default" not in part, "what has one is there in every request, to some"
        assert not {"not", "allOf"} & part.keys()
        choices = [*part.get("anyOf", ()), *part.get("oneOf", ())]
        assert {"$ref": "#/components/schemas/Task"} not in choices, "a task that is another type at some place"


async def test_a_list_is_of_tasks(document: dict[str, Any]) -> None:
    answer = document["paths"]["/api/{user_id}/tasks"]["get"]["responses"]["200"]
    assert answer["content"]["application/json"]["schema"] == {
        "type": "array",
        "items": {"$ref": "#/components/schemas/Task"},
    }
    assert "`fields`" in answer["description"], "the one case in which there is less"


async def test_a_whole_task_may_be_sent_as_the_schemas_say(document: dict[str, Any], user: User) -> None:
    task = await user.create()
    for name, method, path, own in (
        ("TaskCreate", "POST", "", {"id": str(uuid4())}),
        ("TaskUpdate", "PUT", f"/{task['id']}", {}),
    ):
        for body, accepted in ((task | own, True), (task | own | {"colour": "red"}, False)):
            assert (await user.call(method, path, json=body)).is_success is accepted
            assert jsonschema_rs.is_valid(schema_of(name, document), body) is accepted


def schema_of(name: str, document: dict[str, Any]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}", "components": document["components"]}


@pytest.mark.parametrize("status", ["pending", "in_progress", "completed", None])
@pytest.mark.parametrize("is_completed", [True, False, None])
async def test_status_and_is_completed_agree_as_the_schemas_say(
    document: dict[str, Any], user: User, status: str | None, is_completed: bool | None
) -> None:
    body = {"title": "Buy milk", "status": status, "is_completed": is_completed}
    body = {name: value for name, value in body.items() if value is not None}
    accepted = (await user.call("POST", json=body)).status_code == 201
    assert jsonschema_rs.is_valid(schema_of("TaskCreate", document), body) is accepted
    assert accepted is (status is None or is_completed is None or is_completed is (status == "completed"))


async def test_it_names_the_server_that_it_comes_from(client: httpx.AsyncClient) -> None:
    for host in ("service.test", "tasks.example.org:8443", "[::1]:8000"):
        fetched = await client.get("/openapi.json", headers={"Host": host})
        assert fetched.json()["servers"] == [{"url": f"http://{host}"}]
    odd = await client.get("/openapi.json", headers={"Host": 'x"}], "y": [{"url": "'})
    assert len(odd.json()["servers"]) == 1
    assert "y" not in odd.json()


# For people -----------------------------------------------------------------------------------------------------------


async def test_the_list_and_what_creates_stand_first(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert ids[:2] == ["list_tasks", "create_task"]
    assert ids[-2:] == ["healthz", "readyz"]
    assert document["tags"][0]["name"] == "tasks"


async def test_nothing_is_filled_in_that_finds_no_task(document: dict[str, Any]) -> None:
    # Swagger UI fills in a parameter's example, so only one that is right for everybody may be there
    for _, _, operation in operations(document):
        filled = {part["name"]: part["example"] for part in operation.get("parameters", ()) if "example" in part}
        assert filled in ({}, {"user_id": "me"})
        assert all("examples" not in part for part in operation.get("parameters", ()))


async def test_it_says_where_a_token_comes_from(document: dict[str, Any]) -> None:
    description = document["components"]["securitySchemes"]["bearer"]["description"]
    assert "`python -m service token USER`" in description
    assert "Better Auth" in description


async def test_the_documents_assets_are_all_here(client: httpx.AsyncClient) -> None:
    page = (WEB / "docs.html").read_text()
    assets = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(assets) == 4
    for asset in assets:
        assert (WEB / "static" / asset.removeprefix("docs/assets/")).is_file()


def test_the_stream_is_as_the_document_says(served: Served) -> None:
    document = httpx.get(served.address + "/openapi.json").json()
    answer = document["paths"]["/api/{user_id}/events"]["get"]["responses"]["200"]
    client = Client(served)
    client.create("Buy milk")
    stream = Stream(served.port, client.user, client.headers, "?since=0")
    page = stream.page()
    schema = answer["content"][stream.headers.get_content_type()]["schema"]
    jsonschema_rs.validate(schema | {"components": document["components"]}, page)
    assert [task["title"] for task in page["tasks"]] == ["Buy milk"]
    for name in answer["headers"].keys() - {"RateLimit", "RateLimit-Policy"}:  # this service has no limit
        header = answer["headers"][name]
        schema = document["components"]["headers"][name]["schema"] if "$ref" in header else header["schema"]
        jsonschema_rs.validate(schema, stream.headers[name])
    stream.wire.close()


@pytest.mark.slow
def test_the_service_does_what_the_document_says(served: Served, tmp_path: Path) -> None:
    user = "schemathesis"
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(
        f'[parameters]\n"path.user_id" = "{user}"\n"query.time_zone" = "Asia/Kolkata"\n'
        # a request that is as it should be may meet a task that is not there, or has not changed, or a number that is
        # not the user's
        '[checks]\npositive_data_acceptance.expected-statuses = ["2xx", "304", "404", "409", "410"]\n'
        # a task that is not as it should be fails its operation, and not always the batch
        '[[operations]]\ninclude-operation-id = "run_batch"\n'
        'checks.negative_data_rejection.expected-statuses = ["200", "4xx"]\n'
        # no schema says what is right for each user: the own id
        '[[operations]]\ninclude-operation-id = "erase_user"\n'
        'checks.positive_data_acceptance.expected-statuses = ["2xx", "422"]\n'
    )
    document = httpx.get(served.address + "/openapi.json").json()
    # None of these can be made up: a cursor, the version that a task happens to have, a key for each new task, a zone.
    # With `fields` tasks have less than their type, as the description says. Nobody waits with `wait`.
    left_out = {"cursor", "If-Match", "Idempotency-Key", "fields", "wait", "time_zone", "due"}
    for _, _, operation in operations(document):
        parameters = operation.get("parameters", [])
        operation["parameters"] = [parameter for parameter in parameters if parameter["name"] not in left_out]
    # Nor a rule that suits its due date, nor a time for a task that happens to have a day.
    for name, needing in (("TaskCreate", {*NEEDS} - {"due_time"}), ("TaskUpdate", {*NEEDS})):
        schema = document["components"]["schemas"][name]
        schema["propertyNames"]["enum"] = [field for field in schema["propertyNames"]["enum"] if field not in needing]
        for field in needing:
            schema["properties"].pop(field)
            schema["dependentSchemas"].pop(field)
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
        # each answer would take the ten seconds for which Schemathesis waits for more of it; the test above has it
        "--exclude-operation-id=stream_changes",
        # a deleted task is there again once it is restored, and one that was just created is not in the trash
        "--exclude-checks=use_after_free,ensure_resource_availability",
        "--max-examples=50",
        "--generation-deterministic",
        "--no-color",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
