"""Dead letters: rows of work that were given up after their last try (app/runtime/leases.py).

A queue keeps them among its rows, where they are listed and can be tried again. It notes there for which of them a
person was asked (app/automation/dead_letter_tasks.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One row of work that was given up: its queue and id, what was to be done, and the type of the error.

    `focus` is the resource that it is about, where the row says so.
    """

    queue: str
    id: str
    what: str
    error: str
    at: datetime | None = None
    focus: str | None = None

    @property
    def key(self) -> str:
        return f"{self.queue}|{self.id}"


class Queue(Protocol):
    """Rows of work, as far as some of them are dead letters. `name` stands in lists and Tasks."""

    name: str

    async def dead(self, limit: int, *, unasked: bool = False) -> list[DeadLetter]:
        """The dead letters; with `unasked` those for which no person was asked."""

    async def asked(self, letter: DeadLetter) -> None:
        """Note that a person was asked."""

    async def is_done(self, row_id: str) -> bool:
        """Whether the row is no dead letter any more, and does not wait for another try after being one."""

    async def run_again(self, row_id: str | None) -> int:
        """Let one be tried anew, or all; returns how many were dead letters."""
