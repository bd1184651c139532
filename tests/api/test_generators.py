"""The document with other people's generators: each makes a client, which works on a user's tasks."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.conftest import ROOT, Served, make_token
from tests.node import node_with, run
from tests.processes import Client

pytestmark = pytest.mark.slow

PACKAGE = ROOT / "tests" / "generators"
BINARIES = PACKAGE / "node_modules" / ".bin"
PYTHON_BINARIES = Path(sys.executable).parent

Run = Callable[[Path, str, Client], str]


@pytest.fixture(scope="module")
def node() -> str:
    return node_with(PACKAGE)


def document(client: Client) -> str:
    """Returns the address of the document, from which the generators fetch it as it is."""
    return client.address + "/openapi.json"


def typescript(folder: Path, node: str, program: str, client: Client) -> str:
    """Compiles the program with what was made for it; returns what it prints."""
    (folder / "node_modules").symlink_to(PACKAGE / "node_modules")
    shutil.copy(PACKAGE / "tsconfig.json", folder)
    shutil.copy(PACKAGE / program, folder / "client.ts")
    run(str(BINARIES / "tsc"), folder=folder)
    return run(node, "out/client.js", client.address, client.user, make_token(client.user), folder=folder)


def python(folder: Path, program: str, client: Client) -> str:
    """Runs the program with what was made for it; returns what it prints."""
    arguments = (str(PACKAGE / program), client.address, client.user, make_token(client.user))
    return run(sys.executable, *arguments, folder=folder, PYTHONPATH=str(folder))


def hey_api(folder: Path, node: str, client: Client) -> str:
    run(str(BINARIES / "openapi-ts"), "-i", document(client), "-o", "made", folder=folder)
    return typescript(folder, node, "hey_api.ts", client)


def orval(folder: Path, node: str, client: Client) -> str:
    shutil.copy(PACKAGE / "orval.config.cjs", folder)
    run(str(BINARIES / "orval"), "--config", "orval.config.cjs", folder=folder, DOCUMENT=document(client))
    return typescript(folder, node, "orval.ts", client)


def swagger_typescript_api(folder: Path, node: str, client: Client) -> str:
    command = str(BINARIES / "swagger-typescript-api")
    run(command, "generate", "-p", document(client), "-o", "made", folder=folder)
    return typescript(folder, node, "swagger_typescript_api.ts", client)


def openapi_python_client(folder: Path, _: str, client: Client) -> str:
    command = str(PYTHON_BINARIES / "openapi-python-client")
    path = f"{PYTHON_BINARIES}:/usr/bin:/bin"  # it formats with ruff
    printed = run(command, "generate", "--url", document(client), folder=folder, PATH=path)
    assert "WARNING" not in printed, printed
    return python(folder / "task-service-client", "openapi_python_client.py", client)


def openapi_generator(folder: Path, _: str, client: Client) -> str:
    command = str(PYTHON_BINARIES / "openapi-generator-cli")
    run(command, "generate", "-g", "python", "-i", document(client), "-o", "made", folder=folder)
    return python(folder / "made", "openapi_generator.py", client)


@pytest.mark.parametrize(
    "use",
    [hey_api, orval, swagger_typescript_api, openapi_python_client, openapi_generator],
    ids=lambda use: use.__name__,
)
def test_its_client_lists_creates_and_reads_errors(use: Run, node: str, served: Served, tmp_path: Path) -> None:
    client = Client(served)
    for title, status in (("B", "pending"), ("A", "in_progress"), ("C", "completed")):
        assert client.call("POST", json={"title": title, "status": status}).status_code == 201
    found = json.loads(use(tmp_path, node, client))
    assert found["listed"] == ["A", "B"]
    created = client.call("GET").json()[0]
    assert (created["title"], created["priority"]) == ("Buy milk", "high")
    assert found["created"].keys() == created.keys()
    assert found["created"]["id"] == created["id"]
    assert found["invalid"] == [[["body"], "contradiction"]]
    assert found["missing"] == [404, "Task not found"]
    assert found.get("streamed", ["Buy milk"]) == ["Buy milk"], "by those that can read a stream"


def test_with_openapi_typescript_every_operation_is_used(node: str, served: Served, tmp_path: Path) -> None:
    client = Client(served)
    run(str(BINARIES / "openapi-typescript"), document(client), "-o", "made.ts", folder=tmp_path)
    called = typescript(tmp_path, node, "every_operation.ts", client)
    paths = httpx.get(document(client)).json()["paths"]
    assert set(json.loads(called)) == {f"{method.upper()} {path}" for path, item in paths.items() for method in item}

    program = (tmp_path / "client.ts").read_text()
    (tmp_path / "client.ts").write_text(re.sub(r"  async healthz\(\) \{.*?\n  \},\n", "", program, flags=re.DOTALL))
    compiler = str(BINARIES / "tsc")
    lacking = subprocess.run([compiler], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Property 'healthz' is missing" in lacking.stdout, "an operation that nobody uses does not compile"


def test_postman_finds_the_service_and_the_list(node: str, served: Served, tmp_path: Path) -> None:
    client = Client(served, f"postman-{uuid4()}")
    assert client.create("Buy milk").status_code == 201
    (tmp_path / "openapi.json").write_bytes(httpx.get(document(client)).content)
    (tmp_path / "node_modules").symlink_to(PACKAGE / "node_modules")
    shutil.copy(PACKAGE / "postman.cjs", tmp_path)
    printed = run(node, "postman.cjs", "openapi.json", client.user, make_token(client.user), folder=tmp_path)
    assert json.loads(printed) == {"status": 200, "query": [], "titles": ["Buy milk"]}
