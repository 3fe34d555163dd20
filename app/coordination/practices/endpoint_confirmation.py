"""Endpoints that may be called unasked, and a Task about the others (CARERELAY_ENDPOINT_SUBSCRIPTIONS=confirmed).

With authorization an administrator or the practice's own client has written the address; without, it is on loopback or
on the egress allow-list. Directories are loaded from others: that alone must not send anything to their addresses.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from app.attribution.claims import relative
from app.automation import review_tasks
from app.automation.follow_up_tasks import OPEN, amend
from app.context import Context
from app.fhir.json import Resource
from app.network.egress_policy import Egress
from app.resources import secret_headers
from app.resources.endpoint import ADMINISTRATOR, CONFIRMED_BY

REASON = "unconfirmed-endpoint"
_MOST_LISTED = 200


async def confirmed(
    context: Context, owner: str, endpoints: Sequence[Resource]
) -> Sequence[Resource]:
    """Those Endpoints of a role or organization that may be called; a person is asked about the others."""
    if context.settings.endpoint_subscriptions is True or not endpoints:
        return endpoints
    found = [each for each in endpoints if await _is_confirmed(context, owner, each)]
    names, others = ({f"Endpoint/{each['id']}" for each in some} for some in (found, endpoints))
    await _ask(context, sorted(others - names), names)
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


async def _ask(context: Context, doubted: Sequence[str], trusted: Collection[str]) -> None:
    """Bring the one Task in line, which lists the Endpoints; it is completed when none is left.

    What a person has closed stays closed, until there is another.
    """
    asked = review_tasks.task(context, REASON, None, patient=None)

    def change(current: Resource | None) -> Resource | None:
        before = [] if current is None else _listed(current)
        names = [each for each in before if each not in trusted]
        new = [each for each in doubted if each not in names]
        names = [*names, *new][:_MOST_LISTED]
        if names == before:
            return None
        is_open = current is None or current["status"] in OPEN
        status = current["status"] if current is not None else "requested"
        if new and not is_open:
            status = "requested"
        elif not names and is_open:
            status = "completed"
        inputs = [
            {"type": {"text": "Endpoint"}, "valueReference": {"reference": each}} for each in names
        ]
        changed = {**(asked if current is None else current), "status": status, "input": inputs}
        return changed if inputs else {key: changed[key] for key in changed if key != "input"}

    await amend(context, "Task", asked["id"], change)


def _listed(task: Resource) -> list[str]:
    return [each["valueReference"]["reference"] for each in task.get("input", ())]
