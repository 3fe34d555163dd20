"""How much one page holds, however few resources that is: it ends early and links to the rest.

A page is joined and sent as one text, so a thousand resources of the largest size would take all memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any

PAGE_BYTES = 16 * 1024 * 1024


class Measure:
    """Measures what is read for a page, one after another."""

    def __init__(self) -> None:
        self._total = self._count = 0

    def passes(self, size: int) -> bool:
        """Count a text; returns whether it does not fit any more."""
        self._total += size
        self._count += 1
        return self._count > 1 and self._total > PAGE_BYTES


class Room:
    """What is left of as many bytes as a page has; the first text always fits."""

    def __init__(self) -> None:
        self._taken = 0
        self.is_full = False

    def take(self, size: int) -> bool:
        """Count a text that fits; returns whether it does."""
        if self._taken and self._taken + size > PAGE_BYTES:
            self.is_full = True
            return False
        self._taken += size
        return True


def fitting(sizes: Iterable[int]) -> int:
    """How many texts of these sizes, in order, make a page; the first always does."""
    measure = Measure()
    return sum(1 for _ in takewhile(lambda size: not measure.passes(size), sizes))


def is_full(sizes: Iterable[int]) -> bool:
    """Whether there are more texts of these sizes than fit on a page."""
    known = list(sizes)
    return fitting(known) < len(known)


def sizes(rows: Iterable[Mapping[str, Any]]) -> Iterable[int]:
    """The sizes of the texts in stored documents."""
    return (len(row.get("text", "")) for row in rows)
