"""Resources of a care plan and of a patient's record, each as one line of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.coordination.care_plans import wording as words
from app.coordination.care_plans.activities import (
    activity_status,
    activity_title,
    goal_standing,
    goal_title,
    target,
)
from app.coordination.care_plans.members import contact_words, described, point_of_contact, teams
from app.coordination.care_plans.record import PlanRecord
from app.coordination.care_plans.wording import key_of
from app.fhir.json import Resource


def patient_line(patient: Resource | None) -> str:
    """Name, birth date, identifiers and telephone."""
    if patient is None:
        return ""
    born = patient.get("birthDate", "")
    numbers = [i["value"] for i in patient.get("identifier", ()) if "value" in i]
    return words.listing(
        (
            words.title(patient) or "name not known",
            f"born {born}" if born else "",
            f"identifiers {' '.join(numbers[:3])}" if numbers else "",
            words.phone(patient),
        )
    )


def contact_line(record: PlanRecord) -> str:
    """The single point of contact with a telephone number, else that none is stated."""
    participant = point_of_contact(record.state)
    if participant is None:
        return contact_words(record.state, record.names) or "none stated"
    team_phone = words.listing(words.phone(team) for team in teams(record.state))
    number = phone_of(participant, record) or team_phone or "no telephone number known"
    return f"{described(participant, record.names)}, {number}"


def phone_of(participant: Mapping[str, Any], record: PlanRecord) -> str:
    """A member's telephone: its own, else of the practitioner or organization behind a role."""
    member = record.find(key_of(participant.get("member")))
    if member is None:
        return ""
    behind = [record.find(key_of(member.get(name))) for name in ("practitioner", "organization")]
    return next((found for each in (member, *behind) if (found := words.phone(each))), "")


def condition_line(condition: Resource) -> str:
    """A Condition with its status and onset."""
    onset = words.choice(condition, "onset")
    return words.listing(
        (
            words.title(condition) or "a condition without a name",
            words.concept(condition.get("clinicalStatus")),
            f"since {onset}" if onset else "",
        )
    )


def goal_line(goal: Resource | None, reference: Mapping[str, Any], record: PlanRecord) -> str:
    """A goal on one line."""
    name = goal_title(goal, reference)
    if goal is None or words.is_restricted(goal):
        return name
    targets = words.listing(target(each) for each in goal.get("target", ()))
    expressed = words.reference(goal.get("expressedBy"), record.names)
    concerned = words.listing(
        words.reference(each, record.names) for each in goal.get("addresses", ())
    )
    category = words.concept(goal.get("category"))
    parts = (
        name,
        f"({goal_standing(goal)})",
        f"kind: {category}" if category else "",
        f"priority: {words.concept(goal['priority'])}" if "priority" in goal else "",
        f"target: {targets}" if targets else "",
        f"expressed by: {expressed}" if expressed else "",
        f"for: {concerned}" if concerned else "",
    )
    return "; ".join(part for part in parts if part)


def activity_line(activity: Mapping[str, Any], record: PlanRecord) -> tuple[str, str]:
    """The condition an activity is for, and the activity on one line."""
    detail: Mapping[str, Any] = activity.get("detail", {})
    planned = record.find(key_of(activity.get("reference"))) if "reference" in activity else None
    source = planned or detail
    reasons = [
        words.reference(each, record.names) for each in words.each(source.get("reasonReference"))
    ]
    reason = words.listing(reasons) or words.concept(source.get("reasonCode"))
    performers = [
        words.reference(each, record.names)
        for name in ("performer", "owner")
        for each in words.each(source.get(name))
        if "reference" in each or "display" in each
    ]
    when = words.choice(source, "occurrence") or words.choice(source, "scheduled")
    progress = [note.get("text", "") for note in activity.get("progress", ())]
    line = words.listing(
        (
            activity_title(record.state, activity, record.names),
            activity_status(record.state, activity),
            when,
            f"by {words.listing(performers)}" if performers else "",
            str(source.get("patientInstruction", "")),
            f"progress: {words.listing(progress)}" if progress else "",
        )
    )
    return reason, line


def resource_line(resource: Resource) -> str:
    """A resource of the record: its title, value, dosage, clinical status and date."""
    when = next(
        (
            words.day(resource[name])
            for name in ("effectiveDateTime", "authoredOn", "recordedDate", "dateTime", "issued")
            if name in resource
        ),
        "",
    )
    dosage = words.listing(
        each.get("text", "")
        for each in (*resource.get("dosageInstruction", ()), *resource.get("dosage", ()))
        if isinstance(each, dict)
    )
    return words.listing(
        (
            words.title(resource) or words.concept(resource.get("category")) or "without a name",
            words.choice(resource, "value"),
            dosage,
            words.concept(resource.get("clinicalStatus")),
            when,
        )
    )


def encounter_line(encounter: Resource) -> str:
    """A stay: class, type, provider, period, reason and status."""
    return words.listing(
        (
            words.concept(encounter.get("class")),
            words.concept(encounter.get("type")),
            str(encounter.get("serviceProvider", {}).get("display", "")),
            words.period(encounter.get("period")),
            words.concept(encounter.get("reasonCode")),
            str(encounter.get("status", "")),
        )
    )
