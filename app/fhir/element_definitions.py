"""How a type's elements are written: the tables that the XML format and the element tree share.

https://hl7.org/fhir/R4/xml.html and https://hl7.org/fhir/R4/json.html
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from app.fhir.definitions import SUPPORTED_TYPES, json_name, resolve, structure

StructureKind = Literal["primitive", "complex", "resource"]

RESOURCE_TYPES = frozenset(SUPPORTED_TYPES)


@dataclass(frozen=True, slots=True)
class Field:
    """One way an element may be written; a choice element has one for each of its types.

    `key` is the JSON key and XML name (`valueQuantity`), `name` the element's (`value`). `path` names the
    layout of what is inside it: a type, a backbone element, or Element for a primitive's id and extensions.
    """

    key: str
    name: str
    type_name: str
    rank: int
    is_list: bool
    kind: StructureKind
    path: str


@dataclass(frozen=True, slots=True)
class Layout:
    """The elements of one type or backbone element, in the order of its definition."""

    path: str
    is_resource: bool
    fields: dict[str, Field]
    names: dict[str, tuple[Field, ...]]


@cache
def layout(path: str) -> Layout:
    """The layout of a type (`Quantity`) or of a backbone element (`Encounter.participant`)."""
    type_name, _, rest = path.partition(".")
    definition = structure(type_name)
    elements = resolve(path).elements if rest else definition.elements
    fields: dict[str, Field] = {}
    names: dict[str, tuple[Field, ...]] = {}
    for name, element in elements.items():
        of_name = []
        for of_type in element.types or ("BackboneElement",):
            key = json_name(name, of_type) if element.choice else name
            content = element.ref or (f"{path}.{name}" if element.elements else of_type)
            kind = _kind(of_type)
            if kind == "primitive":
                content = "Element"
            field = Field(key, name, of_type, len(fields), element.is_list, kind, content)
            fields[key] = field
            of_name.append(field)
        names[name] = tuple(of_name)
    return Layout(path, definition.kind == "resource" and not rest, fields, names)


def is_attribute(of: Layout, key: str) -> bool:
    """Whether XML writes the field as an attribute: an element's id, but not a resource's, and an extension's url."""
    return (key == "id" and not of.is_resource) or (key == "url" and of.path == "Extension")


def _kind(type_name: str) -> StructureKind:
    if type_name == "Resource":
        return "resource"
    return "primitive" if structure(type_name).kind == "primitive-type" else "complex"
