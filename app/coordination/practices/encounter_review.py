"""Review Tasks for Encounters whose patient is not known or whose messages are incomplete.

docs/encounters.md
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from app.automation import review_tasks
from app.automation.patient_resources import token
from app.automation.reactions import Reaction
from app.automation.review_tasks import RecentlyChecked
from app.context import Context
from app.fhir.codes import LATE_MESSAGE, UNSETTLED_MESSAGE
from app.fhir.encounter_status import ACTIVE, FINAL
from app.fhir.json import Resource
from app.interactions.references import split
from app.records.versions import HistoryRange, ResourceVersion
from app.resources.event_time import moment, time_of
from app.store.events import Event

# Visits that were over so long ago are loaded records and no news.
_NEWS = timedelta(days=30)
_VERSIONS = 1000


async def run(context: Context, event: Event) -> None:
    if event.resource is None:
        return
    if event.topic is not None:
        await _review_late(context, event)
    elif not is_record(event):
        await _review_visit(context, event, event.resource)
        await _review_subject(context, event, event.resource)


ENCOUNTER_REACTION = Reaction(
    "encounter-review",
    frozenset({"Encounter"}),
    run,
    frozenset({LATE_MESSAGE, UNSETTLED_MESSAGE}),
)


async def _review_late(context: Context, event: Event) -> None:
    """Create a Task for the first admission that became known after the discharge, else for what was not applied."""
    before = event.previous
    if before is None:
        return
    if await _is_late_admission(context, event, before):
        await _ask(context, event, before, "late-admission")
    elif event.topic == UNSETTLED_MESSAGE:
        await _ask(context, event, before, "unapplied-message", about=str(event.version))


async def _is_late_admission(context: Context, event: Event, before: Resource) -> bool:
    """Whether a message says that the visit goes on, and no earlier version of one that is finished did."""
    status = (event.trigger or {}).get("code")
    if status not in ACTIVE or before.get("status") != "finished":
        return False
    versions = await context.store.history(HistoryRange("Encounter", event.resource_id), _VERSIONS)
    known = [v.resource() for v in versions if v.version < event.version and not v.deleted]
    return not any(version.get("status") in ACTIVE for version in known)


async def _review_visit(context: Context, event: Event, encounter: Resource) -> None:
    if encounter.get("status") == "cancelled" and event.previous is None:
        await _ask(context, event, encounter, "cancel-without-admission")


async def _review_subject(context: Context, event: Event, encounter: Resource) -> None:
    """Create a Task where the subject is missing, unknown or merged; only when the visit is new or its subject is."""
    subject = encounter.get("subject")
    if event.previous is not None and event.previous.get("subject") == subject:
        return
    if subject and context.services.get(RecentlyChecked).knows(subject.get("reference", "")):
        return
    if not subject:
        await _ask(context, event, encounter, "no-subject")
    elif not str(subject.get("reference", "")).startswith("Group/"):
        patient = await patient_meant(context, subject)
        if patient is None:
            await _ask(context, event, encounter, "unknown-patient")
        elif "reference" not in subject:
            await _ask(context, event, encounter, "subject-by-identifier")
        elif _is_merged(patient.resource()):
            await _ask(context, event, encounter, "merged-patient")


async def patient_meant(context: Context, subject: dict[str, Any]) -> ResourceVersion | None:
    """The Patient that a Reference leads to, by literal reference or identifier; of several Patients one."""
    place = split(subject.get("reference", ""))
    if place is not None:
        found = await context.store.read(*place)
        return None if found is None or found.deleted or found.type != "Patient" else found
    identifier = subject.get("identifier", {})
    if "reference" in subject or "value" not in identifier:
        return None
    term = token("identifier", identifier.get("system", ""), identifier["value"])
    records = await context.services.store.search("Patient", {"terms": term}, 1)
    return records[0] if records else None


def _is_merged(patient: Resource) -> bool:
    return patient.get("active") is False or any(
        link.get("type") == "replaced-by" for link in patient.get("link", ())
    )


def is_record(event: Event) -> bool:
    """Whether a visit's first version says that it was over long ago."""
    resource = event.resource or {}
    if event.version > 1 or resource.get("status") not in FINAL:
        return False
    when = moment(resource, event.at)
    return when is not None and when.time < time_of(event.at - _NEWS)


async def _ask(
    context: Context, event: Event, encounter: Resource, reason: str, about: str = ""
) -> None:
    place = split(encounter.get("subject", {}).get("reference", ""))
    patient = "/".join(place) if place is not None and place[0] == "Patient" else None
    if patient is not None and reason == "unknown-patient":
        patient = None  # a Task for a Patient that is not stored would be refused where references are checked
    focus = f"Encounter/{event.resource_id}"
    await review_tasks.ask(context, reason, focus, patient=patient, about=about)
