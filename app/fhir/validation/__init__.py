"""Validation: judges a resource before it is stored, by structure, primitive formats, required codes and invariants.

structure          compiles R4's StructureDefinitions into one check for each type
shapes             checks how JSON arranges an element
primitives         checks the primitive types
targets_and_bindings  checks what an element may refer to, and its codes
invariants         finds the rules that R4 states beside the elements of a type
invariant_compiler    compiles their FHIRPath
invariant_nodes    says what shows by the form of an expression
invariant_elements    says how the elements that they name are written
invariant_values   does what FHIRPath's operators and functions do
invariant_rules    has those that are written by hand
narrative          checks the XHTML of a narrative
findings           collects issues with their locations
models             is the second judge, fhir.resources' R4B models, for `$validate` and tests

https://hl7.org/fhir/R4/validation.html
What passes is stored as it came, so this check is strict where models that read JSON may be mild.
"""

from __future__ import annotations

from app.errors import BadRequest, Issue, Unprocessable
from app.fhir.json import Resource
from app.fhir.validation.findings import RULE_CODES, Enough, Findings, Where
from app.fhir.validation.structure import check_resource


def check(resource: Resource) -> list[Issue]:
    """The errors in a decoded resource, at most 50, then the warnings; without an error it may be stored."""
    found = Findings()
    resource_type = resource.get("resourceType")
    is_name = (
        isinstance(resource_type, str) and resource_type.isalpha() and len(resource_type) <= 64
    )
    root: Where = (None, str(resource_type) if is_name else "Resource", None)
    try:
        check_resource(resource, root, found)
    except Enough:
        pass
    except RecursionError:
        found.errors.append(Issue("structure", "The resource nests too deeply"))
    return found.errors + found.warnings


def validate(resource: Resource) -> list[Issue]:
    """The warnings. Raises Unprocessable where only codes or invariants are wrong, BadRequest for any other error."""
    issues = check(resource)
    errors = [issue for issue in issues if issue.severity == "error"]
    if not errors:
        return issues
    if all(issue.code in RULE_CODES for issue in errors):
        raise Unprocessable(issues=errors)
    raise BadRequest(issues=errors)
