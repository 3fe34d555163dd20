"""The `value` part of a FHIRPath Patch operation as an element of the place it goes to.

https://hl7.org/fhir/R4/fhirpatch.html: a typed value, or nested parts where the type has no name of its own.
"""

from __future__ import annotations

from app.fhir.definitions import structure
from app.fhir.element_definitions import Field
from app.fhir.json import Resource
from app.fhir.patch.elements import Node, single

# Types that JSON and a client without definitions cannot tell apart; validation still judges the result.
_KIN: dict[str, frozenset[str]] = {
    "integer": frozenset(("decimal", "positiveInt", "unsignedInt")),
    "positiveInt": frozenset(("decimal", "integer", "unsignedInt")),
    "unsignedInt": frozenset(("decimal", "integer", "positiveInt")),
    "date": frozenset(("dateTime",)),
    "dateTime": frozenset(("date", "instant")),
    "instant": frozenset(("dateTime",)),
}
_NOT_TEXT = frozenset(("boolean", "decimal", "integer", "positiveInt", "unsignedInt"))
_QUANTITIES = frozenset(("Quantity", "Age", "Count", "Distance", "Duration"))
_LABELS = frozenset(("id", "extension", "name"))


class UnfitError(ValueError):
    """The value is not of a type that may stand at its place."""


def build(part: Resource, fields: tuple[Field, ...]) -> Node:
    """The element that a part makes where one of these fields may stand. Raises UnfitError."""
    keys = {key.removeprefix("_") for key in part} - _LABELS
    if len(keys) != 1:
        raise UnfitError(f"{fields[0].name} needs one value, parts or a resource")
    (key,) = keys
    if key == "part":
        return _from_parts(part["part"], fields)
    if key == "resource":
        if fields[0].kind != "resource":
            raise UnfitError(f"{fields[0].name} cannot be a resource")
        return single(fields[0], part["resource"])
    type_name = _type_of(key)
    field = _field(type_name, fields)
    return single(field, part.get(key), part.get(f"_{key}"))


def _type_of(key: str) -> str:
    """The type in a key such as valueQuantity or valueDateTime."""
    name = key.removeprefix("value")
    try:
        structure(name)
    except KeyError:
        return name[0].lower() + name[1:]
    return name


def _field(type_name: str, fields: tuple[Field, ...]) -> Field:
    for field in fields:
        if field.type_name == type_name:
            return field
    if len(fields) == 1 and _may_stand_for(type_name, fields[0]):
        return fields[0]
    allowed = ", ".join(field.type_name for field in fields)
    if len(fields) > 5:
        allowed = f"one of {len(fields)} types"
    raise UnfitError(f"{fields[0].name} must be {allowed}, not {type_name}")


def _may_stand_for(type_name: str, field: Field) -> bool:
    wanted = field.type_name
    if field.kind != "primitive":
        return type_name in _QUANTITIES and wanted in _QUANTITIES
    if wanted in _KIN.get(type_name, ()):
        return True
    # Any text may come as a string, and a string as any text without a form of its own.
    texts = ("string", "code", "markdown", "id", "uri", "url", "canonical", "oid", "uuid")
    return wanted not in _NOT_TEXT and (
        type_name == "string" or (type_name in texts and wanted in texts)
    )


def _from_parts(parts: list[Resource], fields: tuple[Field, ...]) -> Node:
    """An element without a type name of its own, made of its children."""
    complex_fields = [field for field in fields if field.kind == "complex"]
    if len(complex_fields) != 1:
        raise UnfitError(f"{fields[0].name} cannot be made of parts")
    (field,) = complex_fields
    node = Node(field, field.type_name, None, {})
    for part in parts:
        name = part.get("name", "")
        inner = node.layout.names.get(name)
        if inner is None:
            raise UnfitError(f"{node.layout.path} has no element {name[:64]}")
        same = node.named(name)
        if same and not inner[0].is_list:
            raise UnfitError(f"{node.layout.path}.{name} must not occur twice")
        node.insert(build(part, inner), len(same))
    return node
