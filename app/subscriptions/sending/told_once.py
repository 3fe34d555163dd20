"""What a practice is told once, though two of the Subscriptions that the server keeps for it ask for it.

A rise from emergency or observation to inpatient is an admission and a transfer, of one trigger (A06). Whoever
subscribes to both topics asks for both notices; a practice that never asked is told of the admission.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from app.subscriptions.ledger.lanes import sequence
from app.subscriptions.ledger.outbox import Planned
from app.subscriptions.matching.event_matcher import SubscriptionMatch

_ADMISSION, _TRANSFER = "encounter-admission", "encounter-transfer"

# Where an event is told as an admission, and by which trigger: a sequence, and the system and code of a coding.
Told = tuple[str, Any, Any]


def told_once(plan: Planned, others: Collection[Told] = ()) -> Planned:
    """The plan without the transfers that an admission tells the same Endpoint of, in it or among `others`."""
    admissions = admissions_of(plan).union(others)
    left_out = {
        match.registration.id
        for match in plan.matches
        if match.registration.kept_at is not None
        and _slug(match) == _TRANSFER
        and _told(match) in admissions
    }
    if not left_out:
        return plan
    left = [match for match in plan.matches if match.registration.id not in left_out]
    return replace(plan, matches=left)


def admissions_of(plan: Planned) -> set[Told]:
    """What a plan tells Endpoints of as admissions."""
    return {
        _told(match)
        for match in plan.matches
        if match.registration.kept_at is not None and _slug(match) == _ADMISSION
    }


def admission_of(row: Mapping[str, Any]) -> Told | None:
    """What a row of the ledger tells an Endpoint of as an admission; None where it tells something else."""
    if "sequence" not in row or not str(row["topic"]).endswith(f"/{_ADMISSION}"):
        return None
    return _by(row["sequence"], row["trigger"] or {})


def _slug(match: SubscriptionMatch) -> str:
    topic = match.registration.topic
    return "" if topic is None else topic.url.rpartition("/")[2]


def _told(match: SubscriptionMatch) -> Told:
    return _by(sequence(match.registration), match.triggers[0] if match.triggers else {})


def _by(where: str, trigger: Mapping[str, str]) -> Told:
    return where, trigger.get("system"), trigger.get("code")
