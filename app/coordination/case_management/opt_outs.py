"""Members who say no to case management while they are enrolled: a person is asked to end the enrolment.

The server ends none itself. The Task closes itself when the enrolment has ended, or when the member takes the refusal
back; what a person has closed stays closed until the member says no anew.
"""

from __future__ import annotations

from functools import partial

from app.automation import review_tasks
from app.automation.borne_labels import labelled
from app.automation.follow_up_tasks import OPEN, Closing, amend, close, reopened
from app.automation.patient_resources import codes_in, patients_of, resources_of, token
from app.automation.reactions import Reaction, for_each
from app.context import Context
from app.coordination.case_management.case_management import (
    STANDING,
    episodes_of,
    is_case_management,
)
from app.coordination.case_management.participation import Decision, latest_decision
from app.fhir.codes import CASE_MANAGEMENT, CONSENT_CATEGORY, REVIEW_REASON
from app.fhir.json import Resource
from app.store.events import Event

REASON = "opted-out-while-enrolled"
_OF_REASON = token("code", REVIEW_REASON, REASON)
_ENDED = Closing("completed", "enrolment-ended")
_TAKEN_BACK = Closing("cancelled", "no-longer-due")


async def react(context: Context, event: Event) -> None:
    """Settle the members of a changed Consent or enrolment."""
    if not any(_concerns(each) for each in (event.resource, event.previous)):
        return
    await for_each(partial(settle, context), sorted(patients_of(event)))


REACTION = Reaction("case-management-opt-out", frozenset({"Consent", "EpisodeOfCare"}), react)


async def settle(context: Context, patient: str) -> None:
    """Bring the member's Tasks in line with the record."""
    decision = await latest_decision(context, patient)
    standing = [e for e in await episodes_of(context, patient) if e["status"] in STANDING]
    asked: set[str] = set()
    if decision is not None and decision.declines:
        for episode in standing:
            asked.add(await _ask(context, patient, episode, decision))
    going_on = {f"EpisodeOfCare/{episode['id']}" for episode in standing}
    for stored in await resources_of(context, "Task", patient, _OF_REASON):
        task = stored.resource()
        if stored.id not in asked and task["status"] in OPEN:
            ended = task["focus"]["reference"] not in going_on
            await close(context, stored.id, _ENDED if ended else _TAKEN_BACK)


async def _ask(context: Context, patient: str, episode: Resource, decision: Decision) -> str:
    """Have one Task for each enrolment and word of the member; returns its id."""
    focus = f"EpisodeOfCare/{episode['id']}"
    about = f"{decision.consent} {decision.said}"
    task = review_tasks.task(context, REASON, focus, patient=patient, about=about)
    if decision.said:
        task["reasonCode"] = {"text": f"The member said so on {decision.said[:10]}"}
    task = await labelled(context, task, task["focus"]["reference"])
    await amend(context, "Task", task["id"], lambda now: task if now is None else reopened(now))
    return str(task["id"])


def _concerns(resource: Resource | None) -> bool:
    if resource is None:
        return False
    if resource["resourceType"] == "EpisodeOfCare":
        return is_case_management(resource)
    return CASE_MANAGEMENT in codes_in(resource.get("category"), CONSENT_CATEGORY)
