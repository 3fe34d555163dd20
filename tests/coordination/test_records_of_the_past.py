"""With references checked, what the server writes down of the past still stands in nobody's way, nor in its own.

docs/decisions/0021-records-of-the-past.md
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from app.fhir.codes import REVIEW_REASON
from tests.builders.care_plans import (
    BASE,
    Desk,
    Pair,
    desk,
    plan,
    words,
)
from tests.builders.practices import organization, patient, put, ref
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import encounter, topic_based
from tests.conftest import make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo


@pytest.fixture(scope="module")
async def pair(mongod: str) -> AsyncIterator[Pair]:
    """A server that checks references, whose calendar can be moved."""
    settings = make_settings(
        mongod, base_url=BASE, test_clock=True, referential_integrity="checked"
    )
    async with running(settings) as pair:
        yield pair


@pytest.fixture
async def told(pair: Pair) -> AsyncIterator[Desk]:
    """The practice has its first copy of a care plan."""
    async with desk(pair) as at:
        await at.begin()
        assert len(at.receiver.events) == 1
        at.receiver.requests.clear()
        yield at


async def delete(at: Desk, reference: str) -> None:
    answer = await at.client.delete(f"/{at.ref(reference)}")
    assert answer.status_code == 204, answer.text


async def test_a_plan_that_was_told_can_be_deleted_and_that_is_told_too(told: Desk) -> None:
    await delete(told, "CarePlan/plan")
    (notice,) = await told.after(seconds=900)
    assert words(notice) == "The care plan was deleted."


@pytest.mark.slow
async def test_a_goal_that_was_dropped_and_deleted_does_not_stop_its_plan(told: Desk) -> None:
    await told.put(plan(goals=()))
    await delete(told, "Goal/walk")
    (dropped,) = await told.after(seconds=900)
    assert words(dropped) == "Goal dropped: Walk twenty minutes a day."
    await told.put(plan("on-hold", goals=()))
    _, held = await told.after(seconds=900)
    assert words(held) == "The care plan is on-hold (was active)."


@pytest.mark.slow
async def test_what_people_wrote_still_keeps_things(told: Desk) -> None:
    """Somebody answers the notice: that is not the server's record, whatever it looks like."""
    answer: dict[str, Any] = {
        "resourceType": "Communication",
        "id": "answer",
        "status": "completed",
        "basedOn": [{"reference": "CarePlan/plan"}],
    }
    await told.put(answer)
    refused = await told.client.delete(f"/{told.ref('CarePlan/plan')}")
    outcome = assert_outcome(refused, 409, "conflict")
    assert told.ref("Communication/answer") in outcome["issue"][0]["diagnostics"]
    await delete(told, "Communication/answer")
    await delete(told, "CarePlan/plan")


async def test_a_document_of_somebody_else_still_keeps_its_plan(told: Desk) -> None:
    document: dict[str, Any] = {
        "resourceType": "DocumentReference",
        "id": "letter",
        "status": "current",
        "content": [{"attachment": {"title": "A letter"}}],
        "context": {"related": [{"reference": "CarePlan/plan"}]},
    }
    await told.put(document)
    assert_outcome(await told.client.delete(f"/{told.ref('CarePlan/plan')}"), 409, "conflict")


@pytest.mark.slow
async def test_a_stay_that_is_deleted_before_its_proof_stops_no_proof(
    pair: Pair, receiver: Receiver
) -> None:
    server, client = pair
    own = uuid.uuid4().hex[:8]
    practice, gone, kept = f"practice-{own}", f"gone-{own}", f"kept-{own}"
    await put(
        client, organization(practice), patient(f"member-{own}", ref(f"Organization/{practice}"))
    )
    asked = topic_based(
        f"general-practitioner=Organization/{practice}", endpoint=f"{receiver.url}/in"
    )
    assert (await client.post("/Subscription", json=asked)).status_code == 201
    await server.worker.drain()
    for name in (gone, kept):
        await put(client, encounter(patient=f"member-{own}", id=name))
    await server.worker.drain()
    assert len(receiver.events) == 2
    assert (await client.delete(f"/Encounter/{gone}")).status_code == 204
    server.clock.advance(timedelta(minutes=1))
    await server.engine.drain()
    for name in (gone, kept):
        terms = {"encounter": f"Encounter/{name}", "_summary": "count"}
        assert (await client.get("/Communication", params=terms)).json()["total"] == 1, name


async def test_a_review_task_can_be_closed_when_what_it_is_about_has_gone(pair: Pair) -> None:
    server, client = pair
    own = uuid.uuid4().hex[:8]
    await put(client, patient(f"reviewed-{own}"))
    stay = encounter(patient=f"reviewed-{own}", id=f"cancelled-{own}", status="cancelled")
    await put(client, stay)
    await server.engine.drain()
    asked = {
        "focus": f"Encounter/{stay['id']}",
        "code": f"{REVIEW_REASON}|cancel-without-admission",
    }
    found = await client.get("/Task", params=asked)
    (task,) = [each["resource"] for each in found.json()["entry"]]
    assert (await client.delete(f"/Encounter/{stay['id']}")).status_code == 204
    closed = await client.put(f"/Task/{task['id']}", json={**task, "status": "completed"})
    assert closed.status_code == 200, closed.text
    astray = {**task, "status": "completed", "basedOn": [{"reference": "CarePlan/nowhere"}]}
    outcome = assert_outcome(
        await client.put(f"/Task/{task['id']}", json=astray), 422, "business-rule"
    )
    said = [issue["diagnostics"] for issue in outcome["issue"]]
    assert said == ["The reference CarePlan/nowhere leads nowhere"]


async def test_a_transaction_may_not_keep_a_reference_to_what_it_deletes(pair: Pair) -> None:
    _, client = pair
    await put(client, {"resourceType": "Patient", "id": "short"})
    condition = {"resourceType": "Condition", "id": "of-short", "subject": ref("Patient/short")}
    await put(client, condition)
    entries = [
        {"request": {"method": "DELETE", "url": "Patient/short"}},
        {"request": {"method": "PUT", "url": "Condition/of-short"}, "resource": condition},
    ]
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    assert_outcome(await client.post("", json=bundle), 422, "business-rule")
    assert (await client.get("/Patient/short")).status_code == 200
