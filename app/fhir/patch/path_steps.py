"""The steps of a path through the element tree: each takes the elements found so far to the next ones.

http://hl7.org/fhirpath/N1/
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.fhir.patch.elements import Node

# A node, or a bare value where an expression makes one.
Item = Any
Items = list[Item]
Step = Callable[[Items], Items]

_ANY_RESOURCE = frozenset(("Resource", "DomainResource"))


class MismatchError(ValueError):
    """The path names what the resource's type does not have."""


@dataclass(frozen=True, slots=True)
class Child:
    """The step to the children of one name."""

    name: str

    def __call__(self, focus: Items) -> Items:
        nodes = [item for item in focus if isinstance(item, Node)]
        # Of contained resources each may be of another type: some of them need not have the element.
        typed = [node for node in nodes if node.field is None or node.field.kind != "resource"]
        if typed and not any(self.name in node.layout.names for node in typed):
            raise MismatchError(self._stranger(typed[0]))
        return [child for node in nodes for child in node.named(self.name)]

    def _stranger(self, node: Node) -> str:
        field = node.layout.fields.get(self.name)
        hint = f": FHIRPath calls it {field.name}" if field is not None else ""
        return f"{self.name} is not an element of {node.layout.path}{hint}"


def follow(steps: tuple[Step, ...], focus: Items) -> Items:
    for step in steps:
        focus = step(focus)
    return focus


def start(name: str) -> Step:
    """A capital first name is the type of what the path starts at, not an element."""

    def step(focus: Items) -> Items:
        for item in focus:
            if not isinstance(item, Node) or (name != item.type_name and name not in _ANY_RESOURCE):
                found = item.type_name if isinstance(item, Node) else "a value"
                raise MismatchError(f"it starts at {name}, but this is {found}")
        return focus

    return step


def at(position: int) -> Step:
    return lambda focus: focus[position : position + 1]


def last(focus: Items) -> Items:
    return focus[-1:]


def where(criteria: Step) -> Step:
    return lambda focus: [item for item in focus if _is_true(criteria([item]))]


def of_type(name: str) -> Step:
    return lambda focus: [
        item for item in focus if isinstance(item, Node) and item.type_name == name
    ]


def extension(url: str) -> Step:
    def step(focus: Items) -> Items:
        found = Child("extension")(focus)
        return [each for each in found if [_value(at) for at in each.named("url")] == [url]]

    return step


def resolve(focus: Items) -> Items:
    """Only references to contained resources: a patch must not reach into another resource."""
    found: Items = []
    for item in focus:
        reference = item
        if isinstance(item, Node):
            inside = item.named("reference") if item.type_name == "Reference" else [item]
            reference = _value(inside[0]) if inside else None
        if (
            not isinstance(reference, str)
            or not reference.startswith("#")
            or not isinstance(item, Node)
        ):
            raise MismatchError("resolve() only reaches contained resources (#id)")
        found += _contained(item, reference[1:])
    return list(dict.fromkeys(found))


def _contained(node: Node, wanted: str) -> Items:
    top = node
    while top.parent is not None:
        top = top.parent
    if "contained" not in top.layout.names:
        return []
    return [
        each for each in top.named("contained") if [at.value for at in each.named("id")] == [wanted]
    ]


def _value(item: Item) -> Any:
    """A value that can be compared: a primitive's, or the whole JSON of anything else."""
    return item.json() if isinstance(item, Node) else item


def _is_true(items: Items) -> bool:
    """FHIRPath's singleton evaluation: one item that is no boolean counts as true."""
    return len(items) == 1 and _value(items[0]) is not False


def equal(left: Step, right: Step, wanted: bool) -> Step:
    def step(focus: Items) -> Items:
        a, b = [_value(each) for each in left(focus)], [_value(each) for each in right(focus)]
        return [(a == b) is wanted] if a and b else []

    return step


def _text_test(test: Callable[[str, str], bool], text: str) -> Step:
    def step(focus: Items) -> Items:
        values = [_value(item) for item in focus]
        return [test(values[0], text)] if len(values) == 1 and isinstance(values[0], str) else []

    return step


def any_of(left: Step, right: Step) -> Step:
    return lambda focus: [_is_true(left(focus)) or _is_true(right(focus))]


def all_of(left: Step, right: Step) -> Step:
    return lambda focus: [_is_true(left(focus)) and _is_true(right(focus))]


def literal(value: Any) -> Step:
    return lambda focus: [value]


def itself(focus: Items) -> Items:
    return focus


PLAIN: dict[str, Step] = {
    "first": at(0),
    "last": last,
    "resolve": resolve,
    "exists": lambda focus: [bool(focus)],
    "empty": lambda focus: [not focus],
    "count": lambda focus: [len(focus)],
    "not": lambda focus: [not _is_true(focus)] if focus else [],
}
TEXT: dict[str, Callable[[str], Step]] = {
    "extension": extension,
    "startsWith": lambda text: _text_test(str.startswith, text),
    "endsWith": lambda text: _text_test(str.endswith, text),
    "contains": lambda text: _text_test(str.__contains__, text),
}
TYPED: dict[str, Callable[[str], Step]] = {"ofType": of_type, "as": of_type}
