"""Answers that cost the database something, kept for a while: whoever watches a server asks often."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

# An answer is kept for so many times as long as it took: asking takes a fiftieth of the time at most.
_REST = 50
_PATIENCE = 2.0


class Kept(Generic[T]):
    """The answer to a question; those who ask at once share one."""

    def __init__(self, ask: Callable[[], Awaitable[T]], *, seconds: float) -> None:
        """`seconds`: how long an answer is kept at least."""
        self._ask = ask
        self._seconds = seconds
        self._until = 0.0
        self._asking = asyncio.Lock()
        self._answer: T | None = None

    async def get(self) -> T | None:
        """The answer; None where the database gave none in time."""
        async with self._asking:
            begun = time.monotonic()
            if begun >= self._until:
                rest = self._seconds
                try:
                    async with asyncio.timeout(_PATIENCE):
                        self._answer = await self._ask()
                    rest = max(rest, (time.monotonic() - begun) * _REST)
                except Exception:  # whatever it was, there is no answer, and soon there may be one
                    self._answer = None
                self._until = time.monotonic() + rest
            return self._answer
