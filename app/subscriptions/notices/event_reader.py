"""The events of notices: the pinned version and the resources sent with it, as far as a content level allows.

What travels along is about the patients of the focus, or directory, whoever the recipient is: the writer of the focus
chooses what it names. What an event was raised with is the server's own choice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cachetools import FIFOCache

from app.authorization.relations import patients_of
from app.authorization.subject_store import Subject, SubjectStore, is_everybodys, patients_named
from app.consent.judgement import FULL, Judgement
from app.fhir.json import Resource
from app.records.reader import Reader, ResourceStore
from app.records.versions import ResourceVersion
from app.runtime.mongo import Document
from app.search import include
from app.search.extract import extract
from app.search.include import Include
from app.search.parameter import SearchLimits, SearchScope
from app.store.events import Event
from app.subscriptions.ledger.ledger import Delivery
from app.subscriptions.matching.channel_terms import CONTENTS, Content
from app.subscriptions.notices.named_references import ReadTold, names_for, with_names
from app.subscriptions.notices.notification import Focus, Told
from app.subscriptions.sending.release_limits import Limit, judge_along
from app.subscriptions.topics.topics import Shape, Topic

_REMEMBERED = 256


class VersionGoneError(Exception):
    """The version that a notice should carry is no longer stored."""


class WithheldError(Exception):
    """A part that a notice requires may not be sent; the text is the reason for the ledger."""


@dataclass(slots=True)
class _Pinned:
    """A version with its search fields and patients and, for each topic, its context; for all notices of the event."""

    resource: Resource
    fields: Document
    patients: frozenset[str]
    context: dict[tuple[str, tuple[str, ...]], list[str]] = field(default_factory=dict)


class EventReader:
    """Reads the events of notices, with a cache of the last versions read, which never change."""

    def __init__(self, store: ResourceStore, base_url: str = "") -> None:
        self._store = store
        self._base_url = base_url
        self._pinned: FIFOCache[tuple[str, str, int], _Pinned] = FIFOCache(_REMEMBERED)

    async def told(
        self,
        delivery: Delivery,
        topic: Topic | None,
        content: Content,
        event: Event | None = None,
        limit: Limit | None = None,
    ) -> Told:
        """A row's event. `event` spares reading the version. Raises VersionGoneError where it is no longer stored.

        Where `limit` or the labels of the context forbid full resources, the event has references only. Full resources
        have the names of those they refer to, as far as the recipient may know them.
        """
        content = _allowed(content, limit)
        version: _Pinned | None = None
        context: list[str] = []
        if content != "empty" and delivery.focus["method"] != "delete":
            version = await self._version(delivery, event)
            if topic is not None:
                context = await self._context(version, topic, delivery)
                if limit is not None and limit.hidden:
                    context = [each for each in context if each not in limit.hidden]
        if version is not None and content == "full-resource":
            return await self._whole(delivery, version, context, limit)
        # A reference to content of 42 CFR Part 2 tells of it as well.
        needed = () if limit is None or content == "empty" else limit.judgement.permitted_by
        return Told(
            delivery.number, _focus(delivery, None), dict.fromkeys(context), content, needed
        )

    async def _whole(
        self, delivery: Delivery, version: _Pinned, context: list[str], limit: Limit | None
    ) -> Told:
        """The event with its resources, or with references where one of them may not be sent."""
        included: dict[str, Resource | None] = dict.fromkeys(context)
        judgements = [FULL if limit is None else limit.judgement]
        raised = frozenset(delivery.context)
        for reference, stored in zip(context, await self._read_all(context), strict=True):
            if stored is None:
                continue
            along = stored.resource()
            if reference not in raised and not self._may_travel(along, version):
                del included[reference]
                continue
            included[reference] = along
            judgements.append(judge_along(limit, stored, along))
        if any(each.verdict != "full" for each in judgements):
            references: dict[str, Resource | None] = dict.fromkeys(included)
            return Told(delivery.number, _focus(delivery, None), references, "id-only")
        carried = [version.resource, *(each for each in included.values() if each is not None)]
        read = self._reading_names(version, limit, judgements)
        names = await names_for(carried, read, self._base_url)
        focus = _focus(delivery, with_names(version.resource, names, self._base_url))
        beside = {
            reference: each and with_names(each, names, self._base_url)
            for reference, each in included.items()
        }
        consents = [consent for each in judgements for consent in each.permitted_by]
        return Told(delivery.number, focus, beside, "full-resource", consents)

    def _reading_names(
        self, version: _Pinned, limit: Limit | None, judgements: list[Judgement]
    ) -> ReadTold:
        """Reads, for their names, what the recipient may be told of the focus's patients, and the directory.

        The judgements on what it gives are added to `judgements`.
        """
        view = limit.view if limit is not None and limit.view is not None else self._store
        store = SubjectStore(view, Subject(version.patients), self._base_url)

        async def read(references: Sequence[str]) -> Mapping[str, Resource]:
            pairs = [(kind, id_) for kind, _, id_ in (each.partition("/") for each in references)]
            found: dict[str, Resource] = {}
            for reference, stored in (await store.read_many(pairs)).items():
                if stored.deleted:
                    continue
                resource = stored.resource()
                judgement = judge_along(limit, stored, resource)
                if judgement.verdict == "full":
                    judgements.append(judgement)
                    found[reference] = resource
            return found

        return read

    async def told_if_stored(
        self,
        delivery: Delivery,
        topic: Topic | None,
        content: Content,
        event: Event | None = None,
        limit: Limit | None = None,
    ) -> Told:
        """A row's event; one whose version is no longer stored is marked as gone."""
        try:
            return await self.told(delivery, topic, content, event, limit)
        except VersionGoneError:
            level = _allowed(content, limit)
            return Told(delivery.number, _focus(delivery, None, gone=True), {}, level)

    async def pinned(self, delivery: Delivery, event: Event | None = None) -> Resource:
        """The version of the event, whatever the resource's current one. Raises VersionGoneError."""
        return (await self._version(delivery, event)).resource

    async def _version(self, delivery: Delivery, event: Event | None) -> _Pinned:
        focus = delivery.focus
        key = (focus["type"], focus["id"], focus["version"])
        try:
            return self._pinned[key]
        except KeyError:
            pass
        if event is not None and event.resource is not None and event.fields is not None:
            found = self._pin(event.type, event.resource, event.fields)
        else:
            stored = await self._store.vread(*key)
            if stored is None or stored.deleted:
                raise VersionGoneError("The version is no longer stored")
            resource = stored.resource()
            found = self._pin(stored.type, resource, extract(stored.type, resource))
        self._pinned[key] = found
        return found

    def _pin(self, resource_type: str, resource: Resource, fields: Document) -> _Pinned:
        row = {"_id": resource["id"], "terms": fields["terms"]}
        return _Pinned(resource, fields, patients_of(resource_type, row, self._base_url))

    def _may_travel(self, resource: Resource, focus: _Pinned) -> bool:
        resource_type = resource["resourceType"]
        if is_everybodys(resource_type):
            return True
        patients = patients_named(resource_type, resource, self._base_url)
        return bool(patients) and patients <= focus.patients

    async def _context(self, version: _Pinned, topic: Topic, delivery: Delivery) -> list[str]:
        """The context references: those of the topic, then those that the event was raised with."""
        known = version.context.get((topic.digest, delivery.context))
        if known is None:
            focus = f"{delivery.focus['type']}/{delivery.focus['id']}"
            store = SubjectStore(self._store, Subject(version.patients), self._base_url)
            known = await alongside(store, topic, focus, version.fields)
            known = list(dict.fromkeys((*known, *delivery.context)))
            version.context[topic.digest, delivery.context] = known
        return known

    async def _read_all(self, references: list[str]) -> list[ResourceVersion | None]:
        return await asyncio.gather(*(self._read(reference) for reference in references))

    async def _read(self, reference: str) -> ResourceVersion | None:
        resource_type, _, resource_id = reference.partition("/")
        stored = await self._store.read(resource_type, resource_id)
        return None if stored is None or stored.deleted else stored


def _allowed(content: Content, limit: Limit | None) -> Content:
    """The content level that the limit allows; a withheld event is an empty one."""
    if limit is None or limit.verdict == "full":
        return content
    most: Content = "empty" if limit.verdict == "withhold" else "id-only"
    return min(content, most, key=CONTENTS.index)


def _focus(delivery: Delivery, resource: Resource | None, *, gone: bool = False) -> Focus:
    pinned = delivery.focus
    return Focus(
        pinned["type"],
        pinned["id"],
        pinned["version"],
        pinned["method"],
        pinned["at"],
        delivery.triggers,
        resource,
        gone,
    )


# The context of a focus: the resources it refers to and those that refer to it, by its topic's notificationShape.
#
# https://hl7.org/fhir/R5/subscriptiontopic-definitions.html#SubscriptionTopic.notificationShape

log = logging.getLogger(__name__)

# The most resources that refer to a focus; it may be a patient of many years.
MOST_REFERRING = 1_000


async def alongside(store: Reader, topic: Topic, focus: str, fields: Document) -> list[str]:
    """Relative references to the resources that a notice carries beside the focus (`Encounter/e1`), each once.

    `fields` are the search fields of the focus at its event, with its references of then; resources that refer to it
    are searched now, for a later one may be what the notice is about. Without a revInclude nothing is read.
    """
    resource_type, _, resource_id = focus.partition("/")
    found = dict.fromkeys(topic.context(resource_type, fields))
    reverse = topic.shapes.get(resource_type, Shape()).reverse
    if reverse:
        rows, complete = await include.included(
            store,
            [Include(type_, code, resource_type, is_reverse=True) for type_, code in reverse],
            [include.IncludedRow(resource_type, resource_id, "")],
            SearchScope("", datetime.now(UTC), SearchLimits(included=MOST_REFERRING)),
        )
        if not complete:
            log.warning(
                "more refers to the focus than a notice carries",
                extra={"action": "tell", "resource_type": resource_type, "id": resource_id},
            )
        found.update(dict.fromkeys(f"{row.type}/{row.id}" for row in rows))
    return list(found)
