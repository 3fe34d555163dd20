"""Reads that many ask for at once, made once and together."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from cachetools import FIFOCache

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def moment() -> float:
    """The moment that caches compare with what they were asked."""
    return time.monotonic()


class BatchCache(Generic[K, V]):
    """What `load` finds by key, remembered for `lasting` seconds from when it was asked for.

    Keys that are asked for in one round of the event loop are loaded by one call. `load` may leave out keys: they get
    `default`. What it raises is raised to all who asked and not remembered.
    """

    def __init__(
        self,
        load: Callable[[list[K]], Awaitable[Mapping[K, V]]],
        default: V,
        *,
        lasting: float = math.inf,
        most: int = 10_000,
    ) -> None:
        self._load = load
        self._default = default
        self._lasting = lasting
        # Not TTLCache: that takes ten times as long to find what it has, and every request asks here.
        self._known: FIFOCache[K, tuple[float, asyncio.Future[V]]] = FIFOCache(most)
        self._wanted: dict[K, asyncio.Future[V]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def get(self, key: K) -> V:
        found = self.ask(key)
        if found.done():
            return found.result()
        # Who is cancelled while waiting does not take it away from others.
        return await asyncio.shield(found)

    def ask(self, key: K) -> asyncio.Future[V]:
        """Begin to load it, where it is not known; whoever needs it later finds it on its way."""
        now = time.monotonic()
        try:
            until, found = self._known[key]
        except KeyError:
            pass
        else:
            if until > now:
                return found
        loop = asyncio.get_running_loop()
        if not self._wanted:
            loop.call_soon(self._start)
        future = self._wanted.get(key)
        if future is None:
            future = self._wanted[key] = loop.create_future()
        self._known[key] = (now + self._lasting, future)
        return future

    def forget(self, keys: Iterable[K]) -> None:
        """Load them anew when they are asked for next."""
        for key in keys:
            self._known.pop(key, None)

    def forget_older(self, keys: Iterable[K], than: float) -> bool:
        """Forget what was asked for before a `moment`; returns whether there was any."""
        older = [
            key
            for key in keys
            if (known := self._known.get(key)) is not None and known[0] - self._lasting < than
        ]
        self.forget(older)
        return bool(older)

    def known(self, key: K) -> V | None:
        """What is remembered; None where nothing is, or it is not there yet."""
        found = self._known.get(key)
        if found is None or not found[1].done() or found[1].cancelled() or found[1].exception():
            return None
        return found[1].result()

    def clear(self) -> None:
        """Load all of them anew when they are asked for next."""
        self._known.clear()

    def _start(self) -> None:
        wanted, self._wanted = self._wanted, {}
        task = asyncio.create_task(self._run(wanted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, wanted: dict[K, asyncio.Future[V]]) -> None:
        try:
            found = await self._load(list(wanted))
        except BaseException as error:
            for key, future in wanted.items():
                self._known.pop(key, None)
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
