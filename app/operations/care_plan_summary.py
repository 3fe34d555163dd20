"""CarePlan/[id]/$summary: the current care plan as a document that can be read without FHIR software.

It is made anew each time, as a Bundle, a page or a PDF, in the member's language or another. With `persist` it is
stored as a Bundle besides; no notice is sent.
"""

from __future__ import annotations

import uuid

from app.context import Context
from app.coordination.care_plans import (
    document,
    document_page,
    document_pdf,
    document_summary,
    record as care_plan_record,
    state as care_plan_state,
)
from app.coordination.care_plans.document import Edition
from app.coordination.care_plans.document_sheet import Sheet
from app.coordination.care_plans.phrases import Phrases, languages, phrases_for
from app.errors import BadRequest, MethodNotAllowed, NotAcceptable
from app.fhir import json as fhir_json
from app.interactions import interactions
from app.interactions.result import InteractionResult, RawAnswer
from app.operations.arguments import Invocation

_PAGE, _PDF = "text/html", "application/pdf"
FORMS = {"html": _PAGE, "pdf": _PDF}


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """The document, in the form that is asked for.

    Raises NotFound or Gone, BadRequest for a language that there is no table of, MethodNotAllowed for `persist` without
    POST, NotAcceptable for a form that cannot be made.
    """
    persist = bool(invocation.one("persist"))
    if persist and not invocation.given.posted:
        raise MethodNotAllowed("persist stores the document; use POST", headers={"Allow": "POST"})
    if persist and invocation.given.form:
        raise NotAcceptable("persist stores a Bundle, and is answered by it")
    wanted = _wanted(invocation.one("language"))
    plan = await interactions.current(context, *invocation.instance)
    state = await care_plan_state.current(context, plan)
    now = context.services.clock.now()
    record = await care_plan_record.gather(context, state, now)
    sheet = document_summary.sheet(record, now, wanted or phrases_for(record.patient))
    if invocation.given.form == _PAGE:
        return _page(sheet)
    if invocation.given.form == _PDF:
        return await _pdf(sheet, plan.id)
    edition = Edition(str(uuid.uuid4()), now, context.base_url)
    bundle = document.build(record, sheet, edition)
    if persist:
        answer = await interactions.update(context, "Bundle", edition.id, bundle)
        return InteractionResult(201, answer.stored, location=True)
    return InteractionResult(200, text=fhir_json.encode(bundle))


def _wanted(language: str | None) -> Phrases | None:
    if language is None:
        return None
    if language not in languages():
        known = ", ".join(languages())
        raise BadRequest(f"Documents are written in {known}", code="value", expression="language")
    return languages()[language]


def _page(sheet: Sheet) -> RawAnswer:
    headers = {
        "Content-Type": document_page.CONTENT_TYPE,
        "Content-Security-Policy": document_page.policy(),
        "Content-Language": sheet.language,
    }
    return RawAnswer(200, headers=headers, content=document_page.page(sheet).encode())


async def _pdf(sheet: Sheet, plan_id: str) -> RawAnswer:
    headers = {
        "Content-Type": document_pdf.CONTENT_TYPE,
        "Content-Disposition": f'attachment; filename="care-plan-{plan_id}.pdf"',
        "Content-Language": sheet.language,
    }
    return RawAnswer(200, headers=headers, content=await document_pdf.pdf(sheet))
