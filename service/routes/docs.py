"""The interactive documentation: Swagger UI, served with its assets from here, so that it works behind a firewall."""

import json
import os
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from service.web.responses import JsonResponse, prefix, service_url

WEB = Path(__file__).parents[1] / "web"
PAGE = (WEB / "docs.html").read_text()
ASSETS = WEB / "static"


class Assets(StaticFiles):
    """The files that are there when the service starts, and no look at the disk for any other path."""

    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder)
        self._names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """Returns the file's path and what is known of it, which is None when there is none."""
        return super().lookup_path(path) if path in self._names else ("", None)


async def openapi(request: Request) -> Response:
    """The OpenAPI document, with the address at which it was asked for: a client made of it knows whom to call."""
    servers = json.dumps([{"url": service_url(request)}]).encode()
    return JsonResponse(b'{"servers": %s, %s' % (servers, request.app.state.openapi[1:]))


async def docs(request: Request) -> Response:
    """The page of Swagger UI."""
    return HTMLResponse(PAGE)


async def root(request: Request) -> Response:
    """The way to the documentation, for whoever opens the service's address in a browser."""
    return RedirectResponse(prefix(request) + "/docs")


routes = [
    Route("/", root, methods=["GET"]),
    Route("/openapi.json", openapi, methods=["GET"]),
    Route("/docs", docs, methods=["GET"]),
    Mount("/docs/assets", Assets(ASSETS)),
]
