"""Ending background tasks for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

_PATIENCE = 1.0


async def end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks and return when all of them have ended, whatever they ended with.

    A cancellation that got lost is repeated: in Python 3.11 `asyncio.wait_for` swallows one that comes just as what it
    waits for ends, and the MongoDB driver waits so for its servers.
    """
    waiting = set(tasks)
    while waiting:
        for task in waiting:
            task.cancel()
        ended, waiting = await asyncio.wait(waiting, timeout=_PATIENCE)
        for task in ended:
            if not task.cancelled():
                task.exception()  # looked at, so that nothing complains of it later
