"""Every practice that comes to a patient gets the plan: named later, in another's place, by a roster or a date."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import pytest

from app.fhir.codes import GROUP_KIND, PCP_PANEL
from tests.builders.care_plans import (
    CHANGE,
    Desk,
    Json,
    goal,
    patient,
    plan,
    reference,
    resources,
    trigger,
    words,
)
from tests.builders.practices import dated
from tests.builders.receiver import Received, Receiver, receiving
from tests.builders.subscriptions import topic_based

pytestmark = pytest.mark.mongo


@dataclass
class Practice:
    """A practice with a Subscription for its panel."""

    at: Desk
    name: str
    receiver: Receiver

    async def settle(self) -> list[Received]:
        """What it has received once all that is due has happened."""
        await self.at.settle()
        return self.receiver.events

    async def subscribe(self) -> None:
        draft = topic_based(
            f"general-practitioner={self.at.ref(f'Organization/{self.name}')}",
            endpoint=self.receiver.url,
            content="full-resource",
        )
        draft |= {"id": f"{self.name}-{self.at.member}", "criteria": CHANGE}
        answer = await self.at.client.put(f"Subscription/{draft['id']}", json=draft)
        assert answer.status_code == 201, answer.text
        await self.at.server.worker.drain()


@asynccontextmanager
async def practice(at: Desk, name: str, *, subscribed: bool = True) -> AsyncIterator[Practice]:
    async with receiving() as receiver:
        found = Practice(at, name, receiver)
        await at.put({"resourceType": "Organization", "id": name, "name": f"Practice {name}"})
        if subscribed:
            await found.subscribe()
        yield found
        await at.client.delete(f"Subscription/{name}-{at.member}")


def of(*practices: str) -> Json:
    """Ann, whose practices these are."""
    return patient() | {
        "generalPractitioner": [reference(f"Organization/{each}") for each in practices]
    }


@pytest.fixture
async def riverside(at: Desk) -> AsyncIterator[Practice]:
    async with practice(at, "riverside") as found:
        yield found


@pytest.fixture
async def hilltop(at: Desk) -> AsyncIterator[Practice]:
    async with practice(at, "hilltop") as found:
        yield found


async def test_a_practice_that_is_named_later_gets_the_plan_with_its_document(
    at: Desk, riverside: Practice
) -> None:
    await at.begin()
    assert riverside.receiver.events == []
    await at.put(of("riverside"))
    (notice,) = await riverside.settle()
    assert trigger(notice) == "created"
    assert words(notice) == "The care plan is new to the practice; its document is attached."
    (document,) = resources(notice, "Bundle")
    assert "Walk twenty minutes a day" in str(document)
    (index,) = resources(notice, "DocumentReference")
    (replaced,) = index["relatesTo"]
    earlier = await at.get(replaced["target"]["reference"])
    assert (replaced["code"], earlier["status"]) == ("replaces", "superseded")
    assert (await at.get(at.ref("CarePlan/plan")))["meta"]["versionId"] == "1"
    assert len(at.receiver.events) == 1, "who has the plan is not told again"


async def test_each_change_of_practice_is_one_copy(
    at: Desk, riverside: Practice, hilltop: Practice
) -> None:
    await at.begin()
    await at.put(of("riverside"))
    await at.settle()
    await at.put(of("hilltop"))
    await at.settle()
    await at.put(of("hilltop") | {"gender": "female"})
    assert [len(each.receiver.events) for each in (riverside, hilltop)] == [1, 1]
    await at.put(goal("walk", "Walk an hour a day"))
    await at.after(seconds=900)
    assert [len(each.receiver.events) for each in (riverside, hilltop)] == [1, 2]
    await at.put(of("riverside"))
    notices = await riverside.settle()
    assert [trigger(each) for each in notices] == ["created", "created"]
    (document,) = resources(notices[1], "Bundle")
    assert "Walk an hour a day" in str(document), "it is the plan as it is by now"
    assert len(hilltop.receiver.events) == 2


async def test_a_practice_that_was_there_from_the_beginning_is_told_once(
    at: Desk, riverside: Practice
) -> None:
    await at.begin(of("riverside"))
    await at.put(of("riverside") | {"gender": "female"})
    assert [trigger(each) for each in await riverside.settle()] == ["created"]
    await at.after(days=2)
    assert len(riverside.receiver.events) == 1


async def test_what_is_still_gathered_comes_after_the_copy(at: Desk, riverside: Practice) -> None:
    await at.begin()
    await at.put(goal("walk", "Walk an hour a day"), of("riverside"))
    (copy,) = await riverside.settle()
    (document,) = resources(copy, "Bundle")
    assert "Walk twenty minutes a day" in str(document)
    await at.after(seconds=900)
    copy, change = riverside.receiver.events
    assert [trigger(copy), trigger(change)] == ["created", "goals"]
    assert "Walk an hour a day" in words(change)


async def test_a_notice_that_waited_for_the_old_practice_is_not_told_twice_to_the_new_one(
    at: Desk, riverside: Practice, hilltop: Practice
) -> None:
    riverside.receiver.answers([], then=503)
    await at.begin(of("riverside"))
    await at.put(of("hilltop"))
    assert [trigger(each) for each in await hilltop.settle()] == ["created"]
    rows = at.server.mongo.collection("deliveries")
    waiting = {"subscription": f"riverside-{at.member}", "open": True}
    past = at.server.mongo.now() - timedelta(seconds=1)
    await rows.update_many(waiting, {"$set": {"next_at": past}})
    await at.settle()
    assert len(hilltop.receiver.events) == 1


async def test_a_roster_brings_the_plan(at: Desk, riverside: Practice) -> None:
    await at.begin()
    panel = {"coding": [{"system": GROUP_KIND, "code": PCP_PANEL}]}
    await at.put(
        {
            "resourceType": "Group",
            "id": "panel",
            "type": "person",
            "actual": True,
            "code": panel,
            "managingEntity": reference("Organization/riverside"),
            "member": [{"entity": reference("Patient/ann")}],
        }
    )
    assert await riverside.settle() == []
    await at.after(seconds=61)
    assert [trigger(each) for each in riverside.receiver.events] == ["created"]


async def test_the_calendar_brings_the_plan(at: Desk, riverside: Practice) -> None:
    await at.begin()
    start = (at.server.clock.now() + timedelta(days=3)).date().isoformat()
    await at.put(patient() | {"generalPractitioner": [dated("Organization/riverside", start)]})
    await at.after(days=2)
    assert riverside.receiver.events == []
    await at.after(days=2)
    assert [trigger(each) for each in riverside.receiver.events] == ["created"]


async def test_a_practice_that_cannot_be_told_is_asked_about_and_told_once_it_listens(
    at: Desk,
) -> None:
    async with practice(at, "quiet", subscribed=False) as quiet:
        await at.begin()
        await at.put(of("quiet"))
        await at.settle()
        found = await at.get(f"Task?patient={at.ref('Patient/ann')}")
        tasks = [each["resource"] for each in found["entry"]]
        (task,) = [each for each in tasks if each["status"] == "requested"]
        assert task["code"]["coding"][0]["code"] == "no-endpoint"
        await quiet.subscribe()
        await at.after(seconds=61)
        assert [trigger(each) for each in quiet.receiver.events] == ["created"]


async def test_a_plan_that_has_ended_is_copied_to_nobody(at: Desk, riverside: Practice) -> None:
    await at.begin()
    await at.put(plan("revoked"))
    await at.after(seconds=900)
    await at.put(of("riverside"))
    await at.after(days=2)
    assert riverside.receiver.events == []


async def test_a_notice_that_a_deleted_subscription_missed_is_told_to_the_next_one_time(
    at: Desk, riverside: Practice
) -> None:
    """The very notice, for its practice counts as told of the plan; and no copy beside it."""
    riverside.receiver.answer = lambda _: 503
    await at.begin(of("riverside"))
    await at.client.delete(f"Subscription/riverside-{at.member}")
    for _ in range(2):
        await at.after(seconds=11)
    riverside.receiver.requests.clear()
    riverside.receiver.answer = lambda _: 200
    draft = topic_based(
        f"general-practitioner={at.ref('Organization/riverside')}",
        endpoint=riverside.receiver.url,
        content="full-resource",
    )
    answer = await at.client.post("Subscription", json=draft | {"criteria": CHANGE})
    assert answer.status_code == 201, answer.text
    for _ in range(3):
        await at.after(minutes=1)
    (notice,) = riverside.receiver.events
    assert trigger(notice) == "created"
    await at.client.delete(f"Subscription/{answer.json()['id']}")
