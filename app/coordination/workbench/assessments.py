"""Whose health risk assessment is late: by the Task of an enrolment in case management, else by the membership.

42 CFR 422.101(f)(1)(i) has a special needs plan assess each member within 90 days of enrolment and then every year.
"""

from __future__ import annotations

from datetime import date, timedelta

from app.automation.follow_up_tasks import OPEN
from app.automation.patient_resources import token
from app.coordination.workbench.member_findings import Asked, Finding
from app.fhir.codes import (
    ASSESSMENT_KIND,
    HEALTH_RISK_ASSESSMENT,
    TASK_BUSINESS_STATUS,
    TASK_CODE,
)
from app.fhir.instants import a_year_after, moved
from app.search.parameter import Filter
from app.search.terms import escape

_FIRST = timedelta(days=90)
_DUE = token("code", TASK_CODE, "hra-due")
_OVERDUE = token("business-status", TASK_BUSINESS_STATUS, "overdue")
_MADE = ["status=completed", "status=amended"]


async def hra_overdue(asked: Asked) -> list[Finding]:
    """The Task is overdue; of who has none, a year has passed since the last assessment, or 90 days without any."""
    found: list[Finding] = []
    kept: set[str] = set()
    fields = {
        "is_late": {"$in": [_OVERDUE, "$terms"]},
        "is_open": {"$gt": [{"$size": {"$setIntersection": ["$terms", _open()]}}, 0]},
        "due": "$dates.due",
    }
    async for patients, row in asked.population.records.read("Task", {"terms": _DUE}, fields):
        kept.update(patients)
        if row["is_late"] and row["is_open"]:
            due = row["due"][0]["hi"].date() if row.get("due") else None
            records = (f"Task/{row['_id']}",)
            found += [
                Finding(of, "The assessment of the enrolment is overdue", None, due, records)
                for of in patients
            ]
    return [*found, *await _by_membership(asked, kept)]


def _open() -> list[str]:
    return [f"status={each}" for each in sorted(OPEN)]


async def _by_membership(asked: Asked, kept: set[str]) -> list[Finding]:
    """The members without such a Task whose membership is known to have begun at a time."""
    waiting = {
        patient: since.date()
        for patient, since in asked.population.since.items()
        if since is not None and patient not in kept
    }
    if not waiting:
        return []
    made = await _last_assessments(asked)
    today = asked.period.today
    found = []
    for patient, since in waiting.items():
        last = made.get(patient)
        due = moved(since, _FIRST) if last is None else a_year_after(last[0])
        if due < today:
            reason = (
                "There is no assessment"
                if last is None
                else "The last assessment is over a year old"
            )
            records = () if last is None else (last[1],)
            found.append(Finding(patient, reason, since if last is None else last[0], due, records))
    return found


async def _last_assessments(asked: Asked) -> dict[str, tuple[date, str]]:
    """The day of each member's last completed assessment, and which it is."""
    forms = [each.strip() for each in asked.context.settings.hra_questionnaires.split(",")]
    kinds = [f"questionnaire={escape(each)}" for each in forms if each]
    kinds.append(token("_tag", ASSESSMENT_KIND, HEALTH_RISK_ASSESSMENT))
    where: Filter = {"$and": [{"terms": {"$in": kinds}}, {"terms": {"$in": _MADE}}]}
    made: dict[str, tuple[date, str]] = {}
    fields = {"day": {"$ifNull": [{"$first": "$dates.authored.lo"}, "$at"]}}
    async for patients, row in asked.population.records.read(
        "QuestionnaireResponse", where, fields
    ):
        own = (row["day"].date(), f"QuestionnaireResponse/{row['_id']}")
        for patient in patients:
            made[patient] = max(own, made.get(patient, own))
    return made
