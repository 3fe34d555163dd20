"""What a resource contains, as search sees it. https://hl7.org/fhir/R4/search.html#contained

Only a resource that contains others has these fields, so most writes pay nothing:

    contained               [{type, _id, terms, dates, ...}], the search fields of each contained resource
    ~Medication:code=x      among the resource's own terms, one for each term of a contained Medication
    ~subject.Patient:...    the same under the parameter by which the resource refers to what it contains

A single term so tells the answer of a chain; several conditions must hold of one element of `contained`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from app.fhir import definitions
from app.search.expression import follow
from app.search.parameter import AllOf, Condition, Fields, Filter, Parameter
from app.search.search_parameters import extracted
from app.search.terms import EVERY, Terms

FIELD = "contained"
_KEPT = frozenset({"_id", "terms", "date", "dates", "numbers", "quantities", "composites"})

Extract = Callable[[str, Mapping[str, Any]], dict[str, Any]]


def add(
    resource_type: str, resource: Mapping[str, Any], fields: dict[str, Any], extract: Extract
) -> None:
    """Add to a resource's fields those of what it contains; `extract` gives the fields of one."""
    found: list[dict[str, Any]] = []
    terms: dict[str, None] = {}
    for each in resource[FIELD]:
        kind = each.get("resourceType")
        if kind not in definitions.SUPPORTED_TYPES:
            continue
        inner = {name: value for name, value in extract(kind, each).items() if name in _KEPT}
        for code in ("", *_referring(resource_type, resource, each.get("id"))):
            terms.update(dict.fromkeys(_beginning(code, kind) + term for term in inner["terms"]))
        found.append({"type": kind, **inner})
    if found:
        fields[FIELD] = found
        fields["terms"] += terms


def _referring(resource_type: str, resource: Mapping[str, Any], name: str | None) -> Iterator[str]:
    """The reference parameters by which a resource refers to what it contains under that id."""
    for code, parameter in extracted(resource_type).items():
        if parameter.type == "reference" and not parameter.shared:
            elements = (each for path in parameter.paths for each in follow(path.steps, resource))
            if any(type(each) is dict and each.get("reference") == f"#{name}" for each in elements):
                yield code


def _beginning(code: str, kind: str) -> str:
    return f"~{code}.{kind}:" if code else f"~{kind}:"


def _under(beginning: str, terms: Terms) -> Terms:
    return Terms(
        tuple(beginning + each for each in terms.equal),
        tuple(beginning + each for each in terms.prefixes),
        tuple((beginning + start, text) for start, text in terms.contained),
    )


def reached(parameter: Parameter, kind: str, condition: Condition) -> Terms | None:
    """What a chain's end asks of resources that contain what they refer to; None where no term can tell."""
    if not isinstance(condition, Terms):
        return None
    is_shared = parameter.shared and parameter.targets == (kind,)
    code = parameter.shared if is_shared and parameter.shared else parameter.code
    return _under(_beginning(code, kind), condition)


@dataclass(frozen=True, slots=True)
class Within(AllOf):
    """A resource contains one of a type that meets all conditions."""

    resource_type: str

    def filter(self) -> Filter:
        beginning = _beginning("", self.resource_type)
        lifted = [_under(beginning, each) for each in self.conditions if isinstance(each, Terms)]
        element: Filter = {"type": self.resource_type}
        if self.conditions:
            element["$and"] = [each.filter() for each in self.conditions]
        return {
            "$and": [
                *(each.filter() for each in lifted or [Terms((beginning + EVERY,))]),
                {FIELD: {"$elemMatch": element}},
            ]
        }

    def matches(self, fields: Fields) -> bool:
        return any(
            inner["type"] == self.resource_type and self.meets(inner)
            for inner in fields.get(FIELD, ())
        )

    def meets(self, fields: Fields) -> bool:
        """Whether the fields of one resource of the type meet the conditions."""
        return all(each.matches(fields) for each in self.conditions)
