"""Events that concern no primary care practice: the ledger says so, and a person is asked to put it right.

A row of state `suppressed` under a Subscription that is none, `unrouted-<event>`, stands for the notice that could not
be sent. It is written after the commit and beside the notices that others get; docs/routing.md says when.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pymongo.errors import DuplicateKeyError

from app.attribution import attribution, many
from app.attribution.attribution import Attribution
from app.attribution.derived import PCP, patient_of
from app.automation import review_tasks
from app.automation.reactions import Reaction
from app.automation.review_tasks import RecentlyChecked
from app.context import Context
from app.coordination.practices.encounter_review import is_record
from app.fhir.codes import REVIEW_REASONS
from app.store.events import Event
from app.subscriptions.ledger.delivery_rows import row_of
from app.subscriptions.ledger.ledger import delivery_rows
from app.subscriptions.matching.match_context import MatchContext
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.topics.topics import Topic, Trigger

_TYPES = frozenset({"Encounter", "CarePlan"})
# What keeps every practice from being told, in the order in which it is given as the reason.
_UNTOLD = ("no-subject", "unknown-patient", "pcp-period-ended", "no-pcp", "no-endpoint")
# What a visit's own review has asked already.
_ASKED_ELSEWHERE = frozenset({"no-subject", "unknown-patient", "merged-patient"})


async def run(context: Context, event: Event) -> None:
    if event.resource is None or event.fields is None:
        return
    if event.type == "Encounter" and is_record(event):
        return
    patient = patient_of(event.type, event.fields, context.settings.base_url.rstrip("/"))
    facts = context.services.get(SubscriptionRegistry).facts_of(event)
    fired = None if facts is None else await _fired(context, event, facts)
    if fired is None:
        return
    found = await _attribution(context, patient, event.at)
    index = context.services.get(SubscriptionRegistry).index
    if not index.routes_by(PCP) and {"no-subject", "unknown-patient"} & set(found.problems):
        return  # nobody here is told of panels, and the visit's own review speaks of the rest
    for problem in found.problems:
        if problem not in _ASKED_ELSEWHERE:
            focus = f"{event.type}/{event.resource_id}"
            if patient is None or "unknown-patient" in found.problems:
                await review_tasks.ask(context, problem, focus, patient=None)
            else:
                await review_tasks.ask_of_patient(context, problem, focus, patient)
    heard = [each for each in found.providers if attribution.is_heard(each, listening(context))]
    untold = next((problem for problem in _UNTOLD if problem in found.problems), None)
    if not heard and untold is not None:
        await _record(context, event, fired, REVIEW_REASONS[untold])


async def sift(context: Context, events: Sequence[Event]) -> list[Event]:
    """Those about patients with whose practices something may be amiss; the others are known to be in order."""
    recently, base_url = (
        context.services.get(RecentlyChecked),
        context.settings.base_url.rstrip("/"),
    )
    about = {
        event.id: patient_of(event.type, event.fields, base_url)
        for event in events
        if event.fields is not None
    }
    asked = {patient for patient in about.values() if patient and not recently.knows(patient)}
    if asked:
        now = context.services.mongo.now()
        for patient in await many.in_order(
            context.store, asked, now, context.settings, listening(context)
        ):
            recently.note(patient)
    return [event for event in events if not recently.knows(about.get(event.id) or "")]


REACTION = Reaction(
    "unrouted", _TYPES, run, is_wanted=lambda settings: settings.unrouted, sift=sift
)


def listening(context: Context) -> attribution.Listening:
    """Whether a Subscription of this moment names a provider as its filter."""
    index = context.services.get(SubscriptionRegistry).index
    return lambda reference: index.asks_for(f"{PCP}={reference}")


async def _attribution(context: Context, patient: str | None, at: datetime) -> Attribution:
    if patient is None:
        return Attribution("", (), ("no-subject",))
    return await attribution.primary_care(
        context.store, patient, at, context.settings, listening=listening(context)
    )


async def _fired(
    context: Context, event: Event, facts: MatchContext
) -> tuple[Topic, Trigger] | None:
    """The first of the care-coordination topics that the event fires."""
    registry = context.services.get(SubscriptionRegistry)
    wanted = set(urls(context))
    for topic in registry.catalogue.watching(event.type):
        if topic.url in wanted:
            trigger = await topic.fired(event, registry.asking(facts), registry.surroundings)
            if trigger is not None:
                return topic, trigger
    return None


def urls(context: Context) -> list[str]:
    """The canonicals of the topics that practices are told of unasked."""
    base = context.settings.topic_base.rstrip("/")
    names = [each.strip() for each in context.settings.endpoint_topics.split(",")]
    return [each if ":" in each else f"{base}/{each}" for each in names if each]


async def _record(
    context: Context, event: Event, fired: tuple[Topic, Trigger], reason: str
) -> None:
    topic, trigger = fired
    now = context.services.mongo.now()
    name = f"unrouted-{event.id}"
    row = row_of(event, name, 0, f"{name}|", (topic.url, trigger.coding), now)
    row |= {"state": "suppressed", "reason": reason}
    try:
        await delivery_rows(context.services.mongo).insert_one(row)
    except DuplicateKeyError:
        return  # the reaction has run before
