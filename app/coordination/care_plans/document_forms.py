"""All forms of a document as resources to be stored: the Bundle, the page, and the PDF where it can be made."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable

from app.coordination.care_plans import document, document_page, document_pdf
from app.coordination.care_plans.document import Edition, Form
from app.coordination.care_plans.document_sheet import Sheet
from app.coordination.care_plans.record import PlanRecord
from app.fhir import binary
from app.fhir.formats import FHIR_JSON
from app.fhir.json import Resource
from app.records.versions import ResourceVersion


async def resources(
    record: PlanRecord, sheet: Sheet, edition: Edition, id_of: Callable[[str], str]
) -> list[Resource]:
    """The forms, the Bundle first; `id_of` gives each of the others its id."""
    page = document_page.page(sheet).encode()
    found = [
        document.build(record, sheet, edition),
        _binary(document_page.CONTENT_TYPE, page, id_of("document-page"), record),
    ]
    if document_pdf.is_installed():
        paper = await document_pdf.pdf(sheet)
        found.append(_binary(document_pdf.CONTENT_TYPE, paper, id_of("document-pdf"), record))
    return found


def form_of(stored: ResourceVersion) -> Form:
    """A form as it is stored, which may have been done by another attempt."""
    if stored.type != binary.TYPE:
        return Form(FHIR_JSON, stored, stored.text.encode())
    content = binary.Content(stored.text)
    return Form(content.type, stored, b"".join(content.pieces(0, content.size)))


def _binary(content_type: str, content: bytes, own_id: str, record: PlanRecord) -> Resource:
    """A Binary with the plan's labels; that its DocumentReference attaches it says who may read it."""
    data = b64encode(content).decode()
    found = binary.resource_of(content_type, data, context=None, id_=own_id)
    labels = document.labels_of(record)
    return {**found, "meta": {"security": labels}} if labels else found
