"""What came of attempts is written in bulk, and only on rows that are still held for the attempt."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.runtime.mongo import Collection, Mongo
from app.subscriptions.ledger.ledger import Delivery
from app.subscriptions.ledger.sequence_numbers import SequenceNumbers
from app.subscriptions.ledger.settlement import Settlement, settle
from app.subscriptions.sending import settling
from app.subscriptions.sending.settling import Settling

pytestmark = pytest.mark.mongo

NOW = datetime(2026, 11, 21, 15, 0, tzinfo=UTC)
OWNER = "this process"


def row(id_: str, *, attempt: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "_id": id_,
        "subscription": f"s-{id_}",
        "event": id_,
        "number": 1,
        "lane": f"s-{id_}|Patient/p1",
        "topic": None,
        "trigger": None,
        "focus": {"type": "Encounter", "id": "e1", "version": 1, "method": "create", "at": NOW},
        "created_at": NOW,
        "state": "sending",
        "open": True,
        "owner": OWNER,
        "attempt": attempt,
        "next_at": NOW,
        "first_at": NOW,
        "attempts": [record(f"{id_}-{before}") for before in range(1, attempt)],
        **more,
    }


def record(answer: str) -> dict[str, Any]:
    return {"at": NOW, "ms": 1.5, "status": 200, "reason": "", "answer": answer, "sha256": "00"}


def settlement(document: dict[str, Any], state: Any = "delivered", **more: Any) -> Settlement:
    answer = f"{document['_id']}-{document['attempt']}"
    return Settlement(Delivery.from_document(document), state, attempt=record(answer), **more)


async def test_each_row_gets_the_record_of_its_own_attempt(mongo: Mongo) -> None:
    """More rows than one update takes, of first and second attempts, with an answer that looks like an expression."""
    rows = [row(f"r{index}", attempt=1 + index % 2) for index in range(1100)]
    rows.append(row("$ROOT"))
    await mongo.collection("deliveries").insert_many(rows)
    settlements = [settlement(document) for document in rows]
    assert await settle(mongo.collection("deliveries"), settlements) == len(rows)
    stored = await mongo.collection("deliveries").find({}).to_list(None)
    for document in stored:
        answers = [attempt["answer"] for attempt in document["attempts"]]
        assert answers == [
            f"{document['_id']}-{number}" for number in range(1, document["attempt"] + 1)
        ]
        assert document["state"] == "delivered"
        assert not document.keys() & {"open", "next_at", "owner", "claim"}


async def test_a_row_that_another_process_holds_is_left_alone(mongo: Mongo) -> None:
    kept = row("kept")
    lost = {
        "other owner": row("o", owner="another process"),
        "next attempt": row("n", attempt=2),
        "given back": row("g", state="retrying"),
    }
    deliveries = mongo.collection("deliveries")
    await deliveries.insert_many([kept, *lost.values()])
    mine = [
        settlement({**document, "owner": OWNER, "attempt": 1})
        for document in (kept, *lost.values())
    ]
    assert await settle(deliveries, mine) == 1
    for document in lost.values():
        assert await deliveries.find_one({"_id": document["_id"]}) == document


async def test_one_bulk_may_hold_every_kind_of_outcome(mongo: Mongo) -> None:
    later = NOW + timedelta(seconds=30)
    rows = [row(name) for name in ("taken", "retried", "refused", "put back")]
    deliveries = mongo.collection("deliveries")
    await deliveries.insert_many(rows)
    taken, retried, refused, put_back = rows
    outcomes = [
        settlement(taken),
        settlement(retried, "retrying", next_at=later, rejected_at=NOW),
        settlement(refused, "dead", reason="The endpoint answered 410"),
        Settlement(Delivery.from_document(put_back), "queued", later),
    ]
    assert await settle(deliveries, outcomes) == 4
    found = {each["_id"]: each for each in await deliveries.find({}).to_list(None)}
    told = {
        id_: (each["state"], each.get("open"), each.get("next_at"), each["attempt"])
        for id_, each in found.items()
    }
    assert told == {
        "taken": ("delivered", None, None, 1),
        "retried": ("retrying", True, later, 1),
        "refused": ("dead", None, None, 1),
        "put back": ("queued", True, later, 0),
    }
    # Since when an endpoint takes no notice of this one is known as long as it is tried.
    assert {id_: each.get("rejected_at") for id_, each in found.items()} == {
        **dict.fromkeys(found, None),
        "retried": NOW,
    }
    assert found["refused"]["reason"] == "The endpoint answered 410"
    assert (found["put back"]["attempts"], found["put back"]["first_at"]) == ([], None)


@pytest.mark.parametrize("is_read_meanwhile", [False, True])
async def test_a_lane_is_not_taken_for_empty_by_what_was_read_while_a_row_was_settled(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch, is_read_meanwhile: bool
) -> None:
    """As a replay reads it that meets what is recorded already: the settled row is not counted any more."""
    unused: Any = None
    numbering = SequenceNumbers(mongo)
    settling_ = Settling(mongo, unused, numbering, unused, None)
    first = row("first", subscription="s", lane="s|Patient/p1")
    second = {**first, "_id": "second", "event": "second", "number": 2, "state": "queued"}
    await mongo.collection("deliveries").insert_many([first, second])
    await numbering.learn(["s"])

    async def and_read(deliveries: Collection, batch: list[Settlement]) -> int:
        count = await settle(deliveries, batch)
        if is_read_meanwhile:
            numbering.forget(["s"])
            await numbering.learn(["s"])
        return count

    monkeypatch.setattr(settling, "settle", and_read)
    settling_.add([settlement(first)])
    freed = await settling_.write(lambda _: None, alone=True)
    assert freed.lanes == {"s|Patient/p1"}
    settling_.add([settlement({**second, "state": "sending"})])
    await mongo.collection("deliveries").update_one(
        {"_id": "second"}, {"$set": {"state": "sending"}}
    )
    await numbering.learn(["s"])
    assert (await settling_.write(lambda _: None, alone=True)).lanes == (
        {"s|Patient/p1"} if is_read_meanwhile else set()
    )
