"""The roles and organizations that are primary care providers, and their Endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from app.attribution import claims
from app.attribution.claims import relative, terms_for
from app.attribution.practices import is_active, named_by, rows_by_reference, usable_endpoints
from app.fhir import json as fhir_json
from app.fhir.codes import GROUP_KIND, PCP_PANEL, PCP_ROLES, SNOMED
from app.fhir.json import Resource
from app.records.reader import Reader
from app.search import group_members
from app.search.terms import EVERY

_TAXONOMY = "http://nucc.org/provider-taxonomy"
# Roles and specialties of primary care: SNOMED CT's PCP, general and family practice; NUCC's family medicine, general
# practice and primary care nurse practitioner.
_PRIMARY = frozenset(
    {
        f"{code}={value}"
        for code in ("role", "specialty")
        for value in (
            *(f"{SNOMED}|{each}" for each in (*PCP_ROLES, "394814009", "419772000")),
            *(f"{_TAXONOMY}|{each}" for each in ("207Q00000X", "208D00000X", "363LP2300X")),
        )
    }
)
# How many roles of one organization, and care teams of one member, are read.
_MOST = 1000

PanelRow = Any


async def owners(
    store: Reader, resource_type: str, resource_id: str, versions: Sequence[Resource], base_url: str
) -> list[str]:
    """The roles and organizations whose Endpoints or patients a change may concern."""
    place = f"{resource_type}/{resource_id}"
    if resource_type == "Endpoint":
        named = [
            f"{kind}/{row['_id']}"
            for kind in ("PractitionerRole", "Organization")
            for row in await _referring(store, kind, "endpoint", place, base_url)
        ]
    elif resource_type in ("PractitionerRole", "Organization"):
        named = [place]
    else:
        named = [each for version in versions for each in _named(version, base_url)]
    found = dict.fromkeys(named)
    for name in named:
        if name.startswith("Practitioner/"):
            rows = await _referring(store, "PractitionerRole", "practitioner", name, base_url)
            found.update(dict.fromkeys(f"PractitionerRole/{row['_id']}" for row in rows))
        elif name.startswith("Organization/") and resource_type != "Patient":
            rows = await _referring(store, "PractitionerRole", "organization", name, base_url)
            found.update(dict.fromkeys(f"PractitionerRole/{row['_id']}" for row in rows))
    roles = [each for each in found if each.startswith("PractitionerRole/")]
    for row in (await rows_by_reference(store, "PractitionerRole", roles)).values():
        found.update(dict.fromkeys(named_by("PractitionerRole", row, "organization", base_url)))
    for version in versions:
        if version["resourceType"] == "PractitionerRole":
            written = version.get("organization", {}).get("reference")
            found.update(dict.fromkeys(filter(None, [relative(written, base_url)])))
    return [each for each in found if not each.startswith("Practitioner/")]


def _named(resource: Resource, base_url: str) -> Iterator[str]:
    """The providers that a Patient, CareTeam or Group names as PCP, at any time."""
    match resource["resourceType"]:
        case "Patient":
            yield from (claim.reference for claim in claims.of_patient(resource, base_url))
        case "CareTeam":
            for claim in claims.of_care_team(resource, base_url):
                yield from filter(None, (claim.reference, claim.behalf))
        case "Group":
            fields: dict[str, Any] = {}
            group_members.add_roster(resource, fields)
            for written, _, _ in fields["roster"]["pcp"]:
                yield from filter(None, [relative(written, base_url)])


async def endpoints_to_tell(
    store: Reader, owner: str, base_url: str, at: datetime
) -> list[Resource]:
    """The active FHIR Endpoints of a primary care role or organization; none for one that is not active or no PCP.

    Those that a role shares with its organization are the organization's, so that nothing is sent twice.
    """
    kind = owner.partition("/")[0]
    row = (await rows_by_reference(store, kind, [owner])).get(owner)
    if row is None or not is_active(row, at) or not await is_primary(store, owner, row, base_url):
        return []
    names = named_by(kind, row, "endpoint", base_url)
    if kind == "PractitionerRole":
        above = named_by(kind, row, "organization", base_url)
        for practice in (await rows_by_reference(store, "Organization", above)).values():
            shared = named_by("Organization", practice, "endpoint", base_url)
            names = [each for each in names if each not in shared]
    usable = await usable_endpoints(store, names)
    found = await store.read_many([("Endpoint", each.partition("/")[2]) for each in sorted(usable)])
    return [stored.resource() for stored in found.values()]


async def is_primary(store: Reader, owner: str, row: PanelRow, base_url: str) -> bool:
    """Whether a role or organization is one of primary care by its codes, or is named as some patient's PCP."""
    if not _PRIMARY.isdisjoint(row["terms"]):
        return True
    names = [owner]
    if owner.startswith("PractitionerRole/"):
        names += named_by("PractitionerRole", row, "practitioner", base_url)
    if await _is_named(store, names, base_url):
        return True
    if owner.startswith("Organization/"):
        for role in await _referring(store, "PractitionerRole", "organization", owner, base_url):
            if await is_primary(store, f"PractitionerRole/{role['_id']}", role, base_url):
                return True
    return False


async def _is_named(store: Reader, names: Sequence[str], base_url: str) -> bool:
    def asking(kind: str, code: str) -> dict[str, Any]:
        terms = [t for name in names for t in terms_for(kind, code, name, base_url)]
        return {"terms": {"$in": terms}}

    patients, teams = await asyncio.gather(
        store.find(
            "Patient", asking("Patient", "general-practitioner"), limit=1, projection={"_id": 1}
        ),
        store.find(
            "CareTeam", asking("CareTeam", "participant"), limit=_MOST, projection={"text": 1}
        ),
    )
    if patients or any(
        claim.reference in names or claim.behalf in names
        for team in teams
        for claim in claims.of_care_team(fhir_json.decode_stored(team["text"]), base_url)
    ):
        return True
    # Last, since no index leads from a PCP to its rosters: all of them are looked at.
    return bool(await store.find("Group", _naming(names, base_url), limit=1, projection={"_id": 1}))


def _naming(names: Sequence[str], base_url: str) -> dict[str, Any]:
    """The condition on rosters (`group_members.add_roster`) that name one of these as PCP."""
    written = [each for name in names for each in (name, f"{base_url}/{name}")]
    named = {"roster.pcp": {"$elemMatch": {"$elemMatch": {"$in": written}}}}
    return {"$and": [{"terms": f"code={GROUP_KIND}|{PCP_PANEL}"}, named]}


async def _referring(
    store: Reader, kind: str, code: str, reference: str, base_url: str
) -> list[PanelRow]:
    filter_ = {"terms": {"$in": list(terms_for(kind, code, reference, base_url))}}
    projection = {"terms": 1, "dates.date": 1}
    return await store.find(
        kind, {"$and": [filter_, {"terms": EVERY}]}, limit=_MOST, projection=projection
    )
