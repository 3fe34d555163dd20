"""SearchParameter expressions compiled into plain accessors, with the data type of every value known beforehand.

https://hl7.org/fhir/R4/searchparameter.html - an expression is compiled once per resource type, over the type's
StructureDefinition: it becomes one Path for each data type that it can lead to. No FHIRPath is evaluated per request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import msgspec

from app.fhir import definitions
from app.fhir.definitions import Element
from app.fhir.fhirpath import (
    Call,
    FhirPathOperation,
    Index,
    Literal,
    Name,
    Node,
    NotCompilableError,
    Variable,
    parse,
)

# From the values at hand to the values one step further.
Step = Callable[[list[Any]], list[Any]]
_RESOURCE_TYPES = frozenset(definitions.SUPPORTED_TYPES)


@dataclass(frozen=True, slots=True)
class AccessPath:
    """One way from a resource to values of one data type.

    `keys` are the JSON keys passed, for telling paths apart; `steps` do the work. `element` is the path without the
    types of choice elements. `targets` are the types a Reference here may point to (none: any), `only` the one that
    `where(resolve() is Type)` restricts it to. `is_rooted` says that the path starts at the resource even inside a
    composite.
    """

    keys: tuple[str, ...]
    steps: tuple[Step, ...]
    type: str
    element: str = ""
    elements: Mapping[str, Element] | None = None
    binding: str | None = None
    targets: tuple[str, ...] = ()
    only: str | None = None
    is_list: bool = False
    is_rooted: bool = False

    def read(self, value: Any) -> list[Any]:
        """All values of a resource at this path."""
        return follow(self.steps, value)


def follow(steps: tuple[Step, ...], value: Any) -> list[Any]:
    """The values reached from one value, or from the list that JSON holds in its place."""
    current: list[Any] = value if type(value) is list else [value]
    for step in steps:
        current = step(current)
    return current


@cache
def compiled(resource_type: str, expression: str) -> tuple[AccessPath, ...]:
    """The paths of an expression in a resource type; none where it does not concern the type.

    Raises NotCompilableError where the expression is beyond the supported subset or names an unknown element.
    """
    root = AccessPath((), (), resource_type, resource_type)
    return tuple(_Compiler(root).compile(parse(expression), [root]))


def compiled_from(root: AccessPath, start: AccessPath, expression: str) -> tuple[AccessPath, ...]:
    """The paths of a composite's component, which starts at the composite's element."""
    origin = replace(start, keys=(), steps=(), is_list=False)
    return tuple(_Compiler(root).compile(parse(expression), [origin]))


def evaluate(resource_type: str, expression: str, resource: Any) -> Iterator[tuple[str, Any]]:
    """Every (data type, JSON value) that the expression leads to."""
    for path in compiled(resource_type, expression):
        for value in path.read(resource):
            if value is not None:
                yield path.type, value


def refers_to(reference: Any, resource_type: str) -> bool:
    """Whether a Reference says that it points to a resource type; a reference that does not say so does not."""
    url = reference.get("reference", "")
    if url.startswith("#"):
        return bool(reference.get("type") == resource_type)
    parts = url.partition("/_history/")[0].rsplit("/", 2)
    if len(parts) >= 2 and parts[-2] in _RESOURCE_TYPES:
        return bool(parts[-2] == resource_type)
    return bool(reference.get("type") == resource_type)


class _Compiler:
    def __init__(self, root: AccessPath) -> None:
        self._root = root

    def compile(self, node: Node, focus: list[AccessPath]) -> list[AccessPath]:
        match node:
            case Name(None, name) if name[0].isupper():
                return self._start(name, focus)
            case Name(base, name):
                return _members(self._base(base, focus), name)
            case Index(base, index):
                return [_extended(path, _at(index)) for path in self.compile(base, focus)]
            case Variable("resource" | "context"):
                return [replace(self._root, is_rooted=True)]
            case FhirPathOperation("|", left, right):
                return self.compile(left, focus) + self.compile(right, focus)
            case FhirPathOperation("as", left, right):
                return _of_type(self.compile(left, focus), _type_name(right))
            case FhirPathOperation("and" | "=" | "!=", _, _) | Call(_, "exists", _):
                test = self._test(node, focus)
                steps: tuple[Step, ...] = (lambda values: [test(value) for value in values],)
                return [AccessPath((), steps, "boolean", self._root.type)] if focus else []
            case Call(base, function, arguments):
                return self._call(self._base(base, focus), function, arguments)
            case _:
                raise NotCompilableError(f"unsupported: {node}")

    def _base(self, base: Node | None, focus: list[AccessPath]) -> list[AccessPath]:
        return focus if base is None else self.compile(base, focus)

    def _start(self, name: str, focus: list[AccessPath]) -> list[AccessPath]:
        """A type's name at the beginning: the focus if it is of that type, nothing otherwise."""
        if name in _ancestry(self._root.type):
            return focus
        if name in _RESOURCE_TYPES:
            return []
        raise NotCompilableError(f"unknown type {name}")

    def _call(
        self, paths: list[AccessPath], function: str, arguments: tuple[Node, ...]
    ) -> list[AccessPath]:
        match function, arguments:
            case (("ofType" | "as"), (argument,)):
                return _of_type(paths, _type_name(argument))
            case "where", (argument,):
                return [found for path in paths if (found := self._where(path, argument))]
            case "extension", (Literal(str(url)),):
                same = FhirPathOperation("=", Name(None, "url"), Literal(url))
                return [
                    found
                    for path in _members(paths, "extension")
                    if (found := self._where(path, same))
                ]
            case "first", ():
                return [_extended(path, _at(0)) for path in paths]
            case _:
                raise NotCompilableError(f"unsupported function {function}()")

    def _where(self, path: AccessPath, criterion: Node) -> AccessPath | None:
        match criterion:
            case FhirPathOperation("is", Call(None, "resolve", ()), Name(None, name)):
                if path.type != "Reference":
                    return None
                return replace(_extended(path, _referring_to(name)), only=name)
            case _:
                origin = replace(path, steps=(), keys=())
                test = self._test(criterion, [origin])
                return _extended(path, lambda values: [value for value in values if test(value)])

    def _test(self, node: Node, focus: list[AccessPath]) -> Callable[[Any], bool]:
        match node:
            case FhirPathOperation("and", left, right):
                first, second = self._test(left, focus), self._test(right, focus)
                return lambda value: first(value) and second(value)
            case FhirPathOperation("=", left, Literal(wanted)):
                paths = self.compile(left, focus)
                if len(paths) == 1 and len(paths[0].steps) == 1:
                    return _says(paths[0].keys[-1], wanted)
                return lambda value: any(wanted in path.read(value) for path in paths)
            case FhirPathOperation("!=", left, Literal(wanted)):
                paths = self.compile(left, focus)
                return lambda value: any(
                    found != wanted for path in paths for found in path.read(value)
                )
            case Call(base, "exists", ()) if base is not None:
                paths = self.compile(base, focus)
                return lambda value: any(path.read(value) for path in paths)
            case _:
                raise NotCompilableError(f"unsupported criterion: {node}")


def _says(key: str, wanted: Any) -> Callable[[Any], bool]:
    """Whether an element is that value: the test of `extension.where(url = ...)`, of which there may be very many."""

    def test(value: Any) -> bool:
        found = value.get(key)
        return wanted in found if type(found) is list else bool(found == wanted)

    return test


def _members(paths: list[AccessPath], name: str) -> list[AccessPath]:
    """One step down by an element's name; a choice element leads to one path for each of its types.

    Types of a choice that lack the element are left out; NotCompilableError where none has it.
    """
    found: list[AccessPath] = []
    for path in paths:
        elements = path.elements if path.elements else definitions.structure(path.type).elements
        plain, element = _element(elements, name)
        if element is None:
            continue
        if element.ref:
            element = _with_content(element, definitions.resolve(element.ref))
        for type_name in element.types:
            key = definitions.json_name(plain, type_name) if element.choice else plain
            found.append(
                replace(
                    path,
                    keys=(*path.keys, key),
                    steps=(*path.steps, _child(key)),
                    type=type_name,
                    element=f"{path.element}.{plain}",
                    elements=element.elements or None,
                    binding=element.binding,
                    targets=element.targets,
                    only=None,
                    is_list=path.is_list or element.is_list,
                )
            )
    if paths and not found:
        raise NotCompilableError(f"{paths[0].element} has no element {name}")
    return found


def _element(elements: Mapping[str, Element], name: str) -> tuple[str, Element | None]:
    """The element of a name, and its plain name. Guides write JSON's `valueDateTime` for `value.as(dateTime)`."""
    element = elements.get(name)
    if element is not None:
        return name, element
    for plain, choice in elements.items():
        if choice.choice and name.startswith(plain):
            for type_name in choice.types:
                if definitions.json_name(plain, type_name) == name:
                    return plain, msgspec.structs.replace(choice, types=(type_name,))
    return name, None


def _with_content(element: Element, content: Element) -> Element:
    """An element with a content reference: its own cardinality, the other's content."""
    return Element(content.types, element.min, element.max, elements=content.elements)


def _of_type(paths: list[AccessPath], name: str) -> list[AccessPath]:
    # R4 writes DateTime for dateTime in one composite.
    return [path for path in paths if path.type.lower() == name.lower()]


def _type_name(node: Node) -> str:
    match node:
        case Name(None | Name(None, "FHIR" | "System"), name):
            return name
    raise NotCompilableError(f"unsupported type {node}")


@cache
def _ancestry(type_name: str) -> frozenset[str]:
    names = {type_name}
    base = definitions.structure(type_name).base
    while base is not None:
        names.add(base)
        base = definitions.structure(base).base
    return frozenset(names)


def _extended(path: AccessPath, step: Step) -> AccessPath:
    return replace(path, steps=(*path.steps, step))


def _child(key: str) -> Step:
    def step(values: list[Any]) -> list[Any]:
        found: list[Any] = []
        for value in values:
            child = value.get(key)
            if child is None:
                continue
            if type(child) is list:
                found += child
            else:
                found.append(child)
        return found

    return step


def _referring_to(resource_type: str) -> Step:
    return lambda values: [value for value in values if refers_to(value, resource_type)]


def _at(index: int) -> Step:
    return lambda values: values[index : index + 1]
