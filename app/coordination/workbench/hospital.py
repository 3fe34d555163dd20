"""Who is in hospital, who came back soon, and who was not seen after a discharge."""

from __future__ import annotations

from datetime import datetime, timedelta

from app.coordination.workbench import member_stays as stays
from app.coordination.workbench.member_findings import Asked, Finding
from app.coordination.workbench.member_stays import Stay, local_day
from app.fhir.codes import INPATIENT
from app.fhir.encounter_status import ACTIVE

_BEFORE = timedelta(days=stays.READMITTED + 1)
_STILL_THERE = {"terms": {"$in": [f"status={each}" for each in sorted(ACTIVE)]}}


async def in_hospital(asked: Asked) -> list[Finding]:
    """An inpatient stay or an observation has begun and is not over."""
    classes = (*INPATIENT, stays.OBSERVATION)
    found = await stays.read(asked.population, classes, asked.base_url, _STILL_THERE)
    now, zone = asked.period.now, asked.period.zone
    return [
        Finding(
            each.patient,
            "In observation" if each.class_ == stays.OBSERVATION else "In hospital as an inpatient",
            None if each.start is None else local_day(each.start, zone),
            None,
            (each.reference,),
        )
        for each in found
        if not each.is_over(now)
    ]


async def readmissions(asked: Asked) -> list[Finding]:
    """An admission of the period came at most 30 days after the discharge of another stay."""
    period = asked.period
    found = await stays.inpatient(
        asked.population, asked.base_url, stays.ended_since(period.start - _BEFORE)
    )
    return [
        Finding(
            again.patient,
            f"Admitted again {_days_between(asked, before, again)} days after a discharge",
            local_day(again.start, period.zone),
            None,
            (again.reference, before.reference),
        )
        for again, before in stays.readmissions(found, period.start, period.end, period.zone)
        if again.start is not None
    ]


def _days_between(asked: Asked, before: Stay, again: Stay) -> int:
    zone = asked.period.zone
    if before.end is None or again.start is None:
        return 0
    return (local_day(again.start, zone) - local_day(before.end, zone)).days


async def no_follow_up(asked: Asked) -> list[Finding]:
    """The last inpatient stay ended in the period, and nobody has seen the member since that day."""
    period = asked.period
    left = await stays.inpatient(asked.population, asked.base_url, stays.ended_since(period.start))
    last: dict[str, Stay] = {}
    for each in left:
        known = last.get(each.patient)
        if known is None or _end(known, period.now) <= _end(each, period.now):
            last[each.patient] = each
    discharged = {
        patient: stay
        for patient, stay in last.items()
        if stay.ended_within(period.start, period.end)
    }
    if not discharged:
        return []
    visits = await stays.read(
        asked.population, stays.SEEN, asked.base_url, stays.began_since(period.start)
    )
    seen = {
        each.patient
        for each in visits
        if each.start is not None
        and each.start <= period.now
        and (stay := discharged.get(each.patient)) is not None
        and stay.end is not None
        and local_day(each.start, period.zone) > local_day(stay.end, period.zone)
    }
    found = []
    for patient, stay in discharged.items():
        if patient not in seen and stay.end is not None:
            day = local_day(stay.end, period.zone)
            due = day + timedelta(days=asked.within)
            reason = "Not seen since the discharge"
            found.append(Finding(patient, reason, day, due, (stay.reference,)))
    return found


def _end(stay: Stay, now: datetime) -> datetime:
    """When a stay ended; one that goes on ends after all others."""
    if not stay.is_over(now):
        return datetime.max.replace(tzinfo=now.tzinfo)
    return stay.end or stay.start or now
