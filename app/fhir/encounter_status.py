"""What an Encounter says of how far its stay has come: planned, going on, over.

https://hl7.org/fhir/R4/valueset-encounter-status.html; docs/encounters.md. An end that is later than the moment at
which somebody says it is an expectation: hospitals send the expected date of discharge as `period.end`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from typing import Any

from app.fhir import instants
from app.fhir.json import Resource

ACTIVE = frozenset({"arrived", "triaged", "in-progress", "onleave"})
CANCELLED = frozenset({"cancelled", "entered-in-error"})
FINAL = CANCELLED | {"finished"}

# NUBC's code for a patient who has not left, which bills that are sent during a stay carry as the disposition.
_STILL_PATIENT = "30"


def phase(encounter: Resource) -> int:
    """How far the status has come: 0 planned, 1 going on, 2 over. What is not known counts as going on."""
    status = encounter.get("status")
    return 0 if status == "planned" else 2 if status in FINAL else 1


def is_discharged(encounter: Resource, at: datetime) -> bool:
    """Whether the patient has left by what was known at `at`: finished, or gone somewhere at an end that has come."""
    if encounter.get("status") == "finished":
        return True
    return (
        encounter.get("status") in ACTIVE
        and _has_disposition(encounter)
        and recorded_end(encounter.get("period", {}), at) is not None
    )


def recorded_end(period: Mapping[str, Any], at: datetime) -> str | None:
    """The end of a period; None where there is none, or none that has come by `at`."""
    end = period.get("end")
    if not isinstance(end, str):
        return None
    try:
        first, _ = instants.span(end, _zone_of(period.get("start")))
    except (ValueError, OverflowError):
        return None
    return end if first <= at else None


def _has_disposition(encounter: Resource) -> bool:
    disposition = encounter.get("hospitalization", {}).get("dischargeDisposition")
    if not disposition:
        return False
    return not any(
        coding.get("code") == _STILL_PATIENT and "nubc" in coding.get("system", "").lower()
        for coding in disposition.get("coding", ())
    )


def _zone_of(text: object) -> tzinfo:
    """The zone that a time is written with; UTC where it is a date."""
    if isinstance(text, str) and len(text) > 10:
        try:
            return instants.moment(text).tzinfo or UTC
        except (ValueError, OverflowError):
            pass
    return UTC
