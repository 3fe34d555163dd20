"""A circuit, which opens when calls fail: nothing is sent for a while, then one attempt tests whether it answers again.

Each delivery target has one for what it answers and each origin one for whether it can be reached (targets.py). Times
are of the clock that its caller reads.
"""

from __future__ import annotations

from dataclasses import dataclass

FAILURES_TO_OPEN = 5
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0


@dataclass(slots=True)
class Circuit:
    """Closed while `pause` is 0. After `open_until` it is half open: one attempt may be made."""

    failures: int = 0
    pause: float = 0.0
    open_until: float = 0.0

    @property
    def is_closed(self) -> bool:
        return not self.pause

    def is_open(self, now: float) -> bool:
        """Whether no attempt may be made now."""
        return bool(self.pause) and now < self.open_until

    def answered(self) -> bool:
        """Note that an attempt was answered; returns whether that closes the circuit."""
        closes = bool(self.pause)
        self.failures, self.pause, self.open_until = 0, 0.0, 0.0
        return closes

    def failed(self, now: float, wait: float | None = None) -> None:
        """Note that an attempt failed as the next would.

        `wait`: the seconds for which the far side refuses calls; the circuit opens at once.
        """
        self.failures += 1
        if self.failures < FAILURES_TO_OPEN and wait is None:
            return
        if now >= self.open_until:  # not for attempts that were under way when it opened
            self.pause = min(max(FIRST_PAUSE, self.pause * 2, wait or 0.0), LONGEST_PAUSE)
            self.open_until = now + self.pause
