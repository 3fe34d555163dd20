"""The copy of a care plan for the primary care practice: a document Bundle and the DocumentReference to it.

https://hl7.org/fhir/R4/documents.html

The Bundle holds the resources that its references lead to; a reference to any other becomes an identifier (its URL) and
a display. A document never changes: each has an id of its own, and a later one replaces it.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha1
from typing import Any

from app.coordination.care_plans import document_narrative as narrative, wording as words
from app.coordination.care_plans.document_sheet import Part, Sheet
from app.coordination.care_plans.record import PlanRecord
from app.coordination.care_plans.wording import Names, key_of
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
_EMPTY = "http://terminology.hl7.org/CodeSystem/list-empty-reason"


@dataclass(frozen=True, slots=True)
class Edition:
    """One document: its id (a UUID), its time, the server's base, and the document that it replaces."""

    id: str
    at: datetime
    base_url: str
    replaces: str | None = None

    @property
    def identifier(self) -> dict[str, str]:
        return {"system": _URI, "value": f"urn:uuid:{self.id}"}


def build(record: PlanRecord, sheet: Sheet, edition: Edition) -> Resource:
    """The document Bundle."""
    composition = _composition(record, sheet, edition)
    plan_key = f"CarePlan/{record.state.plan['id']}"
    entries = {plan_key: record.state.plan, **record.entries}
    inside = {f"Composition/{composition['id']}": composition, **entries}
    bundle: Resource = {
        "resourceType": "Bundle",
        "id": edition.id,
        "language": sheet.language,
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


@dataclass(frozen=True, slots=True)
class Form:
    """A form in which a document is stored: its media type, what it is stored as, and what that answers."""

    content_type: str
    stored: ResourceVersion
    content: bytes


def reference_to(
    record: PlanRecord, sheet: Sheet, forms: Sequence[Form], edition: Edition, own_id: str
) -> Resource:
    """The DocumentReference that indexes a stored document in all its forms."""
    reference: Resource = {
        "resourceType": "DocumentReference",
        "id": own_id,
        "masterIdentifier": edition.identifier,
        "status": "current",
        "docStatus": "final",
        "type": {"coding": [PLAN_OF_CARE]},
        "category": [{"coding": [_ASSESS_PLAN]}],
        "date": instant(edition.at),
        "description": sheet.title,
        "content": [_attachment(form, sheet, edition) for form in forms],
        "context": {"related": [{"reference": f"CarePlan/{record.state.plan['id']}"}]},
    }
    if record.patient is not None:
        reference["subject"] = {"reference": f"Patient/{record.patient['id']}"}
    if edition.replaces:
        reference["relatesTo"] = [
            {"code": "replaces", "target": {"reference": f"DocumentReference/{edition.replaces}"}}
        ]
    if labels := labels_of(record):
        reference["securityLabel"] = [{"coding": [label]} for label in labels]
        reference["meta"] = {"security": labels}
    return reference


def _attachment(form: Form, sheet: Sheet, edition: Edition) -> dict[str, Any]:
    return {
        "attachment": {
            "contentType": form.content_type,
            "language": sheet.language,
            "url": f"{edition.base_url}/{form.stored.reference}",
            "size": len(form.content),
            # R4's Attachment.hash is SHA-1, and nothing relies on it for safety.
            "hash": b64encode(sha1(form.content, usedforsecurity=False).digest()).decode(),
            "title": sheet.title,
            "creation": instant(edition.at),
        }
    }


def _composition(record: PlanRecord, sheet: Sheet, edition: Edition) -> Resource:
    plan = record.state.plan
    composition: Resource = {
        "resourceType": "Composition",
        "id": edition.id,
        "language": sheet.language,
        "text": {"status": "generated", "div": narrative.div(narrative.blocks(sheet.summary))},
        "identifier": edition.identifier,
        "status": "final",
        "type": {"coding": [PLAN_OF_CARE]},
        "category": [{"coding": [_ASSESS_PLAN]}],
        "subject": plan["subject"],
        "date": instant(edition.at),
        "author": [_author(record)],
        "title": sheet.title,
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
    composition["section"] = [_section(part, record) for part in sheet.parts]
    return composition


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


def _settled(value: Any, inside: Mapping[str, Resource], names: Names, base_url: str) -> Any:
    """A copy whose references all resolve inside the Bundle; any other is replaced by identifier and display."""
    if isinstance(value, list):
        return [
            _settled(child, inside, names, base_url) if isinstance(child, dict | list) else child
            for child in value
        ]
    settled = {
        name: _settled(child, inside, names, base_url) if isinstance(child, dict | list) else child
        for name, child in value.items()
    }
    literal = settled.get("reference")
    if isinstance(literal, str) and not _resolves(literal, inside):
        if names.get(key_of(settled)) == words.WITHHELD:
            settled["display"] = words.WITHHELD
        _put_in_words(settled, literal, base_url)
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


def labels_of(record: PlanRecord) -> list[dict[str, Any]]:
    """The plan's own labels; but for the Patient no restricted resource is in its document (record.py)."""
    return [dict(label) for label in record.state.plan.get("meta", {}).get("security", ())]


def _labelled(bundle: Resource, record: PlanRecord) -> Resource:
    labels = labels_of(record)
    return {**bundle, "meta": {"security": labels}} if labels else bundle


def _section(part: Part, record: PlanRecord) -> dict[str, Any]:
    """One section: its text, and the resources of the document that it tells of; without any, why."""
    section: dict[str, Any] = {
        "title": part.title,
        "code": {"coding": [dict(part.code)]},
        "text": {"status": "generated", "div": narrative.div(narrative.blocks(part.blocks))},
    }
    entries = [{"reference": key} for key in dict.fromkeys(part.keys) if key in record.entries]
    if entries:
        section["entry"] = entries
    elif part.empty is not None:
        section["emptyReason"] = {"coding": [{"system": _EMPTY, "code": part.empty}]}
    return section
