"""Taking a message: what it says is written in one transaction, and however often it comes it is answered alike.

https://hl7.org/fhir/R4/messageheader-operation-process-message.html
"""

from __future__ import annotations

from app.context import Context
from app.errors import FhirError, Issue
from app.fhir import json as fhir_json, validation
from app.fhir.json import Resource
from app.interactions import interactions
from app.interactions.result import InteractionResult
from app.messaging import answers, message_bundle, writes
from app.messaging.message_bundle import Message
from app.messaging.receipts import Answered, MessageKey, Receipts
from app.runtime import pace


async def take(context: Context, bundle: Resource) -> InteractionResult:
    """The response message: 200, or 202 where what was sent is kept and not in force.

    Raises FhirError for a message that is not taken, answered by a response message too where it has a MessageHeader.
    """
    header = message_bundle.header_of(bundle)
    try:
        return await _take(context, bundle, header)
    except FhirError as error:
        error.answer = answers.refusal(context, header, error)
        raise


async def _take(context: Context, bundle: Resource, header: Resource) -> InteractionResult:
    size = len(fhir_json.encode(bundle)) if pace.is_long() else 0
    await pace.aside(size, validation.validate, bundle)
    own_bases = {context.base_url, context.settings.base_url.rstrip("/")} - {""}
    now = context.services.clock.now()
    message = await pace.aside(size, message_bundle.read, bundle, header, own_bases, now)
    key = await pace.aside(size, MessageKey.of, context.caller, message)
    receipts = context.services.get(Receipts)

    async def attempt() -> Answered:
        known = await receipts.find(key)
        return known or await _write(context, message, receipts, key)

    answered = await interactions.until_undisturbed(context.store, attempt)
    return InteractionResult(answered.status, text=answered.text)


async def _write(
    context: Context, message: Message, receipts: Receipts, key: MessageKey
) -> Answered:
    """Write all that the message says, with its receipt. Raises VersionConflict where another was faster."""
    planned = await writes.planned(context, message)
    done = Issue("informational", "The message was taken", severity="information")
    response = answers.response(
        context, message.header, "ok", (done, *planned.issues), planned.focus
    )
    answered = Answered(planned.status, fhir_json.encode(response).decode())
    guards = list(planned.guards.values())
    await context.store.commit(planned.changes, guards, [receipts.row(key, answered)])
    return answered
