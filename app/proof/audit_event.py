"""A notice as an AuditEvent: the entry of a disclosure in the shape of IHE's Basic Audit Log Patterns.

https://hl7.org/fhir/R4/auditevent.html, https://profiles.ihe.net/ITI/BALP
"""

from __future__ import annotations

from typing import Any

from app.fhir.instants import instant
from app.fhir.json import Resource
from app.proof.notice import NoticeRecord

_DICOM = "http://dicom.nema.org/resources/ontology/DCM"
_ENTITY_TYPE = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
_ROLE = "http://terminology.hl7.org/CodeSystem/object-role"
_SOURCE_TYPE = "http://terminology.hl7.org/CodeSystem/security-source-type"
_PARTICIPATION = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
_ACT_REASON = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
_URI = "5"
# Success; a minor failure, nothing was disclosed on purpose; a serious one.
_OUTCOME = {"delivered": "0", "suppressed": "4", "dead": "8"}


def audit_event(notice: NoticeRecord, sender: Resource) -> Resource:
    """The AuditEvent of a notice; one for each state that was published, so that none is ever changed."""
    resource: Resource = {
        "resourceType": "AuditEvent",
        "id": f"{notice.id}-{notice.attempts}",
        "type": {
            "system": "http://terminology.hl7.org/CodeSystem/audit-event-type",
            "code": "rest",
        },
        "subtype": [
            {"system": "http://hl7.org/fhir/restful-interaction", "code": "create"},
            {"system": _DICOM, "code": "110106", "display": "Export"},
        ],
        "action": "C",
        "recorded": instant(notice.settled),
        "outcome": _OUTCOME.get(notice.state, "4"),
        "purposeOfEvent": [{"coding": [{"system": _ACT_REASON, "code": "COC"}]}],
        "agent": _agents(notice, sender),
        "source": {
            "observer": sender,
            "type": [{"system": _SOURCE_TYPE, "code": "4", "display": "Application Server"}],
        },
        "entity": _entities(notice),
    }
    if notice.security:
        resource["meta"] = {"security": [dict(each) for each in notice.security]}
    if notice.reason:
        resource["outcomeDesc"] = notice.reason
    if notice.sent is not None:
        resource["period"] = {"start": instant(notice.sent), "end": instant(notice.settled)}
    return resource


def _agents(notice: NoticeRecord, sender: Resource) -> list[dict[str, Any]]:
    ours = {"type": _agent_type("110153", "Source Role ID"), "who": sender, "requestor": False}
    theirs: dict[str, Any] = {
        "type": _agent_type("110152", "Destination Role ID"),
        "requestor": False,
    }
    if notice.endpoint is not None:
        theirs["network"] = {"address": notice.endpoint, "type": _URI}
    recipients: list[dict[str, Any]] = [
        {
            "type": {"coding": [{"system": _PARTICIPATION, "code": "IRCP"}]},
            "who": {"reference": each},
            "requestor": True,
        }
        for each in notice.recipients
    ]
    return [ours, theirs, *recipients]


def _agent_type(code: str, display: str) -> dict[str, Any]:
    return {"coding": [{"system": _DICOM, "code": code, "display": display}]}


def _entities(notice: NoticeRecord) -> list[dict[str, Any]]:
    found = []
    if notice.patient is not None:
        found.append(_entity(notice.patient, "1", "1"))
    details = [{"type": "notice", "valueString": notice.id}]
    if notice.sha256 is not None:
        details.append({"type": "sha256", "valueString": notice.sha256})
    version = f"{notice.focus}/_history/{notice.version}"
    found.append({**_entity(version, "2", "4"), "detail": details})
    if notice.subscription is not None:
        found.append(_entity(f"Subscription/{notice.subscription}", "2", "9"))
    return found


def _entity(reference: str, type_: str, role: str) -> dict[str, Any]:
    return {
        "what": {"reference": reference},
        "type": {"system": _ENTITY_TYPE, "code": type_},
        "role": {"system": _ROLE, "code": role},
    }
