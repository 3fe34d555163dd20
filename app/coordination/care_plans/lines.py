"""What a document says of people and of the plan itself, one line for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from app.coordination.care_plans import wording as words
from app.coordination.care_plans.activities import activity_title, goal_title, target
from app.coordination.care_plans.members import (
    Participant,
    contact_words,
    member_name,
    point_of_contact,
    teams,
)
from app.coordination.care_plans.phrases import Phrases
from app.coordination.care_plans.record import PlanRecord
from app.coordination.care_plans.wording import key_of
from app.fhir.codes import POINT_OF_CONTACT
from app.fhir.json import Resource


def joined(parts: Iterable[str]) -> str:
    """The parts of a line that are not empty."""
    return "; ".join(part for part in parts if part)


def patient_line(patient: Resource | None, say: Phrases) -> str:
    """Name, birth date, identifiers and telephone."""
    if patient is None:
        return ""
    born = patient.get("birthDate", "")
    numbers = [i["value"] for i in patient.get("identifier", ()) if "value" in i]
    return words.listing(
        (
            words.title(patient) or say("name not known"),
            say("born {day}", day=born) if born else "",
            say("identifiers {numbers}", numbers=" ".join(numbers[:3])) if numbers else "",
            words.phone(patient),
        )
    )


def language_line(patient: Resource | None, say: Phrases) -> str:
    """The languages that a member speaks, and that an interpreter is needed."""
    told = [
        joined(
            (
                words.concept(each.get("language")),
                say("preferred") if each.get("preferred") else "",
            )
        )
        for each in (patient or {}).get("communication", ())
    ]
    needs = any(
        str(each.get("url", "")).endswith("patient-interpreterRequired")
        and each.get("valueBoolean") is True
        for each in (patient or {}).get("extension", ())
    )
    return words.listing((*told, say("an interpreter is needed") if needs else ""))


def contact_line(record: PlanRecord, say: Phrases) -> str:
    """The single point of contact with a telephone number, else that none is stated."""
    participant = point_of_contact(record.state, record.today)
    if participant is None:
        return contact_words(record.state, record.names) or say("none stated")
    team_phone = words.listing(words.phone(team) for team in teams(record.state))
    number = _phone_of(participant, record) or team_phone or say("no telephone number known")
    return f"{_described(participant, record, say)}, {number}"


def member_line(participant: Participant, record: PlanRecord, say: Phrases) -> str:
    """A member of a care team: name, role, practice and telephone."""
    return words.listing((_described(participant, record, say), _phone_of(participant, record)))


def provider_line(reference: Mapping[str, Any], record: PlanRecord) -> str:
    """A provider whom a reference names: name, practice and telephone."""
    participant = {"member": reference}
    name, practice = member_name(participant, record.names), practice_of(participant, record)
    return words.listing(
        (name, "" if practice in name else practice, _phone_of(participant, record))
    )


def practice_of(participant: Participant, record: PlanRecord) -> str:
    """The organization that a member acts for: by the team, else by its role."""
    member = record.find(key_of(participant.get("member"))) or {}
    stated = participant.get("onBehalfOf") if "member" in participant else None
    return words.reference(stated or member.get("organization"), record.names)


def _described(participant: Participant, record: PlanRecord, say: Phrases) -> str:
    """A member's name with role, practice and the end of the period in brackets."""
    name, practice = member_name(participant, record.names), practice_of(participant, record)
    end = words.day(participant.get("period", {}).get("end"))
    details = words.listing(
        (
            _role(participant, say),
            "" if practice in name else practice,
            say("until {end}", end=end) if end else "",
        )
    )
    return f"{name} ({details})" if details else name


def _role(participant: Participant, say: Phrases) -> str:
    """The roles, without that of the point of contact, which the document says by itself."""
    roles = []
    for role in participant.get("role", ()):
        left = [c for c in role.get("coding", ()) if c.get("code") != POINT_OF_CONTACT]
        if "text" in role or left:
            roles.append({**role, "coding": left} if left else role)
    return say.concept(roles)


def _phone_of(participant: Participant, record: PlanRecord) -> str:
    """A member's telephone: its own, else of the practitioner or organization behind a role, else whom it acts for."""
    member = record.find(key_of(participant.get("member"))) or {}
    behind = [
        record.find(key_of(each))
        for each in (
            member.get("practitioner"),
            member.get("organization"),
            participant.get("onBehalfOf"),
        )
        if each
    ]
    return next((found for each in (member, *behind) if (found := words.phone(each))), "")


def goal_line(
    goal: Resource | None, reference: Mapping[str, Any], record: PlanRecord, say: Phrases
) -> str:
    """A goal: what is aimed at, how far it has come, by when, and whose wish it is."""
    name = goal_title(goal, reference, record.names)
    if goal is None or words.is_restricted(goal):
        return name
    expressed = words.reference(goal.get("expressedBy"), record.names)
    if key_of(goal.get("expressedBy")).startswith("Patient/"):
        expressed = say("the member")
    concerned = words.listing(
        words.reference(each, record.names) for each in goal.get("addresses", ())
    )
    targets = words.listing(target(each) for each in goal.get("target", ()))
    notes = words.listing(note.get("text", "") for note in goal.get("note", ()))
    return joined(
        (
            name,
            say.labelled("progress", progress_of(goal, say)),
            say.labelled("target", targets),
            say.concept(goal.get("priority")),
            say.labelled("wish of", expressed),
            say.labelled("for", concerned),
            say.labelled("note", notes),
        )
    )


def progress_of(goal: Resource, say: Phrases) -> str:
    """How far a goal has come: its achievement, else its status, and since when."""
    achieved = say.concept(goal.get("achievementStatus"))
    status = say.code(goal.get("lifecycleStatus"))
    since = words.day(goal.get("statusDate"))
    return words.listing((status, achieved, since))


def activity_line(activity: Mapping[str, Any], record: PlanRecord, say: Phrases) -> tuple[str, str]:
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
    notes = [note.get("text", "") for note in source.get("note", ())]
    name = activity_title(record.state, activity, record.names)
    line = joined(
        (
            say("NOT TO BE DONE: {name}", name=name) if source.get("doNotPerform") else name,
            say.code(source.get("status")),
            when,
            say.labelled("by", words.listing(performers)),
            str(source.get("patientInstruction", "")),
            words.listing(notes),
            say.labelled("progress", words.listing(progress)),
        )
    )
    return reason, line
