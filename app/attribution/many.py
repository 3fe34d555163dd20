"""`attribution` for many patients at once, in the same number of reads as for one.

Access rules need it for every page of a search, reactions for every batch of events; only `attribution` says which
problem a person should correct.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from app.attribution import claims as claims_
from app.attribution.attribution import (
    Listening,
    Rank,
    by_providers,
    of_rank,
    ranks,
    standing,
    told_of,
    unheard,
    with_staff,
)
from app.attribution.claims import ROSTERS, Claim, Source
from app.attribution.practices import Provider, Roles, read_roles, resolve_by
from app.fhir import json as fhir_json
from app.fhir.json import Resource
from app.records.reader import Reader
from app.runtime import pace
from app.runtime.mongo import Document
from app.search import group_members
from app.search.spans import Span
from app.search.terms import EVERY
from app.settings import Settings

# A chain of merges longer than this is a mistake.
_MOST_MERGES = 5


async def attributed(
    store: Reader, patients: Collection[str], organization: str, at: datetime, settings: Settings
) -> set[str]:
    """The patients (`Patient/p1`) whose primary care is an organization's (`Organization/o1`) at a moment."""
    found = await organizations(store, patients, at, settings)
    return {patient for patient, of in found.items() if organization in of}


async def organizations(
    store: Reader, patients: Collection[str], at: datetime, settings: Settings
) -> dict[str, frozenset[str]]:
    """The organizations that have the primary care of each patient at a moment; merges are followed."""
    found = await _primary_care(store, patients, at, settings)
    return {
        patient: frozenset(each.organization for each in care.providers if each.organization)
        for patient, care in found.items()
    }


async def providers(
    store: Reader, patients: Collection[str], at: datetime, settings: Settings
) -> dict[str, tuple[Provider, ...]]:
    """The providers who receive notices about each patient at a moment, latest first; merges are followed."""
    found = await _primary_care(store, patients, at, settings)
    return {patient: care.providers for patient, care in found.items()}


async def in_order(
    store: Reader,
    patients: Collection[str],
    at: datetime,
    settings: Settings,
    listening: Listening,
) -> list[str]:
    """The patients for whom `attribution.primary_care` finds no problem."""
    found = await _primary_care(store, patients, at, settings)
    return [
        patient
        for patient, each in found.items()
        if each.providers and each.is_clear and not unheard(each.providers, listening)
    ]


async def _primary_care(
    store: Reader, patients: Collection[str], at: datetime, settings: Settings
) -> dict[str, _PrimaryCare]:
    base_url = settings.base_url.rstrip("/")
    wanted = list(dict.fromkeys(patients))
    records = await _read(store, wanted, base_url)
    survivors = _followed(records, wanted)
    known = await claims_.rosters(
        store, {group for record in records.values() for group in record.memberships}
    )
    claims: dict[str, Mapping[Source, Sequence[Claim]]] = {
        patient: {
            "care-team": record.teams,
            "general-practitioner": record.own,
            "group": claims_.by_rosters(known, record.memberships, base_url),
        }
        for patient, record in records.items()
    }
    names = [claim.reference for own in claims.values() for each in own.values() for claim in each]
    roles = await read_roles(store, names, base_url) if names else Roles({}, {})
    order = ranks(settings)
    found = {}
    for patient in wanted:
        own = claims[survivors[patient]]
        providers, several = _judged(order, own, roles, at, base_url)
        is_itself = records[patient].known and survivors[patient] == patient
        found[patient] = _PrimaryCare(providers, is_itself and not several)
    return found


@dataclass(frozen=True, slots=True)
class _PrimaryCare:
    """The providers who receive notices; `is_clear` where the patient is known, not merged, and nobody need choose."""

    providers: tuple[Provider, ...]
    is_clear: bool


@dataclass(slots=True)
class _Record:
    """One patient's claims by source; `survivor` is the patient that it was merged into."""

    known: bool = False
    survivor: str | None = None
    own: list[Claim] = field(default_factory=list)
    teams: list[Claim] = field(default_factory=list)
    memberships: dict[str, list[Span]] = field(default_factory=dict)


def _judged(
    order: Sequence[Rank],
    claims: Mapping[Source, Sequence[Claim]],
    roles: Roles,
    at: datetime,
    base_url: str,
) -> tuple[tuple[Provider, ...], bool]:
    """The providers who receive notices, and whether a person should choose among them."""
    ended: set[str] = set()
    for rank in order:
        current = standing(of_rank(rank, claims[rank.source]), ended, at)
        if current:
            resolved = resolve_by(roles, current, rank.source, at, base_url)
            if resolved.providers:
                providers, several = told_of(resolved)
                if not rank.is_providers:
                    said = standing(by_providers(order, claims), ended, at)
                    staff = resolve_by(roles, said, "care-team", at, base_url)
                    providers = with_staff(providers, staff)
                return providers, several
    return (), False


async def _read(store: Reader, patients: Sequence[str], base_url: str) -> dict[str, _Record]:
    """The records of patients, and of those that they were merged into."""
    records: dict[str, _Record] = {}
    unread = list(patients)
    for _ in range(_MOST_MERGES + 1):
        if not unread:
            break
        records.update(await _round(store, unread, base_url))
        named = (records[patient].survivor for patient in unread)
        unread = [each for each in dict.fromkeys(named) if each and each not in records]
    return records


async def _round(store: Reader, patients: Sequence[str], base_url: str) -> dict[str, _Record]:
    records = {patient: _Record() for patient in patients}
    members = {
        term: patient
        for patient in patients
        for term in claims_.terms_for("Group", "member", patient, base_url)
    }
    found, teams, rows = await store.find_together(
        (
            (
                "Patient",
                {"_id": {"$in": [each[8:] for each in patients]}, "terms": EVERY},
                {"text": 1},
            ),
            ("CareTeam", claims_.teams_of(patients, base_url), claims_.TEAM_FIELDS),
            (ROSTERS, {"_id.m": {"$in": list(members)}}, {"when": 1}),
        )
    )
    for row in found:
        resource = await _decoded(row)
        record = records[f"Patient/{row['_id']}"]
        record.known = True
        record.survivor = claims_.survivor_of(resource, base_url)
        record.own = list(claims_.of_patient(resource, base_url))
    for row in teams:
        record_of_team = records.get(_subject(await _decoded(row), base_url))
        if record_of_team is not None:
            record_of_team.teams += claims_.of_stored_team(row, base_url)
    by_member: dict[str, list[Document]] = {}
    for row in rows:
        by_member.setdefault(members[row["_id"]["m"]], []).append(row)
    for patient, own in by_member.items():
        records[patient].memberships = group_members.memberships_in(own)
    return records


async def _decoded(row: Document) -> Resource:
    text: str = row["text"]
    resource: Resource = await pace.aside(len(text), fhir_json.decode_in_parts, text)
    return resource


def _subject(team: Resource, base_url: str) -> str:
    reference: str = team.get("subject", {}).get("reference", "")
    near = reference.removeprefix(f"{base_url}/") if base_url else reference
    return near.partition("/_history/")[0]


def _followed(records: Mapping[str, _Record], patients: Sequence[str]) -> dict[str, str]:
    """The patient whose record counts for each patient: the one at the end of its merges."""
    found: dict[str, str] = {}
    for patient in patients:
        seen, at = {patient}, patient
        while (after := records[at].survivor) and after in records and after not in seen:
            seen.add(after)
            at = after
        found[patient] = at
    return found
