"""$explain and $dry-run: the same judgement as the delivery's, with its reasons."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.builders.receiver import receiving
from tests.builders.subscriptions import ADMISSION, classic, encounter, topic_based
from tests.conftest import Server, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo
Pair = tuple[Server, httpx.AsyncClient]
CANCELLED = ADMISSION.replace("admission", "cancelled")
DISCHARGE = ADMISSION.replace("admission", "discharge")


@pytest.fixture(scope="module")
async def pair(mongod: str) -> AsyncIterator[Pair]:
    async with running(make_settings(mongod)) as pair:
        yield pair


@pytest.fixture(scope="module")
async def endpoint() -> AsyncIterator[str]:
    async with receiving() as receiver:
        yield receiver.url


async def create(pair: Pair, resource: dict[str, Any]) -> str:
    answer = await pair[1].post(resource["resourceType"], json=resource)
    assert answer.status_code == 201, answer.text
    await pair[0].worker.drain()
    return str(answer.json()["id"])


async def update(pair: Pair, id_: str, *statuses: str, **more: Any) -> None:
    """Versions of a stay of the patient with the same id."""
    for status in statuses:
        stay = encounter(status, patient=id_, id=id_, **more)
        answer = await pair[1].put(f"Encounter/{id_}", json=stay)
        assert answer.status_code in (200, 201), answer.text
        await pair[0].worker.drain()


async def explain(pair: Pair, subscription: str, reference: str, **more: str) -> dict[str, Any]:
    """The answer with lists of (text, holds, note) for triggers and filters."""
    parameters = {"reference": reference, **more}
    answer = await pair[1].get(f"Subscription/{subscription}/$explain", params=parameters)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = {"trigger": [], "filter": []}
    for parameter in answer.json()["parameter"]:
        name = parameter["name"]
        if "part" not in parameter:
            found[name] = next(v for k, v in parameter.items() if k != "name")
            continue
        parts = {p["name"]: next(v for k, v in p.items() if k != "name") for p in parameter["part"]}
        if name == "delivery":
            found[name] = parts
        else:
            found[name].append((parts["text"], parts["holds"], parts.get("note")))
    return found


async def test_a_version_that_was_told(pair: Pair, endpoint: str) -> None:
    subscription = await create(pair, topic_based("patient=x1", "class=IMP", endpoint=endpoint))
    stay = await create(pair, encounter(patient="x1"))
    found = await explain(pair, subscription, f"Encounter/{stay}")
    assert found["matches"] is True
    assert found["version"] == f"Encounter/{stay}/_history/1"
    assert found["interaction"] == "create"
    assert found["status"] == "active"
    assert found["reason"] == "It is event 1 of this Subscription, delivered"
    assert found["delivery"]["attempts"] == 1
    assert found["filter"] == [("patient=x1", True, None), ("class=IMP", True, None)]
    assert [each[1] for each in found["trigger"]].count(True) == 1


async def test_versions_that_were_not_told(pair: Pair, endpoint: str) -> None:
    early = await create(pair, encounter(patient="x2"))
    subscription = await create(pair, topic_based("patient=x2", "class=IMP", endpoint=endpoint))
    found = await explain(pair, subscription, f"Encounter/{early}")
    assert found["matches"] is True
    assert "before the Subscription" in found["reason"]

    other = await create(pair, encounter(patient="x3"))
    found = await explain(pair, subscription, f"Encounter/{other}")
    assert found["reason"] == "The filters do not hold: patient=x2"
    assert found["filter"] == [("patient=x2", False, None), ("class=IMP", True, None)]

    planned = {**encounter("planned", patient="x2"), "id": "x2"}
    await pair[1].put("Encounter/x2", json=planned)
    await pair[1].put("Encounter/x2", json=planned | {"status": "cancelled"})
    found = await explain(pair, subscription, "Encounter/x2", version="2")
    assert (found["matches"], found["reason"]) == (False, "The topic did not fire")
    assert found["interaction"] == "update"
    assert not any(holds for _, holds, _ in found["trigger"])
    notes = [note for _, _, note in found["trigger"]]
    assert set(notes) == {"the versions do not meet its queryCriteria"}
    await pair[1].delete("Encounter/x2")
    found = await explain(pair, subscription, "Encounter/x2")
    assert found["interaction"] == "delete"
    assert {note for _, _, note in found["trigger"]} == {"not about delete"}


async def test_a_cancellation_is_not_explained_by_a_later_admission(
    pair: Pair, endpoint: str
) -> None:
    """Nobody was told of the stay when it was cancelled, but of its going on."""
    cancelled = topic_based("patient=x5", endpoint=endpoint) | {"criteria": CANCELLED}
    subscription = await create(pair, cancelled)
    await update(pair, "x5", "in-progress", "cancelled")
    await create(pair, topic_based("patient=x5", endpoint=endpoint))
    await update(pair, "x5", "in-progress")
    found = await explain(pair, subscription, "Encounter/x5", version="2")
    assert (found["matches"], found["reason"]) == (False, "The topic did not fire")


async def test_a_discharge_is_explained_as_it_was_judged_before_its_own_notice(
    pair: Pair, endpoint: str
) -> None:
    """The end was known before anybody listened: the notice of the status is the first one."""
    period = {"start": "2026-11-14", "end": "2026-11-19"}
    await update(pair, "x6", "in-progress", period=period)
    discharged = topic_based("patient=x6", endpoint=endpoint) | {"criteria": DISCHARGE}
    subscription = await create(pair, discharged)
    await update(pair, "x6", "finished", period=period)
    found = await explain(pair, subscription, "Encounter/x6", version="2")
    assert found["reason"] == "It is event 1 of this Subscription, delivered"
    assert found["matches"] is True


async def test_a_deletion_matches_nothing_where_what_was_deleted_is_gone(
    pair: Pair, endpoint: str
) -> None:
    """The server keeps every version; somebody took this one out of the database."""
    subscription = await create(pair, topic_based("patient=x7", endpoint=endpoint))
    await update(pair, "x7", "in-progress")
    await pair[1].delete("Encounter/x7")
    await pair[0].worker.drain()
    versions = pair[0].mongo.collection("versions")
    gone = await versions.delete_one({"_id": {"t": "Encounter", "i": "x7", "v": 1}})
    assert gone.deleted_count == 1
    found = await explain(pair, subscription, "Encounter/x7", version="2")
    assert (found["matches"], found["reason"]) == (False, "The topic did not fire")
    assert (found["trigger"], found["filter"]) == ([], [])


async def test_a_classic_subscription_is_explained_parameter_by_parameter(
    pair: Pair, endpoint: str
) -> None:
    criteria = "Encounter?class=EMER&patient=x4"
    subscription = await create(pair, classic(criteria, endpoint=endpoint))
    stay = await create(pair, encounter(patient="x4"))
    found = await explain(pair, subscription, f"Encounter/{stay}/_history/1")
    assert found["filter"] == [("class=EMER", False, None), ("patient=x4", True, None)]
    assert found["matches"] is False
    plan = {"resourceType": "CarePlan", "status": "active", "intent": "plan"}
    other = await create(pair, {**plan, "subject": {"reference": "Patient/x4"}})
    found = await explain(pair, subscription, f"CarePlan/{other}")
    assert found["filter"][0][2] == "about another resource type"


@pytest.mark.parametrize(
    ("reference", "version", "status", "code"),
    [
        pytest.param("e1", None, 400, "invalid", id="no-reference"),
        pytest.param("Encounter/none", None, 404, "not-found", id="none"),
        pytest.param("Encounter/none", "one", 400, "value", id="no-version"),
    ],
)
async def test_what_cannot_be_explained(
    pair: Pair, endpoint: str, reference: str, version: str | None, status: int, code: str
) -> None:
    subscription = await create(pair, topic_based(endpoint=endpoint))
    parameters = {"reference": reference} | ({} if version is None else {"version": version})
    answer = await pair[1].get(f"Subscription/{subscription}/$explain", params=parameters)
    assert_outcome(answer, status, code)


async def dry_run(pair: Pair, draft: dict[str, Any], **more: Any) -> httpx.Response:
    parameter = [{"name": "subscription", "resource": draft}]
    parameter += [{"name": name, "valueInteger": value} for name, value in more.items()]
    body = {"resourceType": "Parameters", "parameter": parameter}
    return await pair[1].post("Subscription/$dry-run", json=body)


async def test_a_draft_is_held_against_the_last_events(pair: Pair, endpoint: str) -> None:
    first = await create(pair, encounter(patient="y1"))
    second = await create(pair, encounter("in-progress", "EMER", patient="y1"))
    await create(pair, encounter(patient="y2"))
    before = await pair[1].get("Subscription?_summary=count")
    answer = await dry_run(pair, topic_based("patient=y1", endpoint=endpoint))
    assert answer.status_code == 200, answer.text
    examined, matched, *events = answer.json()["parameter"]
    assert examined["valueInteger"] >= 3
    assert matched["valueInteger"] == 2
    focuses = [event["part"][0]["valueReference"]["reference"] for event in events]
    assert focuses == [f"Encounter/{each}/_history/1" for each in (second, first)]
    codes = [event["part"][2]["valueCoding"]["code"] for event in events]
    assert codes == ["A04", "A01"]
    assert (await pair[1].get("Subscription?_summary=count")).json()["total"] == before.json()[
        "total"
    ]

    answer = await dry_run(pair, classic("Encounter?patient=y1", endpoint=endpoint), count=2)
    examined, matched, *events = answer.json()["parameter"]
    assert (examined["valueInteger"], matched["valueInteger"], len(events)) == (2, 1, 1)


async def test_a_draft_is_refused_like_a_subscription(pair: Pair, endpoint: str) -> None:
    draft = topic_based("colour=red", endpoint=endpoint)
    answer = await dry_run(pair, draft)
    assert_outcome(answer, 422, "not-supported", "Subscription.criteria.extension[0]")
    draft = topic_based(endpoint=endpoint)
    assert_outcome(await dry_run(pair, draft, count=0), 400, "value", "count")
    assert_outcome(await dry_run(pair, encounter()), 400, "invalid", "subscription")
