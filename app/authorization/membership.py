"""The members of a health plan, all at once, by the rule of `Relationships.members`, which asks about single patients.

docs/access.md, "Whose patients"
"""

from __future__ import annotations

from datetime import UTC, datetime

from app.attribution import claims
from app.authorization.relationships import OrganizationTree, Relationships
from app.fhir import json as fhir_json
from app.fhir.instants import BEGINNING
from app.search import group_members, spans
from app.search.computed_fields import beginnings_of, named_in, prefetched, terms_with
from app.search.search_parameters import parameters
from app.search.spans import Span
from app.store.store import Store

_BATCH = 4_000
# Coverages that were stored before their period could be searched for have it in their text alone.
_DATED = {"$gt": [{"$size": {"$ifNull": ["$dates.period", []]}}, 0]}

# The patients (`Patient/p1`) with the day since which each is a member; None where that is not said.
Members = dict[str, datetime | None]


async def members(
    store: Store, relationships: Relationships, family: OrganizationTree, base_url: str
) -> Members:
    """Everybody who is a member now: by a Coverage in its period, or in a Group that a Contract designates."""
    found: Members = {}
    now = relationships.now()
    beneficiary = beginnings_of(parameters("Coverage")["beneficiary"], "Patient", base_url)
    payors = [t for each in family for t in claims.terms_for("Coverage", "payor", each, base_url)]
    fields = {
        "_id": 0,
        "of": terms_with(beneficiary),
        "since": {"$first": "$dates.period.lo"},
        "text": {"$cond": [_DATED, "$$REMOVE", "$text"]},
    }
    running = {"dates.period": {"$elemMatch": {"lo": {"$lte": now}, "hi": {"$gte": now}}}}
    where = {
        "$and": [
            {"terms": {"$in": payors}},
            {"terms": "status=active"},
            {"$or": [running, {"dates.period": {"$exists": False}}]},
        ]
    }
    async with store.batches(
        "Coverage", where, projection=fields, read_ahead=_BATCH, naive=True
    ) as read:
        async for rows in prefetched(read, _BATCH):
            for row in rows:
                since = row.get("since")
                if since is None:
                    span = spans.of(fhir_json.decode_stored(row["text"]).get("period"))
                    if not spans.holds(span, now):
                        continue
                    since = span[0]
                for patient in named_in(row["of"], "Patient"):
                    _add(found, patient, since)
    for group in await relationships.groups(family, managed=False):
        for patient, span in await group_now(store, group, now):
            _add(found, patient, span[0])
    return found


async def group_now(store: Store, group: str, now: datetime) -> list[tuple[str, Span]]:
    """The patients who are members of a Group, by its id, at a moment, with the span in which they are."""
    found: list[tuple[str, Span]] = []
    async with store.batches(
        claims.ROSTERS, group_members.all_of(group), read_ahead=_BATCH
    ) as read:
        async for rows in prefetched(read, _BATCH):
            for row in rows:
                term: str = row["_id"]["m"]
                (when,) = group_members.memberships_in([row]).values()
                current = [span for span in when if spans.holds(span, now)]
                if current and "Patient/" in term:
                    found += [(each, current[0]) for each in named_in([term], "Patient")]
    return found


def _add(found: Members, patient: str, since: datetime | None) -> None:
    """Of several memberships the one that began first counts."""
    if since is not None:
        since = None if since.year == BEGINNING.year else since.replace(tzinfo=UTC)
    known = found.get(patient)
    if known is None or (since is not None and since < known):
        found[patient] = since
