"""Lanes: notices that are sent one after the other. A lane is `<sequence>|<subject>`.

A sequence is a Subscription; or it is shared, `~<practice>~<Endpoint>~<matter>`, by all that the server keeps for one
Endpoint of a practice about one matter: visits, or everything else. Rows of a shared sequence count its `turn` beside
the `number` of their Subscription: what several topics tell a practice of one visit goes out in the order
in which it was recorded.

docs/decisions/0042-lanes-of-an-endpoint.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from app.runtime.mongo import Document

if TYPE_CHECKING:
    from app.subscriptions.matching.registration import Registration

# No id has it, and it sorts behind all that ids may begin with.
_MARK = "~"
HAS_TURN: Document = {"turn": {"$gte": 1}}


class Order(NamedTuple):
    """The order of the lanes of one kind: the field that it goes by, and how its open rows are found by an index."""

    field: str
    open_rows: Document
    lanes: Document


_OWN = Order("number", {"open": True}, {"$lt": _MARK})
_SHARED = Order("turn", {"open": True, **HAS_TURN}, {"$gte": _MARK})
ORDERS = (_OWN, _SHARED)


def sequence(registration: Registration) -> str:
    """The sequence that the rows of a Subscription belong to."""
    if registration.kept_for is None or registration.kept_at is None:
        return registration.id
    return _MARK.join(("", registration.kept_for, registration.kept_at, _matter(registration)))


def _matter(registration: Registration) -> str:
    """An Endpoint that refuses care plans is told of admissions all the same."""
    topic = registration.topic
    return "visits" if topic is not None and "Encounter" in topic.resource_types else "records"


def is_shared(name: str) -> bool:
    """Whether a sequence, or the sequence of a lane, may be several Subscriptions'."""
    return name.startswith(_MARK)


def lane(sequence_: str, subject: str) -> str:
    """The lane of the notices of a sequence about a subject."""
    return f"{sequence_}|{subject}"


def sequence_of(lane_: str) -> str:
    return lane_.partition("|")[0]


def subject_of(lane_: str) -> str:
    return lane_.partition("|")[2]


def range_of(sequence_: str) -> Document:
    """The condition on `lane` that all lanes of a sequence meet."""
    return {"$gte": f"{sequence_}|", "$lt": f"{sequence_}}}"}


def by_order(names: Iterable[str]) -> Iterator[tuple[Order, list[str]]]:
    """The lanes, or the sequences, of each order, where there are any."""
    known = list(names)
    for order in ORDERS:
        if own := [each for each in known if is_shared(each) is (order is _SHARED)]:
            yield order, own
