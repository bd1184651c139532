"""The server's limit: a Starlette route that does nothing, under the options that the service gives to uvicorn."""

import os

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def answer(request: Request) -> Response:
    """Returns the least that is JSON."""
    return Response(b"{}", media_type="application/json")


app = Starlette(routes=[Route("/api/{user_id}/tasks/{task_id}", answer)])

if __name__ == "__main__":
    # the same as in service/__main__.py
    uvicorn.run(
        app,
        port=int(os.environ["PORT"]),
        loop="uvloop",
        http="httptools",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
    )
