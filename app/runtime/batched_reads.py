"""Reads by key that are asked for at the same moment, made by one query.

A query costs the driver as much for one document as for twenty. What is asked for in one round of the event loop goes
together: an idle server reads at once, a busy one reads more at a time. Nothing is remembered: each read begins after
it was asked for. app/runtime/batch_cache.py remembers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextvars import Context
from typing import Generic, TypeVar

from app.runtime.mongo import max_time_ms

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BatchedReads(Generic[K, V]):
    """Reads of one kind. `load` finds the values of several keys; those that it leaves out get `default`."""

    def __init__(self, load: Callable[[list[K]], Awaitable[Mapping[K, V]]], default: V) -> None:
        self._load = load
        self._default = default
        self._wanted: dict[K, asyncio.Future[V]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def get(self, key: K) -> V:
        """The value of a key. Raises what `load` raises."""
        # Who is cancelled while waiting does not take it away from others.
        return await asyncio.shield(self.ask(key))

    def ask(self, key: K) -> asyncio.Future[V]:
        """The value of a key as soon as it is read; whoever waits for it shields it. It raises what `load` raises."""
        loop = asyncio.get_running_loop()
        if not self._wanted:
            loop.call_soon(self._start, context=_shared_context())
        future = self._wanted.get(key)
        if future is None:
            future = self._wanted[key] = loop.create_future()
        return future

    def _start(self) -> None:
        wanted, self._wanted = self._wanted, {}
        task = asyncio.create_task(self._run(wanted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, wanted: dict[K, asyncio.Future[V]]) -> None:
        try:
            found = await self._load(list(wanted))
        except BaseException as error:
            for future in wanted.values():
                if isinstance(error, Exception):
                    future.set_exception(error)
                    future.exception()  # told, even where nobody waits any more
                else:
                    future.cancel()
            if not isinstance(error, Exception):
                raise
            return
        for key, future in wanted.items():
            future.set_result(found.get(key, self._default))


def _shared_context() -> Context:
    """A context of its own: what several are answered, and may be remembered, must not depend on who asked first.

    That one may read at a snapshot, be one large request that gives way to others, or be audited. Of all that only its
    time limit stays, which is every request's: a query that takes too long is ended by the database for all of them.
    """
    context = Context()
    limit = max_time_ms.get()
    if limit is not None:
        context.run(max_time_ms.set, limit)
    return context
