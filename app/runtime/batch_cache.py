"""What was read together (app/runtime/batched_reads.py), remembered for a while."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from cachetools import FIFOCache

from app.runtime.batched_reads import BatchedReads

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
        self._reads = BatchedReads(self._load_or_forget, default)
        self._lasting = lasting
        # Not TTLCache: that takes ten times as long to find what it has, and every request asks here.
        self._known: FIFOCache[K, tuple[float, asyncio.Future[V]]] = FIFOCache(most)

    async def get(self, key: K) -> V:
        found = self.ask(key)
        if found.done():
            return found.result()
        # Who is cancelled while waiting does not take it away from others.
        return await asyncio.shield(found)

    async def get_all(self, keys: Iterable[K]) -> dict[K, V]:
        """Those of several keys, loaded together."""
        asked = [(key, self.ask(key)) for key in dict.fromkeys(keys)]
        return {
            key: found.result() if found.done() else await asyncio.shield(found)
            for key, found in asked
        }

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
        future = self._reads.ask(key)
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

    async def _load_or_forget(self, keys: list[K]) -> Mapping[K, V]:
        try:
            return await self._load(keys)
        except BaseException:
            self.forget(keys)
            raise
