"""The first page of a care plan's document: what a clinician needs before anything else.

It is cut to one page; what has no room there is counted, and told in the sections that follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from app.coordination.care_plans import (
    clinical_lines as clinical,
    document_sections as sections,
    lines as lines_of,
    wording as words,
)
from app.coordination.care_plans.activities import ENDED_GOAL
from app.coordination.care_plans.document_sheet import Block, Sheet, shown
from app.coordination.care_plans.phrases import Phrases
from app.coordination.care_plans.record import PlanRecord
from app.fhir.json import Resource

# The most lines of each kind, and the most characters of one, that leave everything on one page.
_FEW, _SOME, _MANY = 3, 6, 12
_LONGEST = 110


def sheet(
    record: PlanRecord, at: datetime, say: Phrases, changes: Sequence[str] | None = None
) -> Sheet:
    """The whole document; with `changes` its first section tells them."""
    plan = record.state.plan
    found = Sheet(
        language=say.language,
        title=title_of(plan, say),
        about=_patient(record, say),
        made=say("made on {day} (UTC)", day=f"{at:%Y-%m-%d %H:%M}"),
        summary_title=say("Summary for the clinician"),
        summary=_summary(record, say),
        parts=sections.parts_of(record, changes, say),
    )
    return shown(found)


def title_of(plan: Resource, say: Phrases) -> str:
    """The document's title: that it is a care plan, and which."""
    name = words.title(plan) or words.concept(plan.get("category"))
    return say.labelled("Care plan", name) or say("Care plan")


def _patient(record: PlanRecord, say: Phrases) -> str:
    told = lines_of.patient_line(record.patient, say)
    return told or words.reference(record.state.plan.get("subject"), {})


def _summary(record: PlanRecord, say: Phrases) -> list[Block]:
    plan = record.state.plan
    facts = (
        ("Point of contact", lines_of.contact_line(record, say)),
        ("Patient", _patient(record, say)),
        ("Language", lines_of.language_line(record.patient, say)),
        ("Primary care", _primary_care(record)),
        ("Care plan", words.title(plan) or words.concept(plan.get("category"))),
        ("Description", str(plan.get("description", "")) if "title" in plan else ""),
        ("Status", say.code(plan.get("status"))),
        ("Period", say.period(plan.get("period"))),
        ("Risk tier", sections.tier_of(record, say)),
        ("Author", words.reference(plan.get("author"), record.names)),
    )
    wanted = [*sections.answers_that_matter(record, say), *sections.wishes(record)]
    barriers = sections.lines_in(record, "barriers", say)
    needs = sections.lines_in(record, "social-needs", say)
    stays = sections.lines_in(record, "encounters", say)
    directives = sections.lines_in(record, "directives", say)
    return [
        Block(facts=[(say(label), _short(value)) for label, value in facts if value]),
        _cut(say("What matters to the member"), wanted, _FEW, say),
        _of_record("Allergies", "allergies", _allergies(record, say), _SOME, record, say),
        _of_record("Problems", "problems", _problems(record, say), _SOME, record, say),
        _cut(say("Goals"), _goals(record, say), _SOME, say),
        _of_record("Medications", "medications", _medications(record, say), _MANY, record, say),
        _cut(say("Barriers"), barriers, _FEW, say),
        _cut(say("Social needs"), needs, _FEW, say),
        _of_record("Last hospital stay", "encounters", stays[:1], _FEW, record, say),
        _of_record("Advance directives", "directives", directives, _FEW, record, say),
    ]


def _of_record(
    title: str, name: str, lines: Sequence[str], most: int, record: PlanRecord, say: Phrases
) -> Block:
    """A part of the record, with what has to be said of what is not shown of it."""
    block = _cut(say(title), lines, most, say)
    unsaid = sections.unsaid(record, [record.sections[name]], say, is_empty=not lines)
    return replace(block, remark=" ".join(each for each in (block.remark, *unsaid) if each))


def _cut(heading: str, lines: Sequence[str], most: int, say: Phrases) -> Block:
    """A block of as many lines as there is room for, and the number of the others."""
    left = len(lines) - most
    remark = say("and {number} more, told below", number=left) if left > 0 else ""
    return Block(heading, lines=[_short(each) for each in lines[:most]], remark=remark)


def _short(line: str) -> str:
    """What there is room for, in whole words: half a date is read as another day."""
    if len(line) <= _LONGEST:
        return line
    words_that_fit, space, _ = line[:_LONGEST].rpartition(" ")
    return f"{words_that_fit.rstrip(' ,;') if space else line[: _LONGEST - 1]}…"


def _primary_care(record: PlanRecord) -> str:
    named = (record.patient or {}).get("generalPractitioner", ())
    return words.listing(lines_of.provider_line(each, record) for each in named[:1])


def _allergies(record: PlanRecord, say: Phrases) -> list[str]:
    """The allergies, the dangerous ones first."""
    found = list(record.sections["allergies"].resources)
    found.sort(key=lambda each: each.get("criticality") != "high")
    return [clinical.allergy_line(each, say) for each in found]


def _problems(record: PlanRecord, say: Phrases) -> list[str]:
    """The problems, those first that the plan is about."""
    addressed = record.state.referred("addresses")
    found = list(record.sections["problems"].resources)
    found.sort(key=lambda each: f"Condition/{each['id']}" not in addressed)
    return [clinical.condition_line(each, say, codes=True) for each in found]


def _goals(record: PlanRecord, say: Phrases) -> list[str]:
    """The goals that are not ended, with their progress, short-term ones first."""
    current = [
        (reference, goal)
        for reference, goal in record.goals()
        if (goal or {}).get("lifecycleStatus") not in ENDED_GOAL
    ]
    blocks = sections.goals_by_term(current, record, say)
    return [line for block in blocks for line in block.lines]


def _medications(record: PlanRecord, say: Phrases) -> list[str]:
    """The names of the medications with their doses."""
    return [
        words.listing((clinical.medication_title(each, record, say), clinical.doses_of(each, say)))
        for each in record.sections["medications"].resources
    ]
