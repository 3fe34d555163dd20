"""The events of one notice, where a Subscription takes several (`backport-max-count`).

One notice has consecutive numbers. Rows of one lane must not be under way in several notices, so those that were taken
together stay together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from app.store.events import Event
from app.subscriptions.ledger.ledger import Delivery

# A row in hand; the event where it is still at hand.
DeliveryWithEvent = tuple[Delivery, Event | None]


def take(waiting: deque[DeliveryWithEvent], most: int) -> list[DeliveryWithEvent]:
    """Take the first row out of a queue, with those sent with it: at most `most`, in the order of numbers.

    Rows of the first one's lane that follow it are always among them.
    """
    first = waiting[0][0]
    if most <= 1:
        return [waiting.popleft()]
    mine = sorted(
        (row for row in waiting if row[0].subscription == first.subscription),
        key=lambda row: row[0].number,
    )
    begin = next(index for index, row in enumerate(mine) if row[0].id == first.id)
    batch: list[DeliveryWithEvent] = []
    for unit in _units(mine[begin:]):
        follows = not batch or unit[0][0].number == batch[-1][0].number + 1
        if not follows or (batch and len(batch) + len(unit) > most):
            break
        batch += unit
    taken = {row[0].id for row in batch}
    left = [row for row in waiting if row[0].id not in taken]
    waiting.clear()
    waiting.extend(left)
    return batch


def _units(rows: Sequence[DeliveryWithEvent]) -> list[list[DeliveryWithEvent]]:
    """The rows in runs of consecutive numbers in one lane."""
    units: list[list[DeliveryWithEvent]] = []
    for row in rows:
        before = units[-1][-1][0] if units else None
        if before is not None and follows(before, row[0]):
            units[-1].append(row)
        else:
            units.append([row])
    return units


def follows(before: Delivery, after: Delivery) -> bool:
    is_next = after.subscription == before.subscription and after.number == before.number + 1
    return is_next and after.lane == before.lane


def followers(head: Delivery, queued: Sequence[Delivery], most: int) -> list[Delivery]:
    """Of the rows queued in the head's lane, in the order in which they are sent, those sent with it."""
    found: list[Delivery] = []
    last = head
    for row in queued:
        if row.order <= head.order:
            continue
        if len(found) + 1 >= most or not follows(last, row):
            break
        found.append(row)
        last = row
    return found


def first_of_lanes(batch: Sequence[DeliveryWithEvent]) -> set[str]:
    """The ids of the rows that are the first of their lane in a batch."""
    firsts: dict[str, str] = {}
    for delivery, _ in batch:
        firsts.setdefault(delivery.lane, delivery.id)
    return set(firsts.values())


def whole(claimed: Sequence[Delivery], wanted: Sequence[Sequence[Delivery]]) -> set[str]:
    """The ids of the claimed rows before which all wanted rows of their lane were claimed too."""
    ids = {row.id for row in claimed}
    kept: set[str] = set()
    for unit in wanted:
        for row in unit:
            if row.id not in ids:
                break
            kept.add(row.id)
    return kept
