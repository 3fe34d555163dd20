"""The only reader of SubscriptionTopic JSON, in R5's shape. It refuses every element that it does not understand.

https://hl7.org/fhir/R5/subscriptiontopic.html. Extensions of our own:

    resourceTrigger   topic-trigger (valueCoding): the coding of the notice's `trigger` part
                      topic-trigger-function (valueCode), any number: a function of trigger_functions.py that must hold
                      topic-trigger-beside (valueBoolean): it adds its coding where another trigger fires
    canFilterBy       topic-filter-search (valueString): the search parameter behind the filter, which may be a chain
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app.errors import FhirError, Unprocessable
from app.fhir import json as fhir_json
from app.fhir.json import Resource
from app.search import query
from app.settings import Settings
from app.subscriptions.topics import trigger_functions
from app.subscriptions.topics.compiled_conditions import CompiledConditions
from app.subscriptions.topics.topic_elements import (
    BESIDE_EXTENSION,
    FUNCTION_EXTENSION,
    TRIGGER_EXTENSION,
)
from app.subscriptions.topics.topic_shapes import FiltersAndShapes
from app.subscriptions.topics.topics import Test, Topic, Trigger, query_parameters
from app.subscriptions.topics.trigger_functions import INQUIRIES, RAISED, TESTS

# The base that our own topics are written with; settings.topic_base takes its place.
DEFAULT_BASE = "http://carerelay.example/SubscriptionTopic/"
_INTERACTIONS = ("create", "update", "delete")
_RESULTS = ("test-passes", "test-fails")


def compile_topic(resource: Resource, settings: Settings) -> Topic:
    """The compiled topic. Raises Unprocessable with an issue for each element that is not understood."""
    reader = _Reader(settings)
    topic = reader.topic(resource)
    if reader.issues:
        raise Unprocessable(issues=reader.issues)
    return topic


class _Reader(FiltersAndShapes):
    """Reads one topic and collects its issues."""

    def topic(self, resource: Resource) -> Topic:
        self.check_known(resource, "", "")
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
            for index, entry in enumerate(self.entries(resource, "resourceTrigger"))
        )
        if not triggers:
            self.refuse(".resourceTrigger", "A topic needs a resourceTrigger", "required")
        types = list(dict.fromkeys(trigger.resource_type for trigger in triggers))
        self._check_beside(triggers)
        return Topic(
            url=url,
            version=str(resource.get("version", "")),
            triggers=triggers,
            filters=self.filters(resource, types),
            shapes=self.shapes(resource, types),
            resource={**resource, "url": url},
            digest=hashlib.sha256(url.encode() + fhir_json.encode(resource)).hexdigest()[:16],
        )

    def _trigger(self, entry: Mapping[str, Any], path: str) -> Trigger:
        resource_type = self.type_of(entry, path)
        own = self.extensions(
            entry,
            path,
            {
                TRIGGER_EXTENSION: "valueCoding",
                FUNCTION_EXTENSION: "valueCode",
                BESIDE_EXTENSION: "valueBoolean",
            },
        )
        interactions = entry.get("supportedInteraction", ["create", "update"])
        if not interactions or not set(interactions) <= set(_INTERACTIONS):
            self.refuse(f"{path}.supportedInteraction", "Known are create, update and delete")
        criteria = entry.get("queryCriteria", {})
        self.check_known(criteria, "queryCriteria", f"{path}.queryCriteria")
        either = (
            "previous" in criteria and "current" in criteria and not criteria.get("requireBoth")
        )
        self._check_results(criteria, interactions, f"{path}.queryCriteria")
        queries = {
            name: self._query(resource_type, criteria.get(name), f"{path}.queryCriteria.{name}")
            for name in ("previous", "current")
        }
        functions = self._functions(own.get(FUNCTION_EXTENSION, ()), path)
        return Trigger(
            resource_type=resource_type,
            interactions=frozenset(interactions),
            previous=queries["previous"],
            current=queries["current"],
            on_create=criteria.get("resultForCreate", "test-passes") == "test-passes",
            on_delete=criteria.get("resultForDelete", "test-fails") == "test-passes",
            either=either,
            tests=tuple(self._tests(entry, functions, path)),
            inquiries=tuple(INQUIRIES[name] for name in functions if name in INQUIRIES),
            raised=RAISED in functions,
            coding=own.get(TRIGGER_EXTENSION),
            is_beside=own.get(BESIDE_EXTENSION) is True,
            description=str(entry.get("description", "")),
        )

    def _check_beside(self, triggers: Sequence[Trigger]) -> None:
        """Refuse a trigger that stands beside others where there are none, or that has nothing to add."""
        firing = {trigger.resource_type for trigger in triggers if not trigger.is_beside}
        for index, trigger in enumerate(triggers):
            if trigger.is_beside and (trigger.resource_type not in firing or not trigger.coding):
                self.refuse(
                    f".resourceTrigger[{index}].extension",
                    "Beside another trigger of its type, a trigger adds its coding",
                    "required",
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

    def _query(self, resource_type: str, text: str | None, path: str) -> CompiledConditions | None:
        if text is None or not resource_type:
            return None
        try:
            given = query_parameters(text.removeprefix(f"{resource_type}?"))
            read = query.parse(resource_type, given, lenient=False, settings=self._settings)
            return CompiledConditions.of(read.conditions)
        except (FhirError, ValueError) as error:
            self.refuse(path, str(error) or "Not a query", "value")
            return None

    def _functions(self, names: Iterable[str], path: str) -> list[str]:
        known = TESTS.keys() | INQUIRIES.keys()
        if not known.issuperset(names):
            self.refuse(
                f"{path}.extension",
                f"Unknown trigger function; there are {', '.join(sorted(known))}",
            )
        return [name for name in names if name in known]

    def _tests(
        self, entry: Mapping[str, Any], functions: Iterable[str], path: str
    ) -> Iterable[Test]:
        yield from (TESTS[name] for name in functions if name in TESTS)
        if "fhirPathCriteria" in entry:
            try:
                yield trigger_functions.compiled(entry["fhirPathCriteria"])
            except ValueError as error:
                self.refuse(f"{path}.fhirPathCriteria", str(error), "value")
