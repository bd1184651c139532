"""Assembles the application: routes, database, authentication and lifespan."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

from starlette.applications import Starlette

from service.auth.jwks import PublishedKeys
from service.auth.tokens import Tokens
from service.db.coalescer import Coalescer
from service.db.pool import Pool
from service.queries.changes import watch_counters
from service.routes import account, batch, changes, docs, health, missing, tags, tasks
from service.settings import Settings, SettingsError, wants_traces
from service.web.application import Service
from service.web.metrics import Metrics
from service.web.openapi import document

if TYPE_CHECKING:
    from service.web.tracing import Tracing

logger = logging.getLogger(__name__)


def create_app(settings: Settings) -> Starlette:
    """Returns the application. Its lifespan opens and closes the pool, even when the database is away.

    Raises SettingsError when OpenTelemetry does not take its variables.
    """

    tracing = _tracing()
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
        if tracing is not None:
            await tracing.close()

    routes = [
        *(*tasks.routes, *batch.routes, *changes.routes, *tags.routes, *account.routes),
        *(*health.routes, *docs.routes),
    ]
    app = (Service if tracing is None else tracing.service)(routes, missing.no_route, lifespan, settings)
    app.state.settings = settings
    app.state.openapi = document(app.routes)
    app.state.tokens = Tokens(settings.secret, settings.jwt_issuer, settings.jwt_audience, published)
    pool = Pool(settings.address(), settings.db_pool_min, settings.db_pool_max, settings.db_statement_cache)
    app.state.db = (Coalescer if tracing is None else tracing.coalescer)(pool)
    if settings.metrics_port is not None:
        app.metrics = Metrics(app.state.db, pool)
    return app


def _tracing() -> "Tracing | None":
    """Returns what traces the application; None when nobody asks for it, or OpenTelemetry is not installed.

    Raises SettingsError when OpenTelemetry does not take its variables.
    """
    if not wants_traces():
        return None
    try:
        from service.web.tracing import Tracing  # only where there are traces

        return Tracing()
    except ImportError as error:
        logger.warning(
            "OTEL_* variables ask for traces, and requirements-opentelemetry.txt is not installed: %s", error
        )
        return None
    except ValueError as error:
        raise SettingsError(f"OTEL_…: {error}") from None
