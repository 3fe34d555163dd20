"""The limits of an endpoint: concurrent attempts, rows in hand, and a circuit that opens when it fails.

An endpoint begins with a few concurrent attempts, gains one with each that is answered, and keeps half when one is not.
After some failures in a row its circuit opens: nothing is sent for a while, then one attempt tests whether it answers
again. So one that hangs holds a handful of connections, not all of them, and then none.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from app.store.events import Event
from app.subscriptions.ledger.ledger import Delivery

FIRST_ATTEMPTS, MOST_ATTEMPTS = 4, 32
# Rows in hand, leased and waiting.
_MOST_IN_HAND = 8192
MOST_IN_HAND_OF_ALL = 32_768
FAILURES_TO_OPEN = 5
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
_REMEMBERED = 10_000


@dataclass(slots=True, eq=False)
class EndpointState:
    """One destination. `held`: the Subscriptions whose rows wait for the circuit; times are of EndpointStates.clock."""

    waiting: deque[tuple[Delivery, Event | None]] = field(default_factory=deque)
    under_way: int = 0
    allowed: int = FIRST_ATTEMPTS
    failures: int = 0
    pause: float = 0.0
    open_until: float = 0.0
    held: set[str] = field(default_factory=set)

    @property
    def in_hand(self) -> int:
        return self.under_way + len(self.waiting)

    @property
    def is_idle(self) -> bool:
        return not (self.in_hand or self.held or self.failures)

    def room(self, now: float) -> int:
        """The number of rows that may be taken in hand besides those there."""
        if self.pause:
            return 1 - self.in_hand if now >= self.open_until else 0
        return _MOST_IN_HAND - self.in_hand

    def answered(self) -> bool:
        """Note that an attempt was answered; returns whether that closes the circuit."""
        closes = bool(self.pause)
        self.failures, self.pause = 0, 0.0
        self.allowed = min(self.allowed + 1, MOST_ATTEMPTS)
        return closes

    def failed(self, now: float, wait: float | None = None) -> bool:
        """Note that an attempt failed as the next would; returns whether the circuit is open now.

        `wait`: the seconds for which the endpoint refuses calls; its circuit opens at once.
        """
        self.failures += 1
        self.allowed = max(1, self.allowed // 2)
        if self.failures < FAILURES_TO_OPEN and wait is None:
            return False
        if now >= self.open_until:  # not for attempts that were under way when it opened
            self.pause = min(max(FIRST_PAUSE, self.pause * 2, wait or 0.0), LONGEST_PAUSE)
            self.open_until = now + self.pause
        return True

    def wait(self, now: float) -> float:
        """Seconds until rows may be taken again: until the pause ends, or another pause for the attempt under way."""
        return self.open_until - now if now < self.open_until else self.pause


class EndpointStates:
    """All destinations that rows are in hand for, or that are failing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._endpoints: dict[Hashable, EndpointState] = {}

    def at(self, key: Hashable) -> EndpointState:
        endpoint = self._endpoints.get(key)
        if endpoint is None:
            if len(self._endpoints) >= _REMEMBERED:
                self._endpoints = {k: e for k, e in self._endpoints.items() if not e.is_idle}
            endpoint = self._endpoints[key] = EndpointState()
        return endpoint


def blames_endpoint(status: int | None) -> bool:
    """Whether a status (None: no response) means that the next notice would fail too, whatever its content."""
    return status is None or status >= 500 or status in (408, 425, 429)
