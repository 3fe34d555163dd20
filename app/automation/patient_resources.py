"""What is known of one patient, by type and code, and the days that resources name."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime
from typing import Any

from app.context import Context
from app.fhir.codes import ASSESSMENT_KIND, HEALTH_RISK_ASSESSMENT
from app.fhir.instants import span
from app.fhir.json import Resource
from app.records.versions import ResourceVersion
from app.search.terms import escape
from app.settings import Settings
from app.store.events import Event

# Under which search parameter each type names its patient, and in which element.
_PATIENT = {
    "CarePlan": ("subject", "subject"),
    "CareTeam": ("subject", "subject"),
    "Communication": ("subject", "subject"),
    "Consent": ("patient", "patient"),
    "Coverage": ("patient", "beneficiary"),
    "Encounter": ("subject", "subject"),
    "EpisodeOfCare": ("patient", "patient"),
    "Flag": ("subject", "subject"),
    "QuestionnaireResponse": ("subject", "subject"),
    "RiskAssessment": ("subject", "subject"),
    "ServiceRequest": ("subject", "subject"),
    "Task": ("subject", "for"),
}
# A patient with more of one type than this is looked at by the first of them.
_MOST = 1000


def patient_of(resource: Resource | None) -> str | None:
    """The patient as a relative reference; None where there is none, or none of this server."""
    if resource is None:
        return None
    reference = resource.get(_PATIENT[resource["resourceType"]][1], {}).get("reference", "")
    return reference if reference.startswith("Patient/") else None


def patients_of(event: Event) -> set[str]:
    """Whose record a change touches: the patient it names now and the one it named before."""
    return {patient for each in (event.resource, event.previous) if (patient := patient_of(each))}


async def resources_of(
    context: Context, resource_type: str, patient: str, *terms: str
) -> list[ResourceVersion]:
    """The patient's resources of a type that have all of these search terms, in the order of their ids."""
    wanted = [f"{_PATIENT[resource_type][0]}={patient}", *terms]
    return await context.store.search(
        resource_type, {"terms": {"$all": wanted}}, _MOST, sort=[("_id", 1)]
    )


def token(parameter: str, system: str, code: str) -> str:
    """The search term of a coded value."""
    return f"{parameter}={escape(system)}|{escape(code)}"


def codes_in(concepts: Any, system: str) -> list[str]:
    """The codes of one system in a CodeableConcept or in several."""
    listed = concepts if isinstance(concepts, list) else [concepts or {}]
    return [
        coding["code"]
        for concept in listed
        for coding in concept.get("coding", ())
        if coding.get("system") == system and "code" in coding
    ]


def is_health_risk_assessment(settings: Settings, response: Resource) -> bool:
    """Whether a QuestionnaireResponse answers a configured questionnaire, in whatever version, or has our tag."""
    form = response.get("questionnaire", "").partition("|")[0]
    known = [each.strip() for each in settings.hra_questionnaires.split(",")]
    tags = codes_in({"coding": response.get("meta", {}).get("tag", [])}, ASSESSMENT_KIND)
    return form in known or HEALTH_RISK_ASSESSMENT in tags


def moment(text: str | None) -> datetime | None:
    """The first instant that a date or dateTime may mean; without a zone it is UTC."""
    if text is None:
        return None
    try:
        return span(text)[0]
    except ValueError:
        return None


def day(text: str | None) -> date | None:
    """The calendar day that a date or dateTime names, in the zone it is written in; of a month or year the first.

    None where there is none, and in the last centuries of the calendar, where no term can be added.
    """
    return _day(text, 0)


def last_day(text: str | None) -> date | None:
    """The same of an end; of a month or year the last day."""
    return _day(text, 1)


def _day(text: str | None, side: int) -> date | None:
    if text is None:
        return None
    try:
        found = span(text[:10])[side].date()
    except ValueError:
        return None
    return found if found.year < 9000 else None


async def first_seen(context: Context, stored: ResourceVersion) -> datetime:
    """When the resource first came here."""
    if stored.version == 1:
        return stored.at
    first = await context.store.vread(stored.type, stored.id, 1)
    return stored.at if first is None else first.at


def changed(event: Event, elements: Iterable[str]) -> bool:
    """Whether a change touches any of these elements; a create or delete does."""
    if event.resource is None or event.previous is None:
        return True
    now, before = event.resource, event.previous
    return any(now.get(each) != before.get(each) for each in elements)
