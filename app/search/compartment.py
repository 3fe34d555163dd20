"""Compartments: what belongs to a patient, an encounter, a practitioner, a related person or a device.

https://hl7.org/fhir/R4/compartmentdefinition.html - the definitions name the search parameters that put a resource of
a type into a compartment. A resource also is in its own.
"""

from __future__ import annotations

from app.errors import NotFound
from app.fhir import definitions
from app.search.parameter import AnyOf, Condition, SearchScope
from app.search.parameters.special import Ids
from app.search.search_parameters import condition, parameters
from app.search.terms import Terms, any_of

COMPARTMENTS = ("Device", "Encounter", "Patient", "Practitioner", "RelatedPerson")


def types(compartment: str) -> list[str]:
    """The served resource types that can be in a compartment. Raises NotFound where there is no such compartment."""
    if compartment not in COMPARTMENTS:
        raise NotFound(
            f"There is no compartment of a {compartment}, only of {', '.join(COMPARTMENTS)}",
            code="not-supported",
        )
    found = definitions.compartment(compartment)
    return [each for each in definitions.SUPPORTED_TYPES if each == compartment or found.get(each)]


def membership(compartment: str, owner: str, resource_type: str, scope: SearchScope) -> Condition:
    """The condition that resources of a type are in the compartment of `<compartment>/<owner>`.

    Raises NotFound where resources of the type never are.
    """
    if resource_type not in types(compartment):
        raise NotFound(
            f"The compartment of a {compartment} has no resources of type {resource_type}",
            code="not-supported",
        )
    known = parameters(resource_type)
    found: list[Condition] = [
        condition(known[code], None, [f"{compartment}/{owner}"], scope)
        for code in definitions.compartment(compartment).get(resource_type, ())
        if code in known
    ]
    if resource_type == compartment:
        found.append(Ids((owner,)))
    terms = [each for each in found if isinstance(each, Terms)]
    others = [each for each in found if not isinstance(each, Terms)]
    # One condition on terms is one run of the index.
    alternatives = [any_of(terms), *others] if terms else others
    return alternatives[0] if len(alternatives) == 1 else AnyOf(tuple(alternatives))
