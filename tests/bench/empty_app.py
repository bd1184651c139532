"""The server's limit: a Starlette route that does nothing, under the options that the service gives to uvicorn."""

import os

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.web.server import SERVER_OPTIONS


async def answer(request: Request) -> Response:
    """Returns the least that is JSON."""
    return Response(b"{}", media_type="application/json")


app = Starlette(routes=[Route("/api/{user_id}/tasks/{task_id}", answer)])

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), **SERVER_OPTIONS)
