"""Who stands against whom: the benchmark's own comparison, and those for the other figures.

A line-up maps each row's title to how it is measured; the first row is held against the others. The processes run
until the stack is closed, and only the one that is measured is under load.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from tests.bench import database
from tests.bench.check import same_answers
from tests.bench.load import SEARCH, Ground, Sample, Timing, beside, busy_loop, measure, pgbench
from tests.bench.peers import PEERS, started
from tests.bench.processes import Running
from tests.jwks import key_pair, publishing

USERS = 5_000  # 250,000 tasks
BIG_USERS = 200_000  # 10,000,000 tasks

# (workload, connections, seed) -> what was measured; None where it says nothing there
Measure = Callable[[str, int, int], Sample | None]
LineUp = dict[str, Measure]


@dataclass(frozen=True)
class Stage:
    """What every line-up is built from."""

    stack: ExitStack
    server: database.Server
    folder: Path
    timing: Timing

    def ground(self, users: int = USERS, checkout: Path = database.ROOT) -> Ground:
        """Returns a newly seeded database, with the checkout's schema."""
        users_file = self.folder / f"users-{users}"
        database.write_users(users_file, users)
        return Ground(
            self.server, database.seed(self.server, f"{checkout.name}_{users}", users, checkout), users, users_file
        )

    def start(self, name: str, ground: Ground, **settings: str) -> Running:
        """Returns the started peer."""
        return self.stack.enter_context(started(name, ground.url, self.folder, **settings))

    def measuring(self, ground: Ground, peer: Running) -> Measure:
        """Returns how the peer is measured."""
        return lambda workload, connections, seed: measure(ground, peer, workload, connections, seed, self.timing)


def standard(stage: Stage, names: list[str], connections: int, before: list[Path]) -> LineUp:
    """The service against its peers, and beside them the two limits; pgbench is measured with the first connections.

    Each of `before` is another checkout of the service, which becomes a peer under its folder's name.
    """
    ground = stage.ground()
    running = {name: stage.start(name, ground) for name in names if name in PEERS}
    same_answers(running["service"], [running[name] for name in running if name not in ("service", "empty")])
    peers = [running[name] for name in running if name != "empty"]
    line_up = {peer.title: stage.measuring(ground, peer) for peer in peers}
    for path in before:  # each with its own schema: what a change costs may be there
        its_ground = stage.ground(checkout=path)
        peer = replace(stage.start("service", its_ground, PYTHONPATH=str(path)), title=path.name)
        line_up[peer.title] = stage.measuring(its_ground, peer)

    def empty(workload: str, connections: int, seed: int) -> Sample | None:
        return (
            measure(ground, running["empty"], workload, connections, seed, stage.timing) if workload == "one" else None
        )

    def statements(workload: str, at: int, seed: int) -> Sample | None:
        return pgbench(ground, workload, stage.folder, stage.timing.measured) if at == connections else None

    if "empty" in names:
        line_up[running["empty"].title] = empty
    if "pgbench" in names:
        line_up["pgbench"] = statements
    return line_up


def big(stage: Stage) -> LineUp:
    """The service with ten million tasks against the service with 250,000."""
    grounds = [stage.ground(users) for users in (BIG_USERS, USERS)]
    return {
        f"{ground.users * database.TASKS_EACH:,} tasks": stage.measuring(ground, stage.start("service", ground))
        for ground in grounds
    }


def large_user(stage: Stage) -> LineUp:
    """The service while one user lists 10,000 tasks in a loop, against itself without, and beside a mere busy loop."""
    ground = stage.ground()
    database.seed_user(ground.url)
    large_user_file = database.write_large_users(stage.folder / "large-user", database.LARGE_USER)
    service = stage.start("service", ground)

    def beside_the_large_user(workload: str, connections: int, seed: int) -> Sample | None:
        lists = beside(service, "list", large_user_file, stage.timing.measured)
        return measure(ground, service, workload, connections, seed, stage.timing, lists)

    def beside_a_busy_loop(workload: str, connections: int, seed: int) -> Sample | None:
        return measure(ground, service, workload, connections, seed, stage.timing, busy_loop())

    return {
        "beside the large user": beside_the_large_user,
        "without it": stage.measuring(ground, service),
        "beside a busy loop": beside_a_busy_loop,
    }


def fairness(stage: Stage) -> LineUp:
    """The service without and beside one user who takes what can be had, in another process, and who may be refused."""
    ground = stage.ground()
    database.seed_user(ground.url, database.GREEDY, database.TASKS_EACH)
    database.seed_user(ground.url, database.SEARCHER, database.SEARCHER_TASKS, database.SEARCHED)
    database.seed_user(ground.url, database.HUGE_USER, database.HUGE_USER_TASKS)
    service = stage.start("service", ground)

    def beside_one(user: str, workload: str, connections: int) -> Measure:
        users = database.write_large_users(stage.folder / user, user)
        return lambda measured, at, seed: measure(
            ground,
            service,
            measured,
            at,
            seed,
            stage.timing,
            beside(service, workload, users, stage.timing.measured, connections),
        )

    return {
        "without": stage.measuring(ground, service),
        "beside 2,000 connections of one user": beside_one(database.GREEDY, "list", 2000),
        "beside 4 searches for 192 words": beside_one(database.SEARCHER, SEARCH, 4),
        "beside 8 lists of 800,000 tasks": beside_one(database.HUGE_USER, "list", 8),
    }


def alone(stage: Stage) -> LineUp:
    """The service against itself with a plain fetchval for each request."""
    ground = stage.ground()
    peers = [stage.start(name, ground) for name in ("service", "plain")]
    return {peer.title: stage.measuring(ground, peer) for peer in peers}


def eddsa(stage: Stage) -> LineUp:
    """The service with tokens that a published Ed25519 key signs, against the service with HS256."""
    ground = stage.ground()
    pair = key_pair("bench")
    publisher = stage.stack.enter_context(publishing())
    publisher.keys = [pair]
    users_file = stage.folder / "users-eddsa"
    lasting = int(time.time()) + 7 * 24 * 3600
    database.write_users(users_file, ground.users, lambda user: publisher.token(user, pair, exp=lasting))
    published = stage.start("service", ground, BETTER_AUTH_URL=publisher.url)
    return {
        "EdDSA": stage.measuring(replace(ground, users_file=users_file), published),
        "HS256": stage.measuring(ground, stage.start("service", ground)),
    }


def workers(stage: Stage, count: int) -> LineUp:
    """The service with several workers against the service with one."""
    ground = stage.ground()
    several = stage.start("service", ground, WEB_CONCURRENCY=str(count))
    return {
        f"{count} workers": stage.measuring(ground, several),
        "1 worker": stage.measuring(ground, stage.start("service", ground)),
    }


def citus(stage: Stage, coordinator: str) -> LineUp:
    """One PostgreSQL against a Citus, through its coordinator and its nodes asked directly; with 1 and 2 workers."""
    with psycopg.connect(coordinator) as connection:
        found = connection.execute(
            "select node_name, node_port from citus_get_active_worker_nodes() order by 2"
        ).fetchall()
    parts = urlsplit(coordinator)
    nodes = ",".join(f"{host}:{port}" for host, port in found)
    user, has_user, _ = parts.netloc.rpartition("@")
    direct = parts._replace(netloc=f"{user}{has_user}{nodes}", query="load_balance_hosts=random").geturl()
    database.fill(coordinator, USERS)
    own = stage.ground()
    distributed = replace(own, server=None, url=coordinator)
    line_up: LineUp = {}
    for title, ground, url in (
        ("one PostgreSQL", own, own.url),
        ("the coordinator", distributed, coordinator),
        ("the nodes directly", distributed, direct),
    ):
        for count in (1, 2):
            service = stage.start("service", ground, DATABASE_URL=url, WEB_CONCURRENCY=str(count))
            line_up[f"{title}, {count} worker{'s' if count > 1 else ''}"] = stage.measuring(ground, service)
    return line_up


def citus_version(coordinator: str) -> str:
    """Returns what the Citus is, for the conditions."""
    with psycopg.connect(coordinator) as connection:
        found = connection.execute(
            "select citus_version(), current_setting('server_version'), count(*) from pg_dist_node"
        )
        version, server_version, nodes = found.fetchone() or ("", "", 0)
    return f"{version.split(' on ')[0]}, PostgreSQL {server_version.split()[0]}, {nodes} nodes"
