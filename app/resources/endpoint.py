"""The rule of Endpoint: what its headers hold is kept from everybody but their writer, and who stands for its address.

https://hl7.org/fhir/R4/endpoint.html. The server calls an Endpoint with them (app/coordination/practices).

    Endpoint.private   {headers?: sealed, confirmed_by?: the practice whose client wrote this address, or ADMINISTRATOR}
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

CONFIRMED_BY, ADMINISTRATOR = "confirmed_by", "administrator"


async def prepare(
    context: Context, resource: Resource, previous: ResourceVersion | None
) -> Prepared:
    """The Endpoint with masked headers. Raises Unprocessable for a mask whose value is not known.

    An update that brings the headers that are known changes nothing by them.
    """
    known = await _known(context, previous)
    by = _confirmed_by(context, resource, known)
    confirmed = {} if by is None else {CONFIRMED_BY: by}
    is_same = known.private.get(CONFIRMED_BY) == by
    sent = resource.get("header")
    if not sent:
        return Prepared(resource, private=confirmed or None, is_memory=is_same)
    headers = secret_headers.unmasked(
        sent, known, resource.get("address"), context.settings, path="Endpoint.header"
    )
    return Prepared(
        {**resource, "header": secret_headers.masked(headers)},
        private={"headers": secret_headers.sealed(headers, context.settings), **confirmed},
        echo={"header": sent},
        is_memory=is_same and secret_headers.are_known(headers, known.private, context.settings),
    )


def _confirmed_by(context: Context, resource: Resource, known: Known) -> str | None:
    """Who stands for the address: an administrator or a practice that writes it, else who stood for it before."""
    access = context.access
    if access is not None and access.is_administrator:
        return ADMINISTRATOR
    before: str | None = known.private.get(CONFIRMED_BY)
    if before is not None and resource.get("address") == known.address:
        return before
    if access is not None and access.caller.role == "practice":
        return access.caller.organization
    return None


async def _known(context: Context, previous: ResourceVersion | None) -> Known:
    if previous is None:
        return Known({}, None)
    private = await secret_headers.private_of(context.services.store, "Endpoint", previous.id)
    return Known(private, None if previous.deleted else previous.resource().get("address"))
