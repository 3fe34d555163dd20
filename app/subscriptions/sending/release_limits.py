"""The limits of an event's content for a Subscription, by consent and labels.

They are judged before an event is numbered, and again before each attempt.

A Subscription's recipient is read only where a patient has any Consent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from bson import ObjectId
from cachetools import FIFOCache

from app.consent import labels, recipients
from app.consent.directives import ConsentDirectives, Standing
from app.consent.judgement import FULL, Judgement, LabelledContent, decide
from app.consent.labels import Labels
from app.consent.provisions import ConsentQuestion
from app.consent.recipients import Recipient, RecipientKind
from app.fhir.definitions import compartment
from app.fhir.json import Resource
from app.records.reader import Reader, ResourceStore
from app.records.versions import ResourceVersion
from app.runtime.batch_cache import BatchCache
from app.runtime.mongo import Document
from app.search.extract import extract
from app.search.parameters import reference
from app.search.search_parameters import parameters
from app.settings import Settings
from app.store.events import Event
from app.subscriptions.ledger.ledger import Delivery
from app.subscriptions.matching.registration import Registration
from app.subscriptions.recipient import kind_of, reference_of

# Seconds for which a resolved recipient is cached.
_RECIPIENTS_LAST = 10.0
_REMEMBERED = 1024
_STRICTEST = ("full", "id-only", "withhold")

DeliveryWithEvent = tuple[Delivery, Event | None]
Version = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class About:
    """The patients that a version is about, and its labels."""

    patients: tuple[str, ...]
    labels: Labels


@dataclass(frozen=True, slots=True)
class Limit:
    """The limit of one event; `standing`, its directives, and `question` decide about the resources sent with it.

    `hidden` are references that the recipient may not see; the other resources are read from `view`, the store as the
    recipient may see it, where that is limited.
    """

    judgement: Judgement
    standing: Standing
    question: ConsentQuestion
    topic: str | None
    hidden: frozenset[str] = frozenset()
    view: ResourceStore | None = None

    @property
    def verdict(self) -> str:
        return self.judgement.verdict

    def judge(self, along: ResourceVersion, resource: Resource) -> Judgement:
        """The judgement on a resource that would be sent with the event; `resource` is its content."""
        own = replace(
            self.question,
            focus=along.reference,
            labels=labels.of(resource),
            custodian=along.custodian,
        )
        return decide(self.standing, own, self.topic)


Limits = Mapping[str, Limit]
NO_LIMITS: Limits = {}


def judge_along(limit: Limit | None, along: ResourceVersion, resource: Resource) -> Judgement:
    """The judgement on a resource that would be sent with an event; without a limit its labels alone decide."""
    if limit is not None:
        return limit.judge(along, resource)
    closed = labels.of(resource) & _CLOSED
    return Judgement("id-only", f"label {' '.join(sorted(closed))}") if closed else FULL


_CLOSED = labels.SENSITIVE | {labels.RESTRICTED, labels.VERY_RESTRICTED}


def _withholds(limit: Limit | None) -> bool:
    return limit is not None and limit.verdict == "withhold"


class ReleaseLimits:
    """Judges rows by consent and labels."""

    def __init__(
        self,
        store: Reader,
        settings: Settings,
        directives: ConsentDirectives,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._base_url = settings.base_url.rstrip("/")
        self._labelled_content: LabelledContent = settings.labelled_content
        self._directives = directives
        self._now = now
        self._named: BatchCache[tuple[str, int], tuple[str | None, RecipientKind]] = BatchCache(
            self._read_recipients, (None, "provider")
        )
        self._recipients: BatchCache[tuple[str | None, RecipientKind], Recipient] = BatchCache(
            self._resolve, Recipient(None), lasting=_RECIPIENTS_LAST
        )
        self._about: FIFOCache[Version, About] = FIFOCache(_REMEMBERED)

    def announce(self, event: Event, subscriptions: Sequence[tuple[str, int]]) -> None:
        """Begin to read the directives of a new event's patients, while other events are matched.

        `subscriptions` are those it concerns, by id and version: their recipients are read as well, where a patient has
        any Consent.
        """

        def read(directives: asyncio.Future[Standing]) -> None:
            if not directives.cancelled() and not directives.exception() and directives.result():
                for key in subscriptions:
                    self._named.ask(key)

        for patient in self._of_event(event).patients:
            self._directives.ask(patient).add_done_callback(read)

    async def of_events(
        self,
        matched: Sequence[tuple[Event, Sequence[Registration]]],
        since: float,
        kinds: Mapping[str, RecipientKind],
    ) -> dict[tuple[ObjectId, str], Limit]:
        """The limits of new events for Subscriptions, by the ids of both; without one it may be told in full.

        `kinds` are those of the Subscriptions' owners, as for `limits`.
        Nothing is withheld by directives read before `since` (`batch_cache.moment`).
        """
        found = await self._of_events(matched, kinds)
        stale = {
            event.id
            for event, registrations in matched
            if any(_withholds(found.get((event.id, each.id))) for each in registrations)
            and self._directives.forget_older(self._of_event(event).patients, since)
        }
        if stale:
            again = [each for each in matched if each[0].id in stale]
            found |= await self._of_events(again, kinds)
        return found

    async def _of_events(
        self,
        matched: Sequence[tuple[Event, Sequence[Registration]]],
        kinds: Mapping[str, RecipientKind],
    ) -> dict[tuple[ObjectId, str], Limit]:
        everybody = {each for event, _ in matched for each in self._of_event(event).patients}
        standing = await self._directives.for_patients(everybody)
        found: dict[tuple[ObjectId, str], Limit] = {}
        for event, registrations in matched:
            about = self._of_event(event)
            directives = [standing[each] for each in about.patients if each in standing]
            if not directives and not about.labels:
                continue
            focus = f"{event.type}/{event.resource_id}"
            for each in registrations:
                topic = each.topic.url if each.topic else None
                key = (each.id, each.version)
                recipient = Recipient(None)
                if directives:
                    recipient = await self._recipient(key, kinds[each.id], directives)
                limit = await self._judge(focus, about, directives, topic, recipient)
                found[event.id, each.id] = limit
        return found

    async def limits(
        self,
        rows: Sequence[DeliveryWithEvent],
        topic: str | None,
        subscription: str,
        version: int,
        kind: RecipientKind = "provider",
    ) -> dict[str, Limit]:
        """The limits of rows of one Subscription, by row id; without one a row may be sent in full.

        `kind` is that of its owner: an authority's own Subscription need not say that it is one's.
        """
        found: dict[str, Limit] = {}
        for delivery, event in rows:
            about = await self._of_row(delivery, event)
            directives = [each for p in about.patients if (each := await self._directives.of(p))]
            if not directives and not about.labels:
                continue
            recipient = Recipient(None)
            if directives:
                recipient = await self._recipient((subscription, version), kind, directives)
            focus = f"{delivery.focus['type']}/{delivery.focus['id']}"
            limit = await self._judge(focus, about, directives, topic, recipient)
            if limit.verdict != "full" or directives:
                found[delivery.id] = limit
        return found

    async def _judge(
        self,
        focus: str,
        about: About,
        directives: Sequence[Standing],
        topic: str | None,
        recipient: Recipient,
    ) -> Limit:
        custodian: str | None = None
        if any(directive.writers.names for each in directives for directive in each):
            type_, _, id_ = focus.partition("/")
            stored = await self._store.read(type_, id_)
            custodian = None if stored is None else stored.custodian
        question = ConsentQuestion(focus, about.labels, recipient, self._now(), custodian=custodian)
        # A patient without directives among several is judged as well, for the labels.
        judged = [*directives, *([()] if len(directives) < max(1, len(about.patients)) else [])]
        limits = [
            Limit(decide(each, question, topic, self._labelled_content), each, question, topic)
            for each in judged
        ]
        strictest = max(limits, key=lambda each: _STRICTEST.index(each.verdict))
        # The resources sent with the event must suit the directives of all patients.
        everyone = [directive for each in judged for directive in each]
        return replace(strictest, standing=everyone) if len(judged) > 1 else strictest

    async def _recipient(
        self, subscription: tuple[str, int], owner: RecipientKind, directives: Sequence[Standing]
    ) -> Recipient:
        reference, kind = await self._named.get(subscription)
        kind = "authority" if owner == "authority" else kind
        if any(one.names_actors or one.writers.names for each in directives for one in each):
            return await self._recipients.get((reference, kind))
        return Recipient(reference, kind)

    # The patients and labels of an event

    async def _of_row(self, delivery: Delivery, event: Event | None) -> About:
        focus = delivery.focus
        try:
            return self._about[focus["type"], focus["id"], focus["version"]]
        except KeyError:
            pass
        if event is not None:
            return self._of_event(event)
        version = focus["version"] - (1 if focus["method"] == "delete" else 0)
        stored = await self._store.vread(focus["type"], focus["id"], version)
        resource = None if stored is None or stored.deleted else stored.resource()
        fields = None if resource is None else extract(focus["type"], resource)
        return self._keep((focus["type"], focus["id"], focus["version"]), resource, fields)

    def _of_event(self, event: Event) -> About:
        key = (event.type, event.resource_id, event.version)
        known = self._about.get(key)
        if known is not None:
            return known
        if event.resource is not None:
            return self._keep(key, event.resource, event.fields)
        return self._keep(key, event.previous, event.previous_fields)

    def _keep(self, key: Version, resource: Resource | None, fields: Document | None) -> About:
        type_, id_, _ = key
        found: dict[str, None] = {f"Patient/{id_}": None} if type_ == "Patient" else {}
        if fields is not None and type_ != "Patient":
            known = parameters(type_)
            for code in known.keys() & set(compartment("Patient").get(type_, ())):
                targets = reference.targets(known[code], fields["terms"], self._base_url)
                found.update((f"Patient/{id_}", None) for name, id_ in targets if name == "Patient")
        about = self._about[key] = About(tuple(found), labels.of(resource))
        return about

    # Reads of the caches

    async def _read_recipients(
        self, keys: list[tuple[str, int]]
    ) -> Mapping[tuple[str, int], tuple[str | None, RecipientKind]]:
        stored = await self._store.read_many([("Subscription", id_) for id_, _ in keys])
        found: dict[tuple[str, int], tuple[str | None, RecipientKind]] = {}
        for id_, version in keys:
            subscription = stored.get(f"Subscription/{id_}")
            if subscription is not None and not subscription.deleted:
                resource = subscription.resource()
                found[id_, version] = (
                    reference_of(resource, self._base_url),
                    kind_of(resource),
                )
        return found

    async def _resolve(
        self, keys: list[tuple[str | None, RecipientKind]]
    ) -> Mapping[tuple[str | None, RecipientKind], Recipient]:
        return {key: await recipients.resolve(self._store, *key, self._base_url) for key in keys}
