"""python -m tests.bench: the service against its peers, on this machine."""

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.bench import database, lineups, picture, report
from tests.bench.load import WORKLOADS, Timing
from tests.bench.overload import overload
from tests.bench.peers import missing
from tests.bench.processes import Failure
from tests.bench.report import Rows, say
from tests.bench.soak import soak

PEERS = ["go", "fastify", "fastapi", "empty", "pgbench"]
TITLES = {
    None: "The service against its peers",
    "big": "Ten million tasks against 250,000",
    "large-user": "One user with 10,000 tasks lists them without a pause",
    "alone": "A request alone",
    "workers": "Several workers",
    "citus": "One PostgreSQL against a Citus",
    "eddsa": "Tokens signed EdDSA against HS256",
    "fairness": "One user takes what can be had",
    "overload": "Twenty times as much as can be done",
    "soak": "Very many requests",
}
NOTES = [
    "each figure is the median of the rounds; CPU seconds are per 1,000 requests",
    "× is the first row divided by this one",
]


def main() -> None:
    """Runs what the arguments say; exits with 1 and a message when something is missing, or an answer was wrong."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that `with` blocks are left, and nothing stays behind
    arguments = _arguments()
    names = ["service"] if arguments.mode else ["service", *arguments.peers]
    if problems := missing(names):
        sys.exit("Please install:\n" + "\n".join(f"  {problem}" for problem in problems))
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder, ExitStack() as stack:
            server = stack.enter_context(database.running(Path(folder) / "postgres"))
            stage = lineups.Stage(stack, server, Path(folder), Timing(arguments.warm_up, arguments.seconds))
            result = _result(stage, arguments)
            notes = [lineups.citus_version(arguments.citus), *NOTES] if arguments.citus else NOTES
            text = f"# {TITLES[arguments.mode]}\n\n{report.conditions(server, names, notes)}\n\n{result}"
    except Failure as failure:
        sys.exit(str(failure))
    except KeyboardInterrupt:
        sys.exit(130)
    say(f"\n{text}")
    if arguments.save:
        report.save(f"RESULTS-{arguments.mode}.md" if arguments.mode else "RESULTS.md", text)
        if arguments.mode is None:
            picture.draw()


def _result(stage: lineups.Stage, arguments: argparse.Namespace) -> str:
    if arguments.mode == "overload":
        return overload(stage, arguments.rounds)
    if arguments.mode == "soak":
        return soak(stage, arguments.soak, arguments.connections[0])
    samples = _samples(_line_up(stage, arguments), arguments)
    return "\n\n".join(_table(samples, workload, at, arguments.connections[0]) for workload, at in samples)


def _line_up(stage: lineups.Stage, arguments: argparse.Namespace) -> lineups.LineUp:
    match arguments.mode:
        case "big":
            return lineups.big(stage)
        case "large-user":
            return lineups.large_user(stage)
        case "fairness":
            return lineups.fairness(stage)
        case "alone":
            return lineups.alone(stage)
        case "eddsa":
            return lineups.eddsa(stage)
        case "workers":
            return lineups.workers(stage, arguments.workers)
        case "citus":
            return lineups.citus(stage, arguments.citus)
        case _:
            return lineups.standard(stage, ["service", *arguments.peers], arguments.connections[0], arguments.before)


def _samples(line_up: lineups.LineUp, arguments: argparse.Namespace) -> dict[tuple[str, int], Rows]:
    """Measures in turns, A B C A B C: whatever happens to the machine meanwhile happens to all."""
    samples: dict[tuple[str, int], Rows] = {
        (workload, at): {} for workload in arguments.only for at in arguments.connections
    }
    for turn in range(arguments.rounds):
        for (workload, at), rows in samples.items():
            for title, measure in line_up.items():
                sample = measure(workload, at, 2 * turn + 1)
                if sample is not None:
                    rows.setdefault(title, []).append(sample)
                    say(f"round {turn + 1}, {workload}, {at} connections, {title}: {sample.speed:,.0f} a second")
    return samples


def _table(samples: dict[tuple[str, int], Rows], workload: str, at: int, first: int) -> str:
    fewer = None if at == first else (first, samples[workload, first])
    return report.table(workload, at, samples[workload, at], fewer)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", type=_among(list(WORKLOADS)), metavar="A,B", help=f"workloads: {','.join(WORKLOADS)}")
    parser.add_argument("--peers", type=_among(PEERS), default=PEERS, metavar="A,B", help=f"of {','.join(PEERS)}")
    parser.add_argument("--connections", type=_numbers, metavar="A,B", help="32 unless told; 32,512 measures both")
    parser.add_argument("--rounds", type=int, default=5, help="5 unless told")
    parser.add_argument("--seconds", type=int, default=10, help="of each measurement; 10 unless told")
    parser.add_argument("--warm-up", type=int, default=3, help="seconds before each measurement; 3 unless told")
    parser.add_argument("--save", action="store_true", help="keep the result beside the benchmark")
    text = "another checkout of the service, as a further peer: what a change costs; may be given several times"
    add = parser.add_argument
    add("--before", type=lambda name: Path(name).resolve(), action="append", default=[], metavar="FOLDER", help=text)
    others = parser.add_mutually_exclusive_group()
    add = others.add_argument
    add("--big", dest="mode", action="store_const", const="big", help="the service with 10,000,000 tasks, and 250,000")
    text = "the others while one user lists 10,000 tasks"
    add("--large-user", dest="mode", action="store_const", const="large-user", help=text)
    text = "the others while one user floods, searches for 192 words, or lists 800,000 tasks"
    add("--fairness", dest="mode", action="store_const", const="fairness", help=text)
    text = "lists of 10,000 tasks, twenty times as many as can be answered"
    add("--overload", dest="mode", action="store_const", const="overload", help=text)
    add("--alone", dest="mode", action="store_const", const="alone", help="the service and a plain fetchval")
    add("--eddsa", dest="mode", action="store_const", const="eddsa", help="the service with EdDSA tokens, and HS256")
    add("--workers", type=int, metavar="N", help="the service with N workers, and one")
    add("--citus", metavar="URL", help="the service on this Citus, where `distribute` has run, and on one PostgreSQL")
    add("--soak", type=int, metavar="N", help="the service's memory over N requests")
    arguments = parser.parse_args()
    if len({folder.name for folder in arguments.before}) < len(arguments.before):
        parser.error("two folders of --before have the same name, and it is the row's")
    for name in ("workers", "citus", "soak"):
        if getattr(arguments, name):
            arguments.mode = name
    arguments.only = arguments.only or (
        ["one", "list", "create"] if arguments.mode in ("big", "large-user", "fairness") else [*WORKLOADS]
    )
    arguments.connections = arguments.connections or [1 if arguments.mode == "alone" else 32]
    return arguments


def _among(known: list[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        chosen = [name for name in text.split(",") if name]
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"no such name: {', '.join(unknown)}; there are {', '.join(known)}")
        return chosen

    return names


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
