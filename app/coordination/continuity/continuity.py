"""Continuity of care: for 90 days a new member's earlier plan of care is honoured, or until a new plan replaces it.

The days are a Flag for those who treat the member; their end is a Task for the care team. Both are computed anew after
each change of a Coverage or a CarePlan, so the order of the changes does not matter.
"""

from __future__ import annotations

from datetime import date, datetime
from functools import partial

from app.automation.borne_labels import is_relabelled, labels_of, with_labels
from app.automation.follow_up_tasks import (
    Closing,
    FollowUp,
    amend,
    closed,
    keep,
    patients_with_late,
)
from app.automation.member_calendar import MemberCalendar, calendar_of
from app.automation.patient_resources import (
    changed,
    codes_in,
    day,
    first_seen,
    patients_of,
    resources_of,
)
from app.automation.reactions import Reaction, for_each, stable_id
from app.automation.timers import Timer, Timers
from app.context import Context
from app.coordination.continuity.continuity_days import (
    Continuity,
    EarlierPlan,
    continuity,
    new_enrolments,
)
from app.fhir.codes import CONTINUITY_OF_CARE, FLAG_CATEGORY
from app.fhir.json import Resource
from app.records.versions import ResourceVersion
from app.store.events import Event

TYPES = frozenset({"CarePlan", "Coverage"})
KIND = "continuity-of-care"
TASK = "continuity-of-care-end"
# The elements of a Coverage and of a CarePlan that count here.
_ELEMENTS = (
    "status",
    "period",
    "beneficiary",
    "payor",
    "subject",
    "intent",
    "created",
    "replaces",
)
_CODING = {"system": FLAG_CATEGORY, "code": CONTINUITY_OF_CARE, "display": "Continuity of care"}
_CLOSINGS = {
    "left": Closing("cancelled", "enrolment-ended"),
    "replaced": Closing("completed", "plan-replaced"),
    "stopped": Closing("cancelled", "no-longer-due"),
}
# Repeated as long as a round changed something; a few rounds end a race between two processes.
_ROUNDS = 5


async def react(context: Context, event: Event) -> None:
    """Settle the patients of a changed Coverage or CarePlan."""
    if changed(event, _ELEMENTS) or is_relabelled(event):
        await for_each(partial(settle, context), sorted(patients_of(event)))


async def late(context: Context) -> list[str]:
    """The patients whose Tasks are marked as late."""
    return await patients_with_late(context, TASK)


async def expire(context: Context, key: str, data: object) -> None:
    """Settle again once a last day is over; `key` is the patient."""
    await settle(context, key)


REACTION = Reaction(KIND, TYPES, react)
TIMER = Timer(KIND, expire, what="Continuity of care ends", rung_already=late)


async def settle(context: Context, patient: str) -> None:
    """Bring the patient's Flags and Tasks of continuity in line with the record."""
    for _ in range(_ROUNDS):
        if not await _settle_once(context, patient):
            return


async def _settle_once(context: Context, patient: str) -> bool:
    flags = [
        each
        for each in await resources_of(context, "Flag", patient)
        if CONTINUITY_OF_CARE in codes_in(each.resource().get("category"), FLAG_CATEGORY)
    ]
    stored = await resources_of(context, "Coverage", patient)
    if not stored and not flags:
        return False
    calendar = await calendar_of(context, patient)
    coverages = [calendar.with_days(each.resource()) for each in stored]
    now, days = context.services.clock.now(), context.settings.continuity_days
    plans = await _plans(context, patient, calendar)
    wanted: dict[str, Continuity] = {}
    for enrolment in new_enrolments(coverages, _payors(context)):
        flag_id = _flag_id(patient, enrolment.start)
        found = continuity(enrolment, plans, days)
        is_known = any(flag.id == flag_id for flag in flags)
        # Days that were over before they became known get no Flag.
        if found and (is_known or not _is_over(found, now, calendar)):
            wanted[flag_id] = found
    differs = False
    for flag_id, found in wanted.items():
        is_over = _is_over(found, now, calendar)
        differs |= await _keep_flag(context, flag_id, patient, found, is_over=is_over)
        over = calendar.over_at(found.end)
        closing = _CLOSINGS.get(found.outcome) if is_over else None
        differs |= await keep(context, _follow_up(flag_id, patient, found, over, closing))
    for flag in flags:
        if flag.id not in wanted:
            today = calendar.day_of(now)
            differs |= await _withdraw(context, flag, patient, coverages, today)
    await _set_timer(context, patient, list(wanted.values()), calendar)
    return differs


def _is_over(found: Continuity, now: datetime, calendar: MemberCalendar) -> bool:
    """Whether the days have passed, or ended early."""
    if found.outcome in ("replaced", "stopped"):
        return found.end <= calendar.day_of(now)
    return calendar.over_at(found.end) <= now


async def _set_timer(
    context: Context, patient: str, wanted: list[Continuity], calendar: MemberCalendar
) -> None:
    now, timers = context.services.clock.now(), context.services.get(Timers)
    ends = [calendar.over_at(found.end) for found in wanted if not _is_over(found, now, calendar)]
    if ends:
        await timers.set(KIND, patient, min(ends))
    else:
        await timers.cancel(KIND, patient)


async def _plans(context: Context, patient: str, calendar: MemberCalendar) -> list[EarlierPlan]:
    """The patient's plans of care; orders and proposals are none."""
    found = []
    for stored in await resources_of(context, "CarePlan", patient, "intent=plan"):
        resource = stored.resource()
        period = resource.get("period", {})
        began = calendar.day(period.get("start")) or calendar.day(resource.get("created"))
        found.append(
            EarlierPlan(
                stored.reference,
                resource["status"],
                began or calendar.day_of(await first_seen(context, stored)),
                calendar.last_day(period.get("end")),
                frozenset(each.get("reference", "") for each in resource.get("replaces", ())),
                calendar.day_of(stored.at),
            )
        )
    return found


async def _keep_flag(
    context: Context, flag_id: str, patient: str, found: Continuity, *, is_over: bool
) -> bool:
    given = await labels_of(context, found.focus)

    def change(current: Resource | None) -> Resource | None:
        if current is None and is_over:
            return None
        current = current and with_labels(current, given)
        # A stopped plan has no end of its own, only the day it was last written: the first such day stays.
        if current and current["status"] == "inactive" and found.outcome == "stopped":
            return current
        flag = current or with_labels(_flag(flag_id, patient), given)
        period = {"start": found.start.isoformat(), "end": found.end.isoformat()}
        return {**flag, "status": "inactive" if is_over else "active", "period": period}

    return await amend(context, "Flag", flag_id, change)


def _flag(flag_id: str, patient: str) -> Resource:
    return {
        "resourceType": "Flag",
        "id": flag_id,
        "category": [{"coding": [_CODING]}],
        "code": {"coding": [_CODING], "text": "An earlier plan of care is honoured"},
        "subject": {"reference": patient},
    }


def _follow_up(
    flag_id: str, patient: str, found: Continuity, over: datetime, closing: Closing | None
) -> FollowUp:
    return FollowUp(
        id=stable_id(TASK, flag_id),
        code=TASK,
        patient=patient,
        focus=found.focus,
        start=found.start,
        due=found.end,
        over=over,
        why=f"A new member since {found.start}: a plan of care from before is honoured until then",
        closing=closing,
    )


async def _withdraw(
    context: Context,
    flag: ResourceVersion,
    patient: str,
    coverages: list[Resource],
    today: date,
) -> bool:
    """End the Flag of an enrolment that is gone: inactive where its Coverage was cancelled, else entered-in-error."""
    cancelled = {
        _flag_id(patient, start)
        for coverage in coverages
        if coverage["status"] == "cancelled"
        and (start := day(coverage.get("period", {}).get("start")))
    }

    task = await context.store.read("Task", stable_id(TASK, flag.id))
    focus = "" if task is None or task.deleted else task.resource()["focus"]["reference"]
    given = await labels_of(context, focus)

    def change(current: Resource | None) -> Resource | None:
        if current is None:
            return None
        current = with_labels(current, given)
        if current["status"] != "active":
            return current
        if flag.id not in cancelled:
            return {**current, "status": "entered-in-error"}
        period = current["period"]
        end = max(period["start"], min(today.isoformat(), period["end"]))
        return {**current, "status": "inactive", "period": {**period, "end": end}}

    def close(current: Resource | None) -> Resource | None:
        return current and closed(with_labels(current, given), _CLOSINGS["left"])

    withdrawn = await amend(context, "Flag", flag.id, change)
    return await amend(context, "Task", stable_id(TASK, flag.id), close) or withdrawn


def _flag_id(patient: str, start: date) -> str:
    return stable_id(KIND, patient, start.isoformat())


def _payors(context: Context) -> frozenset[str]:
    listed = context.settings.continuity_payors.split(",")
    return frozenset(each.strip() for each in listed if each.strip())
