"""FHIRPath Patch: operations on elements, sent as a Parameters resource.

https://hl7.org/fhir/R4/fhirpatch.html
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from app.errors import BadRequest, FhirError, Issue, Unprocessable
from app.fhir.definitions import structure
from app.fhir.element_definitions import Field
from app.fhir.json import MAX_DEPTH, Resource, decode, encode
from app.fhir.patch import path as element_path
from app.fhir.patch.elements import Node, root, single
from app.fhir.patch.json_patch import Patch
from app.fhir.patch.path import PatchPath
from app.fhir.patch.path_steps import MismatchError
from app.fhir.validation import check

_PART = re.compile(r"Parameters\.parameter\[\d+\](?:\.part\[\d+\])*")
_NUMBERS = ("index", "source", "destination")
_NEEDED = {
    "add": ("path", "name", "value"),
    "insert": ("path", "index", "value"),
    "delete": ("path",),
    "replace": ("path", "value"),
    "move": ("path", "source", "destination"),
}
_TEXTS = ("valueString", "valueCode", "valueMarkdown")
_INTEGERS = ("valueInteger", "valueUnsignedInt", "valuePositiveInt")


@dataclass(frozen=True, slots=True)
class PatchOperation:
    """One operation; what its type does not need is left at its default. `value` is the part that holds it."""

    apply: Apply
    path: PatchPath
    name: str
    value: Resource
    index: int
    source: int
    destination: int


Apply = Callable[[PatchOperation, Node], None]


def _is_of_the_patch(issue: Issue) -> bool:
    """Whether an issue is an error of the patch itself.

    The invariants of a value are judged where it comes to stand: there `#o` may be a contained resource.
    """
    is_at_a_part = any(map(_PART.fullmatch, issue.expression))
    return issue.severity == "error" and (issue.code != "invariant" or is_at_a_part)


def fhirpath_patch(parameters: Resource) -> Patch:
    """The patch of a decoded Parameters resource.

    Raises BadRequest naming the part that is wrong. Applying raises Unprocessable naming the path that does not
    fit the resource; only a delete may point at nothing.
    """
    if parameters.get("resourceType") != "Parameters":
        raise BadRequest("A FHIRPath Patch is a Parameters resource", code="structure")
    errors = [issue for issue in check(parameters) if _is_of_the_patch(issue)]
    if errors:
        raise BadRequest(issues=errors)
    operations = [
        _operation(parameter, f"Parameters.parameter[{index}]")
        for index, parameter in enumerate(parameters.get("parameter", ()))
    ]

    def apply(resource: Resource) -> Resource:
        top = root(resource)
        for operation in operations:
            try:
                operation.apply(operation, top)
            except (MismatchError, UnfitError) as error:
                raise _unfit(operation, str(error)) from None
        # Written and read again: the tree shares parts with the resource and the operations, and a patch must
        # not build what a request could not have sent.
        try:
            return decode(encode(top.content()))
        except (BadRequest, RecursionError):
            raise Unprocessable(f"The result nests deeper than {MAX_DEPTH} levels") from None

    return apply


# --- reading the operations


def _operation(parameter: Resource, where: str) -> PatchOperation:
    if parameter.get("name") != "operation":
        raise _malformed("its name must be operation", where)
    parts = _parts(parameter, where)
    kind = _text(parts, "type", where)
    if kind not in _NEEDED:
        raise _malformed(f"type must be one of {', '.join(_NEEDED)}", parts["type"][1])
    needed = _NEEDED[kind]
    for name in needed:
        if name not in parts:
            raise _malformed(f"{kind} needs a part {name}", where)
    text = _text(parts, "path", where)
    try:
        path = element_path.parse(text)
    except element_path.PathError as error:
        raise _malformed(f"the path {error}", parts["path"][1]) from None
    numbers = {name: _number(parts, name) if name in needed else 0 for name in _NUMBERS}
    return PatchOperation(
        _OPERATIONS[kind],
        path,
        _text(parts, "name", where) if "name" in needed else "",
        parts["value"][0] if "value" in needed else {},
        **numbers,
    )


def _parts(parameter: Resource, where: str) -> dict[str, tuple[Resource, str]]:
    """The parts by name, each with its place."""
    found: dict[str, tuple[Resource, str]] = {}
    for index, part in enumerate(parameter.get("part", ())):
        name, place = part.get("name"), f"{where}.part[{index}]"
        if name not in ("type", "path", "name", "value", *_NUMBERS):
            raise _malformed("this part is not one of an operation", place)
        if name in found:
            raise _malformed(f"{name} occurs twice", place)
        found[name] = part, place
    return found


def _text(parts: dict[str, tuple[Resource, str]], name: str, where: str) -> str:
    part, place = parts.get(name, ({}, where))
    for key in _TEXTS:
        if key in part:
            return str(part[key])
    raise _malformed(f"an operation needs a part {name} with a string or code", place)


def _number(parts: dict[str, tuple[Resource, str]], name: str) -> int:
    part, place = parts[name]
    for key in _INTEGERS:
        if key in part and part[key] >= 0:
            return int(part[key])
    raise _malformed(f"{name} must be an integer from 0", place)


def _malformed(reason: str, where: str) -> BadRequest:
    return BadRequest(f"{where}: {reason}", code="structure", expression=where)


# --- applying them


def _unfit(operation: PatchOperation, reason: str) -> FhirError:
    path = operation.path.text
    return Unprocessable(f"{path}: {reason}", expression=path)


def _one(operation: PatchOperation, top: Node) -> Node:
    found = operation.path.locate(top)
    if len(found) != 1:
        raise _unfit(operation, f"matches {len(found) or 'no'} elements, not one")
    return found[0]


def _list(operation: PatchOperation, top: Node) -> tuple[Node, str]:
    """The element that has the list, and the list's name; the list itself may still be empty."""
    collection = operation.path.collection(top)
    if collection is None:
        raise _unfit(operation, "does not end in the name of a list")
    parents, name = collection
    if len(parents) != 1:
        raise _unfit(operation, f"matches {len(parents) or 'no'} lists, not one")
    (parent,) = parents
    if not parent.layout.names[name][0].is_list:
        raise _unfit(operation, "is not a list")
    return parent, name


def _parent(operation: PatchOperation, node: Node) -> Node:
    if node.parent is None:
        raise _unfit(operation, "is the resource itself")
    return node.parent


def _add(operation: PatchOperation, top: Node) -> None:
    target = _one(operation, top)
    inside = target.layout
    fields = inside.names.get(operation.name)
    if fields is None and operation.name in inside.fields:
        # `valueQuantity` for `value` is not FHIRPath, but it can only mean one thing.
        fields = (inside.fields[operation.name],)
    if fields is None:
        raise _unfit(operation, f"{inside.path} has no element {operation.name[:64]}")
    existing = target.named(fields[0].name)
    if existing and not fields[0].is_list:
        raise _unfit(operation, f"{fields[0].name} is there already: replace it")
    target.insert(build(operation.value, fields), len(existing))


def _insert(operation: PatchOperation, top: Node) -> None:
    parent, name = _list(operation, top)
    count = len(parent.named(name))
    if operation.index > count:
        raise _unfit(operation, f"index {operation.index} is beyond the list's {count} elements")
    parent.insert(build(operation.value, parent.layout.names[name]), operation.index)


def _delete(operation: PatchOperation, top: Node) -> None:
    found = operation.path.locate(top)
    if not found:
        return
    node = _one(operation, top)
    parent = _parent(operation, node)
    parent.remove(node)
    # Elements are never empty: what held nothing else goes too.
    while parent.is_empty and parent.parent is not None:
        node, parent = parent, parent.parent
        parent.remove(node)


def _replace(operation: PatchOperation, top: Node) -> None:
    node = _one(operation, top)
    parent = _parent(operation, node)
    parent.replace(node, build(operation.value, parent.layout.names[node.name]))


def _move(operation: PatchOperation, top: Node) -> None:
    parent, name = _list(operation, top)
    nodes = parent.named(name)
    for part in (operation.source, operation.destination):
        if part >= len(nodes):
            raise _unfit(operation, f"index {part} is beyond the list's {len(nodes)} elements")
    node = nodes[operation.source]
    parent.remove(node)
    parent.insert(node, operation.destination)


_OPERATIONS: dict[str, Apply] = {
    "add": _add,
    "insert": _insert,
    "delete": _delete,
    "replace": _replace,
    "move": _move,
}


# The `value` part of a FHIRPath Patch operation as an element of the place it goes to.
#
# https://hl7.org/fhir/R4/fhirpatch.html: a typed value, or nested parts where the type has no name of its own.

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
    # There is one: R4's inv-1 asks for either a value, parts or a resource, and a value has one type.
    (key,) = {key.removeprefix("_") for key in part} - _LABELS
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
