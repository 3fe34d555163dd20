"""The invariants of R4: the rules that a type's StructureDefinition states beside its elements.

https://hl7.org/fhir/R4/conformance-rules.html#constraints
They are read from profiles/r4/invariants.json and compiled with the type, once (docs/decisions/0037-invariants.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from app.fhir.definitions import Element, Invariant, invariants, json_name, structure
from app.fhir.fhirpath import NotCompilableError
from app.fhir.validation.findings import Findings, Where
from app.fhir.validation.invariant_compiler import Scope, Truth, compiled
from app.fhir.validation.invariant_rules import BY_HAND, Rule

# Where R4's FHIRPath cannot say what its words say: docs/decisions/0037-invariants.md has what is amiss in each.
CORRECTED = {
    "app-4": "cancelationReason.exists() implies (status = 'noshow' or status = 'cancelled')",
    "con-3": "clinicalStatus.exists() or verificationStatus.coding.where(system ="
    " 'http://terminology.hl7.org/CodeSystem/condition-ver-status' and code = 'entered-in-error').exists()"
    " or category.coding.where(system = 'http://terminology.hl7.org/CodeSystem/condition-category' and"
    " code = 'problem-list-item').empty()",
    "md-1": "max.empty() or max = '*' or max.toInteger() > 0",
}
# Of an expression that asks for nothing but its element.
_NO_SCOPE = Scope(None, None)


class CompiledInvariant:
    """An invariant of one type or element: whether a value breaks it, and what is said then."""

    __slots__ = ("_needs_scope", "_truth", "is_error", "text")

    def __init__(self, invariant: Invariant, type_name: str) -> None:
        expression = CORRECTED.get(invariant.key, invariant.expression)
        self._truth: Truth
        self._truth, self._needs_scope = compiled(expression, invariant.path, type_name)
        self.is_error = invariant.severity == "error"
        self.text = f"{invariant.key}: must be true: {expression}"

    def is_broken(self, value: Any, found: Findings) -> bool:
        scope = Scope(found.resource, value) if self._needs_scope else _NO_SCOPE
        return self._truth(value, scope) is False

    def tell(self, where: Where, found: Findings) -> None:
        (found.add if self.is_error else found.warn)(where, "invariant", self.text)


def rules(path: str, elements: Mapping[str, Element]) -> list[Rule]:
    """The rules of a type, those that it inherits included, or of a backbone element by its path.

    Among them are those on its elements whose type has rules of its own beside, as `Organization.telecom`.
    """
    bases = list(_bases(path)) if "." not in path else [path]
    whole = [each for base in bases for each in invariants(base)]
    of_elements = {
        name: invariants(f"{path}.{name}")
        for name, element in elements.items()
        if element.ref
        or not element.elements  # else it is a backbone element, and has a list of its own
    }
    by_hand = [BY_HAND.get(each.key) for each in chain(whole, *of_elements.values())]
    found = list(dict.fromkeys(rule for rule in by_hand if rule is not None))
    tests = tuple(CompiledInvariant(each, path) for each in whole if each.key not in BY_HAND)
    if tests:
        found.append(_on_the_whole(tests))
    for name, stated in of_elements.items():
        found += _on_an_element(name, elements[name], stated)
    return found


def _bases(type_name: str) -> Iterator[str]:
    base: str | None = type_name
    while base is not None:
        yield base
        base = structure(base).base


def _on_an_element(name: str, element: Element, stated: tuple[Invariant, ...]) -> Iterator[Rule]:
    for type_name in (element.ref,) if element.ref else element.types:
        key = json_name(name, type_name) if element.choice else name
        try:
            tests = tuple(
                CompiledInvariant(each, type_name) for each in stated if each.key not in BY_HAND
            )
        except NotCompilableError:
            if not element.choice:  # of a choice an invariant may concern one type
                raise
            continue
        if tests:
            yield _on_each(key, name, tests)


def _on_the_whole(tests: tuple[CompiledInvariant, ...]) -> Rule:
    def rule(value: dict[str, Any], where: Where, found: Findings) -> None:
        if found.is_malformed:
            return
        for test in tests:
            if test.is_broken(value, found):
                test.tell(where, found)

    return rule


def _on_each(key: str, name: str, tests: tuple[CompiledInvariant, ...]) -> Rule:
    def rule(value: dict[str, Any], where: Where, found: Findings) -> None:
        held = value.get(key)
        if held is None or found.is_malformed:
            return
        is_list = type(held) is list
        for index, item in enumerate(held if is_list else (held,)):
            for test in tests:
                if item is not None and test.is_broken(item, found):
                    test.tell((where, name, index if is_list else None), found)

    return rule
