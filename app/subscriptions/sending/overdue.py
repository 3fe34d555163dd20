"""The deliveries that are due and that no process begins, though nothing of theirs stands in the way.

A delivery whose endpoint fails, hangs or has no room is not among them: it waits for its endpoint, and that is nobody
else's trouble. Nor is one that waits behind another of its lane, or whose Subscription is not active.
"""

from __future__ import annotations

from datetime import datetime

from app.subscriptions.ledger.ledger import Ledger
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.sending.delivery import Sender

_PAGE, _MOST_PAGES = 100, 20


async def oldest_overdue(
    ledger: Ledger, registry: SubscriptionRegistry, sender: Sender, before: datetime
) -> datetime | None:
    """When the first of them was due, if that is earlier than `before`."""
    others: set[str] = set()
    for _ in range(_MOST_PAGES):
        due = [row for row in await ledger.due(_PAGE, others) if row.next_at < before]
        admit = sender.admission()
        heads = {head.id for head in await ledger.heads({row.lane for row in due})}
        seen: set[str] = set()
        for row in due:
            registration = registry.get(row.subscription)
            if (
                registration is None
                or registry.delivery_mode(row.subscription) != "active"
                or not admit(registration)
            ):
                others.add(row.subscription)
            elif row.id in heads:
                return row.next_at
            else:
                seen.add(row.subscription)
        others |= seen  # only behind others of their lanes, which are looked at by their own times
        if len(due) < _PAGE:
            return None
    return None
