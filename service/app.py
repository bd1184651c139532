"""Assembles the application: routes, database, authentication and lifespan."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from starlette.applications import Starlette

from service.auth.jwks import PublishedKeys
from service.auth.tokens import Tokens
from service.db.coalescer import Coalescer
from service.db.pool import Pool
from service.queries.changes import watch_counters
from service.routes import batch, changes, docs, health, missing, tasks
from service.settings import Settings
from service.web.application import Service
from service.web.metrics import Metrics
from service.web.openapi import document


def create_app(settings: Settings) -> Starlette:
    """Returns the application. Its lifespan opens and closes the pool, even when the database is away."""

    published = None
    if settings.jwks_url is not None:
        published = PublishedKeys(settings.jwks_url, settings.published_issuer, settings.published_audience)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await app.state.db.open()
        await health.report(app.state.db)
        watching = asyncio.create_task(watch_counters(app.state.db))
        async with published.kept_fresh() if published else nullcontext():
            gc.collect()
            gc.freeze()  # exempts what exists for good from garbage collection
            yield
            gc.unfreeze()
        watching.cancel()
        await app.state.db.close()

    routes = [*tasks.routes, *batch.routes, *changes.routes, *health.routes, *docs.routes]
    app = Service(routes, missing.no_route, lifespan, settings)
    app.state.settings = settings
    app.state.openapi = document(app.routes)
    app.state.tokens = Tokens(settings.secret, settings.jwt_issuer, settings.jwt_audience, published)
    pool = Pool(settings.address(), settings.db_pool_min, settings.db_pool_max, settings.db_statement_cache)
    app.state.db = Coalescer(pool)
    if settings.metrics_port is not None:
        app.metrics = Metrics(app.state.db, pool)
    return app
