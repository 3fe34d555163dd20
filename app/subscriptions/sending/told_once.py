"""What a practice is told once, though two of the Subscriptions that the server keeps for it ask for it.

A rise from emergency or observation to inpatient is an admission and a transfer, of one trigger (A06). Whoever
subscribes to both topics asks for both notices; a practice that never asked is told of the admission.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from app.subscriptions.ledger.lanes import sequence
from app.subscriptions.ledger.outbox import Planned
from app.subscriptions.matching.event_matcher import SubscriptionMatch

_ADMISSION, _TRANSFER = "encounter-admission", "encounter-transfer"


def told_once(plan: Planned) -> Planned:
    """The plan without the transfers that an admission tells the same Endpoint of."""
    kept = [match for match in plan.matches if match.registration.kept_at is not None]
    admissions = {_told(match) for match in kept if _slug(match) == _ADMISSION}
    left_out = {
        match.registration.id
        for match in kept
        if _slug(match) == _TRANSFER and _told(match) in admissions
    }
    if not left_out:
        return plan
    left = [match for match in plan.matches if match.registration.id not in left_out]
    return replace(plan, matches=left)


def _slug(match: SubscriptionMatch) -> str:
    topic = match.registration.topic
    return "" if topic is None else topic.url.rpartition("/")[2]


def _told(match: SubscriptionMatch) -> Hashable:
    """Where it is told, and what."""
    triggers = [(each.get("system"), each.get("code")) for each in match.triggers]
    return sequence(match.registration), triggers[0] if triggers else None
