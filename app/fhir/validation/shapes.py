"""How JSON arranges an element: single or in an array, a primitive with its `_` companion.

https://hl7.org/fhir/R4/json.html#primitive
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from app.fhir.validation import targets_and_bindings
from app.fhir.validation.findings import Findings, Where, json_type
from app.fhir.validation.primitives import Test, reason
from app.fhir.validation.targets_and_bindings import check_target

Check = Callable[[Any, Where, Findings], None]
# The rule for one key: its value, the object the key is in, that object's place, what was found.
KeyRule = Callable[[Any, dict[str, Any], Where, Findings], None]
# Name and type of a primitive element, and the value set its codes must be from.
Primitive = tuple[str, str, str | None]


def single(check: Check, name: str) -> KeyRule:
    def rule(value: Any, owner: dict[str, Any], where: Where, found: Findings) -> None:
        check(value, (where, name, None), found)

    return rule


def many(check: Check, name: str, limit: int | None) -> KeyRule:
    def rule(values: Any, owner: dict[str, Any], where: Where, found: Findings) -> None:
        if not is_array(values, limit, (where, name, None), found):
            return
        for index, value in enumerate(values):
            check(value, (where, name, index), found)

    return rule


def is_array(values: Any, limit: int | None, where: Where, found: Findings) -> bool:
    """Whether the value is an array to look into; adds what is wrong with the array itself."""
    if type(values) is not list:
        found.add(where, "structure", f"must be an array, not {json_type(values)}")
        return False
    if not values:
        found.add(where, "structure", "must not be an empty array")
    elif limit is not None and len(values) > limit:
        found.add(where, "structure", f"must not have more than {limit} entries")
    return True


def many_primitives(key: str, primitive: Primitive, test: Test, limit: int | None) -> KeyRule:
    name = primitive[0]

    def rule(values: Any, owner: dict[str, Any], where: Where, found: Findings) -> None:
        if not is_array(values, limit, (where, name, None), found):
            return
        for index, value in enumerate(values):
            if value is None:
                if not _has_companion(owner.get(f"_{key}"), index):
                    found.add((where, name, index), "structure", "must not be null")
            elif not passes(test, value):
                refuse(primitive, value, (where, name, index), found)

    return rule


def passes(test: Test, value: Any) -> object:
    """The test's answer; a value of a type that it cannot take does not pass."""
    try:
        return test(value)
    except TypeError:
        return False


def refuse(primitive: Primitive, value: Any, where: Where, found: Findings) -> None:
    """Say why a primitive was refused."""
    _, type_name, canonical = primitive
    if canonical is not None and type(value) is str and value:
        found.add(where, "code-invalid", targets_and_bindings.reason(canonical))
    else:
        found.add(where, *reason(type_name, value))


def _has_companion(companions: Any, index: int) -> bool:
    return (
        type(companions) is list
        and index < len(companions)
        and type(companions[index]) is dict
        and bool(companions[index])
    )


def companion(name: str, key: str, check: Check) -> KeyRule:
    """The rule of `_key`, the id and extensions of a single primitive; `check` is Element's."""

    def rule(value: Any, owner: dict[str, Any], where: Where, found: Findings) -> None:
        place = (where, name, None)
        check(value, place, found)
        if type(value) is dict and value.keys() == {"id"} and key not in owner:
            found.add(place, "invariant", "ele-1: needs a value or extensions")

    return rule


def many_companions(name: str, key: str, check: Check) -> KeyRule:
    """The rule of `_key` for a repeating primitive: null or an Element for each of the values."""

    def rule(values: Any, owner: dict[str, Any], where: Where, found: Findings) -> None:
        if not is_array(values, None, (where, name, None), found):
            return
        primitives = owner.get(key)
        if type(primitives) is list and len(primitives) != len(values):
            text = f"{key} and _{key} must have the same number of entries"
            found.add((where, name, None), "structure", text)
            return
        for index, value in enumerate(values):
            if value is not None:
                check(value, (where, name, index), found)
            elif type(primitives) is not list:
                found.add((where, name, index), "structure", "must not be null")

    return rule


def with_targets(check: Check, targets: frozenset[str]) -> Check:
    """Of a Reference: its structure, and that it points to one of these types."""

    def checked(value: Any, where: Where, found: Findings) -> None:
        check(value, where, found)
        check_target(value, targets, where, found)

    return checked


def with_binding(check: Check, canonical: str) -> Check:
    """Of a CodeableConcept: its structure, and that one of its codings is from the value set."""

    def checked(value: Any, where: Where, found: Findings) -> None:
        check(value, where, found)
        targets_and_bindings.check_concept(value, canonical, where, found)

    return checked
