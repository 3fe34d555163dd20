"""Background tasks beside the worker's loops, and the repetition of a loop's step after a failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any

from pymongo.errors import PyMongoError

from app.errors import Unavailable
from app.runtime import background_tasks
from app.runtime.loops import Loop
from app.subscriptions.ledger.outbox import ContentionError

log = logging.getLogger(__name__)

_PAUSE_AFTER_FAILURE = 0.5


class BackgroundTasks:
    """Tasks that no caller waits for. One that fails is logged; the next sweep repeats its work."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __bool__(self) -> bool:
        """Whether some are under way."""
        return bool(self._tasks)

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        # In a context of its own: the work that follows from a request is no part of the request.
        task = asyncio.create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def wait(self) -> None:
        """Return once the tasks that are under way now have ended."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def end(self) -> None:
        """Cancel the tasks under way."""
        await background_tasks.end(self._tasks)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            warn("chore", error)


async def retry_loop(loop: Loop, step: Callable[[], Awaitable[object]]) -> None:
    """Run a loop's step; a failure is logged and followed by a pause, the loop goes on."""
    try:
        with loop.step():
            await step()
    except (PyMongoError, ContentionError, Unavailable) as error:
        warn(loop.name, error)
        await asyncio.sleep(_PAUSE_AFTER_FAILURE)
    except Exception as error:
        told = {"action": loop.name, "error": type(error).__name__}
        log.exception("worker step failed", extra=told)
        await asyncio.sleep(_PAUSE_AFTER_FAILURE)


def warn(action: str, error: BaseException) -> None:
    """Log a failure after which the work is repeated elsewhere: the error's type, never its text."""
    log.warning("worker", extra={"action": action, "error": type(error).__name__})
