"""The Subscriptions of this moment: our own commits are known at once, those of other processes by polling."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from app import fhir_json
from app.errors import FhirError
from app.fhir_json import Resource
from app.mongo import Document, Mongo
from app.settings import Settings
from app.store import Event, Store
from app.subscriptions import registration, topics
from app.subscriptions.criteria import CriteriaIndex
from app.subscriptions.registration import Registration
from app.subscriptions.topics import Coding

log = logging.getLogger(__name__)

# Events are looked at again for this long: a commit may become visible later than its time says.
_OVERLAP = timedelta(seconds=60)
_FIELDS = {"v": 1, "text": 1, "deleted": 1, "private": 1}

Standing = Literal["deliver", "hold", "suppress", "gone"]
_STANDING: dict[str, Standing] = {
    "active": "deliver",
    "requested": "hold",
    "error": "suppress",
    "off": "gone",
}


@dataclass(frozen=True, slots=True)
class Match:
    """A Subscription that an event concerns, and the coding of what fired."""

    registration: Registration
    trigger: Coding | None


class Registry:
    """Registrations by id, and the index over those that count events: requested, active and in error."""

    def __init__(self, settings: Settings, mongo: Mongo, store: Store) -> None:
        self._settings = settings
        self._mongo = mongo
        self._store = store
        self.catalogue = topics.load(settings)
        self._index = CriteriaIndex()
        self._registrations: dict[str, Registration] = {}
        self._versions: dict[str, int] = {}
        self._requested: set[str] = set()
        self._ending: set[str] = set()
        self._polled_at: datetime | None = None

    def __len__(self) -> int:
        return len(self._registrations)

    async def load(self) -> None:
        """Read all Subscriptions."""
        self._polled_at = self._mongo.now()
        for document in await self._store.find("Subscription", {}, projection=_FIELDS):
            self._put_document(document)

    async def refresh(self) -> list[Registration]:
        """Read what changed since the last look, in whatever process; returns what is new to this one."""
        since = (self._polled_at or self._mongo.now()) - _OVERLAP
        self._polled_at = self._mongo.now()
        events = self._mongo.collection("events").find(
            {"type": "Subscription", "at": {"$gte": since}}, {"_id": 0, "id": 1, "version": 1}
        )
        behind = [
            row["id"]
            for row in await events.to_list(None)
            if row["version"] > self._versions.get(row["id"], 0)
        ]
        return await self._read(behind) if behind else []

    async def _read(self, ids: list[str]) -> list[Registration]:
        found = await self._store.find("Subscription", {"_id": {"$in": ids}}, projection=_FIELDS)
        return [new for document in found if (new := self._put_document(document)) is not None]

    async def with_private(self, subscription: str) -> tuple[Registration, Document] | None:
        """The newest version together with what is kept beside it; None where it is gone."""
        found = await self._store.find("Subscription", {"_id": subscription}, projection=_FIELDS)
        if not found:
            return None
        self._put_document(found[0])
        current = self.get(subscription)
        return None if current is None else (current, found[0].get("private", {}))

    def _put_document(self, document: Document) -> Registration | None:
        resource = None if "deleted" in document else fhir_json.decode_stored(document["text"])
        return self.put(document["_id"], document["v"], resource)

    def put(
        self, subscription: str, version: int, resource: Resource | None
    ) -> Registration | None:
        """Take over a version, None for a deletion; returns the registration where it is new and still wanted."""
        if version <= self._versions.get(subscription, 0):
            return None
        self._versions[subscription] = version
        self._index.remove(subscription)
        self._registrations.pop(subscription, None)
        self._requested.discard(subscription)
        self._ending.discard(subscription)
        if resource is None:
            return None
        try:
            new = registration.read(resource, self.catalogue, self._settings)
        except FhirError:
            # It was fine when it was stored: a topic or channel has left the server since.
            log.warning(
                "subscription no longer supported",
                extra={"action": "register", "id": subscription, "version_id": version},
            )
            return None
        self._registrations[subscription] = new
        if new.status != "off":
            self._index.add(subscription, new.criteria)
            if new.end is not None:
                self._ending.add(subscription)
        if new.status == "requested":
            self._requested.add(subscription)
        return new

    def get(self, subscription: str) -> Registration | None:
        return self._registrations.get(subscription)

    def standing(self, subscription: str) -> Standing:
        """What is to be done with a Subscription's notices now."""
        found = self._registrations.get(subscription)
        if found is None or self._is_over(found):
            return "gone"
        return _STANDING[found.status]

    def requested(self) -> list[Registration]:
        """Those that wait for the server to prove their endpoint."""
        waiting = (self._registrations[subscription] for subscription in self._requested)
        return [found for found in waiting if not self._is_over(found)]

    def over(self) -> list[Registration]:
        """Those whose end has come and that are not off yet."""
        ending = (self._registrations[subscription] for subscription in self._ending)
        return [found for found in ending if self._is_over(found)]

    def match(self, event: Event) -> list[Match]:
        """The Subscriptions that an event concerns, each once. Deletions concern none."""
        if event.fields is None or event.type == "Subscription":
            return []
        return [match for match in self._matches(event) if not self._is_over(match.registration)]

    def _matches(self, event: Event) -> Iterator[Match]:
        fields: Document = event.fields or {}
        for topic in self.catalogue.watching(event.type):
            trigger = topic.fired(event)
            if trigger is not None:
                for subscription in self._index.matching(topic.url, fields, trigger.coding):
                    yield Match(self._registrations[subscription], trigger.coding)
        for subscription in self._index.matching(event.type, fields, None):
            yield Match(self._registrations[subscription], None)

    def _is_over(self, candidate: Registration) -> bool:
        return candidate.end is not None and candidate.end <= self._mongo.now()
