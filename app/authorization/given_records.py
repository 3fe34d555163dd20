"""The records that executed Contracts give about patients (agreements.py), held against single rows."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.attribution.facility import facility_types
from app.authorization import told_about
from app.authorization.agreements import NURSING, Asset
from app.authorization.judged_rows import Judged, current_rows
from app.authorization.relations import DocumentRow
from app.authorization.relationships import OrganizationTree
from app.fhir.codes import INPATIENT
from app.search.parameters.reference import targets
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
    """Those of a type that a Contract gives about each of their patients, unless their visit is hidden."""
    about = {each for _, of in rows.values() for each in of.patients}
    assets = await access.relationships.agreed(about, family)
    of_type = {
        key: [
            {asset for asset in assets[each] if asset.type == resource_type} for each in of.patients
        ]
        for key, (_, of) in rows.items()
    }
    visits = {
        key: _Visits.of(resource_type, row, access.base_url) for key, (row, _) in rows.items()
    }
    are_given = await asyncio.gather(
        *(_is_given(access, resource_type, rows[key][0], of_type[key], visits[key]) for key in rows)
    )
    found = [key for key, is_given in zip(rows, are_given, strict=True) if is_given]
    named = {f"Encounter/{id_}" for key in found for id_ in visits[key].ids}
    hidden = await told_about.hidden(access, named) if named else set[str]()
    return {
        key: rows[key]
        for key in found
        if hidden.isdisjoint(f"Encounter/{id_}" for id_ in visits[key].ids)
    }


@dataclass(frozen=True, slots=True)
class _Visits:
    """The visits that a record belongs to: the ids of Encounters here, and whether it names others besides."""

    ids: frozenset[str]
    has_others: bool

    @classmethod
    def of(cls, resource_type: str, row: DocumentRow, base_url: str) -> _Visits:
        """A visit may be named by the URL of another server, by an identifier, contained, or in words alone."""
        ids: set[str] = set()
        has_others = False
        for code in _OF_VISIT:
            parameter = standard(resource_type).get(code)
            if parameter is None:
                continue
            keys = {parameter.key, parameter.shared or parameter.key}
            literal = tuple(f"{key}=" for key in keys)
            logical = tuple(f"{key}:identifier=" for key in keys)
            here: set[str] = set()
            identified = False
            for term in row.get("terms", ()):
                if term.startswith(literal):
                    found = list(targets(parameter, (term,), base_url))
                    here |= {id_ for kind, id_ in found if kind == "Encounter"}
                    has_others |= not any(kind == "Encounter" for kind, _ in found)
                identified |= term.startswith(logical)
            # One reference may bear both; of several, the identifier may be that of another one.
            is_list = any(path.is_list for path in parameter.paths)
            has_others |= identified and (is_list or not here)
            ids |= here
        return cls(frozenset(ids), has_others)


async def _is_given(
    access: Access,
    resource_type: str,
    row: DocumentRow,
    given_: Sequence[Collection[Asset]],
    visits: _Visits,
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
    if not limits:
        return True
    if visits.has_others:
        return False  # nobody knows of which class they are
    # Without any it belongs to no visit.
    stored = await current_rows(access.store, "Encounter", visits.ids) if visits.ids else {}
    return len(stored) == len(visits.ids) and all(
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
