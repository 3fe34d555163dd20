"""The records that executed Contracts give about patients (agreements.py), held against single rows."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from app.attribution.facility import facility_types
from app.authorization import relations
from app.authorization.agreements import NURSING, Asset
from app.authorization.judged_rows import Judged, current_rows
from app.authorization.relations import DocumentRow
from app.authorization.relationships import OrganizationTree
from app.fhir.codes import INPATIENT
from app.search.search_parameters import standard

if TYPE_CHECKING:
    from app.authorization.access import Access

# The classes of what is a stay, in a nursing facility as well.
_STAYS = frozenset(f"class={each}" for each in (*INPATIENT, "EMER", "OBSENC"))
# The search parameters that lead from a record to the visit that it belongs to.
_OF_VISIT = ("encounter", "context")


async def given(
    access: Access, resource_type: str, rows: Judged, family: OrganizationTree
) -> Judged:
    """Those of a type that a Contract gives about each of their patients."""
    about = {each for _, of in rows.values() for each in of.patients}
    assets = await access.relationships.agreed(about, family)
    of_type = {
        key: [
            {asset for asset in assets[each] if asset.type == resource_type} for each in of.patients
        ]
        for key, (_, of) in rows.items()
    }
    are_given = await asyncio.gather(
        *(_is_given(access, resource_type, rows[key][0], of_type[key]) for key in rows)
    )
    return {key: rows[key] for key, is_given in zip(rows, are_given, strict=True) if is_given}


async def _is_given(
    access: Access, resource_type: str, row: DocumentRow, given_: Sequence[Collection[Asset]]
) -> bool:
    """Whether a resource is among the assets of each of its patients."""
    if resource_type == "Encounter":
        return await _is_given_stay(access, row, given_)
    if not all(given_):
        return False
    limits = [
        {stay for asset in assets for stay in asset.stays}
        for assets in given_
        if all(asset.stays for asset in assets)
    ]
    visits = _visits_of(access, resource_type, row) if limits else set[str]()
    if not visits:
        return True  # it belongs to no visit
    stored = await current_rows(access.store, "Encounter", visits)
    return len(stored) == len(visits) and all(
        [await _is_given_stay(access, each, limits) for each in stored.values()]
    )


async def _is_given_stay(
    access: Access, row: DocumentRow, given_: Sequence[Collection[Asset]]
) -> bool:
    """Whether an Encounter is among the assets of each of its patients."""
    own = row.get("terms", ())
    terms = {"", *own}
    left = [assets for assets in given_ if terms.isdisjoint(each.term for each in assets)]
    if not left:
        return True
    if not all(NURSING in assets for assets in left) or terms.isdisjoint(_STAYS):
        return False
    return "snf" in await facility_types(access.store, row, access.settings)


def _visits_of(access: Access, resource_type: str, row: DocumentRow) -> set[str]:
    """The ids of the Encounters on this server that a record belongs to."""
    return {
        id_
        for code in _OF_VISIT
        if code in standard(resource_type)
        for kind, _, id_ in (
            named.partition("/")
            for named in relations.named(resource_type, code, row, access.base_url)
        )
        if kind == "Encounter"
    }
