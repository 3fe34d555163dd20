"""What the server gives up has a row, a review Task and a way to be tried again; then the Task is closed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from app.fhir.codes import DEAD_LETTER, REVIEW_REASON
from tests.builders.care_plans import BASE, Pair, desk, plan, words
from tests.builders.consents import consent
from tests.builders.practices import organization, patient, put, ref
from tests.builders.reactions import make_due
from tests.builders.receiver import Receiver
from tests.builders.spoilt import spoilt
from tests.builders.subscriptions import encounter, topic_based
from tests.conftest import JSON, Server, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

ADMIN = "http://carerelay.test/admin/dead-letters"


@pytest.fixture
async def pair(mongod: str) -> AsyncIterator[Pair]:
    """A server of its own, whose calendar can be moved."""
    async with running(make_settings(mongod, base_url=BASE, test_clock=True)) as pair:
        yield pair


async def dead_letters(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    answer = await client.get(ADMIN)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["dead_letters"]
    return found


async def tasks(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    asked = await client.get("/Task", params={"code": f"{REVIEW_REASON}|work-given-up"})
    return [entry["resource"] for entry in asked.json().get("entry", ())]


async def retry(client: httpx.AsyncClient, letter: dict[str, Any]) -> None:
    which = {"queue": letter["queue"], "id": letter["id"]}
    answer = await client.post(f"{ADMIN}/retry", params=which, headers=JSON)
    assert (answer.status_code, answer.json()) == (202, {"queued": 1})


async def fail_for_the_last_time(server: Server, collection: str, field: str, tries: int) -> None:
    """All tries but one are over, and that one is due."""
    rows = server.mongo.collection(collection)
    found = await rows.update_many({field: {"$gte": 1}}, {"$set": {field: tries - 1}})
    assert found.matched_count == 1
    past = server.mongo.now() - timedelta(seconds=1)
    await rows.update_many({"taken_until": {"$exists": True}}, {"$set": {"taken_until": past}})
    await make_due(server.mongo)


async def test_reactions_that_are_given_up_are_asked_about_until_they_have_run(
    pair: Pair,
) -> None:
    server, client = pair
    await put(client, organization("practice"), patient("ann", ref("Organization/practice")))
    await server.engine.drain()
    async with spoilt(server.mongo, "Patient/ann"):
        await put(client, encounter(patient="ann", id="stay"))
        await server.engine.drain()
        await fail_for_the_last_time(server, "events", "reacted", 20)
        await server.engine.reactions.sweep()
        await server.engine.drain()
    (letter,) = await dead_letters(client)
    assert (letter["queue"], letter["focus"]) == ("reactions", "Encounter/stay")
    (task,) = await tasks(client)
    assert (task["status"], task["focus"]) == ("requested", ref("Encounter/stay"))
    assert task["identifier"] == [{"system": DEAD_LETTER, "value": f"reactions|{letter['id']}"}]
    assert letter["error"] in task["description"]

    await retry(client, letter)
    assert await dead_letters(client) == []
    await server.engine.dead_letters.look(server.engine.context)
    assert (await tasks(client))[0]["status"] == "requested", "it has not run yet"
    await server.engine.reactions.sweep()
    await server.engine.drain()
    (task,) = await tasks(client)
    assert task["status"] == "completed"
    assert task["statusReason"]["coding"][0]["code"] == "done-after-all"


async def test_a_consent_without_a_status_is_given_up_and_asked_about(pair: Pair) -> None:
    """What was damaged in the database is no other record's fault: nobody has to decide on it, but to mend it."""
    server, client = pair
    await put(client, organization("practice"), patient("ann", ref("Organization/practice")))
    await put(client, {**consent(), "id": "refusal", "patient": ref("Patient/ann")})
    rows = server.mongo.collection("Consent")
    text = (await rows.find_one({"_id": "refusal"}))["text"]
    damaged = text.replace('"status":"active",', "")
    assert damaged != text
    await server.engine.drain()
    await rows.update_one({"_id": "refusal"}, {"$set": {"text": damaged}})
    again = [{"$set": {"react_until": "$$NOW", "reacted": 1}}]
    await server.mongo.collection("events").update_one({"id": "refusal"}, again)
    await fail_for_the_last_time(server, "events", "reacted", 20)
    await server.engine.reactions.sweep()
    await server.engine.drain()
    (letter,) = await dead_letters(client)
    assert (letter["focus"], letter["error"]) == ("Consent/refusal", "KeyError")
    await server.engine.dead_letters.look(server.engine.context)
    (task,) = await tasks(client)
    assert (task["status"], task["focus"]) == ("requested", ref("Consent/refusal"))


@pytest.mark.slow
async def test_a_timer_that_is_given_up_is_asked_about_until_it_has_rung(pair: Pair) -> None:
    server, client = pair
    async with desk(pair) as at:
        await at.begin()
        at.receiver.requests.clear()
        async with spoilt(server.mongo, at.ref("Goal/walk")):
            await at.put(plan("on-hold"))
            await at.after(seconds=900)
            await fail_for_the_last_time(server, "timers", "tries", 100)
            await at.settle()
        (letter,) = await dead_letters(client)
        assert (letter["queue"], letter["what"]) == ("timers", "care-plan-quiet")
        (task,) = await tasks(client)
        assert task["status"] == "requested"
        assert at.receiver.events == []

        await retry(client, letter)
        (notice,) = await at.settle()
        assert words(notice) == "The care plan is on-hold (was active)."
        assert await dead_letters(client) == []
        (task,) = await tasks(client)
        assert task["status"] == "completed"


@pytest.mark.slow
async def test_what_fails_again_is_asked_about_again(pair: Pair) -> None:
    """Also where somebody had closed the Task without having it run again."""
    server, client = pair
    async with desk(pair) as at:
        await at.begin()
        async with spoilt(server.mongo, at.ref("Goal/walk")):
            for edit in ("on-hold", "active"):
                await at.put(plan(edit, description=edit))
                await at.after(seconds=900)
                await fail_for_the_last_time(server, "timers", "tries", 100)
                await at.settle()
                (task,) = await tasks(client)
                assert task["status"] == "requested", edit
                closed = {**task, "status": "completed"}
                answer = await client.put(f"/Task/{task['id']}", json=closed)
                assert answer.status_code == 200, answer.text
            await at.settle()
            (task,) = await tasks(client)
            assert task["status"] == "completed", "people have the last word until it fails"


@pytest.mark.slow
async def test_a_notice_that_cannot_be_published_is_set_aside_and_the_others_are(
    pair: Pair, receiver: Receiver
) -> None:
    server, client = pair
    await put(client, organization("practice"), patient("ann", ref("Organization/practice")))
    asked = topic_based("general-practitioner=Organization/practice", endpoint=f"{receiver.url}/in")
    assert (await client.post("/Subscription", json=asked)).status_code == 201
    await server.worker.drain()
    stays = [f"stay-{number}" for number in range(4)]
    for name in stays:
        await put(client, encounter(patient="ann", id=name))
    await server.worker.drain()
    assert len(receiver.events) == len(stays)

    async def proved() -> list[str]:
        found = await client.get("/Communication", params={"_elements": "encounter"})
        return sorted(each["resource"]["encounter"]["reference"] for each in found.json()["entry"])

    others = [f"Encounter/{name}" for name in stays if name != "stay-1"]
    async with spoilt(server.mongo, "Encounter/stay-1"):
        server.clock.advance(timedelta(minutes=1))
        await server.engine.drain()
        assert await proved() == others
        assert await dead_letters(client) == [], "it is tried again first"
        for _ in range(16):
            server.clock.advance(timedelta(hours=7))
            await server.engine.drain()
    (letter,) = await dead_letters(client)
    assert (letter["queue"], letter["focus"]) == ("proof", "Encounter/stay-1")
    (task,) = await tasks(client)
    assert task["focus"] == ref("Encounter/stay-1")
    await retry(client, letter)
    server.clock.advance(timedelta(minutes=1))
    await server.engine.drain()
    assert await proved() == sorted(f"Encounter/{name}" for name in stays)
    (task,) = await tasks(client)
    assert task["status"] == "completed"


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"queue": "timers", "id": "no|such"}, 404, "not-found"),
        ({"queue": "reactions", "id": "no-id"}, 404, "not-found"),
        ({"queue": "proof", "id": "none"}, 404, "not-found"),
        ({"queue": "nowhere"}, 400, "value"),
        ({}, 400, "value"),
        ({"queue": "timers", "all": "1"}, 400, "not-supported"),
    ],
)
async def test_what_is_no_dead_letter_cannot_be_tried_again(
    client: httpx.AsyncClient, asked: dict[str, str], status: int, code: str
) -> None:
    assert_outcome(await client.post(f"{ADMIN}/retry", params=asked, headers=JSON), status, code)


async def test_a_whole_queue_can_be_tried_again(client: httpx.AsyncClient) -> None:
    answer = await client.post(f"{ADMIN}/retry", params={"queue": "timers"}, headers=JSON)
    assert (answer.status_code, answer.json()) == (202, {"queued": 0})
