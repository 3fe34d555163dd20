"""The rule of Endpoint: what its headers hold is kept from everybody but their writer.

https://hl7.org/fhir/R4/endpoint.html. The server calls an Endpoint with them (app/coordination/practices).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.fhir.json import Resource
from app.resources import secret_headers
from app.resources.secret_headers import Known
from app.resources.type_rules import Prepared

if TYPE_CHECKING:
    from app.context import Context
    from app.records.versions import ResourceVersion


async def prepare(
    context: Context, resource: Resource, previous: ResourceVersion | None
) -> Prepared:
    """The Endpoint with masked headers. Raises Unprocessable for a mask whose value is not known.

    An update that brings the headers that are known changes nothing by them.
    """
    sent = resource.get("header")
    if not sent:
        return Prepared(resource)
    known = await _known(context, previous)
    headers = secret_headers.unmasked(
        sent, known, resource.get("address"), context.settings, path="Endpoint.header"
    )
    return Prepared(
        {**resource, "header": secret_headers.masked(headers)},
        private={"headers": secret_headers.sealed(headers, context.settings)},
        echo={"header": sent},
        is_memory=secret_headers.are_known(headers, known.private, context.settings),
    )


async def _known(context: Context, previous: ResourceVersion | None) -> Known:
    if previous is None:
        return Known({}, None)
    private = await secret_headers.private_of(context.services.store, "Endpoint", previous.id)
    return Known(private, None if previous.deleted else previous.resource().get("address"))
