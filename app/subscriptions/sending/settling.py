"""The settlements of attempts on their way into the ledger: recorded in the audit first, then written, many at once.

Settlements that are made while others are being written go with the next. One that cannot be written as it is holds up
no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from pymongo.errors import PyMongoError

from app.audit.log import AuditLog
from app.errors import Unavailable
from app.runtime.leases import is_nobodys_fault
from app.runtime.mongo import Document, Mongo
from app.subscriptions.ledger.lanes import sequence_of
from app.subscriptions.ledger.ledger import BEHIND, delivery_rows
from app.subscriptions.ledger.sequence_numbers import SequenceNumbers
from app.subscriptions.ledger.settlement import Settlement, settle
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.sending import attempt_audit
from app.subscriptions.sending.owner_rights import OwnerRights

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Freed:
    """The effect of settlements: `lanes` that may hold another open row; `again`: when the first retry is due."""

    lanes: set[str]
    again: datetime | None


class Settling:
    """The settlements that are not written yet. `audit` records attempts before they are settled."""

    def __init__(
        self,
        mongo: Mongo,
        registry: SubscriptionRegistry,
        numbering: SequenceNumbers,
        rights: OwnerRights,
        audit: AuditLog | None,
    ) -> None:
        self._deliveries = delivery_rows(mongo)
        self._registry = registry
        self._numbering = numbering
        self._rights = rights
        self._audit = audit
        self._settlements: list[Settlement] = []
        # Those of them that are not in the audit yet.
        self._unrecorded: list[Settlement] = []
        # Wakes the loop that settles.
        self.unsettled = asyncio.Event()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._settlements)

    def add(self, settlements: Sequence[Settlement]) -> None:
        self._settlements += settlements
        if self._audit is not None:
            self._unrecorded += settlements
        self.unsettled.set()

    async def write(self, written: Callable[[Settlement], None], *, alone: bool = False) -> Freed:
        """Write the settlements so far; `written` is called with each.

        `alone`: no other process runs, so no lane holds rows that this one does not know.
        """
        await self._record()
        batch, self._settlements = self._settlements, []
        before = self._numbering.cached({sequence_of(entry.delivery.lane) for entry in batch})
        try:
            await self._settle(batch)
        except (PyMongoError, Unavailable):
            # Settling twice changes nothing: a settled row is no longer held.
            self._settlements = batch + self._settlements
            self.unsettled.set()
            raise
        lanes = set()
        for entry in batch:
            written(entry)
            lane = entry.delivery.lane
            if entry.is_final and (self._numbering.closed(lane, before) or not alone):
                lanes.add(lane)
        times = [each.next_at for each in batch if each.state == "retrying" and each.next_at]
        return Freed(lanes, min((time for time in times if time > BEHIND), default=None))

    async def _settle(self, batch: Sequence[Settlement]) -> None:
        """Write a batch; where something in it cannot be written, one by one. Raises where the database is away."""
        if not batch:
            return
        try:
            if await settle(self._deliveries, batch) != len(batch):
                # Some were no longer this process's: its cache of their lanes may be wrong.
                self._numbering.forget({sequence_of(entry.delivery.lane) for entry in batch})
        except Exception as error:
            if is_nobodys_fault(error):
                raise
            if len(batch) > 1:
                for entry in batch:
                    await self._settle([entry])
            else:
                await self._settle_without_record(batch[0], error)

    async def _settle_without_record(self, entry: Settlement, error: Exception) -> None:
        """Write a settlement without what its attempt has brought; if that fails too, its lease ends by itself."""
        delivery = entry.delivery.id
        log.error(
            "settlement without its record",
            extra={"action": "settle", "delivery": delivery, "error": type(error).__name__},
        )
        plain: Document | None = None
        if (attempt := entry.attempt) is not None:
            plain = {"at": attempt["at"], "ms": 0.0, "status": None, "answer": "", "sha256": None}
            plain["reason"] = f"error of the server: {type(error).__name__}"
        try:
            await settle(self._deliveries, [entry._replace(attempt=plain)])
        except Exception as again:
            if is_nobodys_fault(again):
                raise
            log.error(
                "settlement lost",
                extra={"action": "settle", "delivery": delivery, "error": type(again).__name__},
            )

    async def _record(self) -> None:
        """Record the attempts whose outcome is about to be settled."""
        while self._audit is not None and (batch := self._unrecorded):
            self._unrecorded = []
            try:
                if entries := await attempt_audit.entries(batch, self._registry, self._rights):
                    await self._enter(self._audit, entries)
            except BaseException:
                self._unrecorded = batch + self._unrecorded
                self.unsettled.set()
                raise

    async def _enter(self, audit: AuditLog, entries: Sequence[Document]) -> None:
        """Put entries on record; where one of them cannot be, one by one. Raises where the database is away."""
        try:
            await audit.record(entries)
        except Exception as error:
            if is_nobodys_fault(error):
                raise
            if len(entries) > 1:
                for entry in entries:
                    await self._enter(audit, [entry])
            else:
                log.error(
                    "attempt not on record",
                    extra={"action": "audit", "error": type(error).__name__},
                )
