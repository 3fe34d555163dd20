"""A memory of the events that this process has recorded a moment ago, for Subscriptions that it learns of late.

A Subscription that another process has written counts from its commit on. What this process recorded between that and
the moment it learnt of the Subscription is matched for it then.
"""

from __future__ import annotations

from collections import deque
from datetime import datetime
from typing import Any, NamedTuple

from app.runtime.mongo import Document
from app.store.events import Event

_REMEMBERED = 20_000


class _Recorded(NamedTuple):
    at: datetime
    id: Any
    type: str
    resource_id: str
    version: int
    method: str
    topic: str | None
    trigger: Any
    context: tuple[str, ...]
    only_for: tuple[str, ...]

    def row(self) -> Document:
        """As a row of `events`."""
        return {
            "_id": self.id,
            "type": self.type,
            "id": self.resource_id,
            "version": self.version,
            "method": self.method,
            "at": self.at,
            "topic": self.topic,
            "trigger": self.trigger,
            "context": self.context,
            "only_for": self.only_for,
        }


class RecordedEvents:
    """The newest events that were recorded here."""

    def __init__(self) -> None:
        self._events: deque[_Recorded] = deque(maxlen=_REMEMBERED)
        # Whatever was recorded here before this was forgotten.
        self._forgotten_until: datetime | None = None

    def add(self, event: Event) -> None:
        """Remember an event; Subscriptions are told of no Subscription."""
        if event.type == "Subscription":
            return
        if len(self._events) == _REMEMBERED:
            at = self._events[0].at
            self._forgotten_until = max(at, self._forgotten_until or at)
        self._events.append(
            _Recorded(
                event.at,
                event.id,
                event.type,
                event.resource_id,
                event.version,
                event.method,
                event.topic,
                event.trigger,
                event.context,
                event.only_for,
            )
        )

    def since(self, at: datetime) -> list[Document] | None:
        """The events that were committed since, as rows of `events`; None where some may be forgotten."""
        if self._forgotten_until is not None and self._forgotten_until >= at:
            return None
        return [each.row() for each in self._events if each.at >= at]
