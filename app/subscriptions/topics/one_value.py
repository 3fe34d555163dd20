"""Filters that a Subscription has to use, always with the same single value: the one patient of US Core's data feed.

https://hl7.org/fhir/us/core/patient-data-feed.html; canFilterBy with the extension topic-filter-one-value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.errors import Unprocessable
from app.subscriptions.topics.topics import Filter, Topic


def check(topic: Topic, given: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Judge the filters of a Subscription, by type. Raises Unprocessable unless each type has the one value."""
    values = set()
    for resource_type in given or topic.resource_types:
        known = {key: each for key, each in topic.filters[resource_type].items() if each.one_value}
        if not known:
            continue
        found = [(name, value) for name, value in given.get(resource_type, ()) if name in known]
        names = " or ".join(sorted(known))
        if len(found) != 1 or "," in found[0][1]:
            raise Unprocessable(
                f"This topic needs the filter {names} with exactly one value for {resource_type}",
                code="required",
            )
        values.add(plain(found[0][1]))
    if len(values) > 1:
        raise Unprocessable(
            "This topic takes one value only, the same for every type", code="business-rule"
        )


def searched(filter_: Filter, value: str) -> str:
    """The value as the search parameter takes it: an id where the filter stands for the id."""
    return plain(value) if filter_.one_value and filter_.search == "_id" else value


def plain(value: str) -> str:
    """`123` of `123`, of `Patient/123` and of a URL that ends so."""
    return value.rpartition("/")[2]
