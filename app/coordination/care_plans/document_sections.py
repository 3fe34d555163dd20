"""The sections of a care plan's document, in the order in which a reader needs them.

What nothing is recorded of is never denied: a section says that there is nothing to show, which proves nothing, or that
nobody looked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.coordination.care_plans import (
    clinical_lines as clinical,
    lines as lines_of,
    wording as words,
)
from app.coordination.care_plans.activities import activity_title, goal_title
from app.coordination.care_plans.changes import tier
from app.coordination.care_plans.document_sheet import (
    NOT_ASKED,
    UNAVAILABLE,
    WITHHELD,
    Block,
    Part,
)
from app.coordination.care_plans.members import members, point_of_contact
from app.coordination.care_plans.phrases import Phrases
from app.coordination.care_plans.record import PlanRecord
from app.coordination.care_plans.selection import MOST, Section
from app.coordination.care_plans.wording import codes, key_of
from app.fhir.codes import CARE_PLAN_SECTION, CHANGES_SINCE
from app.fhir.json import Resource

LOINC = "http://loinc.org"
# A question of an assessment that asks what matters, in the languages that are met.
_MATTERS = ("matters", "importa")

LineOf = Callable[[Resource, PlanRecord, Phrases], str]


@dataclass(frozen=True, slots=True)
class Content:
    """What a section tells: its blocks, the resources behind them, and the parts of the record that they are from.

    Without `sources` it is from the plan alone.
    """

    blocks: Sequence[Block]
    keys: Sequence[str] = ()
    sources: Sequence[Section] = ()


def parts_of(record: PlanRecord, changes: Sequence[str] | None, say: Phrases) -> list[Part]:
    """All sections in their order; with `changes` the first one lists them."""
    tabled: Sequence[tuple[str, Mapping[str, str], Content]] = (
        ("Point of contact", _own("point-of-contact"), _contact(record, say)),
        ("What matters to the member", _own("what-matters"), _wishes(record, say)),
        ("Problems", _loinc("11450-4"), _problems(record, say)),
        ("Health concerns", _loinc("75310-3"), _concerns(record, say)),
        ("Goals", _loinc("61146-7"), _goals(record, say)),
        ("Interventions", _loinc("62387-6"), _interventions(record, say)),
        ("Barriers", _own("barriers"), _listed(record, "barriers", say)),
        ("Health risk assessment", _own("assessment"), _assessments(record, say)),
        ("Risk", _own("risk"), _risk(record, say)),
        ("Medications", _loinc("10160-0"), _listed(record, "medications", say)),
        ("Allergies", _loinc("48765-2"), _listed(record, "allergies", say)),
        ("Advance directives", _loinc("42348-3"), _listed(record, "directives", say)),
        (
            "Hospital stays of the last twelve months",
            _loinc("46240-8"),
            _listed(record, "encounters", say),
        ),
        ("Social needs", _own("social-needs"), _listed(record, "social-needs", say)),
        ("Care team", _loinc("85847-2"), _care_team(record, say)),
        ("Coverage", _loinc("48768-6"), _listed(record, "coverages", say)),
        ("Evaluations and outcomes", _loinc("11383-7"), _outcomes(record, say)),
        ("Functional status", _loinc("47420-5"), _listed(record, "functional", say)),
        ("Social history", _loinc("29762-2"), _listed(record, "social", say)),
    )
    found = [_part(say(title), code, content, record, say) for title, code, content in tabled]
    return found if changes is None else [_changes(changes, say), *found]


def _own(code: str) -> Mapping[str, str]:
    return {"system": CARE_PLAN_SECTION, "code": code}


def _loinc(code: str) -> Mapping[str, str]:
    return {"system": LOINC, "code": code}


def _changes(lines: Sequence[str], say: Phrases) -> Part:
    remark = "" if lines else say("Nothing has changed.")
    block = Block(lines=lines, remark=remark)
    return Part(say("Changes since the last copy"), _own(CHANGES_SINCE), [block])


# What a section says of what it does not show


def _part(
    title: str, code: Mapping[str, str], content: Content, record: PlanRecord, say: Phrases
) -> Part:
    """A section with remarks on what was left out and not looked for; without content it says why."""
    told = [each for each in content.blocks if each.says_something]
    remarks = unsaid(record, content.sources, say, is_empty=not told)
    blocks = [*told, *(Block(remark=each) for each in remarks)]
    return Part(title, code, blocks, content.keys, None if told else _empty_reason(content))


def _empty_reason(content: Content) -> str:
    if any(each.withheld for each in content.sources):
        return WITHHELD
    return NOT_ASKED if any(each.unlooked for each in content.sources) else UNAVAILABLE


def unsaid(
    record: PlanRecord, sources: Sequence[Section], say: Phrases, *, is_empty: bool
) -> list[str]:
    """What has to be said of what is not shown; of an empty section always something."""
    found = [remark for each in sources for remark in _remarks(each, record, say)]
    if is_empty and not sources:
        found.append(say("The plan says nothing about this."))
    elif is_empty and not found:
        found.append(
            say("Nothing is on record here to show, which does not prove that there is nothing.")
        )
    return list(dict.fromkeys(found))


def _remarks(section: Section, record: PlanRecord, say: Phrases) -> Iterable[str]:
    if section.withheld:
        yield say("Confidential entries that are left out: {number}.", number=section.withheld)
    if section.unlooked and record.patient is None:
        yield say("Nobody looked for this: the member's record could not be read.")
    elif section.unlooked:
        types = words.listing(section.unlooked)
        yield say("Nobody looked for this: who asked may not search {types}.", types=types)
    if section.cut:
        yield say("Only the newest {number} records were looked at.", number=MOST)


# From the patient's record

_LINES: Mapping[str, LineOf] = {
    "allergies": lambda each, _, say: clinical.allergy_line(each, say),
    "coverages": clinical.coverage_line,
    "directives": clinical.directive_line,
    "encounters": clinical.stay_line,
    "medications": clinical.medication_line,
    "problems": lambda each, _, say: clinical.condition_line(each, say, codes=True),
}


def lines_in(record: PlanRecord, name: str, say: Phrases) -> list[str]:
    """The resources of a part of the record, a line each."""
    line = _LINES.get(name, clinical.resource_line)
    return [line(each, record, say) for each in record.sections[name].resources]


def _listed(record: PlanRecord, name: str, say: Phrases) -> Content:
    section = record.sections[name]
    return Content([Block(lines=lines_in(record, name, say))], section.keys, [section])


def _problems(record: PlanRecord, say: Phrases) -> Content:
    """The problems with their codes, those first that the plan is about."""
    section = record.sections["problems"]
    addressed = record.state.referred("addresses")
    told = list(zip(section.keys, lines_in(record, "problems", say), strict=True))
    ours = [line for key, line in told if key in addressed]
    others = [line for key, line in told if key not in addressed]
    blocks = [
        Block(say("The plan is about"), lines=ours),
        Block(say("Other problems") if ours else "", lines=others),
    ]
    return Content(blocks, section.keys, [section])


def _concerns(record: PlanRecord, say: Phrases) -> Content:
    """The Conditions that the plan addresses, and the patient's health concerns."""
    section = record.sections["concerns"]
    addressed = record.state.referred("addresses")
    lines = [
        clinical.condition_line(condition, say)
        if (condition := record.find(key)) is not None
        else words.reference(reference, record.names)
        for key, reference in addressed.items()
    ]
    lines += [
        clinical.condition_line(each, say)
        for each in section.resources
        if f"Condition/{each['id']}" not in addressed
    ]
    keys = [*addressed, *section.keys, *_supporting(record, "Condition")]
    return Content([Block(lines=lines)], keys, [section])


def answers_that_matter(record: PlanRecord, say: Phrases) -> list[str]:
    """What the member has answered to questions of what matters."""
    return [
        answer
        for response in record.sections["assessments"].resources
        for question, answer in clinical.answer_pairs(response, say)
        if any(word in question.lower() for word in _MATTERS)
    ]


def wishes(record: PlanRecord) -> list[str]:
    """The goals that the member has set: what the member wants, in the member's words."""
    return [
        goal_title(goal, reference, record.names)
        for reference, goal in record.goals()
        if goal is not None and key_of(goal.get("expressedBy")).startswith("Patient/")
    ]


def _wishes(record: PlanRecord, say: Phrases) -> Content:
    section = record.sections["wishes"]
    notes = [str(note.get("text", "")) for note in record.state.plan.get("note", ())]
    blocks = [
        Block(say("In the member's own words"), lines=answers_that_matter(record, say)),
        Block(say("Goals that the member has set"), lines=wishes(record)),
        Block(say("Preferences"), lines=lines_in(record, "wishes", say)),
        Block(say("Notes of the plan"), lines=notes),
    ]
    return Content(blocks, section.keys, [section, record.sections["assessments"]])


def _assessments(record: PlanRecord, say: Phrases) -> Content:
    """Each assessment with all that was asked: a plain no may be what matters."""
    section = record.sections["assessments"]
    blocks = [
        Block(
            say("Answers of {day}", day=words.day(each.get("authored")) or say("an unknown day")),
            lines=[_answered(*pair) for pair in clinical.answer_pairs(each, say)],
        )
        for each in section.resources
    ]
    return Content(blocks, section.keys, [section])


def _answered(question: str, answer: str) -> str:
    return f"{question} {answer}" if question.endswith(("?", ":")) else f"{question}: {answer}"


def tier_of(record: PlanRecord, say: Phrases) -> str:
    """The risk tier with its place among the tiers; without a Flag what the plan's RiskAssessments say."""
    flags = record.state.flags
    stated = [code for flag in flags for code in codes(flag.get("code"))]
    name = words.listing(words.title(flag) for flag in flags) or tier(record.state)
    return clinical.tier_line(stated, name, say)


def _risk(record: PlanRecord, say: Phrases) -> Content:
    section = record.sections["risks"]
    lines = [line for each in section.resources for line in clinical.risk_lines(each, say)]
    blocks = [Block(facts=[(say("Risk tier"), tier_of(record, say))]), Block(lines=lines)]
    flags = [f"Flag/{flag['id']}" for flag in record.state.flags]
    keys = [*flags, *section.keys, *_supporting(record, "RiskAssessment")]
    return Content(blocks, keys, [section])


def _supporting(record: PlanRecord, resource_type: str) -> list[str]:
    referred = record.state.referred("supportingInfo")
    return [key for key in referred if key.startswith(f"{resource_type}/")]


# From the plan


def _contact(record: PlanRecord, say: Phrases) -> Content:
    return Content([Block(lines=[lines_of.contact_line(record, say)])])


def _care_team(record: PlanRecord, say: Phrases) -> Content:
    """The members of the care teams, the point of contact first, and whom the patient names as primary care."""
    first = point_of_contact(record.state, record.today)
    everybody = members(record.state, record.today)
    lines = []
    if first is not None:
        contact = lines_of.contact_line(record, say)
        lines.append(say.labelled("Point of contact", contact))
    lines += [lines_of.member_line(one, record, say) for one in everybody if one is not first]
    known = {key_of(one.get("member")) for one in everybody}
    lines += [
        say.labelled("Primary care", lines_of.provider_line(each, record))
        for each in (record.patient or {}).get("generalPractitioner", ())
        if key_of(each) not in known
    ]
    return Content([Block(lines=lines)], list(record.state.referred("careTeam")))


def goals_by_term(
    goals: Iterable[tuple[Mapping[str, Any], Resource | None]], record: PlanRecord, say: Phrases
) -> list[Block]:
    """Goals, short-term ones first; those that do not say are last."""
    groups: dict[str, list[str]] = {"short-term": [], "long-term": [], "": []}
    for reference, goal in goals:
        stated = codes((goal or {}).get("category"))
        term = next((each for each in groups if each in stated), "")
        groups[term].append(lines_of.goal_line(goal, reference, record, say))
    short, long, others = groups.values()
    return [
        Block(say("Short-term goals"), lines=short),
        Block(say("Long-term goals"), lines=long),
        Block(say("Goals without a term") if short or long else "", lines=others),
    ]


def _goals(record: PlanRecord, say: Phrases) -> Content:
    goals = record.goals()
    keys = [key_of(reference) for reference, _ in goals]
    return Content(goals_by_term(goals, record, say), keys)


def _interventions(record: PlanRecord, say: Phrases) -> Content:
    """The plan's own description, and the activities, grouped by the condition that each is for."""
    groups: dict[str, list[str]] = {}
    activities = [
        each
        for each in record.state.plan.get("activity", ())
        if each.get("detail", {}).get("status") != "entered-in-error"
    ]
    for activity in activities:
        reason, line = lines_of.activity_line(activity, record, say)
        groups.setdefault(reason, []).append(line)
    described = str(record.state.plan.get("description", ""))
    blocks = [Block(say("Description"), lines=[described])] if described else []
    blocks += [
        Block(reason or say("Without a stated condition"), lines=lines)
        for reason, lines in sorted(groups.items(), key=lambda group: not group[0])
    ]
    keys = [key_of(each["reference"]) for each in activities if "reference" in each]
    return Content(blocks, keys)


def _outcomes(record: PlanRecord, say: Phrases) -> Content:
    """The outcomes of activities and goals."""
    lines, keys = [], []
    for activity in record.state.plan.get("activity", ()):
        found = _results(activity, record, say)
        found.append(words.concept(activity.get("outcomeCodeableConcept")))
        name = activity_title(record.state, activity, record.names)
        lines.append(say.labelled(name, words.listing(found)))
        keys += [key_of(each) for each in activity.get("outcomeReference", ())]
    for reference, goal in record.goals():
        found = _results(goal or {}, record, say)
        lines.append(say.labelled(goal_title(goal, reference, record.names), words.listing(found)))
        keys += [key_of(each) for each in (goal or {}).get("outcomeReference", ())]
    return Content([Block(lines=[each for each in lines if each])], keys)


def _results(element: Mapping[str, Any], record: PlanRecord, say: Phrases) -> list[str]:
    return [
        clinical.resource_line(resource, record, say)
        if (resource := record.find(key_of(each))) is not None
        else words.reference(each, record.names)
        for each in element.get("outcomeReference", ())
    ]
