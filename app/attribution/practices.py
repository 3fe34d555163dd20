"""The practices behind references: PractitionerRole, Practitioner and Organization with their Endpoints for notices.

https://hl7.org/fhir/R4/practitionerrole.html, https://hl7.org/fhir/R4/endpoint.html

Only the search fields of these resources are read: they have every reference and code that is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from app.attribution.claims import Claim, Source, terms_for
from app.records.reader import Reader
from app.search.parameters import reference
from app.search.search_parameters import parameters
from app.search.terms import EVERY

# The connection types of Endpoints that notices can be sent to.
REST, MESSAGE = "hl7-fhir-rest", "hl7-fhir-msg"
_CONNECTION = "http://terminology.hl7.org/CodeSystem/endpoint-connection-type"
CONNECTION_TERMS = tuple(f"connection-type={_CONNECTION}|{code}" for code in (REST, MESSAGE))
_FIELDS = {"terms": 1, "dates.date": 1}
# More roles of one practitioner say no more than two do.
_MOST_ROLES = 100

DocumentFields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Provider:
    """One PCP of a patient; all but `source` and `since` are references (`Organization/o1`)."""

    practitioner: str | None
    practitioner_role: str | None
    organization: str | None
    source: Source
    since: datetime | None
    endpoints: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[str, ...]:
        """The references by which a filter may name this provider."""
        all_ = (self.practitioner, self.practitioner_role, self.organization)
        return tuple(each for each in all_ if each is not None)

    @property
    def practice(self) -> str:
        """The key by which two providers are one practice: their organization, else the role or practitioner."""
        return self.organization or self.practitioner_role or self.practitioner or ""


@dataclass(frozen=True, slots=True)
class Resolved:
    """The providers behind claims; `ended` where a role has ended, `ambiguous` where one of several was meant."""

    providers: tuple[Provider, ...]
    ended: bool
    ambiguous: bool


@dataclass(frozen=True, slots=True)
class Roles:
    """The PractitionerRoles that claims may mean: by their own reference, and all of each practitioner."""

    by_id: Mapping[str, DocumentFields]
    by_practitioner: Mapping[str, Sequence[DocumentFields]]


async def resolve(
    store: Reader, claims: Sequence[Claim], source: Source, at: datetime, base_url: str
) -> Resolved:
    """The providers that claims name; without roles that are not active at the moment, with those not stored."""
    names = [claim.reference for claim in claims]
    return resolve_by(await read_roles(store, names, base_url), claims, source, at, base_url)


async def read_roles(store: Reader, references: Iterable[str], base_url: str) -> Roles:
    """The roles behind references to providers, in two concurrent reads."""
    names = list(dict.fromkeys(references))
    practitioners = [n for n in names if n.startswith("Practitioner/")]
    by_id, rows = await asyncio.gather(
        rows_by_reference(
            store, "PractitionerRole", [n for n in names if n.startswith("PractitionerRole/")]
        ),
        _roles_of(store, practitioners, base_url),
    )
    by_practitioner: dict[str, list[DocumentFields]] = {}
    for row in rows:
        for named in named_by("PractitionerRole", row, "practitioner", base_url):
            by_practitioner.setdefault(named, []).append(row)
    return Roles(by_id, by_practitioner)


def resolve_by(
    roles: Roles, claims: Sequence[Claim], source: Source, at: datetime, base_url: str
) -> Resolved:
    """`resolve` from roles that have been read."""
    found: dict[Provider, None] = {}
    ended = ambiguous = False
    for claim in claims:
        kind = claim.reference.partition("/")[0]
        role: DocumentFields | None = None
        if kind == "PractitionerRole":
            role = roles.by_id.get(claim.reference)
            if role is not None and not is_active(role, at):
                ended = True
                continue
        elif kind == "Practitioner":
            candidates = [
                each
                for each in roles.by_practitioner.get(claim.reference, ())
                if is_active(each, at) and claim.behalf in (None, _organization(each, base_url))
            ]
            role = candidates[0] if len(candidates) == 1 else None
            ambiguous = ambiguous or len(candidates) > 1
        found[_provider(claim, role, source, base_url)] = None
    return Resolved(tuple(found), ended, ambiguous)


async def with_endpoints(
    store: Reader, providers: Sequence[Provider], base_url: str
) -> list[Provider]:
    """The providers with the active Endpoints of their role, or where it has none, of their organization."""
    roles = [p.practitioner_role for p in providers if p.practitioner_role]
    organizations = [p.organization for p in providers if p.organization]
    owners = [
        *await asyncio.gather(
            rows_by_reference(store, "PractitionerRole", roles),
            rows_by_reference(store, "Organization", organizations),
        )
    ]
    named = {
        owner: named_by(owner.partition("/")[0], row, "endpoint", base_url)
        for rows in owners
        for owner, row in rows.items()
    }
    wanted = {each for endpoints in named.values() for each in endpoints}
    usable = await usable_endpoints(store, wanted)
    result = []
    for provider in providers:
        ways = (
            tuple(e for e in named.get(owner or "", ()) if e in usable)
            for owner in (provider.practitioner_role, provider.organization)
        )
        result.append(replace(provider, endpoints=next((way for way in ways if way), ())))
    return result


async def usable_endpoints(store: Reader, endpoints: Iterable[str]) -> set[str]:
    """The Endpoints that are active and have a FHIR connection type."""
    ids = [each.partition("/")[2] for each in endpoints]
    if not ids:
        return set()
    filter_ = {
        "$and": [
            {"_id": {"$in": ids}},
            {"terms": "status=active"},
            {"terms": {"$in": list(CONNECTION_TERMS)}},
        ]
    }
    rows = await store.find("Endpoint", filter_, projection={"_id": 1})
    return {f"Endpoint/{row['_id']}" for row in rows}


def _provider(claim: Claim, role: DocumentFields | None, source: Source, base_url: str) -> Provider:
    kind = claim.reference.partition("/")[0]
    practitioner = claim.reference if kind == "Practitioner" else None
    practitioner_role = claim.reference if kind == "PractitionerRole" else None
    organization = claim.reference if kind == "Organization" else claim.behalf
    if role is not None:
        practitioner_role = f"PractitionerRole/{role['_id']}"
        own = named_by("PractitionerRole", role, "practitioner", base_url)
        practitioner = practitioner or (own[0] if own else None)
        organization = organization or _organization(role, base_url)
    return Provider(practitioner, practitioner_role, organization, source, claim.span[0])


def _organization(role: DocumentFields, base_url: str) -> str | None:
    found = named_by("PractitionerRole", role, "organization", base_url)
    return found[0] if found else None


def is_active(role: DocumentFields, at: datetime) -> bool:
    """Whether a role or organization is not marked inactive, and is within its period where it has one."""
    if "active=false" in role["terms"]:
        return False
    periods = role.get("dates", {}).get("date", ())
    return not periods or any(each["lo"] <= at <= each["hi"] for each in periods)


def named_by(resource_type: str, row: DocumentFields, code: str, base_url: str) -> list[str]:
    """The references (`Organization/o1`) that a search parameter finds in a row's terms."""
    parameter = parameters(resource_type)[code]
    found = reference.targets(parameter, row["terms"], base_url)
    return [f"{type_}/{id_}" for type_, id_ in dict.fromkeys(found)]


async def rows_by_reference(
    store: Reader, resource_type: str, references: Sequence[str]
) -> dict[str, DocumentFields]:
    """The search fields of current resources by reference."""
    if not references:
        return {}
    ids = [each.partition("/")[2] for each in references]
    filter_ = {"_id": {"$in": ids}, "terms": EVERY}
    rows = await store.find(resource_type, filter_, projection=_FIELDS)
    return {f"{resource_type}/{row['_id']}": row for row in rows}


async def _roles_of(
    store: Reader, practitioners: Sequence[str], base_url: str
) -> list[DocumentFields]:
    if not practitioners:
        return []
    terms = [
        term
        for each in practitioners
        for term in terms_for("PractitionerRole", "practitioner", each, base_url)
    ]
    limit = _MOST_ROLES * len(practitioners)
    found: list[DocumentFields] = list(
        await store.find(
            "PractitionerRole", {"terms": {"$in": terms}}, limit=limit, projection=_FIELDS
        )
    )
    return found
