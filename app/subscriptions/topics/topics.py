"""Compiled SubscriptionTopics: their triggers, filters and notification shapes. `topic_reader` reads them.

https://hl7.org/fhir/R5/subscriptiontopic.html
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal, Protocol
from urllib.parse import parse_qsl

from app.attribution.whereabouts import Facility
from app.fhir.json import Resource
from app.runtime.mongo import Document
from app.search.search_parameters import parameters
from app.subscriptions.topics.compiled_conditions import CompiledConditions

# A filter on the notice's trigger part: the one filter that is no search parameter of the resource.
TRIGGER_FILTER = "trigger"
COMPARATORS = ("eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap")

Coding = Mapping[str, str]
Interaction = Literal["create", "update", "delete"]


class ResourceChange(Protocol):
    """The part of a committed event that topics and criteria read."""

    @property
    def type(self) -> str: ...
    @property
    def resource_id(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def method(self) -> str: ...
    @property
    def at(self) -> datetime: ...
    @property
    def resource(self) -> Resource | None: ...
    @property
    def previous(self) -> Resource | None: ...
    @property
    def fields(self) -> Document | None: ...
    @property
    def previous_fields(self) -> Document | None: ...


def interaction(change: ResourceChange) -> Interaction:
    """The interaction of a change: a revival is a create, whatever its method."""
    if change.fields is None:
        return "delete"
    return "create" if change.previous_fields is None else "update"


# Whether a version, given its search fields, passes a query; other resources may have to be read for it.
Found = Callable[[CompiledConditions, Document], Awaitable[bool]]
# A condition on a change that search cannot express.
Test = Callable[[ResourceChange], bool]


class Around(Protocol):
    """The data that an Inquiry reads about a change of a stay."""

    async def told(self, change: ResourceChange) -> Sequence[str]:
        """The server's own topics, by the end of their URL, with notices of earlier versions; oldest first."""

    async def facility(self, stay: Resource) -> Facility:
        """The facility of a version."""

    async def is_nursing_facility(self, stay: Resource, fields: Document) -> bool:
        """Whether the facility of a version is a skilled nursing or nursing facility."""


# A condition on a change for which other data have to be read.
Inquiry = Callable[[ResourceChange, Around], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Trigger:
    """One way for a topic to fire: a resourceTrigger.

    Of `previous` and `current` both must match their version, or with `either` one of them. `on_create` and `on_delete`
    are their results where there is no such version. All of `tests`, and then of `inquiries`, must hold as well. One
    that is `raised` is never fired by a change; one that `is_beside` others fires nothing, and adds its coding.
    """

    resource_type: str
    interactions: frozenset[Interaction]
    previous: CompiledConditions | None = None
    current: CompiledConditions | None = None
    on_create: bool = True
    on_delete: bool = False
    either: bool = False
    tests: tuple[Test, ...] = ()
    inquiries: tuple[Inquiry, ...] = ()
    raised: bool = False
    coding: Coding | None = None
    is_beside: bool = False
    description: str = ""

    async def fires(
        self, change: ResourceChange, found: Found, around: Around | None = None
    ) -> bool:
        """Whether the change is one of those that this trigger is about."""
        if change.type != self.resource_type or interaction(change) not in self.interactions:
            return False
        return await self.queries_hold(change, found) and await self.functions_hold(change, around)

    async def queries_hold(self, change: ResourceChange, found: Found) -> bool:
        """Whether queryCriteria hold."""
        queries = (
            (self.current, change.fields, self.on_delete),
            (self.previous, change.previous_fields, self.on_create),
        )
        has_query = False
        for query, fields, otherwise in queries:
            if query is None:
                continue
            has_query = True
            if (otherwise if fields is None else await found(query, fields)) is self.either:
                return self.either
        return not (has_query and self.either)

    async def functions_hold(self, change: ResourceChange, around: Around | None) -> bool:
        """Whether functions and fhirPathCriteria hold. Raises ValueError for an inquiry without `around`."""
        if not all(test(change) for test in self.tests):
            return False
        for inquiry in self.inquiries:
            if around is None:
                raise ValueError("This trigger has to look around")
            if not await inquiry(change, around):
                return False
        return True


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter that a topic defines: its search parameter, and how it may be used.

    Without comparators it takes any. One with `one_value` is to be used for every type that a Subscription is about,
    each time with the same single value.
    """

    search: str
    modifiers: frozenset[str] = frozenset()
    comparators: frozenset[str] = frozenset()
    one_value: bool = False

    def takes(self, value: str) -> bool:
        """Whether every value's comparator is allowed; one without is `eq`."""
        prefixes = (each[:2] if each[:2] in COMPARATORS else "eq" for each in value.split(","))
        return all(prefix in self.comparators for prefix in prefixes)


@dataclass(frozen=True, slots=True)
class Shape:
    """The context of a focus: by its reference parameters, and by (type, parameter) of the resources that refer to it.

    An include may go on with a colon and the one type that it is limited to.
    """

    includes: tuple[str, ...] = ()
    reverse: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Alias:
    """A further canonical of a topic, and the filters that it implies."""

    url: str
    topic: str
    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Topic:
    """A compiled SubscriptionTopic; `resource` is its R5 JSON.

    `filters` maps each type to its filters by key; `digest` changes with every element of the topic. `alias` is the
    canonical by which a Subscription names it, where that is another.
    """

    url: str
    version: str
    triggers: tuple[Trigger, ...]
    filters: Mapping[str, Mapping[str, Filter]]
    shapes: Mapping[str, Shape]
    resource: Resource
    digest: str
    alias: Alias | None = None

    @property
    def canonical(self) -> str:
        """The canonical that its Subscriptions name, and are told."""
        return self.url if self.alias is None else self.alias.url

    @property
    def implied(self) -> tuple[str, ...]:
        """The filters that hold beside a Subscription's own."""
        return () if self.alias is None else self.alias.filters

    @property
    def resource_types(self) -> tuple[str, ...]:
        """The types it watches, in its own order."""
        return tuple(dict.fromkeys(trigger.resource_type for trigger in self.triggers))

    @property
    def carried_types(self) -> tuple[str, ...]:
        """The types of resources that its notices may carry beside the focus."""
        found: dict[str, None] = {}
        for resource_type, shape in self.shapes.items():
            for include in shape.includes:
                code, _, target = include.partition(":")
                parameter = parameters(resource_type).get(code)
                found |= dict.fromkeys(
                    [target] if target else parameter.targets if parameter else ()
                )
            found |= dict.fromkeys(kind for kind, _ in shape.reverse)
        return tuple(found)

    async def fired(
        self, change: ResourceChange, found: Found, around: Around | None = None
    ) -> Trigger | None:
        """The first trigger that the change fires, if any."""
        for trigger in self.triggers:
            if not trigger.is_beside and await trigger.fires(change, found, around):
                return trigger
        return None

    async def codings_of(
        self, fired: Trigger, change: ResourceChange, found: Found, around: Around | None = None
    ) -> tuple[Coding, ...]:
        """The codings of a change by which this trigger was fired: its own, then those that apply beside it."""
        codings = [] if fired.coding is None else [fired.coding]
        for trigger in self.triggers:
            if (
                trigger.is_beside
                and trigger.coding is not None
                and trigger.coding not in codings
                and await trigger.fires(change, found, around)
            ):
                codings.append(trigger.coding)
        return tuple(codings)

    def codings(self, resource_type: str | None = None) -> list[Coding]:
        """Every coding that its notices, about this type, can carry in their `trigger` parts."""
        return [
            trigger.coding
            for trigger in self.triggers
            if trigger.coding is not None and resource_type in (None, trigger.resource_type)
        ]

    def context(self, resource_type: str, fields: Document) -> list[str]:
        """Relative references of the focus that belong into a notice, each once, in the topic's order."""
        shape = self.shapes.get(resource_type, Shape())
        found: dict[str, None] = {}
        for include in shape.includes:
            parameter, _, target = include.partition(":")
            named = references(resource_type, fields, parameter)
            found.update(dict.fromkeys(each for each in named if each.startswith(target)))
        return list(found)


class Catalogue:
    """The topics this server knows, by canonical URL and by the type they watch."""

    def __init__(self, topics: Iterable[Topic], aliases: Iterable[Alias] = ()) -> None:
        self.by_url = MappingProxyType({topic.url: topic for topic in topics})
        self._by_alias = {
            alias.url: _under(self.by_url[alias.topic], alias)
            for alias in aliases
            if alias.topic in self.by_url and alias.url not in self.by_url
        }
        by_type: dict[str, list[Topic]] = {}
        for topic in self.by_url.values():
            watched = [trigger.resource_type for trigger in topic.triggers if not trigger.raised]
            for resource_type in dict.fromkeys(watched):
                by_type.setdefault(resource_type, []).append(topic)
        self._by_type = by_type

    def find(self, canonical: str) -> Topic | None:
        """The topic of a canonical, with or without a version; of an alias, the topic under that name."""
        url, _, version = canonical.partition("|")
        topic = self.by_url.get(url) or self._by_alias.get(url)
        return None if topic is None or version not in ("", topic.version) else topic

    @property
    def canonicals(self) -> Sequence[str]:
        """Every canonical that a Subscription may name."""
        return sorted((*self.by_url, *self._by_alias))

    def watching(self, resource_type: str) -> Sequence[Topic]:
        """The topics that a change of this type may fire."""
        return self._by_type.get(resource_type, ())


def _under(topic: Topic, alias: Alias) -> Topic:
    digest = " ".join((topic.digest, alias.url, *alias.filters))
    return replace(topic, alias=alias, digest=digest)


def references(resource_type: str, fields: Mapping[str, Any], code: str) -> list[str]:
    """The relative references (`Patient/p1`) that a reference parameter finds in these search fields."""
    parameter = parameters(resource_type).get(code)
    if parameter is None or parameter.type != "reference":
        return []
    found: list[str] = []
    for key in dict.fromkeys((parameter.key, parameter.shared or parameter.key)):
        prefix = f"{key}="
        found += [term[len(prefix) :] for term in fields["terms"] if term.startswith(prefix)]
    return [
        reference
        for reference in found
        if reference.count("/") == 1 and reference.partition("/")[0] in parameter.targets
    ]


def query_parameters(text: str) -> list[tuple[str, str]]:
    """`a=b&c=d` as search parameters. Raises ValueError for a part that is no `name=value`."""
    if not text:
        return []
    return parse_qsl(text, keep_blank_values=True, strict_parsing=True)
