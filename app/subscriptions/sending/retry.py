"""The retry policy of deliveries: pure functions of times and an injected jitter.

The first retry comes within a second, the waits double, stay under 30 s during the first ten minutes and under 15
minutes after that, until the window is over. `Retry-After` is honoured (RFC 9110, 10.2.3).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import Enum


class Verdict(Enum):
    """The meaning of an attempt's result."""

    DELIVERED = "delivered"
    RETRY = "retry"
    STOP = "stop"
    REFUSED = "refused"


# The receiver refuses for good: no retry can succeed.
_HOPELESS_STATUSES = frozenset({401, 403, 404, 410})


def judge(status: int | None) -> Verdict:
    """The verdict on an HTTP status; None for no response."""
    if status is not None and 200 <= status < 300:
        return Verdict.DELIVERED
    if status in _HOPELESS_STATUSES:
        return Verdict.STOP
    return Verdict.RETRY


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`window`: seconds from the first attempt to the last; `jitter` gives numbers in [0, 1)."""

    window: float
    jitter: Callable[[], float] = random.random

    # With the time until the next sweep, the first retry is made within a second.
    FIRST = 0.8
    EARLY = 600.0
    EARLY_CAP = 30.0
    LATE_CAP = 900.0

    def next_attempt(
        self, attempts: int, first_at: datetime, now: datetime, retry_after: float | None = None
    ) -> datetime | None:
        """The time at which attempt number `attempts` + 1 is due; None once the window is over.

        `attempts` failed so far (at least one), the first at `first_at`. The last attempt falls on the window's end.
        """
        end = first_at + timedelta(seconds=self.window)
        if now >= end:
            return None
        wait = self._wait(attempts, (now - first_at).total_seconds())
        if retry_after is not None and retry_after > wait:
            if now + timedelta(seconds=retry_after) > end:
                return None
            wait = retry_after
        return min(now + timedelta(seconds=wait), end)

    def _wait(self, attempts: int, elapsed: float) -> float:
        """Seconds; between half and the whole of the nominal wait, so that many failures do not return as one wave."""
        if elapsed < self.EARLY:
            nominal = min(self.EARLY_CAP, self.FIRST * 2.0 ** min(attempts - 1, 16))
        else:
            # Double again from the early cap, counted by time: one step for each early phase gone by.
            steps = min(int(elapsed // self.EARLY), 16)
            nominal = min(self.LATE_CAP, self.EARLY_CAP * 2.0**steps)
        return nominal * (0.5 + self.jitter() / 2)


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    """The Retry-After header in seconds from `now`, as number or HTTP date; None where absent or unreadable."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())
