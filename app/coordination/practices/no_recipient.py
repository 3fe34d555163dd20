"""Fired topics that reach no primary care practice: each gets a row in the ledger and a review Task for its cause.

The row represents the notice that could not be sent (app/subscriptions/ledger/untold_rows.py). It is written after the
commit, apart from the notices to others, one for each practice that hears nothing; docs/routing.md says when.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from app.attribution import attribution, many
from app.attribution.attribution import Attribution, Listening
from app.attribution.derived import PCP, patient_of
from app.automation import review_tasks
from app.automation.reactions import Reaction
from app.automation.review_tasks import RecentlyChecked
from app.automation.timers import Timers
from app.context import Context
from app.coordination.practices import encounter_review, untold_review
from app.coordination.practices.encounter_review import is_record
from app.coordination.practices.untold_review import OF_PATIENTS
from app.fhir.codes import REVIEW_REASONS
from app.fhir.json import Resource
from app.settings import Settings
from app.store.events import Event
from app.subscriptions.ledger.rerouting import Rerouting
from app.subscriptions.ledger.untold_rows import (
    IN_DOUBT,
    IN_DOUBT_REASON,
    Untold,
    UntoldRows,
    references,
)
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.topics.topics import Coding, Topic

_TYPES = frozenset({"Encounter", "CarePlan"})
# The problems that leave an event without a practice and lie with the record.
OF_RECORDS = ("no-subject", "subject-by-identifier", "unknown-patient")

# The kind of the timers that look at rows again (mended_causes.py).
REROUTE = "reroute"

Fired = tuple[Topic, Coding | None]


async def run(context: Context, event: Event) -> None:
    if event.topic is None and event.type == "Encounter" and is_record(event):
        return
    fired = await fired_by(context, event)
    resource = event.resource or event.previous
    if not fired or resource is None or is_about_a_group(resource):
        return
    place = f"{event.type}/{event.resource_id}"
    found = await attributed(context, patient_named(context, event), resource, event.at)
    if "several-pcps" in found.problems:
        await _ask_to_choose(context, found, place)
    rows = UntoldRows(context.services.mongo)
    causes: dict[tuple[str, str], Untold] = {}
    for topic, coding in fired:
        for why in untold(found, place, hearing(context, topic.url, event.type)):
            await rows.add(event, (topic.url, coding), why, REVIEW_REASONS[why.cause])
            causes[why.cause, why.concerns] = why
    for why in causes.values():
        await untold_review.ask(context, why, place)
    if _may_be_missed(event):
        await _doubt(context, event, found, fired)


def _may_be_missed(event: Event) -> bool:
    """Whether the practices of now are to be told of it; of plans they get copies (care_plans/copies.py)."""
    return event.topic is None and event.type == "Encounter"


async def _doubt(
    context: Context, event: Event, found: Attribution, fired: Sequence[Fired]
) -> None:
    """Have an event matched anew that was told to no practice, though one hears of it by now.

    Who was named, or began to listen, between the matching and this moment was not there for the one and is no cause
    for the other.
    """
    heard = [
        (each, practice)
        for each in fired
        for practice in _heard(found, hearing(context, each[0].url, event.type))
    ]
    rerouting = context.services.get(Rerouting)
    if not heard or await rerouting.decided([event]):
        return
    asking = await rerouting.asking(event)
    index = context.services.get(SubscriptionRegistry).index
    rows = UntoldRows(context.services.mongo)
    for (topic, coding), practice in heard:
        names = [each.references for each in found.providers if each.practice == practice]
        terms = [f"{PCP}={each}" for several in names for each in several]
        if asking.isdisjoint(index.requiring(terms)):
            continue
        why = Untold(IN_DOUBT, practice, found.way[0], references([practice], found.way, *names))
        await rows.add(event, (topic.url, coding), why, IN_DOUBT_REASON)
        # With what waits of the same patient, which is to be told in its order.
        due = context.services.clock.now()
        await context.services.get(Timers).set(REROUTE, found.way[0], due)


def _heard(found: Attribution, hears: Listening) -> list[str]:
    """The practices that hear of a topic."""
    deaf = attribution.unheard(found.providers, hears)
    return list(
        dict.fromkeys(each.practice for each in found.providers if each.practice not in deaf)
    )


async def _ask_to_choose(context: Context, found: Attribution, place: str) -> None:
    if "unknown-patient" in found.problems:
        await review_tasks.ask(context, "several-pcps", place, patient=None)
    else:
        await review_tasks.ask_of_patient(context, "several-pcps", place, found.way[0])


async def sift(context: Context, events: Sequence[Event]) -> list[Event]:
    """The events about patients who are not known to have a practice that hears of everything.

    Where that has just been found, and may be younger than the event, the ledger has to have the event, too.
    """
    checked, base_url = (
        context.services.get(RecentlyChecked),
        context.settings.base_url.rstrip("/"),
    )
    now, changes = context.services.mongo.now(), checked.changes
    about = {
        event.id: patient_of(event.type, event.fields, base_url)
        for event in events
        if event.fields is not None
    }
    sure = {each.id for each in events if checked.knew(about.get(each.id) or "", each.at)}
    unsure = {patient for id_, patient in about.items() if patient and id_ not in sure}
    found = set(await in_order(context, unsure, urls(context.settings)))
    for patient in found:
        checked.note(patient, now, changes)
    hopeful = [each for each in events if each.id not in sure and about.get(each.id) in found]
    doubtful = [each for each in hopeful if _may_be_missed(each)]
    decided = await context.services.get(Rerouting).decided(doubtful)
    spared = sure | {each.id for each in hopeful if not _may_be_missed(each)} | decided
    return [event for event in events if event.id not in spared]


def urls(settings: Settings) -> list[str]:
    """The canonicals of the topics that the server itself subscribes practices to (CARERELAY_ENDPOINT_TOPICS)."""
    base = settings.topic_base.rstrip("/")
    names = [each.strip() for each in settings.endpoint_topics.split(",")]
    return [each if ":" in each else f"{base}/{each}" for each in names if each]


REACTION = Reaction(
    "unrouted",
    _TYPES,
    run,
    is_wanted=lambda settings: settings.unrouted,
    sift=sift,
    topics_of=urls,
)


# Who hears what


def listening(context: Context) -> Listening:
    """A test of whether a current Subscription names a provider as its filter, whatever it is about."""
    index = context.services.get(SubscriptionRegistry).index
    return lambda reference: bool(index.requiring([f"{PCP}={reference}"]))


def hearing(context: Context, topic: str, resource_type: str) -> Listening:
    """A test of whether a provider hears of a topic: by a Subscription to it, or in a form of its own.

    Such is one to a topic that is not among CARERELAY_ENDPOINT_TOPICS, or to a search, about that type. What a
    practice has left out by further filters it does not want to hear.
    """
    registry = context.services.get(SubscriptionRegistry)
    ours = frozenset(urls(context.settings))

    def covers(subscription: str) -> bool:
        known = registry.get(subscription)
        if known is None or registry.is_over(known):
            return False
        scope = known.criteria.scope
        if scope == topic or scope in ours:
            return scope == topic
        return resource_type in (known.topic.resource_types if known.topic else (scope,))

    def hears(reference: str) -> bool:
        return any(covers(each) for each in registry.index.requiring([f"{PCP}={reference}"]))

    return hears


async def in_order(context: Context, patients: Iterable[str], topics: Iterable[str]) -> list[str]:
    """The patients of whom nothing is amiss, and whose practice hears of each of the topics."""
    catalogue = context.services.get(SubscriptionRegistry).catalogue
    tests = [
        hearing(context, topic.url, resource_type)
        for url in topics
        if (topic := catalogue.by_url.get(url)) is not None
        for resource_type in topic.resource_types
    ]
    wanted = sorted(patients)
    if not wanted:
        return []
    now = context.services.mongo.now()
    return await many.in_order(
        context.services.store,
        wanted,
        now,
        context.settings,
        lambda reference: all(hears(reference) for hears in tests),
    )


# Why nobody is told


async def attributed(
    context: Context, patient: str | None, resource: Resource, at: datetime
) -> Attribution:
    """The practices of the patient whom a record names at a moment, and the problems found."""
    if patient is None:
        return Attribution("", (), (await _unnamed(context, resource),))
    return await attribution.primary_care(context.services.store, patient, at, context.settings)


def untold(found: Attribution, place: str, hears: Listening) -> list[Untold]:
    """Why a topic that `place` fired is not told: a cause for each practice that hears nothing, else one for all."""
    patient = found.way[0] if found.way else None
    if not found.providers:
        cause = next(each for each in (*OF_RECORDS, *OF_PATIENTS) if each in found.problems)
        if cause in OF_RECORDS or patient is None:
            return [Untold(cause, place, patient, references([place], found.way))]
        return [Untold(cause, patient, patient, references(found.way))]
    return [
        Untold(
            cause,
            practice,
            patient,
            references(
                found.way,
                *(each.references for each in found.providers if each.practice == practice),
            ),
        )
        for practice, cause in attribution.unheard(found.providers, hears).items()
    ]


async def fired_by(context: Context, event: Event) -> list[Fired]:
    """The care-coordination topics that the event fires, each with the coding of its trigger."""
    registry = context.services.get(SubscriptionRegistry)
    if event.topic is not None:
        raised = registry.catalogue.by_url.get(event.topic)
        return [] if raised is None else [(raised, event.trigger)]
    matching = registry.facts_of(event)
    if matching is None:
        return []
    wanted = set(urls(context.settings))
    fired: list[Fired] = []
    for topic in registry.catalogue.watching(event.type):
        if topic.url in wanted:
            trigger = await topic.fired(event, registry.asking(matching), registry.surroundings)
            if trigger is not None:
                fired.append((topic, trigger.coding))
    return fired


def patient_named(context: Context, event: Event) -> str | None:
    """The patient (`Patient/p1`) whom an event is about; of a deletion, whom the deleted version was."""
    fields = event.fields if event.fields is not None else event.previous_fields
    base_url = context.settings.base_url.rstrip("/")
    return None if fields is None else patient_of(event.type, fields, base_url)


async def _unnamed(context: Context, resource: Resource) -> str:
    """The problem of a record that names no Patient of this server by a literal reference."""
    subject = _subject(resource)
    if not subject:
        return "no-subject"
    meant = await encounter_review.patient_meant(context, subject)
    return "unknown-patient" if meant is None else "subject-by-identifier"


def is_about_a_group(resource: Resource) -> bool:
    return str(_subject(resource).get("reference", "")).startswith("Group/")


def _subject(resource: Resource) -> Resource:
    found: Resource = resource.get("subject") or resource.get("patient") or {}
    return found
