"""The rules of types beyond their definition, by type; a type without an entry has none."""

from __future__ import annotations

from app.context import Context
from app.fhir.json import Resource
from app.records.versions import ResourceVersion
from app.resources import encounter, episode_of_care, search_parameter, subscription
from app.resources.type_rules import Prepared, Rule

RULES: dict[str, Rule] = {
    "Encounter": encounter.prepare,
    "EpisodeOfCare": episode_of_care.prepare,
    "SearchParameter": search_parameter.prepare,
    "Subscription": subscription.prepare,
}


async def prepare(
    context: Context, resource: Resource, previous: ResourceVersion | None
) -> Prepared:
    """Apply the rules of the resource's type. Raises FhirError where one is broken."""
    rule = RULES.get(resource["resourceType"])
    return Prepared(resource) if rule is None else await rule(context, resource, previous)


def is_message(resource: Resource) -> bool:
    """Whether a conditional create with a match goes on as an update of it."""
    return resource.get("resourceType") == "Encounter" and encounter.is_message(resource)
