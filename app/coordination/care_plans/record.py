"""The resources for a care plan's document, read from the patient's record and the directory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.context import Context
from app.coordination.care_plans import selection, wording as words
from app.coordination.care_plans.selection import MOST, Looked, Section
from app.coordination.care_plans.state import (
    PlanState,
    names_of,
    store_of,
    subject_of,
    without_hidden,
)
from app.coordination.care_plans.wording import Names, key_of
from app.fhir.json import Resource
from app.interactions.references import split
from app.records.reader import Reader
from app.records.versions import ResourceVersion

# How many entries the whole document may hold.
MOST_ENTRIES = 400
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
class PlanRecord:
    """The plan's state, the patient, and the sections that the patient's record fills. `entries` are the document's.

    `today` is the day of the document.
    """

    state: PlanState
    patient: Resource | None
    sections: Mapping[str, Section]
    entries: dict[str, Resource]
    names: Names
    today: str

    def find(self, key: str) -> Resource | None:
        """The resource of the document that a reference leads to, contained resources of the plan included."""
        return self.state.find(key) if key.startswith("#") else self.entries.get(key)

    def goals(self) -> list[tuple[Mapping[str, Any], Resource | None]]:
        """The plan's goals: the reference to each, and the Goal where it may be told; none entered in error."""
        found = [
            (reference, self.find(key) or self.state.find(key))
            for key, reference in self.state.referred("goal").items()
        ]
        return [
            (reference, goal)
            for reference, goal in found
            if (goal or {}).get("lifecycleStatus") != "entered-in-error"
        ]


async def gather(context: Context, state: PlanState, now: datetime) -> PlanRecord:
    """The resources for the document of a plan in this state; stays count up to a year before `now`."""
    store = await store_of(context, state.plan)
    patient_key = subject_of(state.plan)
    looked = await _look(context, store, state, patient_key)
    goals = [each for key in state.referred("goal") if (each := state.find(key)) is not None]
    sections = selection.sections(looked, state, goals, context.settings, now)
    plan_key = f"CarePlan/{state.plan['id']}"
    found = {plan_key: state.plan} | {
        key: each for key, each in state.others.items() if not words.is_restricted(each)
    }
    if patient_key:
        stored = await store.read("Patient", patient_key.partition("/")[2])
        if stored is not None and not stored.deleted:
            found[patient_key] = stored.resource()
    for section in sections.values():
        found |= zip(section.keys, section.resources, strict=True)
    await _follow(store, found, patient_key)
    names = await names_of(context, state.plan, found.values())
    today = f"{now:%Y-%m-%d}"
    return PlanRecord(state, found.get(patient_key or ""), sections, found, names, today)


async def _look(context: Context, store: Reader, state: PlanState, patient: str | None) -> Looked:
    """What the patient's record has of the types that a document tells of, as far as the caller may look for it."""
    access = context.access
    found: dict[str, list[Resource]] = {}
    cut = set()
    if patient is not None:
        for resource_type in selection.TYPES:
            if access is not None and not access.allows(resource_type, "s"):
                continue
            stored = await _of_patient(store, resource_type, patient)
            if len(stored) == MOST:
                cut.add(resource_type)
            told = await without_hidden(context, state.plan, stored)
            found[resource_type] = [each.resource() for each in told]
    return Looked(found, cut)


async def _of_patient(store: Reader, resource_type: str, patient: str) -> list[ResourceVersion]:
    """The newest resources of a type about the patient, newest first."""
    terms = {"$in": [f"subject={patient}", f"patient={patient}"]}
    return await store.search(
        resource_type, {"terms": terms}, MOST, sort=[("date", -1), ("_id", 1)]
    )


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
