"""Where it cannot be judged whether an event is one of a Subscription, that one waits and the others are told."""

from __future__ import annotations

from datetime import timedelta

import pytest

from app.runtime.mongo import Mongo
from app.store.store import Store
from app.subscriptions.ledger.unmatched import BEHIND
from app.subscriptions.matching.registration import Registration
from app.subscriptions.sending.owner_rights import OwnerRights
from tests.builders.deliveries import create, rows, update, working
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import classic, encounter

pytestmark = pytest.mark.mongo


@pytest.mark.parametrize("mongo", ["pymongo"], indirect=True)
async def test_whose_rights_cannot_be_judged_hears_of_it_later_and_in_order(
    mongo: Mongo, store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two versions that are judged together both wait, and each of the others hears of both at once."""
    judging = OwnerRights.kind
    names = ("first", "broken", "last")

    async def failing(self: OwnerRights, registration: Registration) -> object:
        if registration.id == "broken":
            raise ValueError("its owner's role is none that there is")
        return await judging(self, registration)

    async with working(mongo, store, loops=False) as worker:
        for name in names:
            await create(store, classic("Encounter?", f"{receiver.url}/{name}"), name)
        await worker.run_once()
        with monkeypatch.context() as patch:
            patch.setattr(OwnerRights, "kind", failing)
            stay = await create(store, encounter(), "stay")
            await update(store, stay, status="finished")
            await worker.drain()
        told = {
            name: [row["number"] for row in await rows(mongo, subscription=name)] for name in names
        }
        assert told == {"first": [1, 2], "broken": [], "last": [1, 2]}
        unmatched = mongo.collection("unmatched")
        waiting = await unmatched.find({}).sort("focus.version", 1).to_list(None)
        assert [(row["judge"], row["focus"]["version"], row["reason"]) for row in waiting] == [
            ("Subscription/broken", 1, "ValueError"),
            ("Subscription/broken", 2, BEHIND),
        ]
        assert not any(row.get("as_of_now") for row in waiting)
        for _ in waiting:
            past = mongo.now() - timedelta(seconds=1)
            await unmatched.update_many({}, {"$set": {"lease_until": past}})
            await worker.run_once()
            await worker.drain()
        late = await rows(mongo, subscription="broken")
        assert [(row["number"], row["focus"]["version"]) for row in late] == [(1, 1), (2, 2)]
        assert await unmatched.count_documents({}) == 0
    heard = [each.path for each in receiver.requests]
    assert sorted(heard) == sorted(f"/{name}" for name in names for _ in range(2))
