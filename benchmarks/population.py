"""An invented population that grows: patients with stays, conditions, plans, teams and goals, stored in bulk.

Patient n is the same in a population of any size, so a larger one is the smaller one and others like them. What is
stored is what the server would have stored, through its own extraction and under its own indexes, without versions and
events.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from bson import CodecOptions
from pymongo import MongoClient

from app.fhir import json as fhir_json
from app.records.versions import with_meta
from app.search import group_members
from app.search.extract import extract, index_models
from benchmarks.resources import Resource, concept, encounter, period

BLOCK = 1000  # patients; each block has Practitioners and Groups of its own
GROUPS, MEMBERS, PRACTITIONERS, RARE = 4, 25, 20, 10
TYPES = (
    "Patient",
    "Practitioner",
    "Group",
    "Encounter",
    "Condition",
    "CarePlan",
    "CareTeam",
    "Goal",
)
MRN = "https://hospital.example.org/mrn"
SNOMED = "http://snomed.info/sct"
RARE_SYSTEM = "https://registry.example.org/rare"
_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
_US_CORE = "http://hl7.org/fhir/us/core"
_SYLLABLES = [
    "ba",
    "den",
    "fer",
    "go",
    "hal",
    "ime",
    "jor",
    "kel",
    "lun",
    "mar",
    "no",
    "ost",
    "per",
    "qui",
    "ros",
    "sil",
    "tor",
    "ule",
    "vex",
    "wen",
    "yar",
    "zim",
]
_GIVEN = [
    first + second for first in ("Al", "Ber", "Ce", "Di") for second in ("da", "rik", "mo", "la")
]
_PROBLEMS = [
    ("84114007", "Heart failure (disorder)"),
    ("13645005", "Chronic obstructive lung disease (disorder)"),
    ("44054006", "Type 2 diabetes mellitus (disorder)"),
    ("38341003", "Hypertensive disorder (disorder)"),
]
# When patient n was stored: a second after the one before.
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def resource_id(kind: str, number: int) -> str:
    """An id of the length and order of those that the server gives."""
    return f"0192f0c4-{TYPES.index(kind):04x}-7a10-9c3d-{number:012}"


def reference(kind: str, number: int) -> Resource:
    return {"reference": f"{kind}/{resource_id(kind, number)}"}


def stored_at(patient: int) -> datetime:
    """When everything about a patient was stored."""
    return _BEGIN + timedelta(seconds=patient)


def name(patient: int) -> tuple[str, str]:
    """Family and given name; hardly two patients share both."""
    rest, last = divmod(patient * 7919, len(_SYLLABLES))
    rest, middle = divmod(rest, len(_SYLLABLES))
    rest, first = divmod(rest, len(_SYLLABLES))
    family = _SYLLABLES[first] + _SYLLABLES[middle] + _SYLLABLES[last]
    return family.capitalize(), _GIVEN[rest % len(_GIVEN)]


def rare_code(patient: int) -> str:
    """The code that RARE patients of this one's block have, and nobody else."""
    return f"R{patient // BLOCK:05}"


def resources(
    first: int, last: int, kinds: Collection[str] = TYPES
) -> Iterator[tuple[int, Resource]]:
    """All resources, ids included, about the patients from `first` up to `last`, each with a patient's number."""
    for patient in range(first, last):
        random = Random(patient)  # noqa: S311 - the same data in every run
        for kind, made in _of_patient(random, patient).items():
            if kind in kinds:
                for index, each in enumerate(made):
                    own = resource_id(kind, patient * 10 + index if kind != "Patient" else patient)
                    yield patient, {"resourceType": kind, "id": own, **each}
        if patient % BLOCK == 0:
            for kind, made in _of_block(random, patient).items():
                if kind in kinds:
                    for index, each in enumerate(made):
                        own = resource_id(kind, patient + index)
                        yield patient, {"resourceType": kind, "id": own, **each}


def _of_patient(random: Random, patient: int) -> Mapping[str, Sequence[Resource]]:
    subject = {"subject": reference("Patient", patient)}
    author = reference("Practitioner", patient - patient % BLOCK + patient % PRACTITIONERS)
    problems = [_condition(random, subject) for _ in range(5)]
    if patient % (BLOCK // RARE) == 0:
        problems[0]["code"] = concept(RARE_SYSTEM, rare_code(patient), "A rare disorder")
    return {
        "Patient": [_patient(random, patient, author)],
        "Encounter": [_encounter(random, patient, number) for number in range(6)],
        "Condition": problems,
        "Goal": [_goal(random, subject, number) for number in range(3)],
        "CareTeam": [_care_team(random, subject, author)],
        "CarePlan": [_care_plan(random, subject, author, patient, number) for number in range(2)],
    }


def _of_block(random: Random, first: int) -> Mapping[str, Sequence[Resource]]:
    return {
        "Practitioner": [
            {
                "identifier": [
                    {"system": "http://hl7.org/fhir/sid/us-npi", "value": f"{first + each:010}"}
                ],
                "name": [{"family": name(first + each)[0], "given": [name(first + each)[1]]}],
            }
            for each in range(PRACTITIONERS)
        ],
        "Group": [
            {
                "type": "person",
                "actual": True,
                "name": f"Cohort {first + each}",
                "member": [
                    {"entity": reference("Patient", number)}
                    for number in sorted(random.sample(range(first, first + BLOCK), MEMBERS))
                ],
            }
            for each in range(GROUPS)
        ],
    }


def _patient(random: Random, patient: int, practitioner: Resource) -> Resource:
    family, given = name(patient)
    return {
        "meta": {"profile": [f"{_US_CORE}/StructureDefinition/us-core-patient"]},
        "identifier": [
            {
                "type": concept(f"{_TERMINOLOGY}/v2-0203", "MR", "Medical Record Number"),
                "system": MRN,
                "value": mrn(patient),
            }
        ],
        "name": [{"use": "official", "family": family, "given": [given]}],
        "telecom": [{"system": "phone", "value": f"555-{patient:07}", "use": "home"}],
        "gender": random.choice(["female", "male"]),
        "birthDate": f"{random.randrange(1930, 1990)}-{random.randrange(1, 13):02}-17",
        "address": [{"line": ["12 Quay Street"], "city": "Rockport", "state": "ME"}],
        "generalPractitioner": [practitioner],
    }


def mrn(patient: int) -> str:
    return f"M{patient:08}"


def _encounter(random: Random, patient: int, number: int) -> Resource:
    made = encounter(random, f"Patient/{resource_id('Patient', patient)}")
    made["identifier"][0]["value"] = f"V{patient * 10 + number:08}"
    made["status"] = random.choice(["finished", "finished", "finished", "in-progress"])
    return made


def _condition(random: Random, subject: Resource) -> Resource:
    onset, recorded = period(random)
    category = random.choice(["problem-list-item", "encounter-diagnosis"])
    code, display = random.choice(_PROBLEMS)
    return {
        "meta": {
            "profile": [
                f"{_US_CORE}/StructureDefinition/us-core-condition-problems-health-concerns"
            ]
        },
        "clinicalStatus": concept(f"{_TERMINOLOGY}/condition-clinical", "active", "Active"),
        "verificationStatus": concept(
            f"{_TERMINOLOGY}/condition-ver-status", "confirmed", "Confirmed"
        ),
        "category": [concept(f"{_TERMINOLOGY}/condition-category", category, "Category")],
        "code": {**concept(SNOMED, code, display), "text": display},
        **subject,
        "onsetDateTime": onset,
        "recordedDate": recorded,
    }


def _goal(random: Random, subject: Resource, number: int) -> Resource:
    return {
        "lifecycleStatus": random.choice(["active", "completed"]),
        "description": {"text": f"Walk {number + 1} km a day"},
        **subject,
        "startDate": period(random)[0][:10],
        "target": [{"dueDate": period(random)[1][:10]}],
    }


def _care_team(random: Random, subject: Resource, practitioner: Resource) -> Resource:
    return {
        "status": random.choice(["active", "inactive"]),
        **subject,
        "period": {"start": period(random)[0]},
        "participant": [
            {"role": [concept(SNOMED, "17561000", "Cardiologist")], "member": practitioner}
        ],
    }


def _care_plan(
    random: Random, subject: Resource, author: Resource, patient: int, number: int
) -> Resource:
    start, end = period(random)
    code = "assess-plan" if number else "longitudinal"
    return {
        "meta": {"profile": [f"{_US_CORE}/StructureDefinition/us-core-careplan"]},
        "text": {
            "status": "generated",
            "div": '<div xmlns="http://www.w3.org/1999/xhtml">Plan of care</div>',
        },
        "status": random.choice(["active", "completed"]),
        "intent": "plan",
        "category": [concept(f"{_US_CORE}/CodeSystem/careplan-category", code, "Care plan")],
        **subject,
        "period": {"start": start, "end": end},
        "author": author,
        "careTeam": [reference("CareTeam", patient * 10)],
        "addresses": [reference("Condition", patient * 10 + index) for index in range(3)],
        "goal": [reference("Goal", patient * 10 + index) for index in range(3)],
        "activity": [
            {
                "detail": {
                    "code": concept(SNOMED, code, display),
                    "status": "in-progress",
                    "description": "Talk with the patient about diet, weight and medication",
                }
            }
            for code, display in (
                ("304510005", "Recommendation to exercise"),
                ("183301007", "Physical exercises"),
                ("718361005", "Medication review"),
            )
        ],
    }


def seed(uri: str, database: str, patients: int, kinds: Collection[str] = TYPES) -> int:
    """Store a population of so many patients (whole blocks) in an empty database; returns the number of resources."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        blocks = range(0, patients, BLOCK)
        made = [pool.submit(_seed_block, uri, database, first, tuple(kinds)) for first in blocks]
        stored = sum(each.result() for each in made)
    # Afterwards: sorted once, an index takes a tenth of what it takes row by row.
    with MongoClient[dict[str, Any]](uri) as client:
        for kind in kinds:
            client[database][kind].create_indexes(index_models(kind))
        client[database]["group_members"].create_indexes(group_members.index_models())
    return stored


def _seed_block(uri: str, database: str, first: int, kinds: Sequence[str]) -> int:
    documents: dict[str, list[dict[str, Any]]] = {}
    for patient, resource in resources(first, first + BLOCK, kinds):
        kind, at = resource["resourceType"], stored_at(patient)
        resource = with_meta(resource, resource["id"], 1, at)
        fields = extract(kind, resource)
        for term in fields.pop("rows", ()):
            row = {"_id": {"g": resource["id"], "m": term}}
            documents.setdefault("group_members", []).append(row)
        text = fhir_json.encode(resource).decode()
        document = {"_id": resource["id"], "v": 1, "at": at, **fields, "text": text}
        documents.setdefault(kind, []).append(document)
    with MongoClient[dict[str, Any]](uri) as client:
        db = client.get_database(database, CodecOptions(tz_aware=True, tzinfo=UTC))
        for collection, made in documents.items():
            db[collection].insert_many(made, ordered=False)
    return sum(len(documents.get(kind, ())) for kind in kinds)
