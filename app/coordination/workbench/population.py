"""The members that a question is about: the caller's own, or a plan's, a practice's or a Group's among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from app.attribution import unattributed
from app.attribution.practices import Provider
from app.authorization.membership import Members, group_now, members
from app.authorization.own_records import OwnRecords
from app.context import Context
from app.errors import Forbidden, Unprocessable
from app.search.computed_fields import says
from app.search.terms import EVERY, successor

# The living whose record is in use.
_LIVING = {"terms": {"$eq": EVERY, "$nin": ["active=false", "deceased=true"]}}


@dataclass(frozen=True, slots=True)
class Chosen:
    """Whom a question is limited to: members of a plan, patients of a practice (`Organization/o1`), a Group (id)."""

    plan: str | None = None
    practice: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Population:
    """The patients (`Patient/p1`), each with the moment since which it is a plan's member where that is known.

    `records` are what the caller sees about them.
    """

    since: Mapping[str, datetime | None]
    records: OwnRecords

    def __contains__(self, patient: str) -> bool:
        return patient in self.since

    def __len__(self) -> int:
        return len(self.since)


async def population(context: Context, chosen: Chosen) -> Population:
    """The living patients of the choice whom the caller sees; merged ones are their survivors.

    Raises Forbidden for what is not the caller's to ask about, and Unprocessable for a practice with too many patients.
    """
    base_url = context.settings.base_url.rstrip("/")
    since = await _own(context, chosen)
    if chosen.practice is not None:
        since = await _of_practice(context, since, chosen.practice)
    if chosen.group is not None:
        now = context.services.clock.now()
        listed = await group_now(context.services.store, chosen.group, now)
        since = {
            each: since[each] if since is not None else None
            for each, _ in listed
            if since is None or each in since
        }
    own = None if since is None else frozenset(since)
    records = OwnRecords(context.services.store, context.access, own, base_url)
    merged = await _merged(context)
    found: Members = {}
    async for (patient,), _ in records.read("Patient", _LIVING, {}):
        if patient not in merged:
            found[patient] = None if since is None else since[patient]
    return Population(found, records.of(frozenset(found)))


async def _merged(context: Context) -> set[str]:
    """The patients whom another one has replaced."""
    linked = {"terms": {"$elemMatch": {"$gte": "link=", "$lt": successor("link=")}}}
    rows = await context.services.store.find(
        "Patient", linked, projection={"replaced": says('"replaced-by"')}
    )
    return {f"Patient/{row['_id']}" for row in rows if row["replaced"]}


async def _own(context: Context, chosen: Chosen) -> Members | None:
    """The caller's patients, as far as they are members of the chosen plan; None for everybody."""
    access = context.access
    relationships = context.services.accesses.relationships
    base_url = context.settings.base_url.rstrip("/")
    if access is None or access.is_administrator:
        if chosen.plan is None:
            return None
        family = await relationships.family(chosen.plan)
        return await members(context.services.store, relationships, family, base_url)
    family = await access.family()
    if chosen.plan is not None and (access.caller.role != "plan" or chosen.plan not in family):
        raise Forbidden("A plan asks about its own members, a practice about its own patients")
    if access.caller.role == "plan":
        asked = family if chosen.plan is None else await relationships.family(chosen.plan)
        return await members(context.services.store, relationships, asked & family, base_url)
    return dict.fromkeys(await _patients_of(context, access.caller.organization or ""))


async def _of_practice(context: Context, since: Members | None, practice: str) -> Members:
    access = context.access
    is_practice = access is not None and access.caller.role == "practice"
    if access is not None and is_practice and practice not in await access.family():
        raise Forbidden("A practice asks about its own patients", expression="practice")
    patients = await _patients_of(context, practice)
    return {
        each: None if since is None else since[each]
        for each in patients
        if since is None or each in since
    }


async def _patients_of(context: Context, practice: str) -> set[str]:
    """The patients whose primary care provider belongs to a practice now. Raises Unprocessable for too many."""
    accesses = context.services.accesses
    family = await accesses.relationships.family(practice)
    panel = await accesses.panels.of("practice", family)
    if panel is None:
        raise Unprocessable(
            "The practice has too many patients to be asked about at once",
            code="too-costly",
            expression="practice",
        )
    return await accesses.relationships.attributed(sorted(panel), family)


async def providers(
    context: Context, patients: frozenset[str]
) -> Mapping[str, tuple[Provider, ...]]:
    """Who the PCP of each patient is now, by all sources, as `Patient/[id]/$pcp` tells whoever sees the patient."""
    now = context.services.clock.now()
    return await unattributed.providers(context.services.store, patients, now, context.settings)


async def without_provider(context: Context, found: Population) -> set[str]:
    """The patients for whom nobody is."""
    now = context.services.clock.now()
    return await unattributed.without_pcp(
        context.services.store, found.since.keys(), now, context.settings
    )
