"""Matching an event, judging and recording what comes of it, for intake, replay and whoever is to be told later.

Recording the same event for the same Subscription twice is recording it once: the ledger refuses the second row. What a
judge could not decide is set aside before the event is done (unmatched.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from datetime import datetime

from app.runtime import metrics
from app.runtime.leases import is_nobodys_fault
from app.runtime.mongo import Document, Mongo
from app.store.events import Event, load_event
from app.store.store import Store
from app.subscriptions.ledger import unmatched as unmatched_
from app.subscriptions.ledger.lanes import sequence
from app.subscriptions.ledger.outbox import Outbox, Planned
from app.subscriptions.ledger.standstill import Standstill
from app.subscriptions.ledger.unmatched import BEHIND, Unmatched
from app.subscriptions.matching.event_matcher import EventMatcher
from app.subscriptions.matching.judges import ALL, Failure, subscription_of
from app.subscriptions.notices.composer import Composer
from app.subscriptions.sending.backlog import Backlog
from app.subscriptions.sending.delivery import Sender
from app.subscriptions.sending.recording_check import RecordingCheck

log = logging.getLogger(__name__)

# Called with a Subscription whose own text cannot be evaluated, and with what is wrong with it.
OnFault = Callable[[str, str], None]


class EventRecorder:
    """Plans and records events; `lock` is held by who records, so that numbers are given by one at a time."""

    def __init__(
        self,
        mongo: Mongo,
        store: Store,
        matcher: EventMatcher,
        outbox: Outbox,
        unmatched: Unmatched,
        composer: Composer,
        sender: Sender,
        backlog: Backlog,
        check: RecordingCheck,
        on_fault: OnFault,
    ) -> None:
        self._mongo = mongo
        self._store = store
        self._matcher = matcher
        self._outbox = outbox
        self._unmatched = unmatched
        self._composer = composer
        self._sender = sender
        self._backlog = backlog
        self._check = check
        self._on_fault = on_fault
        self.lock = asyncio.Lock()
        self.standstill = Standstill()

    async def plan(
        self,
        event: Event,
        waiting: Collection[str] = (),
        only: Collection[str] | None = None,
        at: datetime | None = None,
    ) -> Planned:
        """The event with the Subscriptions that it matches, of `only` these if given, and the judges that failed.

        What it is an event of, `judged` says. Judges for which an older version is `waiting` are not asked. Raises what
        is nobody's fault. `at` is the time as of which the patient's practice counts, the event's if None.
        """
        if ALL in waiting:
            return Planned(event, (), unmatched_.behind([ALL]))
        try:
            matched = await self._matcher.match(event, only, frozenset(waiting), at)
        except Exception as error:
            if is_nobodys_fault(error):
                raise
            return Planned(event, (), [Failure(ALL, type(error).__name__)])
        matches, failures = matched.matches, list(matched.failures)
        if waiting:
            late = {each for judge in waiting for each in self._matcher.judged_by(judge)}
            matches = [match for match in matches if match.registration.id not in late]
            concerned = [
                judge
                for judge in waiting
                if only is None or not self._matcher.judged_by(judge).isdisjoint(only)
            ]
            failures += unmatched_.behind(concerned)
        plan = Planned(event, matches, failures)
        self._check.announce(plan)
        return plan

    async def judged(self, plans: Sequence[Planned]) -> list[Planned]:
        """The plans with what may not be told set apart (recording_check.py). Raises what is nobody's fault."""
        return await self._check.of(plans)

    async def record(
        self, plans: Sequence[Planned], *, finishes: bool = True, as_of_now: bool = False
    ) -> None:
        """Set aside what could not be decided, and number and insert the rest; `lock` must be held.

        `finishes`: the events are done with it.
        """
        failed = [(plan.event, failure) for plan in plans for failure in plan.failures]
        if failed:
            await self._unmatched.add(failed, as_of_now=as_of_now)
            metrics.MATCH_FAILURES.add(by=sum(each.reason != BEHIND for _, each in failed))
            self._tell(failed)
        self.standstill.note(plans, self._mongo.now())
        metrics.MATCHES.add(by=sum(len(plan.matches) + len(plan.withheld) for plan in plans))
        busy = [plan for plan in plans if plan.matches or plan.withheld]
        idle = [plan.event.id for plan in plans if not (plan.matches or plan.withheld)]
        if idle and finishes:
            self._outbox.finish(idle)
        if busy:
            await self._record(busy, finishes=finishes)
        self._sender.unsettled.set()

    async def _record(self, busy: Sequence[Planned], *, finishes: bool) -> None:
        for plan in busy:
            for match, _ in plan.withheld:
                metrics.DELIVERIES.add(match.registration.channel.type, "suppressed")
        concerned = {match.registration.id for plan in busy for match in plan.matches}
        sequences = {sequence(match.registration) for plan in busy for match in plan.matches}
        await asyncio.gather(
            self._composer.make_ready(concerned),
            self._outbox.numbering.foresee(concerned | sequences),
        )
        admit = self._sender.admission()
        waiting = await self._outbox.record(busy, admit, self._sender.start, finishes=finishes)
        if waiting:
            await self._backlog.follow_up(waiting)

    async def load(self, row: Document) -> Event | None:
        """The event of a row of `events`; one that cannot be read is set aside. Raises what is nobody's fault."""
        try:
            return await load_event(self._store, row)
        except Exception as error:
            if is_nobodys_fault(error):
                raise
            await self.set_aside(_bare(row), error)
            return None

    async def set_aside(self, event: Event, error: Exception, *, as_of_now: bool = False) -> None:
        """Set an event aside for everybody, whatever it failed of."""
        plan = Planned(event, (), [Failure(ALL, type(error).__name__)])
        await self.record([plan], as_of_now=as_of_now)

    def _tell(self, failed: Sequence[tuple[Event, Failure]]) -> None:
        """Log what was set aside, and report the Subscriptions whose own text is at fault."""
        own: dict[str, str] = {}
        for event, failure in failed:
            subscription = subscription_of(failure.judge)
            if failure.is_own and subscription is not None:
                own[subscription] = failure.reason
            if failure.is_own or failure.reason == BEHIND:
                continue
            log.error(
                "cannot match",
                extra={
                    "action": "match",
                    "resource_type": event.type,
                    "id": event.resource_id,
                    "version_id": event.version,
                    "subscription": subscription or failure.judge,
                    "error": failure.reason,
                },
            )
        for subscription, reason in own.items():
            self._on_fault(subscription, reason)


def _bare(row: Document) -> Event:
    """The event of a row without the versions before and after it."""
    return Event(
        row["_id"],
        row["type"],
        row["id"],
        row["version"],
        row["method"],
        row["at"],
        None,
        None,
        topic=row.get("topic"),
        trigger=row.get("trigger"),
        context=tuple(row.get("context", ())),
        only_for=tuple(row.get("only_for", ())),
    )
