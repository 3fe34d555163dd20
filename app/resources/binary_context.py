"""The rule of Binary: its security context is a resource, and none of its versions.

https://hl7.org/fhir/R4/binary-definitions.html#Binary.securityContext

A version would be judged as its resource is now, which may be about somebody else by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.errors import Unprocessable
from app.fhir.json import Resource
from app.resources.type_rules import Prepared

if TYPE_CHECKING:
    from app.context import Context
    from app.records.versions import ResourceVersion


async def prepare(
    context: Context, resource: Resource, previous: ResourceVersion | None
) -> Prepared:
    """The Binary as it is. Raises Unprocessable where its security context names a version."""
    if "/_history/" in resource.get("securityContext", {}).get("reference", ""):
        raise Unprocessable(
            "A security context is judged as it is now: name the resource, not one of its versions",
            code="business-rule",
            expression="Binary.securityContext.reference",
        )
    return Prepared(resource)
