"""Rules of SearchParameter: an active one must be one that this server can search by.

https://hl7.org/fhir/R4/searchparameter.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.errors import Issue, Unprocessable
from app.fhir.json import Resource
from app.resources import matching_needs
from app.resources.type_rules import Prepared
from app.search.custom_check import standard_urls, why_not

if TYPE_CHECKING:
    from app.context import Context
    from app.records.versions import ResourceVersion


async def prepare(
    context: Context, resource: Resource, previous: ResourceVersion | None
) -> Prepared:
    """Check a SearchParameter before it is stored. Raises Unprocessable with the reason, Conflict where it is in use.

    Those that are not active, and R4's own, are stored as documents: they change nothing.
    """
    if previous is not None:
        await matching_needs.check_change(context, resource, previous)
    if resource.get("status") != "active" or resource.get("url") in standard_urls():
        return Prepared(resource)
    reason = why_not(resource) or _taken(context, resource)
    if reason is not None:
        element, diagnostics = reason
        code = "duplicate" if "already" in diagnostics else "not-supported"
        raise Unprocessable(issues=[Issue(code, diagnostics, (f"SearchParameter.{element}",))])
    return Prepared(resource)


def _taken(context: Context, resource: Resource) -> tuple[str, str] | None:
    """Whether another client's parameter has the code already, for one of the types."""
    for each in context.services.store.search_state.custom:
        is_other = each.id != resource.get("id")
        shared = set(each.definition.base) & set(resource["base"])
        if is_other and each.definition.code == resource["code"] and shared:
            return "code", f"SearchParameter/{each.id} already defines it for {min(shared)}"
    return None
