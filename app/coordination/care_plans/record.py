"""The resources for a care plan's document, read from the patient's record and the directory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from app.context import Context
from app.coordination.care_plans import wording as words
from app.coordination.care_plans.state import (
    PlanState,
    names_of,
    store_of,
    subject_of,
    without_hidden,
)
from app.coordination.care_plans.wording import Names, codes, key_of
from app.fhir.instants import span
from app.fhir.json import Resource
from app.interactions.references import split
from app.records.reader import Reader
from app.records.versions import ResourceVersion

# How many of a type are read, newest first, and how many a section of observations shows.
_MOST, _MOST_OBSERVATIONS = 500, 20
# How many entries the whole document may hold.
MOST_ENTRIES = 400
_YEAR = timedelta(days=365)
_STAYS = frozenset({"ACUTE", "EMER", "IMP", "NONAC", "OBSENC", "SS"})
_ENDED = frozenset({"inactive", "remission", "resolved"})
_REFUTED = frozenset({"entered-in-error", "refuted"})
_ADVANCE_DIRECTIVES = frozenset({"42348-3", "acd", "dnr", "hcd", "polst", "advance-directive"})
# From these no reference is followed: they lead to other patients or to how this server sends.
_LEAVES = frozenset({"Endpoint", "Group", "List", "Patient", "RelatedPerson", "Subscription"})
# Never included just because a resource refers to them.
_NOT_FOLLOWED = frozenset(
    {
        "Binary",
        "Bundle",
        "Composition",
        "DocumentReference",
        "Endpoint",
        "Group",
        "List",
        "Subscription",
    }
)


@dataclass(slots=True)
class Section:
    """One section: its resources, and how many were left out because they are confidential."""

    resources: list[Resource] = field(default_factory=list)
    withheld: int = 0


@dataclass(slots=True)
class PlanRecord:
    """The plan's state, the patient, and the sections that the patient's record fills. `entries` are the document's."""

    state: PlanState
    patient: Resource | None
    sections: Mapping[str, Section]
    entries: dict[str, Resource]
    names: Names

    def find(self, key: str) -> Resource | None:
        """The resource of the document that a reference leads to, contained resources of the plan included."""
        return self.state.find(key) if key.startswith("#") else self.entries.get(key)


async def gather(context: Context, state: PlanState, now: datetime) -> PlanRecord:
    """The resources for the document of a plan in this state; stays count up to a year before `now`."""
    store = await store_of(context, state.plan)
    patient_key = subject_of(state.plan)

    async def of_patient(resource_type: str) -> list[Resource]:
        """The newest resources of a type about the patient, newest first."""
        found = await _of_patient(store, resource_type, patient_key or "")
        return [each.resource() for each in await without_hidden(context, state.plan, found)]

    sections = await _sections(of_patient, state, now) if patient_key else {}
    plan_key = f"CarePlan/{state.plan['id']}"
    found = {plan_key: state.plan} | {
        key: each for key, each in state.others.items() if not words.is_restricted(each)
    }
    if patient_key:
        stored = await store.read("Patient", patient_key.partition("/")[2])
        if stored is not None and not stored.deleted:
            found[patient_key] = stored.resource()
    for section in sections.values():
        found |= {f"{each['resourceType']}/{each['id']}": each for each in section.resources}
    await _follow(store, found, patient_key)
    names = await names_of(context, state.plan, found.values())
    return PlanRecord(state, found.get(patient_key or ""), sections, found, names)


async def _sections(
    of_patient: Callable[[str], Awaitable[list[Resource]]], state: PlanState, now: datetime
) -> dict[str, Section]:
    conditions = await of_patient("Condition")
    observations = await of_patient("Observation")
    requests = await of_patient("MedicationRequest")
    statements = await of_patient("MedicationStatement")
    consents = await of_patient("Consent")
    return {
        **_of_conditions(conditions, state),
        "medications": _section(
            each for each in (*requests, *statements) if each.get("status") == "active"
        ),
        "allergies": _section(
            each for each in await of_patient("AllergyIntolerance") if _is_live(each)
        ),
        "functional": _section(_of_category(observations, "functional-status")),
        "social": _section(_of_category(observations, "social-history")),
        "directives": _section(
            each
            for each in consents
            if each.get("status") == "active" and _ADVANCE_DIRECTIVES & _consent_codes(each)
        ),
        "encounters": _section(
            each for each in await of_patient("Encounter") if _is_recent_stay(each, now)
        ),
    }


def _of_conditions(conditions: Sequence[Resource], state: PlanState) -> dict[str, Section]:
    """The live Conditions as concerns and as problems; a problem that the plan refers to is a concern too."""
    named = {*state.referred("addresses"), *state.referred("supportingInfo")}
    live = [
        (each, "health-concern" in codes(each.get("category")))
        for each in conditions
        if _is_live(each)
    ]
    return {
        "concerns": _section(
            each for each, is_concern in live if is_concern or f"Condition/{each['id']}" in named
        ),
        "problems": _section(each for each, is_concern in live if not is_concern),
    }


def _section(found: Iterable[Resource]) -> Section:
    every = list(found)
    shown = [each for each in every if not words.is_restricted(each)]
    return Section(shown, len(every) - len(shown))


async def _of_patient(store: Reader, resource_type: str, patient: str) -> list[ResourceVersion]:
    terms = {"$in": [f"subject={patient}", f"patient={patient}"]}
    return await store.search(
        resource_type, {"terms": terms}, _MOST, sort=[("date", -1), ("_id", 1)]
    )


def _of_category(observations: Sequence[Resource], category: str) -> list[Resource]:
    return [each for each in observations if category in codes(each.get("category"))][
        :_MOST_OBSERVATIONS
    ]


def _is_live(resource: Resource) -> bool:
    verification = codes(resource.get("verificationStatus"))
    return not (codes(resource.get("clinicalStatus")) & _ENDED or verification & _REFUTED)


def _consent_codes(consent: Resource) -> frozenset[str]:
    return codes(consent.get("category")) | codes(consent.get("scope"))


def _is_recent_stay(encounter: Resource, now: datetime) -> bool:
    if encounter.get("class", {}).get("code") not in _STAYS:
        return False
    if encounter.get("status") in ("cancelled", "entered-in-error"):
        return False
    period = encounter.get("period", {})
    latest = period.get("end") or period.get("start")
    try:
        return latest is None or span(latest)[1] >= now - _YEAR
    except ValueError:
        return True


async def _follow(store: Reader, found: dict[str, Resource], patient: str | None) -> None:
    """Add what these refer to, and so on, up to MOST_ENTRIES; nothing restricted."""
    frontier = list(found)
    while frontier and len(found) < MOST_ENTRIES:
        wanted = {
            target
            for key in frontier
            if not key.startswith(tuple(f"{name}/" for name in _LEAVES)) or key == patient
            for reference in _targets(found[key])
            if (target := split(reference)) is not None
            and reference not in found
            and target[0] not in _NOT_FOLLOWED
        }
        stored = await store.read_many(sorted(wanted))
        frontier = []
        for key, each in sorted(stored.items()):
            resource = None if each.deleted else each.resource()
            if resource is None or words.is_restricted(resource) or len(found) >= MOST_ENTRIES:
                continue
            found[key] = resource
            frontier.append(key)


def _targets(value: Any) -> Iterable[str]:
    if isinstance(value, dict):
        if isinstance(value.get("reference"), str):
            yield key_of(value)
        for name, child in value.items():
            # Other records of the patient, and those the patient is merged with, are not followed.
            if not (name == "link" and value.get("resourceType") == "Patient"):
                yield from _targets(child)
    elif isinstance(value, list):
        for child in value:
            yield from _targets(child)
