"""The patients for whom no PCP is known: the answer of `many` for 100,000 of them, without reading all their claims.

Most have a claim that holds whatever else is said: an undated one that names a practitioner, an organization or a role
in use, and none with a date that might take it back. MongoDB tells who these are; the others are looked at one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from app.attribution import claims, many
from app.attribution.practices import Provider, is_active
from app.fhir.codes import ATTRIBUTION_PERIOD, PCP_ROLES, SNOMED
from app.records.reader import Reader
from app.runtime.mongo import Document
from app.search import group_members
from app.search.computed_fields import (
    beginnings_of,
    has_term_with,
    named_in,
    occurrences,
    prefetched,
    says,
    terms_with,
)
from app.search.parameter import Filter
from app.search.search_parameters import parameters
from app.search.terms import EVERY, escape, successor
from app.settings import Settings

_BATCH = 4_000
_AT_ONCE, _SIDE_BY_SIDE = 500, 4
# Fewer patients are looked for by their ids; for more whole collections are gone through.
_FEW = 5_000
_ALWAYS_SOMEBODY = ("Practitioner", "Organization")
_ROLE = "PractitionerRole"
_PCP_ROLE = [f"role={escape(SNOMED)}|{code}" for code in sorted(PCP_ROLES)]


async def without_pcp(
    store: Reader, patients: Collection[str], at: datetime, settings: Settings
) -> set[str]:
    """Those of the patients (`Patient/p1`), who are known and not merged, for whom `many.providers` has nobody."""
    left = set(patients)
    if len(left) > _FEW:
        left = await _doubtful(store, left, at, settings)
    return {
        patient for patient, of in (await providers(store, left, at, settings)).items() if not of
    }


async def providers(
    store: Reader, patients: Collection[str], at: datetime, settings: Settings
) -> dict[str, tuple[Provider, ...]]:
    """`many.providers` of however many patients."""
    wanted = sorted(patients)
    room = asyncio.Semaphore(_SIDE_BY_SIDE)

    async def some(start: int) -> Mapping[str, tuple[Provider, ...]]:
        async with room:
            part = wanted[start : start + _AT_ONCE]
            return await many.providers(store, part, at, settings)

    found: dict[str, tuple[Provider, ...]] = {}
    for part in await asyncio.gather(*(some(at_) for at_ in range(0, len(wanted), _AT_ONCE))):
        found.update(part)
    return found


@dataclass(slots=True)
class _Claims:
    """The patients with a claim that holds by itself, and those with one that has to be read with its dates.

    `without` are those whose own record has no claim that holds: all of them, where records do not count.
    """

    without: set[str]
    sure: set[str] = field(default_factory=set)
    open: set[str] = field(default_factory=set)

    def add(self, patients: Collection[str], *, is_sure: bool, is_open: bool) -> None:
        if is_open:
            self.open.update(patients)
        elif is_sure:
            self.sure.update(patients)


async def _doubtful(
    store: Reader, patients: set[str], at: datetime, settings: Settings
) -> set[str]:
    """Those of the patients of whom it takes their claims to know whether they have a PCP."""
    base_url = settings.base_url.rstrip("/")
    roles = await _roles_in_use(store, at)
    read = {
        "care-team": _by_care_teams,
        "general-practitioner": _by_records,
        "group": _by_rosters,
    }
    found = _Claims(without=patients)
    sources = settings.attribution.split(",")
    await asyncio.gather(*(read[each](store, found, roles, at, base_url) for each in sources))
    return (found.without - found.sure) | (patients & found.open)


async def _roles_in_use(store: Reader, at: datetime) -> frozenset[str]:
    fields = {"terms": 1, "dates.date": 1}
    rows = await store.find(_ROLE, {"terms": EVERY}, projection=fields)
    return frozenset(f"{_ROLE}/{row['_id']}" for row in rows if is_active(row, at))


async def _by_records(
    store: Reader, found: _Claims, roles: frozenset[str], at: datetime, base_url: str
) -> None:
    """Patient.generalPractitioner; the extension that dates a reference may stand anywhere in it."""
    parameter = parameters("Patient")["general-practitioner"]
    sure = [b for kind in _ALWAYS_SOMEBODY for b in beginnings_of(parameter, kind, base_url)]
    named = [{"terms": {"$elemMatch": {"$gte": b, "$lt": successor(b)}}} for b in sure]
    dated = says(ATTRIBUTION_PERIOD)
    fields = {"roles": terms_with(beginnings_of(parameter, _ROLE, base_url)), "dated": dated}
    where: Filter = {"$and": [{"terms": EVERY}, {"$or": [{"$nor": named}, {"$expr": dated}]}]}
    without: set[str] = set()
    async for row in _rows(store, "Patient", where, fields):
        patient = f"Patient/{row['_id']}"
        if row["dated"]:
            found.open.add(patient)
        elif not _is_in_use(row, roles):
            without.add(patient)
    found.without = found.without & without


async def _by_care_teams(
    store: Reader, found: _Claims, roles: frozenset[str], at: datetime, base_url: str
) -> None:
    """The primary care providers of active teams: their own periods are in the text alone."""
    patient = beginnings_of(parameters("CareTeam")["patient"], "Patient", base_url)
    parameter = parameters("CareTeam")["primary-care-provider"]
    sure = [b for kind in _ALWAYS_SOMEBODY for b in beginnings_of(parameter, kind, base_url)]
    fields = {
        "sure": has_term_with(sure),
        "roles": terms_with(beginnings_of(parameter, _ROLE, base_url)),
        "of": terms_with(patient),
        "when": "$dates.date",
        "periods": occurrences('"period":'),
    }
    where: Filter = {"$and": [{"terms": {"$in": _PCP_ROLE}}, {"terms": "status=active"}]}
    async for row in _rows(store, "CareTeam", where, fields):
        spans = row.get("when") or ()
        holds = all(_utc(each["lo"]) <= at <= _utc(each["hi"]) for each in spans)
        found.add(
            named_in(row["of"], "Patient"),
            is_sure=row["sure"] or _is_in_use(row, roles),
            is_open=not holds or row["periods"] > len(spans),
        )


async def _by_rosters(
    store: Reader, found: _Claims, roles: frozenset[str], at: datetime, base_url: str
) -> None:
    """The members of panels."""
    panels = await store.find(
        "Group", {"roster.pcp.0": {"$exists": True}}, projection={"roster": 1}
    )
    for panel in panels:
        named = [
            (claims.relative(written, base_url), low is None and high is None)
            for written, low, high in panel["roster"]["pcp"]
        ]
        is_sure = any(
            who is not None and (not who.startswith(f"{_ROLE}/") or who in roles)
            for who, _ in named
        )
        is_dated = not all(is_always for _, is_always in named)
        own = group_members.all_of(panel["_id"])
        async for row in _rows(store, claims.ROSTERS, own, {"when": 1}):
            term: str = row["_id"]["m"]
            if "Patient/" in term:
                of = named_in([term], "Patient")
                found.add(of, is_sure=is_sure, is_open=is_dated or "when" in row)


def _is_in_use(row: Document, roles: frozenset[str]) -> bool:
    return bool(row["roles"]) and not roles.isdisjoint(named_in(row["roles"], _ROLE))


async def _rows(
    store: Reader, collection: str, where: Filter, fields: Document
) -> AsyncIterator[Document]:
    options: dict[str, Any] = {"projection": fields, "read_ahead": _BATCH, "naive": True}
    async with store.batches(collection, where, **options) as read:
        async for rows in prefetched(read, _BATCH):
            for row in rows:
                yield row


def _utc(naive: datetime) -> datetime:
    return naive.replace(tzinfo=UTC)
