"""Patients of whom nothing is amiss, for a moment: who is looked into at every message of a visit costs as much as it.

It decides what people are asked to look into, never who is told: routing reads all anew for each event.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from app.records.versions import Event

SECONDS = 60.0
_REMEMBERED = 10_000
# A change of these may have put something wrong, or right, with anybody.
_DECIDING = frozenset(
    {
        "CareTeam",
        "Endpoint",
        "Group",
        "Organization",
        "Patient",
        "Practitioner",
        "PractitionerRole",
        "Subscription",
    }
)


class Recently:
    """What this process has found in order; what others change is seen when the time is over."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._in_order: OrderedDict[str, float] = OrderedDict()

    def note(self, patient: str) -> None:
        """The patient (`Patient/p1`) is known here, and so is a practice that can be told."""
        self._in_order[patient] = self._clock() + SECONDS
        self._in_order.move_to_end(patient)
        if len(self._in_order) > _REMEMBERED:
            self._in_order.popitem(last=False)

    def knows(self, patient: str) -> bool:
        return self._in_order.get(patient, 0.0) > self._clock()

    def heard(self, events: Iterable[Event]) -> None:
        """The store's listener: forget everything where what it was found by may have changed."""
        if self._in_order and any(event.type in _DECIDING for event in events):
            self._in_order.clear()
