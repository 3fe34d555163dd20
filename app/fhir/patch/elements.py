"""A resource as a tree of elements with types, in which places can be found and changed.

JSON spreads one element over keys and arrays: `given`, `_given`, `valueQuantity`. Here it is one node, a primitive's
id and extensions are its children, and a list is a run of siblings of one name.
https://hl7.org/fhir/R4/json.html and https://hl7.org/fhir/R4/formats.html
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from app.fhir.element_definitions import Field, Layout, layout
from app.fhir.json import Resource


class Node:
    """One element. `value` is a primitive's value; children are made from JSON when they are first asked for.

    `field` says how the parent writes it, None for the resource at the top.
    """

    __slots__ = ("_children", "_raw", "field", "parent", "type_name", "value")

    def __init__(self, field: Field | None, type_name: str, value: Any, raw: Resource) -> None:
        self.field = field
        self.type_name = type_name
        self.value = value
        self.parent: Node | None = None
        self._raw = raw
        self._children: list[Node] | None = None

    @property
    def name(self) -> str:
        return self.type_name if self.field is None else self.field.name

    @property
    def is_primitive(self) -> bool:
        return self.field is not None and self.field.kind == "primitive"

    @property
    def layout(self) -> Layout:
        """What may be inside this element."""
        if self.field is None or self.field.kind == "resource":
            return layout(self.type_name)
        return layout(self.field.path)

    @property
    def children(self) -> list[Node]:
        """The elements inside, in JSON's order; change them with `insert` and `remove`."""
        if self._children is None:
            self._children = [
                self._own(node)
                for field in self._fields_present()
                for node in from_json(
                    field, self._raw.get(field.key), self._raw.get(f"_{field.key}")
                )
            ]
        return self._children

    def _fields_present(self) -> list[Field]:
        fields = self.layout.fields
        keys = (key.removeprefix("_") for key in self._raw)
        return [fields[key] for key in dict.fromkeys(keys) if key in fields]

    def _own(self, node: Node) -> Node:
        node.parent = self
        return node

    def named(self, name: str) -> list[Node]:
        """The children of one element name, all types of a choice included."""
        return [child for child in self.children if child.name == name]

    def insert(self, node: Node, index: int) -> None:
        """Put a child at this position among those of its name; at the end where there are fewer."""
        same = self.named(node.name)
        children = self.children
        at = children.index(same[index]) if index < len(same) else len(children)
        children.insert(at, self._own(node))

    def replace(self, old: Node, new: Node) -> None:
        children = self.children
        children[children.index(old)] = self._own(new)

    def remove(self, child: Node) -> None:
        self.children.remove(child)
        child.parent = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left of it: such elements must not be written."""
        return self.value is None and not self.children

    def content(self) -> Resource:
        """JSON's object for what is inside, all but a primitive's value; an untouched one as it was."""
        if self._children is None:
            return self._raw
        found: Resource = {}
        if "resourceType" in self._raw:
            found["resourceType"] = self._raw["resourceType"]
        for child in self._children:
            _write(found, child)
        return found

    def json(self) -> Any:
        """What JSON writes for the element, without the companion of a primitive."""
        return self.value if self.is_primitive else self.content()


def root(resource: Resource) -> Node:
    """The tree of a valid resource, which it shares its untouched parts with."""
    return Node(None, resource["resourceType"], None, resource)


def from_json(field: Field, item: Any, extra: Any = None) -> Iterator[Node]:
    """The nodes of one JSON key and its `_` companion; several for an array."""
    if not field.is_list:
        yield single(field, item, extra)
        return
    for each, beside in zip_longest(item or (), extra or ()):
        yield single(field, each, beside)


def single(field: Field, item: Any, extra: Resource | None = None) -> Node:
    """The node of one value; `extra` is the `_` companion of a primitive."""
    if field.kind == "primitive":
        return Node(field, field.type_name, item, extra or {})
    type_name = item["resourceType"] if field.kind == "resource" else field.type_name
    return Node(field, type_name, None, item)


def _write(found: Resource, node: Node) -> None:
    """Add a child to its parent's JSON, keeping the arrays of values, with nulls, and companions aligned."""
    field = node.field
    assert field is not None  # noqa: S101 - only the root has none, and it is no child
    if field.kind != "primitive":
        if field.is_list:
            found.setdefault(field.key, []).append(node.content())
        else:
            found[field.key] = node.content()
        return
    beside = f"_{field.key}"
    extra = node.content() or None
    if not field.is_list:
        found |= {
            key: each
            for key, each in ((field.key, node.value), (beside, extra))
            if each is not None
        }
        return
    values = found.setdefault(field.key, [])
    if beside in found or extra is not None:
        found.setdefault(beside, [None] * len(values)).append(extra)
    values.append(node.value)
