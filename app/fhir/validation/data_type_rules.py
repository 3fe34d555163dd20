"""Rules on whole data types that hold wherever the type is used.

https://hl7.org/fhir/R4/datatypes.html, https://hl7.org/fhir/R4/extensibility.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from functools import cache
from typing import Any

from app.fhir.definitions import (
    SUPPORTED_TYPES,
    json_name,
    required_codes,
    structure,
)
from app.fhir.instants import moment
from app.fhir.validation.findings import Findings, Where

Rule = Callable[[dict[str, Any], Where, Findings], None]

_VALUES = frozenset(
    prefix + json_name("value", type_name)
    for type_name in structure("Extension").elements["value"].types
    for prefix in ("", "_")
)
_BARE = {"id", "url"}
_RESOURCE_TYPES = frozenset(SUPPORTED_TYPES)


def extension(value: dict[str, Any], where: Where, found: Findings) -> None:
    """ext-1: a value or extensions, and not both."""
    if "extension" in value:
        if not _VALUES.isdisjoint(value):
            found.add(where, "invariant", "ext-1: has a value and extensions, only one is allowed")
    elif value.keys() <= _BARE:
        found.add(where, "invariant", "ext-1: has neither a value nor extensions")


def period(value: dict[str, Any], where: Where, found: Findings) -> None:
    """per-1: the start is not after the end. What cannot be compared for sure passes."""
    start, end = value.get("start"), value.get("end")
    if isinstance(start, str) and isinstance(end, str) and _is_after(start, end):
        found.add(where, "invariant", "per-1: the start must not be after the end")


def _is_after(start: str, end: str) -> bool:
    if start <= end and start[19:] == end[19:]:  # the same zone, or dates only
        return False
    try:
        if len(start) > 10 and len(end) > 10:
            is_leap = "60" in (start[17:19], end[17:19])
            return not is_leap and moment(start) > moment(end)
        if len(start) > 10 or len(end) > 10:
            # A moment against a day that has no zone: only what more than a day lies between is certain.
            gap = date.fromisoformat(start[:10]) - date.fromisoformat(end[:10])
            return gap.days > 1
    except ValueError:  # refused elsewhere, or a year against a moment
        return False
    precision = min(len(start), len(end))
    return start[:precision] > end[:precision]


RULES: dict[str, Rule] = {"Extension": extension, "Period": period}


def check_target(reference: Any, targets: frozenset[str], where: Where, found: Findings) -> None:
    """Warn of a literal reference to a type that the element may not point to.

    No more than a warning: four of R4's own examples do it.
    """
    literal = reference.get("reference") if isinstance(reference, dict) else None
    if not isinstance(literal, str):
        return
    parts = literal.split("/")
    if parts[0] in targets or len(parts) < 2:
        return
    if len(parts) > 3 and parts[-2] == "_history":
        del parts[-2:]
    if parts[-2] in _RESOURCE_TYPES and parts[-2] not in targets:
        allowed = ", ".join(sorted(targets))
        found.warn(where, "value", f"should not refer to a {parts[-2]}, only to {allowed}")


# Required bindings: the codes an element may hold.
#
# https://hl7.org/fhir/R4/terminologies.html#required

_LISTED = 20


@cache
def codes(canonical: str) -> frozenset[str] | None:
    """The codes of a value set whatever their system, for elements of type code; None where it is open."""
    by_system = required_codes(canonical)
    return None if by_system is None else frozenset().union(*by_system.values())


def reason(canonical: str) -> str:
    """The diagnostics for a code outside its value set; the code itself may be anything, so it is not repeated."""
    allowed = codes(canonical) or frozenset()
    if len(allowed) > _LISTED:
        return f"must be in the value set {canonical}"
    return f"must be one of {', '.join(sorted(allowed))}"


def check_concept(concept: Any, canonical: str, where: Where, found: Findings) -> None:
    """A CodeableConcept must have a coding from the value set; one of extensions only is left alone."""
    by_system = required_codes(canonical)
    if by_system is None or not isinstance(concept, dict):
        return
    codings = concept.get("coding")
    if not isinstance(codings, list):
        if "text" in concept:
            found.add(where, "code-invalid", f"needs a coding from the value set {canonical}")
        return
    if not any(_is_member(coding, by_system) for coding in codings):
        system, allowed = next(iter(by_system.items()))
        listed = ", ".join(sorted(allowed)) if len(allowed) <= _LISTED else "its codes"
        found.add(where, "code-invalid", f"needs a coding from {canonical}: {system} with {listed}")


def _is_member(coding: Any, by_system: Mapping[str, frozenset[str]]) -> bool:
    if not isinstance(coding, dict):
        return False
    system, code = coding.get("system"), coding.get("code")
    return isinstance(system, str) and isinstance(code, str) and code in by_system.get(system, ())
