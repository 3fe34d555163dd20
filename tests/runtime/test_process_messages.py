"""The mailbox between processes: how it is closed. What it carries, the websocket channel's tests say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.runtime.mongo import Document, Mongo
from app.runtime.process_messages import ProcessMessages

pytestmark = pytest.mark.mongo


async def nothing(question: Document) -> Document:
    return {}


@pytest.mark.slow
async def test_it_is_closed_also_where_a_cancellation_got_lost(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Python 3.11 `asyncio.wait_for` swallows one that comes just as what it waits for ends."""
    reading = asyncio.Event()

    @contextlib.asynccontextmanager
    async def watch(*_: Any, **__: Any) -> AsyncIterator[Any]:
        reading.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        yield await asyncio.Event().wait()

    monkeypatch.setattr(mongo, "watch", watch)
    mailbox = ProcessMessages(mongo, "me", nothing)
    await mailbox.open()
    await reading.wait()
    async with asyncio.timeout(10):
        await mailbox.close()
