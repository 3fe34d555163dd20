"""Findings as resources and as lines: a DetectedIssue for each, or a row that a spreadsheet opens.

https://hl7.org/fhir/R4/detectedissue.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from app.automation.reactions import stable_id
from app.context import Context
from app.coordination.workbench.member_findings import Finding
from app.coordination.workbench.people import NOBODY, Person, of_members
from app.coordination.workbench.population import providers
from app.fhir import code_lists
from app.fhir.codes import FINDING_DUE, FINDING_PRACTICE, WORKLIST_QUESTION
from app.fhir.instants import instant
from app.fhir.json import Resource
from app.proof.timeliness import names_of

COLUMNS = (
    *("question", "patient", "name", "birth_date", "identifier"),
    *("reason", "since", "due", "records", "practice", "practice_name"),
)


@dataclass(frozen=True, slots=True)
class Worklist:
    """Findings of one question with the names that go with them."""

    question: str
    at: datetime
    findings: Sequence[Finding]
    people: Mapping[str, Person]
    practices: Mapping[str, str]
    practice_names: Mapping[str, str]


async def worklist(context: Context, question: str, findings: Sequence[Finding]) -> Worklist:
    """Add the names of the members and of their practices."""
    patients = frozenset(each.patient for each in findings)
    people = await of_members(context, patients)
    responsible = {} if question == "no-pcp" else await providers(context, patients)
    practices = {patient: of[0].practice for patient, of in responsible.items() if of}
    names = await names_of(context, set(practices.values()))
    now = context.services.clock.now()
    return Worklist(question, now, findings, people, practices, names)


def detected_issues(found: Worklist) -> Iterator[Resource]:
    """A DetectedIssue for each finding; the same finding has the same id whenever it is asked for."""
    coding = {
        "system": WORKLIST_QUESTION,
        "code": found.question,
        "display": _displays()[found.question],
    }
    for each in found.findings:
        issue: Resource = {
            "resourceType": "DetectedIssue",
            "id": stable_id("finding", found.question, *each.key),
            "status": "final",
            "code": {"coding": [coding], "text": each.reason},
            "patient": _named(each.patient, found.people.get(each.patient, NOBODY).name),
            **_identified(each, found.at),
        }
        if extensions := list(_extensions(found, each)):
            issue["extension"] = extensions
        if each.records:
            issue["implicated"] = [{"reference": record} for record in each.records]
        yield issue


def _extensions(found: Worklist, finding: Finding) -> Iterator[Resource]:
    if finding.due is not None:
        yield {"url": FINDING_DUE, "valueDate": finding.due.isoformat()}
    practice = found.practices.get(finding.patient)
    if practice is not None:
        named = _named(practice, found.practice_names.get(practice))
        yield {"url": FINDING_PRACTICE, "valueReference": named}


def _named(reference: str, name: str | None) -> Resource:
    return {"reference": reference, "display": name} if name else {"reference": reference}


def _identified(finding: Finding, at: datetime) -> Resource:
    """Since when it is so; where that is not known, when it was asked."""
    if finding.since is None:
        return {"identifiedDateTime": instant(at)}
    return {"identifiedPeriod": {"start": finding.since.isoformat()}}


def lines(found: Worklist) -> Iterator[Sequence[object]]:
    """The cells of each finding, as COLUMNS has them."""
    for each in found.findings:
        person = found.people.get(each.patient, NOBODY)
        practice = found.practices.get(each.patient)
        yield (
            found.question,
            each.patient,
            person.name,
            person.birth_date,
            person.identifier,
            each.reason,
            each.since,
            each.due,
            " ".join(each.records),
            practice,
            found.practice_names.get(practice or ""),
        )


def _displays() -> Mapping[str, str]:
    concepts = code_lists.code_systems()[WORKLIST_QUESTION]["concept"]
    return {each["code"]: each["display"] for each in concepts}
