"""Enrolment in case management: an EpisodeOfCare of the type `case-management`.

https://hl7.org/fhir/R4/episodeofcare.html
"""

from __future__ import annotations

from datetime import date, datetime

from app.automation.patient_resources import codes_in, day, moment, resources_of, token
from app.context import Context
from app.fhir.codes import (
    CASE_MANAGEMENT,
    EPISODE_END_REASON,
    EPISODE_END_REASON_EXTENSION,
    EPISODE_TYPE,
)
from app.fhir.json import Resource

# Enrolled; and those who are about to be.
ENROLLED = frozenset({"active", "onhold"})
STANDING = ENROLLED | {"planned", "waitlist"}


def is_case_management(episode: Resource | None) -> bool:
    return episode is not None and CASE_MANAGEMENT in codes_in(episode.get("type"), EPISODE_TYPE)


async def episodes_of(context: Context, patient: str) -> list[Resource]:
    """The patient's enrolments in case management, whatever their status but entered-in-error."""
    found = await resources_of(
        context, "EpisodeOfCare", patient, token("type", EPISODE_TYPE, CASE_MANAGEMENT)
    )
    episodes = [stored.resource() for stored in found]
    return [each for each in episodes if each["status"] != "entered-in-error"]


def began(episode: Resource) -> date | None:
    """The first day of the enrolment."""
    return day(episode.get("period", {}).get("start"))


def ended(episode: Resource) -> datetime | None:
    """The earliest moment at which the enrolment may have ended."""
    return moment(episode.get("period", {}).get("end"))


def end_reason(episode: Resource) -> str | None:
    """The code that says why the enrolment ended."""
    for extension in episode.get("extension", ()):
        if extension["url"] == EPISODE_END_REASON_EXTENSION:
            codes = codes_in(extension.get("valueCodeableConcept"), EPISODE_END_REASON)
            return codes[0] if codes else None
    return None
