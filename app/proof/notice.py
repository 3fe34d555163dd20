"""One notice as the ledger has it: its recipients, focus, the times of event and delivery, and the result."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from app.attribution.claims import relative
from app.consent.recipients import resolve
from app.fhir import instants
from app.fhir.encounter_status import FINAL
from app.fhir.json import Resource
from app.records.reader import Reader
from app.resources import event_time
from app.runtime.leases import is_nobodys_fault
from app.runtime.mongo import Document
from app.subscriptions.ledger.ledger import State
from app.subscriptions.ledger.untold_rows import UNROUTED
from app.subscriptions.recipient import kind_of, panels_of, recipient_of

log = logging.getLogger(__name__)

_SUBJECTS = ("subject", "patient", "beneficiary", "for")
_READ_AT_ONCE = 50
# As far as a time may be open that is no date.
_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class NoticeRecord:
    """One row. References are relative; `recipients` are several only where a Subscription filters by several PCPs.
    Where it names none, or others than the family of the organization that made it, that organization is.

    `to_pcp`: the Subscription filters by a PCP, and the notice was for that one. `sent` is the first attempt,
    `received` the first that was accepted; `status` and `sha256` are of that attempt, else of the last one. `endpoint`
    has no query, which may hold secrets.
    """

    id: str
    subscription: str | None
    state: State
    reason: str
    topic: str
    trigger: Mapping[str, str] | None
    focus: str
    version: int
    patient: str | None
    encounter: str | None
    event_time: datetime
    committed: datetime
    sent: datetime | None
    received: datetime | None
    settled: datetime
    attempts: int
    status: int | None
    sha256: str | None
    endpoint: str | None
    recipients: tuple[str, ...]
    to_pcp: bool
    security: tuple[Mapping[str, Any], ...]
    # The version that the notice is about, empty where it is no longer stored.
    resource: Resource = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Told:
    """The Subscription of a row, None where there is none, and whom its notices are for.

    `is_as_named`: these are whom the Subscription names.
    """

    subscription: Resource | None
    recipients: tuple[str, ...] = ()
    is_as_named: bool = True


async def gather(store: Reader, rows: Sequence[Document], base_url: str) -> list[NoticeRecord]:
    """The notices of rows, with their Subscriptions and the versions that they are about."""
    names = {row["subscription"] for row in rows if not row["subscription"].startswith(UNROUTED)}
    subscriptions = await _subscriptions(store, names, base_url)
    versions = await _versions(store, {_version(row) for row in rows})
    return [
        of_row(
            row,
            subscriptions.get(row["subscription"], Told(None)),
            versions.get(_version(row), {}),
            base_url,
        )
        for row in rows
    ]


async def gather_readable(
    store: Reader, rows: Sequence[Document], base_url: str
) -> list[NoticeRecord]:
    """As `gather`; what cannot be read of one row counts as no longer stored, and is its fault alone."""
    try:
        return await gather(store, rows, base_url)
    except Exception as error:
        if is_nobodys_fault(error):
            raise
        if len(rows) == 1:
            (row,) = rows
            told = {"action": "notice", "id": row["_id"], "error": type(error).__name__}
            log.exception("what a notice was about cannot be read", extra=told)
            return [of_row(row, Told(None), {}, base_url)]
        return [each for row in rows for each in await gather_readable(store, [row], base_url)]


def of_row(row: Document, told: Told, resource: Resource, base_url: str) -> NoticeRecord:
    """The notice of a row, without a read. `resource` is the version it is about, empty where that is gone."""
    subscription = told.subscription
    focus, attempts = row["focus"], row["attempts"]
    taken = next((each for each in attempts if _is_success(each)), None)
    if taken is None and row["state"] == "delivered" and attempts:
        taken = attempts[-1]
    last = taken or (attempts[-1] if attempts else {})
    place = f"{focus['type']}/{focus['id']}"
    patient = patient_of(resource, base_url)
    received = None if taken is None else _end(taken)
    return NoticeRecord(
        id=row["_id"],
        subscription=None if row["subscription"].startswith(UNROUTED) else row["subscription"],
        state=row["state"],
        reason=row.get("reason", ""),
        topic=row["topic"] or "",
        trigger=row["trigger"],
        focus=place,
        version=focus["version"],
        patient=patient,
        encounter=_encounter(place, resource, base_url),
        event_time=happened(resource, focus["at"]),
        committed=focus["at"],
        sent=_first_attempt(row),
        received=received,
        settled=received or (_end(last) if last else row["created_at"]),
        attempts=len(attempts),
        status=last.get("status"),
        sha256=last.get("sha256"),
        endpoint=_address(subscription),
        recipients=told.recipients,
        to_pcp=subscription is not None
        and told.is_as_named
        and bool(panels_of(subscription))
        and kind_of(subscription) == "provider",
        security=tuple(resource.get("meta", {}).get("security", ())),
        resource=resource,
    )


def happened(resource: Resource, committed: datetime) -> datetime:
    """The time at which the event of a version happened; its commit where the version does not state it.

    Of a visit that is over on a day, it is the end of that day, as far as it had passed: no deadline begins earlier.
    """
    if resource.get("resourceType") == "Encounter":
        moment = event_time.moment(resource, committed)
        if moment is not None and moment.time not in (event_time.BEGINNING, event_time.PLANNED):
            first, last = (instants.moment(each) for each in (moment.time, moment.latest))
            is_day = resource["status"] in FINAL and last - first > _MINUTE
            return min(last, committed) if is_day else first
    return committed


def patient_of(resource: Resource, base_url: str) -> str | None:
    """The patient that a version is about."""
    if resource.get("resourceType") == "Patient":
        return f"Patient/{resource['id']}"
    for name in _SUBJECTS:
        found = local(resource.get(name), base_url)
        if found is not None and found.startswith("Patient/"):
            return found
    return None


def local(reference: Any, base_url: str) -> str | None:
    """A Reference to a resource of this server as `Type/id`."""
    written = reference.get("reference") if isinstance(reference, dict) else None
    if not isinstance(written, str):
        return None
    near = written.removeprefix(f"{base_url}/") if base_url else written
    near = near.partition("/_history/")[0]
    return near if near.count("/") == 1 and ":" not in near else None


def _encounter(place: str, resource: Resource, base_url: str) -> str | None:
    if place.startswith("Encounter/"):
        return place
    found = local(resource.get("encounter"), base_url)
    return found if found is not None and found.startswith("Encounter/") else None


async def _told(
    store: Reader, subscription: Resource, custodian: str | None, base_url: str
) -> Told:
    """A Subscription with whom its notices are for.

    An organization says so of itself and of who belongs to it. What it has sent in another's name is its own to prove:
    the other knows nothing of it.
    """
    named = recipient_of(subscription)
    written = [named] if named is not None else panels_of(subscription)
    found = [near for each in written if (near := relative(each, base_url)) is not None]
    if custodian is None:
        return Told(subscription, tuple(found))
    own = [
        each
        for each in found
        if custodian in (await resolve(store, each, "provider", base_url)).around
    ]
    return Told(subscription, tuple(own) or (custodian,), is_as_named=bool(own))


def _address(subscription: Resource | None) -> str | None:
    written = (subscription or {}).get("channel", {}).get("endpoint")
    if not written:
        return None
    try:
        parts = urlsplit(written)
    except ValueError:
        return None
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _is_success(attempt: Document) -> bool:
    status = attempt.get("status")
    return 200 <= status < 300 if status is not None else not attempt.get("reason")


def _first_attempt(row: Document) -> datetime | None:
    """The time of the first attempt; None for a row that was claimed and then not sent."""
    found: datetime | None = row["first_at"] if row["state"] == "sending" else None
    return row["attempts"][0]["at"] if row["attempts"] else found


def _end(attempt: Document) -> datetime:
    at: datetime = attempt["at"]
    return at + timedelta(milliseconds=round(attempt.get("ms", 0)))


def _version(row: Document) -> tuple[str, str, int]:
    focus = row["focus"]
    return focus["type"], focus["id"], focus["version"] - (1 if focus["method"] == "delete" else 0)


async def _subscriptions(store: Reader, names: set[str], base_url: str) -> dict[str, Told]:
    """The current Subscriptions by id, with whom they tell; of deleted ones the last version."""
    found = await store.read_many([("Subscription", name) for name in sorted(names)])
    resources: dict[str, Told] = {}
    for stored in found.values():
        last = stored
        if stored.deleted:
            before = await store.vread("Subscription", stored.id, stored.version - 1)
            if before is None or before.deleted:
                continue
            last = before
        resources[stored.id] = await _told(store, last.resource(), stored.custodian, base_url)
    return resources


async def _versions(
    store: Reader, keys: set[tuple[str, str, int]]
) -> dict[tuple[str, str, int], Resource]:
    found: dict[tuple[str, str, int], Resource] = {}
    wanted = sorted(keys)
    for begin in range(0, len(wanted), _READ_AT_ONCE):
        some = wanted[begin : begin + _READ_AT_ONCE]
        stored = await asyncio.gather(*(store.vread(*key) for key in some))
        for key, each in zip(some, stored, strict=True):
            if each is not None and not each.deleted:
                found[key] = each.resource()
    return found
