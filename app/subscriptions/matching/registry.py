"""The registry of current Subscriptions: own commits are known at once, those of other processes within a second."""

from __future__ import annotations

import asyncio
import gc
import heapq
import logging
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, get_args

from app.attribution.derived import Derived
from app.errors import FhirError
from app.fhir import json as fhir_json
from app.fhir.json import Resource
from app.runtime.mongo import Document, Mongo
from app.search.custom import Custom
from app.search.terms import EVERY
from app.settings import Settings
from app.store.events import Event, event_rows
from app.store.store import Store
from app.subscriptions.matching import criteria_check, registration, registration_cache
from app.subscriptions.matching.criteria import CLASSIC, Criteria
from app.subscriptions.matching.criteria_index import CriteriaIndex
from app.subscriptions.matching.match_context import MatchContext
from app.subscriptions.matching.registration import Registration, Status
from app.subscriptions.matching.registration_cache import Shelf
from app.subscriptions.matching.text_faults import TextFaults
from app.subscriptions.topics.compiled_conditions import CompiledConditions
from app.subscriptions.topics.topic_store import TopicStore
from app.subscriptions.topics.topics import Found
from app.subscriptions.topics.trigger_context import TriggerContext

log = logging.getLogger(__name__)

# Events are read again for this long: a commit may become visible later than its time says. A commit that takes longer
# than the short one is rare, so most reads are short.
_OVERLAP, _LONG_OVERLAP = timedelta(seconds=5), timedelta(seconds=90)
_LONG_LOOK_EVERY = timedelta(seconds=15)
_FIELDS = {"v": 1, "at": 1, "text": 1, "deleted": 1, "private": 1}
# Enough to register by the compact form beside the document; the status is a search value of every Subscription.
_BRIEF = {"v": 1, "status": "$sorts.status.lo", "watch": "$private.watch"}
_AT_ONCE = 2000

DeliveryMode = Literal["active", "waiting", "errored", "ended"]
_STATUSES: dict[str, Status] = {status: status for status in get_args(Status)}
_DELIVERY_MODES: dict[str, DeliveryMode] = {
    "active": "active",
    "requested": "waiting",
    "error": "errored",
    "off": "ended",
}


@dataclass(frozen=True, slots=True)
class Learnt:
    """A Subscription that another process has written: its versions from `version` on are new to this one."""

    id: str
    version: int
    newest: int
    at: datetime


class SubscriptionRegistry:
    """Registrations by id, and the index over those that count events: requested, active and in error."""

    def __init__(self, settings: Settings, mongo: Mongo, store: Store) -> None:
        self._settings = settings
        self._mongo = mongo
        self._store = store
        self.topics = TopicStore(settings, mongo)
        self.surroundings = TriggerContext(settings, mongo, store)
        self.catalogue = self.topics.of_files
        self._cache = Shelf(settings, lambda: self.catalogue)
        self.index = CriteriaIndex(settings, self._cache.criteria)
        # Those that this process cannot read, with their fault where it lies in their text.
        self._unsupported: dict[str, str] = {}
        self.faults = TextFaults(settings, store, self._cache.criteria)
        # Clients' search parameters, and the codes of those that changed since Subscriptions were read by them.
        self._custom: tuple[Custom, ...] = ()
        self._changed: set[str] = set()
        self._learnt: list[Learnt] = []
        self._requested: set[str] = set()
        # The ends that are to come, soonest first, and the Subscriptions whose end has come.
        self._ends: list[tuple[datetime, str]] = []
        self._over: set[str] = set()
        self._polled_at: datetime | None = None
        self._looked_long_at: datetime | None = None

    def __len__(self) -> int:
        return len(self._cache)

    def put_back(self, learnt: Iterable[Learnt]) -> None:
        """What `take_learnt` gave, since it could not be matched now."""
        self._learnt.extend(learnt)

    async def load(self) -> None:
        """Read all topics and Subscriptions."""
        self._polled_at = self._mongo.now()
        self._custom = self._store.search_state.custom
        self.catalogue = await self.topics.catalogue()
        rows = self._rows({"terms": EVERY}, _BRIEF)
        gc.disable()  # all that is made here stays; traversing it again and again takes a third of the time
        try:
            stale = [row["_id"] async for row in rows if not self._put_brief(row)]
        finally:
            gc.enable()
        await self._reread(stale)

    async def refresh(self) -> list[Registration]:
        """Read the Subscriptions that any process has changed since the last time; returns those new to this one."""
        await self.refresh_topics()
        await self._refresh_parameters()
        now = self._mongo.now()
        since = self._polled_at or now
        if self._looked_long_at is None or now - self._looked_long_at >= _LONG_LOOK_EVERY:
            self._looked_long_at = now
            since = since - _LONG_OVERLAP
        else:
            since = since - _OVERLAP
        self._polled_at = now
        events = event_rows(self._mongo).find(
            {"type": "Subscription", "at": {"$gte": since}}, {"_id": 0, "id": 1, "version": 1}
        )
        behind = {
            row["id"]
            for row in await events.to_list(None)
            if row["version"] > self._cache.version(row["id"])
        }
        return await self.read(behind)

    async def read(self, ids: Collection[str]) -> list[Registration]:
        """Read these Subscriptions anew; returns those new to this process."""
        if not ids:
            return []
        found = await self._store.find(
            "Subscription", {"_id": {"$in": list(ids)}}, projection=_FIELDS
        )
        return [new for document in found if (new := self._learn(document)) is not None]

    def _learn(self, document: Document) -> Registration | None:
        """Register a version that was found in the database, and note what it may have missed so far."""
        before, known = self.get(document["_id"]), self._cache.version(document["_id"])
        new = self._put_document(document, again=False)
        if new is None or new.status == "off":
            return new
        counted = before is not None and before.status != "off"
        if not (counted and before is not None and before.criteria == new.criteria):
            self._learnt.append(Learnt(new.id, known + 1, new.version, document["at"]))
        return new

    def take_learnt(self) -> list[Learnt]:
        """The Subscriptions of other processes that were learnt since the last call and may have missed events."""
        learnt, self._learnt = self._learnt, []
        return learnt

    async def with_private(self, subscription: str) -> tuple[Registration, Document] | None:
        """The newest version together with its `private` fields; None where it is gone."""
        found = await self.many_with_private([subscription])
        return found[0] if found else None

    async def many_with_private(
        self, subscriptions: Collection[str]
    ) -> list[tuple[Registration, Document]]:
        """The newest versions together with their `private` fields; those that are gone are left out."""
        found = await self._store.find(
            "Subscription", {"_id": {"$in": list(subscriptions)}}, projection=_FIELDS
        )
        pairs = []
        for document in found:
            self._learn(document)
            if (known := self.get(document["_id"])) is not None:
                pairs.append((known, document.get("private", {})))
        return pairs

    async def _rows(self, filter_: Document, projection: Document) -> AsyncIterator[Document]:
        async with self._store.batches(
            "Subscription", filter_, projection=projection, read_ahead=_AT_ONCE
        ) as read:
            while batch := await read(_AT_ONCE):
                for row in batch:
                    yield row
                await asyncio.sleep(0)  # a hundred thousand of them take their time

    async def _reread(self, ids: list[str]) -> None:
        """Read whole Subscriptions whose compact form is missing or outdated, and store it anew."""
        for start in range(0, len(ids), _AT_ONCE):
            batch = ids[start : start + _AT_ONCE]
            notes: dict[tuple[str, int], str] = {}
            async for document in self._rows({"_id": {"$in": batch}}, _FIELDS):
                new = self._put_document(document, again=True)
                if new is not None:
                    notes[new.id, new.version] = registration_cache.encode(new, self._settings)
            await self._store.annotate("Subscription", "watch", notes)

    async def refresh_topics(self) -> None:
        """Take over changed topics, and read their Subscriptions anew."""
        if not await self.topics.changed():
            return
        before, self.catalogue = self.catalogue, await self.topics.catalogue()
        urls = before.by_url.keys() | self.catalogue.by_url.keys()
        digests = [
            {url: topic.digest for url, topic in each.by_url.items()}
            for each in (before, self.catalogue)
        ]
        changed = {url for url in urls if digests[0].get(url) != digests[1].get(url)}
        concerned = set(self._unsupported)
        for url in changed:
            concerned.update(self.index.subscriptions(url))
        self._cache.close()
        await self._reread(sorted(concerned))

    def _note_parameters(self) -> None:
        """Take over clients' search parameters, and note which have changed since Subscriptions were read by them."""
        before, self._custom = self._custom, self._store.search_state.custom
        if before is not self._custom:
            self._changed.update(each.definition.code for each in set(before) ^ set(self._custom))

    async def _refresh_parameters(self) -> None:
        """Read the Subscriptions anew whose criteria use search parameters that clients have changed."""
        self._note_parameters()
        if not self._changed:
            return
        changed, self._changed = self._changed, set()
        concerned = set(self._unsupported)
        for count, subscription in enumerate(self._cache.ids()):
            criteria = self._cache.criteria(subscription)
            if criteria is not None and not changed.isdisjoint(criteria_check.names(criteria)):
                concerned.add(subscription)
            if count % _AT_ONCE == 0:
                await asyncio.sleep(0)
        await self._reread(sorted(concerned))

    def _put_brief(self, row: Document) -> bool:
        """Register a version by its compact form; False where that is missing or outdated."""
        subscription, version = row["_id"], row["v"]
        if version <= self._cache.version(subscription):
            return True
        text = row.get("watch")
        if text is None:
            return False
        read = registration_cache.decode(text)
        if read is None or not registration_cache.is_current(read, self.catalogue, self._settings):
            return False
        if self._cache.version(subscription):
            self._forget(subscription)
        status = _STATUSES[row["status"]]
        self._cache.put_text((subscription, version, status), text)
        self._file(subscription, status, read.end, read.criteria)
        return True

    def _put_document(self, document: Document, *, again: bool) -> Registration | None:
        subscription, version = document["_id"], document["v"]
        try:
            resource = None if "deleted" in document else fhir_json.decode_stored(document["text"])
            return self.put(subscription, version, resource, again=again)
        except Exception as error:  # a row that cannot be read is nobody else's trouble
            self._forget(subscription)
            self._cache.put_away(subscription, version)
            self._unsupported[subscription] = ""
            log.error(
                "subscription cannot be read",
                extra={
                    "action": "register",
                    "id": subscription,
                    "version_id": version,
                    "error": type(error).__name__,
                },
            )
            return None

    def put(
        self, subscription: str, version: int, resource: Resource | None, *, again: bool
    ) -> Registration | None:
        """Register a version, None for a deletion; returns the registration where it is new and supported.

        `again`: also the version that is known already. In one step: no event falls between the old and the new.
        """
        known = self._cache.version(subscription)
        if version < known or (version == known and not again):
            return None
        self._forget(subscription)
        self._cache.put_away(subscription, version)
        if resource is None:
            return None
        try:
            self._note_parameters()
            with self._store.search_state.applied():
                new = registration.read(resource, self.catalogue, self._settings)
        except FhirError as error:
            # It was valid when it was stored: a topic or channel was removed since, or is not known here yet.
            if resource["status"] != "off":
                self._unsupported[subscription] = self._fault_of(resource, error)
            log.warning(
                "subscription no longer supported",
                extra={"action": "register", "id": subscription, "version_id": version},
            )
            return None
        self._cache.put(replace(new, id=subscription, version=version))
        self._file(subscription, new.status, new.end, new.criteria)
        return self.get(subscription)

    def _fault_of(self, resource: Resource, error: FhirError) -> str:
        """What is wrong with the text of the criteria; empty where it is not the text, or may be known elsewhere.

        A topic or channel that only a newer program knows is no fault, nor is a topic that will be known in a moment.
        """
        if resource["status"] == "error":
            return ""
        text = str(resource.get("criteria", ""))
        if self.topics.is_retired(text):
            return "criteria: the topic was retired"
        of_criteria = [each for each in error.issues if "criteria" in "".join(each.expression)]
        if not of_criteria or not (self.catalogue.find(text) or CLASSIC.match(text)):
            return ""
        return f"criteria: {of_criteria[0].diagnostics}"

    def unsupported(self) -> dict[str, str]:
        """The Subscriptions whose own text keeps them from being evaluated, with the reason."""
        return {each: reason for each, reason in self._unsupported.items() if reason}

    def is_unsupported(self, subscription: str) -> bool:
        """Whether this process cannot read a Subscription, which is there nevertheless and not off."""
        # Its topic may have gone a moment ago.
        is_kept = self._cache.criteria(subscription) is not None
        return subscription in self._unsupported or (is_kept and self.get(subscription) is None)

    def _forget(self, subscription: str) -> None:
        """Remove the known version from everything but the cache of registrations."""
        if (criteria := self._cache.criteria(subscription)) is not None:
            self.index.remove(subscription, criteria)
        for ids in (self._requested, self._over):
            ids.discard(subscription)
        self._unsupported.pop(subscription, None)
        self.faults.forget(subscription)

    def _file(
        self, subscription: str, status: Status, end: datetime | None, criteria: Criteria
    ) -> None:
        if status != "off":
            self.index.add(subscription, criteria)
            self.faults.file(subscription, criteria)
            if end is not None:
                heapq.heappush(self._ends, (end, subscription))
        if status == "requested":
            self._requested.add(subscription)

    def version(self, subscription: str) -> int:
        """The known version of a Subscription, 0 for none."""
        return self._cache.version(subscription)

    def get(self, subscription: str) -> Registration | None:
        return self._cache.get(subscription)

    def delivery_mode(self, subscription: str) -> DeliveryMode:
        """The current delivery mode of a Subscription; of one that is not supported now, that of one in error."""
        found = self.get(subscription)
        if found is None and self.is_unsupported(subscription):
            return "errored"
        if found is None or self.is_over(found):
            return "ended"
        return _DELIVERY_MODES[found.status]

    def requested(self) -> list[Registration]:
        """The Subscriptions whose endpoint the server has yet to prove."""
        return [found for found in self._all(self._requested) if not self.is_over(found)]

    def over(self) -> list[Registration]:
        """The Subscriptions whose end has come and that are not off yet."""
        while self._ends and self._ends[0][0] <= self._mongo.now():
            self._over.add(heapq.heappop(self._ends)[1])
        over = [found for found in self._all(self._over) if self.is_over(found)]
        over = [found for found in over if found.status != "off"]
        self._over = {found.id for found in over}
        return over

    def _all(self, ids: Collection[str]) -> Iterator[Registration]:
        return (found for each in ids if (found := self.get(each)) is not None)

    def facts(self, resource_type: str, fields: Document) -> MatchContext:
        """The match context of a version; derived terms are those of now."""
        derived = Derived(self._store, self._settings, resource_type, fields, self._mongo.now())
        return MatchContext(self._store, self._settings.base_url, resource_type, fields, derived)

    def facts_of(self, event: Event, at: datetime | None = None) -> MatchContext | None:
        """The match context of an event: of its version, or of the deleted one; None where neither is stored.

        Derived terms are those of `at`, normally the time of the event.
        """
        gone = event.fields is None
        fields = event.previous_fields if gone else event.fields
        if fields is None:
            return None
        resource = event.previous if gone else event.resource
        at = at or event.at
        derived = Derived(self._store, self._settings, event.type, fields, at, resource)
        return MatchContext(self._store, self._settings.base_url, event.type, fields, derived)

    def uses_parameter(self, code: str) -> bool:
        """Whether a live Subscription's criteria are made of a search parameter of this code."""
        known = (self._cache.get(each) for each in self._cache.ids())
        live = (each.criteria for each in known if each is not None and each.status != "off")
        return any(code in criteria_check.names(criteria) for criteria in live)

    def asking(self, context: MatchContext) -> Found:
        """The test that topics apply to the versions of a change, of which `context` is one."""

        async def test(conditions: CompiledConditions, fields: Document) -> bool:
            if fields is context.fields:
                return await context.answer(conditions)
            return await self.facts(context.resource_type, fields).answer(conditions)

        return test

    def is_over(self, candidate: Registration) -> bool:
        """Whether the Subscription's `end` has come."""
        return candidate.end is not None and candidate.end <= self._mongo.now()
