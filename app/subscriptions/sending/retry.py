"""The retry policy of deliveries: pure functions of times and an injected jitter.

The first retry comes within a second, the waits double, stay under 30 s during the first ten minutes and under 15
minutes after that, until the window is over. `Retry-After` is honoured (RFC 9110, 10.2.3) up to LONGEST_RETRY_AFTER:
a far side that says years, or nonsense, is asked again within the hour.
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
    # The endpoint takes no notices now: a wrong credential, a deployment that went wrong. Retried for a shorter while.
    REJECTED = "rejected"
    # The endpoint says that it is gone for good.
    GONE = "gone"
    # This notice is at fault, others are not.
    REFUSED = "refused"


REJECTIONS = frozenset({401, 403, 404})
_GONE = 410
# The longest wait that a far side can ask for, in seconds.
LONGEST_RETRY_AFTER = 3600.0


def judge(status: int | None) -> Verdict:
    """The verdict on an HTTP status; None for no response."""
    if status is not None and 200 <= status < 300:
        return Verdict.DELIVERED
    if status == _GONE:
        return Verdict.GONE
    return Verdict.REJECTED if status in REJECTIONS else Verdict.RETRY


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`window`: seconds from the first attempt to the last; `refusal_window`: from the first that was rejected.

    `jitter` gives numbers in [0, 1).
    """

    window: float
    jitter: Callable[[], float] = random.random
    refusal_window: float = 6 * 3600.0

    # With the time until the next sweep, the first retry is made within a second.
    FIRST = 0.8
    EARLY = 600.0
    EARLY_CAP = 30.0
    LATE_CAP = 900.0

    def end(self, first_at: datetime, rejected_at: datetime | None = None) -> datetime:
        """When the window is over that began with the first attempt, and with the first that was rejected."""
        end = first_at + timedelta(seconds=self.window)
        if rejected_at is None:
            return end
        return min(end, rejected_at + timedelta(seconds=self.refusal_window))

    def next_attempt(
        self,
        attempts: int,
        first_at: datetime,
        now: datetime,
        end: datetime,
        retry_after: float = 0.0,
    ) -> datetime | None:
        """The time at which attempt number `attempts` + 1 is due; None once the window is over, at `end`.

        `attempts` failed so far (at least one), the first at `first_at`. The last attempt falls on the window's end.
        """
        if now >= end:
            return None
        wait = self._wait(attempts, (now - first_at).total_seconds())
        wait = max(wait, min(retry_after, LONGEST_RETRY_AFTER))
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
    """The Retry-After header in seconds, as number or HTTP date; None where absent or unreadable.

    A date is compared with the answer's own `Date` where it has one, else with `now`.
    """
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    if value.isascii() and value.isdigit():
        # So many digits are a number that no float holds.
        return min(float(value), LONGEST_RETRY_AFTER) if len(value) < 10 else LONGEST_RETRY_AFTER
    moment = _http_date(value)
    if moment is None:
        return None
    since = _http_date(headers.get("date", "")) or now
    return min(max(0.0, (moment - since).total_seconds()), LONGEST_RETRY_AFTER)


def _http_date(value: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
