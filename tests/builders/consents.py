"""Consents and labels, by the parts that tests vary."""

from __future__ import annotations

from typing import Any

from app.consent import labels
from app.fhir.codes import CONSENT_CATEGORY

SCOPE = "http://terminology.hl7.org/CodeSystem/consentscope"
PERIOD_OVER = {"end": "2026-05-31"}


def consent(
    *categories: str, status: str = "active", scope: str = "patient-privacy", **more: Any
) -> Any:
    """A Consent; categories of ours by their code, else privacy in general."""
    codings = [{"system": CONSENT_CATEGORY, "code": each} for each in categories]
    codings = codings or [{"system": "http://loinc.org", "code": "59284-0"}]
    return {
        "resourceType": "Consent",
        "id": "c1",
        "status": status,
        "scope": {"coding": [{"system": SCOPE, "code": scope}]},
        "category": [{"coding": [coding]} for coding in codings],
        "patient": {"reference": "Patient/p1"},
        "dateTime": "2026-01-01",
        "policyRule": {"text": "Policy"},
        **more,
    }


def deny(**more: Any) -> dict[str, Any]:
    return {"type": "deny", **more}


def permit(**more: Any) -> dict[str, Any]:
    return {"type": "permit", **more}


def actor(reference: str, role: str = "IRCP") -> list[dict[str, Any]]:
    system = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
    coding = {"system": system, "code": role}
    return [{"role": {"coding": [coding]}, "reference": {"reference": reference}}]


def label(*codes: str) -> list[dict[str, str]]:
    return [
        {
            "system": labels.CONFIDENTIALITY if code in labels.LEVELS else labels.ACT_CODE,
            "code": code,
        }
        for code in codes
    ]
