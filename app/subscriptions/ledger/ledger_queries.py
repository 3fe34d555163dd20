"""The ledger as operators read it: deliveries by Subscription, state, time and focus, and sending them again."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, get_args

from pymongo import ASCENDING, DESCENDING

from app.errors import BadRequest, Gone, NotFound
from app.fhir.ids import first_id, time_of
from app.fhir.instants import BEGINNING, END, instant
from app.runtime.mongo import Document, Mongo
from app.subscriptions.ledger.ledger import (
    BEHIND,
    EVENTS_ONLY,
    WAITING,
    Delivery,
    State,
    delivery_rows,
)

STATES: tuple[State, ...] = get_args(State)
# Ids are made by a process's own clock, times are the database's.
_SKEW = timedelta(minutes=5)

# Sends settled notices of a Subscription that meet a condition again; returns how many.
Resend = Callable[[str, Document], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The criteria of a query, which must all hold. `focus` is `Type/id`; times are when the rows were created."""

    subscription: str | None = None
    state: State | None = None
    since: datetime | None = None
    until: datetime | None = None
    focus: str | None = None
    first: int | None = None
    last: int | None = None

    def condition(self) -> Document:
        """The MongoDB filter on rows."""
        found: Document = {}
        if self.subscription is not None:
            found["subscription"] = self.subscription
        if self.state is not None:
            found["state"] = self.state
        if self.focus is not None:
            found["focus.type"], _, found["focus.id"] = self.focus.partition("/")
        _add_bounds(found, "created_at", self.since, self.until)
        # The same bounds on the ids, which are in order of time, so that an index serves.
        since = first_id(max(self.since, BEGINNING + _SKEW) - _SKEW) if self.since else None
        until = first_id(min(self.until, END - _SKEW) + _SKEW) if self.until else None
        _add_bounds(found, "_id", since, until)
        _add_bounds(found, "number", self.first, self.last)
        return found


def _add_bounds(found: Document, name: str, least: Any, greatest: Any) -> None:
    bounds = {"$gte": least, "$lte": greatest}
    given = {operator: bound for operator, bound in bounds.items() if bound is not None}
    if given:
        found[name] = given


def key_of(wanted: Wanted) -> str:
    """The field by which the rows of a query are in order."""
    return "number" if wanted.subscription is not None else "_id"


async def search(
    mongo: Mongo, wanted: Wanted, count: int, cursor: str | None = None
) -> tuple[list[Document], str | None]:
    """Rows, the newest first, and the cursor of the next page, if there is one.

    Those of one Subscription come in the order of their numbers, after them what is no event of it; the others in the
    order of their ids.
    """
    key = key_of(wanted)
    condition = wanted.condition()
    if cursor is not None:
        condition = {"$and": [condition, {key: {"$lt": _position(key, cursor)}}]}
    found = delivery_rows(mongo).find(condition).sort(key, DESCENDING)
    rows: list[Document] = await found.limit(count + 1).to_list(None)
    more = str(rows[count - 1][key]) if len(rows) > count else None
    return rows[:count], more


def _position(key: str, cursor: str) -> Any:
    if key == "_id":
        return cursor
    if re.fullmatch(r"-?[0-9]{1,19}", cursor) is None:
        raise BadRequest("Not a cursor of this list", expression="_cursor")
    return int(cursor)


async def read(mongo: Mongo, delivery: str, kept: timedelta) -> Document:
    """One row. Raises Gone where it is older than rows are kept, else NotFound where there is none."""
    row: Document | None = await delivery_rows(mongo).find_one({"_id": delivery})
    if row is not None:
        return row
    made = time_of(delivery)
    if made is not None and made < mongo.now() - kept:
        raise Gone(f"Deliveries are kept for {kept.total_seconds() / 86400:g} days")
    raise NotFound("There is no such delivery")


async def resend(
    mongo: Mongo, wanted: Wanted, send: Resend, active: Callable[[str], bool]
) -> Document:
    """Send settled rows again, in the order of their numbers; open rows stay as they are, and what is no event.

    Returns `{resent, skipped}`: the rows of Subscriptions that are not active are skipped.
    """
    condition: Document = {"$and": [wanted.condition(), EVENTS_ONLY], "open": {"$exists": False}}
    deliveries = delivery_rows(mongo)
    subscriptions = [wanted.subscription] if wanted.subscription else None
    if subscriptions is None:
        subscriptions = await deliveries.distinct("subscription", condition)
    resent = skipped = 0
    for subscription in subscriptions:
        if active(subscription):
            resent += await send(subscription, condition)
        else:
            skipped += await deliveries.count_documents({**condition, "subscription": subscription})
    return {"resent": resent, "skipped": skipped}


def shown(row: Document) -> Document:
    """A row as JSON: no lease, no owner; times as instants."""
    focus, next_at = row["focus"], row.get("next_at")
    found: Document = _plain(
        {
            "id": row["_id"],
            "subscription": row["subscription"],
            "number": row["number"] if row["number"] >= 0 else None,
            "state": row["state"],
            "reason": row.get("reason"),
            "topic": row["topic"],
            "trigger": row["trigger"],
            "focus": f"{focus['type']}/{focus['id']}/_history/{focus['version']}",
            "method": focus["method"],
            "committed_at": focus["at"],
            "created_at": row["created_at"],
            "next_at": None if next_at is None or next_at <= BEHIND else next_at,
            "attempts": row["attempts"],
        }
    )
    return found


def _plain(value: Any) -> Any:
    """JSON values, without those that are None."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, datetime):
        return instant(value)
    return value


# The past events of one Subscription: its delivery rows by number, and sending them again.


@dataclass(frozen=True, slots=True)
class Span:
    """Numbers from `first` to `last`, both included; None for no bound."""

    first: int | None = None
    last: int | None = None

    def condition(self) -> Document:
        first = max(1, self.first or 1)
        return {
            "number": {"$gte": first} if self.last is None else {"$gte": first, "$lte": self.last}
        }


async def first_kept(mongo: Mongo, subscription: str, count: int) -> int:
    """The number of the first event that is still kept; `count` + 1 where none is."""
    cursor = delivery_rows(mongo).find({"subscription": subscription, **EVENTS_ONLY}, {"number": 1})
    rows = await cursor.sort("number", ASCENDING).limit(1).to_list(None)
    return int(rows[0]["number"]) if rows else count + 1


async def rows(mongo: Mongo, subscription: str, span: Span, limit: int) -> list[Delivery]:
    """The rows of a span in the order of their numbers, at most `limit`."""
    cursor = delivery_rows(mongo).find(
        {"subscription": subscription, **span.condition()}, {"attempts": 0}
    )
    documents = await cursor.sort("number", ASCENDING).limit(limit).to_list(None)
    # A field that a settled row has lost.
    return [Delivery.from_document({"owner": "", **document}) for document in documents]


async def reopen(mongo: Mongo, subscription: str, condition: Document) -> int:
    """Queue settled rows again, with a new retry window; returns how many.

    They keep their number, their notice id and the records of their attempts. Their new result is published anew
    (app/proof).
    """
    now = mongo.now()
    result = await delivery_rows(mongo).update_many(
        {
            "$and": [condition, EVENTS_ONLY],
            "subscription": subscription,
            "open": {"$exists": False},
        },
        {
            "$set": {
                "open": True,
                "state": "queued",
                "owner": "",
                "next_at": WAITING,
                "first_at": None,
                "publish": now,
            },
            "$unset": {"reason": "", "given_up_at": "", "missed": ""},
        },
    )
    return int(result.modified_count)
