"""Subscription/$events: past events of a topic-based Subscription, returned again.

http://hl7.org/fhir/uv/subscriptions-backport/OperationDefinition/backport-subscription-events
Full resources are the events' versions, not the current ones. The requested content level may be below that of the
Subscription, never above it.
"""

from __future__ import annotations

import asyncio
import re

from app.authorization.rules import NO_PROVIDERS
from app.context import Context
from app.errors import BadRequest, Gone
from app.fhir import json as fhir_json
from app.interactions import interactions
from app.interactions.result import InteractionResult
from app.operations.arguments import Invocation
from app.operations.subscription_status import content_of, head_of
from app.search.bundle_writer import next_link
from app.subscriptions.ledger import ledger_queries
from app.subscriptions.ledger.ledger_queries import Span
from app.subscriptions.ledger.outbox import Outbox
from app.subscriptions.matching.channel_terms import CONTENTS, Content
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.notices import notification
from app.subscriptions.notices.event_reader import EventReader
from app.subscriptions.sending.owner_rights import OwnerRights, stricter
from app.subscriptions.sending.release_limits import ReleaseLimits

_NUMBER = re.compile(r"^[0-9]{1,15}$")


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """A history Bundle. 410 where a requested event is no longer kept.

    At most as many events as a page of a search; a `next` link leads to the others.
    """
    subscription = (await interactions.current(context, *invocation.instance)).resource()
    allowed = content_of(subscription)
    if allowed is None:
        raise BadRequest("Only topic-based Subscriptions have $events", code="not-supported")
    content = _content(invocation.one("content"), allowed)
    span = read_span(invocation)
    services = context.services
    number = await services.get(Outbox).number(subscription["id"])
    await _check_kept(context, subscription["id"], span, number)
    limit = context.settings.max_count
    rows = await ledger_queries.rows(services.mongo, subscription["id"], span, limit + 1)
    topic = services.get(SubscriptionRegistry).catalogue.find(subscription["criteria"])
    reader = EventReader(services.store, context.base_url)
    # The events are sent now, so the limits are those of now.
    limits = await services.get(ReleaseLimits).limits(
        [(row, None) for row in rows[:limit]],
        topic.url if topic else None,
        subscription["id"],
        int(subscription["meta"]["versionId"]),
        "authority" if context.caller.role in NO_PROVIDERS else "provider",
    )
    if context.access is not None:
        own = await services.get(OwnerRights).limits_of(context.access, rows[:limit], topic)
        limits = dict(stricter(limits, own))
    events = await asyncio.gather(
        *(
            reader.told_if_stored(row, topic, content, None, limits.get(row.id))
            for row in rows[:limit]
        )
    )
    head = head_of(context, subscription, number, content)
    bundle = notification.events_notification(head, "query-event", events)
    if len(rows) > limit:
        rest = [("eventsSinceNumber", str(rows[limit].number)), ("content", content)]
        if span.last is not None:
            rest.append(("eventsUntilNumber", str(span.last)))
        url = f"{context.base_url}/Subscription/{subscription['id']}/$events"
        bundle["link"] = [next_link(url, [*rest, *invocation.given.shaping])]
    return InteractionResult(200, text=fhir_json.encode(bundle))


def read_span(invocation: Invocation) -> Span:
    """The requested event numbers. Raises BadRequest for a value that is no number, or a reversed span."""
    span = Span(_number(invocation, "eventsSinceNumber"), _number(invocation, "eventsUntilNumber"))
    if span.first is not None and span.last is not None and span.first > span.last:
        raise BadRequest(
            "The first event comes after the last", code="value", expression="eventsUntilNumber"
        )
    return span


def _number(invocation: Invocation, name: str) -> int | None:
    text = invocation.one(name)
    if text is None:
        return None
    if not isinstance(text, str) or not _NUMBER.match(text):
        raise BadRequest("An event number is a whole number", code="value", expression=name)
    return int(text)


def _content(requested: str | None, allowed: Content) -> Content:
    if requested is None:
        return allowed
    if requested not in CONTENTS:
        known = ", ".join(CONTENTS)
        raise BadRequest(f"content must be one of {known}", code="value", expression="content")
    return min(requested, allowed, key=CONTENTS.index)


async def _check_kept(context: Context, subscription: str, span: Span, number: int) -> None:
    first = await ledger_queries.first_kept(context.services.mongo, subscription, number)
    # Events are numbered from 1: a request from 0 is one for all of them.
    lowest = span.first if span.first != 0 else 1
    if any(bound is not None and 0 < bound < first for bound in (lowest, span.last)):
        kept = f"the first that is kept is {first}" if first <= number else "none is kept"
        raise Gone(
            f"Events are kept for a limited time: those before {first} are gone, {kept}",
            expression="eventsSinceNumber",
        )
