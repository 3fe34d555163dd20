"""The events that call for a review of case management: a transition of care, a risk that has risen, a referral.

Each function returns what happened and when, or None where a change is no such event.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from app.automation.patient_resources import codes_in, moment, patient_of, resources_of
from app.context import Context
from app.fhir.codes import (
    CASE_MANAGEMENT,
    FLAG_CATEGORY,
    INPATIENT,
    RISK_TIER,
    RISK_TIERS,
    SERVICE_CATEGORY,
)
from app.fhir.encounter_status import ACTIVE, is_discharged, recorded_end
from app.fhir.json import Resource
from app.store.events import Event

# The review that they call for. An event that became known later than this after it happened is history.
REASON = "re-enrolment"
RECENT = timedelta(days=30)
REFERRED = "referred"
_PROBABILITY = "http://terminology.hl7.org/CodeSystem/risk-probability"
_PROBABILITIES = ("negligible", "low", "moderate", "high", "certain")


class Cause(NamedTuple):
    """An event, by a code of REVIEW_CAUSES, and when it happened."""

    code: str
    happened: datetime


async def transition(context: Context, event: Event, encounter: Resource) -> Cause | None:
    """The beginning or the end of an inpatient stay with this change."""
    if encounter["class"].get("code") not in INPATIENT:
        return None
    before, period = event.previous or {}, encounter.get("period", {})
    if is_discharged(encounter, event.at):
        is_news = not before or not is_discharged(before, event.at)
        if encounter["status"] == "finished":  # whatever end was expected before
            is_news = before.get("status") != "finished"
        ended = moment(recorded_end(period, event.at)) or event.at
        return Cause("discharged", ended) if is_news else None
    if encounter["status"] not in ACTIVE:
        return None
    was_there = before.get("status") in ACTIVE and before["class"].get("code") in INPATIENT
    start = moment(period.get("start"))
    return None if was_there else Cause("admitted", min(start or event.at, event.at))


async def assessed_risk(context: Context, event: Event, assessment: Resource) -> Cause | None:
    """A RiskAssessment with a higher risk than the patient's last one by the same method."""

    def level(resource: Resource) -> int:
        if resource["status"] not in ("final", "amended", "corrected"):
            return -1
        return _highest(
            [
                code
                for prediction in resource.get("prediction", ())
                for code in codes_in(prediction.get("qualitativeRisk"), _PROBABILITY)
            ],
            _PROBABILITIES,
        )

    return await _risen(
        context,
        event,
        assessment,
        level,
        lambda other: other.get("method") == assessment.get("method"),
    )


async def risk_tier(context: Context, event: Event, flag: Resource) -> Cause | None:
    """A Flag that put the patient into a higher risk tier than before."""

    def level(resource: Resource) -> int:
        if resource["status"] == "entered-in-error":
            return -1
        return _highest(codes_in(resource.get("code"), RISK_TIER), RISK_TIERS)

    if flag["status"] != "active" or "risk-tier" not in codes_in(
        flag.get("category"), FLAG_CATEGORY
    ):
        return None
    return await _risen(context, event, flag, level, lambda other: True)


async def referral(context: Context, event: Event, request: Resource) -> Cause | None:
    """A referral to case management."""
    before = event.previous
    if not is_referral(request):
        return None
    if request["status"] != "active" or (before is not None and before["status"] == "active"):
        return None
    return Cause(REFERRED, moment(request.get("authoredOn")) or context.services.clock.now())


def is_referral(request: Resource) -> bool:
    """Whether a ServiceRequest asks for case management."""
    return CASE_MANAGEMENT in codes_in(request.get("category"), SERVICE_CATEGORY)


async def _risen(
    context: Context,
    event: Event,
    resource: Resource,
    level: Callable[[Resource], int],
    is_comparable: Callable[[Resource], bool],
) -> Cause | None:
    """A level that rose above the resource's former one, else above the patient's latest other one.

    None where it did not, where no earlier level is known, and where the latest other one is newer.
    """
    now, when = level(resource), _when(resource) or context.services.clock.now()
    if now < 0:
        return None
    if event.previous is not None and level(event.previous) >= 0:
        return Cause("risk-risen", when) if now > level(event.previous) else None
    others = [
        (_when(other) or stored.at, level(other))
        for stored in await resources_of(context, event.type, patient_of(resource) or "")
        if stored.id != event.resource_id
        and is_comparable(other := stored.resource())
        and level(other) >= 0
    ]
    if not others:
        return None
    latest, before = max(others)
    return Cause("risk-risen", when) if latest <= when and now > before else None


def _when(resource: Resource) -> datetime | None:
    """The time of a RiskAssessment or Flag."""
    period = resource.get("occurrencePeriod") or resource.get("period") or {}
    return moment(resource.get("occurrenceDateTime") or period.get("start"))


def _highest(codes: list[str], ascending: tuple[str, ...]) -> int:
    return max((ascending.index(code) for code in codes if code in ascending), default=-1)


Trigger = Callable[[Context, Event, Resource], Awaitable[Cause | None]]
TRIGGERS: Mapping[str, Trigger] = {
    "Encounter": transition,
    "Flag": risk_tier,
    "RiskAssessment": assessed_risk,
    "ServiceRequest": referral,
}
