"""How the elements that an invariant names are written in JSON.

https://hl7.org/fhir/R4/json.html - a choice is one of several keys, and a primitive may have a companion `_key`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from app.fhir.definitions import structure
from app.fhir.element_definitions import Field, layout
from app.fhir.fhirpath import NotCompilableError
from app.fhir.validation import invariant_values as values

# What an element may be: paths of layouts and primitive types. None: any resource, or anything.
Types = tuple[str, ...] | None
Step = Callable[[Any], list[Any]]


def fields_of(name: str, types: Types) -> list[Field]:
    """How the elements of a name are written; none where anything may be at hand, as among `children()`."""
    if types is None:
        return []
    complex_types = [each for each in types if not _is_primitive(each)]
    found = [each for of in complex_types for each in layout(of).names.get(name, ())]
    if not found:
        raise NotCompilableError(f"{' or '.join(types) or 'a value'} has no element {name}")
    return found


def _is_primitive(type_name: str) -> bool:
    return "." not in type_name and structure(type_name).kind == "primitive-type"


def keys_of(fields: Sequence[Field]) -> list[str]:
    """The JSON keys that show that an element is there, those of primitives without a value included."""
    keys = [each.key for each in fields]
    companions = [f"_{each.key}" for each in fields if each.kind == "primitive"]
    return list(dict.fromkeys(keys + companions))


def types_of(fields: Sequence[Field]) -> Types:
    """What is found at these fields."""
    if not fields or any(each.kind == "resource" for each in fields):
        return None
    types = (each.type_name if each.kind == "primitive" else each.path for each in fields)
    return tuple(dict.fromkeys(types))


def union_of(first: Types, second: Types) -> Types:
    """What is in one collection or the other."""
    return None if first is None or second is None else tuple(dict.fromkeys((*first, *second)))


def step_to(fields: Sequence[Field], name: str) -> Step:
    """From one element to its children of a name; by the name alone where nothing is known of the element."""
    if not fields:
        return lambda value: values.any_child(value, name)
    kinds = {each.key: each.kind for each in fields}
    steps = [_step(key, is_primitive=kind == "primitive") for key, kind in kinds.items()]
    if len(steps) == 1:
        return steps[0]
    # Of a choice there is one.
    return lambda value: next((found for step in steps if (found := step(value))), [])


def _step(key: str, *, is_primitive: bool) -> Step:
    if not is_primitive:
        return lambda value: values.complex_child(value, key)
    companion = f"_{key}"
    return lambda value: values.primitive_child(value, key, companion)
