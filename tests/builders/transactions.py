"""What holds up writes: transactions of others that stay open, and a MongoDB that fails as it is told to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient
from pymongo.errors import ConnectionFailure

from app.runtime import embedded_mongod
from app.runtime.embedded_mongod import EmbeddedMongo
from app.runtime.mongo import name_of


@asynccontextmanager
async def held(
    uri: str, database: str, *places: tuple[str, str], owner: str = "somebody"
) -> AsyncIterator[None]:
    """Documents (collection, id) that the open transaction of a process has written, until the end of the context."""
    async with (
        AsyncMongoClient[dict[str, Any]](uri, appname=name_of(owner)) as client,
        client.start_session() as session,
    ):
        await session.start_transaction()
        for collection, id_ in places:
            await client[database][collection].update_one(
                {"_id": id_}, {"$set": {"held": True}}, upsert=True, session=session
            )
        try:
            yield
        finally:
            await session.abort_transaction()


@contextmanager
def failing_mongod(directory: Path) -> Iterator[EmbeddedMongo]:
    """A mongod that fails on demand, see `failing`."""
    made = embedded_mongod._options
    with pytest.MonkeyPatch.context() as patch:
        test_commands = ("--setParameter", "enableTestCommands=1")
        patch.setattr(embedded_mongod, "_options", lambda *given: [*made(*given), *test_commands])
        with EmbeddedMongo(directory) as mongo:
            yield mongo


@asynccontextmanager
async def failing(
    uri: str, command: str, **how: Any
) -> AsyncIterator[Callable[[int], Awaitable[object]]]:
    """Let a command fail, as MongoDB's own tests do: `closeConnection`, `errorCode`, `blockConnection`.

    Gives a function that returns once it has failed so many times. To kill the mongod inside the context is fine, and
    the way to end it at once where connections are blocked.
    """
    async with AsyncMongoClient[dict[str, Any]](uri, serverSelectionTimeoutMS=5_000) as client:
        data = {"failCommands": [command], **how}
        fail: dict[str, Any] = {"configureFailPoint": "failCommand"}
        reply = await client.admin.command({**fail, "mode": "alwaysOn", "data": data})

        async def wait(times: int) -> object:
            entered = {"timesEntered": reply["count"] + times, "maxTimeMS": 60_000}
            return await client.admin.command({"waitForFailPoint": "failCommand", **entered})

        try:
            yield wait
        finally:
            with suppress(ConnectionFailure):
                await client.admin.command({**fail, "mode": "off"})
