"""Server-sent events, as browsers' EventSource reads them: https://html.spec.whatwg.org/multipage/server-sent-events.html"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

# What keeps proxies from holding it back, or from changing it
HEADERS = [
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
    (b"vary", b"Authorization, Origin"),
]
RETRY_MS = (2000, 8000)  # until a client comes back: not all of them at once
COMMENT = b":\n\n"

SendPart = Callable[[bytes], Awaitable[None]]


def event(name: str, data: bytes, number: int | None = None) -> bytes:
    """Returns an event; `id` is what the client sends as Last-Event-ID when it comes back."""
    head = f"event: {name}\n" + ("" if number is None else f"id: {number}\n")
    return head.encode() + b"data: " + data.replace(b"\n", b"\ndata: ") + b"\n\n"


class EventStream(Response):
    """The answer that goes on as long as `tell` does, which is called with what sends a part of it.

    Starlette's own has two tasks and a cancel scope for each stream: most of what an idle one costs.
    """

    def __init__(self, tell: Callable[[SendPart], Awaitable[None]]) -> None:
        self._tell = tell
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers."""

        async def send_part(part: bytes) -> None:
            await send({"type": "http.response.body", "body": part, "more_body": True})

        scope["api_headers"] = [*HEADERS, *scope.get("rate_limit_headers", ())]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        if scope["method"] != "HEAD":
            await send_part(b"retry: %d\n\n" % random.randint(*RETRY_MS))  # noqa: S311  (no secret)
            await self._tell(send_part)
        await send({"type": "http.response.body"})


@contextmanager
def ended_by_client(receive: Receive, end: Callable[[], None]) -> Iterator[None]:
    """Calls `end` when the client goes away meanwhile."""

    async def listen() -> None:
        with suppress(TimeoutError):  # of a body that does not come
            while (await receive())["type"] != "http.disconnect":
                pass
        end()

    listening = asyncio.create_task(listen())
    try:
        yield
    finally:
        listening.cancel()
