"""Encounter/$notices: every notice about a stay, as proof: a Communication and an AuditEvent for each.

http://carerelay.example/OperationDefinition/Encounter-notices; docs/proof.md. Notices under way and ones that could not
be sent are included; content never is. Who is no administrator finds those whose Communication it may read. Where there
is none, an administrator is told why.
"""

from __future__ import annotations

from app.automation.patient_resources import token
from app.context import Context
from app.coordination.practices.silence import why_nobody
from app.errors import Issue
from app.fhir import json as fhir_json
from app.fhir.codes import EVENT_NOTICE, NOTICE_KIND
from app.fhir.json import Resource
from app.interactions import interactions
from app.interactions.result import InteractionResult
from app.operations.arguments import Invocation
from app.proof.audit_event import audit_event
from app.proof.communication import communication
from app.proof.publisher import sender_of
from app.proof.visible_notices import visible
from app.records.versions import ResourceVersion
from app.search.bundle_writer import found_entries, outcome_entry, write_bundle
from app.search.include import IncludedRow
from app.subscriptions.ledger.ledger import delivery_rows


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """A searchset, the oldest notice first. Raises NotFound or Gone for the Encounter."""
    resource_type, resource_id = invocation.instance
    await interactions.current(context, resource_type, resource_id)
    rows = (
        await delivery_rows(context.services.mongo)
        .find({"focus.id": resource_id, "focus.type": resource_type, "topic": {"$ne": None}})
        .to_list(None)
    )
    sender = sender_of(context.settings)
    found: dict[str, list[Resource]] = {}
    for notice in await visible(context, rows):
        found[notice.id] = [communication(notice, sender), audit_event(notice, sender)]
    for stored in await _published(context, f"{resource_type}/{resource_id}"):
        if stored.id not in found:
            found[stored.id] = [stored.resource(), *await _audited(context, stored.id)]
    resources = [each for notice in sorted(found) for each in found[notice]]
    shown = [
        IncludedRow(each["resourceType"], each["id"], fhir_json.encode(each).decode())
        for each in resources
    ]
    head = {"type": "searchset", "total": len(resources)}
    entries = found_entries(context.base_url, shown)
    if not resources and context.access is None:
        # To whom notices may be hidden nothing is said: it would tell whether there are any.
        why = await why_nobody(context, resource_type, resource_id)
        entries = outcome_entry([Issue("informational", why, severity="information")])
    return InteractionResult(200, text=write_bundle(head, (), entries))


async def _published(context: Context, encounter: str) -> list[ResourceVersion]:
    """The Communications of notices, also of those that the ledger no longer has."""
    kind = token("category", NOTICE_KIND, EVENT_NOTICE)
    wanted = {"terms": {"$all": [f"encounter={encounter}", kind]}}
    return await context.store.search("Communication", wanted, 0)


async def _audited(context: Context, notice: str) -> list[Resource]:
    """The AuditEvents of a notice that the caller sees: their ids begin with its own."""
    wanted = {"_id": {"$gte": f"{notice}-", "$lt": f"{notice}."}, "terms": "*"}
    # Read past the caller's limits: AuditEvents are the administrator's, and these say no more than the notice.
    found = await context.services.store.search("AuditEvent", wanted, 0)
    return [each.resource() for each in found]
