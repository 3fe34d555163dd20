"""The second judge: fhir.resources' R4B models, the typed view where code works with a resource.

https://hl7.org/fhir/R4B/
Not run on writes: `tests/fhir/test_models_oracle.py` holds that what these models refuse, the compiled check
refuses too. They stay the typed view, and an oracle that others maintain. R4B dropped 18 types of R4 and reworked two;
of these they say nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from app.errors import Issue
from app.fhir.definitions import SUPPORTED_TYPES, json_name, structure
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


@cache
def is_judge_of(resource_type: str) -> bool:
    """Whether R4B has the type with all the elements that R4 gives it."""
    try:
        fields = model(resource_type).model_fields
    except ValueError:
        return False
    known = {each.alias or name for name, each in fields.items()}
    return all(
        json_name(name, each) in known if element.choice else name in known
        for name, element in structure(resource_type).elements.items()
        for each in element.types or ("",)
    )


def _resource_types_in(resource: Resource) -> set[str]:
    """The types of R4 among a resource and what is inside it."""
    found: set[str] = set()
    stack: list[Any] = [resource]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if value.get("resourceType") in SUPPORTED_TYPES:
                found.add(value["resourceType"])
            value = list(value.values())
        stack += [each for each in value if isinstance(each, dict | list)]
    return found


def model_issues(resource: Resource) -> list[Issue]:
    """What the R4B models refuse in a resource, at most 50 issues; none where they accept it, or cannot know."""
    name = str(resource.get("resourceType"))
    if not all(map(is_judge_of, _resource_types_in(resource))):
        return []
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
