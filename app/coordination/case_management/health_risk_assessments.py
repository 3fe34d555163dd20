"""Health risk assessments fall due: within 90 days of an enrolment in case management, then every year.

42 CFR 422.101(f)(1)(i) requires both of a special needs plan. A Task has the due date; a completed
QuestionnaireResponse that is such an assessment closes it and opens the next year's. What is due is computed anew from
the patient's record after each change of it, so the order and number of the changes do not matter.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial

from app.automation.follow_up_tasks import (
    OPEN,
    Closing,
    FollowUp,
    close,
    is_closed_by_people,
    keep,
    patients_with_late,
)
from app.automation.member_calendar import MemberCalendar, calendar_of
from app.automation.patient_resources import (
    codes_in,
    first_seen,
    is_health_risk_assessment,
    patient_of,
    patients_of,
    resources_of,
    token,
)
from app.automation.reactions import Reaction, for_each, stable_id
from app.automation.timers import Timer, Timers
from app.context import Context
from app.coordination.case_management.case_management import (
    ENROLLED,
    began,
    episodes_of,
    is_case_management,
)
from app.fhir.codes import TASK_CODE
from app.fhir.instants import a_year_after, moved
from app.fhir.json import Resource
from app.records.versions import ResourceVersion
from app.store.events import Event

TYPES = frozenset({"EpisodeOfCare", "QuestionnaireResponse", "Task"})
KIND = "hra-due"
FIRST = timedelta(days=90)
# Repeated as long as a round changed something; a few rounds end a race between two processes.
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Assessment:
    """A completed health risk assessment and the day it was made."""

    reference: str
    made: date


@dataclass(frozen=True, slots=True)
class Due:
    """One assessment that is or was due: the id of its Task, its first and last day, and what fulfilled it.

    `why` it is due.
    """

    task_id: str
    start: date
    until: date
    assessment: Assessment | None
    why: str


async def react(context: Context, event: Event) -> None:
    """Settle the patients of a changed enrolment, assessment or Task of ours."""
    if not any(_concerns(context, each) for each in (event.resource, event.previous)):
        return
    await for_each(partial(settle, context), sorted(patients_of(event)))


async def late(context: Context) -> list[str]:
    """The patients whose Tasks are marked as late."""
    return await patients_with_late(context, KIND)


async def remind(context: Context, key: str, data: object) -> None:
    """Settle again once the last day is over; `key` is the patient."""
    await settle(context, key)


REACTION = Reaction("health-risk", TYPES, react)
TIMER = Timer(KIND, remind, what="A health risk assessment is late", rung_already=late)


async def settle(context: Context, patient: str) -> None:
    """Bring the patient's Tasks in line with the record."""
    for _ in range(_ROUNDS):
        if not await _settle_once(context, patient):
            return


async def _settle_once(context: Context, patient: str) -> bool:
    tasks = await resources_of(context, "Task", patient, token("code", TASK_CODE, KIND))
    calendar = await calendar_of(context, patient)
    enrolments = [
        (start, episode)
        for episode in await episodes_of(context, patient)
        if episode["status"] in ENROLLED and (start := began(episode, calendar))
    ]
    # Of several enrolments at once the first one counts: one assessment serves all.
    enrolments.sort(key=lambda each: (each[0], each[1]["id"]))
    wanted: Sequence[Due] = ()
    differs = False
    if enrolments:
        start, episode = enrolments[0]
        made = await _assessments(context, patient, calendar)
        wanted = await _cycle(context, patient, episode, start, made)
        for due in wanted:
            differs |= await keep(context, _follow_up(patient, episode, due, calendar))
    kept = {due.task_id for due in wanted}
    reason = "no-longer-due" if enrolments else "enrolment-ended"
    for task in tasks:
        if task.id not in kept and task.resource()["status"] in OPEN:
            differs |= await close(context, task.id, Closing("cancelled", reason))
    await _set_timer(context, patient, wanted, calendar)
    return differs


async def _cycle(
    context: Context,
    patient: str,
    episode: Resource,
    start: date,
    made: Sequence[Assessment],
) -> list[Due]:
    """The assessments due since the enrolment, the current one last; reads which Tasks people have closed."""
    refused: set[str] = set()
    while True:
        found = due_since(
            f"{patient} {episode['id']}",
            start,
            [each for each in made if each.made >= moved(start, -_lookback(context))],
            refused,
        )
        task = await context.store.read("Task", found[-1].task_id)
        if task is None or not is_closed_by_people(task):
            return found
        refused.add(task.id)


def due_since(
    enrolment: str, start: date, made: Sequence[Assessment], refused: Collection[str]
) -> list[Due]:
    """The assessments due since an enrolment began, the current one last.

    Each assessment, in order, fulfils what was due; the next is due a year after it. A Task that people have closed
    without one (`refused`: ids) is followed a year after it was due.
    """
    found: list[Due] = []
    waiting = list(made)
    opened_by, since, until = "enrolment", start, moved(start, FIRST)
    why = f"The first is due within {FIRST.days} days of the enrolment on {start}"
    while True:
        task_id = stable_id(KIND, enrolment, opened_by)
        fulfilled = waiting.pop(0) if waiting else None
        found.append(Due(task_id, since, until, fulfilled, why))
        if fulfilled:
            opened_by, since = fulfilled.reference, fulfilled.made
            until = a_year_after(fulfilled.made)
            why = f"It is due a year after the last one, of {since}"
        elif task_id in refused:
            opened_by, since, until = task_id, until, a_year_after(until)
            why = f"It is due a year after {since}, by when the last one was due and was not made"
        else:
            return found


def _follow_up(patient: str, episode: Resource, due: Due, calendar: MemberCalendar) -> FollowUp:
    closing = Closing("completed", "assessed", due.assessment.reference) if due.assessment else None
    return FollowUp(
        id=due.task_id,
        code=KIND,
        patient=patient,
        focus=f"EpisodeOfCare/{episode['id']}",
        start=due.start,
        due=due.until,
        over=calendar.over_at(due.until),
        why=due.why,
        owner=episode.get("careManager"),
        closing=closing,
    )


async def _set_timer(
    context: Context, patient: str, wanted: Sequence[Due], calendar: MemberCalendar
) -> None:
    timers = context.services.get(Timers)
    over = calendar.over_at(wanted[-1].until) if wanted else None
    if over is not None and over > context.services.clock.now():
        await timers.set(KIND, patient, over)
    else:
        await timers.cancel(KIND, patient)


async def _assessments(
    context: Context, patient: str, calendar: MemberCalendar
) -> list[Assessment]:
    """The patient's completed assessments, in the order they were made."""
    stored = [
        each
        for status in ("completed", "amended")
        for each in await resources_of(
            context, "QuestionnaireResponse", patient, f"status={status}"
        )
    ]
    found = [
        Assessment(each.reference, await _made(context, each, resource, calendar))
        for each in stored
        if is_health_risk_assessment(context.settings, resource := each.resource())
    ]
    return sorted(found, key=lambda each: (each.made, each.reference))


async def _made(
    context: Context, stored: ResourceVersion, response: Resource, calendar: MemberCalendar
) -> date:
    made = calendar.day(response.get("authored"))
    return made or calendar.day_of(await first_seen(context, stored))


def _concerns(context: Context, resource: Resource | None) -> bool:
    """Whether a resource can change what is due."""
    if resource is None or patient_of(resource) is None:
        return False
    if resource["resourceType"] == "EpisodeOfCare":
        return is_case_management(resource)
    if resource["resourceType"] == "Task":
        return KIND in codes_in(resource.get("code"), TASK_CODE)
    return is_health_risk_assessment(context.settings, resource)


def _lookback(context: Context) -> timedelta:
    return timedelta(days=context.settings.hra_lookback_days)
