"""What an element may point to, and the codes that it may hold.

https://hl7.org/fhir/R4/references.html, https://hl7.org/fhir/R4/terminologies.html#required
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from app.fhir.definitions import SUPPORTED_TYPES, required_codes
from app.fhir.validation.findings import Findings, Where

_RESOURCE_TYPES = frozenset(SUPPORTED_TYPES)


def referred_type(reference: Any) -> str | None:
    """The resource type that a Reference's literal says it points to; None where it does not say."""
    literal = reference.get("reference") if isinstance(reference, dict) else None
    if not isinstance(literal, str):
        return None
    parts = literal.split("/")
    if len(parts) > 3 and parts[-2] == "_history":
        del parts[-2:]
    return parts[-2] if len(parts) > 1 and parts[-2] in _RESOURCE_TYPES else None


def check_target(reference: Any, targets: frozenset[str], where: Where, found: Findings) -> None:
    """Warn of a literal reference to a type that the element may not point to.

    No more than a warning: four of R4's own examples do it.
    """
    literal = reference.get("reference") if type(reference) is dict else None
    if type(literal) is not str or literal.partition("/")[0] in targets:  # nearly all of them
        return
    named = referred_type(reference)
    if named is not None and named not in targets:
        allowed = ", ".join(sorted(targets))
        found.warn(where, "value", f"should not refer to a {named}, only to {allowed}")


# Required bindings

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
