"""Rules of what Subscriptions are evaluated by: ValueSet, CodeSystem and clients' SearchParameters.

Who changes or deletes one that live Subscriptions need, changes or ends what others are told. That is for
administrators, who prove that they are: without authorization it is for nobody. The Subscriptions concerned are judged
anew afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.errors import Conflict
from app.fhir.json import Resource
from app.records.versions import ResourceVersion, is_same_content
from app.resources.type_rules import Prepared
from app.subscriptions.matching.registry import SubscriptionRegistry

if TYPE_CHECKING:
    from app.context import Context

_FREE = ("administrator", "server")


async def prepare(
    context: Context, resource: Resource, previous: ResourceVersion | None
) -> Prepared:
    """Check a ValueSet or CodeSystem before it is stored. Raises Conflict where it is not this caller's to change."""
    await check_change(context, resource, previous)
    return Prepared(resource)


async def check_change(
    context: Context, resource: Resource, previous: ResourceVersion | None
) -> None:
    """Check a new version, unless it is the same again. Raises Conflict."""
    if previous is None or previous.deleted:
        await check(context, resource)
    elif not is_same_content(resource, previous):
        await check(context, resource, previous.resource())


async def check(context: Context, *versions: Resource) -> None:
    """Check versions that come or go. Raises Conflict where Subscriptions need one, but for administrators."""
    if context.caller.role in _FREE:
        return
    registry = context.services.get(SubscriptionRegistry)
    if versions[0]["resourceType"] == "SearchParameter":
        is_needed = any(registry.uses_parameter(str(each.get("code", ""))) for each in versions)
    else:
        is_needed = await registry.faults.needs(versions, registry.catalogue.by_url.values())
    if is_needed:
        raise Conflict("Subscriptions are evaluated by it; only an administrator may change it")
