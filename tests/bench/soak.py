"""Very many requests through one worker: does its memory grow?"""

from tests.bench.lineups import Stage
from tests.bench.load import prepare, wrk
from tests.bench.processes import memory_mib
from tests.bench.report import say

FIRST = 50_000
SLICE_SECONDS = 10


def soak(stage: Stage, requests: int, connections: int) -> str:
    """Sends the mix until so many requests are answered; returns the memory after the first 50,000 and at the end."""
    ground = stage.ground()
    service = stage.start("service", ground)
    done = seed = 0
    first = 0.0
    while done < requests:
        # the first slices are short, so that the first figure is not taken late; between slices the tables shrink again
        prepare(ground, service)
        seconds = SLICE_SECONDS if first else 1
        done += wrk(service, "mix", ground.users_file, connections, seconds, seed).requests
        seed += 1
        memory = memory_mib(service.pid)
        say(f"{done:,} requests: {memory:.1f} MiB")
        if not first and done >= FIRST:
            first, first_done = memory, done
    if not first:
        return f"Fewer than {FIRST:,} requests say nothing."
    return (
        f"Resident memory of one worker under the mix, {connections} connections: {first:.1f} MiB after "
        f"{first_done:,} requests, {memory:.1f} MiB after {done:,}: {100 * (memory / first - 1):+.1f} %"
    )
