"""What callers may see of events: of many events and for many callers at once, with one read for each type.

An event is seen like the version that it is of; what was withdrawn from its patient, by itself alone. A caller is not
refused by what was read before the question was asked: an attribution that another process has committed a moment
before the event counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from bson import ObjectId

from app.authorization.access import Access
from app.authorization.judged_rows import current_rows, is_withdrawn
from app.authorization.relations import DocumentRow
from app.search.terms import senders
from app.store.events import Event
from app.store.store import Store


class EventSight:
    """The current rows of what some events are about. Nobody is refused by what was read before `since`."""

    def __init__(self, current: Mapping[str, Mapping[str, DocumentRow]], since: float) -> None:
        self._current = current
        self._since = since

    @classmethod
    async def of(cls, store: Store, events: Iterable[Event], since: float) -> EventSight:
        """`since` is a `batch_cache.moment`, when the events began to be judged."""
        ids: dict[str, set[str]] = {}
        for event in events:
            ids.setdefault(event.type, set()).add(event.resource_id)
        found = await asyncio.gather(*(current_rows(store, *each) for each in ids.items()))
        return cls(dict(zip(ids, found, strict=True)), since)

    async def seen(self, access: Access, events: Iterable[Event]) -> set[ObjectId]:
        """The ids of those events, of the ones that were read, that a caller may see."""
        by_type: dict[str, dict[str, Event]] = {}
        for event in events:
            if access.allows(event.type, "r"):
                by_type.setdefault(event.type, {})[str(event.id)] = event
        shown: set[ObjectId] = set()
        for resource_type, own in by_type.items():
            passed = await self._passed(access, resource_type, own)
            hidden = {key: event for key, event in own.items() if key not in passed}
            if hidden and await self._are_doubtful(access, resource_type, hidden.values()):
                passed |= await self._passed(access, resource_type, hidden)
            shown |= {own[key].id for key in passed}
        return shown

    async def _passed(
        self, access: Access, resource_type: str, events: Mapping[str, Event]
    ) -> set[str]:
        known = self._current[resource_type]
        ids = {each.resource_id for each in events.values()}
        current = {each: known[each] for each in ids if each in known}
        with_history = await access.with_history(resource_type, current)
        rows: list[DocumentRow] = []
        for key, event in events.items():
            row, now = _row(event), current.get(event.resource_id)
            if row is None or now is None:
                continue
            is_open = event.resource_id in with_history
            if not is_open and not is_withdrawn(resource_type, row, now, access.base_url):
                continue
            own = {**row, "_id": event.resource_id}
            own["terms"] = [*row["terms"], *senders(now.get("by", ()))]
            if access.restrictions.match(resource_type, "r", own):
                rows.append({**own, "_id": key, "id": event.resource_id})
        return await access.seen(resource_type, rows)

    async def _are_doubtful(
        self, access: Access, resource_type: str, events: Iterable[Event]
    ) -> bool:
        """Whether something that they were refused by was read before: it is read anew then."""
        patients: set[str] = set()
        for event in events:
            current = self._current[resource_type].get(event.resource_id, {})
            for row in (_row(event), None if current.get("deleted") else current or None):
                if row is not None:
                    about = {**row, "id": event.resource_id}
                    patients |= access.patients_of(resource_type, about)
        return await access.forget_older(patients, self._since)


def _row(event: Event) -> Mapping[str, Any] | None:
    """The search fields of an event's version; of a deletion, those of the version before it."""
    return event.fields if event.fields is not None else event.previous_fields
