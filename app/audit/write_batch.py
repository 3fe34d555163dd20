"""A shared write for entries recorded at the same time: an insert costs more than a read does, and reads are many."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType

from app.runtime.group_commit import settle
from app.runtime.mongo import Document

# How long after a write the next one begins, at the earliest, while fewer than half of the open requests wait for one.
# While one half is written the other is served: to wait for all would leave the server idle meanwhile.
APART_SECONDS = 0.01
# No more is added to a write that has so many entries.
ENOUGH = 256

Waiting = tuple[Sequence[Document], "asyncio.Future[None]"]


class WriteBatch:
    """`write(entries)` keeps them all or none; one write is under way at a time.

    As a context manager, which any number may enter at once, it counts the requests that may still call `keep`.
    """

    def __init__(self, write: Callable[[Sequence[Document]], Awaitable[None]]) -> None:
        self._write = write
        self._open = 0
        self._waiting: list[Waiting] = []
        self._writing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._not_before = 0.0

    def __enter__(self) -> None:
        self._open += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open -= 1

    async def keep(self, entries: Sequence[Document]) -> None:
        """Return once the entries are written. Raises what the write raised."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((entries, future))
        self._consider()
        await future

    def _consider(self) -> None:
        """Begin a write now, or set a timer for it; a single open request's entries are written at once."""
        if self._writing is not None or not self._waiting:
            return
        if 2 * len(self._waiting) >= self._open:
            self._begin()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            if loop.time() >= self._not_before:
                self._begin()
            else:
                self._timer = loop.call_at(self._not_before, self._begin)

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        self._not_before = loop.time() + APART_SECONDS
        self._writing = loop.create_task(self._write_those(self._take()))

    def _take(self) -> list[Waiting]:
        batch: list[Waiting] = []
        size = 0
        for number, (entries, future) in enumerate(self._waiting, 1):
            if not future.done():  # otherwise its caller has gone away
                batch.append((entries, future))
                size += len(entries)
                if size >= ENOUGH:
                    del self._waiting[:number]
                    return batch
        self._waiting.clear()
        return batch

    async def _write_those(self, batch: Sequence[Waiting]) -> None:
        try:
            if batch:
                await self._write([entry for entries, _ in batch for entry in entries])
        except Exception as error:
            for _, future in batch:
                settle(future, error)
        else:
            for _, future in batch:
                settle(future, None)
        finally:
            self._writing = None
            self._consider()
