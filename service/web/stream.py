"""Server-sent events, as browsers' EventSource reads them: https://html.spec.whatwg.org/multipage/server-sent-events.html"""

from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

# What keeps proxies from holding it back, or from changing it
HEADERS = [
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
    (b"vary", b"Authorization, Origin"),
]
COMMENT = b":\n\n"


def event(name: str, data: bytes, number: int | None = None) -> bytes:
    """Returns an event; `id` is what the client sends as Last-Event-ID when it comes back."""
    head = f"event: {name}\n" + ("" if number is None else f"id: {number}\n")
    return head.encode() + b"data: " + data.replace(b"\n", b"\ndata: ") + b"\n\n"


def stream_response(request: Request, events: AsyncIterator[bytes]) -> Response:
    """Returns the answer that goes on as long as there are events."""
    request.scope["api_headers"] = HEADERS
    return StreamingResponse(events, media_type="text/event-stream")
