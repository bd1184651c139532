"""The result as Markdown: what it was measured on, and a table for each workload."""

import os
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import psutil
import psycopg

from tests.bench.database import SETTINGS, Server
from tests.bench.load import WORKLOADS, Sample
from tests.bench.peers import FASTAPI_PYTHON, HERE, NODE_MODULES, ROOT, output

# The samples of one table: of each contestant, in the order of the rows. The first is what the others are held against.
Rows = dict[str, list[Sample]]

PYTHON_PACKAGES = ("starlette", "uvicorn", "uvloop", "httptools", "asyncpg", "pydantic", "pyjwt")
DEBIAN_PACKAGES = ("golang-github-jackc-pgx-v4-dev", "golang-github-golang-jwt-jwt-dev")
COLUMNS = (
    "requests/s (least – most)",
    "p50 ms",
    "p99 ms",
    "CPU s, process",
    "CPU s, PostgreSQL",
    "memory MiB",
    "× requests/s",
    "× p50",
    "× p99",
)


def say(text: str) -> None:
    """Prints, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def table(workload: str, connections: int, rows: Rows, fewer: tuple[int, Rows] | None) -> str:
    """Returns one workload's table of medians; `fewer` are the samples at fewer connections, to compare with."""
    lines = [
        f"### {workload}, {connections} connection{'s' if connections > 1 else ''}",
        "",
        WORKLOADS[workload],
        "",
        f"| | {' | '.join(COLUMNS)} |",
        f"|---|{'--:|' * len(COLUMNS)}",
    ]
    first = next(iter(rows.values()))
    lines += [_row(title, samples, first) for title, samples in rows.items()]
    if fewer is not None:
        shares = [
            f"{title} {_ratio(samples, fewer[1][title], _speed)}"
            for title, samples in rows.items()
            if title in fewer[1]
        ]
        lines += ["", f"Requests per second against those at {fewer[0]} connections: {', '.join(shares)}."]
    return "\n".join(lines)


def conditions(server: Server, names: list[str], notes: list[str]) -> str:
    """Returns the date, the command, the machine, the versions, PostgreSQL's settings and the notes as a list."""
    commit = output("git", "-C", str(ROOT), "describe", "--always", "--dirty")
    memory = psutil.virtual_memory().total / 2**30
    command = " ".join(["python -m tests.bench", *sys.argv[1:]])
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit}, `{command}`",
        f"{os.cpu_count()} cores ({_cpu_model()}), {memory:.0f} GiB, Linux {platform.release()}",
        *_versions(names),
        f"{_postgres(server)}: " + ", ".join(f"{name} = {value}" for name, value in SETTINGS.items()),
        *notes,
    ]
    return "\n".join(f"- {line}" for line in lines)


def _row(title: str, samples: list[Sample], first: list[Sample]) -> str:
    speeds = [sample.speed for sample in samples]
    cells = [
        title,
        f"{median(speeds):,.0f} ({min(speeds):,.0f} – {max(speeds):,.0f})",
        _median(samples, _p50, ".2f"),
        _median(samples, _p99, ".2f"),
        _median(samples, lambda sample: sample.cpu, ".3f"),
        _median(samples, lambda sample: sample.database_cpu, ".3f"),
        _median(samples, lambda sample: sample.memory, ".0f"),
        *([""] * 3 if samples is first else [_ratio(first, samples, of) for of in (_speed, _p50, _p99)]),
    ]
    return f"| {' | '.join(cells)} |"


def _speed(sample: Sample) -> float | None:
    return sample.speed


def _p50(sample: Sample) -> float | None:
    return sample.p50


def _p99(sample: Sample) -> float | None:
    return sample.p99


def _middle(samples: list[Sample], of: Callable[[Sample], float | None]) -> float | None:
    values = [value for sample in samples if (value := of(sample)) is not None]
    return median(values) if values else None


def _median(samples: list[Sample], of: Callable[[Sample], float | None], form: str) -> str:
    value = _middle(samples, of)
    return "–" if value is None else format(value, form)


def _ratio(samples: list[Sample], others: list[Sample], of: Callable[[Sample], float | None]) -> str:
    mine, theirs = _middle(samples, of), _middle(others, of)
    return "–" if mine is None or not theirs else f"{mine / theirs:.2f}"


def _versions(names: list[str]) -> list[str]:
    packages = ", ".join(f"{name} {version(name)}" for name in PYTHON_PACKAGES)
    # Debian's is built with profile-guided optimization, one that pyenv has built usually is not: a sixth of the speed
    python = f"{'the system' if sys.base_prefix == '/usr' else 'no system'}'s Python {platform.python_version()}"
    lines = [f"{output('wrk', '-v').split(' [')[0]}; {python}: {packages}"]
    if "go" in names:
        debian = output("dpkg-query", "-W", "-f", "${Package} ${Version}, ", *DEBIAN_PACKAGES).strip(", ")
        lines.append(f"{output('go', 'version')}: {debian}")
    if "fastify" in names:
        packages = ", ".join(_node_package(name) for name in ("fastify", "postgres", "fast-jwt"))
        lines.append(f"Node.js {output('node', '--version')}: {packages}")
    if "fastapi" in names:
        lines.append(f"FastAPI's {output(str(FASTAPI_PYTHON), '--version')}: {_fastapi_packages()}")
    return lines


def _node_package(name: str) -> str:
    lines = (NODE_MODULES / name / "package.json").read_text().splitlines()
    found = next(line.split('"')[3] for line in lines if line.strip().startswith('"version"'))
    return f"{name} {found}"


def _fastapi_packages() -> str:
    wanted = ("fastapi", "sqlmodel", "SQLAlchemy", "asyncpg", "PyJWT", "uvicorn", "uvloop")
    code = f"from importlib.metadata import version\nprint(', '.join(f'{{n}} {{version(n)}}' for n in {wanted!r}))"
    return output(str(FASTAPI_PYTHON), "-c", code)


def _postgres(server: Server) -> str:
    with psycopg.connect(server.url("postgres")) as connection:
        row = connection.execute(
            "select version(), datcollate from pg_database where datname = current_database()"
        ).fetchone()
    assert row is not None
    return f"{row[0].split(',')[0]}, collation {row[1]}"


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def save(name: str, text: str) -> None:
    """Writes the result beside the benchmark."""
    path = HERE / name
    path.write_text(text + "\n")
    say(f"saved in {path.relative_to(ROOT)}")
