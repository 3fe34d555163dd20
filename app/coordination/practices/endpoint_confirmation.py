"""Endpoints that may be called unasked, and a Task about the others (CARERELAY_ENDPOINT_SUBSCRIPTIONS=confirmed).

With authorization an administrator or the practice's own client has written the address; without, it is on loopback or
on the egress allow-list. Directories are loaded from others: that alone must not send anything to their addresses.
"""

from __future__ import annotations

from collections.abc import Sequence

from app.attribution.claims import relative
from app.context import Context
from app.coordination.practices.endpoint_tasks import keep_task
from app.fhir.json import Resource
from app.network.egress_policy import Egress
from app.resources import secret_headers
from app.resources.endpoint import ADMINISTRATOR, CONFIRMED_BY

REASON = "unconfirmed-endpoint"


async def confirmed(
    context: Context, owner: str, endpoints: Sequence[Resource]
) -> Sequence[Resource]:
    """Those Endpoints of a role or organization that may be called; a person is asked about the others."""
    if context.settings.endpoint_subscriptions is True or not endpoints:
        return endpoints
    found = [each for each in endpoints if await _is_confirmed(context, owner, each)]
    names, others = ({f"Endpoint/{each['id']}" for each in some} for some in (found, endpoints))
    await keep_task(context, REASON, None, sorted(others - names), names.__contains__)
    return found


async def _is_confirmed(context: Context, owner: str, endpoint: Resource) -> bool:
    if context.settings.auth != "smart":
        return Egress.from_settings(context.settings).is_named(endpoint["address"])
    store = context.services.store
    private = await secret_headers.private_of(store, "Endpoint", endpoint["id"])
    by = private.get(CONFIRMED_BY)
    return by == ADMINISTRATOR or (by is not None and by == await _organization(context, owner))


async def _organization(context: Context, owner: str) -> str | None:
    """The organization itself, or that of a role."""
    kind, _, id_ = owner.partition("/")
    if kind == "Organization":
        return owner
    stored = await context.services.store.read(kind, id_)
    if stored is None or stored.deleted:
        return None
    written = stored.resource().get("organization", {}).get("reference")
    return relative(written, context.settings.base_url.rstrip("/"))
