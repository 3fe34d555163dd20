"""SubscriptionTopics: R5-shaped JSON in `profiles/topics`, compiled into triggers, filters and what travels along.

https://hl7.org/fhir/R5/subscriptiontopic.html
An extension on a resourceTrigger gives the coding of the notice's `trigger` part, which R5 has no element for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol
from urllib.parse import parse_qsl

from app import fhir_json
from app.definitions import PROFILES
from app.fhir_json import Resource
from app.mongo import Document
from app.search import query
from app.search.query import Query
from app.search.registry import parameters
from app.settings import Settings

# The base that our own topics are written with; settings.topic_base takes its place.
DEFAULT_BASE = "http://carerelay.example/SubscriptionTopic/"
TRIGGER_EXTENSION = "http://carerelay.example/StructureDefinition/topic-trigger"
# A filter on the notice's trigger part: the one filter that is no search parameter of the resource.
TRIGGER_FILTER = "trigger"

Coding = Mapping[str, str]


class Change(Protocol):
    """The part of a committed event that topics and criteria look at."""

    @property
    def type(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def fields(self) -> Document | None: ...
    @property
    def previous_fields(self) -> Document | None: ...


@dataclass(frozen=True, slots=True)
class Trigger:
    """One way for a topic to fire: both versions must match; without a version before, `on_create` decides."""

    interactions: frozenset[str]
    previous: Query | None
    on_create: bool
    current: Query | None
    coding: Coding | None

    def fires(self, change: Change) -> bool:
        if change.fields is None:
            return False
        before = change.previous_fields
        if ("update" if before is not None else "create") not in self.interactions:
            return False
        if self.current is not None and not self.current.matches(change.fields):
            return False
        if before is None:
            return self.on_create
        return self.previous is None or bool(self.previous.matches(before))


@dataclass(frozen=True, slots=True)
class Topic:
    """A compiled SubscriptionTopic. `filters` maps each filter key to the modifiers it may carry.

    `includes` are search parameters of the focus whose references travel as additional context.
    """

    url: str
    version: str
    resource_type: str
    triggers: tuple[Trigger, ...]
    filters: Mapping[str, frozenset[str]]
    includes: tuple[str, ...]

    def fired(self, change: Change) -> Trigger | None:
        """The first trigger that the change fires, if any."""
        if change.type != self.resource_type:
            return None
        return next((trigger for trigger in self.triggers if trigger.fires(change)), None)

    def codings(self) -> list[Coding]:
        """Every coding its notices can carry in their `trigger` part."""
        return [trigger.coding for trigger in self.triggers if trigger.coding is not None]

    def context(self, fields: Document) -> list[str]:
        """Relative references of the focus that belong into a notice, each once, in the topic's order."""
        found: dict[str, None] = {}
        for parameter in self.includes:
            for reference in references(self.resource_type, fields, parameter):
                found[reference] = None
        return list(found)


class Catalogue:
    """The topics this server knows, by canonical URL and by the type they watch."""

    def __init__(self, topics: Iterable[Topic]) -> None:
        self.by_url = MappingProxyType({topic.url: topic for topic in topics})
        by_type: dict[str, list[Topic]] = {}
        for topic in self.by_url.values():
            by_type.setdefault(topic.resource_type, []).append(topic)
        self._by_type = by_type

    def find(self, canonical: str) -> Topic | None:
        """The topic of a canonical, with or without a version."""
        url, _, version = canonical.partition("|")
        topic = self.by_url.get(url)
        return None if topic is None or version not in ("", topic.version) else topic

    def watching(self, resource_type: str) -> Sequence[Topic]:
        return self._by_type.get(resource_type, ())


def references(resource_type: str, fields: Document, code: str) -> list[str]:
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


@cache
def _files(directory: Path) -> tuple[Resource, ...]:
    return tuple(fhir_json.decode(path.read_bytes()) for path in sorted(directory.glob("*.json")))


def load(settings: Settings, directory: Path = PROFILES / "topics") -> Catalogue:
    """Compile every topic of a directory. Raises FhirError or ValueError for one that cannot be evaluated."""
    return Catalogue([compile_topic(resource, settings) for resource in _files(directory)])


def compile_topic(resource: Resource, settings: Settings) -> Topic:
    """One SubscriptionTopic as code."""
    url: str = resource["url"]
    if url.startswith(DEFAULT_BASE):
        url = settings.topic_base.rstrip("/") + "/" + url[len(DEFAULT_BASE) :]
    types = {trigger["resource"] for trigger in resource["resourceTrigger"]}
    if len(types) != 1:
        raise ValueError(f"The topic {url} must watch exactly one resource type")
    (resource_type,) = types
    return Topic(
        url=url,
        version=resource.get("version", ""),
        resource_type=resource_type,
        triggers=tuple(_trigger(entry, settings) for entry in resource["resourceTrigger"]),
        filters=MappingProxyType(
            {
                entry["filterParameter"]: frozenset(entry.get("modifier", ()))
                for entry in resource.get("canFilterBy", ())
            }
        ),
        includes=tuple(
            include.partition(":")[2]
            for shape in resource.get("notificationShape", ())
            for include in shape.get("include", ())
        ),
    )


def _trigger(entry: Mapping[str, Any], settings: Settings) -> Trigger:
    criteria = entry.get("queryCriteria", {})
    if criteria and not criteria.get("requireBoth", False):
        raise ValueError("queryCriteria need requireBoth")

    def compiled(text: str | None) -> Query | None:
        if text is None:
            return None
        return query.parse(
            entry["resource"], query_parameters(text), lenient=False, settings=settings
        )

    codings = [
        extension["valueCoding"]
        for extension in entry.get("extension", ())
        if extension["url"] == TRIGGER_EXTENSION
    ]
    return Trigger(
        interactions=frozenset(entry.get("supportedInteraction", ("create", "update"))),
        previous=compiled(criteria.get("previous")),
        on_create=criteria.get("resultForCreate", "test-passes") == "test-passes",
        current=compiled(criteria.get("current")),
        coding=codings[0] if codings else None,
    )
