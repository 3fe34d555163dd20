"""The questions of `$worklist`: which members need something. Their rules in words are a code list of the server's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from app.coordination.workbench import assessments, hospital, unattended
from app.coordination.workbench.member_findings import Asked, Finding


@dataclass(frozen=True, slots=True)
class Question:
    """How a question is answered, and the types that the caller has to be allowed to search for that."""

    answer: Callable[[Asked], Awaitable[list[Finding]]]
    types: tuple[str, ...] = ()


# By the codes of profiles/terminology/worklist-question.json.
QUESTIONS: Mapping[str, Question] = {
    "no-pcp": Question(unattended.no_pcp),
    "no-care-plan": Question(unattended.no_care_plan, ("CarePlan",)),
    "care-plan-overdue": Question(unattended.care_plan_overdue, ("CarePlan",)),
    "hra-overdue": Question(assessments.hra_overdue, ("QuestionnaireResponse", "Task")),
    "no-follow-up": Question(hospital.no_follow_up, ("Encounter",)),
    "readmission": Question(hospital.readmissions, ("Encounter",)),
    "in-hospital": Question(hospital.in_hospital, ("Encounter",)),
    "opt-out": Question(unattended.opt_outs, ("Consent", "EpisodeOfCare")),
}


async def answer(question: str, asked: Asked) -> list[Finding]:
    """The findings of a question, in the order of the members."""
    found = await QUESTIONS[question].answer(asked)
    return sorted(found, key=lambda each: each.key)
