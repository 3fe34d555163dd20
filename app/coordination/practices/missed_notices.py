"""Notices that waited for a practice when its Subscription was ended: each has a row in place of it, and a review Task.

A practice's Endpoint is suspended or exchanged, a setting taken back, a Subscription deleted: what waited for it is
closed in the ledger, and who was to know has not been told. From here on it is like any topic that reaches no practice
(no_recipient.py, mended_causes.py). Where the same Subscription takes notices again, what it has missed goes out by
itself (app/subscriptions/sending/backlog.py). docs/routing.md
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from app.automation.reactions import Reaction
from app.automation.set_aside import set_aside
from app.automation.timers import Timer, Timers
from app.context import Context
from app.coordination.practices import mended_causes, no_recipient, untold_review
from app.fhir.codes import REVIEW_REASONS
from app.fhir.json import Resource
from app.runtime.mongo import Document
from app.store.events import Event, load_event
from app.subscriptions.ledger.missed_rows import MissedRows
from app.subscriptions.ledger.untold_rows import Untold, UntoldRows, references
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.recipient import panels_of, reference_of

_KIND, _KEY = "missed-notices", "all"
_EVERY = timedelta(seconds=10)
# The rows of a Subscription that has just ended are closed in a moment.
_SOON = timedelta(seconds=1)
_AT_ONCE = 200


async def start(context: Context) -> None:
    """Set the timer."""
    if context.settings.unrouted:
        await context.services.get(Timers).set(_KIND, _KEY, context.services.clock.now())


async def react(context: Context, event: Event) -> None:
    """Look soon at what a Subscription that was ended has left."""
    if event.resource is None or event.resource["status"] == "off":
        due = context.services.clock.now() + _SOON
        await context.services.get(Timers).set(_KIND, _KEY, due)


REACTION = Reaction(
    "missed-notices",
    frozenset({"Subscription"}),
    react,
    is_wanted=lambda settings: settings.unrouted,
)


async def run(context: Context, key: str, data: Mapping[str, Any]) -> None:
    """Judge some of the rows that nobody has judged, and set the timer anew."""
    if not context.settings.unrouted:
        return
    page: list[Document] = []
    try:
        rows = MissedRows(context.services.mongo)
        page = await rows.new(_AT_ONCE)
        named: dict[str, Resource | None] = {}
        waits: dict[str, set[str]] = {}
        for row in page:
            id_ = row["subscription"]
            if id_ not in named:
                named[id_] = await _subscription(context, id_)
            with set_aside(_KIND, row["_id"]):
                waits[row["_id"]] = await _judge(context, row, named[id_])
        await rows.asked(id_ for id_, parties in waits.items() if parties)
        await rows.forget(row["_id"] for row in page if not waits.get(row["_id"]))
        for party in sorted({each for parties in waits.values() for each in parties}):
            await mended_causes.look_at(context, party)
    finally:
        pause = timedelta() if len(page) == _AT_ONCE else _EVERY
        due = context.services.clock.now() + pause
        await context.services.get(Timers).set(_KIND, _KEY, due)


TIMER = Timer(_KIND, run, is_about_many=True, at_most=lambda _: _EVERY)


async def _subscription(context: Context, id_: str) -> Resource | None:
    """A Subscription as it is, or was before it was deleted."""
    store = context.services.store
    stored = await store.read("Subscription", id_)
    if stored is not None and stored.deleted:
        stored = await store.vread("Subscription", id_, stored.version - 1)
    return None if stored is None or stored.deleted else stored.resource()


async def _judge(context: Context, row: Document, subscription: Resource | None) -> set[str]:
    """Store what waits in the place of a row; returns the references by which that is found.

    Nothing, where the Subscription was not for a practice's panel, or the topic is not one to tell practices of.
    """
    topic = context.services.get(SubscriptionRegistry).catalogue.by_url.get(row["topic"] or "")
    if topic is None or topic.url not in no_recipient.urls(context.settings):
        return set()
    if subscription is None or not panels_of(subscription):
        return set()
    event = await load_event(context.services.store, _event_row(row))
    resource = event.resource or event.previous
    if resource is None or no_recipient.is_about_a_group(resource):
        return set()
    place, now = f"{event.type}/{event.resource_id}", context.services.mongo.now()
    found = await no_recipient.attributed(
        context, no_recipient.patient_named(context, event), resource, now
    )
    hears = no_recipient.hearing(context, topic.url, event.type)
    causes = no_recipient.untold(found, place, hears)
    rows, waits = UntoldRows(context.services.mongo), set()
    fired = (topic.url, row["trigger"])
    for why in causes or _heard(context, subscription, found.way):
        await rows.add_missed(event, fired, why, REVIEW_REASONS[why.cause])
        waits.add(why.concerns if why.concerns in why.parties else why.parties[0])
        if causes:
            await untold_review.ask(context, why, place)
    return waits


def _event_row(row: Document) -> Document:
    return {"_id": row["event"], **row["focus"], "context": row.get("context", [])}


def _heard(context: Context, subscription: Resource, way: tuple[str, ...]) -> list[Untold]:
    """What is to be told at once, since the practice hears by another Subscription; nobody is asked."""
    practice = reference_of(subscription, context.settings.base_url.rstrip("/"))
    if practice is None:
        practice = panels_of(subscription)[0]
    patient = way[0] if way else None
    return [Untold("nobody-listens", practice, patient, references([practice], way))]
