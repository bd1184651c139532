"""The container image, as far as it can be tried without an engine: the Dockerfile's files, variables and commands."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from string import Template

import httpx
import psutil
import pytest
import yaml
from dotenv import dotenv_values

from service.settings import Settings
from tests.conftest import ROOT, empty_database, service_environment, wait_until
from tests.docs.pages import blocks
from tests.process.test_server import what_clients_see
from tests.processes import STOP_SECONDS, external

pytestmark = pytest.mark.slow

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
NOBODY_LISTENS = "postgresql://tasks@127.0.0.1:1/tasks"

# As an engine does: process 1, with a number for a user, without capabilities; nothing can be written.
ISOLATED = [
    *["unshare", "--user", "--map-user=10001", "--map-group=10001", "--keep-caps"],
    *["--mount", "--pid", "--fork", "--kill-child"],
    *["sh", "-c", 'mount -o remount,bind,ro / && exec setpriv --inh-caps=-all --ambient-caps=-all -- "$@"', "sh"],
]


def instructions(name: str) -> list[str]:
    """Returns what follows the instruction's name, wherever it stands in the Dockerfile."""
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)


def command(instruction: str) -> list[str]:
    """Returns the instruction's command, with this Python."""
    python, *arguments = json.loads("[" + instructions(instruction)[0].split("[", 1)[1])
    assert python == "python"
    return [sys.executable, *arguments]


def copied() -> list[str]:
    return [line.split()[0] for line in instructions("COPY") if not line.startswith("--from")]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A folder with the files that the image has of this project, and no others."""
    folder = tmp_path / "app"
    folder.mkdir()
    for name in copied():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    return folder


def environment(**settings: str) -> dict[str, str]:
    """Returns the image's variables, with these settings."""
    kept = {name: value for name, value in service_environment().items() if name != "PYTHONPATH"}
    own = dict(part.split("=", 1) for part in instructions("ENV")[0].split() if not part.startswith("PATH="))
    return kept | own | settings


def is_healthy(port: int) -> bool:
    """Runs the image's health check; returns what it says."""
    ended = subprocess.run(command("HEALTHCHECK"), env=environment(PORT=str(port)), capture_output=True, check=False)
    assert ended.returncode in (0, 1), ended.stderr
    return ended.returncode == 0


@contextmanager
def container(image: Path, isolation: list[str], **settings: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Runs what the image runs; yields the port, and the process that ends as the service does."""
    arguments = [*isolation, *command("ENTRYPOINT"), *json.loads(instructions("CMD")[0])]
    variables = environment(PORT="0", **settings)
    with (
        (image.parent / "log").open("w") as log,
        subprocess.Popen(arguments, cwd=image, env=variables, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first.startswith("Serving on "), first + (image.parent / "log").read_text()
            port = int(first.rpartition(":")[2])
            wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200)
            yield port, process
        finally:
            process.kill()


def test_nothing_but_what_is_copied_is_sent_to_the_builder() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert [line.removeprefix("!") for line in lines if line.startswith("!")] == copied()


def test_the_files_are_all_that_the_service_needs(image: Path, database_url: str) -> None:
    with empty_database(database_url) as url:
        settings = external(url)
        migrate = [*command("ENTRYPOINT"), "migrate"]
        subprocess.run(migrate, cwd=image, env=environment(**settings), check=True, capture_output=True)
        with container(image, [], **settings) as (port, _):
            for path in ("/readyz", "/docs", "/openapi.json"):
                assert httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200, path


@pytest.mark.parametrize("workers", ["", "2"])  # an empty variable, as compose files like to give, is none
def test_it_needs_no_right_and_nothing_to_write_and_ends_as_process_1(image: Path, workers: str) -> None:
    probe = subprocess.run([*ISOLATED, "touch", "x"], cwd=image, capture_output=True, text=True, check=False)
    if "touch: cannot touch 'x': Read-only" not in probe.stderr:
        pytest.skip(f"there are no namespaces, or the temporary folder is another file system: {probe.stderr}")
    settings = external(NOBODY_LISTENS) | {"WEB_CONCURRENCY": workers, "LOG_LEVEL": "error"}
    with ThreadPoolExecutor(16) as threads, container(image, ISOLATED, **settings) as (port, process):
        assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 503
        assert is_healthy(port), "an outage of the database is none of the service"
        seen = what_clients_see(port, threads)
        psutil.Process(process.pid).children()[0].send_signal(signal.SIGTERM)
        assert process.wait(STOP_SECONDS) == 0
        assert seen().keys() == {"answered", "refused"}, seen()
        assert not is_healthy(port)


def test_the_compose_file_gives_the_service_its_database(monkeypatch: pytest.MonkeyPatch) -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    texts = [block.text for block in blocks("docs/operations.md", "dotenv") if "POSTGRES_PASSWORD" in block.text]
    written = {name: value for name, value in dotenv_values(stream=StringIO(texts[0])).items() if value is not None}

    def given(name: str) -> dict[str, str]:
        """Returns the service's variables: those of `.env`, and its own."""
        own = services[name]["environment"]
        kept = written if services[name].get("env_file") == ".env" else {}
        plain = {key: re.sub(r":\?[^}]*", "", value) for key, value in own.items()}
        return kept | {key: Template(value).substitute(written) for key, value in plain.items()}

    database = given("postgres")
    for name in ("migrate", "web"):
        for variable, value in given(name).items():
            monkeypatch.setenv(variable, value)
        settings = Settings(_env_file=None)
        address = settings.database_url
        assert address is not None
        assert address.hosts[0].name == "postgres"
        assert (address.user, address.database) == (database["POSTGRES_USER"], database["POSTGRES_USER"])
        assert address.password is not None
        assert address.password.get_secret_value() == database["POSTGRES_PASSWORD"]
        assert (settings.host, settings.port) == ("*", 8000)
