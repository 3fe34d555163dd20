"""The second judge: fhir.resources' R4B models, the typed view where code works with a resource.

https://hl7.org/fhir/R4B/
Not run on writes: `tests/fhir/test_models_oracle.py` holds that what these models refuse, the compiled check
refuses too. They stay the typed view, and an oracle that others maintain.
"""

from __future__ import annotations

from functools import cache
from typing import cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from app.errors import Issue
from app.fhir.json import Resource
from app.fhir.validation.findings import MAX_ISSUES, Where, fhirpath

# Pydantic's error types that are about the shape; whatever is not here is a wrong value.
_CODES = {
    "missing": "required",
    "extra_forbidden": "structure",
    "dict_type": "structure",
    "list_type": "structure",
    "string_type": "structure",
    "json_invalid": "structure",
    "model_validation_format": "structure",
}
_LONGEST = 200


@cache
def model(resource_type: str) -> type[BaseModel]:
    """The R4B model class of a resource type; ValueError where R4B has no such type."""
    # Imported late: the models take longer to load than the rest of the server, which starts without them.
    from fhir.resources.R4B import get_fhir_model_class

    return cast(type[BaseModel], get_fhir_model_class(resource_type))


def model_issues(resource: Resource) -> list[Issue]:
    """What the R4B models refuse in a resource, at most 50 issues; none where they accept it."""
    name = str(resource.get("resourceType"))
    try:
        model(name).model_validate(resource)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False, include_context=False)
        return [_issue(name, detail) for detail in details[:MAX_ISSUES]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # An unknown type, contained ones too, makes the models stumble instead of judging.
        return [Issue("structure", "The R4B models cannot read this resource")]
    return []


def _issue(resource_type: str, detail: ErrorDetails) -> Issue:
    where: Where = (None, resource_type, None)
    for step in detail["loc"]:
        if isinstance(step, int):
            where = (where[0], where[1], step)
        elif step != "root":  # pydantic's word for the value inside a primitive
            where = (where, step.removeprefix("_"), None)
    location = fhirpath(where)
    code = _CODES.get(detail["type"], "value")
    # The models' own words name types and elements, never the value that was sent.
    reason = detail["msg"].removeprefix("Value error, ")[:_LONGEST]
    return Issue(code, f"{location}: {reason}", (location,))
