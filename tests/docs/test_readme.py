"""The README's tour, from its own text: run from top to bottom, it shows what it promises, in every usual shell."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT, Served, service_environment, serving
from tests.processes import own_folder, stop

README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELLS = {
    "bash": ["bash", "--norc", "-s"],
    "sh": ["sh", "-s"],
    # as at a prompt, where # begins no comment and a ? that is not quoted has to match a file
    "zsh": ["zsh", "-f", "-i", "-s"],
}


def section(name: str) -> str:
    return README.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def tour() -> list[tuple[str, str]]:
    """Returns the tour's blocks of commands, each with what it is to print."""
    blocks = BLOCK.findall(section("Tour with curl"))
    found = []
    for index, (kind, text) in enumerate(blocks):
        if kind == "sh":
            follows = blocks[index + 1 : index + 2]
            found.append((text, follows[0][1] if follows and follows[0][0] == "text" else ""))
    return found


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    """The service as `make run` starts it, with Python where that has put it."""
    with own_folder() as folder:
        python = folder / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        with serving(folder) as served:
            yield served
            assert stop(served) == 0


@pytest.mark.parametrize("shell", SHELLS)
def test_the_tour_shows_what_it_promises(service: Served, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    blocks = tour()
    assert len(blocks) > 5
    assert all(promised for _, promised in blocks[1:]), "but for the names, each block says what it shows"
    script = "".join(f"{commands}\necho; echo 'END OF BLOCK'\n" for commands, _ in blocks)
    ended = subprocess.run(
        SHELLS[shell],
        cwd=service.log.parent,
        env=service_environment(),
        input=script.replace("127.0.0.1:8000", service.address.removeprefix("http://")),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    printed = ended.stdout.split("END OF BLOCK")
    assert len(printed) == len(blocks) + 1, ended
    for (commands, promised), shown in zip(blocks, printed, strict=False):
        lines = iter(shown.replace(service.address, "http://127.0.0.1:8000").splitlines())
        for line in promised.splitlines():
            pattern = re.escape(line.strip()).replace("…", ".*")
            is_there = any(re.fullmatch(pattern, found.strip()) for found in lines)
            assert is_there, f"{line!r} is not in\n{commands}{shown}"
    assert "not found" not in ended.stderr
    assert "no matches" not in ended.stderr


def test_what_a_newcomer_pastes_has_no_comments() -> None:
    """In zsh, at a prompt, they are arguments."""
    for kind, text in BLOCK.findall(section("Start") + section("Tour with curl")):
        assert kind == "text" or "#" not in text
