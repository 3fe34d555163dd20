"""What tells of another record is told as far as that one: Tasks of the server, letters, proof of notices, and what is
made of a care plan, its documents and the notices of its changes.

What was refused or labelled after they were written counts as well, and whose the record is, since it is judged as it
is now.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from app.authorization import relations
from app.authorization.judged_rows import Judged, current_rows, last_row_of
from app.authorization.relations import DocumentRow, Traits
from app.authorization.relationships import OrganizationTree
from app.fhir.codes import CARE_PLAN_CHANGE, CARE_PLAN_REVIEW, LETTER_KIND, REVIEW_REASON, TASK_CODE
from app.search.terms import escape

if TYPE_CHECKING:
    from app.authorization.access import Access

# Review Tasks, and those that the server keeps of an enrolment or a plan.
_TASKS = tuple(f"code={escape(each)}|" for each in (REVIEW_REASON, TASK_CODE))
_WRITTEN_OF = tuple(
    f"category={escape(each)}|" for each in (CARE_PLAN_CHANGE, CARE_PLAN_REVIEW, LETTER_KIND)
)
# By which terms, or beginnings of terms, a record is known to be one that may tell of another.
TELLING: Mapping[str, tuple[str, ...]] = {
    "Communication": (relations.PROOF, *_WRITTEN_OF),
    "DocumentReference": ("related=",),
    "Task": _TASKS,
}
# The search parameters that lead from these to what they tell of; of documents that is a care plan alone.
_LEADING: Mapping[str, Sequence[str]] = {
    "Communication": ("about", "based-on", "encounter"),
    "DocumentReference": ("related",),
    "Task": ("focus", "input"),
}
# What bears the labels of the record that it tells of, and nothing of that record besides.
_BEARING = frozenset({"Communication", "Task"})


async def disclosed(
    access: Access, resource_type: str, rows: Judged, own: set[str], family: OrganizationTree
) -> set[str]:
    """The keys of rows that may be disclosed to the caller, with what they tell of; `own` are patients of its."""
    told: dict[str, frozenset[str]] = {}
    if resource_type in TELLING:
        told = {key: _records_of(access, resource_type, row) for key, (row, _) in rows.items()}
    records = await _judged(access, frozenset[str]().union(*told.values()))
    if records:
        others = await _others(access, records, own, family)
        untold = await _untold(access, {k: each for k, each in records.items() if k not in others})
        rows = {
            key: (row, _without_borne(resource_type, of, [records[each][1] for each in about]))
            for key, (row, of) in rows.items()
            # What a client names of others tells it nothing, and hiding that would tell it that there is such a record.
            if (about := told[key] & records.keys()).isdisjoint(
                untold if of.custodian else untold | others
            )
        }
    return await access.disclosure.of(access.caller, resource_type, rows) if rows else set()


def _without_borne(resource_type: str, of: Traits, about: Iterable[Traits]) -> Traits:
    """The traits of what the server has written without the labels of the records that it tells of.

    These were asked when those records were judged: who has made one sees what the server writes of it.
    """
    if not of.labels or of.custodian is not None or resource_type not in _BEARING:
        return of
    return replace(of, labels=of.labels.difference(*(each.labels for each in about)))


def _records_of(access: Access, resource_type: str, row: DocumentRow) -> frozenset[str]:
    """The resources on this server that a row tells of.

    They are what a Task is about and counts, what a letter is about, a notice's visit or plan, a file's plan.
    """
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
    return await _untold(access, await _judged(access, records))


async def _untold(access: Access, records: Judged) -> set[str]:
    by_type: dict[str, Judged] = {}
    for reference, each in records.items():
        by_type.setdefault(reference.partition("/")[0], {})[reference] = each
    found: set[str] = set()
    for resource_type, own in by_type.items():
        found |= own.keys() - await access.disclosure.of(access.caller, resource_type, own)
    return found


async def _others(
    access: Access, records: Judged, own: set[str], family: OrganizationTree
) -> set[str]:
    """Those records that are about others than the organization's patients."""
    about = {patient for _, of in records.values() for patient in of.patients}
    ours = own | await access.own_patients(about - own, family)
    return {reference for reference, (_, of) in records.items() if not of.patients <= ours}


async def _judged(access: Access, records: Collection[str]) -> Judged:
    """The rows of these with their traits, by reference; of what was never stored none."""
    ids: dict[str, set[str]] = {}
    for each in records:
        resource_type, _, id_ = each.partition("/")
        ids.setdefault(resource_type, set()).add(id_)
    return {
        f"{resource_type}/{id_}": (row, relations.traits_of(resource_type, row, access.base_url))
        for resource_type, own in ids.items()
        for id_, row in (await _rows(access, resource_type, own)).items()
    }


async def _rows(access: Access, resource_type: str, ids: set[str]) -> Mapping[str, DocumentRow]:
    """The rows of these; of deleted ones those of before, since a deletion tells nobody more."""
    stored = await current_rows(access.store, resource_type, ids)
    return {
        id_: last
        for id_, row in stored.items()
        if (last := await last_row_of(access.store, resource_type, row)) is not None
    }
