"""Twenty times as many lists of 10,000 tasks as can be answered: how many are, and how long does anybody wait?"""

import json
import subprocess
import sys
from statistics import median
from typing import Any

from tests.bench import database
from tests.bench.lineups import Stage
from tests.bench.load import Ground, prepare, wrk
from tests.bench.processes import Failure, Running
from tests.bench.report import say

TIMES = 20


def overload(stage: Stage, rounds: int) -> str:
    """Measures the lists one after the other, and then a flood of them: of one user, and of twenty. Returns a table."""
    ground = stage.ground()
    users = [f"{database.LARGE_USER}-{number}" for number in range(database.LARGE_USERS)]
    for user in users:
        database.seed_user(ground.url, user)
    service = stage.start("service", ground)
    lines = [
        "Lists of 10,000 tasks, asked for one after the other, and then at twenty times that rate, each on a "
        "connection of its own.",
        "",
        "| | one after the other, a second | answered in the flood | of that | refused, median ms | longest, s |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for title, who in (("of one user", users[:1]), ("of twenty users", users)):
        samples = [_sample(stage, ground, service, who) for _ in range(rounds)]
        capacity, answered, share, refused, longest = (median(figures) for figures in zip(*samples, strict=True))
        least, most = min(sample[2] for sample in samples), max(sample[2] for sample in samples)
        lines.append(
            f"| {title} | {capacity:.1f} | {answered:.1f} | {share:.2f} ({least:.2f} – {most:.2f}) "
            f"| {1000 * refused:.0f} | {longest:.1f} |"
        )
    return "\n".join(lines)


def _sample(
    stage: Stage, ground: Ground, service: Running, users: list[str]
) -> tuple[float, float, float, float, float]:
    """Returns the rate one after the other, that in the flood, the ratio, a refusal's seconds, and the longest."""
    file = database.write_large_users(stage.folder / "large-users", *users)
    prepare(ground, service)
    wrk(service, "list", file, 1, stage.timing.warm_up, 1)
    capacity = wrk(service, "list", file, 1, stage.timing.measured, 2).speed
    result = _flood(service, str(file), TIMES * capacity, stage.timing.measured)
    answers: dict[str, int] = result["answers"]
    if unexpected := set(answers) - {"200", "503"}:
        raise Failure(f"the flood was answered with {unexpected}")
    answered = answers.get("200", 0) / result["seconds"]
    say(f"{capacity:.1f} a second one after the other; flooded: {result}")
    return capacity, answered, answered / capacity, result["median"].get("503", 0.0), result["longest"]


def _flood(service: Running, users_file: str, rate: float, seconds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench.flood", service.address, users_file, str(rate), str(seconds)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Failure(f"the flood fails:\n{result.stderr}")
    found: dict[str, Any] = json.loads(result.stdout)
    return found
