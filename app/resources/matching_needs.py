"""Rules of what Subscriptions are evaluated by: ValueSet, CodeSystem and clients' SearchParameters.

Who changes or deletes one that live Subscriptions need, changes or ends what others are told. That is for
administrators; the Subscriptions concerned are judged anew afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.errors import Conflict
from app.fhir.json import Resource
from app.resources.type_rules import Prepared
from app.subscriptions.matching.registry import SubscriptionRegistry

if TYPE_CHECKING:
    from app.context import Context
    from app.records.versions import ResourceVersion


async def prepare(
    context: Context, resource: Resource, previous: ResourceVersion | None
) -> Prepared:
    """Check a ValueSet or CodeSystem before it is stored. Raises Conflict where it is not this caller's to change."""
    versions = [resource]
    if previous is not None and not previous.deleted:
        versions.append(previous.resource())
    await check(context, *versions)
    return Prepared(resource)


async def check(context: Context, *versions: Resource) -> None:
    """Check versions that come or go. Raises Conflict where Subscriptions need one, but for administrators."""
    if context.access is None or context.access.is_administrator:
        return
    registry = context.services.get(SubscriptionRegistry)
    if versions[0]["resourceType"] == "SearchParameter":
        is_needed = any(registry.uses_parameter(str(each.get("code", ""))) for each in versions)
    else:
        is_needed = await registry.needs(*versions)
    if is_needed:
        raise Conflict("Subscriptions are evaluated by it; only an administrator may change it")
