"""Whether nothing can be judged any more: event after event is set aside for everybody, of several records."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from app.subscriptions.ledger.outbox import Planned
from app.subscriptions.ledger.unmatched import BEHIND
from app.subscriptions.matching.judges import ALL

# One record that cannot be judged says nothing about others.
_SEVERAL = 3


class Standstill:
    """What came of the last events that this process tried to judge, replayed ones among them."""

    def __init__(self) -> None:
        self._since: datetime | None = None
        self._records: set[tuple[str, str]] = set()

    def note(self, plans: Iterable[Planned], now: datetime) -> None:
        """Take note of events that were judged, or could not be."""
        for plan in plans:
            reasons = {failure.reason for failure in plan.failures if failure.judge == ALL}
            if not reasons:
                self._since = None
                self._records.clear()
            elif reasons != {BEHIND}:
                self._since = self._since or now
                if len(self._records) < _SEVERAL:
                    self._records.add((plan.event.type, plan.event.resource_id))

    @property
    def since(self) -> datetime | None:
        """When it began; None while events are judged."""
        return self._since if len(self._records) >= _SEVERAL else None
