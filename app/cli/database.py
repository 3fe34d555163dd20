"""The database of the settings for a command that works on it directly, whether a server is running or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from app.runtime.embedded_mongod import EmbeddedMongo, running_uri
from app.runtime.mongo import Mongo
from app.settings import Settings

T = TypeVar("T")


def on_database(
    data: Path | None, uri: str | None, work: Callable[[Mongo, Settings], Awaitable[T]]
) -> T:
    """What `work` returns. Raises errors.Unavailable or embedded.EmbeddedMongoError where there is no database."""
    given = {"data": data, "mongodb_uri": uri}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    with _database(settings) as found:
        return asyncio.run(_run(found, work))


async def _run(settings: Settings, work: Callable[[Mongo, Settings], Awaitable[T]]) -> T:
    mongo = await Mongo.open(settings)
    try:
        return await work(mongo, settings)
    finally:
        await mongo.close()


@contextmanager
def _database(settings: Settings) -> Iterator[Settings]:
    """The settings with a database behind them: the operator's, the one a server runs, or one started for this."""
    if settings.mongodb_uri:
        yield settings
        return
    running = running_uri(settings.data)
    if running is not None:
        yield settings.model_copy(update={"mongodb_uri": running})
        return
    with EmbeddedMongo(settings.data) as own:
        yield settings.model_copy(update={"mongodb_uri": own.uri})
