"""One attempt on rows: release check, notice, channel, and the settlements by its outcome."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta

from pymongo.errors import PyMongoError

from app.runtime.mongo import Document, Mongo
from app.subscriptions.channels import AttemptOutcome, Channel
from app.subscriptions.ledger.ledger import (
    LEASE_MARGIN,
    SECOND_LOOK,
    Delivery,
    Ledger,
    Settlement,
    State,
)
from app.subscriptions.ledger.outbox import ContentionError
from app.subscriptions.matching.registration import Registration
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.notices.composer import Composer
from app.subscriptions.notices.event_reader import VersionGoneError, WithheldError
from app.subscriptions.sending import batching
from app.subscriptions.sending.batching import DeliveryWithEvent
from app.subscriptions.sending.release_check import ReleaseCheck, Released
from app.subscriptions.sending.retry import RetryPolicy, Verdict

OVER = "The Subscription takes no notices"

# Called where a Subscription's endpoint has failed for good, with the reason.
OnFailure = Callable[[Registration, str], Awaitable[None]]


class Attempts:
    """Makes attempts on rows that this process has claimed."""

    def __init__(
        self,
        mongo: Mongo,
        ledger: Ledger,
        registry: SubscriptionRegistry,
        composer: Composer,
        policy: RetryPolicy,
        channels: Mapping[str, Channel],
        on_failure: OnFailure,
        release_check: ReleaseCheck,
    ) -> None:
        self._mongo = mongo
        self._ledger = ledger
        self._registry = registry
        self._composer = composer
        self._policy = policy
        self._channels = channels
        self._on_failure = on_failure
        self._release_check = release_check

    async def make(
        self, batch: Sequence[DeliveryWithEvent], learn: Callable[[AttemptOutcome], None]
    ) -> list[Settlement]:
        """One attempt on rows of one Subscription; a row that is no longer this process's is left out.

        `learn` is called with the outcome before the settlements are made.
        """
        subscription = batch[0][0].subscription
        registration = await self._composer.registration(subscription)
        if registration is None or self._registry.delivery_mode(subscription) in (
            "errored",
            "ended",
        ):
            return [Settlement(each, _ended_state(each), reason=OVER) for each, _ in batch]
        now = self._mongo.now()
        if registration.status == "requested":
            # The Subscription was written anew meanwhile: its endpoint has to be proven first.
            return [Settlement(delivery, "queued", now + SECOND_LOOK) for delivery, _ in batch]
        lease = timedelta(seconds=registration.channel.timeout) + LEASE_MARGIN
        # An attempt must end before the lease does.
        late = now + lease - LEASE_MARGIN / 2
        batch = [
            row
            for row in batch
            if row[0].next_at >= late or await self._ledger.renew(row[0], lease)
        ]
        if not batch:
            return []
        try:
            released = await self._release_check.of(batch, registration)
        except (PyMongoError, ContentionError):
            # Without the database nothing is released.
            return [Settlement(delivery, "queued", now + SECOND_LOOK) for delivery, _ in batch]
        if not released.rows:
            return list(released.settlements)
        sent = await self._send(released, registration, learn)
        return [*released.settlements, *sent]

    async def _send(
        self,
        released: Released,
        registration: Registration,
        learn: Callable[[AttemptOutcome], None],
    ) -> list[Settlement]:
        """Send the released rows in one notice."""
        batch, now = released.rows, self._mongo.now()
        try:
            notice = await self._composer.notice(batch, registration, released.limits)
        except VersionGoneError as gone:
            return [Settlement(delivery, "dead", reason=str(gone)) for delivery, _ in batch]
        except WithheldError as withheld:
            return [Settlement(each, "suppressed", reason=str(withheld)) for each, _ in batch]
        begun = time.perf_counter()
        outcome = await self._channels[registration.channel.type].send(notice)
        record = {
            "at": now,
            "ms": round((time.perf_counter() - begun) * 1000, 1),
            "status": outcome.status,
            "reason": outcome.reason,
            "answer": outcome.answer,
            "sha256": hashlib.sha256(notice.body).hexdigest(),
        }
        if registration.channel.content == "full-resource" and (reduced := released.reduced):
            record["reduced"] = reduced
        learn(outcome)
        return await self._judge(batch, registration, outcome, record)

    async def _judge(
        self,
        batch: Sequence[DeliveryWithEvent],
        registration: Registration,
        outcome: AttemptOutcome,
        record: Document,
    ) -> list[Settlement]:
        verdict = outcome.verdict
        if verdict is Verdict.DELIVERED:
            return [Settlement(delivery, "delivered", attempt=record) for delivery, _ in batch]
        if verdict is Verdict.RETRY:
            first = batch[0][0]
            first_at = first.first_at or record["at"]
            due = self._policy.next_attempt(
                first.attempt, first_at, self._mongo.now(), outcome.retry_after
            )
            if due is not None:
                # Rows behind another of their lane wait for that one again.
                heads = batching.first_of_lanes(batch)
                return [
                    Settlement(each, "retrying" if each.id in heads else "queued", due, record)
                    for each, _ in batch
                ]
        what = f"answered {outcome.status}" if outcome.status else f"failed: {outcome.reason}"
        reason = f"The endpoint {what}"
        if verdict is not Verdict.REFUSED:
            await self._on_failure(registration, reason)
        return [Settlement(each, "dead", attempt=record, reason=reason) for each, _ in batch]


def _ended_state(delivery: Delivery) -> State:
    return "dead" if delivery.attempt > 1 else "suppressed"
