"""The interactive documentation: Swagger UI, served with its assets from here, so that it works behind a firewall."""

import json
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from service.web import JsonResponse

STATIC = Path(__file__).parent.parent / "static"
PAGE = (STATIC / "docs.html").read_text()

# Everything comes from here and talks to here; Swagger UI has some images in its styles, as data.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def openapi(request: Request) -> Response:
    """The OpenAPI document, with the address at which it was asked for: a client made of it knows whom to call."""
    servers = json.dumps([{"url": str(request.base_url).rstrip("/")}]).encode()
    return JsonResponse(b'{"servers": %s, %s' % (servers, request.app.state.openapi[1:]))


async def docs(request: Request) -> Response:
    """The page of Swagger UI."""
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY})


async def root(request: Request) -> Response:
    """The way to the documentation, for whoever opens the service's address in a browser."""
    return RedirectResponse("/docs")


routes = [
    Route("/", root, methods=["GET"]),
    Route("/openapi.json", openapi, methods=["GET"]),
    Route("/docs", docs, methods=["GET"]),
    Mount("/docs/assets", StaticFiles(directory=STATIC)),
]
