"""Reservations: what a write has lost to faster writers for long it reserves, and they wait for it.

A transaction of thousands of entries is judged for seconds. Where any other process writes one of its resources more
often than that, it would never commit. Each process says its own reservations with its heartbeat
(app/runtime/cluster.py) and knows the others' half a second later. They only make others wait, for a while: that
nothing is overwritten rests on the versions that each commit compares.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any

# For how long a write waits for others' reservations, in seconds.
_LONGEST_WAIT = 10.0
# How many keys a process reserves at a time: they are in its row, which every process reads twice a second.
MOST_KEYS = 1_000


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a write reserves, since when, and the name of its process. The earlier one goes first."""

    since: datetime
    owner: str
    keys: frozenset[str]

    @property
    def rank(self) -> tuple[datetime, str]:
        return self.since, self.owner


# That of the write that this task is about.
_ours: ContextVar[Reservation | None] = ContextVar("reservation", default=None)


class Reservations:
    """Those of this process and, as of the last heartbeat, of the others."""

    def __init__(self) -> None:
        self._own: list[Reservation] = []
        self._others: list[Reservation] = []
        self._changed = asyncio.Event()

    def within_limit(self, keys: Collection[str]) -> frozenset[str]:
        """As many of the keys as there is room for; the write goes on to compete for the others."""
        room = MOST_KEYS - sum(len(each.keys) for each in self._own)
        return frozenset(heapq.nsmallest(max(room, 0), keys))

    @contextmanager
    def holding(self, reservation: Reservation) -> Iterator[None]:
        """Let other writes of these keys wait for those of this task."""
        self._own.append(reservation)
        token = _ours.set(reservation)
        try:
            yield
        finally:
            _ours.reset(token)
            self._own.remove(reservation)
            self._wake()

    def rows(self) -> list[dict[str, Any]]:
        """This process's reservations for its row."""
        return [{"since": each.since, "keys": sorted(each.keys)} for each in self._own]

    def read(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take note of what the rows of other processes say."""
        self._others = [
            Reservation(each["since"], row["_id"], frozenset(each["keys"]))
            for row in rows
            for each in row.get("reserved", ())
        ]
        self._wake()

    async def give_way(self, keys: Collection[str]) -> None:
        """Return once nobody else comes first with one of these keys, or after `_LONGEST_WAIT` seconds."""
        if self._own or self._others:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LONGEST_WAIT):
                    while self._comes_later(keys):
                        await self._changed.wait()

    def _comes_later(self, keys: Collection[str]) -> bool:
        ours = _ours.get()
        return any(
            (ours is None or each.rank < ours.rank) and not each.keys.isdisjoint(keys)
            for each in (*self._own, *self._others)
        )

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
