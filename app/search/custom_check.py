"""Whether a SearchParameter resource is one that this server can search by."""

from __future__ import annotations

from functools import cache

import msgspec

from app.fhir import definitions
from app.fhir.fhirpath import NotCompilableError
from app.fhir.json import Resource
from app.search import custom
from app.search.search_parameters import compile_custom


@cache
def standard_urls() -> frozenset[str]:
    """The canonicals of the parameters that R4 and US Core define, which are served anyway."""
    return frozenset(
        parameter.url
        for resource_type in definitions.SUPPORTED_TYPES
        for parameter in definitions.search_parameters(resource_type).values()
    )


def why_not(resource: Resource) -> tuple[str, str] | None:
    """The element at fault and the reason why the resource cannot be searched by; None where it can."""
    try:
        definition = custom.read(resource)
    except msgspec.ValidationError:
        return "code", "It lacks a code, a base or a type"
    if not custom.CODE.fullmatch(definition.code):
        return "code", "The code must be letters, digits and hyphens, and begin with a letter"
    for base in definition.base:
        if base not in definitions.SUPPORTED_TYPES:
            return "base", f"{base} is no resource type that is served here"
        if definition.code in definitions.search_parameters(base):
            return "code", f"{base} already has a search parameter of this code"
        try:
            compile_custom(base, definition)
        except NotCompilableError as reason:
            element = "expression" if definition.type != "composite" else "component"
            return element, f"It cannot be compiled for {base}: {reason}"
    return None
