"""The time of a message, and which records are known from newer ones.

Messages come late: one that was sent again after an outage must not put back what a newer one has changed. The order of
a visit's messages is kept by the Encounter (app/resources/visit_order.py); that of another record by the time of the
message that told of it last, `private.message_time`, or by the time of its last write where that was no message.
docs/messages.md "Which records"
"""

from __future__ import annotations

from collections.abc import Sequence

from app.messaging.message_bundle import Message
from app.records.reader import Reader, ResourceStore
from app.records.versions import Change, ResourceVersion
from app.resources import event_time
from app.resources.event_time import Moment, Time, with_event_time
from app.runtime.mongo import Document

_FIELD = "message_time"


def moment_of(message: Message) -> Moment:
    """When what a message says was so: the latest of its Encounters' events, without one when it was made."""
    events = [each.resource for each in message.entries if each.type == "Encounter"]
    made = message.bundle["timestamp"]
    stated = [with_event_time(each, made) for each in events or ({},)]
    moments = (event_time.moment(each, message.taken_at) for each in stated)
    return max((each for each in moments if each), key=lambda each: each.latest)


async def known_since(
    store: Reader, resource_type: str, known: Sequence[ResourceVersion]
) -> dict[str, Time]:
    """From when the content of each of these current versions is, by id."""
    rows = await store.find(
        resource_type,
        {"_id": {"$in": [each.id for each in known]}},
        projection={"v": 1, f"private.{_FIELD}": 1},
    )
    told = {(row["_id"], row["v"]): row.get("private", {}).get(_FIELD) for row in rows}
    return {
        each.id: told.get((each.id, each.version)) or event_time.time_of(each.at) for each in known
    }


def remembered(change: Change, moment: Moment) -> Document:
    """What is kept beside a record that a message changes."""
    return {**(change.private or {}), _FIELD: moment.time}


async def remember_unchanged(store: ResourceStore, known: ResourceVersion, moment: Moment) -> None:
    """Note that a record is as a message says, before the commit: that holds even where the commit fails."""
    await store.annotate(known.type, _FIELD, {(known.id, known.version): moment.time})
