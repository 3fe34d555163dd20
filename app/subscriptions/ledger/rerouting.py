"""What nobody was told of, told after all: events that are matched for the practices that patients have now.

A Subscription of a practice is told of what came before it was written, too, for the practice had been missed. One that
was told of a newer version of the same record is not told of the older: it would come after the newer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from app.attribution.derived import PCP
from app.runtime.leases import is_nobodys_fault
from app.runtime.mongo import Mongo
from app.store.events import Event, event_rows, load_event
from app.store.store import Store
from app.subscriptions.ledger.event_recorder import EventRecorder
from app.subscriptions.ledger.lanes import sequence
from app.subscriptions.ledger.ledger import delivery_rows
from app.subscriptions.ledger.outbox import Planned
from app.subscriptions.ledger.unmatched import Unmatched
from app.subscriptions.matching.event_matcher import SubscriptionMatch
from app.subscriptions.matching.registration import Registration
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.sending.told_once import Told, admission_of, admissions_of, told_once

log = logging.getLogger(__name__)

# `told`: a Subscription will have the event. `known`: it has it already. `newer`: each one that follows the patient
# knows better. `unasked`: none of those that follow the patient asks for it. `unreadable`: the record is damaged.
# `withheld`: consent, labels or rights keep it back. `settled`: it was withheld, or could not be delivered, before.
# `once`: it is told as the admission that it is, too. `later`: a newer version is being matched, so that it cannot be
# said yet.
Ending = Literal[
    "told", "known", "withheld", "settled", "once", "newer", "unasked", "unreadable", "later"
]

# The states in which a row may end undelivered.
_NOT_TOLD = frozenset({"dead", "suppressed"})

Version = tuple[str, str]
# The id of an event and the topic that it fired.
_Fired = tuple[Any, Any]
_Row = Mapping[str, Any]


class Rerouting:
    """Tells practices of events that they were not told of in time."""

    def __init__(
        self,
        mongo: Mongo,
        store: Store,
        registry: SubscriptionRegistry,
        unmatched: Unmatched,
        recorder: EventRecorder,
    ) -> None:
        self._mongo = mongo
        self._store = store
        self._registry = registry
        self._unmatched = unmatched
        self._recorder = recorder

    async def tell(self, rows: Sequence[_Row]) -> list[Ending]:
        """Match the events of rows (untold_rows.py::event_row) for panels, by the practices of now, and record them.

        What is recorded already is not recorded again. The lock is held for the numbers alone, for new events wait.
        """
        if not rows:
            return []
        fired = {(row["_id"], row["topic"]): row for row in rows}
        endings: dict[_Fired, Ending] = dict.fromkeys(fired, "unreadable")
        with self._store.search_state.applied():
            events = [event for event in await self._loaded(fired.values()) if event is not None]
            plans = await self._recorder.judged(await self._planned(events))
            async with self._recorder.lock:
                known = await self._known(events, fired)
                once = known.each_once(plans)
                kept = [known.without(plan) for plan in once]
                await self._recorder.record(kept, finishes=False, as_of_now=True)
        for plan, single, rest in zip(plans, once, kept, strict=True):
            is_once = _matched(plan) != _matched(single) == []
            ending = "once" if is_once else _ending(single, rest, known)
            endings[plan.event.id, plan.event.topic] = ending
        return [endings[row["_id"], row["topic"]] for row in rows]

    async def decided(self, events: Collection[Event]) -> set[Any]:
        """The ids of events of which a Subscription that follows a panel has a row, sent or withheld."""
        if not events:
            return set()
        which = {
            "focus.id": {"$in": sorted({event.resource_id for event in events})},
            "event": {"$in": [event.id for event in events]},
            "number": {"$ne": 0},
        }
        found = delivery_rows(self._mongo).find(which, {"event": 1, "subscription": 1})
        panels = self._registry.index.routed_by(PCP)
        return {row["event"] for row in await found.to_list(None) if row["subscription"] in panels}

    async def asking(self, event: Event) -> set[str]:
        """The Subscriptions that an event would be told to, or withheld from, if it were matched for panels now."""
        with self._store.search_state.applied():
            (plan,) = await self._recorder.judged(await self._planned([event]))
        return {each.registration.id for each in _matched(plan)}

    async def _loaded(self, rows: Iterable[_Row]) -> list[Event | None]:
        """The events of rows; None for one that cannot be read. Raises what is nobody's fault."""

        async def loaded(row: _Row) -> Event | None:
            try:
                return await load_event(self._store, dict(row))
            except Exception as error:
                if is_nobodys_fault(error):
                    raise
                told = {"action": "reroute", "resource_type": row["type"], "id": row["id"]}
                log.exception("cannot be told after all", extra=told)
                return None

        return list(await asyncio.gather(*(loaded(row) for row in rows)))

    async def _planned(self, events: Sequence[Event]) -> list[Planned]:
        panels = self._registry.index.routed_by(PCP)
        newest: dict[Version, int] = {}
        for event in events:
            key = (event.type, event.resource_id)
            newest[key] = max(event.version, newest.get(key, 0))
        waiting = await self._unmatched.waiting(newest)
        now = self._mongo.now()

        async def planned(event: Event) -> Planned:
            older = waiting.get((event.type, event.resource_id), {})
            judges = {
                judge
                for version, several in older.items()
                if version < event.version
                for judge in several
            }
            return await self._recorder.plan(event, judges, panels, now)

        return list(await asyncio.gather(*(planned(event) for event in events)))

    async def _known(self, events: Sequence[Event], fired: Mapping[_Fired, _Row]) -> _Known:
        """What the ledger has of these events, and of newer versions of the same records."""
        ids = {"$in": sorted({event.resource_id for event in events})}
        names = (
            "subscription",
            "event",
            "number",
            "focus",
            "state",
            "sequence",
            "topic",
            "trigger",
        )
        fields = dict.fromkeys(names, 1)
        found = delivery_rows(self._mongo).find({"focus.id": ids, "number": {"$ne": 0}}, fields)
        newest: dict[tuple[str, str, str], int] = {}
        recorded: dict[tuple[Any, str], bool] = {}
        admitted: dict[Any, set[Told]] = {}
        for row in await found.to_list(None):
            focus = row["focus"]
            recorded[row["event"], row["subscription"]] = row["state"] not in _NOT_TOLD
            if (admission := admission_of(row)) is not None:
                admitted.setdefault(row["event"], set()).add(admission)
            if row["number"] > 0:
                key = (row.get("sequence", row["subscription"]), focus["type"], focus["id"])
                newest[key] = max(focus["version"], newest.get(key, 0))
        pending = event_rows(self._mongo).find(
            {"state": "pending", "id": ids}, {"type": 1, "id": 1}
        )
        unread = {(row["type"], row["id"]) for row in await pending.to_list(None)}
        return _Known(
            recorded,
            admitted,
            newest,
            frozenset(unread),
            {key: row["since"] for key, row in fired.items()},
        )


class _Known(NamedTuple):
    """Which Subscriptions have which event, and the newest version of each record that each sequence was told of.

    `recorded` says whether they are told, or will be; `admitted` is what was told as an admission. `unread` are the
    records with changes that nobody has looked at yet; `since` is the version that fired.
    """

    recorded: Mapping[tuple[Any, str], bool]
    admitted: Mapping[Any, set[Told]]
    newest: Mapping[tuple[str, str, str], int]
    unread: frozenset[Version]
    since: Mapping[_Fired, int]

    def has(self, event: Event, subscription: str) -> bool:
        return (event.id, subscription) in self.recorded

    def knows_better(self, event: Event, registration: Registration) -> bool:
        """Whether who is told by a Subscription was told of a newer version, be it by another of one stream."""
        key = (sequence(registration), event.type, event.resource_id)
        return self.newest.get(key, 0) > self.since[event.id, event.topic]

    def is_early(self, event: Event) -> bool:
        """Whether somebody may be told of a newer version in this moment."""
        return (event.type, event.resource_id) in self.unread

    def without(self, plan: Planned) -> Planned:
        """A plan without the Subscriptions that have the event, or know better, or may do so in a moment."""
        event = plan.event
        if self.is_early(event):
            return replace(plan, matches=[], withheld=[], failures=[])

        def is_new(match: SubscriptionMatch) -> bool:
            known = match.registration
            return not self.has(event, known.id) and not self.knows_better(event, known)

        return replace(
            plan,
            matches=[each for each in plan.matches if is_new(each)],
            withheld=[each for each in plan.withheld if is_new(each.match)],
        )

    def each_once(self, plans: Sequence[Planned]) -> list[Planned]:
        """The plans, of which several may be of one event, without what is told as an admission of it."""
        admitted = {event: set(several) for event, several in self.admitted.items()}
        for plan in plans:
            admitted.setdefault(plan.event.id, set()).update(admissions_of(plan))
        return [told_once(plan, admitted[plan.event.id]) for plan in plans]


def _ending(plan: Planned, rest: Planned, known: _Known) -> Ending:
    if known.is_early(plan.event):
        return "later"
    if rest.matches or plan.failures:
        return "told"
    matched = _matched(plan)
    keys = [(plan.event.id, each.registration.id) for each in matched]
    found = [known.recorded[key] for key in keys if key in known.recorded]
    if any(found):
        return "known"
    if rest.withheld:
        return "withheld"
    if found:
        return "settled"
    return "newer" if matched else "unasked"


def _matched(plan: Planned) -> list[SubscriptionMatch]:
    return [*plan.matches, *(each.match for each in plan.withheld)]
