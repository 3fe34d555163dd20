"""`_summary` and `_elements`: a resource cut down to what the client asked for, and marked as cut.

https://hl7.org/fhir/R4/search.html#summary
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from app.fhir.definitions import Element, json_name, resolve, structure
from app.fhir.json import Resource

SUBSETTED = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
    "code": "SUBSETTED",
}
_ALWAYS = frozenset({"resourceType", "id", "meta"})
# Bundles of what was found, which may have been asked for in parts.
_FOUND = frozenset({"searchset", "history", "batch-response", "transaction-response"})


def subset(resource: Resource, summary: str | None, elements: Sequence[str]) -> Resource:
    """The resource as `_summary` (true, text, data) or `_elements` (names of top-level elements) want it.

    What must be there stays, so that the result is still valid; `meta.tag` says that it is not whole.
    """
    resource_type = resource.get("resourceType", "")
    if resource_type == "OperationOutcome":
        return resource
    if elements:
        wanted = frozenset(name.removeprefix(f"{resource_type}.") for name in elements)
        kept = _keep(resource, wanted | _mandatory(resource_type))
    elif summary == "text":
        kept = _keep(resource, frozenset({"text"}) | _mandatory(resource_type))
    elif summary == "data":
        kept = _without_text(resource)
    else:
        kept = _summarised(resource, structure(resource_type).elements)
        kept = {**{key: resource[key] for key in _ALWAYS if key in resource}, **kept}
    return _marked(kept)


def subset_bundle(bundle: Resource, summary: str | None, elements: Sequence[str]) -> Resource:
    """A result with each resource cut down; an element of another type is named `Type.element`."""
    entries = [
        {**entry, "resource": _subset_found(entry["resource"], summary, elements)}
        if "resource" in entry
        else entry
        for entry in bundle.get("entry", ())
    ]
    return {**bundle, "entry": entries} if entries else bundle


def _subset_found(resource: Resource, summary: str | None, elements: Sequence[str]) -> Resource:
    # What a batch was asked for is a result itself. Those that are stored have a version.
    if resource.get("resourceType") == "Bundle" and "meta" not in resource:
        return subset_bundle(resource, summary, elements)
    return subset(resource, summary, elements)


def subset_tags(resource: Resource, where: str | None = None) -> Iterator[str]:
    """Where a valid resource, or one inside it, says that it is not whole.

    What a stored search or history found may be cut down: those Bundles are no place that anybody writes from.
    """
    where = where or str(resource["resourceType"])
    for index, tag in enumerate(resource.get("meta", {}).get("tag", ())):
        if is_subset_tag(tag):
            yield f"{where}.meta.tag[{index}]"
    for index, inside in enumerate(resource.get("contained", ())):
        yield from subset_tags(inside, f"{where}.contained[{index}]")
    if resource["resourceType"] == "Bundle" and resource.get("type") not in _FOUND:
        for index, entry in enumerate(resource.get("entry", ())):
            if "resource" in entry:
                yield from subset_tags(entry["resource"], f"{where}.entry[{index}].resource")


def is_subset_tag(tag: Resource) -> bool:
    """Whether a tag says that the resource is not whole."""
    return tag.get("code") == SUBSETTED["code"] and "ObservationValue" in tag.get("system", "")


def _marked(resource: Resource) -> Resource:
    meta = resource.get("meta", {})
    tags = meta.get("tag", [])
    if any(is_subset_tag(tag) for tag in tags):
        return resource
    return {**resource, "meta": {**meta, "tag": [*tags, SUBSETTED]}}


def _keep(resource: Resource, names: frozenset[str]) -> Resource:
    keys = _keys(resource.get("resourceType", ""))
    return {
        key: value
        for key, value in resource.items()
        if key in _ALWAYS or keys.get(key.removeprefix("_"), key) in names
    }


def _summarised(value: Mapping[str, Any], elements: Mapping[str, Element]) -> dict[str, Any]:
    """The summary elements, inside backbone elements and resources too; values of data types stay whole."""
    names = _json_names(elements)
    kept: dict[str, Any] = {}
    for key, child in value.items():
        element = elements.get(names.get(key.removeprefix("_"), ""))
        if element is None or not element.summary:
            continue
        if isinstance(child, list):
            child = [_summarised_child(item, element) for item in child]
        else:
            child = _summarised_child(child, element)
        if child not in ({}, []):
            kept[key] = child
    return kept


def _summarised_child(child: Any, element: Element) -> Any:
    if not isinstance(child, dict):
        return child
    if "resourceType" in child:
        return subset(child, "true", ())
    inner = resolve(element.ref).elements if element.ref else element.elements
    return _summarised(child, inner) if inner else child


def _without_text(resource: Resource) -> Resource:
    """The resource without narrative, and without that of the resources in it."""
    return {key: _with_data(value) for key, value in resource.items() if key != "text"}


def _with_data(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_data(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "resourceType" in value:
        return _without_text(value)
    return {key: _with_data(each) for key, each in value.items()}


def _json_names(elements: Mapping[str, Element]) -> dict[str, str]:
    """The element of each JSON key, choice types spelled out."""
    names: dict[str, str] = {}
    for name, element in elements.items():
        if element.choice:
            names.update({json_name(name, type_name): name for type_name in element.types})
        else:
            names[name] = name
    return names


@cache
def _keys(resource_type: str) -> dict[str, str]:
    return _json_names(structure(resource_type).elements)


@cache
def _mandatory(resource_type: str) -> frozenset[str]:
    return frozenset(n for n, element in structure(resource_type).elements.items() if element.min)
