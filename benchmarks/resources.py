"""The invented resources that the benchmarks send, in the shape and size of a synthetic population's.

Each comes as a template: JSON text in which SERIAL stands for a number of fixed length, so that every request carries
identifiers and references of its own and still costs the load generator one `replace`.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

Resource = dict[str, Any]

SERIAL = "@" * 8
TEMPLATES = 64
PATIENTS_PER_BUNDLE = 10
_HOSPITAL = "Harbor Regional Hospital"
_REASONS = [
    ("84114007", "Heart failure (disorder)"),
    ("13645005", "Chronic obstructive lung disease (disorder)"),
    ("44054006", "Type 2 diabetes mellitus (disorder)"),
    ("38341003", "Hypertensive disorder (disorder)"),
    ("709044004", "Chronic kidney disease (disorder)"),
]
_VITALS = [
    ("8302-2", "Body height", "cm", 150, 195),
    ("29463-7", "Body weight", "kg", 50, 120),
    ("8867-4", "Heart rate", "/min", 55, 110),
    ("8480-6", "Systolic blood pressure", "mm[Hg]", 100, 180),
]
_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
_US_CORE = "http://hl7.org/fhir/us/core/StructureDefinition"


def encounters() -> list[bytes]:
    """Templates of Encounters, about 1.7 kB each."""
    random = Random(1)  # noqa: S311 - the same data in every run
    return [_text(encounter(random, f"Patient/bench-{SERIAL}")) for _ in range(TEMPLATES)]


def bundles() -> list[bytes]:
    """Templates of transaction Bundles of 100 creates: for each of 10 patients a Patient, and an Encounter, a Condition
    and an Observation of three stays, which refer to one another by urn:uuid.
    """
    random = Random(2)  # noqa: S311 - the same data in every run
    return [_text(_bundle(random)) for _ in range(4)]


def encounter(random: Random, patient: str) -> Resource:
    """A finished stay of that patient."""
    start, end = period(random)
    code, reason = random.choice(_REASONS)
    return {
        "resourceType": "Encounter",
        "meta": {"profile": [f"{_US_CORE}/us-core-encounter"]},
        "identifier": [
            {
                "use": "official",
                "system": "https://hospital.example.org/visits",
                "value": f"V{SERIAL}",
            }
        ],
        "status": "finished",
        "class": {
            "system": f"{_TERMINOLOGY}/v3-ActCode",
            "code": "IMP",
            "display": "inpatient encounter",
        },
        "type": [
            {
                **concept("http://snomed.info/sct", "32485007", "Hospital admission (procedure)"),
                "text": "Hospital admission",
            }
        ],
        "subject": {"reference": patient, "display": "Mrs. Marisol Okafor"},
        "participant": [
            {
                "type": [concept(f"{_TERMINOLOGY}/v3-ParticipationType", "ATND", "attender")],
                "period": {"start": start, "end": end},
                "individual": {
                    "reference": f"Practitioner/bench-{random.randrange(500)}",
                    "display": "Dr. Ingrid Halvorsen",
                },
            }
        ],
        "period": {"start": start, "end": end},
        "reasonCode": [concept("http://snomed.info/sct", code, reason)],
        "hospitalization": {
            "admitSource": concept(
                f"{_TERMINOLOGY}/admit-source", "emd", "From accident/emergency"
            ),
            "dischargeDisposition": concept(
                f"{_TERMINOLOGY}/discharge-disposition", "home", "Home"
            ),
        },
        "location": [
            {
                "location": {
                    "reference": f"Location/bench-{random.randrange(200)}",
                    "display": _HOSPITAL,
                }
            }
        ],
        "serviceProvider": {
            "reference": f"Organization/bench-{random.randrange(50)}",
            "display": _HOSPITAL,
        },
    }


def _bundle(random: Random) -> Resource:
    entries = []
    for patient in range(PATIENTS_PER_BUNDLE):
        subject = _urn(patient, 0)
        entries.append(_entry(subject, _patient(random, patient)))
        for stay in range(3):
            visit = _urn(patient, 1 + stay)
            links = {"subject": {"reference": subject}, "encounter": {"reference": visit}}
            entries += [
                _entry(visit, encounter(random, subject)),
                _entry(_urn(patient, 4 + stay), _condition(random) | links),
                _entry(_urn(patient, 7 + stay), _observation(random) | links),
            ]
    return {"resourceType": "Bundle", "type": "transaction", "entry": entries}


def _entry(full_url: str, resource: Resource) -> Resource:
    request = {"method": "POST", "url": resource["resourceType"]}
    return {"fullUrl": full_url, "resource": resource, "request": request}


def _patient(random: Random, index: int) -> Resource:
    return {
        "resourceType": "Patient",
        "meta": {"profile": [f"{_US_CORE}/us-core-patient"]},
        "identifier": [
            {
                "type": concept(f"{_TERMINOLOGY}/v2-0203", "MR", "Medical Record Number"),
                "system": "https://hospital.example.org/mrn",
                "value": f"{SERIAL}-{index}",
            }
        ],
        "name": [{"use": "official", "family": f"Okafor{SERIAL}", "given": ["Marisol", "Ines"]}],
        "telecom": [{"system": "phone", "value": f"555-01{index:02}", "use": "home"}],
        "gender": random.choice(["female", "male"]),
        "birthDate": f"{random.randrange(1930, 1960)}-{random.randrange(1, 13):02}-17",
        "address": [
            {"line": ["12 Quay Street"], "city": "Rockport", "state": "ME", "postalCode": "04856"}
        ],
        "maritalStatus": concept(f"{_TERMINOLOGY}/v3-MaritalStatus", "M", "Married"),
        "communication": [{"language": concept("urn:ietf:bcp:47", "en-US", "English")}],
    }


def _condition(random: Random) -> Resource:
    code, display = random.choice(_REASONS)
    category = f"{_TERMINOLOGY}/condition-category"
    onset, recorded = period(random)
    return {
        "resourceType": "Condition",
        "meta": {"profile": [f"{_US_CORE}/us-core-condition-encounter-diagnosis"]},
        "clinicalStatus": concept(f"{_TERMINOLOGY}/condition-clinical", "active", "Active"),
        "verificationStatus": concept(
            f"{_TERMINOLOGY}/condition-ver-status", "confirmed", "Confirmed"
        ),
        "category": [concept(category, "encounter-diagnosis", "Encounter Diagnosis")],
        "code": {**concept("http://snomed.info/sct", code, display), "text": display},
        "onsetDateTime": onset,
        "recordedDate": recorded,
    }


def _observation(random: Random) -> Resource:
    code, display, unit, least, most = random.choice(_VITALS)
    start, issued = period(random)
    return {
        "resourceType": "Observation",
        "meta": {"profile": ["http://hl7.org/fhir/StructureDefinition/vitalsigns"]},
        "status": "final",
        "category": [concept(f"{_TERMINOLOGY}/observation-category", "vital-signs", "Vital Signs")],
        "code": {**concept("http://loinc.org", code, display), "text": display},
        "effectiveDateTime": start,
        "issued": issued,
        "valueQuantity": {
            "value": random.randrange(least * 10, most * 10) / 10,
            "unit": unit,
            "system": "http://unitsofmeasure.org",
            "code": unit,
        },
    }


def concept(system: str, code: str, display: str) -> Resource:
    return {"coding": [{"system": system, "code": code, "display": display}]}


def period(random: Random) -> tuple[str, str]:
    day = (
        f"{random.randrange(2015, 2026)}-{random.randrange(1, 13):02}-{random.randrange(1, 29):02}"
    )
    hour, minute = random.randrange(12), random.randrange(60)
    return f"{day}T{hour:02}:{minute:02}:00-05:00", f"{day}T{hour + 8:02}:{minute:02}:00-05:00"


def _urn(patient: int, number: int) -> str:
    return f"urn:uuid:00000000-0000-4000-8{patient:02}{number}-0000{SERIAL}"


def _text(resource: Resource) -> bytes:
    return json.dumps(resource, separators=(",", ":")).encode()
