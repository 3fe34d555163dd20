"""The registration of a Subscription, read from its resource: the only reader, for checks and for delivery.

Classic: https://hl7.org/fhir/R4/subscription.html
Topic-based: http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/backport-subscription (R4)
An element that is not understood is refused: a dropped filter or extension would widen what is disclosed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from app.errors import Unprocessable
from app.fhir import instants
from app.fhir.codes import SUBSCRIPTION_ENDPOINT, SUBSCRIPTION_OWNER
from app.fhir.json import Resource
from app.settings import Settings
from app.subscriptions.matching import channel_terms, criteria as criteria_
from app.subscriptions.matching.channel_terms import BACKPORT, ChannelTerms, Issues
from app.subscriptions.matching.criteria import Criteria
from app.subscriptions.topics.topics import Catalogue, Topic

FILTER_CRITERIA = BACKPORT + "backport-filter-criteria"

Status = Literal["requested", "active", "error", "off"]

_CANONICAL = ("http://", "https://", "urn:")


@dataclass(frozen=True, slots=True)
class Registration:
    """One Subscription as the server acts on it.

    `kept_for` is the practice or contract it is kept for, `kept_at` the practice's Endpoint.
    """

    id: str
    version: int
    status: Status
    end: datetime | None
    topic: Topic | None
    criteria: Criteria
    channel: ChannelTerms
    kept_for: str | None = None
    kept_at: str | None = None


def read(resource: Resource, catalogue: Catalogue, settings: Settings) -> Registration:
    """The registration. Raises Unprocessable with one issue for each element that is not supported."""
    issues = Issues()
    for path in _modifier_extensions(resource, ""):
        issues.refuse(path, "Unknown modifier extension")
    text = str(resource.get("criteria", ""))
    topic = catalogue.find(text)
    named = text if text.startswith(_CANONICAL) else None
    if topic is not None:
        named = topic.url
    criteria = _read_criteria(resource, topic, settings, issues)
    channel = channel_terms.read(resource.get("channel", {}), settings, issues, topic=named)
    end = issues.attempt("end", lambda: _read_instant(resource.get("end")))
    if issues:
        raise Unprocessable(issues=issues)
    return Registration(
        id=resource.get("id", ""),
        version=int(resource.get("meta", {}).get("versionId", "0")),
        status=resource.get("status", "requested"),
        end=end,
        topic=topic,
        criteria=criteria,
        channel=channel,
        kept_for=_kept_for(resource),
        kept_at=_kept_at(resource),
    )


def _kept_for(resource: Resource) -> str | None:
    tags = resource.get("meta", {}).get("tag", ())
    return next((tag.get("code") for tag in tags if tag.get("system") == SUBSCRIPTION_OWNER), None)


def _kept_at(resource: Resource) -> str | None:
    named = (
        each.get("valueReference", {}).get("reference")
        for each in resource.get("extension", ())
        if each.get("url") == SUBSCRIPTION_ENDPOINT
    )
    return next((each for each in named if each and each.startswith("Endpoint/")), None)


def _read_criteria(
    resource: Resource, topic: Topic | None, settings: Settings, issues: Issues
) -> Any:
    filters: list[str] = []
    text = str(resource.get("criteria", ""))
    extensions = resource.get("_criteria", {}).get("extension", [])
    for index, extension in enumerate(extensions):
        path = f"criteria.extension[{index}]"
        if extension.get("url") != FILTER_CRITERIA:
            issues.refuse(path, "Unknown extension: a filter under a wrong name would be no filter")
        elif topic is None and text.startswith(_CANONICAL):
            break  # the unknown topic is what is wrong
        elif topic is None:
            issues.refuse(path, "Only a topic-based Subscription takes filter criteria")
        elif not isinstance(extension.get("valueString"), str):
            issues.refuse(path, "Filter criteria need a valueString", "required")
        else:
            filters.append(extension["valueString"])
            issues.attempt(path, lambda: criteria_.check_filter(topic, filters[-1], settings))
    if issues:
        return None
    if topic is not None:
        return issues.attempt("criteria", lambda: criteria_.topic_based(topic, filters, settings))
    if text.startswith(_CANONICAL):
        issues.refuse("criteria", "Unknown topic")
        return None
    return issues.attempt("criteria", lambda: criteria_.classic(text, settings))


def _read_instant(value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        return instants.parse(value)
    except ValueError:
        raise Unprocessable("Not an instant", code="value") from None


def _modifier_extensions(value: Any, path: str) -> Iterator[str]:
    """The location of every modifierExtension, contained resources included."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _modifier_extensions(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            child = f"{path}.{key}" if path else key
            if key == "modifierExtension":
                yield child
            yield from _modifier_extensions(item, child)
