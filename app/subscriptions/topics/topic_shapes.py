"""The filters that a topic offers to Subscriptions, and the shapes of its notices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app.attribution import derived
from app.errors import FhirError, Unprocessable
from app.fhir.definitions import SUPPORTED_TYPES
from app.fhir.json import Resource
from app.search import query
from app.search.search_parameters import parameters
from app.settings import Settings
from app.subscriptions.topics.topic_elements import EXTENSIONS, Elements
from app.subscriptions.topics.topics import COMPARATORS, TRIGGER_FILTER, Filter, Shape, Topic

SEARCH_EXTENSION = EXTENSIONS + "topic-filter-search"
ONE_VALUE_EXTENSION = EXTENSIONS + "topic-filter-one-value"


class FiltersAndShapes(Elements):
    """Reads canFilterBy and notificationShape."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings

    def filters(self, resource: Resource, types: Iterable[str]) -> dict[str, dict[str, Filter]]:
        found: dict[str, dict[str, Filter]] = {name: {} for name in types}
        for index, entry in enumerate(self.entries(resource, "canFilterBy")):
            path = f".canFilterBy[{index}]"
            key = entry.get("filterParameter")
            if not isinstance(key, str) or not key.replace("-", "").replace("_", "").isalnum():
                self.refuse(f"{path}.filterParameter", "A filter needs a name", "required")
                continue
            filter_ = self._filter(entry, key, path)
            only = [self.type_of(entry, path)] if "resource" in entry else list(found)
            for name in only:
                if name in found:
                    self._check_search(name, filter_, path)
                    found[name][key] = filter_
                elif name:
                    self.refuse(f"{path}.resource", "The topic does not watch this type")
        return found

    def _filter(self, entry: Mapping[str, Any], key: str, path: str) -> Filter:
        own = self.extensions(
            entry, path, {SEARCH_EXTENSION: "valueString", ONE_VALUE_EXTENSION: "valueBoolean"}
        )
        if not set(entry.get("comparator", ())) <= set(COMPARATORS):
            self.refuse(f"{path}.comparator", "Unknown comparator", "value")
        if own.get(SEARCH_EXTENSION) in derived.PATHS and {"modifier", "comparator"} & entry.keys():
            self.refuse(path, "Such a filter takes neither modifiers nor comparators")
        return Filter(
            own.get(SEARCH_EXTENSION, key),
            frozenset(entry.get("modifier", ())),
            frozenset(entry.get("comparator", ())),
            one_value=own.get(ONE_VALUE_EXTENSION) is True,
        )

    def _check_search(self, resource_type: str, filter_: Filter, path: str) -> None:
        """Refuse a filter without an existing parameter, by parsing it with `:missing`, which takes `true` for all."""
        if filter_.search == TRIGGER_FILTER:
            return
        try:
            given = [(f"{filter_.search}:missing", "true")]
            if filter_.search.startswith("$"):
                derived.check(filter_.search, resource_type)
            elif filter_.search != "_id":
                query.parse(resource_type, given, lenient=False, settings=self._settings)
        except FhirError as error:
            self.refuse(f"{path}.filterParameter", str(error))

    def shapes(self, resource: Resource, types: Iterable[str]) -> dict[str, Shape]:
        found: dict[str, Shape] = {}
        for index, entry in enumerate(self.entries(resource, "notificationShape")):
            path = f".notificationShape[{index}]"
            name = self.type_of(entry, path)
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
        """`Type:parameter` pairs, of reference parameters that exist; an include may go on with `:Type`."""
        found = []
        for index, text in enumerate(entry.get(element, ())):
            name, _, code = str(text).removeprefix("&").partition(":")
            plain, _, target = code.partition(":") if element == "include" else (code, "", "")
            known = parameters(name).get(plain) if name in SUPPORTED_TYPES else None
            if (
                known is None
                or known.type != "reference"
                or (target and target not in known.targets)
            ):
                self.refuse(
                    f"{path}.{element}[{index}]",
                    "Not of the form Type:reference-parameter",
                    "value",
                )
            else:
                found.append((name, code))
        return found


# Filters that a Subscription has to use, always with the same single value: the one patient of US Core's data feed.
#
# https://hl7.org/fhir/us/core/patient-data-feed.html; canFilterBy with the extension topic-filter-one-value.


def check(topic: Topic, given: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Check the filters of a Subscription, by type. Raises Unprocessable unless each type has the one value."""
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
    """The value as the search parameter takes it: an id where the filter's parameter is `_id`."""
    return plain(value) if filter_.one_value and filter_.search == "_id" else value


def plain(value: str) -> str:
    """`123` of `123`, of `Patient/123` and of a URL that ends so."""
    return value.rpartition("/")[2]
