"""$worklist: the members of a plan, a practice or a Group who need something, and why.

http://carerelay.example/OperationDefinition/Patient-worklist; docs/workbench.md has the questions with their rules.
"""

from __future__ import annotations

from collections.abc import Sequence

from app.context import Context
from app.coordination.workbench import questions
from app.coordination.workbench.detected_issues import (
    COLUMNS,
    Worklist,
    detected_issues,
    lines,
    worklist,
)
from app.coordination.workbench.member_findings import Finding
from app.errors import BadRequest
from app.fhir import json as fhir_json, shape
from app.interactions.result import InteractionResult
from app.operations import member_questions
from app.operations.arguments import Invocation
from app.runtime import pace
from app.search.bundle_writer import found_entries, write_bundle, written_entries
from app.search.cursor import Position
from app.search.page_links import Walk

# With more findings an answer is long work.
_LONG = 1_000


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """A searchset of DetectedIssues with the Patients, page by page; all of them as CSV or NDJSON."""
    group = invocation.resource_id
    place = f"Group/{group}" if group else "Patient"
    given = [(name, str(v)) for name, values in invocation.arguments.items() for v in values]
    walk = await context.walk(f"{place}/$worklist", [*given, *invocation.given.shaping])
    once = dict(walk.asked)
    question = _question(context, once.get("question", ""))
    form = member_questions.form_of(once, invocation.given.form)
    findings = await questions.answer(question, await member_questions.read(context, group, once))
    if len(findings) > _LONG:
        pace.begin()
    if form == "bundle":
        return await _page(context, walk, question, findings)
    found = await worklist(context, question, findings)
    if form == "csv":
        return await member_questions.as_csv(question, COLUMNS, lines(found), len(findings))
    texts = [fhir_json.encode(each) async for each in pace.paced(detected_issues(found))]
    return member_questions.as_ndjson(question, texts)


def _question(context: Context, code: str) -> str:
    """The question. Raises BadRequest for one that there is none, Forbidden where the caller lacks a right for it."""
    known = questions.QUESTIONS.get(code)
    if known is None:
        raise BadRequest(
            f"question is one of {', '.join(questions.QUESTIONS)}",
            code="code-invalid",
            expression="question",
        )
    for resource_type in known.types:
        context.require(resource_type, "r", "s")
    return code


async def _page(
    context: Context, walk: Walk, question: str, findings: Sequence[Finding]
) -> InteractionResult:
    """The findings behind those of the page before."""
    count = _count(context, dict(walk.asked).get("_count"))
    rest = findings
    if walk.begin is not None:
        after = walk.begin.of(2)
        rest = [each for each in findings if each.key > (str(after[0]), str(after[1]))]
    shown = rest[:count]
    found = await worklist(context, question, shown)
    links = await walk.links(
        walk.asked, Position(shown[-1].key) if len(rest) > len(shown) else None
    )
    entries = [*_issues(found), *await _patients(context, shown)]
    head = {"type": "searchset", "total": len(findings)}
    text = write_bundle(head, links, entries)
    return InteractionResult(200, text=text, shape=shape.read(walk.asked))


def _count(context: Context, count: str | None) -> int:
    if count is None:
        return context.settings.default_count
    if int(count) < 1:
        raise BadRequest("_count must be a positive number", code="value", expression="_count")
    return min(int(count), context.settings.max_count)


def _issues(found: Worklist) -> list[str]:
    texts = (
        fhir_json.encode(
            {
                "fullUrl": f"urn:uuid:{issue['id']}",
                "resource": issue,
                "search": {"mode": "match"},
            }
        ).decode()
        for issue in detected_issues(found)
    )
    return written_entries(texts)


async def _patients(context: Context, findings: Sequence[Finding]) -> list[str]:
    ids = dict.fromkeys(each.patient.partition("/")[2] for each in findings)
    stored = await context.store.read_many([("Patient", each) for each in ids])
    return found_entries(
        context.base_url, [each for each in stored.values() if not each.deleted], "include"
    )
