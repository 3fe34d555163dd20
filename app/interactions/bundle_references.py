"""References inside a transaction: entries may refer to one another and to the match of a search.

https://hl7.org/fhir/R4/http.html#trules
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app.context import Context
from app.fhir.definitions import SUPPORTED_TYPES, Element, json_name, structure
from app.fhir.json import Resource
from app.interactions.bundle_entries import BundleEntry
from app.interactions.references import is_conditional, not_one, references_in
from app.runtime import pace
from app.search import query, resolution
from app.search.extract import extract

_TYPES = frozenset(SUPPORTED_TYPES)
_NARRATIVE_LINK = re.compile(r"""(\b(?:href|src)\s*=\s*["'])([^"'#]+)""")
_LINK_TYPES = frozenset({"uri", "url", "oid", "uuid"})


async def resolve(context: Context, writes: Sequence[BundleEntry]) -> dict[int, Resource]:
    """The entries' resources, by entry index, with references to entries and conditional references replaced.

    Raises PreconditionFailed where a conditional reference does not find exactly one resource.
    """
    links = await _links(context, writes)
    bodies = {entry.index: entry.resource for entry in writes if isinstance(entry.resource, dict)}
    bodies = await _rewritten(bodies, links, links)
    criteria = await _conditional_references(bodies.values())
    if not criteria:
        return bodies
    found = await asyncio.gather(*(_find(context, text, writes, bodies) for text in criteria))
    conditional = dict(zip(criteria, found, strict=True))
    return await _rewritten(bodies, conditional, {})


async def _rewritten(
    bodies: Mapping[int, Resource], references: Mapping[str, str], addresses: Mapping[str, str]
) -> dict[int, Resource]:
    return {
        index: rewrite(body, references, addresses)
        async for index, body in pace.paced(bodies.items())
    }


async def _links(context: Context, writes: Iterable[BundleEntry]) -> dict[str, str]:
    """The reference for each fullUrl in the Bundle; for creates also by the id that the client made up."""
    links: dict[str, str] = {}
    async for entry in pace.paced(writes):
        if entry.target is None or not entry.full_url or entry.method not in ("POST", "PUT"):
            continue
        links[entry.full_url] = entry.target.reference
        made_up = entry.full_url.removeprefix(context.base_url + "/")
        if entry.method == "POST" and made_up.count("/") == 1 and ":" not in made_up:
            links[made_up] = entry.target.reference
    return links


async def _conditional_references(bodies: Iterable[Resource]) -> list[str]:
    found = {
        element["reference"]: None
        async for body in pace.paced(bodies)
        for element in references_in(body)
        if is_conditional(element["reference"])
    }
    return list(found)


async def _find(
    context: Context, criteria: str, writes: Sequence[BundleEntry], bodies: Mapping[int, Resource]
) -> str:
    """The reference to the one resource that matches, among stored ones and those that this transaction writes."""
    resource_type, _, text = criteria.partition("?")
    parsed = query.parse(
        resource_type,
        query.criteria(text),
        lenient=False,
        settings=context.settings,
        base_url=context.base_url,
    )
    parsed = await resolution.resolve(context.store, parsed)
    written = {
        entry.target.reference for entry in writes if entry.target and not entry.target.settled
    }
    matches = {
        f"{entry.target.type}/{entry.target.id}"
        for entry in writes
        if entry.target
        and entry.target.type == resource_type
        and entry.method in ("POST", "PUT")
        and entry.index in bodies
        and parsed.matches(extract(resource_type, {**bodies[entry.index], "id": entry.target.id}))
    }
    stored = await context.store.search(resource_type, parsed.filter, len(written) + 2)
    matches |= {match.reference for match in stored if match.reference not in written}
    if len(matches) != 1:
        raise not_one(resource_type, several=bool(matches))
    return matches.pop()


def rewrite(
    resource: Resource, references: Mapping[str, str], addresses: Mapping[str, str]
) -> Resource:
    """A copy with `references` replaced in Reference elements and `addresses` in uri, url, oid and uuid elements
    and in the links of narratives; canonicals stay. What does not change is shared with the original.
    """
    if not references and not addresses:
        return resource
    rewritten: Resource = _Rewriting(references, addresses).object(
        resource, resource.get("resourceType", ""), ()
    )
    return rewritten


class _Rewriting:
    def __init__(self, references: Mapping[str, str], addresses: Mapping[str, str]) -> None:
        self._references = references
        self._addresses = addresses

    def object(self, value: dict[str, Any], resource_type: str, path: tuple[str, ...]) -> Any:
        if path and isinstance(value.get("resourceType"), str):  # contained, or inside a Bundle
            resource_type, path = value["resourceType"], ()
        changed: dict[str, Any] | None = None
        for key, child in value.items():
            new = self._value(child, key, resource_type, path)
            if new is not child:
                changed = dict(value) if changed is None else changed
                changed[key] = new
        return value if changed is None else changed

    def _value(self, child: Any, key: str, resource_type: str, path: tuple[str, ...]) -> Any:
        if type(child) is str:
            return self._text(child, key, resource_type, path)
        if type(child) is dict:
            return self.object(child, resource_type, (*path, key))
        if type(child) is list:
            items = [self._value(item, key, resource_type, path) for item in child]
            same = all(new is old for new, old in zip(items, child, strict=True))
            return child if same else items
        return child

    def _text(self, text: str, key: str, resource_type: str, path: tuple[str, ...]) -> str:
        if key == "reference":
            return self._references.get(text, text)
        if text in self._addresses:
            is_link = type_at(resource_type, (*path, key)) in _LINK_TYPES
            return self._addresses[text] if is_link else text
        if key == "div" and self._addresses:
            return _NARRATIVE_LINK.sub(self._link, text)
        return text

    def _link(self, match: re.Match[str]) -> str:
        return match[1] + self._addresses.get(match[2], match[2])


def type_at(resource_type: str, path: Sequence[str]) -> str | None:
    """The FHIR type of the element at these JSON keys; None where the definitions know no such element."""
    if resource_type not in _TYPES:
        return None
    elements, found = structure(resource_type).elements, None
    for key in path:
        element, found = _element(elements, key)
        if element is None or found is None:
            return None
        elements = element.elements or structure(found).elements
    return found


def _element(elements: Mapping[str, Element], key: str) -> tuple[Element | None, str | None]:
    element = elements.get(key)
    if element is not None and not element.choice:
        return element, element.types[0] if element.types else None
    for name, choice in elements.items():
        if choice.choice and key.startswith(name):
            for type_name in choice.types:
                if json_name(name, type_name) == key:
                    return choice, type_name
    return None, None
