"""How long an attempt under way may still take: who shares out the connections may end it early."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Patience:
    """That of the attempt which runs in the current task."""

    def __init__(self) -> None:
        self._limit: asyncio.Timeout | None = None

    @property
    def may_end(self) -> bool:
        """Whether there is an exchange that `end` would end."""
        return self._limit is not None

    def end(self) -> None:
        """End the exchange now, as if its time were over."""
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time())
            self._limit = None

    @contextmanager
    def for_exchange(self, limit: asyncio.Timeout) -> Iterator[None]:
        """An exchange within this time limit, which has begun."""
        self._limit = limit
        try:
            yield
        finally:
            self._limit = None


CURRENT: ContextVar[Patience] = ContextVar("patience")


def current() -> Patience:
    """The patience with what the current task does; one that nobody ends where there is none."""
    return CURRENT.get(None) or Patience()
