"""A stay that turns out to be another patient's, under authorization: who was told of it is told that it was not so.

The old practice reads the stay no more: it hears of the withdrawn version alone. docs/encounters.md, docs/access.md
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.fhir.ids import new_id
from tests.builders.access_world import World, encounter, security, world as a_world
from tests.builders.deliveries import make_due
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import classic, topic_based
from tests.builders.topic_listener import OURS, label

pytestmark = pytest.mark.mongo
JSON = "application/fhir+json"


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod, publish_notices=False, unrouted=False) as found:
        yield found


@pytest.fixture(autouse=True)
async def _no_others(world: World) -> AsyncIterator[None]:
    yield
    await world.end_subscriptions()


async def listen(
    world: World, receiver: Receiver, who: str, content: str = "full-resource"
) -> list[str]:
    """Subscribes to what is told and taken back; the ids."""
    return [
        await world.subscribe(
            who,
            topic_based(endpoint=f"{receiver.url}/{who}", content=content)
            | {"criteria": f"{OURS}encounter-{slug}"},
        )
        for slug in ("admission", "cancelled")
    ]


def told(receiver: Receiver, who: str) -> list[str]:
    return sorted(
        label(each)
        for each in receiver.requests
        if each.path == f"/{who}" and each.kind == "event-notification"
    )


def bodies(receiver: Receiver, who: str) -> list[str]:
    return [each.body.decode() for each in receiver.requests if each.path.startswith(f"/{who}")]


async def moved(world: World, id_: str, **more: Any) -> None:
    """A stay of north's patient, told of, that the hospital puts right to be south's patient's."""
    await world.put("general", encounter(id_, "pn", "general"))
    await world.server.worker.drain()
    await world.write(encounter(id_, "ps", "general", **more))


@pytest.mark.parametrize("content", ["full-resource", "id-only", "empty"])
async def test_the_old_practice_hears_that_it_was_not_so_and_nothing_else(
    world: World, receiver: Receiver, content: str
) -> None:
    id_ = new_id()
    _, cancelled = await listen(world, receiver, "north", content)
    receiver.requests.clear()
    await moved(world, id_, reasonCode=[{"text": "Sascha's falls"}])
    admission, retraction = bodies(receiver, "north")
    assert "Sascha" not in admission + retraction
    assert "Patient/ps" not in admission + retraction
    assert ("entered-in-error" in retraction) == (content == "full-resource")
    assert ("Patient/pn" in retraction) == (content != "empty")
    events = await world.get("north", f"/Subscription/{cancelled}/$events")
    assert (f"Encounter/{id_}" in events.text) == (content != "empty")
    assert "Patient/ps" not in events.text
    for url in (f"/Encounter/{id_}", f"/Encounter/{id_}/_history/2", f"/Encounter/{id_}/_history"):
        assert (await world.get("north", url)).status_code == 404


async def test_plans_and_listeners_of_all_stays_hear_of_it_as_well(
    world: World, receiver: Receiver
) -> None:
    id_ = new_id()
    await listen(world, receiver, "plan-a")
    await listen(world, receiver, "plan-b")
    await world.subscribe("north", classic("Encounter?", f"{receiver.url}/all", JSON))
    receiver.requests.clear()
    await moved(world, id_)
    assert told(receiver, "plan-a") == ["plan-a:A01", "plan-a:A11"]
    assert told(receiver, "plan-b") == ["plan-b:A01"]
    heard = bodies(receiver, "all")
    assert ["entered-in-error" in each for each in heard] == [False, True]
    assert "Patient/ps" not in "".join(heard)


async def test_it_is_told_though_the_stay_is_closed_to_everybody_now(
    world: World, receiver: Receiver
) -> None:
    """A label of the other patient's says nothing of the one whose stay it was not."""
    await listen(world, receiver, "north")
    receiver.requests.clear()
    await moved(world, new_id(), meta=security("V"))
    assert told(receiver, "north") == ["north:A01", "north:A11"]


async def test_what_it_takes_back_is_not_told_any_more(world: World, receiver: Receiver) -> None:
    """An admission that waits while its stay becomes another patient's."""
    id_ = new_id()
    admissions, _ = await listen(world, receiver, "north")
    receiver.requests.clear()
    receiver.answer = lambda request: 503 if "in-progress" in request.body.decode() else 200
    await moved(world, id_)
    await make_due(world.server.mongo)
    await world.server.worker._backlog.sweep()
    await world.server.worker.drain()
    rows = world.server.mongo.collection("deliveries").find({"subscription": admissions})
    ended = [(row["focus"]["version"], row["state"], row["reason"]) async for row in rows]
    assert sorted(ended) == [
        (1, "suppressed", "Withheld: access"),
        (3, "suppressed", "Withheld: access"),
    ]
    assert told(receiver, "north") == ["north:A01", "north:A11"]
    assert all("Patient/ps" not in each for each in bodies(receiver, "north"))


async def test_what_was_hidden_from_the_old_practice_is_not_told_to_it_by_taking_it_back(
    world: World, receiver: Receiver
) -> None:
    id_ = new_id()
    await listen(world, receiver, "general")
    await listen(world, receiver, "north")
    receiver.requests.clear()
    await world.put("general", encounter(id_, "pn", "general", meta=security("PSY")))
    await world.server.worker.drain()
    await world.write(encounter(id_, "ps", "general"))
    assert told(receiver, "general") == ["general:A01", "general:A01", "general:A11"]
    assert told(receiver, "north") == []


async def test_a_stay_without_a_patient_now_is_taken_back_too(
    world: World, receiver: Receiver
) -> None:
    id_ = new_id()
    await listen(world, receiver, "north")
    receiver.requests.clear()
    await world.put("general", encounter(id_, "pn", "general"))
    await world.server.worker.drain()
    nobodys: dict[str, Any] = encounter(id_, "pn", "general")
    del nobodys["subject"]
    await world.write(nobodys)
    assert told(receiver, "north") == ["north:A01", "north:A11"]
