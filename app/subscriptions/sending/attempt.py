"""One attempt on rows: release check, notice, channel, and the settlements by its outcome."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from pymongo.errors import PyMongoError

from app.runtime.mongo import Document, Mongo
from app.subscriptions.channels import AttemptOutcome, Channel
from app.subscriptions.ledger.ledger import (
    BEHIND,
    LEASE_MARGIN,
    SECOND_LOOK,
    WAITING,
    Ledger,
)
from app.subscriptions.ledger.outbox import ContentionError
from app.subscriptions.ledger.settlement import Settlement, put_back
from app.subscriptions.ledger.waiting_rows import WaitingRows
from app.subscriptions.matching.registration import Registration
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.notices.composer import Composer
from app.subscriptions.notices.event_reader import VersionGoneError, WithheldError
from app.subscriptions.sending import batching
from app.subscriptions.sending.batching import DeliveryWithEvent
from app.subscriptions.sending.release_check import ReleaseCheck, Released
from app.subscriptions.sending.retry import RetryPolicy, Verdict

log = logging.getLogger(__name__)

# How long a row waits whose Subscription's status could not be set.
_REPORT_AGAIN = timedelta(seconds=30)


class OnFailure(Protocol):
    """Called where a Subscription's endpoint has failed, with the reason; `gone`: for good."""

    async def __call__(self, registration: Registration, reason: str, *, gone: bool) -> None: ...


class _Failure(NamedTuple):
    """What came of an attempt that is to be repeated: its record, and the reason in words."""

    record: Document
    reason: str
    retry_after: float = 0.0
    rejected: bool = False


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
        self._waiting = WaitingRows(mongo)
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
        mode = self._registry.delivery_mode(subscription)
        if registration is None or mode != "active":
            # It is in error, or was written anew meanwhile and its endpoint has to be proven first; or it is over, and
            # whoever looks for the next row of the lane closes them.
            return _left_waiting(batch)
        now = self._mongo.now()
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
            return [put_back(delivery, now + SECOND_LOOK) for delivery, _ in batch]
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
        if notice.permitted_by:
            record["permitted_by"] = list(notice.permitted_by)
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
        reason = outcome.failure
        if verdict in (Verdict.RETRY, Verdict.REJECTED):
            rejected = verdict is Verdict.REJECTED
            failure = _Failure(record, reason, outcome.retry_after or 0.0, rejected)
            return await self._again(batch, registration, failure)
        if verdict is Verdict.GONE:
            try:
                await self._on_failure(registration, reason, gone=True)
            except Exception as error:  # the next notice is told the same
                _warn(registration, error)
        is_gone = verdict is Verdict.GONE
        return [
            Settlement(each, "dead", attempt=record, reason=reason, is_missed=is_gone)
            for each, _ in batch
        ]

    async def failed(
        self, batch: Sequence[DeliveryWithEvent], error: Exception
    ) -> list[Settlement]:
        """Settle rows whose attempt ended with an error of ours, like those that an endpoint did not take.

        The record names the error's type; its text may hold content.
        """
        name = type(error).__name__
        first = batch[0][0]
        of_row = {"subscription": first.subscription, "delivery": first.id}
        log.error("attempt failed", extra={"action": "deliver", **of_row, "error": name})
        record: Document = {"at": self._mongo.now(), "ms": 0.0, "status": None}
        record |= {"reason": f"error of the server: {name}", "answer": "", "sha256": None}
        registration = self._registry.get(batch[0][0].subscription)
        if registration is None:
            return _left_waiting(batch)
        reason = f"The notice could not be sent: {name}"
        return await self._again(batch, registration, _Failure(record, reason))

    async def _again(
        self,
        batch: Sequence[DeliveryWithEvent],
        registration: Registration,
        failure: _Failure,
    ) -> list[Settlement]:
        """Settle rows that are to be tried again, within their window."""
        if not batch:
            return []
        record, reason = failure.record, failure.reason
        first, at = batch[0][0], record["at"]
        first_at = first.first_at or at
        rejected_at = (first.rejected_at or at) if failure.rejected else None
        end = self._policy.end(first_at, rejected_at)
        now = self._mongo.now()
        due = self._policy.next_attempt(first.attempt, first_at, now, end, failure.retry_after)
        try:
            if due is None and await self._waiting.taken_since(first, _middle(first_at, end)):
                # Others are taken, so this one itself is at fault, and nobody waits for it any more.
                alone = f"{reason}, and later notices were taken"
                dead = Settlement(first, "dead", attempt=record, reason=alone)
                return [dead, *await self._again(batch[1:], registration, failure)]
            if due is None or (first.attempt == 1 and await self._is_over(first.subscription, now)):
                await self._on_failure(registration, reason, gone=False)
                due = WAITING
        except Exception as error:
            _warn(registration, error)
            due = due or now + _REPORT_AGAIN
        # Rows behind another of their lane wait for that one again.
        heads = batching.first_of_lanes(batch)
        return [
            Settlement(each, "retrying", due, record, rejected_at=rejected_at)
            if each.id in heads
            else Settlement(each, "queued", BEHIND, record)
            for each, _ in batch
        ]

    async def _is_over(self, subscription: str, now: datetime) -> bool:
        """Whether the window is over of a row that has failed, and has waited since for its target to answer."""
        oldest = await self._waiting.oldest_failed(subscription)
        if oldest is None or oldest.first_at is None:
            return False
        end = self._policy.end(oldest.first_at, oldest.rejected_at)
        middle = _middle(oldest.first_at, end)
        return now >= end and not await self._waiting.taken_since(oldest, middle)


def _middle(begin: datetime, end: datetime) -> datetime:
    return begin + (end - begin) / 2


def _warn(registration: Registration, error: Exception) -> None:
    log.warning(
        "status not set",
        extra={"action": "fail", "id": registration.id, "error": type(error).__name__},
    )


def _left_waiting(batch: Sequence[DeliveryWithEvent]) -> list[Settlement]:
    """Put rows back until their Subscription is active."""
    heads = batching.first_of_lanes(batch)
    return [put_back(each, WAITING if each.id in heads else BEHIND) for each, _ in batch]
