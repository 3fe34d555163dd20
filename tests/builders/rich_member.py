"""An invented member of whom all is on record that a care plan's document tells of, and what it has to say."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tests.builders.care_plans import Json, achieved, care_team, goal, plan, reference, tier

TERMS = "http://terminology.hl7.org/CodeSystem/"
OURS = "http://carerelay.example/CodeSystem/"
LOINC = "http://loinc.org"
SNOMED = "http://snomed.info/sct"
ICD_10_CM = "http://hl7.org/fhir/sid/icd-10-cm"


@dataclass(frozen=True)
class Fact:
    """A fact, and the LOINC or own code of the section that has to tell it."""

    section: str
    says: str


def coded(system: str, code: str, text: str | None = None) -> Json:
    return {"coding": [{"system": system, "code": code}]} | ({"text": text} if text else {})


def about(resource_type: str, id_: str, **more: Any) -> Json:
    name = {
        "AllergyIntolerance": "patient",
        "Consent": "patient",
        "Coverage": "beneficiary",
    }.get(resource_type, "subject")
    return {"resourceType": resource_type, "id": id_, name: reference("Patient/ann"), **more}


def condition(id_: str, text: str, *categories: Json, **more: Any) -> Json:
    kinds = categories or (coded(f"{TERMS}condition-category", "problem-list-item"),)
    status = coded(f"{TERMS}condition-clinical", "active")
    return about(
        "Condition", id_, clinicalStatus=status, category=list(kinds), code={"text": text}
    ) | dict(more)


def member(language: str) -> Json:
    return {
        "resourceType": "Patient",
        "id": "ann",
        "name": [{"given": ["Nuria"], "family": "Ñúñez Peña"}],
        "birthDate": "1950-03-04",
        "identifier": [{"system": "http://plan.example/member", "value": "EV70411"}],
        "telecom": [{"system": "phone", "value": "555-0100"}],
        "communication": [
            {"language": coded("urn:ietf:bcp:47", language, "Tongue"), "preferred": True}
        ],
        "generalPractitioner": [reference("PractitionerRole/pcprole")],
    }


def directory() -> list[Json]:
    return [
        {"resourceType": "Organization", "id": "practice", "name": "Riverside Practice"},
        {"resourceType": "Organization", "id": "hospital", "name": "General Hospital"},
        {"resourceType": "Organization", "id": "payer", "name": "Evergrove Health Plan"},
        {"resourceType": "Practitioner", "id": "pcp", "name": [{"text": "Dr Ada Beck"}]},
        {
            "resourceType": "PractitionerRole",
            "id": "pcprole",
            "practitioner": reference("Practitioner/pcp", "Dr Ada Beck"),
            "organization": reference("Organization/practice"),
            "telecom": [{"system": "phone", "value": "555-0111"}],
        },
        {
            "resourceType": "Practitioner",
            "id": "rn",
            "name": [{"text": "Rosa Nunez RN"}],
            "telecom": [{"system": "phone", "value": "555-0107"}],
        },
    ]


def of_the_plan() -> list[Json]:
    contact = coded(f"{OURS}care-team-role", "point-of-contact", "Nurse care manager")
    ours = {"onBehalfOf": reference("Organization/payer")}
    return [
        tier("High risk") | {"code": coded(f"{OURS}risk-tier", "high", "High risk")},
        care_team(
            {"member": reference("Practitioner/rn"), "role": [contact], **ours},
            {
                "member": reference("PractitionerRole/pcprole"),
                "role": [coded(SNOMED, "446050000", "Primary care physician")],
            },
        ),
        goal(
            "walk",
            "Walk to the market alone",
            achievementStatus=achieved("improving"),
            expressedBy=reference("Patient/ann"),
            category=[coded(f"{OURS}goal-term", "short-term")],
            priority=coded(f"{TERMS}goal-priority", "high-priority"),
            addresses=[reference("Condition/hf"), reference("Observation/stairs")],
            target=[
                {"measure": {"text": "Minutes"}, "detailString": "20", "dueDate": "2027-03-01"}
            ],
        ),
        goal(
            "home",
            "Stay at home",
            achievementStatus=achieved("in-progress"),
            category=[coded(f"{OURS}goal-term", "long-term")],
            outcomeReference=[reference("Observation/weight")],
        ),
        about(
            "ServiceRequest",
            "pt",
            status="active",
            intent="order",
            code={"text": "Physical therapy"},
            reasonReference=[reference("Condition/hf")],
            performer=[reference("Practitioner/pcp")],
        ),
        plan(
            goals=("home", "walk"),
            description="What helps Nuria to stay at home",
            period={"start": "2026-01-01"},
            addresses=[reference("Condition/hf")],
            activity=[{"reference": reference("ServiceRequest/pt")}],
            supportingInfo=[reference("RiskAssessment/risk")],
            author=reference("Practitioner/rn"),
            note=[{"text": "Prefers visits in the morning"}],
        ),
    ]


def of_the_record(now: datetime) -> list[Json]:
    left = now - timedelta(days=20)
    codes = [
        {"system": SNOMED, "code": "84114007", "display": "Heart failure"},
        {"system": ICD_10_CM, "code": "I50.9"},
    ]
    observed = coded(f"{TERMS}observation-category", "social-history")
    return [
        condition("hf", "Heart failure", severity={"text": "Severe"}, onsetDateTime="2021-05")
        | {"code": {"coding": codes, "text": "Heart failure"}},
        condition("gout", "Gout"),
        condition(
            "lonely",
            "Lives alone since her husband died",
            coded("http://hl7.org/fhir/us/core/CodeSystem/condition-category", "health-concern"),
        ),
        condition(
            "pills", "Skips the evening pills", coded(f"{OURS}problem-area", "poor-adherence")
        ),
        condition(
            "rides",
            "No car",
            coded("http://hl7.org/fhir/us/core/CodeSystem/us-core-category", "sdoh"),
        ),
        about(
            "Observation",
            "stairs",
            status="final",
            code={"text": "Stairs to the flat"},
            valueString="Four flights",
        ),
        about(
            "Observation",
            "weight",
            status="final",
            code={"text": "Body weight"},
            effectiveDateTime="2026-11-02",
            valueQuantity={"value": 71, "unit": "kg"},
        ),
        about(
            "Observation",
            "smoking",
            status="final",
            category=[observed],
            code={"text": "Tobacco"},
            valueString="Stopped in 1998",
        ),
        about(
            "Observation",
            "function",
            status="final",
            category=[
                coded(
                    "http://hl7.org/fhir/us/core/CodeSystem/us-core-category", "functional-status"
                )
            ],
            code={"text": "Bathing"},
            valueString="Needs a hand",
        ),
        about(
            "Observation",
            "prefers",
            status="final",
            code=coded(LOINC, "95541-9", "Care experience preference"),
            valueString="A woman doctor",
        ),
        about(
            "QuestionnaireResponse",
            "hra",
            status="completed",
            authored="2026-02-03",
            meta={"tag": [{"system": f"{OURS}assessment-kind", "code": "health-risk-assessment"}]},
            item=[
                {
                    "linkId": "1",
                    "text": "Does somebody help you?",
                    "answer": [{"valueBoolean": False}],
                },
                {"linkId": "2", "text": "Falls in six months?", "answer": [{"valueInteger": 2}]},
                {"linkId": "3", "text": "Enough to eat?"},
                {
                    "linkId": "4",
                    "text": "What matters most to you?",
                    "answer": [{"valueString": "Seeing my granddaughter marry"}],
                },
            ],
        ),
        about(
            "RiskAssessment",
            "risk",
            status="final",
            occurrenceDateTime="2026-02-04",
            method={"text": "Plan's model of admissions"},
            mitigation="Weekly calls",
            prediction=[
                {
                    "outcome": {"text": "Hospital admission"},
                    "probabilityDecimal": 0.42,
                    "qualitativeRisk": coded(f"{TERMS}risk-probability", "high"),
                    "rationale": "Two stays last year",
                }
            ],
        ),
        about(
            "MedicationRequest",
            "furo",
            status="active",
            intent="order",
            medicationCodeableConcept={"text": "Furosemide 40 mg"},
            dosageInstruction=[{"text": "One tablet in the morning"}],
            requester=reference("Practitioner/pcp"),
            reasonReference=[reference("Condition/hf")],
        ),
        about(
            "AllergyIntolerance",
            "pen",
            clinicalStatus=coded(f"{TERMS}allergyintolerance-clinical", "active"),
            criticality="high",
            code={"text": "Penicillin"},
            reaction=[{"manifestation": [{"text": "Anaphylaxis"}], "severity": "severe"}],
        ),
        directive("will", "2020-01-01"),
        directive("oldwill", "2020-01-01", end="2021-01-01"),
        about(
            "Encounter",
            "stay",
            status="finished",
            period={"start": f"{left - timedelta(days=4):%Y-%m-%d}", "end": f"{left:%Y-%m-%d}"},
            serviceProvider=reference("Organization/hospital"),
            reasonCode=[{"text": "Short of breath"}],
            hospitalization={"dischargeDisposition": coded(f"{TERMS}discharge-disposition", "snf")},
        )
        | {"class": {"system": f"{TERMS}v3-ActCode", "code": "IMP"}},
        about(
            "Coverage",
            "cover",
            status="active",
            type={"text": "Dual eligible special needs plan"},
            subscriberId="EV70411",
            payor=[reference("Organization/payer")],
        ),
    ]


def directive(id_: str, start: str, end: str | None = None) -> Json:
    period = {"start": start} | ({"end": end} if end else {})
    title = "No resuscitation" if end is None else "Everything is to be done"
    return about(
        "Consent",
        id_,
        status="active",
        dateTime=start,
        scope=coded(f"{TERMS}consentscope", "adr"),
        category=[coded(LOINC, "42348-3", title)],
        policyRule=coded("http://terminology.hl7.org/CodeSystem/v3-ActCode", "OPTIN"),
        provision={"type": "deny", "period": period, "code": [{"text": "CPR"}]},
    )


FACTS = (
    Fact("point-of-contact", "Rosa Nunez RN (Nurse care manager, Evergrove Health Plan), 555-0107"),
    Fact("what-matters", "Seeing my granddaughter marry"),
    Fact("what-matters", "Walk to the market alone"),
    Fact("what-matters", "Care experience preference: A woman doctor"),
    Fact("what-matters", "Prefers visits in the morning"),
    Fact("11450-4", "Heart failure, [SNOMED CT 84114007; ICD-10-CM I50.9], active, Severe, since 2021-05"),
    Fact("11450-4", "Gout"),
    Fact("75310-3", "Lives alone since her husband died"),
    Fact(
        "61146-7",
        "Walk to the market alone; progress: active, improving; target: Minutes 20 by 2027-03-01;"
        " high priority; wish of: the member; for: Heart failure, Stairs to the flat",
    ),
    Fact("61146-7", "Stay at home; progress: active, in progress"),
    Fact("62387-6", "Heart failure\nPhysical therapy; active; by: Dr Ada Beck"),
    Fact("barriers", "Skips the evening pills"),
    Fact("barriers", "Stairs to the flat: Four flights"),
    Fact("assessment", "Answers of 2026-02-03"),
    Fact("assessment", "Does somebody help you? no"),
    Fact("assessment", "Falls in six months? 2"),
    Fact("assessment", "Enough to eat? not answered"),
    Fact("risk", "High risk (tier 3 of 4, from low to very high)"),
    Fact(
        "risk",
        "Hospital admission; high; about 42 of 100 members like this one; because: Two stays last year",
    ),
    Fact("risk", "Plan's model of admissions; 2026-02-04; to lower it: Weekly calls"),
    Fact("10160-0", "Furosemide 40 mg; One tablet in the morning; for: Heart failure; by: Dr Ada Beck"),
    Fact("48765-2", "Penicillin; criticality: high; reaction: Anaphylaxis (severe)"),
    Fact("42348-3", "No resuscitation; refused: CPR; 2020-01-01; since 2020-01-01"),
    Fact("46240-8", "hospital stay; General Hospital; from "),
    Fact("46240-8", "reason: Short of breath; discharged to: skilled nursing facility"),
    Fact("social-needs", "No car"),
    Fact("85847-2", "Dr Ada Beck (Primary care physician, Riverside Practice), 555-0111"),
    Fact("48768-6", "Dual eligible special needs plan; Evergrove Health Plan; member number: EV70411"),
    Fact("11383-7", "Stay at home: Body weight: 71 kg; 2026-11-02"),
    Fact("47420-5", "Bathing: Needs a hand"),
    Fact("29762-2", "Tobacco: Stopped in 1998"),
)  # fmt: skip
# The headings in their order, as far as the plan's reader counts on it.
ORDER = (
    "Point of contact",
    "What matters to the member",
    "Problems",
    "Health concerns",
    "Goals",
    "Interventions",
    "Barriers",
    "Health risk assessment",
    "Risk",
    "Medications",
    "Allergies",
    "Advance directives",
    "Hospital stays of the last twelve months",
    "Social needs",
    "Care team",
    "Coverage",
)
