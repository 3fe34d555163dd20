"""What of a patient's record each section of a document tells of.

A section also knows whether its types were looked at at all, so that a document never denies what nobody looked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from app.automation.patient_resources import is_health_risk_assessment
from app.consent.provisions import is_running
from app.coordination.care_plans import wording as words
from app.coordination.care_plans.state import PlanState
from app.coordination.care_plans.wording import codes, key_of
from app.fhir.codes import CODE_SYSTEM
from app.fhir.encounter_status import ACTIVE
from app.fhir.instants import span
from app.fhir.json import Resource
from app.settings import Settings

# How many of a type are read, newest first, and how many a section of observations shows.
MOST, _MOST_OBSERVATIONS = 500, 20
_YEAR = timedelta(days=365)
_STAYS = frozenset({"ACUTE", "EMER", "IMP", "NONAC", "OBSENC", "SS"})
_ENDED = frozenset({"inactive", "remission", "resolved"})
_WITHDRAWN = frozenset({"cancelled", "entered-in-error", "refuted"})
_NO_STAYS = _WITHDRAWN | {"planned"}
_ADVANCE_DIRECTIVES = frozenset(
    {"42348-3", "acd", "adr", "advance-directive", "dnr", "hcd", "polst"}
)
# LOINC: preferences for care experience and for treatment, as US Core has them, and what matters to a patient.
_PREFERENCES = frozenset({"75773-2", "81338-9", "81378-5", "95541-9"})
PROBLEM_AREA = CODE_SYSTEM + "problem-area"
_PROBLEMS = frozenset({"encounter-diagnosis", "problem-list-item"})
_ICD_10_CM = "http://hl7.org/fhir/sid/icd-10-cm"
# Chapter XXI of ICD-10-CM: Z55 to Z65 are socioeconomic and psychosocial circumstances.
_SOCIAL_CODES = tuple(f"Z{number}" for number in range(55, 66))

# The types that each section is filled from.
SOURCES: Mapping[str, tuple[str, ...]] = {
    "wishes": ("Observation",),
    "problems": ("Condition",),
    "concerns": ("Condition",),
    "barriers": ("Condition", "Observation"),
    "risks": ("RiskAssessment",),
    "assessments": ("QuestionnaireResponse",),
    "medications": ("MedicationRequest", "MedicationStatement"),
    "allergies": ("AllergyIntolerance",),
    "directives": ("Consent", "DocumentReference"),
    "encounters": ("Encounter",),
    "social-needs": ("Condition", "Observation"),
    "coverages": ("Coverage",),
    "functional": ("Observation",),
    "social": ("Observation",),
}
TYPES = sorted({each for types in SOURCES.values() for each in types})


@dataclass(slots=True)
class Section:
    """One section: its resources, how many were left out because they are confidential, and how far it was looked.

    `unlooked` are the types that were not looked at; `cut` says that there are more than are read of one.
    """

    resources: list[Resource] = field(default_factory=list)
    withheld: int = 0
    unlooked: Sequence[str] = ()
    cut: bool = False

    @property
    def keys(self) -> list[str]:
        return [f"{each['resourceType']}/{each['id']}" for each in self.resources]


@dataclass(frozen=True, slots=True)
class Looked:
    """The newest resources of each type about a patient, newest first; a type that was not looked at is missing."""

    found: Mapping[str, Sequence[Resource]]
    cut: Collection[str]

    def of(self, resource_type: str) -> Sequence[Resource]:
        return self.found.get(resource_type, ())


def sections(
    looked: Looked, state: PlanState, goals: Sequence[Resource], settings: Settings, now: datetime
) -> dict[str, Section]:
    """All sections by name; stays count up to a year before `now`."""
    chosen = {
        **_of_conditions(looked, state, goals),
        **_of_observations(looked),
        "risks": _risks(looked, state),
        "assessments": _assessments(looked, state, settings),
        "medications": [
            each
            for kind in SOURCES["medications"]
            for each in looked.of(kind)
            if each.get("status") in ("active", "on-hold") and each.get("intent") != "proposal"
        ],
        "allergies": [each for each in looked.of("AllergyIntolerance") if _is_live(each)],
        "directives": [*_directives(looked, now)],
        # Where the member is now comes before where it was last.
        "encounters": sorted(
            (each for each in looked.of("Encounter") if _is_recent_stay(each, now)),
            key=lambda each: each.get("status") not in ACTIVE,
        ),
        "coverages": [
            each
            for each in looked.of("Coverage")
            if each.get("status") == "active" and not _is_over(each.get("period"), now)
        ],
    }
    return {name: _section(name, chosen[name], looked) for name in SOURCES}


def _section(name: str, chosen: Iterable[Resource], looked: Looked) -> Section:
    every = list({f"{each['resourceType']}/{each['id']}": each for each in chosen}.values())
    shown = [each for each in every if not words.is_restricted(each)]
    types = SOURCES[name]
    return Section(
        shown,
        len(every) - len(shown),
        [each for each in types if each not in looked.found],
        any(each in looked.cut for each in types),
    )


def _of_conditions(
    looked: Looked, state: PlanState, goals: Sequence[Resource]
) -> dict[str, list[Resource]]:
    """The live Conditions by what they are; one that is several things is told of as each of them.

    A barrier is what has a problem area as its category, or an Observation that a goal is about.
    """
    named = {*state.referred("addresses"), *state.referred("supportingInfo")}
    live = [each for each in looked.of("Condition") if _is_live(each)]
    aims = {key_of(each) for goal in goals for each in goal.get("addresses", ())}
    return {
        "concerns": [
            each for each in live if _is_concern(each) or f"Condition/{each['id']}" in named
        ],
        "problems": [each for each in live if _is_problem(each)],
        "social-needs": [
            *(each for each in live if _is_social(each)),
            *(each for each in _valid(looked.of("Observation")) if _is_social(each)),
        ],
        "barriers": [
            *(each for each in live if _has_category_of(each, PROBLEM_AREA)),
            *(
                each
                for each in _valid(looked.of("Observation"))
                if f"Observation/{each['id']}" in aims
            ),
        ],
    }


def _of_observations(looked: Looked) -> dict[str, list[Resource]]:
    observations = _valid(looked.of("Observation"))
    by_category = {
        name: [each for each in observations if category in codes(each.get("category"))]
        for name, category in (("functional", "functional-status"), ("social", "social-history"))
    }
    wishes = [each for each in observations if codes(each.get("code")) & _PREFERENCES]
    return {
        "wishes": wishes,
        **{name: found[:_MOST_OBSERVATIONS] for name, found in by_category.items()},
    }


def _risks(looked: Looked, state: PlanState) -> list[Resource]:
    """The RiskAssessments that the plan refers to, and the newest one."""
    named = state.referred("supportingInfo")
    valid = [each for each in looked.of("RiskAssessment") if _is_final(each)]
    return [
        each
        for index, each in enumerate(valid)
        if index == 0 or f"RiskAssessment/{each['id']}" in named
    ]


def _assessments(looked: Looked, state: PlanState, settings: Settings) -> list[Resource]:
    """The QuestionnaireResponses that the plan refers to, and the newest health risk assessment."""
    named = state.referred("supportingInfo")
    done = [each for each in looked.of("QuestionnaireResponse") if _is_final(each)]
    newest = next((each for each in done if is_health_risk_assessment(settings, each)), None)
    return [
        each for each in done if each is newest or f"QuestionnaireResponse/{each['id']}" in named
    ]


def _directives(looked: Looked, now: datetime) -> Iterable[Resource]:
    """The Consents about advance directives that are in force by the rule of all Consents, and the papers of them."""
    for each in looked.of("Consent"):
        stated = codes(each.get("category")) | codes(each.get("scope"))
        if (
            each.get("status") == "active"
            and _ADVANCE_DIRECTIVES & stated
            and is_running(each, now)
        ):
            yield each
    for each in looked.of("DocumentReference"):
        stated = codes(each.get("type")) | codes(each.get("category"))
        if each.get("status") == "current" and _ADVANCE_DIRECTIVES & stated:
            yield each


def _valid(resources: Iterable[Resource]) -> list[Resource]:
    return [each for each in resources if each.get("status") not in _WITHDRAWN]


def _is_final(resource: Resource) -> bool:
    return resource.get("status") in ("amended", "completed", "corrected", "final")


def _is_live(resource: Resource) -> bool:
    verification = codes(resource.get("verificationStatus"))
    return not (codes(resource.get("clinicalStatus")) & _ENDED or verification & _WITHDRAWN)


def _is_concern(condition: Resource) -> bool:
    return "health-concern" in codes(condition.get("category"))


def _is_problem(condition: Resource) -> bool:
    """Whether it is on the problem list or a diagnosis; what is a barrier or a social need alone is none."""
    if _PROBLEMS & codes(condition.get("category")):
        return True
    is_other = _is_social(condition) or _has_category_of(condition, PROBLEM_AREA)
    return not (_is_concern(condition) or is_other)


def _is_social(resource: Resource) -> bool:
    """Whether it is categorized as a social determinant, by US Core or Gravity, or has an ICD-10-CM code of one."""
    if "sdoh" in codes(resource.get("category")):
        return True
    if any("SDOHCC" in system for system, _ in _codings(resource.get("category"))):
        return True
    return any(
        system == _ICD_10_CM and code.startswith(_SOCIAL_CODES)
        for system, code in _codings(resource.get("code"))
    )


def _has_category_of(resource: Resource, system: str) -> bool:
    return any(found == system for found, _ in _codings(resource.get("category")))


def _codings(value: Any) -> Iterable[tuple[str, str]]:
    for concept in words.each(value):
        for coding in concept.get("coding", ()):
            yield coding.get("system", ""), coding.get("code", "")


def _is_recent_stay(encounter: Resource, now: datetime) -> bool:
    if encounter.get("class", {}).get("code") not in _STAYS:
        return False
    if encounter.get("status") in _NO_STAYS:
        return False
    period = encounter.get("period", {})
    latest = period.get("end") or period.get("start")
    try:
        return latest is None or span(latest)[1] >= now - _YEAR
    except ValueError:
        return True


def _is_over(period: Mapping[str, Any] | None, now: datetime) -> bool:
    end = (period or {}).get("end")
    try:
        return end is not None and span(end)[1] < now
    except ValueError:
        return False
