"""What tells of another record is told as far as that one: Tasks of the server, proof of notices, and what is made of
a care plan, its documents and the notices of its changes.

What was refused or labelled after they were written counts as well, since the record is judged as it is now.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from app.authorization import relations
from app.authorization.judged_rows import Judged, current_rows, last_row_of
from app.authorization.relations import DocumentRow
from app.fhir.codes import CARE_PLAN_CHANGE, CARE_PLAN_REVIEW, REVIEW_REASON, TASK_CODE
from app.search.terms import escape

if TYPE_CHECKING:
    from app.authorization.access import Access

# Review Tasks, and those that the server keeps of an enrolment or a plan.
_TASKS = tuple(f"code={escape(each)}|" for each in (REVIEW_REASON, TASK_CODE))
_OF_PLAN = tuple(f"category={escape(each)}|" for each in (CARE_PLAN_CHANGE, CARE_PLAN_REVIEW))
# By which terms, or beginnings of terms, a record is known to be one that may tell of another.
TELLING: Mapping[str, tuple[str, ...]] = {
    "Communication": (relations.PROOF, *_OF_PLAN),
    "DocumentReference": ("related=",),
    "Task": _TASKS,
}
# The search parameters that lead from these to what they tell of; of documents that is a care plan alone.
_LEADING: Mapping[str, Sequence[str]] = {
    "Communication": ("encounter", "based-on"),
    "DocumentReference": ("related",),
    "Task": ("focus",),
}


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
    """The resources on this server that a row tells of: a review's focus, a notice's visit or plan, a file's plan."""
    if not any(term.startswith(TELLING[resource_type]) for term in row["terms"]):
        return frozenset()
    named = {
        reference
        for code in _LEADING[resource_type]
        for reference in relations.named(resource_type, code, row, access.base_url)
    }
    if resource_type == "DocumentReference":
        named = {each for each in named if each.startswith("CarePlan/")}
    return frozenset(named)


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
