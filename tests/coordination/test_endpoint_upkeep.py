"""Subscriptions that the server keeps for Endpoints: one stream for each, in line with the settings, healed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest

from app.fhir.codes import REVIEW_REASON
from app.settings import Settings
from tests.builders.practices import endpoint, organization, panel, patient, put, ref
from tests.builders.receiver import Received, Receiver
from tests.builders.subscriptions import encounter
from tests.conftest import Server, make_settings, running

pytestmark = [pytest.mark.mongo, pytest.mark.slow]

Pair = tuple[Server, httpx.AsyncClient]
TOPICS = "encounter-admission,encounter-discharge,encounter-transfer,encounter-cancelled"


def keeping(mongod: str, **more: Any) -> Settings:
    asked = {"endpoint_topics": TOPICS, "endpoint_subscriptions": True, "egress_allow": "127.0.0.1"}
    return make_settings(mongod, **asked | more)


@asynccontextmanager
async def serving(settings: Settings, **changes: Any) -> AsyncIterator[Pair]:
    """A server on the same database, once it has done what it does at its start."""
    async with running(settings.model_copy(update=changes)) as pair:
        await settle(pair)
        yield pair


async def settle(pair: Pair) -> None:
    await pair[0].engine.drain()
    await pair[0].worker.drain()
    await pair[0].engine.drain()


async def practice(pair: Pair, receiver: Receiver) -> None:
    """A practice with an Endpoint, which is the PCP of p1."""
    await put(
        pair[1],
        endpoint("e", receiver.url),
        organization("o", "e"),
        patient("p1", ref("Organization/o")),
    )
    await settle(pair)


async def statuses(pair: Pair) -> Mapping[str, str]:
    """The status of each topic's Subscription."""
    entries = (await pair[1].get("/Subscription")).json().get("entry", [])
    found = [entry["resource"] for entry in entries]
    return {each["criteria"].rpartition("-")[2]: each["status"] for each in found}


def topic(received: Received) -> str:
    return str(received.parameter("topic")).rpartition("-")[2]


async def test_a_practice_hears_of_a_visit_in_its_order_and_of_a_rise_once(
    mongod: str, receiver: Receiver
) -> None:
    """The notice of the registration is refused at first, and the others wait for it."""
    async with serving(keeping(mongod)) as pair:
        await practice(pair, receiver)
        receiver.answers([503])
        for status, class_ in (
            ("in-progress", "EMER"),
            ("in-progress", "IMP"),
            ("cancelled", "IMP"),
        ):
            await put(pair[1], {**encounter(status, class_), "id": "visit"})
        await receiver.until(lambda: any(topic(each) == "cancelled" for each in receiver.events))
        await settle(pair)
        told = [topic(each) for each in receiver.events]
        assert told == [
            "admission",
            "admission",
            "admission",
            "cancelled",
        ]  # the first of them twice
        left_out = await explained(pair, "transfer")
        assert "another topic told the same Endpoint of it" in left_out


async def test_who_is_named_by_a_roster_of_the_plan_alone_is_told(
    mongod: str, receiver: Receiver
) -> None:
    async with serving(keeping(mongod, endpoint_topics="encounter-admission")) as pair:
        await put(pair[1], endpoint("e", receiver.url), organization("plan"), patient("p1"))
        await put(pair[1], organization("o", "e"))
        roster = panel("g", "Organization/plan", "Patient/p1", of="Organization/o")
        await put(pair[1], roster)
        await settle(pair)
        assert await statuses(pair) == {"admission": "active"}
        await put(pair[1], {**encounter(patient="p1"), "id": "visit"})
        await settle(pair)
        assert [topic(each) for each in receiver.events] == ["admission"]


async def explained(pair: Pair, of: str) -> str:
    query = {"criteria": f"http://carerelay.example/SubscriptionTopic/encounter-{of}"}
    (entry,) = (await pair[1].get("/Subscription", params=query)).json()["entry"]
    place = f"/Subscription/{entry['resource']['id']}/$explain"
    asked = {"reference": "Encounter/visit", "version": "2"}
    answer = await pair[1].get(place, params=asked)
    assert answer.status_code == 200, answer.text
    return answer.text


async def test_what_the_settings_say_holds_for_endpoints_that_were_there_before(
    mongod: str, receiver: Receiver
) -> None:
    settings = keeping(mongod)
    async with serving(settings, endpoint_subscriptions=False) as pair:
        await practice(pair, receiver)
        assert await statuses(pair) == {}
    async with serving(settings, endpoint_topics="encounter-admission") as pair:
        assert await statuses(pair) == {"admission": "active"}
    handshakes = len(receiver.requests)
    async with serving(settings, endpoint_topics="encounter-admission,encounter-discharge") as pair:
        assert await statuses(pair) == {"admission": "active", "discharge": "active"}
    assert len(receiver.requests) == handshakes + 1, "what is in line is not proven again"
    async with serving(settings, endpoint_topics="encounter-discharge") as pair:
        assert await statuses(pair) == {"admission": "off", "discharge": "active"}
    async with serving(settings, endpoint_subscriptions=False) as pair:
        assert await statuses(pair) == {"admission": "off", "discharge": "off"}
    async with serving(settings, endpoint_topics="encounter-admission") as pair:
        assert await statuses(pair) == {"admission": "active", "discharge": "off"}


async def test_what_a_person_has_switched_off_stays_off(mongod: str, receiver: Receiver) -> None:
    settings = keeping(mongod, endpoint_topics="encounter-admission")
    async with serving(settings) as pair:
        await practice(pair, receiver)
        (entry,) = (await pair[1].get("/Subscription")).json()["entry"]
        await put(pair[1], {**entry["resource"], "status": "off"})
    async with serving(settings) as pair:
        assert await statuses(pair) == {"admission": "off"}


async def test_what_has_failed_is_tried_again_with_one_handshake(
    mongod: str, receiver: Receiver
) -> None:
    """The practice's endpoint is away for long, and comes back while the first of its Subscriptions is proven."""
    failing = keeping(mongod, endpoint_topics="encounter-admission,encounter-discharge")
    async with serving(failing, delivery_window=0, refusal_window=0) as pair:
        await practice(pair, receiver)
        receiver.answer = lambda _: 500
        await put(pair[1], {**encounter(patient="p1"), "id": "first"})
        await settle(pair)
        await pair[0].worker.drain()
        # The other one fails by a patient of its own, whose visit it alone is told of.
        await put(pair[1], patient("p2", ref("Organization/o")))
        await put(pair[1], {**encounter("finished", patient="p2"), "id": "second"})
        await settle(pair)
        assert set((await statuses(pair)).values()) == {"error"}
        assert await open_tasks(pair) == 2
        seen = len(receiver.requests)
        pair[0].clock.advance(timedelta(minutes=1))
        await settle(pair)
        assert sorted((await statuses(pair)).values()) == ["error", "requested"]
        assert len(receiver.requests) == seen + 1
        receiver.answer = lambda _: 200
        taken = len(receiver.events)
        await receiver.wait(taken + 2)
        await settle(pair)
        assert set((await statuses(pair)).values()) == {"active"}
        assert await open_tasks(pair) == 0
        told = {each.focus.rpartition("/")[2] for each in receiver.events[taken:]}
        assert told == {"first", "second"}


async def open_tasks(pair: Pair) -> int:
    query = {"code": f"{REVIEW_REASON}|subscription-error", "status": "requested"}
    return int((await pair[1].get("/Task", params=query)).json()["total"])


async def waiting_visit(pair: Pair, receiver: Receiver, *versions: tuple[str, str]) -> None:
    """A practice with an Endpoint, and a visit of a patient who has no practice yet."""
    await practice(pair, receiver)
    await put(pair[1], patient("p2"))
    for status, class_ in versions:
        await put(pair[1], {**encounter(status, class_, patient="p2"), "id": "waits"})
        await settle(pair)
    assert not receiver.events


async def endings(pair: Pair) -> dict[str, str]:
    """What became of the rows that nobody was told by, by topic."""
    found = pair[0].mongo.collection("deliveries").find({"focus.id": "waits", "number": 0})
    return {
        row["topic"].rpartition("-")[2]: row["reason"].rpartition("; ")[2]
        for row in await found.sort("_id", 1).to_list(None)
    }


async def test_a_rise_that_waited_is_told_once_too(mongod: str, receiver: Receiver) -> None:
    async with serving(keeping(mongod)) as pair:
        rise = ("in-progress", "EMER"), ("in-progress", "IMP")
        await waiting_visit(pair, receiver, *rise)
        await put(pair[1], patient("p2", ref("Organization/o")))
        await settle(pair)
        assert [topic(each) for each in receiver.events] == ["admission", "admission"]
        assert await endings(pair) == {
            "admission": "told after all",
            "transfer": "told as an admission",
        }


async def test_who_was_told_of_the_discharge_is_not_told_of_the_admission_after_it(
    mongod: str, receiver: Receiver
) -> None:
    """Each topic has a Subscription of its own, and the practice one stream."""
    async with serving(keeping(mongod)) as pair:
        await waiting_visit(pair, receiver, ("in-progress", "IMP"))
        left = {**encounter("finished", "IMP", patient="p2"), "id": "waits"}
        entries = [
            {
                "request": {"method": "PUT", "url": f"{each['resourceType']}/{each['id']}"},
                "resource": each,
            }
            for each in (patient("p2", ref("Organization/o")), left)
        ]
        bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
        assert (await pair[1].post("", json=bundle)).status_code == 200
        await settle(pair)
        pair[0].clock.advance(timedelta(seconds=31))  # where it was looked at before that
        await settle(pair)
        assert [topic(each) for each in receiver.events] == ["discharge"]
        assert await endings(pair) == {"admission": "its practice was told of a newer version"}
