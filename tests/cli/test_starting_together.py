"""Servers that are started at the same moment on an empty database all come up, and serve one and the same."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from app.runtime.mongo import Mongo
from tests.conftest import make_settings, running

pytestmark = [pytest.mark.mongo, pytest.mark.slow]
SERVERS = 4


@pytest.mark.parametrize("auth", ["off", "smart"])
async def test_servers_that_start_at_once_on_an_empty_database_all_serve(
    mongod: str, auth: str
) -> None:
    for _ in range(3):
        settings = make_settings(mongod, auth=auth)
        async with AsyncExitStack() as stack:
            started = await asyncio.gather(
                *(stack.enter_async_context(running(settings)) for _ in range(SERVERS))
            )
            for server, client in started:
                assert (await client.get("http://localhost/readyz")).status_code == 200
                assert server.worker.running


async def test_a_collection_is_made_once_by_whoever_is_first(mongo: Mongo) -> None:
    await asyncio.gather(*(mongo.create_collection("made") for _ in range(5)))
    await mongo.create_collection("made")
    assert "made" in await mongo.db.list_collection_names()
