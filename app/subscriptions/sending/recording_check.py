"""The check of matches before they are numbered: what is an event of a Subscription, and what is none.

What its owner may not see, and what consent or a label withholds, is no event of it: it gets no number, so that no
count can tell of it. Rights are those of this moment. Where they cannot be judged, the Subscription has failed as a
judge of the event and is asked again (app/subscriptions/ledger/unmatched.py); without a database everything waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from app.runtime.leases import is_nobodys_fault
from app.subscriptions.ledger.outbox import Planned, Withheld
from app.subscriptions.ledger.unmatched import BEHIND
from app.subscriptions.matching.event_matcher import SubscriptionMatch
from app.subscriptions.matching.judges import Failure, of_subscription
from app.subscriptions.sending.owner_rights import NO_ACCESS, OwnerRights
from app.subscriptions.sending.release_check import WITHHELD, is_refused
from app.subscriptions.sending.release_limits import ReleaseLimits


class RecordingCheck:
    """Judges the matches of several events together."""

    def __init__(self, limits: ReleaseLimits, rights: OwnerRights) -> None:
        self._limits = limits
        self._rights = rights

    def announce(self, plan: Planned) -> None:
        """Begin to read what `of` will need."""
        keys = [(match.registration.id, match.registration.version) for match in plan.matches]
        if keys:
            self._limits.announce(plan.event, keys)

    async def of(self, plans: Sequence[Planned]) -> list[Planned]:
        """The plans with what is withheld set apart. Raises what is nobody's fault."""
        if not any(plan.matches for plan in plans):
            return list(plans)
        try:
            return await self._judged(plans)
        except Exception as error:
            if is_nobodys_fault(error):
                raise
        failed: dict[tuple[str, str], set[str]] = {}
        return [
            await self._one_by_one(
                plan, failed.setdefault((plan.event.type, plan.event.resource_id), set())
            )
            for plan in plans
        ]

    async def _judged(self, plans: Sequence[Planned]) -> list[Planned]:
        unseen = await self._rights.unseen(
            [(plan.event, match.registration) for plan in plans for match in plan.matches],
            min(plan.begun for plan in plans),
        )
        found: list[Planned] = []
        for plan in plans:
            reasons = await self._withheld_by_consent(plan)
            reasons |= {
                match.registration.id: NO_ACCESS.reason
                for match in plan.matches
                if (plan.event.id, match.registration.id) in unseen
            }
            found.append(_without(plan, reasons) if reasons else plan)
        return found

    async def _withheld_by_consent(self, plan: Planned) -> dict[str, str]:
        """The reasons by Subscription id."""
        if not plan.matches:
            return {}
        registrations = [match.registration for match in plan.matches]
        limits = await self._limits.of_event(plan.event, registrations, plan.begun)
        return {
            each.id: limit.judgement.reason
            for each in registrations
            if (limit := limits.get(each.id)) is not None and is_refused(limit, each)
        }

    async def _one_by_one(self, plan: Planned, failed: set[str]) -> Planned:
        """Judge each match by itself. `failed` are the Subscriptions that an older version waits for."""
        matches: list[SubscriptionMatch] = []
        withheld = list(plan.withheld)
        failures = list(plan.failures)
        for match in plan.matches:
            subscription = match.registration.id
            if subscription in failed:
                failures.append(Failure(of_subscription(subscription), BEHIND))
                continue
            try:
                (judged,) = await self._judged([replace(plan, matches=[match])])
            except Exception as error:
                if is_nobodys_fault(error):
                    raise
                failed.add(subscription)
                failures.append(Failure(of_subscription(subscription), type(error).__name__))
                continue
            matches += judged.matches
            withheld += judged.withheld
        return replace(plan, matches=matches, withheld=withheld, failures=failures)


def _without(plan: Planned, reasons: dict[str, str]) -> Planned:
    withheld = [
        Withheld(match, WITHHELD + reasons[match.registration.id])
        for match in plan.matches
        if match.registration.id in reasons
    ]
    matches = [match for match in plan.matches if match.registration.id not in reasons]
    return replace(plan, matches=matches, withheld=withheld)
