"""The application: routes, middleware and lifespan, put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware

from service.auth import Tokens
from service.batches import Batches
from service.database import Pool
from service.middleware import Edge
from service.routes import docs, health, tasks
from service.settings import Settings
from service.web import exception_handlers


def create_app(settings: Settings) -> Starlette:
    """Returns the application. Its lifespan opens and closes the pool, and waits for no database."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await app.state.db.open()
        yield
        await app.state.db.close()

    app = Starlette(
        routes=[*tasks.routes, *health.routes, *docs.routes],
        middleware=[Middleware(Edge, origins=settings.frontend_url)],
        exception_handlers=exception_handlers,
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a path with a trailing slash is another path
    app.state.tokens = Tokens(settings.secret, settings.jwt_issuer, settings.jwt_audience)
    app.state.db = Batches(
        Pool(settings.url(), settings.db_pool_min, settings.db_pool_max, settings.db_statement_cache)
    )
    return app
