"""Connections whose request does not come, or stops in the middle of its head, are closed in time."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from service.protocol import Protocol

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
WHOLE_ANSWER = b'{"status": "ok"}'


@pytest.fixture
async def port(app: Starlette, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """The port of a server whose patience is short."""
    monkeypatch.setattr("service.protocol.HEAD_SECONDS", 0.3)
    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None)
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Protocol(config=config, server_state=state, app_state={}), "127.0.0.1")
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("sent", [b"", b"GET", REQUEST[:-2], REQUEST[:-4]])
async def test_a_first_head_that_does_not_end(port: int, sent: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_later_head_that_does_not_end(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(REQUEST)
        assert await asyncio.wait_for(reader.readuntil(WHOLE_ANSWER), 5)
    writer.write(REQUEST[:-2])
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_connection_that_is_kept_alive_outlives_that(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(REQUEST)
        assert await asyncio.wait_for(reader.readuntil(WHOLE_ANSWER), 5)
        await asyncio.sleep(0.5)  # longer than a head may take
    writer.close()


async def test_a_header_that_would_end_its_line_is_never_sent() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(b"{}", headers={"Link": "</>\r\nSet-Cookie: stolen=1"})(scope, receive, send)

    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None)
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Protocol(config=config, server_state=state, app_state={}), "127.0.0.1")
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        writer.write(REQUEST)
        assert await asyncio.wait_for(reader.read(), 5) == b"", "the connection is closed without an answer"
        writer.close()
