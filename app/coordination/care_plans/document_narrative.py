"""A care plan's document as text that reads without any FHIR software: XHTML, everything escaped.

https://hl7.org/fhir/R4/narrative.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape

from app.coordination.care_plans import wording as words
from app.coordination.care_plans.activities import activity_title, goal_title
from app.coordination.care_plans.changes import tier
from app.coordination.care_plans.lines import (
    activity_line,
    condition_line,
    contact_line,
    goal_line,
    patient_line,
    phone_of,
    resource_line,
)
from app.coordination.care_plans.members import described, point_of_contact, teams
from app.coordination.care_plans.record import PlanRecord, Section
from app.coordination.care_plans.wording import key_of
from app.fhir.json import Resource

_XHTML = "http://www.w3.org/1999/xhtml"
# XML cannot hold these, however they are written.
_UNWRITABLE = {code: " " for code in range(32) if code not in (9, 10, 13)} | {
    0xFFFE: " ",
    0xFFFF: " ",
}


def div(*blocks: str) -> str:
    """Blocks of markup as a Narrative's div."""
    return f'<div xmlns="{_XHTML}">{"".join(blocks)}</div>'


def text(value: str) -> str:
    """Text as markup: escaped, and without characters that XML cannot hold."""
    return escape(value.translate(_UNWRITABLE), quote=True)


def paragraph(label: str, value: str) -> str:
    """A labelled line; empty for an empty value."""
    return f"<p><b>{text(label)}:</b> {text(value)}</p>" if value else ""


def items(lines: Iterable[str]) -> str:
    """A list of lines; empty for none."""
    found = "".join(f"<li>{text(line)}</li>" for line in lines if line)
    return f"<ul>{found}</ul>" if found else ""


def overview(record: PlanRecord) -> str:
    """The point of contact, the patient and the plan's main elements: what a reader needs first."""
    state, plan = record.state, record.state.plan
    patient = record.patient
    return div(
        paragraph("Point of contact", contact_line(record)),
        paragraph("Patient", patient_line(patient) or words.reference(plan.get("subject"), {})),
        paragraph("Care plan", words.title(plan) or words.concept(plan.get("category"))),
        paragraph("Description", str(plan.get("description", "")) if "title" in plan else ""),
        paragraph("Status", str(plan.get("status", ""))),
        paragraph("Period", words.period(plan.get("period"))),
        paragraph("Risk tier", tier(state)),
        paragraph("Author", words.reference(plan.get("author"), record.names)),
        paragraph("Notes", words.listing(note.get("text", "") for note in plan.get("note", ()))),
    )


def care_team(record: PlanRecord) -> str:
    """The members of the care teams, the point of contact first."""
    first = point_of_contact(record.state)
    others = [
        participant
        for team in teams(record.state)
        for participant in team.get("participant", ())
        if participant is not first
    ]
    lines = [f"Point of contact: {contact_line(record)}"] if first else []
    lines += [
        words.listing((described(each, record.names), phone_of(each, record))) for each in others
    ]
    return items(lines)


def concerns(record: PlanRecord) -> str:
    """The risk tier, the Conditions that the plan addresses, and the patient's health concerns."""
    state, section = record.state, record.sections.get("concerns", Section())
    addressed = state.referred("addresses")
    lines = [
        condition_line(condition)
        if (condition := record.find(key)) is not None
        else words.reference(reference, record.names)
        for key, reference in addressed.items()
    ]
    lines += [
        condition_line(each)
        for each in section.resources
        if f"Condition/{each['id']}" not in addressed
    ]
    risk = tier(state)
    return paragraph("Risk tier", risk) + items(lines) + withheld(section)


def goals(record: PlanRecord) -> str:
    """The goals, one a line."""
    lines = []
    for key, reference in record.state.referred("goal").items():
        goal = record.find(key) or record.state.find(key)
        lines.append(goal_line(goal, reference, record))
    return items(lines)


def interventions(record: PlanRecord) -> str:
    """The activities, grouped by the condition that each is for."""
    groups: dict[str, list[str]] = {}
    for activity in record.state.plan.get("activity", ()):
        reason, line = activity_line(activity, record)
        groups.setdefault(reason, []).append(line)
    return "".join(
        f"<p><b>{text(reason or 'Without a stated condition')}</b></p>{items(lines)}"
        for reason, lines in sorted(groups.items(), key=lambda group: not group[0])
    )


def listed(section: Section, line: Callable[[Resource], str]) -> str:
    """A section's resources, one a line, and the number left out."""
    return items(line(each) for each in section.resources) + withheld(section)


def withheld(section: Section) -> str:
    """The number of entries that are left out because they are confidential; empty for none."""
    if not section.withheld:
        return ""
    return f"<p>{section.withheld} confidential entries are left out.</p>"


def change_list(lines: Sequence[str]) -> str:
    """The changes, one a line."""
    return items(lines) or "<p>Nothing has changed.</p>"


def outcomes(record: PlanRecord) -> str:
    """The outcomes of activities and goals."""
    lines = []
    for activity in record.state.plan.get("activity", ()):
        found = [
            resource_line(resource)
            if (resource := record.find(key_of(each))) is not None
            else words.reference(each, record.names)
            for each in activity.get("outcomeReference", ())
        ]
        found.append(words.concept(activity.get("outcomeCodeableConcept")))
        shown = "; ".join(each for each in found if each)
        if shown:
            lines.append(f"{activity_title(record.state, activity, record.names)}: {shown}")
    for key, reference in record.state.referred("goal").items():
        goal = record.find(key)
        shown = words.listing(
            words.reference(each, record.names) for each in (goal or {}).get("outcomeReference", ())
        )
        if shown:
            lines.append(f"{goal_title(goal, reference)}: {shown}")
    return items(lines)
