"""The rules of types beyond their definition, by type; a type without an entry has none."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from app.context import Context
from app.fhir.json import Resource
from app.records.versions import ResourceVersion
from app.resources import (
    binary_context,
    care_team,
    encounter,
    endpoint,
    episode_of_care,
    event_time,
    matching_needs,
    search_parameter,
    subscription,
)
from app.resources.type_rules import Prepared, Rule

RULES: dict[str, Rule] = {
    "Binary": binary_context.prepare,
    "CareTeam": care_team.prepare,
    "CodeSystem": matching_needs.prepare,
    "Encounter": encounter.prepare,
    "Endpoint": endpoint.prepare,
    "EpisodeOfCare": episode_of_care.prepare,
    "SearchParameter": search_parameter.prepare,
    "Subscription": subscription.prepare,
    "ValueSet": matching_needs.prepare,
}
_NEEDED_BY_SUBSCRIPTIONS = frozenset({"CodeSystem", "SearchParameter", "ValueSet"})


async def prepare(
    context: Context, resource: Resource, previous: ResourceVersion | None
) -> Prepared:
    """Apply the rules of the resource's type. Raises FhirError where one is broken."""
    rule = RULES.get(resource["resourceType"])
    return Prepared(resource) if rule is None else await rule(context, resource, previous)


async def check_deletion(context: Context, previous: ResourceVersion) -> None:
    """Raises Conflict where a resource may not be deleted by this caller, since others depend on it."""
    if previous.type in _NEEDED_BY_SUBSCRIPTIONS:
        await matching_needs.check(context, previous.resource())


def is_message(resource: Resource) -> bool:
    """Whether a conditional create with a match goes on as an update of it."""
    return resource.get("resourceType") == "Encounter" and encounter.is_message(resource)


def event_time_of(encounter: Resource, arrival: datetime, made: str | None = None) -> str | None:
    """When the event was that a message about a visit reports, as a text that sorts; None where it has no time.

    `made` is when the message was made that the Encounter came in. The resource may not be validated yet: of one that
    nobody can read there is no time.
    """
    try:
        if made is not None:
            encounter = event_time.with_event_time(encounter, made)
        moment = event_time.moment(encounter, arrival)
    except (AttributeError, TypeError, ValueError):
        return None
    return None if moment is None else moment.time


def identifiers_of(resource: Resource) -> Iterator[tuple[str, str]]:
    """System and value of each identifier of a resource that may not be validated yet; no system is an empty one."""
    found = resource.get("identifier")
    for each in found if isinstance(found, list) else ():
        if isinstance(each, dict) and isinstance(each.get("value"), str):
            yield str(each.get("system", "")), each["value"]
