"""How PyMongo's async client waits for a server, where Python's own way would lock it for good.

In Python 3.11 `asyncio.wait_for` waits in a task of its own. PyMongo waits so for a condition, twice a second while no
server is there; the task takes the condition's lock again as it ends. Where the caller is cancelled at that moment it
goes on without the task, and the lock is never given back: every later command of the client then waits for ever, also
when the database is there again. From Python 3.12 on `wait_for` waits in its caller's task, as this does.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from typing import TypeVar

from pymongo import lock

T = TypeVar("T")


async def wait_for(awaitable: Awaitable[T], timeout: float | None) -> T:  # noqa: ASYNC109
    """As `asyncio.wait_for` from Python 3.12 on."""
    async with asyncio.timeout(timeout):
        return await awaitable


def mend() -> None:
    """Let the driver wait in the caller's task. Call it before a client is made."""
    if sys.version_info < (3, 12):
        lock.wait_for = wait_for  # type: ignore[attr-defined, assignment]
