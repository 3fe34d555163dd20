"""Letters about case management: Communications that a person prints or mails, and completes with the time of sending.

https://hl7.org/fhir/R4/communication.html
"""

from __future__ import annotations

from app.automation.borne_labels import labelled
from app.automation.reactions import stable_id
from app.consent import labels
from app.consent.judgement import judge
from app.consent.recipients import resolve
from app.context import Context
from app.fhir.codes import CASE_MANAGEMENT, EPISODE_TYPE, LETTER_KIND
from app.fhir.json import Resource
from app.interactions import interactions
from app.interactions.references import split

NOT_DONE = "http://terminology.hl7.org/CodeSystem/communication-not-done-reason"


async def is_refused(
    context: Context,
    patient: str,
    recipient: str | None,
    about: str,
    focus: str = "EpisodeOfCare/-",
) -> bool:
    """Whether the patient refuses that a provider hears of `focus`; `about` is the record that the letter follows."""
    place = split(about)
    stored = None if place is None else await context.store.read(*place)
    judgement = await judge(
        context.store,
        patient,
        focus=focus,
        topic=None,
        recipient=await resolve(
            context.store, recipient, "provider", context.settings.base_url.rstrip("/")
        ),
        given=labels.NONE,
        at=context.services.clock.now(),
        settings=context.settings,
        custodian=None if stored is None else stored.custodian,
    )
    return judgement.verdict == "withhold"


def to(recipient: Resource) -> Resource:
    """A letter that is to be sent."""
    return {"status": "preparation", "recipient": [recipient]}


def not_sent(reason: str) -> Resource:
    """A letter that is not sent, by a code of communication-not-done-reason."""
    return {
        "status": "not-done",
        "statusReason": {"coding": [{"system": NOT_DONE, "code": reason}]},
    }


def letter_id(kind: str, key: str) -> str:
    """The id of the letter of a kind; `key` tells the occasions apart."""
    return stable_id("letter", kind, key)


async def store_letter(
    context: Context, kind: str, patient: str, key: str, words: str, more: Resource
) -> None:
    """Store a letter unless it exists: the person who mails it may have changed its status since."""
    own_id = letter_id(kind, key)
    if await context.store.read("Communication", own_id) is not None:
        return
    letter: Resource = {
        "resourceType": "Communication",
        "id": own_id,
        "category": [{"coding": [{"system": LETTER_KIND, "code": kind}]}],
        "topic": {"coding": [{"system": EPISODE_TYPE, "code": CASE_MANAGEMENT}]},
        "subject": {"reference": patient},
        **more,
    }
    if more["status"] != "not-done":
        letter["payload"] = [{"contentString": words}]
    for about in more.get("about", ()):
        letter = await labelled(context, letter, about["reference"])
    await interactions.update(context, "Communication", own_id, letter)
