"""The data that trigger functions read about a change: earlier notices, and the facility of a stay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cachetools import LRUCache

from app.attribution.facility import facility_types
from app.attribution.whereabouts import Facility, facility_of, without_places_left
from app.fhir.json import Resource
from app.records.reader import Reader
from app.runtime.mongo import Document, Mongo
from app.settings import Settings
from app.subscriptions.ledger.ledger import delivery_rows
from app.subscriptions.topics.topics import ResourceChange

_REMEMBERED = 2_000


class TriggerContext:
    """The `topics.Around` of a process, for all its events."""

    def __init__(self, settings: Settings, mongo: Mongo, store: Reader) -> None:
        self._settings = settings
        self._store = store
        self._deliveries = delivery_rows(mongo)
        self._base = settings.topic_base.rstrip("/") + "/"
        # Matches of the last moment may not be in the ledger yet: the events of a batch are recorded together.
        self._matched: LRUCache[tuple[str, str], set[tuple[int, str]]] = LRUCache(_REMEMBERED)

    def note(self, change: ResourceChange, topics: Iterable[str]) -> None:
        """Remember that notices of a change are about to be recorded under these topics."""
        own = {(change.version, url) for url in topics if url.startswith(self._base)}
        if own:
            self._matched.setdefault((change.type, change.resource_id), set()).update(own)

    async def told(self, change: ResourceChange) -> Sequence[str]:
        """As `Around.told`: queued notices count, suppressed ones do not."""
        rows = self._deliveries.find(
            {
                "focus.id": change.resource_id,
                "focus.type": change.type,
                "topic": {"$ne": None},
                "state": {"$ne": "suppressed"},
            },
            {"_id": 0, "topic": 1, "focus.version": 1},
        )
        found = {(row["focus"]["version"], row["topic"]) for row in await rows.to_list(None)}
        found |= self._matched.get((change.type, change.resource_id), set())
        return [
            url.removeprefix(self._base)
            for version, url in sorted(found)
            if version < change.version and url.startswith(self._base)
        ]

    async def facility(self, stay: Resource) -> Facility:
        return await facility_of(self._store, stay, self._settings.base_url)

    async def is_nursing_facility(self, stay: Resource, fields: Document) -> bool:
        current = without_places_left(stay, fields)
        return "snf" in await facility_types(self._store, current, self._settings)
