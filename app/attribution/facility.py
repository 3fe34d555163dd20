"""The kind of facility that a stay is in: hospital, snf, psychiatric, cah or other.

A skilled nursing facility is one by any of these, in this order: the type of a Location or the taxonomy of the
organization or of a role, the Encounter's class NONAC, the operator's table of identifiers. The kind of another
facility is what its codes or the table say; where neither says anything, a hospital's classes make it a hospital.
Psychiatric and critical access hospitals are hospitals too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.records.reader import Reader
from app.search.parameters import reference
from app.search.search_parameters import parameters
from app.search.terms import EVERY
from app.settings import Settings

KINDS = ("hospital", "snf", "psychiatric", "cah", "other")
_ROLE_CODE = "http://terminology.hl7.org/CodeSystem/v3-RoleCode"
_TAXONOMY = "http://nucc.org/provider-taxonomy"
_ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
_CODES: Mapping[str, str] = {
    f"{_ROLE_CODE}|SNF": "snf",
    f"{_ROLE_CODE}|NCCF": "snf",
    f"{_TAXONOMY}|314000000X": "snf",
    f"{_TAXONOMY}|313M00000X": "snf",
    f"{_ROLE_CODE}|PSYCHF": "psychiatric",
    f"{_TAXONOMY}|283Q00000X": "psychiatric",
    f"{_TAXONOMY}|282NC0060X": "cah",
    f"{_ROLE_CODE}|HOSP": "hospital",
    f"{_ROLE_CODE}|GACH": "hospital",
    f"{_TAXONOMY}|282N00000X": "hospital",
}
# The search parameters of each type that have the codes of a kind.
_CODED = {
    "Location": ("type",),
    "Organization": ("type",),
    "PractitionerRole": ("role", "specialty"),
}
_HOSPITAL_CLASSES = ("EMER", "IMP", "ACUTE", "OBSENC", "SS")
# The search parameters of an Encounter that lead to its place, and those that lead from there to its owners.
_PLACES = {
    "Location": "location",
    "Organization": "service-provider",
    "PractitionerRole": "participant",
}
_OWNERS = {"Location": ("partof", "organization"), "Organization": ("partof",)}

Rows = list[tuple[str, Mapping[str, Any]]]


async def facility_types(store: Reader, fields: Mapping[str, Any], settings: Settings) -> set[str]:
    """The kinds of the facility of an Encounter, given its search fields: one, and `hospital` with those that are."""
    base_url = settings.base_url.rstrip("/")
    places = await _read(
        store,
        {
            kind: _targets("Encounter", fields, code, base_url, kind)
            for kind, code in _PLACES.items()
        },
    )
    table = _table(settings.facilities)
    kinds = _coded(places)
    listed = _listed(places, table)
    if not kinds and not listed and places:
        owners: dict[str, set[str]] = {}
        for kind, row in places:
            for code in _OWNERS.get(kind, ()):
                for target in ("Location", "Organization"):
                    found = _targets(kind, row, code, base_url, target)
                    owners.setdefault(target, set()).update(found)
        above = await _read(store, owners)
        kinds, listed = _coded(above), _listed(above, table)
    return _verdict(fields["terms"], kinds, listed)


def _verdict(terms: Iterable[str], kinds: set[str], listed: set[str]) -> set[str]:
    classes = set(terms)
    known = kinds | listed
    if "snf" in known or f"class={_ACT_CODE}|NONAC" in classes:
        return {"snf"}
    for kind in ("cah", "psychiatric"):
        if kind in known:
            return {kind, "hospital"}
    if known:
        return {"hospital"} if "hospital" in known else {"other"}
    is_hospital = any(f"class={_ACT_CODE}|{each}" in classes for each in _HOSPITAL_CLASSES)
    return {"hospital" if is_hospital else "other"}


def _coded(rows: Rows) -> set[str]:
    found = set()
    for kind, row in rows:
        for term in row["terms"]:
            code, _, value = term.partition("=")
            if code in _CODED[kind] and value in _CODES:
                known = _CODES[value]
                # A role's taxonomy is that of a workplace, which need not be where the patient lies.
                if kind != "PractitionerRole" or known == "snf":
                    found.add(known)
    return found


def _listed(rows: Rows, table: Mapping[str, str]) -> set[str]:
    if not table:
        return set()
    return {
        table[value]
        for _, row in rows
        for term in row["terms"]
        if term.startswith("identifier=") and (value := term.partition("=")[2]) in table
    }


async def _read(store: Reader, wanted: Mapping[str, Iterable[str]]) -> Rows:
    listed = [(kind, list(ids)) for kind, ids in wanted.items()]
    listed = [(kind, ids) for kind, ids in listed if ids]
    found = await asyncio.gather(
        *(
            store.find(
                kind, {"_id": {"$in": ids}, "terms": EVERY}, projection={"_id": 0, "terms": 1}
            )
            for kind, ids in listed
        )
    )
    return [(kind, row) for (kind, _), rows in zip(listed, found, strict=True) for row in rows]


def _targets(
    resource_type: str, row: Mapping[str, Any], code: str, base_url: str, target: str
) -> set[str]:
    """Ids of resources of a type that a parameter leads to."""
    parameter = parameters(resource_type)[code]
    found = reference.targets(parameter, row["terms"], base_url)
    return {id_ for type_, id_ in found if type_ == target}


@lru_cache(maxsize=8)
def _table(path: Path | None) -> Mapping[str, str]:
    """The operator's table: `system|value` or a bare value of an identifier (NPI, CCN) to a kind.

    Raises ValueError for one that cannot be read.
    """
    if path is None or path == Path():
        return {}
    table = json.loads(path.read_text())
    if not isinstance(table, dict) or not set(table.values()) <= set(KINDS):
        raise ValueError(f"{path}: expected an object of identifiers to {', '.join(KINDS)}")
    return table
