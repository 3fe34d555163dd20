"""What every channel is given and gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from app.subscriptions.retry import Verdict, judge

# How much of an answer is kept in the ledger.
ANSWER_LIMIT = 2048


@dataclass(frozen=True, slots=True)
class Notice:
    """One message ready to leave. `id` stays the same over all attempts; an empty body is sent as such."""

    id: str
    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    timeout: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt. `status` is None where nothing answered; `reason` then says why, in a word.

    `answer` is the beginning of the body; `retry_after` is in seconds.
    """

    status: int | None
    reason: str = ""
    answer: str = ""
    retry_after: float | None = None
    forbidden: bool = False

    @property
    def verdict(self) -> Verdict:
        return Verdict.STOP if self.forbidden else judge(self.status)


class Channel(Protocol):
    """A way out. `send` never raises for what the far side does; it raises only for defects of our own."""

    async def send(self, notice: Notice) -> Outcome: ...

    async def close(self) -> None: ...
