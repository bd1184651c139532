"""Who is compared: how each peer is started, what it needs, and how that is installed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench import database
from tests.bench.processes import Failure, Running, running

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FASTAPI_PYTHON = HERE / "fastapi_peer" / ".venv" / "bin" / "python"
NODE_MODULES = HERE / "fastify_peer" / "node_modules"
GO_SOURCES = Path("/usr/share/gocode")  # where Debian's Go packages are

INSTALL_WRK = "wrk: apt-get install wrk"
INSTALL_FASTAPI = (
    "FastAPI and its company: python3 -m venv tests/bench/fastapi_peer/.venv && "
    "tests/bench/fastapi_peer/.venv/bin/pip install -r tests/bench/fastapi_peer/requirements.txt"
)
INSTALL_NODE = "Node.js 20 or newer, with npm"
INSTALL_FASTIFY = "Fastify and its company: npm ci --prefix tests/bench/fastify_peer"
INSTALL_GO = (
    "Go with pgx: apt-get install golang-go golang-github-jackc-pgx-v4-dev golang-github-golang-jwt-jwt-dev "
    "golang-github-google-uuid-dev"
)


def _nothing() -> str | None:
    return None


def _fastapi_missing() -> str | None:
    modules = "import asyncpg, fastapi, greenlet, httptools, jwt, sqlmodel, uvloop"
    works = FASTAPI_PYTHON.exists() and subprocess.run([FASTAPI_PYTHON, "-c", modules], capture_output=True)
    return None if works and works.returncode == 0 else INSTALL_FASTAPI


def _fastify_missing() -> str | None:
    if not shutil.which("node") or int(output("node", "--version").removeprefix("v").split(".")[0]) < 20:
        return INSTALL_NODE
    return (
        None if all((NODE_MODULES / name).exists() for name in ("fastify", "fast-jwt", "postgres")) else INSTALL_FASTIFY
    )


def _go_missing() -> str | None:
    packages = [GO_SOURCES / "src/github.com" / name for name in ("jackc/pgx/v4", "golang-jwt/jwt", "google/uuid")]
    return None if shutil.which("go") and all(package.exists() for package in packages) else INSTALL_GO


def _go_command(folder: Path) -> list[str]:
    binary = folder / "go_peer"
    build = ["go", "build", "-o", str(binary), str(HERE / "go_peer" / "main.go")]
    # Debian's packages instead of modules from the net
    built = subprocess.run(build, env=os.environ | {"GO111MODULE": "off", "GOPATH": str(GO_SOURCES)}, check=False)
    if built.returncode:
        raise Failure("The Go peer does not compile")
    return [str(binary)]


def _python(*arguments: str) -> Callable[[Path], list[str]]:
    return lambda folder: [sys.executable, *arguments]


@dataclass(frozen=True)
class Peer:
    """One of those compared."""

    title: str
    command: Callable[[Path], list[str]]  # given a folder for what has to be built
    missing: Callable[[], str | None] = _nothing  # returns how to install what is missing


PEERS = {
    "service": Peer("this service", _python("-m", "service", "serve")),
    "go": Peer("Go + pgx", _go_command, _go_missing),
    "fastify": Peer(
        "Fastify + postgres.js", lambda folder: ["node", str(HERE / "fastify_peer" / "server.js")], _fastify_missing
    ),
    "fastapi": Peer(
        "FastAPI + SQLModel",
        lambda folder: [
            *(str(FASTAPI_PYTHON), "-m", "uvicorn", "main:app", "--app-dir", str(HERE / "fastapi_peer")),
            *("--port", "$PORT", "--loop", "uvloop", "--http", "httptools", "--no-access-log"),
        ],
        _fastapi_missing,
    ),
    "empty": Peer("empty Starlette route", _python("-m", "tests.bench.empty_app")),
    "plain": Peer("plain fetchval", _python("-m", "tests.bench.plain_app")),
}


def missing(names: list[str]) -> list[str]:
    """Returns what is missing for these peers, each with how to install it."""
    found = [INSTALL_WRK] if not shutil.which("wrk") else []
    return found + [problem for name in names if name in PEERS and (problem := PEERS[name].missing())]


@contextmanager
def started(name: str, url: str, folder: Path, **settings: str) -> Iterator[Running]:
    """Runs the peer on the database, with these settings in its environment; yields it once it listens."""
    peer = PEERS[name]
    environment = {"DATABASE_URL": url, "BETTER_AUTH_SECRET": database.SECRET, "PYTHONPATH": str(ROOT)} | settings
    with running(peer.title, peer.command(folder), environment, folder) as process:
        yield process


def output(*command: str) -> str:
    """Returns the first line that the command prints, whatever its exit status."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return result.stdout.strip().split("\n", 1)[0]
