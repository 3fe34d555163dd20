"""From R5-shaped SubscriptionTopic JSON to topics: the only reader. What it does not understand it refuses.

https://hl7.org/fhir/R5/subscriptiontopic.html; docs/topics.md says what operators may write. Extensions of our own:

    resourceTrigger   topic-trigger (valueCoding): the coding of the notice's `trigger` part
                      topic-trigger-function (valueCode): a function of topics.py that must hold as well
    canFilterBy       topic-filter-search (valueString): the search parameter that the filter stands for, a chain maybe
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from app import fhir_json
from app.definitions import PROFILES, SUPPORTED_TYPES
from app.errors import FhirError, Issue, Unprocessable
from app.fhir_json import Resource
from app.search import query
from app.search.registry import parameters
from app.settings import Settings
from app.subscriptions import fhirpath_criteria
from app.subscriptions.question import Question
from app.subscriptions.topics import (
    TRIGGER_FILTER,
    TRIGGER_FUNCTIONS,
    Catalogue,
    Filter,
    Shape,
    Test,
    Topic,
    Trigger,
    query_parameters,
)

# The base that our own topics are written with; settings.topic_base takes its place.
DEFAULT_BASE = "http://carerelay.example/SubscriptionTopic/"
_OURS = "http://carerelay.example/StructureDefinition/"
TRIGGER_EXTENSION = _OURS + "topic-trigger"
FUNCTION_EXTENSION = _OURS + "topic-trigger-function"
SEARCH_EXTENSION = _OURS + "topic-filter-search"
_CORE = "http://hl7.org/fhir/StructureDefinition/"
_INTERACTIONS = ("create", "update", "delete")
_RESULTS = ("test-passes", "test-fails")
_COMPARATORS = ("eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap")

# Elements that are understood, or that say nothing about what fires.
_KNOWN: Mapping[str, frozenset[str]] = {
    "": frozenset(
        ["resourceType", "id", "meta", "implicitRules", "language", "text", "url", "identifier", "version", "versionAlgorithmString", "name", "title", "derivedFrom", "status", "experimental", "date", "publisher", "contact", "description", "useContext", "jurisdiction", "purpose", "copyright", "copyrightLabel", "approvalDate", "lastReviewDate", "effectivePeriod", "resourceTrigger", "canFilterBy", "notificationShape"]
    ),
    "resourceTrigger": frozenset(
        ["id", "extension", "description", "resource", "supportedInteraction", "queryCriteria", "fhirPathCriteria"]
    ),
    "queryCriteria": frozenset(
        ["previous", "resultForCreate", "current", "resultForDelete", "requireBoth"]
    ),
    "canFilterBy": frozenset(
        ["id", "extension", "description", "resource", "filterParameter", "filterDefinition", "comparator", "modifier"]
    ),
    "notificationShape": frozenset(["id", "resource", "include", "revInclude"]),
}


@cache
def _files(directory: Path) -> Mapping[str, Resource]:
    """The JSON files of a directory by name."""
    found = {}
    for path in sorted(directory.glob("*.json")):
        try:
            found[path.name] = fhir_json.decode(path.read_bytes())
        except FhirError as error:
            raise ValueError(f"{path}: {error}") from None
    return found


def load(settings: Settings, directory: Path = PROFILES / "topics") -> Catalogue:
    """The topics of profiles/topics and of the operator's directory; one of his takes the place of ours.

    Raises ValueError, which names the file and the reason, for one that cannot be evaluated.
    """
    return Catalogue(read_files(settings, directory))


def read_files(settings: Settings, directory: Path = PROFILES / "topics") -> list[Topic]:
    """As `load`, but a list."""
    topics: dict[str, Topic] = {}
    for each in (directory, settings.topics):
        if each is None or each == Path():  # an empty variable
            continue
        if not each.is_dir():
            raise ValueError(f"{each} is no directory of topics")
        for name, resource in _files(each).items():
            try:
                topic = compile_topic(resource, settings)
            except FhirError as error:
                reasons = "; ".join(
                    f"{' '.join(issue.expression)}: {issue.diagnostics}" for issue in error.issues
                )
                raise ValueError(f"{each / name}: {reasons}") from None
            if resource.get("status") == "active":
                topics[topic.url] = topic
    return list(topics.values())


def compile_topic(resource: Resource, settings: Settings) -> Topic:
    """One SubscriptionTopic as code. Raises Unprocessable with an issue for each thing that is not understood."""
    reader = _Reader(settings)
    topic = reader.topic(resource)
    if reader.issues:
        raise Unprocessable(issues=reader.issues)
    return topic


class _Reader:
    """Reads one topic and collects what is wrong with it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.issues: list[Issue] = []

    def refuse(self, path: str, diagnostics: str, code: str = "not-supported") -> None:
        self.issues.append(Issue(code, diagnostics, (f"SubscriptionTopic{path}",)))

    def topic(self, resource: Resource) -> Topic:
        self._check_known(resource, "", "")
        if resource.get("resourceType") != "SubscriptionTopic":
            self.refuse(".resourceType", "Not a SubscriptionTopic", "structure")
        url = resource.get("url")
        if not isinstance(url, str) or ":" not in url or "|" in url:
            self.refuse(".url", "A topic needs an absolute URL", "required")
            url = ""
        elif url.startswith(DEFAULT_BASE):
            url = self._settings.topic_base.rstrip("/") + "/" + url[len(DEFAULT_BASE) :]
        if resource.get("status") not in ("active", "draft", "retired"):
            self.refuse(".status", "The status must be active, draft or retired", "required")
        triggers = tuple(
            self._trigger(entry, f".resourceTrigger[{index}]")
            for index, entry in enumerate(self._entries(resource, "resourceTrigger"))
        )
        if not triggers:
            self.refuse(".resourceTrigger", "A topic needs a resourceTrigger", "required")
        types = list(dict.fromkeys(trigger.resource_type for trigger in triggers))
        return Topic(
            url=url,
            version=str(resource.get("version", "")),
            triggers=triggers,
            filters=self._filters(resource, types),
            shapes=self._shapes(resource, types),
            resource={**resource, "url": url},
            digest=hashlib.sha256(url.encode() + fhir_json.encode(resource)).hexdigest()[:16],
        )

    def _entries(self, resource: Resource, name: str) -> list[dict[str, Any]]:
        entries = resource.get(name, [])
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            self.refuse(f".{name}", "Not a list of objects", "structure")
            return []
        for index, entry in enumerate(entries):
            self._check_known(entry, name, f".{name}[{index}]")
        return entries

    def _check_known(self, entry: Mapping[str, Any], kind: str, path: str) -> None:
        for name in sorted(entry.keys() - _KNOWN[kind]):
            self.refuse(f"{path}.{name}", "This server does not evaluate this element")

    def _type(self, entry: Mapping[str, Any], path: str) -> str:
        name = str(entry.get("resource", "")).removeprefix(_CORE)
        if name not in SUPPORTED_TYPES or name == "Subscription":
            self.refuse(f"{path}.resource", "Not a resource type that can be watched")
            return ""
        return name

    def _extensions(
        self, entry: Mapping[str, Any], path: str, known: Mapping[str, str]
    ) -> dict[str, Any]:
        """The values of our extensions by URL; each may occur once."""
        found: dict[str, Any] = {}
        for index, extension in enumerate(entry.get("extension", ())):
            url = extension.get("url")
            value = extension.get(known.get(url, ""))
            if value is None or url in found:
                self.refuse(f"{path}.extension[{index}]", "Unknown extension, or one too many")
            else:
                found[url] = value
        return found

    def _trigger(self, entry: Mapping[str, Any], path: str) -> Trigger:
        resource_type = self._type(entry, path)
        own = self._extensions(
            entry, path, {TRIGGER_EXTENSION: "valueCoding", FUNCTION_EXTENSION: "valueCode"}
        )
        interactions = entry.get("supportedInteraction", ["create", "update"])
        if not interactions or not set(interactions) <= set(_INTERACTIONS):
            self.refuse(f"{path}.supportedInteraction", "Known are create, update and delete")
        criteria = entry.get("queryCriteria", {})
        self._check_known(criteria, "queryCriteria", f"{path}.queryCriteria")
        either = "previous" in criteria and "current" in criteria and not criteria.get("requireBoth")
        self._check_results(criteria, interactions, f"{path}.queryCriteria")
        queries = {
            name: self._query(resource_type, criteria.get(name), f"{path}.queryCriteria.{name}")
            for name in ("previous", "current")
        }
        return Trigger(
            resource_type=resource_type,
            interactions=frozenset(interactions),
            previous=queries["previous"],
            current=queries["current"],
            on_create=criteria.get("resultForCreate", "test-passes") == "test-passes",
            on_delete=criteria.get("resultForDelete", "test-fails") == "test-passes",
            either=either,
            tests=tuple(self._tests(entry, own.get(FUNCTION_EXTENSION), path)),
            coding=own.get(TRIGGER_EXTENSION),
            description=str(entry.get("description", "")),
        )

    def _check_results(
        self, criteria: Mapping[str, Any], interactions: Iterable[str], path: str
    ) -> None:
        for name in ("resultForCreate", "resultForDelete"):
            if name in criteria and criteria[name] not in _RESULTS:
                self.refuse(f"{path}.{name}", f"Known are {' and '.join(_RESULTS)}", "value")
        # With two criteria of which one is enough, a default would fire on every create.
        if (
            "previous" in criteria
            and not criteria.get("requireBoth")
            and "create" in interactions
            and "resultForCreate" not in criteria
        ):
            self.refuse(f"{path}.resultForCreate", "Say what a create is to `previous`", "required")

    def _query(self, resource_type: str, text: str | None, path: str) -> Question | None:
        if text is None or not resource_type:
            return None
        try:
            given = query_parameters(text.removeprefix(f"{resource_type}?"))
            read = query.parse(resource_type, given, lenient=False, settings=self._settings)
            return Question.of(read.conditions)
        except (FhirError, ValueError) as error:
            self.refuse(path, str(error) or "Not a query", "value")
            return None

    def _tests(self, entry: Mapping[str, Any], function: str | None, path: str) -> Iterable[Test]:
        if function is not None:
            if function in TRIGGER_FUNCTIONS:
                yield TRIGGER_FUNCTIONS[function]
            else:
                known = ", ".join(sorted(TRIGGER_FUNCTIONS))
                self.refuse(f"{path}.extension", f"Unknown trigger function; there are {known}")
        if "fhirPathCriteria" in entry:
            try:
                yield fhirpath_criteria.compiled(entry["fhirPathCriteria"])
            except ValueError as error:
                self.refuse(f"{path}.fhirPathCriteria", str(error), "value")

    def _filters(
        self, resource: Resource, types: Iterable[str]
    ) -> dict[str, dict[str, Filter]]:
        found: dict[str, dict[str, Filter]] = {name: {} for name in types}
        for index, entry in enumerate(self._entries(resource, "canFilterBy")):
            path = f".canFilterBy[{index}]"
            key = entry.get("filterParameter")
            if not isinstance(key, str) or not key.replace("-", "").replace("_", "").isalnum():
                self.refuse(f"{path}.filterParameter", "A filter needs a name", "required")
                continue
            filter_ = self._filter(entry, key, path)
            only = [self._type(entry, path)] if "resource" in entry else list(found)
            for name in only:
                if name in found:
                    self._check_search(name, filter_, path)
                    found[name][key] = filter_
                elif name:
                    self.refuse(f"{path}.resource", "The topic does not watch this type")
        return found

    def _filter(self, entry: Mapping[str, Any], key: str, path: str) -> Filter:
        own = self._extensions(entry, path, {SEARCH_EXTENSION: "valueString"})
        if not set(entry.get("comparator", ())) <= set(_COMPARATORS):
            self.refuse(f"{path}.comparator", "Unknown comparator", "value")
        return Filter(
            own.get(SEARCH_EXTENSION, key),
            frozenset(entry.get("modifier", ())),
            frozenset(entry.get("comparator", ())),
        )

    def _check_search(self, resource_type: str, filter_: Filter, path: str) -> None:
        """The parameter must exist; `:missing` takes the same value everywhere, so it can ask."""
        if filter_.search == TRIGGER_FILTER:
            return
        try:
            given = [(f"{filter_.search}:missing", "true")]
            if filter_.search != "_id":
                query.parse(resource_type, given, lenient=False, settings=self._settings)
        except FhirError as error:
            self.refuse(f"{path}.filterParameter", str(error))

    def _shapes(self, resource: Resource, types: Iterable[str]) -> dict[str, Shape]:
        found: dict[str, Shape] = {}
        for index, entry in enumerate(self._entries(resource, "notificationShape")):
            path = f".notificationShape[{index}]"
            name = self._type(entry, path)
            if name and name not in types:
                self.refuse(f"{path}.resource", "The topic does not watch this type")
                continue
            includes = self._references(entry, "include", path)
            reverse = self._references(entry, "revInclude", path)
            for type_, _ in includes:
                if type_ != name:
                    self.refuse(f"{path}.include", "An include starts at the focus", "value")
            for type_, code in reverse:
                targets = parameters(type_)[code].targets
                if targets and name not in targets:
                    self.refuse(f"{path}.revInclude", "It does not refer to the focus", "value")
            before = found.get(name, Shape())
            found[name] = Shape(
                before.includes + tuple(code for _, code in includes),
                before.reverse + tuple(reverse),
            )
        return found

    def _references(
        self, entry: Mapping[str, Any], element: str, path: str
    ) -> list[tuple[str, str]]:
        """`Type:parameter` pairs, of reference parameters that exist."""
        found = []
        for index, text in enumerate(entry.get(element, ())):
            name, _, code = str(text).removeprefix("&").partition(":")
            known = parameters(name).get(code) if name in SUPPORTED_TYPES else None
            if known is None or known.type != "reference":
                self.refuse(
                    f"{path}.{element}[{index}]", "Not of the form Type:reference-parameter", "value"
                )
            else:
                found.append((name, code))
        return found
