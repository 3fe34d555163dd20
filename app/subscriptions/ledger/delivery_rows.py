"""New delivery rows."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from app.fhir.ids import new_id
from app.runtime.mongo import Document
from app.store.events import Event
from app.subscriptions.ledger import lanes
from app.subscriptions.ledger.ledger import BEHIND, LEASE_MARGIN, MISSED_NEW, WAITING
from app.subscriptions.ledger.sequence_numbers import Known
from app.subscriptions.matching.event_matcher import SubscriptionMatch
from app.subscriptions.matching.registration import Registration
from app.subscriptions.topics.topics import Coding, references

# Bits of chance beside the milliseconds.
_CHANCE = 20


@dataclass(frozen=True, slots=True)
class Pair:
    """An event and a Subscription that it concerns, with the lane of their notice."""

    event: Event
    match: SubscriptionMatch
    # What it is ordered in: its Subscription, or what that shares with others (lanes.py).
    sequence: str
    lane: str
    # Why it is no event of the Subscription.
    withheld: str | None = None

    @classmethod
    def of(
        cls, event: Event, match: SubscriptionMatch, subject: str, withheld: str | None = None
    ) -> Pair:
        sequence = lanes.sequence(match.registration)
        return cls(event, match, sequence, lanes.lane(sequence, subject), withheld)

    @property
    def subscription(self) -> str:
        return self.match.registration.id

    @property
    def counted_in(self) -> tuple[str, ...]:
        """The Subscription that numbers it, and the sequence that it takes its turn in if that is another."""
        is_shared = lanes.is_shared(self.sequence)
        return (self.subscription, self.sequence) if is_shared else (self.subscription,)


@dataclass(frozen=True, slots=True)
class Birth:
    """The inputs of a new row's state: its Subscription's `delivery_mode`, room at its target, and its `owner`."""

    owner: str
    now: datetime
    delivery_mode: Callable[[str], str]
    admit: Callable[[Registration], bool]

    def row(self, pair: Pair, numbers: Sequence[int], known: Known, *, behind: bool) -> Document:
        """A new row with the numbers that it has in what it is `counted_in`; `known` is its sequence.

        `behind`: another new row of its lane comes before it. Where its lane is free and its target has room it is
        `sending`, already leased to `owner`.
        """
        registration = pair.match.registration
        number, *turn = numbers
        document = _row(pair, number, self.now)
        if turn:
            document |= {"sequence": pair.sequence, "turn": turn[0]}
        delivery_mode = self.delivery_mode(registration.id)
        if delivery_mode == "ended":
            document["state"] = "suppressed"
            document["reason"] = f"Subscription is {registration.status}"
            document["missed"] = MISSED_NEW
            return document
        document["open"] = True
        if behind or known.is_busy(pair.lane):
            document["state"], document["next_at"] = "queued", BEHIND
        elif delivery_mode == "active" and self.admit(registration):
            document["state"], document["owner"], document["attempt"] = "sending", self.owner, 1
            lease = timedelta(seconds=registration.channel.timeout) + LEASE_MARGIN
            document["next_at"], document["first_at"] = self.now + lease, self.now
        else:
            document["state"], document["next_at"] = "queued", WAITING
        return document

    def withheld(self, pair: Pair, reason: str) -> Document:
        """A new row without a number, for what is no event of the Subscription."""
        return _row(pair, _no_number(self.now), self.now) | {
            "state": "suppressed",
            "reason": reason,
        }


def _no_number(now: datetime) -> int:
    """What stands for the number where there is none: below zero, later ones above earlier ones.

    Two of a Subscription's may be the same by chance: the index refuses one, and it is made anew.
    """
    milliseconds = int(now.timestamp() * 1000)
    return (milliseconds << _CHANCE) + secrets.randbits(_CHANCE) - (1 << 62)


def subject(event: Event) -> str:
    """The subject whose notices are kept in order: an event's patient, else its resource."""
    fields = event.fields if event.fields is not None else event.previous_fields
    if event.type != "Patient" and fields is not None:
        for patient in references(event.type, fields, "patient"):
            return patient
    return f"{event.type}/{event.resource_id}"


def _row(pair: Pair, number: int, now: datetime) -> Document:
    registration, triggers = pair.match.registration, pair.match.triggers
    topic = registration.topic.url if registration.topic else None
    fired = (topic, triggers[0] if triggers else None)
    document = row_of(pair.event, registration.id, number, pair.lane, fired, now)
    if beside := triggers[1:]:
        document["triggers_beside"] = [dict(each) for each in beside]
    return document


def row_of(
    event: Event,
    subscription: str,
    number: int,
    lane: str,
    fired: tuple[str | None, Coding | None],
    now: datetime,
) -> Document:
    """A new row of the ledger, without a state; `fired` is a topic with the coding of its trigger."""
    topic, trigger = fired
    focus: dict[str, Any] = {
        "type": event.type,
        "id": event.resource_id,
        "version": event.version,
        "method": event.method,
        "at": event.at,
    }
    document: Document = {
        # By the database's clock: the order of ids decides what is published and kept, whichever process makes them.
        "_id": new_id(now),
        "subscription": subscription,
        "event": event.id,
        "number": number,
        "lane": lane,
        "topic": topic,
        "trigger": dict(trigger) if trigger else None,
        "focus": focus,
        "created_at": now,
        "owner": "",
        "attempt": 0,
        "first_at": None,
        "attempts": [],
    }
    if event.context:
        document["context"] = list(event.context)
    return document
