"""The copy of a care plan for the primary care practice: a document Bundle and the DocumentReference to it.

https://hl7.org/fhir/R4/documents.html

The Bundle holds the resources that its references lead to; a reference to any other becomes an identifier (its URL) and
a display. A document never changes: each has an id of its own, and a later one replaces it.
"""

from __future__ import annotations

import copy
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha1
from typing import Any

from app.coordination.care_plans import (
    document_narrative as narrative,
    lines as lines_of,
    wording as words,
)
from app.coordination.care_plans.record import PlanRecord, Section
from app.coordination.care_plans.wording import Names, key_of
from app.fhir.codes import CARE_PLAN_SECTION, CHANGES_SINCE
from app.fhir.instants import instant
from app.fhir.json import Resource
from app.records.versions import ResourceVersion

LOINC = "http://loinc.org"
PLAN_OF_CARE = {"system": LOINC, "code": "18776-5", "display": "Plan of care note"}
_ASSESS_PLAN = {
    "system": "http://hl7.org/fhir/us/core/CodeSystem/careplan-category",
    "code": "assess-plan",
}
_URI = "urn:ietf:rfc:3986"


@dataclass(frozen=True, slots=True)
class Edition:
    """One document: its id (a UUID), its time, the server's base, the document it replaces, and a year's changes."""

    id: str
    at: datetime
    base_url: str
    replaces: str | None = None
    changes: Sequence[str] | None = None

    @property
    def identifier(self) -> dict[str, str]:
        return {"system": _URI, "value": f"urn:uuid:{self.id}"}


def build(record: PlanRecord, edition: Edition) -> Resource:
    """The document Bundle."""
    composition = _composition(record, edition)
    plan_key = f"CarePlan/{record.state.plan['id']}"
    entries = {plan_key: record.state.plan, **record.entries}
    inside = {f"Composition/{composition['id']}": composition, **entries}
    bundle: Resource = {
        "resourceType": "Bundle",
        "id": edition.id,
        "identifier": edition.identifier,
        "type": "document",
        "timestamp": instant(edition.at),
        "entry": [
            {
                "fullUrl": f"{edition.base_url}/{key}",
                "resource": _settled(resource, entries, record.names, edition.base_url),
            }
            for key, resource in inside.items()
        ],
    }
    return _labelled(bundle, record)


def reference_to(
    record: PlanRecord, bundle: ResourceVersion, edition: Edition, own_id: str
) -> Resource:
    """The DocumentReference that indexes a stored document."""
    body = bundle.text.encode()
    title = _title(record.state.plan)
    reference: Resource = {
        "resourceType": "DocumentReference",
        "id": own_id,
        "masterIdentifier": edition.identifier,
        "status": "current",
        "docStatus": "final",
        "type": {"coding": [PLAN_OF_CARE]},
        "category": [{"coding": [_ASSESS_PLAN]}],
        "date": instant(edition.at),
        "description": title,
        "content": [
            {
                "attachment": {
                    "contentType": "application/fhir+json",
                    "url": f"{edition.base_url}/{bundle.reference}",
                    "size": len(body),
                    # R4's Attachment.hash is SHA-1, and nothing relies on it for safety.
                    "hash": b64encode(sha1(body, usedforsecurity=False).digest()).decode(),
                    "title": title,
                    "creation": instant(edition.at),
                }
            }
        ],
        "context": {"related": [{"reference": f"CarePlan/{record.state.plan['id']}"}]},
    }
    if record.patient is not None:
        reference["subject"] = {"reference": f"Patient/{record.patient['id']}"}
    if edition.replaces:
        reference["relatesTo"] = [
            {"code": "replaces", "target": {"reference": f"DocumentReference/{edition.replaces}"}}
        ]
    if labels := _labels(record):
        reference["securityLabel"] = [{"coding": [label]} for label in labels]
        reference["meta"] = {"security": labels}
    return reference


def _composition(record: PlanRecord, edition: Edition) -> Resource:
    plan = record.state.plan
    composition: Resource = {
        "resourceType": "Composition",
        "id": edition.id,
        "text": {"status": "generated", "div": narrative.overview(record)},
        "identifier": edition.identifier,
        "status": "final",
        "type": {"coding": [PLAN_OF_CARE]},
        "category": [{"coding": [_ASSESS_PLAN]}],
        "subject": plan["subject"],
        "date": instant(edition.at),
        "author": [_author(record)],
        "title": _title(plan),
    }
    custodian = next(
        (
            key
            for key in record.entries
            if key.startswith("Organization/") and _is_custodian(plan, key)
        ),
        None,
    )
    if custodian:
        composition["custodian"] = {"reference": custodian}
    if edition.replaces:
        composition["relatesTo"] = [{"code": "replaces", "targetIdentifier": _replaced(edition)}]
    event: dict[str, Any] = {"detail": [{"reference": f"CarePlan/{plan['id']}"}]}
    if "period" in plan:
        event = {"period": plan["period"], **event}
    composition["event"] = [event]
    composition["section"] = sections(record, edition.changes)
    return composition


def _title(plan: Resource) -> str:
    name = words.title(plan) or words.concept(plan.get("category"))
    return f"Care plan: {name}" if name else "Care plan"


def _replaced(edition: Edition) -> dict[str, str]:
    return {"system": _URI, "value": f"{edition.base_url}/DocumentReference/{edition.replaces}"}


def _author(record: PlanRecord) -> Mapping[str, Any]:
    """The plan's author, else a contributor who may be one, else this server in words."""
    plan = record.state.plan
    kinds = ("Practitioner/", "PractitionerRole/", "Organization/", "Device/", "Patient/")
    for reference in (plan.get("author"), *plan.get("contributor", ())):
        if reference and key_of(reference).startswith((*kinds, "RelatedPerson/")):
            return dict(reference)
    return {"type": "Device", "display": "CareRelay"}


def _is_custodian(plan: Resource, key: str) -> bool:
    """Whether the plan names this organization as its author or custodian."""
    extensions = [
        extension.get("valueReference")
        for extension in plan.get("extension", ())
        if str(extension.get("url", "")).endswith("custodian")
    ]
    return key in [key_of(each) for each in (*extensions, plan.get("author")) if each]


def _settled(
    resource: Resource, inside: Mapping[str, Resource], names: Names, base_url: str
) -> Resource:
    """A copy whose references all resolve inside the Bundle; any other is replaced by identifier and display."""
    settled: Resource = copy.deepcopy(resource)
    stack: list[Any] = [settled]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            literal = value.get("reference")
            if isinstance(literal, str) and not _resolves(literal, inside):
                if names.get(key_of(value)) == words.WITHHELD:
                    value["display"] = words.WITHHELD
                _put_in_words(value, literal, base_url)
            value = list(value.values())
        if isinstance(value, list):
            stack.extend(child for child in value if isinstance(child, dict | list))
    return settled


def _resolves(literal: str, inside: Mapping[str, Resource]) -> bool:
    if literal.startswith("#"):
        return True
    key, _, version = literal.partition("/_history/")
    found = inside.get(key)
    return found is not None and (not version or found.get("meta", {}).get("versionId") == version)


def _put_in_words(element: dict[str, Any], literal: str, base_url: str) -> None:
    del element["reference"]
    if "identifier" not in element:
        url = literal if ":" in literal else f"{base_url}/{literal}"
        element["identifier"] = {"system": _URI, "value": url}
    element.setdefault("display", "Not part of this document")


def _labels(record: PlanRecord) -> list[dict[str, Any]]:
    """The plan's own labels; but for the Patient no restricted resource is in its document (record.py)."""
    return [dict(label) for label in record.state.plan.get("meta", {}).get("security", ())]


def _labelled(bundle: Resource, record: PlanRecord) -> Resource:
    labels = _labels(record)
    return {**bundle, "meta": {"security": labels}} if labels else bundle


# The sections of a care plan's document: the text of each, and the resources that it lists.

_EMPTY = "http://terminology.hl7.org/CodeSystem/list-empty-reason"
# Title, LOINC code, and the section of the record.
_RECORD_SECTIONS = (
    ("Problems", "11450-4", "problems"),
    ("Medications", "10160-0", "medications"),
    ("Allergies", "48765-2", "allergies"),
    ("Functional status", "47420-5", "functional"),
    ("Social history", "29762-2", "social"),
    ("Advance directives", "42348-3", "directives"),
    ("Hospital stays of the last twelve months", "46240-8", "encounters"),
)


def sections(record: PlanRecord, changes: Sequence[str] | None) -> list[dict[str, Any]]:
    """All sections in their order; with `changes` the first section lists them."""
    found = [*_of_plan(record), *_of_record(record)]
    return found if changes is None else [_changes(changes), *found]


def _of_plan(record: PlanRecord) -> list[dict[str, Any]]:
    """The sections from the plan itself."""
    state, plan = record.state, record.state.plan
    activities = [
        key_of(each["reference"]) for each in plan.get("activity", ()) if "reference" in each
    ]
    results = [
        key_of(each)
        for source in (*plan.get("activity", ()), *_goal_resources(record))
        for each in source.get("outcomeReference", ())
    ]
    supporting = state.referred("supportingInfo")
    concerned = [
        *state.referred("addresses"),
        *_keys(record.sections.get("concerns", Section())),
        *(f"Flag/{flag['id']}" for flag in state.flags),
        *(key for key in supporting if key.startswith("RiskAssessment/")),
    ]
    teams, goals = list(state.referred("careTeam")), list(state.referred("goal"))
    parts = (
        ("Care team", "85847-2", narrative.care_team(record), teams),
        ("Health concerns", "75310-3", narrative.concerns(record), concerned),
        ("Goals", "61146-7", narrative.goals(record), goals),
        ("Interventions", "62387-6", narrative.interventions(record), activities),
        ("Evaluations and outcomes", "11383-7", narrative.outcomes(record), results),
    )
    return [_part(*each, record) for each in parts]


def _of_record(record: PlanRecord) -> list[dict[str, Any]]:
    """The sections from the rest of the patient's record."""
    found = []
    for title, code, name in _RECORD_SECTIONS:
        section = record.sections.get(name, Section())
        line = lines_of.encounter_line if name == "encounters" else lines_of.resource_line
        found.append(_part(title, code, narrative.listed(section, line), _keys(section), record))
    return found


def _goal_resources(record: PlanRecord) -> list[Resource]:
    keys = record.state.referred("goal")
    return [goal for key in keys if (goal := record.find(key)) is not None]


def _keys(section: Section) -> list[str]:
    return [f"{each['resourceType']}/{each['id']}" for each in section.resources]


def _changes(lines: Sequence[str]) -> dict[str, Any]:
    return {
        "title": "Changes since the last copy",
        "code": {"coding": [{"system": CARE_PLAN_SECTION, "code": CHANGES_SINCE}]},
        "text": {"status": "generated", "div": narrative.div(narrative.change_list(lines))},
    }


def _part(
    title: str, code: str, markup: str, keys: Sequence[str], record: PlanRecord
) -> dict[str, Any]:
    """One section; without content its text says that nothing is known."""
    section: dict[str, Any] = {
        "title": title,
        "code": {"coding": [{"system": LOINC, "code": code}]},
        "text": {
            "status": "generated",
            "div": narrative.div(markup or "<p>Nothing is known.</p>"),
        },
    }
    entries = [{"reference": key} for key in dict.fromkeys(keys) if key in record.entries]
    if entries:
        section["entry"] = entries
    elif not markup:
        section["emptyReason"] = {"coding": [{"system": _EMPTY, "code": "unavailable"}]}
    elif "confidential" in markup:
        section["emptyReason"] = {"coding": [{"system": _EMPTY, "code": "withheld"}]}
    return section
