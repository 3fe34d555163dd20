"""Events that are matched once more, for some Subscriptions: what was set aside, what a Subscription missed, and what
a patient's new practice is to be told.

All of it is one routine: match event E for Subscriptions S and record it, which is idempotent for each of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from pymongo.errors import PyMongoError

from app.runtime.leases import Claim, LostError, is_nobodys_fault
from app.runtime.mongo import Document, Mongo
from app.store.events import Event, load_event
from app.store.store import Store
from app.subscriptions.ledger.event_recorder import EventRecorder
from app.subscriptions.ledger.ledger import EVENTS_ONLY, Delivery, delivery_rows
from app.subscriptions.ledger.outbox import ContentionError, Outbox
from app.subscriptions.ledger.recorded_events import RecordedEvents
from app.subscriptions.ledger.unmatched import Row, Selected, Unmatched, event_row, is_waiting
from app.subscriptions.matching.event_matcher import EventMatcher
from app.subscriptions.matching.judges import ALL, Failure, subscription_of
from app.subscriptions.matching.registry import Learnt, SubscriptionRegistry

log = logging.getLogger(__name__)

# So many rows are replayed in one sweep: the others are due in the next, a second later.
_AT_ONCE = 200
# So many are replayed for an operator who waits; the others are due at once.
_MOST_ASKED = 1_000
# Processes' clocks may differ by this much: an event that was committed just before a Subscription counts too.
_OVERLAP = timedelta(seconds=0.5)
# A process that died is looked at so far back: others learn of a Subscription within a second, or 15 at worst.
_LOOK_BACK = timedelta(seconds=90)


class Rematching:
    """Replays and later matches of this process."""

    def __init__(
        self,
        mongo: Mongo,
        store: Store,
        registry: SubscriptionRegistry,
        matcher: EventMatcher,
        outbox: Outbox,
        unmatched: Unmatched,
        recorder: EventRecorder,
        recorded: RecordedEvents,
    ) -> None:
        self._mongo = mongo
        self._store = store
        self._registry = registry
        self._matcher = matcher
        self._outbox = outbox
        self._unmatched = unmatched
        self._recorder = recorder
        self._recorded = recorded
        self._replaying = asyncio.Lock()

    async def match_again(
        self, event: Event, only: Collection[str] | None, *, as_of_now: bool = False
    ) -> Sequence[Failure]:
        """Match an event for these Subscriptions, None for all, and record it; returns what judges failed of."""
        async with self._recorder.lock:
            return await self._match_again(event, only, as_of_now=as_of_now)

    async def _match_again(
        self, event: Event, only: Collection[str] | None, *, as_of_now: bool = False
    ) -> Sequence[Failure]:
        """The same for who holds the `lock`."""
        at = self._mongo.now() if as_of_now else None
        with self._store.search_state.applied():
            matched = await self._recorder.plan(event, await self._waiting(event), only, at)
            (plan,) = await self._recorder.judged([matched])
            await self._recorder.record([plan], finishes=False, as_of_now=as_of_now)
        return plan.failures

    async def _waiting(self, event: Event) -> set[str]:
        key = (event.type, event.resource_id)
        found = await self._unmatched.waiting({key: event.version})
        return {judge for judges in found.get(key, {}).values() for judge in judges}

    # What was set aside

    async def replay_due(self) -> None:
        """Ask the judges of rows that are due, a few at a time."""
        if self._replaying.locked():
            return
        async with self._replaying:
            for _ in range(_AT_ONCE):
                if (claim := await self._unmatched.claim()) is None:
                    return
                await self._replay(claim)

    async def replay(self, selected: Selected) -> Document:
        """Ask the judges of the rows that an operator selects, now; `{decided, unmatched}`.

        Of very many the last ones are merely due. What another process has in hand counts as it finds it.
        """
        which = selected.condition()
        async with self._replaying:  # or what is made due here would be in hand over there
            ids = await self._unmatched.ids(which)
            await self._unmatched.hasten({"_id": {"$in": ids}})
            for id_ in ids[:_MOST_ASKED]:
                if (claim := await self._unmatched.claim({"_id": id_})) is not None:
                    await self._replay(claim)
        left = await self._unmatched.count({"_id": {"$in": ids}})
        return {"decided": len(ids) - left, "unmatched": left}

    async def _replay(self, claim: Claim[Row]) -> None:
        """Ask the judge of a row. Raises what is nobody's fault, once the row is put back."""
        try:
            async with self._unmatched.kept(claim):
                await self._ask(claim)
        except LostError:
            log.info("replay left", extra={"action": "replay"})
        except Exception as error:
            await self._unmatched.failed(claim, error)
            if is_nobodys_fault(error):
                raise
            name = type(error).__name__
            log.warning("cannot replay", extra={"action": "replay", "error": name})

    async def _ask(self, claim: Claim[Row]) -> None:
        row = claim.row
        judge = row["judge"]
        subscription = subscription_of(judge)
        if subscription is not None and await self._has_ended(subscription):
            await self._unmatched.end(judge)
            return
        event = await load_event(self._store, event_row(row))
        if is_waiting(judge, await self._waiting(event)):
            await self._unmatched.put_behind(claim)
            return
        only = None if judge == ALL else self._matcher.judged_by(judge)
        failures = await self.match_again(event, only, as_of_now=row.get("as_of_now", False))
        own = next((failure for failure in failures if failure.judge == judge), None)
        if own is None:
            await self._unmatched.decided(claim)
        else:
            await self._unmatched.put_off(claim, own)

    async def _has_ended(self, subscription: str) -> bool:
        """Whether a Subscription is off or deleted; one that is merely not understood here is not."""
        known = self._registry.get(subscription)
        if known is not None:
            return known.status == "off"
        stored = await self._store.read("Subscription", subscription)
        return stored is None or stored.deleted or stored.resource()["status"] == "off"

    # What a Subscription has missed

    async def learn(self) -> None:
        """Match what was recorded here for the Subscriptions that were learnt of meanwhile; `lock` must be held."""
        learnt = self._registry.take_learnt()
        if not learnt:
            return
        try:
            since = {each.id: await self._began(each) - _OVERLAP for each in learnt}
            earliest = min(since.values())
            rows = self._recorded.since(earliest)
            if rows is None:
                rows = await self._outbox.committed_since(earliest)
            await self._catch_up(rows, since)
        except (PyMongoError, ContentionError):
            self._registry.put_back(learnt)
            raise

    async def learn_for(self, owner: str) -> None:
        """Match what a process that is gone has recorded, for the Subscriptions that it may not have known."""
        since = self._mongo.now() - _LOOK_BACK
        async with self._recorder.lock:
            begun = await self._outbox.subscriptions_since(since)
            if begun:
                rows = await self._outbox.committed_since(min(begun.values()) - _OVERLAP, owner)
                await self._catch_up(rows, {each: at - _OVERLAP for each, at in begun.items()})

    async def _began(self, learnt: Learnt) -> datetime:
        """When the first of the versions was committed that were new to this process."""
        if learnt.version < learnt.newest:
            first = await self._store.vread("Subscription", learnt.id, learnt.version)
            if first is not None:
                return first.at
        return learnt.at

    async def _catch_up(self, rows: Sequence[Document], since: dict[str, datetime]) -> None:
        for row in sorted(rows, key=lambda row: row["_id"]):
            only = {
                each
                for each, at in since.items()
                if row["at"] >= at and self._may_concern(each, row["type"])
            }
            if only and (event := await self._recorder.load(row)) is not None:
                await self._match_again(event, only)

    def _may_concern(self, subscription: str, resource_type: str) -> bool:
        known = self._registry.get(subscription)
        if known is None or known.status == "off":
            return False
        types = known.topic.resource_types if known.topic else (known.criteria.scope,)
        return resource_type in types

    # Who a patient's practice is now

    async def tell_new_practice(self, delivery: Delivery) -> None:
        """Match the event of a row whose patient is the recipient's no more, by the practice of now.

        A Subscription counts what came after it was written. One that was told of a newer version of the same resource
        is not told of this one: it would come after the newer.
        """
        focus = delivery.focus
        row = await self._outbox.row(delivery.event)
        if row is None:
            row = event_row({"event": delivery.event, "focus": dict(focus)})
        event = await load_event(self._store, row)
        if event.topic is not None:  # whoever raises events tells those who come later by itself
            return
        try:
            following = await self._matcher.following(event, self._mongo.now())
        except Exception as error:
            if is_nobodys_fault(error):
                raise
            await self._recorder.set_aside(event, error, as_of_now=True)
            return
        following -= await self._told_of_newer(focus)
        only = {each for each in following if await self._counted_at(each, event.at)}
        if only:
            await self.match_again(event, only, as_of_now=True)

    async def _counted_at(self, subscription: str, at: datetime) -> bool:
        """Whether the Subscription was there already."""
        first = await self._store.vread("Subscription", subscription, 1)
        return first is not None and first.at <= at

    async def _told_of_newer(self, focus: Mapping[str, Any]) -> set[str]:
        newer = {
            "focus.type": focus["type"],
            "focus.id": focus["id"],
            "focus.version": {"$gt": focus["version"]},
            **EVENTS_ONLY,
        }
        return set(await delivery_rows(self._mongo).distinct("subscription", newer))
