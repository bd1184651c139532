"""Every code block of the documents runs, as a reader would run it, and prints what the page says."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import indent

import pytest

from service.settings import Settings
from tests.conftest import ROOT, Served, service_environment, serving
from tests.docs.pages import PAGES, Block, blocks
from tests.processes import own_folder, stop

pytestmark = pytest.mark.slow

SHELLS = {
    "bash": ["bash", "--norc", "-s"],
    "sh": ["sh", "-s"],
    # as at a prompt, where # begins no comment and a ? that is not quoted has to match a file
    "zsh": ["zsh", "-f", "-i", "-s"],
}
PSQL = [".venv/bin/python", "-m", "service", "psql", "-X", "-v", "ON_ERROR_STOP=1"]

RUN_HERE = {"sh", "sql", "dotenv"}
RUN_ELSEWHERE = {  # in test_frontends.py, test_metrics.py, and in tests/api/test_sync_client.py
    "js": ["docs/frontends.md", "docs/changes.md"],
    "ts": ["docs/frontends.md"],
    "yaml": ["docs/operations.md"],
}
EXCERPTS = {"python"}  # of the code
CANNOT_RUN = {"text", "nginx", "ini"}  # what is printed, and drawings; other programs' configuration
NOT_RUN = {  # blocks for the shell by their first line, and why
    "make run": "it serves until it is stopped; test_commands.py runs the Makefile",
    "make test": "it would run this test again",
    "python3 -m venv .venv": "it downloads all packages; .ci/run does so",
    ".venv/bin/pip install --require-hashes -r requirements-opentelemetry.txt": "it downloads packages",
    "HOST='*' PORT=8000 .venv/bin/python -m service serve": "it serves until it is stopped, on all networks",
    'pg_dump --format=custom --schema=tasks --file=tasks.dump "$DATABASE_URL"': "test_restore.py runs it",
    'pg_restore --exit-on-error --single-transaction --no-owner --dbname="$DATABASE_URL" tasks.dump': "so it does this",
    'pg_basebackup --pgdata="/backup/base-$(date +%F)" --checkpoint=fast --dbname="$DATABASE_URL"': "so does this",
    "docker build -t task-service .": "it needs Docker; tests/process/test_container.py does what it can without",
    "docker compose up --build --detach": "so does this",
    ". .venv/bin/activate": "test_commands.py runs it",
    'make test ARGS="-k batch -x"': "it would run tests within this test",
}


def is_run(block: Block) -> bool:
    return block.text.partition("\n")[0] not in NOT_RUN


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    """The service as `make run` starts it, with Python where that has put it, and what a checkout has."""
    with own_folder() as folder:
        (folder / "sql").symlink_to(ROOT / "sql")
        python = folder / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        with serving(folder) as served:
            yield served
            assert stop(served) == 0


def one_space(line: str) -> str:
    """Returns the line with single spaces: how wide psql makes a column depends on what is in it."""
    return " ".join(line.split())


def run_and_compare(service: Served, command: Sequence[str], end: str, page: str, found: list[Block]) -> None:
    """Runs the blocks one after the other, for a user of their own, and looks for what is promised of each."""
    user = re.sub(r"\W+", "-", f"demo-{page}-{command[0]}")
    script = "".join(f"{block.text}\n{end}\n" for block in found)
    script = re.sub(r"\bdemo\b", user, script).replace("127.0.0.1:8000", service.address.removeprefix("http://"))
    ended = subprocess.run(
        command,
        cwd=service.log.parent,
        env=service_environment(),
        input=script,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    printed = ended.stdout.replace(user, "demo").replace(service.address, "http://127.0.0.1:8000")
    parts = printed.split("END OF BLOCK")
    assert len(parts) == len(found) + 1, ended
    for block, shown in zip(found, parts, strict=False):
        lines = iter(shown.splitlines())
        for line in block.promised.splitlines():
            pattern = re.escape(one_space(line)).replace("…", ".*")
            is_there = any(re.fullmatch(pattern, one_space(printed)) for printed in lines)
            assert is_there, f"{line!r} is not in what {block.place} prints:\n{shown}\n{ended.stderr}"
    for mistake in ("not found", "no matches", "ERROR", "Traceback"):
        assert mistake not in ended.stderr


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs_or_its_language_says_that_it_cannot(page: str) -> None:
    for block in blocks(page):
        is_known = block.language in RUN_HERE | EXCERPTS | CANNOT_RUN or page in RUN_ELSEWHERE.get(block.language, [])
        assert is_known, f"{block.place}: nothing runs {block.language or 'this block'}"


def test_what_is_not_run_is_there() -> None:
    listed = [block.text.partition("\n")[0] for page in PAGES for block in blocks(page, "sh") if not is_run(block)]
    assert sorted(listed) == sorted(NOT_RUN)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("page", [page for page in PAGES if any(map(is_run, blocks(page, "sh")))])
def test_shell(service: Served, page: str, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    found = [block for block in blocks(page, "sh") if is_run(block)]
    run_and_compare(service, SHELLS[shell], "echo; echo 'END OF BLOCK'", page, found)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sql")])
def test_sql(service: Served, page: str) -> None:
    run_and_compare(service, PSQL, "\\echo END OF BLOCK", page, blocks(page, "sql"))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "dotenv")])
def test_settings(page: str, tmp_path: Path) -> None:
    for block in blocks(page, "dotenv"):
        (tmp_path / ".env").write_text(block.text)
        Settings(_env_file=tmp_path / ".env")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, *EXCERPTS)])
def test_an_excerpt_is_what_the_code_says(page: str) -> None:
    code = [path.read_text() for path in (ROOT / "service").rglob("*.py")]
    for block in blocks(page, *EXCERPTS):
        assert any(indent(block.text, "    ") in text for text in code), block.place


@pytest.mark.parametrize("page", PAGES)
def test_what_is_pasted_into_a_shell_has_no_comments(page: str) -> None:
    """In zsh, at a prompt, they are arguments."""
    assert not [block.place for block in blocks(page, "sh") if "#" in block.text]
