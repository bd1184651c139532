"""Who in this process waits for a user's changes, and how far each user's counter is known to be.

A stream holds a number and never a queue: what is behind that number is read from the database when its turn comes.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

MOST_STREAMS = 10  # of a user; one more ends the oldest


class Watch:
    """One who waits for a user's changes."""

    def __init__(self, counters: dict[str, int], user_id: str) -> None:
        self._counters = counters
        self._user_id = user_id
        self._woken: asyncio.Future[None] | None = None
        self.is_ended = False  # nothing more is waited for

    async def wait(self, version: int, seconds: float) -> bool:
        """Returns whether the user's counter is another than this version, at the latest after so many seconds."""
        end = time.monotonic() + seconds
        while not self.is_ended and self._counters[self._user_id] == version and (left := end - time.monotonic()) > 0:
            self._woken = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._woken], timeout=left)
        return self._counters[self._user_id] != version

    def end(self) -> None:
        """Ends the waiting."""
        self.is_ended = True
        self.wake()

    def wake(self) -> None:
        """Has it look at the counter."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)


class Hub:
    """All who wait in this process."""

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}  # of the users who are watched; 0 while it is not known
        self._watches: dict[str, list[Watch]] = {}  # the oldest first
        self._streams: dict[str, list[Watch]] = {}
        self._is_closed = False

    def tell(self, user_id: str, version: int, known: int | None = None) -> None:
        """Takes that the user's counter has come to this version, at least.

        It is exactly this version, also when that is lower, if what was `known` before it was read is known still: a
        counter falls when a backup is restored or the user erased. Else a higher one may have been told meanwhile.
        """
        now = self.counters.get(user_id, version)
        if version > now or (version < now == known):
            self.counters[user_id] = version
            for watch in self._watches[user_id]:
                watch.wake()

    @property
    def streams(self) -> int:
        """How many streams there are."""
        return sum(map(len, self._streams.values()))

    def close(self) -> None:
        """Ends all waiting, now and later: the process is about to end."""
        self._is_closed = True
        for watches in self._watches.values():
            for watch in watches:
                watch.end()

    @contextmanager
    def watch(self, user_id: str) -> Iterator[Watch]:
        """Yields what waits for the user's changes."""
        watch = Watch(self.counters, user_id)
        watch.is_ended = self._is_closed
        self.counters.setdefault(user_id, 0)
        self._watches.setdefault(user_id, []).append(watch)
        try:
            yield watch
        finally:
            self._watches[user_id].remove(watch)
            if not self._watches[user_id]:
                del self._watches[user_id], self.counters[user_id]

    @contextmanager
    def stream(self, user_id: str) -> Iterator[Watch]:
        """Yields the same for a stream, of which a user has a few; ends the oldest when it is one too many."""
        with self.watch(user_id) as watch:
            streams = self._streams.setdefault(user_id, [])
            streams.append(watch)
            if len(streams) > MOST_STREAMS:
                streams.pop(0).end()
            try:
                yield watch
            finally:
                if watch in streams:
                    streams.remove(watch)
                if not streams and self._streams.get(user_id) is streams:
                    del self._streams[user_id]
