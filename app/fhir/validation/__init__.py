"""Validation: judges a resource before it is stored, by structure, primitive formats and required codes.

structure          compiles R4's StructureDefinitions into one check for each type
shapes             checks how JSON arranges an element
primitives         checks the primitive types
data_type_rules    checks rules that hold wherever a data type is used
narrative          checks the XHTML of a narrative
findings           collects issues with their locations
models             is the second judge, fhir.resources' R4B models, for `$validate` and tests

https://hl7.org/fhir/R4/validation.html
What passes is stored as it came, so this check is strict where models that read JSON may be mild.
"""

from __future__ import annotations

from app.errors import BadRequest, Issue, Unprocessable
from app.fhir.json import Resource
from app.fhir.validation.findings import Enough, Findings, Where
from app.fhir.validation.structure import check_resource

# Well formed, but breaking a rule; everything else makes the body something that is not FHIR.
_RULE_CODES = frozenset({"code-invalid", "invariant"})


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


def validate(resource: Resource) -> None:
    """Raises Unprocessable where only codes or invariants are wrong, BadRequest for any other error."""
    errors = [issue for issue in check(resource) if issue.severity == "error"]
    if not errors:
        return
    if all(issue.code in _RULE_CODES for issue in errors):
        raise Unprocessable(issues=errors)
    raise BadRequest(issues=errors)
