"""A PostgreSQL 15, the oldest that the service works with, as Debian packages it."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.db.address import parse_address
from service.db.migrations import migrate
from tests.processes import own_folder

PROGRAMS = Path("/usr/lib/postgresql/15/bin")
CHECKER = Path("/usr/share/postgresql/15/extension/plpgsql_check.control")
USER = "postgres"  # whom the package makes
SETTINGS = ("shared_preload_libraries=pg_stat_statements", "pg_stat_statements.track=all", "listen_addresses=")


@pytest.fixture(scope="session")
def postgres_15() -> Iterator[str]:
    """The URL of a PostgreSQL 15 that holds the current schema, with Debian's extensions at hand."""
    if not (PROGRAMS.exists() and CHECKER.exists()):
        missing = "no PostgreSQL 15 with plpgsql_check found: apt-get install postgresql-15-plpgsql-check"
        if os.environ.get("CI"):
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    with own_folder() as folder:
        data = folder / "data"
        options: dict[str, Any] = {"cwd": folder, "check": True, "stdout": subprocess.DEVNULL}
        if os.geteuid() == 0:
            shutil.chown(folder, USER)
            options |= {"user": USER, "group": USER, "extra_groups": []}
        server = f"-F -k {data} " + " ".join(f"-c {setting}" for setting in SETTINGS)
        subprocess.run([PROGRAMS / "initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "-D", data], **options)
        subprocess.run([PROGRAMS / "pg_ctl", "-w", "-D", data, "-l", data / "log", "-o", server, "start"], **options)
        url = f"postgresql://postgres@/postgres?host={data}&port=5432"
        migrate(parse_address(url))
        yield url
