"""Whom the Communication of a plan's notice is for: the patient's practices at that moment.

https://hl7.org/fhir/R4/communication.html. Without one it is `not-done`: no Communication is completed to nobody. That
a practice has received the notice says the notice's proof (app/proof).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from app.attribution.attribution import primary_care
from app.context import Context
from app.fhir.instants import instant
from app.fhir.json import Resource

_NOT_DONE = "http://terminology.hl7.org/CodeSystem/communication-not-done-reason"
_NOBODY = {
    "coding": [{"system": _NOT_DONE, "code": "recipient-unavailable"}],
    "text": "No primary care practice is known",
}


async def addressed(
    context: Context,
    communication: Resource,
    patient: str | None,
    at: datetime,
    only_for: Sequence[str] = (),
) -> Resource:
    """The Communication with its recipients and the time it was sent, or with why there are none.

    `only_for` are the providers of a copy for some alone.
    """
    practices = list(only_for)
    if patient is not None and not practices:
        # Whose patient somebody is, is the same whoever has changed the plan.
        store = context.services.store
        found = await primary_care(store, patient, at, context.settings)
        practices = list(dict.fromkeys(provider.practice for provider in found.providers))
    if not practices:
        return {**communication, "status": "not-done", "statusReason": _NOBODY}
    recipient = [{"reference": each} for each in practices]
    return {**communication, "status": "completed", "recipient": recipient, "sent": instant(at)}
