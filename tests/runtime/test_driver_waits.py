"""Requests that are given up while no server is there leave a client that works."""

from __future__ import annotations

import asyncio

import pytest
from pymongo import lock

from app.runtime.mongo import Mongo
from tests.conftest import make_settings

pytestmark = pytest.mark.mongo


async def test_a_wait_for_a_server_that_is_given_up_gives_the_drivers_lock_back(
    mongod: str,
) -> None:
    """As the driver waits while it knows no server: given up just as the wait ends, and another lets the lock go."""
    await (await Mongo.open(make_settings(mongod))).close()
    held = lock._async_create_lock()
    condition = lock._async_create_condition(held)
    is_waiting = asyncio.Event()

    async def wait_for_a_server() -> None:
        async with held:
            is_waiting.set()
            await lock._async_cond_wait(condition, 0.01)

    waiting = asyncio.create_task(wait_for_a_server())
    await is_waiting.wait()
    async with held:
        await asyncio.sleep(0.1)  # its time is over meanwhile, and it wants the lock back
        waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(5), held:
        pass
