"""The service with one plain `fetchval` a request in the place of its own way to the database."""

import os
from typing import Any

import asyncpg
import uvicorn
from starlette.applications import Starlette

from service.app import create_app
from service.db.coalescer import SOON, Statement
from service.settings import load
from service.web import log
from service.web.server import SERVER_OPTIONS


class PlainDatabase:
    """What the service asks of its database, and nothing shared between calls."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: asyncpg.Pool | None = None

    async def open(self) -> None:
        """Opens the pool, without its second round trip on release, which the service avoids as well."""
        self._pool = await asyncpg.create_pool(self._url, min_size=5, max_size=15, init=_pass_json, reset=_keep)

    async def close(self) -> None:
        """Closes the pool."""
        if self._pool is not None:
            await self._pool.close()

    async def fetch(self, statement: Statement, *arguments: Any) -> Any:
        """Returns the statement's row."""
        if self._pool is None:
            raise asyncpg.InterfaceError("the pool is not open")
        patience = (f"{SOON}s",) if statement.writes else ()
        return await self._pool.fetchrow(statement.sql, *arguments, *patience)


async def _pass_json(connection: Any) -> None:
    await connection.set_type_codec("json", schema="pg_catalog", encoder=bytes, decoder=bytes, format="binary")


async def _keep(connection: Any) -> None:
    """Leaves the connection as it is: no statement leaves anything behind in its session."""


def application() -> Starlette:
    """Returns the service's application with the plain database in it."""
    settings = load()
    log.set_up(settings.log_level, settings.log_format)
    app = create_app(settings)
    app.state.db = PlainDatabase(os.environ["DATABASE_URL"])
    return app


if __name__ == "__main__":
    uvicorn.run("tests.bench.plain_app:application", factory=True, port=load().port, **SERVER_OPTIONS)
