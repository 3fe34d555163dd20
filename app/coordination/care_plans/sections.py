"""The sections of a care plan's document: what each tells in words, and the resources behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.coordination.care_plans import document_narrative as narrative, lines as lines_of
from app.coordination.care_plans.record import PlanRecord, Section
from app.coordination.care_plans.wording import key_of
from app.fhir.codes import CARE_PLAN_SECTION, CHANGES_SINCE
from app.fhir.json import Resource

LOINC = "http://loinc.org"
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
    """All sections in their order; the first tells what changed, where that is asked for."""
    found = [*_of_plan(record), *_of_record(record)]
    return found if changes is None else [_changes(changes), *found]


def _of_plan(record: PlanRecord) -> list[dict[str, Any]]:
    """What the plan itself tells."""
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
    told = (
        ("Care team", "85847-2", narrative.care_team(record), teams),
        ("Health concerns", "75310-3", narrative.concerns(record), concerned),
        ("Goals", "61146-7", narrative.goals(record), goals),
        ("Interventions", "62387-6", narrative.interventions(record), activities),
        ("Evaluations and outcomes", "11383-7", narrative.outcomes(record), results),
    )
    return [_part(*each, record) for each in told]


def _of_record(record: PlanRecord) -> list[dict[str, Any]]:
    """What the patient's record tells besides."""
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
    """One section; without anything to tell it says so."""
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
