"""Admissions and discharges of a period, each with its day, its practice, and the day that practice had a notice.

docs/proof.md says which count.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any, Literal

from app.attribution.attribution import Attribution, attributed
from app.attribution.practices import Provider
from app.automation.patient_resources import token
from app.context import Context
from app.fhir import instants
from app.fhir.codes import ADMISSION, EVENT_NOTICE, INPATIENT, NOTICE_KIND, SNF_ADMISSION
from app.fhir.encounter_status import ACTIVE, recorded_end
from app.fhir.json import Resource
from app.proof.communication import Receipt, receipt, receipt_of
from app.proof.days import Zones, day_of, local_day
from app.proof.notice import gather_readable, local, patient_of
from app.records.versions import CURRENT, HistoryRange, ResourceVersion, stored_current
from app.search import query
from app.search.resolution import resolve
from app.subscriptions.ledger.ledger import delivery_rows

EventKind = Literal["admission", "discharge"]
KINDS: tuple[EventKind, ...] = ("admission", "discharge")
_TOPICS: Mapping[EventKind, tuple[str, ...]] = {
    "admission": (ADMISSION, SNF_ADMISSION),
    "discharge": ("encounter-discharge",),
}
_ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
_COUNTED = "arrived,triaged,in-progress,onleave,finished"
# The trigger of an emergency's or observation's registration, which is no notice of an inpatient admission.
_REGISTRATION, _REGISTERED = "A04", frozenset({"EMER", "OBSENC"})
_BATCH, _AT_ONCE = 200, 8
# A stay has fewer versions.
_MOST_VERSIONS = 1_000
# So far may a local day lie from that of UTC, and one more, for what begins on the day is not after it.
_ZONES = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class StaysQuery:
    """The scope of a report: local days from `start` to `end`, and the classes of stays.

    `practice` is the responsible one (`Organization/o1`, `Practitioner/p1`), None for all. With a `family` of
    organizations one of these has to be responsible.
    """

    start: date
    end: date
    practice: str | None = None
    classes: tuple[str, ...] = INPATIENT
    family: frozenset[str] | None = None

    def holds(self, responsible: Sequence[str]) -> bool:
        """Whether the event of these responsible ones is within the scope."""
        return (self.practice is None or self.practice in responsible) and (
            self.family is None or not self.family.isdisjoint(responsible)
        )


@dataclass(frozen=True, slots=True)
class Happening:
    """One admission or discharge. `practice` and `hospital` are references; days are in the facility's time zone."""

    kind: EventKind
    encounter: str
    day: date
    practice: str | None
    responsible: tuple[str, ...]
    hospital: str | None
    received: date | None


@dataclass(frozen=True, slots=True)
class _Event:
    """An event by its local day; its PCP is determined `at` a moment, and no notice of it is earlier than `first`."""

    day: date
    at: datetime
    first: datetime


@dataclass(frozen=True, slots=True)
class _Stay:
    stored: ResourceVersion
    patient: str | None
    class_: str
    hospital: str | None
    zone: tzinfo
    days: Mapping[EventKind, _Event]


async def happenings(context: Context, wanted: StaysQuery) -> AsyncIterator[Happening]:
    """The admissions and discharges that count, in no particular order."""
    base_url = context.settings.base_url.rstrip("/")
    zones = Zones(context.store, base_url, context.settings.time_zone)
    condition = await _condition(context, wanted)
    async with context.store.batches("Encounter", condition, projection=CURRENT) as read:
        while documents := await read(_BATCH):
            stays = [
                await _stay(context, stored_current("Encounter", each), zones, wanted)
                for each in documents
            ]
            for happening in await _known(context, [each for each in stays if each.days], base_url):
                if wanted.holds(happening.responsible):
                    yield happening


async def _condition(context: Context, wanted: StaysQuery) -> dict[str, Any]:
    """The filter on stays that may have begun or ended in the period, in whatever zone."""
    after = max(wanted.start, date.min + _ZONES) - _ZONES
    before = min(wanted.end, date.max - _ZONES) + _ZONES
    parsed = query.parse(
        "Encounter",
        [
            ("date", f"gt{after}"),
            ("date", f"lt{before}"),
            ("status", _COUNTED),
            ("class", ",".join(f"{_ACT_CODE}|{each}" for each in wanted.classes)),
        ],
        lenient=False,
        settings=context.settings,
        base_url=context.base_url,
    )
    condition: dict[str, Any] = (await resolve(context.store, parsed)).filter
    return condition


async def _stay(
    context: Context, stored: ResourceVersion, zones: Zones, wanted: StaysQuery
) -> _Stay:
    encounter = stored.resource()
    base_url = context.settings.base_url.rstrip("/")
    zone = await zones.of(encounter)
    days: dict[EventKind, _Event] = {}
    for kind in KINDS:
        text = _when(kind, encounter, wanted.classes, stored.at)
        if text is None and (kind == "admission" or encounter.get("status") != "finished"):
            continue
        known = stored.at if text else await _became_known(context, stored, kind)
        day = day_of(text, zone) if text else local_day(known, zone)
        if day is not None and wanted.start <= day <= wanted.end:
            days[kind] = _event(text, day, zone, known)
    return _Stay(
        stored,
        patient_of(encounter, base_url),
        encounter.get("class", {}).get("code", ""),
        local(encounter.get("serviceProvider"), base_url),
        zone,
        days,
    )


def _when(kind: EventKind, encounter: Resource, classes: Sequence[str], at: datetime) -> str | None:
    """The text with the event's time; a stay that changed into one of the classes was admitted then."""
    period: dict[str, str] = encounter.get("period", {})
    if kind == "discharge":
        return recorded_end(period, at) if encounter.get("status") == "finished" else None
    history = [each for each in encounter.get("classHistory", ()) if isinstance(each, dict)]
    own = [each for each in history if each.get("class", {}).get("code") in classes]
    starts: list[str] = [start for each in own if (start := each.get("period", {}).get("start"))]
    if starts:
        return min(starts, key=_order)
    ends: list[str] = [
        end for each in history if each not in own and (end := each.get("period", {}).get("end"))
    ]
    return max(ends, key=_order) if ends else period.get("start")


def _order(text: str) -> datetime:
    day = day_of(text, UTC)
    if len(text) > 10 and day is not None:
        return instants.moment(text)
    return datetime.combine(day or date.min, time(), UTC)


def _event(text: str | None, day: date, zone: tzinfo, known: datetime) -> _Event:
    """The event at a time that is said; without one, it was when it became known, and of a day it counts at noon."""
    if text is None:
        return _Event(day, known, known)
    if len(text) > 10:
        return _Event(day, _order(text), _order(text))
    return _Event(day, datetime.combine(day, time(12), zone), datetime.combine(day, time(), zone))


async def _known(context: Context, stays: Sequence[_Stay], base_url: str) -> list[Happening]:
    """The events of stays with the receipts about them."""
    receipts = await _receipts(context, [stay.stored.reference for stay in stays], base_url)
    room = asyncio.Semaphore(_AT_ONCE)

    async def judged(stay: _Stay, kind: EventKind) -> Happening:
        async with room:
            own = [
                each for each in receipts.get(stay.stored.reference, ()) if _is_of(each, kind, stay)
            ]
            return await _happening(context, stay, kind, own)

    return list(await asyncio.gather(*(judged(stay, kind) for stay in stays for kind in stay.days)))


def _is_of(each: Receipt, kind: EventKind, stay: _Stay) -> bool:
    if each.topic.rpartition("/")[2] not in _TOPICS[kind]:
        return False
    return each.trigger != _REGISTRATION or stay.class_ in _REGISTERED


async def _happening(
    context: Context, stay: _Stay, kind: EventKind, receipts: Sequence[Receipt]
) -> Happening:
    """The recipient of a panel's notice was the PCP then; without one, the records of that day decide."""
    event = stay.days[kind]
    found = Attribution("", (), ())
    if stay.patient is not None:
        # Read past the caller's limits, as for $pcp: half of the sources would name somebody else.
        store = context.services.store
        found = await attributed(store, stay.patient, event.at, context.settings)
    known = {each for provider in found.providers for each in provider.references}
    mine = [each for each in receipts if each.to_pcp or known.intersection(each.recipients)]
    provider, others = await _responsible(context, found.providers, mine)
    times = await _in_order_of_events(context, stay, kind, [each.at for each in mine if each.at])
    return Happening(
        kind,
        stay.stored.reference,
        event.day,
        provider,
        tuple(dict.fromkeys([*([provider] if provider else []), *others])),
        stay.hospital,
        local_day(min(times), stay.zone) if times else None,
    )


async def _in_order_of_events(
    context: Context, stay: _Stay, kind: EventKind, received: Sequence[datetime]
) -> list[datetime]:
    """The receipts at or after the event: what was received before it told of something else, or wrongly.

    An event whose sender's clock is ahead, or that was corrected to a later time, happened when it became known.
    """
    since = stay.days[kind].first
    if any(each < since for each in received):
        since = min(since, await _became_known(context, stay.stored, kind))
    return [each for each in received if each >= since]


async def _became_known(context: Context, stored: ResourceVersion, kind: EventKind) -> datetime:
    """The time of the first of the latest versions that all say what the current one does: admitted, or finished."""
    wanted = HistoryRange(stored.type, stored.id)
    at = stored.at
    for version in await context.store.history(wanted, _MOST_VERSIONS):
        if version.deleted or not _says(kind, version.resource()):
            break
        at = version.at
    return at


def _says(kind: EventKind, encounter: Resource) -> bool:
    status = encounter.get("status")
    return status == "finished" or (kind == "admission" and status in ACTIVE)


async def _responsible(
    context: Context, providers: Sequence[Provider], receipts: Sequence[Receipt]
) -> tuple[str | None, list[str]]:
    """The responsible practice, and all references by which a query may name it."""
    recipients = [each for receipt_ in receipts if receipt_.to_pcp for each in receipt_.recipients]
    matching = [each for each in providers if set(recipients) & set(each.references)]
    if recipients and not matching:  # the records have been changed since
        return await _practice_of(context, recipients[0]), recipients
    for provider in matching or providers:
        return provider.practice, list(provider.references)
    return None, []


async def _practice_of(context: Context, reference: str) -> str:
    type_, _, id_ = reference.partition("/")
    if type_ == "PractitionerRole":
        stored = await context.store.read(type_, id_)
        if stored is not None and not stored.deleted:
            base_url = context.settings.base_url.rstrip("/")
            return local(stored.resource().get("organization"), base_url) or reference
    return reference


async def _receipts(
    context: Context, encounters: Sequence[str], base_url: str
) -> dict[str, list[Receipt]]:
    """The receipts about Encounters: from the ledger, and from the Communications of rows that it no longer has."""
    base = context.settings.topic_base.rstrip("/")
    urls = [f"{base}/{name}" for names in _TOPICS.values() for name in names]
    ids = [each.partition("/")[2] for each in encounters]
    rows = (
        await delivery_rows(context.services.mongo)
        .find({"focus.id": {"$in": ids}, "focus.type": "Encounter", "topic": {"$in": urls}})
        .to_list(None)
    )
    # Read past the caller's limits: these are receipts about stays that it sees, and only their days are counted.
    store = context.services.store
    found = {each.id: receipt_of(each) for each in await gather_readable(store, rows, base_url)}
    for stored in await _published(context, encounters):
        if stored.id not in found:
            found[stored.id] = receipt(stored.resource())
    by_encounter: dict[str, list[Receipt]] = {}
    for each in await _by_recipients(context, list(found.values())):
        by_encounter.setdefault(each.encounter, []).append(each)
    return by_encounter


async def _by_recipients(context: Context, receipts: Sequence[Receipt]) -> list[Receipt]:
    """The receipts of Subscriptions that their recipients wrote, or the server or an administrator.

    Whom a Subscription is for is what its writer says. What another organization had sent to itself, in the name of a
    practice, that practice never received.
    """
    names = {each.subscription for each in receipts if each.subscription is not None}
    keys = [("Subscription", name) for name in sorted(names)]
    # Read past the caller's limits, as the receipts are.
    stored = await context.services.store.read_many(keys) if keys else {}
    writers = {each.id: frozenset(each.by) for each in stored.values()}
    relationships = context.services.accesses.relationships

    async def is_own(receipt_: Receipt) -> bool:
        by = writers.get(receipt_.subscription or "")
        if not by:
            return True
        named = [await relationships.recipient(each, "provider") for each in receipt_.recipients]
        return all(by & each.around for each in named)

    return [each for each in receipts if await is_own(each)]


async def _published(context: Context, encounters: Iterable[str]) -> list[ResourceVersion]:
    terms = [f"encounter={each}" for each in encounters]
    return await context.services.store.search(
        "Communication",
        {
            "$and": [
                {"terms": {"$in": terms}},
                {"terms": token("category", NOTICE_KIND, EVENT_NOTICE)},
            ]
        },
        0,
    )
