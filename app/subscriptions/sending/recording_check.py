"""The check of matches before they are numbered: what is an event of a Subscription, and what is none.

What its owner may not see, and what consent or a label withholds, is no event of it: it gets no number, so that no
count can tell of it. Rights are those of this moment. Where they cannot be judged, the Subscription has failed as a
judge of the event and is asked again (app/subscriptions/ledger/unmatched.py); without a database everything waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bson import ObjectId

from app.runtime.leases import is_nobodys_fault
from app.subscriptions.ledger.outbox import Planned, Withheld
from app.subscriptions.ledger.unmatched import BEHIND
from app.subscriptions.matching.event_matcher import SubscriptionMatch
from app.subscriptions.matching.judges import Failure, of_subscription
from app.subscriptions.sending.owner_rights import NO_ACCESS, OwnerRights
from app.subscriptions.sending.release_check import WITHHELD, is_refused
from app.subscriptions.sending.release_limits import ReleaseLimits
from app.subscriptions.sending.told_once import told_once


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
        """The plans with what is withheld set apart, without what is told anyway. Raises what is nobody's fault."""
        if not any(plan.matches for plan in plans):
            return list(plans)
        return [told_once(plan) for plan in await self._of(plans)]

    async def _of(self, plans: Sequence[Planned]) -> list[Planned]:
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
        since = min(plan.begun for plan in plans)
        matched = [
            (plan.event, [match.registration for match in plan.matches])
            for plan in plans
            if plan.matches
        ]
        unseen = await self._rights.unseen(
            [(event, each) for event, registrations in matched for each in registrations], since
        )
        concerned = {each.id: each for _, registrations in matched for each in registrations}
        kinds = {id_: await self._rights.kind(each) for id_, each in concerned.items()}
        limits = await self._limits.of_events(matched, since, kinds)
        reasons = {
            key: limits[key].judgement.reason
            for event, registrations in matched
            for each in registrations
            if (key := (event.id, each.id)) in limits and is_refused(limits[key], each)
        }
        # Rights hide what a Consent withholds: it is the Consent that says why.
        reasons = dict.fromkeys(unseen, NO_ACCESS.reason) | reasons
        return [_without(plan, reasons) for plan in plans] if reasons else list(plans)

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


def _without(plan: Planned, reasons: Mapping[tuple[ObjectId, str], str]) -> Planned:
    """A plan without the matches that there is a reason against, by the ids of event and Subscription."""
    matches: list[SubscriptionMatch] = []
    withheld: list[Withheld] = []
    for match in plan.matches:
        reason = reasons.get((plan.event.id, match.registration.id))
        if reason is None:
            matches.append(match)
        else:
            withheld.append(Withheld(match, WITHHELD + reason))
    return replace(plan, matches=matches, withheld=withheld) if withheld else plan
