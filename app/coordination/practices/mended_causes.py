"""What nobody was told of is told once its cause is gone: a PCP was named, an Endpoint added, a Subscription made.

Whatever may mend a cause sets a timer for the rows that it may concern; the timer looks why each one waits now. Where
somebody hears, its event is matched for the practices of now (app/subscriptions/ledger/rerouting.py), and the review
Task closes itself. At start, for the settings may be others, and once an hour, for periods begin, all rows are looked
at. docs/routing.md
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

from app.attribution import panels
from app.attribution.attribution import unheard
from app.attribution.claims import relative
from app.attribution.derived import patient_of
from app.authorization.subject_store import patients_named
from app.automation.reactions import Reaction
from app.automation.timers import Timer, Timers
from app.context import Context
from app.coordination.practices import no_recipient, untold_review
from app.coordination.practices.no_recipient import OF_RECORDS
from app.coordination.practices.taken_back import taken_back
from app.coordination.practices.untold_review import OF_PATIENTS
from app.fhir.codes import REVIEW_REASONS
from app.fhir.json import Resource
from app.records.versions import ResourceVersion
from app.search.extract import extract
from app.store.events import Event
from app.subscriptions.ledger import untold_rows
from app.subscriptions.ledger.missed_rows import MissedRows
from app.subscriptions.ledger.rerouting import Ending, Rerouting
from app.subscriptions.ledger.untold_rows import (
    IN_DOUBT,
    Untold,
    UntoldRows,
    event_row,
    of_causes,
    of_party,
)
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.recipient import panels_of, recipient_of

_KIND, _ALL, _OF_PATIENTS = no_recipient.REROUTE, "all", "of-patients"
_DIRECTORY = frozenset({"Endpoint", "Organization", "PractitionerRole"})
_RECORDS = frozenset({"CarePlan", "Encounter"})
_TYPES = _DIRECTORY | _RECORDS | {"CareTeam", "Group", "Patient", "Subscription"}
_EVERY = timedelta(hours=1)
# Another process may not know yet of a Subscription that was written a moment ago.
_SECOND_LOOK = timedelta(seconds=30)
_AT_ONCE, _TASKS_AT_ONCE = 50, 20
# Other timers wait meanwhile.
_SECONDS_A_ROUND = 5.0
_ENDINGS: Mapping[Ending, str] = {
    "told": "told after all",
    "known": "told after all",
    "withheld": "withheld, as a row of its own says",
    "settled": "a row of its own says what became of it",
    "once": "told as an admission",
    "newer": "its practice was told of a newer version",
    "unasked": "nobody asks for it",
    "unreadable": "the record cannot be read",
}
_NOTHING_MISSED: frozenset[Ending] = frozenset({"known", "withheld", "settled", "unasked"})
# A practice that has come to a patient gets the plans as they are now (coordination/care_plans/copies.py).
_COPIED = "its practice gets the plan as it is now, if it may have it and the plan goes on"
_TAKEN_BACK = "the record says otherwise by now"

Row = Mapping[str, Any]
# A review reason, and what it concerns.
Cause = tuple[str, str]


async def start(context: Context) -> None:
    """Create the indexes, and have all rows looked at."""
    if not context.settings.unrouted:
        return
    await UntoldRows(context.services.mongo).prepare()
    timers = context.services.get(Timers)
    await timers.set(_KIND, _ALL, context.services.clock.now())
    await untold_review.start(context)


# What may mend a cause


async def react(context: Context, event: Event) -> None:
    """Set the timers of the rows that wait and that a change may concern."""
    rows, timers = UntoldRows(context.services.mongo), context.services.get(Timers)
    for key in await _keys(context, event):
        if await rows.is_any(_selection(key)):
            await timers.set(_KIND, key, context.services.clock.now())


async def look_at(context: Context, reference: str) -> None:
    """Look at once at the rows for whose cause a reference counts."""
    await context.services.get(Timers).set(_KIND, reference, context.services.clock.now())


async def sift(context: Context, events: Sequence[Event]) -> Sequence[Event]:
    """None where no row waits, as it is while people load data."""
    return events if await UntoldRows(context.services.mongo).is_any(untold_rows.ALL) else []


REACTION = Reaction(
    "reroute", _TYPES, react, is_wanted=lambda settings: settings.unrouted, sift=sift
)


async def _keys(context: Context, event: Event) -> list[str]:
    """The references and groups of causes for which a change may count."""
    place = f"{event.type}/{event.resource_id}"
    base_url = context.settings.base_url.rstrip("/")
    versions = [each for each in (event.resource, event.previous) if each is not None]
    if event.type in _RECORDS:
        return [place] if event.version > 1 and event.topic is None else []
    if event.type == "Group":
        return [_OF_PATIENTS]
    if event.type == "Subscription":
        return sorted({each for version in versions for each in _named(version, base_url)})
    if event.type in _DIRECTORY:
        owners = await panels.owners(
            context.services.store, event.type, event.resource_id, versions, base_url
        )
        return [*owners, *([_OF_PATIENTS] if event.type == "PractitionerRole" else [])]
    named = (patients_named(event.type, version, base_url) for version in versions)
    return sorted({patient for several in named for patient in several})


def _named(subscription: Resource, base_url: str) -> Iterable[str]:
    """The providers whom a Subscription names, as relative references."""
    written = [*panels_of(subscription), recipient_of(subscription)]
    for each in written:
        if each is not None and "/" not in each:
            yield from (
                f"{kind}/{each}" for kind in ("Organization", "Practitioner", "PractitionerRole")
            )
        elif (near := relative(each, base_url)) is not None:
            yield near


def _selection(key: str) -> dict[str, Any]:
    if key == _ALL:
        return untold_rows.ALL
    return of_causes(OF_PATIENTS) if key == _OF_PATIENTS else of_party(key)


# What is told then


async def run(context: Context, key: str, data: Mapping[str, Any]) -> None:
    """Look at the rows of a key for _SECONDS_A_ROUND at most, and go on later where there are more."""
    if not context.settings.unrouted:
        return
    rows, timers = UntoldRows(context.services.mongo), context.services.get(Timers)
    loop = asyncio.get_running_loop()
    until = loop.time() + _SECONDS_A_ROUND
    after, left = data.get("after", ""), data.get("left", False)
    changed: set[Cause] = set()
    page = await rows.page(_selection(key), after, _AT_ONCE)
    while page and loop.time() < until:
        looked_at = await _look_at(context, rows, page)
        changed |= looked_at.changed
        left = left or looked_at.left
        after = page[-1]["_id"]
        page = await rows.page(_selection(key), after, _AT_ONCE)
    await _keep_tasks(context, sorted(changed))
    now = context.services.clock.now()
    if page:
        await timers.set(_KIND, key, now, {**data, "after": after, "left": left})
    elif key == _ALL:
        await timers.set(_KIND, key, now + _EVERY)
    elif left and not data.get("again"):
        await timers.set(_KIND, key, now + _SECOND_LOOK, {"again": True})


TIMER = Timer(_KIND, run, is_about_many=True, at_most=lambda _: _EVERY)


class _LookedAt(NamedTuple):
    """What came of a page: whether rows are left that wait, and the causes that have fewer rows or more."""

    left: bool
    changed: set[Cause]


async def _look_at(context: Context, rows: UntoldRows, page: Sequence[Row]) -> _LookedAt:
    """Tell what can be told now, and let the other rows wait for what keeps them now."""
    mended: list[tuple[Row, int]] = []
    moved: dict[str, tuple[Untold, str]] = {}
    changed: set[Cause] = set()
    # Reactions, which stored the rows, run side by side; notices are in the order of the commits.
    page = sorted(page, key=lambda row: row["focus"]["at"])
    for row, (why, version) in zip(page, await _judged(context, page), strict=True):
        if why is None:
            mended.append((row, version))
        elif why != Untold.of(row):
            moved[row["_id"]] = why, REVIEW_REASONS[why.cause]
            changed |= {_cause(why), _cause(Untold.of(row))}
    await rows.move(moved, context.services.mongo.now())
    ended = [(row, _COPIED) for row, _ in mended if _is_copied(row)]
    mended = [(row, version) for row, version in mended if not _is_copied(row)]
    undone = await taken_back(context, [row for row, _ in mended])
    ended += [(row, _TAKEN_BACK) for row, _ in mended if row["_id"] in undone]
    mended = [(row, version) for row, version in mended if row["_id"] not in undone]
    late = [event_row(row, version) for row, version in mended]
    endings = await context.services.get(Rerouting).tell(late)
    idle: list[str] = []
    for (row, _), ending in zip(mended, endings, strict=True):
        if Untold.of(row).cause == IN_DOUBT and ending in _NOTHING_MISSED:
            idle.append(row["_id"])
        elif ending != "later":
            ended.append((row, _ENDINGS[ending]))
    await rows.forget(idle)
    await MissedRows(context.services.mongo).forget_events(
        [row for row, _ in ended], partial(_takes_none, context)
    )
    await rows.end(ended, context.services.mongo.now())
    changed |= {_cause(Untold.of(row)) for row, _ in ended}
    return _LookedAt(len(ended) + len(idle) < len(page), changed)


def _is_copied(row: Row) -> bool:
    """Whether a practice that comes to the patient is told by a copy; not one that was to have this very notice."""
    return bool(row["focus"]["type"] == "CarePlan" and not row.get("was_missed"))


def _takes_none(context: Context, subscription: str) -> bool:
    return context.services.get(SubscriptionRegistry).delivery_mode(subscription) == "ended"


def _cause(why: Untold) -> Cause:
    return why.cause, why.concerns


async def _keep_tasks(context: Context, causes: Sequence[Cause]) -> None:
    """Bring the Tasks of causes in line, several at once: each patient may have one."""
    for begin in range(0, len(causes), _TASKS_AT_ONCE):
        some = causes[begin : begin + _TASKS_AT_ONCE]
        await asyncio.gather(*(untold_review.keep(context, *cause) for cause in some))


async def _judged(context: Context, page: Sequence[Row]) -> list[tuple[Untold | None, int]]:
    """For each row why it waits now, None where somebody hears; and the version by which it is to be told."""
    versions = await _versions(context, page)
    patients: dict[str, set[str]] = {}
    for row in page:
        if (patient := _patient(context, row, versions)) is not None:
            patients.setdefault(row["topic"], set()).add(patient)
    clear: set[tuple[str, str | None]] = {
        (topic, patient)
        for topic, several in patients.items()
        for patient in await no_recipient.in_order(context, several, [topic])
    }
    return list(await asyncio.gather(*(_why(context, row, versions, clear) for row in page)))


async def _versions(context: Context, page: Sequence[Row]) -> dict[str, ResourceVersion]:
    """The current versions of the records that named no patient, by reference."""
    keys = {
        (row["focus"]["type"], row["focus"]["id"])
        for row in page
        if Untold.of(row).cause in OF_RECORDS
    }
    found = await context.services.store.read_many(sorted(keys))
    return {key: each for key, each in found.items() if not each.deleted}


def _patient(context: Context, row: Row, versions: Mapping[str, ResourceVersion]) -> str | None:
    """The patient whom a record names, by now where it has been put right."""
    current = versions.get(_place(row))
    if current is None:
        return Untold.of(row).patient
    fields = extract(current.type, current.resource())
    return patient_of(current.type, fields, context.settings.base_url.rstrip("/"))


async def _why(
    context: Context,
    row: Row,
    versions: Mapping[str, ResourceVersion],
    clear: set[tuple[str, str | None]],
) -> tuple[Untold | None, int]:
    before = Untold.of(row)
    current = versions.get(_place(row))
    patient = _patient(context, row, versions)
    version: int = row["focus"]["version"]
    if current is not None and patient != before.patient:
        version = current.version
    if (row["topic"], patient) in clear:
        return None, version
    resource = {} if current is None else current.resource()
    now = context.services.mongo.now()
    found = await no_recipient.attributed(context, patient, resource, now)
    hears = no_recipient.hearing(context, row["topic"], row["focus"]["type"])
    causes = no_recipient.untold(found, _place(row), hears)
    same = next((each for each in causes if each.concerns == before.concerns), None)
    if same is not None:
        return same, version
    heard = {each.practice for each in found.providers} - set(unheard(found.providers, hears))
    return (None if heard else causes[0]), version


def _place(row: Row) -> str:
    return f"{row['focus']['type']}/{row['focus']['id']}"
