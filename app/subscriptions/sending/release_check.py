"""The release check of rows when they are sent: by the owner's rights, consent, labels, and the PCP of now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from app.settings import Settings
from app.store.store import Store
from app.subscriptions.ledger.ledger import Delivery
from app.subscriptions.ledger.settlement import Settlement
from app.subscriptions.matching.registration import Registration
from app.subscriptions.sending.batching import DeliveryWithEvent
from app.subscriptions.sending.owner_rights import NO_ACCESS, OwnerRights, stricter
from app.subscriptions.sending.recheck_recipient import (
    FRESH,
    REASSIGNED,
    asks_for_panel,
    still_concerns,
)
from app.subscriptions.sending.release_limits import NO_LIMITS, Limit, Limits, ReleaseLimits

WITHHELD = "Withheld: "


@dataclass(frozen=True, slots=True)
class Released:
    """`rows` may be sent as far as `limits` allow; the others are settled."""

    rows: Sequence[DeliveryWithEvent]
    limits: Limits
    settlements: Sequence[Settlement]

    @property
    def reduced(self) -> str:
        """Why events are sent with less content than their Subscription requests: codes and ids."""
        rows = {delivery.id for delivery, _ in self.rows}
        reasons = {
            limit.judgement.reason
            for id_, limit in self.limits.items()
            if id_ in rows and limit.verdict != "full"
        }
        return "; ".join(sorted(reasons))


class ReleaseCheck:
    """Checks rows of one Subscription at a time."""

    def __init__(
        self,
        limits: ReleaseLimits,
        rights: OwnerRights,
        store: Store,
        settings: Settings,
        now: Callable[[], datetime],
        on_reassigned: Callable[[Delivery], Awaitable[None]],
    ) -> None:
        """`on_reassigned` is called before a row is settled whose patient is the recipient's no more."""
        self._limits = limits
        self._now = now
        self._rights = rights
        self._store = store
        self._settings = settings
        self._on_reassigned = on_reassigned

    async def of(self, rows: Sequence[DeliveryWithEvent], registration: Registration) -> Released:
        """The rows that may be sent, and settlements of the others. Raises PyMongoError; then nothing may be sent."""
        topic = registration.topic.url if registration.topic else None
        kind = await self._rights.kind(registration)
        limits = stricter(
            await self._limits.limits(rows, topic, registration.id, registration.version, kind),
            await self._rights.limits(rows, registration),
        )
        refused = {
            id_: f"{WITHHELD}{limit.judgement.reason}"
            for id_, limit in limits.items()
            if is_refused(limit, registration)
        }
        if asks_for_panel(registration.criteria):
            for delivery, _ in rows:
                # Whom the owner may not see any more may have another practice by now.
                if refused.get(delivery.id) not in (None, WITHHELD + NO_ACCESS.reason):
                    continue
                if not await self._concerns(delivery, registration):
                    await self._on_reassigned(delivery)
                    refused[delivery.id] = REASSIGNED
        if not refused:
            return Released(rows, limits or NO_LIMITS, ())
        return Released(
            [row for row in rows if row[0].id not in refused],
            limits,
            [
                Settlement(delivery, "suppressed", reason=refused[delivery.id])
                for delivery, _ in rows
                if delivery.id in refused
            ],
        )

    async def _concerns(self, delivery: Delivery, registration: Registration) -> bool:
        """Whether a row is on time or, if it is late, still concerns its recipient."""
        now = self._now()
        if delivery.attempt <= 1 and now - delivery.focus["at"] <= FRESH:
            return True
        return await still_concerns(
            self._store, registration.criteria, delivery.focus, self._settings, now
        )


def is_refused(limit: Limit, registration: Registration) -> bool:
    """Whether a limit leaves nothing of an event that the Subscription could be told."""
    return limit.verdict == "withhold" or (
        limit.verdict == "id-only" and not _can_be_reduced(registration)
    )


def _can_be_reduced(registration: Registration) -> bool:
    """Whether references can be sent in place of full resources; not in a message or a classic payload."""
    if registration.channel.is_message:
        return False
    return registration.channel.content is not None or registration.channel.payload is None
