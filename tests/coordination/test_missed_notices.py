"""What waits for a practice whose Subscription is ended is not lost: it is told after all, once and in order.

docs/routing.md, "Events that reach no practice"
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest

from app.fhir.codes import REVIEW_REASON
from app.settings import Settings
from tests.builders.practices import endpoint, organization, patient, put, ref
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import ADMISSION, encounter, topic_based
from tests.conftest import Server, make_settings, running

pytestmark = pytest.mark.mongo

Pair = tuple[Server, httpx.AsyncClient]
Resource = dict[str, Any]
TOPICS = "encounter-admission,encounter-discharge"


@asynccontextmanager
async def serving(
    mongod: str, settings: Settings | None = None, **more: Any
) -> AsyncIterator[Pair]:
    asked = {"endpoint_topics": TOPICS, "endpoint_subscriptions": True, "egress_allow": "127.0.0.1"}
    made = settings or make_settings(mongod, **asked)
    async with running(made.model_copy(update=more)) as pair:
        await settle(pair)
        yield pair


async def settle(pair: Pair) -> None:
    """Let all that follows happen, timers of the next half minute included."""
    for _ in range(2):
        await pair[0].worker.drain()
        await pair[0].engine.drain()
        pair[0].clock.advance(timedelta(seconds=31))
    await pair[0].engine.drain()
    await pair[0].worker.drain()
    await pair[0].engine.drain()


async def write(pair: Pair, *resources: Resource) -> None:
    await put(pair[1], *resources)
    await settle(pair)


async def waiting(pair: Pair, receiver: Receiver, answer: int = 503, *visit: str) -> None:
    """A practice whose endpoint takes nothing just now, and a visit of its patient that ended meanwhile."""
    await write(
        pair,
        endpoint("e", receiver.url),
        organization("o", "e"),
        patient("p1", ref("Organization/o")),
    )
    receiver.answer = lambda _: answer
    for status in visit or ("in-progress", "finished"):
        await put(pair[1], {**encounter(status), "id": "visit"})
        await pair[0].worker.drain()
        await pair[0].engine.drain()


async def recover(pair: Pair, receiver: Receiver, *resources: Resource) -> list[str]:
    """What the practice is told from now on, when its endpoint takes notices and these are written."""
    receiver.requests.clear()
    receiver.answer = lambda _: 200
    await write(pair, *resources)
    return told(receiver)


def told(receiver: Receiver) -> list[str]:
    return [str(each.parameter("topic")).rpartition("-")[2] for each in receiver.events]


async def tasks(pair: Pair) -> Mapping[str, Resource]:
    """The review Tasks about practices, by reason."""
    found = (await pair[1].get("/Task", params={"code": f"{REVIEW_REASON}|"})).json()
    every = [entry["resource"] for entry in found.get("entry", ())]
    reasons = ("no-endpoint", "nobody-listens")
    return {code: each for each in every if (code := each["code"]["coding"][0]["code"]) in reasons}


async def statuses(pair: Pair) -> dict[str, str]:
    return {reason: task["status"] for reason, task in (await tasks(pair)).items()}


async def test_an_endpoint_that_goes_asks_a_person_and_the_next_one_is_told(
    mongod: str, receiver: Receiver
) -> None:
    async with serving(mongod) as pair:
        await waiting(pair, receiver)
        await write(pair, organization("o"))
        (task,) = (await tasks(pair)).values()
        assert task["focus"] == ref("Organization/o")
        assert (task["status"], task["input"][0]["valuePositiveInt"]) == ("requested", 2)
        new = endpoint("e2", receiver.url), organization("o", "e2")
        assert await recover(pair, receiver, *new) == ["admission", "discharge"]
        (task,) = (await tasks(pair)).values()
        assert task["status"] == "completed"
        assert task["description"].endswith("Nothing that this Task tells of waits any more.")
        assert not any("valuePositiveInt" in each for each in task["input"])
        # Nor does the old one tell it once more, when it is there again.
        assert await recover(pair, receiver, organization("o", "e")) == []


async def test_an_endpoint_that_is_suspended_for_a_while_is_told_then(
    mongod: str, receiver: Receiver
) -> None:
    async with serving(mongod) as pair:
        await waiting(pair, receiver)
        await write(pair, {**endpoint("e", receiver.url), "status": "suspended"})
        assert await statuses(pair) == {"no-endpoint": "requested"}
        active = endpoint("e", receiver.url)
        assert await recover(pair, receiver, active) == ["admission", "discharge"]
        assert await statuses(pair) == {"no-endpoint": "completed"}
        # Once more: what was told is not told again.
        await write(pair, {**active, "status": "suspended"})
        assert await recover(pair, receiver, active) == []


async def test_an_address_that_is_gone_for_good_is_told_when_there_is_another(
    mongod: str, receiver: Receiver
) -> None:
    """The very notice that was answered 410, too."""
    async with serving(mongod) as pair:
        await waiting(pair, receiver, 410, "in-progress")
        await settle(pair)
        assert await statuses(pair) == {"nobody-listens": "requested"}
        moved = endpoint("e", f"{receiver.url}/new")
        assert await recover(pair, receiver, moved) == ["admission"]
        assert receiver.events[0].path == "/new"
        assert await statuses(pair) == {"nobody-listens": "completed"}


async def test_an_endpoint_that_is_exchanged_in_one_write_leaves_nothing_to_the_old_one(
    mongod: str, receiver: Receiver
) -> None:
    async with serving(mongod) as pair:
        await waiting(pair, receiver)
        new = endpoint("e2", receiver.url), organization("o", "e2")
        assert await recover(pair, receiver, *new) == ["admission", "discharge"]
        assert set((await statuses(pair)).values()) <= {"completed"}


async def test_what_the_settings_took_back_goes_out_when_they_give_it_again(
    mongod: str, receiver: Receiver
) -> None:
    async with serving(mongod) as pair:
        await waiting(pair, receiver)
        settings = pair[0].settings
    async with serving(mongod, settings, endpoint_subscriptions=False) as pair:
        assert await statuses(pair) == {"nobody-listens": "requested"}
    receiver.requests.clear()
    receiver.answer = lambda _: 200
    async with serving(mongod, settings) as pair:
        await receiver.wait(2)
        await settle(pair)
        assert told(receiver) == ["admission", "discharge"]
        assert await statuses(pair) == {"nobody-listens": "completed"}


async def test_what_waited_for_a_subscription_that_is_deleted_is_told_to_the_next(
    mongod: str, receiver: Receiver
) -> None:
    """The practice's own; and one for another purpose leaves nothing behind."""
    async with serving(mongod, endpoint_subscriptions=False) as pair:
        await write(pair, organization("o"), patient("p1", ref("Organization/o")))
        panel = "general-practitioner=Organization/o"
        places = [await subscribe(pair, receiver, each) for each in (panel, "patient=p1")]
        receiver.answer = lambda _: 503
        await put(pair[1], {**encounter(), "id": "visit"})
        await pair[0].worker.drain()
        await pair[0].engine.drain()
        for place in places:
            assert (await pair[1].delete(place)).status_code == 204
        await settle(pair)
        ((reason, task),) = (await tasks(pair)).items()
        assert (reason, task["status"]) == ("no-endpoint", "requested")
        receiver.requests.clear()
        receiver.answer = lambda _: 200
        await subscribe(pair, receiver, panel)
        assert told(receiver) == ["admission"]
        assert await statuses(pair) == {"no-endpoint": "completed"}


async def test_a_subscription_that_its_client_switches_off_and_on_tells_what_waited(
    mongod: str, receiver: Receiver
) -> None:
    async with serving(mongod, endpoint_subscriptions=False) as pair:
        await write(pair, organization("o"), patient("p1", ref("Organization/o")))
        place = await subscribe(pair, receiver, "general-practitioner=Organization/o")
        receiver.answer = lambda _: 503
        await put(pair[1], {**encounter(), "id": "first"})
        await pair[0].worker.drain()
        await switch(pair, place, "off")
        await write(pair, {**encounter(), "id": "second"})
        assert await statuses(pair) == {"no-endpoint": "requested"}
        receiver.requests.clear()
        receiver.answer = lambda _: 200
        await switch(pair, place, "requested")
        names = [each.focus.rpartition("/")[2] for each in receiver.events]
        assert names == ["first", "second"]
        assert await statuses(pair) == {"no-endpoint": "completed"}


async def switch(pair: Pair, place: str, status: str, **more: Any) -> None:
    body = (await pair[1].get(place)).json() | {"status": status, **more}
    assert (await pair[1].put(place, json=body)).status_code == 200
    await settle(pair)


async def subscribe(pair: Pair, receiver: Receiver, filter_: str) -> str:
    body = topic_based(filter_, endpoint=receiver.url) | {"criteria": ADMISSION}
    answer = await pair[1].post("/Subscription", json=body)
    assert answer.status_code == 201, answer.text
    await settle(pair)
    return f"/Subscription/{answer.json()['id']}"


async def test_of_two_practices_each_is_told_when_it_hears_again(
    mongod: str, receiver: Receiver
) -> None:
    """Both Endpoints are suspended; that of one comes back, and another stands in for the other's at last."""
    async with serving(mongod) as pair:
        both = [ref("Organization/a"), ref("Organization/b")]
        for name in ("a", "b"):
            await put(pair[1], endpoint(name, f"{receiver.url}/{name}"), organization(name, name))
        await write(pair, {**patient("p1", both[0]), "generalPractitioner": both})
        receiver.answer = lambda _: 503
        await put(pair[1], {**encounter(), "id": "visit"})
        await pair[0].worker.drain()
        for name in ("a", "b"):
            address = f"{receiver.url}/{name}"
            await put(pair[1], {**endpoint(name, address), "status": "suspended"})
        await settle(pair)
        new = endpoint("c", f"{receiver.url}/c"), organization("a", "c")
        assert await recover(pair, receiver, *new) == ["admission"]
        assert await recover(pair, receiver, endpoint("b", f"{receiver.url}/b")) == ["admission"]
        assert receiver.events[0].path == "/b"


async def test_a_subscription_that_comes_back_with_another_topic_tells_that_alone(
    mongod: str, receiver: Receiver
) -> None:
    """What it has missed of the other is told to whoever asks for that."""
    async with serving(mongod, endpoint_subscriptions=False) as pair:
        await write(pair, organization("o"), patient("p1", ref("Organization/o")))
        panel = "general-practitioner=Organization/o"
        place = await subscribe(pair, receiver, panel)
        receiver.answer = lambda _: 503
        await put(pair[1], {**encounter(), "id": "visit"})
        await pair[0].worker.drain()
        await switch(pair, place, "off")
        receiver.requests.clear()
        receiver.answer = lambda _: 200
        discharges = {"criteria": ADMISSION.replace("admission", "discharge")}
        await switch(pair, place, "requested", **discharges)
        assert told(receiver) == []
        await subscribe(pair, receiver, panel)
        assert told(receiver) == ["admission"]
