"""A load that does not wait: so many requests a second, each on a connection of its own, whatever the answers do.

python -m tests.bench.flood ADDRESS USERS-FILE RATE SECONDS lists the tasks of random users, and prints what came of it
as JSON: how many answers there were of each status (0: none), the seconds that those took, and the longest of all.
"""

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from statistics import median

import uvloop

PATIENCE = 20  # seconds, after which a client gives up


async def flood(port: int, heads: list[bytes], rate: float, seconds: float) -> dict[str, object]:
    """Returns the outcomes: by status their number and median in seconds, the longest, and how long it all took."""
    taken: dict[int, list[float]] = {}
    clients = set()
    started = time.monotonic()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
        client = asyncio.create_task(_ask(port, random.choice(heads), taken))  # noqa: S311  (no secret)
        clients.add(client)
        client.add_done_callback(clients.discard)
    await asyncio.gather(*clients)
    return {
        "answers": {status: len(times) for status, times in taken.items()},
        "median": {status: median(times) for status, times in taken.items()},
        "longest": max(max(times) for times in taken.values()),
        "seconds": time.monotonic() - started,
    }


async def _ask(port: int, head: bytes, taken: dict[int, list[float]]) -> None:
    started = time.monotonic()
    status = 0
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head)
            status = int((await reader.readline()).split()[1])
            while await reader.read(1 << 18):
                pass
            writer.close()
    except (OSError, IndexError):
        status = 0
    taken.setdefault(status, []).append(time.monotonic() - started)


def main() -> None:
    """Runs what the arguments say."""
    address, users_file, rate, seconds = sys.argv[1:]
    users = [line.split()[:2] for line in Path(users_file).read_text().splitlines()]
    heads = [
        f"GET /api/{user}/tasks HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {token}\r\n\r\n".encode()
        for user, token in users
    ]
    result = uvloop.run(flood(int(address.rsplit(":", 1)[1]), heads, float(rate), float(seconds)))
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
