"""The check compiled from R4's StructureDefinitions: elements, cardinalities, types, codes, invariants.

https://hl7.org/fhir/R4/json.html
Every type becomes one closure over small tables, made at its first use. What is right costs a lookup and
a test per key; words are only sought for what is wrong.
"""

from __future__ import annotations

from typing import Any

from app.fhir.definitions import (
    SUPPORTED_TYPES,
    Element,
    json_name,
    resolve,
    structure,
)
from app.fhir.validation import invariants, targets_and_bindings
from app.fhir.validation.findings import Findings, Where, json_type, shown
from app.fhir.validation.invariant_rules import Rule
from app.fhir.validation.primitives import TESTS, Test
from app.fhir.validation.shapes import (
    Check,
    KeyRule,
    Primitive,
    companion,
    many,
    many_companions,
    many_primitives,
    refuse,
    single,
    with_binding,
    with_targets,
)

_checks: dict[str, Check] = {}
_SUPPORTED = frozenset(SUPPORTED_TYPES)


class StructurePlan:
    """The tables of one type, or of one backbone element by its path (`Encounter.participant`).

    `tests` are for single primitives, `rules` for every other key. `choices` gives the element of each key
    of a choice (`valueQuantity` is `value`); `whole` are rules on the object as a whole.
    """

    __slots__ = (
        "choices",
        "is_element",
        "path",
        "primitives",
        "required",
        "required_choices",
        "rules",
        "tests",
        "whole",
    )

    def __init__(self, path: str) -> None:
        self.path = path
        self.tests: dict[str, Test] = {}
        self.rules: dict[str, KeyRule] = {}
        self.primitives: dict[str, Primitive] = {}
        self.required: list[str] = []
        self.choices: dict[str, str] = {}
        self.required_choices: set[str] = set()
        self.whole: list[Rule] = []
        # Rule ele-1 is for elements. A resource may be bare, and a primitive's companion has its own rule.
        self.is_element = "." in path or (path != "Element" and structure(path).kind != "resource")

    def fill(self) -> None:
        """Compile the elements of the type; the checks of the types it uses are compiled with it."""
        is_type = "." not in self.path
        source = structure(self.path) if is_type else resolve(self.path)
        for name, element in source.elements.items():
            self._add(name, element)
        self.whole += invariants.rules(self.path, source.elements)
        if is_type and structure(self.path).kind == "resource":
            self.rules["resourceType"] = _accept

    def _add(self, name: str, element: Element) -> None:
        if element.choice:
            keys = {json_name(name, type_name): type_name for type_name in element.types}
            for key in keys:
                self.choices[key] = self.choices[f"_{key}"] = name
            if element.min:
                self.required_choices.add(name)
        else:
            keys = {name: element.types[0] if element.types else ""}
            if element.min:
                self.required.append(name)
        for key, type_name in keys.items():
            if type_name in TESTS:
                self._add_primitive(key, name, type_name, element)
            else:
                self.rules[key] = self._complex(name, type_name, element)

    def _add_primitive(self, key: str, name: str, type_name: str, element: Element) -> None:
        allowed = targets_and_bindings.codes(element.binding) if element.binding else None
        test = TESTS[type_name] if allowed is None else allowed.__contains__
        primitive = (name, type_name, None if allowed is None else element.binding)
        self.primitives[key] = primitive
        element_check = object_check("Element")
        if element.is_list:
            self.rules[key] = many_primitives(key, primitive, test, element.max)
            self.rules[f"_{key}"] = many_companions(name, key, element_check)
            return
        self.tests[key] = test
        # Ids and the url of an extension are bare strings (XML attributes) and cannot be extended.
        if name != "id" and (self.path, name) != ("Extension", "url"):
            self.rules[f"_{key}"] = companion(name, key, element_check)

    def _complex(self, name: str, type_name: str, element: Element) -> KeyRule:
        if type_name == "Resource":
            check: Check = check_contained if name == "contained" else check_resource
        elif element.ref:
            check = object_check(element.ref)
        elif element.elements:
            check = object_check(f"{self.path}.{name}")
        else:
            check = object_check(type_name)
        if type_name == "Reference" and element.targets:
            check = with_targets(check, frozenset(element.targets))
        if type_name == "CodeableConcept" and element.binding:
            check = with_binding(check, element.binding)
        return many(check, name, element.max) if element.is_list else single(check, name)

    def refuse_primitive(self, key: str, value: Any, where: Where, found: Findings) -> None:
        primitive = self.primitives[key]
        refuse(primitive, value, (where, primitive[0], None), found)

    def refuse_key(self, key: str, where: Where, found: Findings) -> None:
        for name in set(self.choices.values()):
            if key.startswith(name) and key[len(name) : len(name) + 1].isupper():
                text = f"cannot be of type {shown(key[len(name) :])}"
                found.add((where, name, None), "structure", text)
                return
        found.add(where, "structure", f"{shown(key)} is not an element of {self.path}")

    def check_required(self, owner: dict[str, Any], where: Where, found: Findings) -> None:
        for name in self.required:
            if name not in owner and f"_{name}" not in owner:
                found.add((where, name, None), "required", "is required")

    def check_choices(self, owner: dict[str, Any], where: Where, found: Findings) -> None:
        choices = self.choices
        present = {key: choices[key] for key in owner if key in choices}
        if len(present) > 1:
            self._refuse_second_choice(present, where, found)
        for name in self.required_choices:
            if name not in present.values():
                found.add((where, name, None), "required", "is required")

    def _refuse_second_choice(self, present: dict[str, str], where: Where, found: Findings) -> None:
        for name in sorted(set(present.values())):
            keys = {key.removeprefix("_") for key in present if present[key] == name}
            if len(keys) > 1:
                text = f"only one of {', '.join(sorted(keys))} is allowed"
                found.add((where, name, None), "structure", text)


def object_check(path: str) -> Check:
    """The check of a type, or of a backbone element by its path."""
    check = _checks.get(path)
    if check is None:
        plan = StructurePlan(path)
        # Registered before its tables are filled, because types contain one another.
        check = _checks[path] = _compiled(plan)
        plan.fill()
    return check


def _compiled(plan: StructurePlan) -> Check:
    tests, rules, required = plan.tests, plan.rules, plan.required
    choices, whole, is_element = plan.choices, plan.whole, plan.is_element

    def check(value: Any, where: Where, found: Findings) -> None:
        if type(value) is not dict:
            found.add(where, "structure", f"must be an object, not {json_type(value)}")
            return
        if not value:
            found.add(where, "structure", "must not be an empty object")
            return
        for key, item in value.items():
            test = tests.get(key)
            if test is not None:
                try:
                    accepted = test(item)
                except TypeError:
                    accepted = False
                if not accepted:
                    plan.refuse_primitive(key, item, where, found)
                continue
            rule = rules.get(key)
            if rule is None:
                plan.refuse_key(key, where, found)
            else:
                rule(item, value, where, found)
        for name in required:
            if name not in value:
                plan.check_required(value, where, found)
                break
        if choices:
            plan.check_choices(value, where, found)
        if is_element and len(value) == 1 and "id" in value:
            found.add(where, "invariant", "ele-1: needs a value or children beside its id")
        for whole_rule in whole:
            whole_rule(value, where, found)

    return check


def _accept(value: Any, owner: dict[str, Any], where: Where, found: Findings) -> None:
    """The rule of resourceType, which has decided already what the object is checked against."""


def check_resource(value: Any, where: Where, found: Findings, *, is_root: bool = True) -> None:
    """Check a resource by its resourceType, wherever a resource may stand; one that is contained is no root."""
    if type(value) is not dict:
        found.add(where, "structure", f"must be a resource, not {json_type(value)}")
        return
    resource_type = value.get("resourceType")
    place = (where, "resourceType", None)
    if type(resource_type) is not str:
        if "resourceType" in value:
            found.add(place, "structure", f"must be a string, not {json_type(resource_type)}")
        else:
            found.add(place, "required", "is required")
    elif resource_type in _SUPPORTED:
        outer, found.resource = found.resource, value
        outermost, found.root = found.root, value if is_root else found.root
        object_check(resource_type)(value, where, found)
        found.resource, found.root = outer, outermost
    else:
        found.add(place, "structure", f"{shown(resource_type)} is not an R4 resource type")


def check_contained(value: Any, where: Where, found: Findings) -> None:
    """Check a contained resource; dom-2: it may not contain others itself."""
    check_resource(value, where, found, is_root=False)
    if type(value) is dict and "contained" in value:
        found.add((where, "contained", None), "invariant", "dom-2: a contained resource has none")
