"""Review Tasks and the proof of notices: they say that there is another record, and when, and are told as far as it is.

What was refused or labelled after they were written counts as well, since the record is judged as it is now.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from app.authorization import relations
from app.authorization.judged_rows import Judged, current_rows, last_row_of
from app.authorization.relations import DocumentRow
from app.fhir.codes import REVIEW_REASON
from app.search.terms import escape

if TYPE_CHECKING:
    from app.authorization.access import Access

_REVIEW = f"code={escape(REVIEW_REASON)}|"
# By which terms, or beginnings of terms, a record is known to be one that may tell of another.
TELLING: Mapping[str, str] = {"Communication": relations.PROOF, "Task": _REVIEW}


async def without_hidden(
    access: Access, resource_type: str, rows: Judged, keys: set[str]
) -> set[str]:
    """Those keys of rows that tell of nothing that may not be disclosed to the caller."""
    if resource_type not in TELLING or not keys:
        return keys
    about = {key: _records_of(access, resource_type, rows[key][0]) for key in keys}
    untold = await hidden(access, frozenset[str]().union(*about.values()))
    return {key for key, of in about.items() if untold.isdisjoint(of)}


def _records_of(access: Access, resource_type: str, row: DocumentRow) -> frozenset[str]:
    """The resources on this server that a row tells of: the focus of a review, the visit of a notice."""
    if resource_type == "Task" and any(term.startswith(_REVIEW) for term in row["terms"]):
        return frozenset(relations.named("Task", "focus", row, access.base_url))
    if relations.is_proof(resource_type, row):
        return frozenset(relations.named("Communication", "encounter", row, access.base_url))
    return frozenset()


async def hidden(access: Access, records: Collection[str]) -> set[str]:
    """Those (`Encounter/e1`) that consent or labels keep from the caller; what was never stored hides nothing."""
    ids: dict[str, set[str]] = {}
    for each in records:
        resource_type, _, id_ = each.partition("/")
        ids.setdefault(resource_type, set()).add(id_)
    found: set[str] = set()
    for resource_type, own in ids.items():
        rows = await _rows(access, resource_type, own)
        judged = {
            id_: (row, relations.traits_of(resource_type, row, access.base_url))
            for id_, row in rows.items()
        }
        told = await access.disclosure.of(access.caller, resource_type, judged)
        found |= {f"{resource_type}/{id_}" for id_ in judged.keys() - told}
    return found


async def _rows(access: Access, resource_type: str, ids: set[str]) -> Mapping[str, DocumentRow]:
    """The rows of these; of deleted ones those of before, since a deletion tells nobody more."""
    stored = await current_rows(access.store, resource_type, ids)
    return {
        id_: last
        for id_, row in stored.items()
        if (last := await last_row_of(access.store, resource_type, row)) is not None
    }
