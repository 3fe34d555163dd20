"""Why a version of a resource does or does not match a Subscription: topic by trigger, criteria by filter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bson import ObjectId

from app.fhir.json import Resource
from app.records.reader import Reader
from app.records.versions import Method, ResourceVersion
from app.search.extract import extract
from app.settings import Settings
from app.store.events import Event
from app.subscriptions.matching import criteria as criteria_
from app.subscriptions.matching.criteria import Criteria
from app.subscriptions.matching.match_context import MatchContext
from app.subscriptions.matching.registration import FILTER_CRITERIA, Registration
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.topics.topics import Coding, Topic, Trigger, interaction

_METHODS: dict[str, Method] = {
    "POST": "create",
    "PUT": "update",
    "PATCH": "patch",
    "DELETE": "delete",
}


@dataclass(frozen=True, slots=True)
class Judged:
    """A trigger or filter, and whether it holds. `note` says which part of it decided."""

    text: str
    holds: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """`fired` are the codings that the notice carries, None where no topic fires; `matches` is the verdict."""

    matches: bool
    triggers: Sequence[Judged]
    filters: Sequence[Judged]
    fired: Sequence[Coding] | None = None


async def event_of(store: Reader, stored: ResourceVersion) -> Event:
    """A stored version as the event that it was."""
    before = None
    if stored.version > 1:
        before = await store.vread(stored.type, stored.id, stored.version - 1)
    resource = None if stored.deleted else stored.resource()
    return Event(
        ObjectId(),
        stored.type,
        stored.id,
        stored.version,
        _METHODS.get(stored.method, "update"),
        stored.at,
        resource,
        None if resource is None else extract(stored.type, resource),
        before.text if before is not None and not before.deleted else None,
    )


async def matches(
    registry: SubscriptionRegistry, event: Event, found: Registration
) -> tuple[bool, Sequence[Coding] | None]:
    """Whether an event concerns a Subscription, stored or not; the codings of what its topic fires, if it does."""
    context = registry.facts_of(event)
    if context is None:
        return False, None
    fired: Sequence[Coding] | None = None
    if (topic := found.topic) is not None:
        test, surroundings = registry.asking(context), registry.surroundings
        trigger = await topic.fired(event, test, surroundings)
        if trigger is None:
            return False, None
        fired = await topic.codings_of(trigger, event, test, surroundings)
    elif event.fields is None or event.type != found.criteria.scope:
        return False, None
    return await registry.index.holds(found.criteria, context, fired or ()), fired


async def explain(
    registry: SubscriptionRegistry,
    settings: Settings,
    event: Event,
    subscription: Resource,
    read: Registration,
) -> Explanation:
    """The evaluation of one event by the Subscription as it is now."""
    context = registry.facts_of(event)
    if context is None:
        return Explanation(False, [], [])
    verdict, fired = await matches(registry, event, read)
    triggers = [
        await _judged_trigger(registry, event, context, trigger)
        for trigger in (read.topic.triggers if read.topic else ())
        if trigger.resource_type == event.type
    ]
    filters = []
    for text, criteria in _parts(subscription, read.topic, settings):
        holds = await registry.index.holds(criteria, context, fired or ())
        types = {clause.resource_type for clause in criteria.clauses}
        other = not types & {"", event.type}
        filters.append(Judged(text, holds, "about another resource type" if other else ""))
    return Explanation(verdict, triggers, filters, fired)


async def _judged_trigger(
    registry: SubscriptionRegistry, event: Event, context: MatchContext, trigger: Trigger
) -> Judged:
    text = trigger.description or f"a change of a {trigger.resource_type}"
    kind = interaction(event)
    if kind not in trigger.interactions:
        return Judged(text, False, f"not about {kind}")
    if not await trigger.queries_hold(event, registry.asking(context)):
        return Judged(text, False, "the versions do not meet its queryCriteria")
    if not await trigger.functions_hold(event, registry.surroundings):
        return Judged(text, False, "its fhirPathCriteria or function does not hold")
    return Judged(text, True)


def _parts(
    subscription: Resource, topic: Topic | None, settings: Settings
) -> Iterator[tuple[str, Criteria]]:
    """Each filter of a Subscription as criteria of its own."""
    if topic is None:
        name, _, query = str(subscription["criteria"]).partition("?")
        for part in query.split("&") if query else ():
            yield part, criteria_.classic(f"{name}?{part}", settings)
        return
    extensions = subscription.get("_criteria", {}).get("extension", ())
    own = [each["valueString"] for each in extensions if each["url"] == FILTER_CRITERIA]
    plain = replace(topic, alias=None)
    for text in (*own, *topic.implied):
        yield text, criteria_.topic_based(plain, [text], settings)
