"""What the tests share that run Node.js, with packages from npm."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def node_with(package: Path | None = None) -> str:
    """Returns the path of Node.js; skips the tests without it or the package's own packages, but fails in CI."""
    executable = shutil.which("node")
    missing = None
    if executable is None:
        missing = "no Node.js found: install version 20 or newer, with npm"
    elif package is not None and not (package / "node_modules" / ".package-lock.json").exists():
        missing = f"its packages are missing: run `npm ci --prefix tests/{package.name}`"
    if missing is not None and os.environ.get("CI"):
        pytest.fail(missing, pytrace=False)
    if missing is not None:
        pytest.skip(missing)
    return str(executable)


def run(*command: str, folder: Path, **environment: str) -> str:
    """Runs the command in the folder, with these variables besides its own; returns its standard output."""
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
