"""The links of a resource: where it leads elsewhere, and how one link is exchanged for another.

https://hl7.org/fhir/R4/references.html and https://hl7.org/fhir/R4/http.html#trules

Links stand in Reference elements, in elements of type uri, url, oid and uuid, in canonicals, and in `href` and `src` of
narratives; in what a resource contains and in its extensions as well. A Bundle that is itself the resource speaks of
its own entries by its own names (https://hl7.org/fhir/R4/bundle.html#references): its entries are left as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from app.fhir.definitions import SUPPORTED_TYPES, Element, json_name, resolve, structure
from app.fhir.json import Resource

# Where a link stands: in a Reference, in an address (uri, url, oid, uuid, narrative), or in a canonical.
LinkKind = Literal["reference", "address", "canonical"]

_TYPES = frozenset(SUPPORTED_TYPES)
_NARRATIVE_LINK = re.compile(r"""(\b(?:href|src)\s*=\s*["'])([^"'#]+)""")
# The keys of texts that are links whatever they say, or have some in them.
_LINKS = frozenset({"reference", "div"})
_KINDS: Mapping[str | None, LinkKind] = {
    "uri": "address",
    "url": "address",
    "oid": "address",
    "uuid": "address",
    "canonical": "canonical",
}


class LinkRefused(Exception):
    """A link that may not be stored: why, and in `path` the JSON keys and indexes that lead to it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: list[str | int] = []

    def expression(self, start: str) -> str:
        """The place of the link as FHIRPath, below `start`."""
        steps = (f"[{each}]" if isinstance(each, int) else f".{each}" for each in self.path)
        return start + "".join(steps)


class Exchange(Protocol):
    """What becomes of each link."""

    def concerns(self, text: str) -> bool:
        """Whether a text that is no Reference may have to change, if it turns out to be a link."""

    def __call__(self, text: str, kind: LinkKind) -> str:
        """The link to be stored in its place. Raises LinkRefused."""


def references_in(resource: Resource) -> Iterator[dict[str, Any]]:
    """Every Reference element with a literal `reference`, contained resources included, entries of Bundles not."""
    # A plain stack with only objects and arrays on it: a third of the cost of the obvious generator.
    stack: list[Any] = [resource]
    while stack:
        value = stack.pop()
        if type(value) is dict:
            if type(value.get("reference")) is str:
                yield value
            if value.get("resourceType") == "Bundle":
                value = {key: child for key, child in value.items() if key != "entry"}
            value = value.values()
        for child in value:
            kind = type(child)
            if kind is dict or kind is list:
                stack.append(child)


def rewrite(resource: Resource, exchange: Exchange) -> Resource:
    """A copy with its links exchanged; what does not change is shared with the original. Raises LinkRefused."""
    rewritten: Resource = _Rewriting(exchange).object(
        resource, str(resource.get("resourceType", "")), ()
    )
    return rewritten


class FoundReferences:
    """The exchange of conditional references for what they find. https://hl7.org/fhir/R4/http.html#trules"""

    def __init__(self, found: Mapping[str, str]) -> None:
        self._found = found

    def concerns(self, text: str) -> bool:
        return False

    def __call__(self, text: str, kind: LinkKind) -> str:
        return self._found.get(text, text) if kind == "reference" else text


def links_in(resource: Resource) -> set[str]:
    """The texts of all links of a resource."""
    found = _Collected()
    rewrite(resource, found)
    return found.links


class _Collected:
    def __init__(self) -> None:
        self.links: set[str] = set()

    def concerns(self, text: str) -> bool:
        return True

    def __call__(self, text: str, kind: LinkKind) -> str:
        self.links.add(text)
        return text


class _Rewriting:
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._concerns = exchange.concerns

    def object(self, value: dict[str, Any], resource_type: str, path: tuple[str, ...]) -> Any:
        if isinstance(value.get("resourceType"), str):  # the resource itself, or a contained one
            resource_type, path = value["resourceType"], ()
        changed: dict[str, Any] | None = None
        for key, child in value.items():
            kind = type(child)
            if kind is str:
                # Nearly all texts are no link, and nearly all of the time goes by here.
                if key not in _LINKS and not self._concerns(child):
                    continue
            elif kind is not dict and kind is not list:
                continue
            if key == "entry" and resource_type == "Bundle" and not path:
                continue
            try:
                new = self._value(child, key, resource_type, path)
            except LinkRefused as refused:
                refused.path.insert(0, key)
                raise
            if new is not child:
                changed = dict(value) if changed is None else changed
                changed[key] = new
        return value if changed is None else changed

    def _value(self, child: Any, key: str, resource_type: str, path: tuple[str, ...]) -> Any:
        if type(child) is dict:
            return self.object(child, resource_type, (*path, key))
        if type(child) is list:
            return self._list(child, key, resource_type, path)
        if type(child) is str:
            return self._text(child, key, resource_type, path)
        return child

    def _list(
        self, items: list[Any], key: str, resource_type: str, path: tuple[str, ...]
    ) -> list[Any]:
        changed: list[Any] | None = None
        for index, item in enumerate(items):
            try:
                new = self._value(item, key, resource_type, path)
            except LinkRefused as refused:
                refused.path.insert(0, index)
                raise
            if new is not item:
                changed = list(items) if changed is None else changed
                changed[index] = new
        return items if changed is None else changed

    def _text(self, text: str, key: str, resource_type: str, path: tuple[str, ...]) -> str:
        if key == "reference":
            return self._exchange(text, "reference")
        if key == "div":
            return _NARRATIVE_LINK.sub(self._narrative_link, text)
        if self._concerns(text):
            if key == "url" and path and path[-1] in ("extension", "modifierExtension"):
                return text  # the name of what the extension means
            kind = _KINDS.get(type_at(resource_type, (*path, key)))
            return text if kind is None else self._exchange(text, kind)
        return text

    def _narrative_link(self, match: re.Match[str]) -> str:
        link = match[2]
        return match[1] + (
            self._exchange(link, "address") if self._exchange.concerns(link) else link
        )


def type_at(resource_type: str, path: Sequence[str]) -> str | None:
    """The FHIR type of the element at these JSON keys; None where the definitions know no such element."""
    if resource_type not in _TYPES:
        return None
    elements, found = structure(resource_type).elements, None
    for key in path:
        element, found = _element(elements, key)
        if element is not None and element.ref:  # repeats the content of another one
            element = resolve(element.ref)
            found = element.types[0]
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
