"""Events that reach no primary care practice: each gets a row in the ledger and review Tasks for its problems.

The row, `suppressed` and with `unrouted-<event>` in place of a Subscription's id, represents the notice that could not
be sent. It is written after the commit, apart from the notices to others; docs/routing.md says when.
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
# The problems that leave an event without a recipient; the first one found is the row's reason.
_NO_RECIPIENT = ("no-subject", "unknown-patient", "pcp-period-ended", "no-pcp", "no-endpoint")
# The problems for which encounter_review creates the Task.
_REVIEWED_ELSEWHERE = frozenset({"no-subject", "unknown-patient", "merged-patient"})


async def run(context: Context, event: Event) -> None:
    if event.resource is None or event.fields is None:
        return
    if event.type == "Encounter" and is_record(event):
        return
    patient = patient_of(event.type, event.fields, context.settings.base_url.rstrip("/"))
    matching = context.services.get(SubscriptionRegistry).facts_of(event)
    fired = None if matching is None else await _fired(context, event, matching)
    if fired is None:
        return
    found = await _attribution(context, patient, event.at)
    index = context.services.get(SubscriptionRegistry).index
    if not index.routes_by(PCP) and {"no-subject", "unknown-patient"} & set(found.problems):
        return  # no Subscription follows a panel, and encounter_review covers these two problems
    for problem in found.problems:
        if problem not in _REVIEWED_ELSEWHERE:
            focus = f"{event.type}/{event.resource_id}"
            if patient is None or "unknown-patient" in found.problems:
                await review_tasks.ask(context, problem, focus, patient=None)
            else:
                await review_tasks.ask_of_patient(context, problem, focus, patient)
    reached = [each for each in found.providers if attribution.is_heard(each, listening(context))]
    cause = next((problem for problem in _NO_RECIPIENT if problem in found.problems), None)
    if not reached and cause is not None:
        await _record(context, event, fired, REVIEW_REASONS[cause])


async def sift(context: Context, events: Sequence[Event]) -> list[Event]:
    """The events about patients who are not known to have a reachable practice."""
    checked, base_url = (
        context.services.get(RecentlyChecked),
        context.settings.base_url.rstrip("/"),
    )
    about = {
        event.id: patient_of(event.type, event.fields, base_url)
        for event in events
        if event.fields is not None
    }
    unchecked = {patient for patient in about.values() if patient and not checked.knows(patient)}
    if unchecked:
        now = context.services.mongo.now()
        for patient in await many.in_order(
            context.services.store, unchecked, now, context.settings, listening(context)
        ):
            checked.note(patient)
    return [event for event in events if not checked.knows(about.get(event.id) or "")]


REACTION = Reaction(
    "unrouted", _TYPES, run, is_wanted=lambda settings: settings.unrouted, sift=sift
)


def listening(context: Context) -> attribution.Listening:
    """A test of whether a current Subscription names a provider as its filter."""
    index = context.services.get(SubscriptionRegistry).index
    return lambda reference: index.asks_for(f"{PCP}={reference}")


async def _attribution(context: Context, patient: str | None, at: datetime) -> Attribution:
    if patient is None:
        return Attribution("", (), ("no-subject",))
    return await attribution.primary_care(
        context.services.store, patient, at, context.settings, listening=listening(context)
    )


async def _fired(
    context: Context, event: Event, matching: MatchContext
) -> tuple[Topic, Trigger] | None:
    """The first of the care-coordination topics that the event fires."""
    registry = context.services.get(SubscriptionRegistry)
    wanted = set(urls(context))
    for topic in registry.catalogue.watching(event.type):
        if topic.url in wanted:
            trigger = await topic.fired(event, registry.asking(matching), registry.surroundings)
            if trigger is not None:
                return topic, trigger
    return None


def urls(context: Context) -> list[str]:
    """The canonicals of the topics that the server itself subscribes practices to (CARERELAY_ENDPOINT_TOPICS)."""
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
