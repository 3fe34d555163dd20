"""Review Tasks for members who may need case management again; the server never enrols anybody itself.

Three events call for a review: a transition of care (an inpatient stay begins or ends), a risk that has risen, and a
referral. The first two concern members who were enrolled before or are on a list of candidates; a referral concerns
anybody. A member has one open review Task at a time, and none after declining.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime

from app.automation import review_tasks
from app.automation.borne_labels import labelled
from app.automation.follow_up_tasks import OPEN
from app.automation.member_calendar import MemberCalendar
from app.automation.patient_resources import codes_in, moment, patient_of, resources_of, token
from app.automation.reactions import Reaction
from app.context import Context
from app.coordination.case_management import referral_answers
from app.coordination.case_management.case_management_triggers import (
    REASON,
    RECENT,
    REFERRED,
    TRIGGERS,
    Cause,
)
from app.coordination.case_management.participation import latest_decision
from app.fhir.codes import (
    CASE_MANAGEMENT,
    CASE_MANAGEMENT_CANDIDATES,
    EPISODE_END_REASON,
    EPISODE_END_REASON_EXTENSION,
    EPISODE_TYPE,
    GROUP_KIND,
    REVIEW_CAUSE,
    REVIEW_CAUSES,
    REVIEW_REASON,
)
from app.fhir.json import Resource
from app.interactions import interactions, plan as write
from app.interactions.preconditions import NO_PRECONDITIONS
from app.search import group_members, spans
from app.store.events import Event

# What is history, or nobody's matter: nobody waits for an answer.
_UNANSWERED = "unanswered"


async def react(context: Context, event: Event) -> None:
    """Create a review Task where the event calls for one."""
    resource = event.resource
    patient = patient_of(resource)
    if resource is None or patient is None:
        return
    cause = await TRIGGERS[event.type](context, event, resource)
    if cause is None:
        return
    answer = await _why_not(context, patient, cause)
    if answer is None:
        await _ask(context, patient, f"{event.type}/{event.resource_id}", cause)
    elif cause.code == REFERRED and answer != _UNANSWERED:
        await referral_answers.answer(context, patient, event.resource_id, answer)


async def sift(context: Context, events: Sequence[Event]) -> list[Event]:
    """The events about members who were enrolled before or are in some Group, and the referrals."""
    patients = {patient for event in events if (patient := patient_of(event.resource))}
    enrolled = token("type", EPISODE_TYPE, CASE_MANAGEMENT)
    of_patients = [f"patient={patient}" for patient in patients]
    members = [f"member={patient}" for patient in patients]
    episodes, rows = await context.store.find_together(
        [
            ("EpisodeOfCare", {"terms": {"$in": of_patients, "$eq": enrolled}}, {"terms": 1}),
            ("group_members", {"_id.m": {"$in": members}}, {"_id": 1}),
        ]
    )
    known = {term.removeprefix("patient=") for episode in episodes for term in episode["terms"]}
    known |= {row["_id"]["m"].removeprefix("member=") for row in rows}
    return [
        event
        for event in events
        if event.type == "ServiceRequest" or patient_of(event.resource) in known
    ]


async def check(context: Context, event: Event) -> None:
    """Create a review Task for an enrolment that lacks its start or, once finished, its end reason."""
    resource = event.resource
    if resource is None or not is_case_management(resource):
        return
    focus, patient = f"EpisodeOfCare/{event.resource_id}", patient_of(resource)
    if resource["status"] == "active" and began(resource, MemberCalendar()) is None:
        await review_tasks.ask(context, "no-enrolment-date", focus, patient=patient)
    if resource["status"] == "finished" and end_reason(resource) is None:
        await review_tasks.ask(context, "no-end-reason", focus, patient=patient)


REACTIONS = (
    Reaction("case-management", frozenset(TRIGGERS), react, sift=sift),
    Reaction("case-management-enrolment", frozenset({"EpisodeOfCare"}), check),
)


async def _why_not(context: Context, patient: str, cause: Cause) -> str | None:
    """Why it is not asked whether the member is to be enrolled; None where it is.

    It is a code of REFERRAL_ANSWERS, or _UNANSWERED.

    Who is asked about is not enrolled now, was before or is a candidate, and has not declined.
    """
    if context.services.clock.now() - cause.happened > RECENT:
        return _UNANSWERED
    episodes = await episodes_of(context, patient)
    if any(episode["status"] in STANDING for episode in episodes):
        return "already-enrolled"
    past = [episode for episode in episodes if episode["status"] == "finished"]
    last = max(past, key=lambda each: str(each.get("period", {}).get("end", "")), default=None)
    if last is None:
        if cause.code != REFERRED and not await _is_candidate(context, patient):
            return _UNANSWERED
    else:
        end = ended(last)
        if end is not None and cause.happened < end:
            return _UNANSWERED
    return await _refusal(context, patient, last)


async def _is_candidate(context: Context, patient: str) -> bool:
    """Whether the patient is on a list of candidates now."""
    now = context.services.clock.now()
    found = await group_members.memberships(context.store, "group_members", [f"member={patient}"])
    groups = [each for each, when in found.items() if any(spans.holds(span, now) for span in when)]
    lists = {
        "_id": {"$in": groups},
        "terms": token("code", GROUP_KIND, CASE_MANAGEMENT_CANDIDATES),
        "roster.live": True,
    }
    return bool(groups) and await context.services.store.count("Group", lists, 1) > 0


async def _refusal(context: Context, patient: str, last: Resource | None) -> str | None:
    """`deceased`, or `declined` by the latest Consent or else by why the last enrolment ended; None for neither."""
    reason = None if last is None else end_reason(last)
    person = await context.store.read(*patient.split("/", 1))
    record = {} if person is None or person.deleted else person.resource()
    if reason == "deceased" or record.get("deceasedBoolean") or record.get("deceasedDateTime"):
        return "deceased"
    decision = await latest_decision(context, patient)
    declines = reason == "opted-out" if decision is None else decision.declines
    return "declined" if declines else None


async def _ask(context: Context, patient: str, focus: str, cause: Cause) -> None:
    """Create the review Task, unless one about this member is open, or this focus has had one."""
    asked = review_tasks.task(context, REASON, focus, patient=patient)
    coding = {"system": REVIEW_CAUSE, "code": cause.code, "display": REVIEW_CAUSES[cause.code]}
    asked["reasonCode"] = {"coding": [coding]}
    task = await labelled(context, asked, asked["focus"]["reference"])
    terms = ["subject=" + patient, token("code", REVIEW_REASON, REASON)]

    async def attempt() -> None:
        # The guard makes this hold between processes too: of two that see no open Task one has to read again.
        guards = await context.store.guards(f"{REASON} {patient}")
        found = await context.store.search("Task", {"terms": {"$all": terms}}, 1000)
        is_open = any(each.resource()["status"] in OPEN for each in found)
        target = await write.target_of_update(context, "Task", task["id"])
        if is_open or target.previous is not None:
            return
        plan = await write.plan_write(context, target, task, NO_PRECONDITIONS)
        if plan.change is not None:
            await context.store.commit([plan.change], guards)

    await interactions.until_undisturbed(context.store, attempt)


# Enrolment in case management: an EpisodeOfCare of the type `case-management`.
#
# https://hl7.org/fhir/R4/episodeofcare.html

# The statuses of a current enrolment, and of a current or coming one.
ENROLLED = frozenset({"active", "onhold"})
STANDING = ENROLLED | {"planned", "waitlist"}


def is_case_management(episode: Resource | None) -> bool:
    return episode is not None and CASE_MANAGEMENT in codes_in(episode.get("type"), EPISODE_TYPE)


async def episodes_of(context: Context, patient: str) -> list[Resource]:
    """The patient's enrolments in case management, whatever their status but entered-in-error."""
    found = await resources_of(
        context, "EpisodeOfCare", patient, token("type", EPISODE_TYPE, CASE_MANAGEMENT)
    )
    episodes = [stored.resource() for stored in found]
    return [each for each in episodes if each["status"] != "entered-in-error"]


def began(episode: Resource, calendar: MemberCalendar) -> date | None:
    """The first day of the enrolment."""
    return calendar.day(episode.get("period", {}).get("start"))


def ended(episode: Resource) -> datetime | None:
    """The earliest moment at which the enrolment may have ended."""
    return moment(episode.get("period", {}).get("end"))


def end_reason(episode: Resource) -> str | None:
    """The code that says why the enrolment ended."""
    for extension in episode.get("extension", ()):
        if extension["url"] == EPISODE_END_REASON_EXTENSION:
            codes = codes_in(extension.get("valueCodeableConcept"), EPISODE_END_REASON)
            return codes[0] if codes else None
    return None
