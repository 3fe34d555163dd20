"""SubscriptionTopics as R4 clients can read them: `Basic` with R5's elements in cross-version extensions.

The Subscriptions R5 Backport guide 1.2.0-ballot, Subscription Topics in R4; 1.1 has no such thing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from app.fhir.json import Resource
from app.subscriptions.topics.topics import Topic

CODE_SYSTEM = "http://hl7.org/fhir/fhir-types"
CODE = "SubscriptionTopic"
ID_PREFIX = "topic-"
_EXTENSION = "http://hl7.org/fhir/5.0/StructureDefinition/extension-SubscriptionTopic."
_OUTSIDE_ID = re.compile(r"[^A-Za-z0-9.-]+")

# R5's elements by their types; a mapping is an element with elements of its own.
Elements = Mapping[str, "str | Elements"]
_QUERY: Elements = {
    "previous": "String",
    "resultForCreate": "Code",
    "current": "String",
    "resultForDelete": "Code",
    "requireBoth": "Boolean",
}
_ELEMENTS: Elements = {
    "url": "Uri",
    "version": "String",
    "name": "String",
    "title": "String",
    "date": "DateTime",
    "publisher": "String",
    "description": "Markdown",
    "purpose": "Markdown",
    "resourceTrigger": {
        "description": "Markdown",
        "resource": "Uri",
        "supportedInteraction": "Code",
        "queryCriteria": _QUERY,
        "fhirPathCriteria": "String",
    },
    "canFilterBy": {
        "description": "Markdown",
        "resource": "Uri",
        "filterParameter": "String",
        "filterDefinition": "Uri",
        "comparator": "Code",
        "modifier": "Code",
    },
    "notificationShape": {"resource": "Uri", "include": "String", "revInclude": "String"},
}


def basics(topics: Iterable[Topic]) -> dict[str, Resource]:
    """The Basics that show these topics, by id: the end of the URL, with a hash behind it where that one is taken."""
    shown: dict[str, Resource] = {}
    for topic in topics:
        slug = _OUTSIDE_ID.sub("-", re.split(r"[/:]", topic.url)[-1])
        basic_id = (ID_PREFIX + slug)[:64]
        if basic_id in shown:
            basic_id = f"{basic_id[:55]}-{hashlib.sha256(topic.url.encode()).hexdigest()[:8]}"
        shown[basic_id] = _basic(basic_id, topic)
    return shown


def _basic(basic_id: str, topic: Topic) -> Resource:
    """A topic under the canonical that Subscriptions name."""
    shown = {**topic.resource, "url": topic.url}
    return {
        "resourceType": "Basic",
        "id": basic_id,
        "extension": [
            {**extension, "url": _EXTENSION + extension["url"]}
            for extension in _extensions(shown, _ELEMENTS)
        ],
        "modifierExtension": [
            {"url": _EXTENSION + "status", "valueCode": shown.get("status", "active")}
        ],
        "code": {"coding": [{"system": CODE_SYSTEM, "code": CODE}]},
    }


def _extensions(source: Mapping[str, Any], elements: Elements) -> Iterator[dict[str, Any]]:
    for name, kind in elements.items():
        value = source.get(name)
        for item in value if isinstance(value, list) else [] if value is None else [value]:
            if isinstance(kind, str):
                yield {"url": name, f"value{kind}": item}
            else:
                inner = [*item.get("extension", ()), *_extensions(item, kind)]
                yield {"url": name, "extension": inner}
