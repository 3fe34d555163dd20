"""The days for which earlier plans of care are honoured, computed from Coverages and CarePlans.

A new member has an active Coverage that no other one of the same payor precedes without a gap. An earlier plan is a
CarePlan that began before the Coverage's first day and was in force on it. It is honoured for so many days, no longer
than it was meant to run, and until new plans have replaced all earlier ones (CarePlan.replaces). The longer time for
pregnancies is not computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from app.automation.patient_resources import day, last_day
from app.fhir.instants import moved
from app.fhir.json import Resource

_IN_FORCE = frozenset({"active", "on-hold"})
_WAS_IN_FORCE = _IN_FORCE | {"completed", "revoked"}
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A member's first day with a payor and, where it is known, the last one."""

    start: date
    end: date | None


@dataclass(frozen=True, slots=True)
class EarlierPlan:
    """A CarePlan: when it began, its planned last day, which plans it replaces, when it was last written."""

    reference: str
    status: str
    began: date
    ends: date | None
    replaces: frozenset[str]
    written: date


@dataclass(frozen=True, slots=True)
class Continuity:
    """The first and last day on which earlier plans are honoured; `outcome` says what ends them.

    expires   the last day passes
    left      the member's Coverage ends
    replaced  new plans have taken the place of all earlier ones
    stopped   the earlier plans were ended without a new one
    """

    start: date
    end: date
    outcome: str
    focus: str


def new_enrolments(coverages: Sequence[Resource], payors: frozenset[str]) -> list[Enrolment]:
    """The enrolments of a new member, one for each first day; `payors` are those that count, empty means any."""
    found: dict[date, Enrolment] = {}
    for coverage in coverages:
        start = day(coverage.get("period", {}).get("start"))
        if coverage["status"] != "active" or start is None:
            continue
        if payors and not payors & _payor(coverage):
            continue
        same = [each for each in coverages if _is_another_of_its_payor(each, coverage)]
        if any(_reaches(other, start) for other in same):
            continue
        end = _last_day(coverage, same)
        known = found.get(start)
        if known:
            end = max(known.end, end) if known.end and end else None
        found[start] = Enrolment(start, end)
    return [found[start] for start in sorted(found)]


def continuity(enrolment: Enrolment, plans: Sequence[EarlierPlan], days: int) -> Continuity | None:
    """The days of continuity of an enrolment; None where no earlier plan was in force when it began."""
    start = enrolment.start
    successors = _successors(plans)
    earlier = [plan for plan in plans if _was_in_force(plan, start, successors)]
    if not earlier:
        return None
    limit = moved(start, timedelta(days=days))
    waiting = [
        plan for plan in earlier if plan.status in _IN_FORCE and plan.reference not in successors
    ]
    if waiting:
        end = min(limit, max(plan.ends or limit for plan in waiting))
        if enrolment.end and enrolment.end < end:
            return Continuity(start, enrolment.end, "left", waiting[0].reference)
        return Continuity(start, end, "expires", waiting[0].reference)
    limit = min(limit, enrolment.end or limit)
    end = max(_end(plan, successors) for plan in earlier)
    is_replaced = any(plan.reference in successors for plan in earlier)
    outcome = "replaced" if is_replaced else "stopped"
    return Continuity(start, max(start, min(limit, end)), outcome, earlier[0].reference)


def _is_another_of_its_payor(other: Resource, coverage: Resource) -> bool:
    return (
        other["id"] != coverage["id"]
        and other["status"] in ("active", "cancelled")
        and bool(_payor(other) & _payor(coverage))
    )


def _reaches(other: Resource, start: date) -> bool:
    """Whether a Coverage began before a day and ran at least until the day before it."""
    began = day(other.get("period", {}).get("start"))
    ends = last_day(other.get("period", {}).get("end"))
    return began is not None and began < start and (ends is None or ends >= moved(start, -_DAY))


def _last_day(coverage: Resource, same: Iterable[Resource]) -> date | None:
    """The last day of a Coverage; None where it has none, or another one follows without a gap."""
    end = last_day(coverage["period"].get("end"))
    starts = [day(each.get("period", {}).get("start")) for each in same]
    first = day(coverage["period"]["start"])
    goes_on = end and any(start and first and first < start <= moved(end, _DAY) for start in starts)
    return None if goes_on else end


def _successors(plans: Sequence[EarlierPlan]) -> dict[str, EarlierPlan]:
    """The first of the plans that replace a plan, by its reference."""
    return {
        earlier: plan
        for plan in sorted(plans, key=lambda each: each.began, reverse=True)
        if plan.status in _IN_FORCE or plan.status == "completed"
        for earlier in plan.replaces - {plan.reference}
    }


def _was_in_force(plan: EarlierPlan, start: date, successors: Mapping[str, EarlierPlan]) -> bool:
    """Whether a plan began before a day and neither its end nor a successor came before it."""
    if plan.status not in _WAS_IN_FORCE or plan.began >= start:
        return False
    if plan.ends is not None and plan.ends < start:
        return False
    if plan.reference in successors:
        return successors[plan.reference].began >= start
    return plan.status in _IN_FORCE or plan.written >= start


def _end(plan: EarlierPlan, successors: Mapping[str, EarlierPlan]) -> date:
    """The last day of a plan that has a successor or was ended."""
    successor = successors.get(plan.reference)
    end = plan.written if successor is None else successor.began
    return min(end, plan.ends or end)


def _payor(coverage: Resource) -> frozenset[str]:
    """The payors of a Coverage, by reference or else by display."""
    return frozenset(each.get("reference") or each.get("display", "") for each in coverage["payor"])
