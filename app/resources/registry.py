"""The rules that types have beyond their definition, by type; a type without an entry has none."""

from __future__ import annotations

from app.context import Context
from app.fhir_json import Resource
from app.resources import search_parameter, subscription
from app.resources.rules import Prepared, Rule
from app.versions import Stored

RULES: dict[str, Rule] = {
    "SearchParameter": search_parameter.prepare,
    "Subscription": subscription.prepare,
}


async def prepare(context: Context, resource: Resource, previous: Stored | None) -> Prepared:
    """Apply the rules of the resource's type. Raises FhirError where one is broken."""
    rule = RULES.get(resource["resourceType"])
    return Prepared(resource) if rule is None else await rule(context, resource, previous)
