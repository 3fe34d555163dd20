"""The operator's API: the ledger, resending, topics, and how long things are kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from bson import ObjectId

from app.fhir.ids import first_id, new_id, time_of
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import encounter, topic_based
from tests.conftest import JSON, Server, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo
ADMIN = "http://carerelay.test/admin"
PLANS = "http://hub.example/SubscriptionTopic/plans"
TOPIC = {
    "resourceType": "SubscriptionTopic",
    "url": PLANS,
    "status": "active",
    "resourceTrigger": [{"resource": "CarePlan"}],
    "canFilterBy": [{"filterParameter": "patient"}],
}


@pytest.fixture(scope="module")
async def pair(mongod: str) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    async with running(make_settings(mongod)) as pair:
        yield pair


@pytest.fixture
def server(pair: tuple[Server, httpx.AsyncClient]) -> Server:
    return pair[0]


@pytest.fixture
def client(pair: tuple[Server, httpx.AsyncClient]) -> httpx.AsyncClient:
    return pair[1]


async def subscribe(server: Server, client: httpx.AsyncClient, *filters: str, url: str) -> str:
    """An active Subscription."""
    answer = await client.post("Subscription", json=topic_based(*filters, endpoint=url))
    assert answer.status_code == 201, answer.text
    await server.worker.drain()
    return str(answer.json()["id"])


async def admit(server: Server, client: httpx.AsyncClient, patient: str) -> str:
    answer = await client.post("Encounter", json=encounter(patient=patient))
    await server.worker.drain()
    return str(answer.json()["id"])


async def deliveries(client: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    answer = await client.get(f"{ADMIN}/deliveries", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["deliveries"]
    return found


async def test_deliveries_are_found_by_what_they_are_about(
    server: Server, client: httpx.AsyncClient, receiver: Receiver
) -> None:
    subscription = await subscribe(server, client, "patient=a1", url=receiver.url)
    other = await subscribe(server, client, "patient=a2", url=receiver.url)
    first, second = [await admit(server, client, "a1") for _ in range(2)]
    await admit(server, client, "a2")
    rows = await deliveries(client, subscription=subscription)
    assert [(row["number"], row["state"]) for row in rows] == [(2, "delivered"), (1, "delivered")]
    assert [row["focus"] for row in rows] == [
        f"Encounter/{second}/_history/1",
        f"Encounter/{first}/_history/1",
    ]
    (attempt,) = rows[0]["attempts"]
    assert attempt["status"] == 200
    assert attempt["answer"] == "taken"
    assert len(attempt["sha256"]) == 64
    assert rows[0]["trigger"]["code"] == "A01"

    assert await deliveries(client, focus=f"Encounter/{first}") == rows[1:]
    assert await deliveries(client, subscription=subscription, state="dead") == []
    assert (
        await deliveries(client, subscription=subscription, until=rows[1]["created_at"]) == rows[1:]
    )
    assert (
        await deliveries(client, since=rows[0]["created_at"], subscription=subscription) == rows[:1]
    )
    assert (await deliveries(client, state="delivered"))[0]["subscription"] == other
    one = await client.get(f"{ADMIN}/deliveries/{rows[0]['id']}")
    assert one.json() == rows[0]


@pytest.mark.parametrize("by", ["subscription", "state"])
async def test_pages_follow_one_another(
    server: Server, client: httpx.AsyncClient, receiver: Receiver, by: str
) -> None:
    subscription = await subscribe(server, client, f"patient=b-{by}", url=receiver.url)
    for _ in range(3):
        await admit(server, client, f"b-{by}")
    query = {"subscription": subscription} if by == "subscription" else {"state": "delivered"}
    expected = await deliveries(client, **query)
    found: list[dict[str, Any]] = []
    url = str(httpx.URL(f"{ADMIN}/deliveries", params={**query, "_count": "2"}))
    while url:
        page = (await client.get(url)).json()
        assert len(page["deliveries"]) <= 2
        found += page["deliveries"]
        url = page.get("next", "")
    assert found == expected


async def test_one_a_range_and_all_dead_ones_are_sent_again(
    server: Server, client: httpx.AsyncClient, receiver: Receiver
) -> None:
    subscription = await subscribe(server, client, "patient=c1", url=receiver.url)
    for _ in range(3):
        await admit(server, client, "c1")
    rows = await deliveries(client, subscription=subscription)
    again = await client.post(f"{ADMIN}/deliveries/{rows[0]['id']}/resend", headers=JSON)
    assert (again.status_code, again.json()) == (202, {"resent": 1, "skipped": 0})
    await receiver.wait(4)
    await server.worker.drain()
    query: dict[str, str | int] = {"subscription": subscription, "first": 1, "last": 2}
    again = await client.post(f"{ADMIN}/deliveries/resend", params=query, headers=JSON)
    assert again.json() == {"resent": 2, "skipped": 0}
    await receiver.wait(6)
    await server.worker.drain()
    assert [notice.number for notice in receiver.events] == [1, 2, 3, 3, 1, 2]

    await server.mongo.collection("deliveries").update_many(
        {"subscription": subscription, "number": {"$gte": 2}}, {"$set": {"state": "dead"}}
    )
    again = await client.post(f"{ADMIN}/deliveries/resend", params={"state": "dead"}, headers=JSON)
    assert again.json() == {"resent": 2, "skipped": 0}
    await receiver.wait(8)
    await server.worker.drain()
    rows = await deliveries(client, subscription=subscription)
    assert [(row["state"], len(row["attempts"])) for row in rows] == [
        ("delivered", 3),
        ("delivered", 3),
        ("delivered", 2),
    ]


async def test_nothing_is_sent_again_to_one_that_is_off(
    server: Server, client: httpx.AsyncClient, receiver: Receiver
) -> None:
    subscription = await subscribe(server, client, "patient=d1", url=receiver.url)
    await admit(server, client, "d1")
    off = (await client.get(f"Subscription/{subscription}")).json() | {"status": "off"}
    await client.put(f"Subscription/{subscription}", json=off)
    wanted = {"subscription": subscription}
    again = await client.post(f"{ADMIN}/deliveries/resend", params=wanted, headers=JSON)
    assert again.json() == {"resent": 0, "skipped": 1}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        pytest.param("GET", "deliveries?state=lost", 400, "value", id="state"),
        pytest.param("GET", "deliveries?colour=red", 400, "not-supported", id="parameter"),
        pytest.param("GET", "deliveries?since=yesterday", 400, "value", id="time"),
        pytest.param("GET", "deliveries?focus=e1", 400, "value", id="focus"),
        pytest.param("GET", "deliveries?_count=0", 400, "value", id="count"),
        pytest.param("GET", "deliveries?subscription=s&_cursor=x", 400, "invalid", id="cursor"),
        pytest.param("POST", "deliveries/resend", 400, "required", id="resend-everything"),
        pytest.param("POST", "deliveries/resend?first=1", 400, "invalid", id="number-of-none"),
        pytest.param("GET", f"deliveries/{new_id()}", 404, "not-found", id="none"),
        pytest.param("GET", "deliveries/x", 404, "not-found", id="no-id"),
        pytest.param("POST", f"deliveries/{new_id()}/resend", 404, "not-found", id="resend-none"),
        pytest.param("GET", "topics/none", 404, "not-found", id="topic"),
        pytest.param("DELETE", "topics/none", 404, "not-found", id="delete-topic"),
        pytest.param("GET", "secrets", 404, "not-found", id="unknown"),
    ],
)
async def test_failures_are_outcomes(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    assert_outcome(await client.request(method, f"{ADMIN}/{path}", headers=JSON), status, code)


async def test_what_is_older_than_it_is_kept_is_gone(
    server: Server, client: httpx.AsyncClient
) -> None:
    now = server.mongo.now()
    ages = {"old": timedelta(days=91), "open": timedelta(days=91), "new": timedelta(days=89)}
    ids = {name: first_id(now - age) for name, age in ages.items()}
    ids["open"] = ids["open"][:-1] + "1"
    rows = server.mongo.collection("deliveries")
    await rows.insert_many(
        [
            {"_id": id_, "subscription": name, "event": name, "number": 1}
            | ({"open": True} if name == "open" else {})
            for name, id_ in ids.items()
        ]
    )
    events = server.mongo.collection("events")
    old, young = (ObjectId.from_datetime(now - timedelta(days=days)) for days in (8, 6))
    await events.insert_many([{"_id": old, "state": "done"}, {"_id": young, "state": "done"}])
    pending = ObjectId.from_datetime(now - timedelta(days=9))
    await events.insert_one(
        {"_id": pending, "state": "pending", "attempts": 99, "lease_until": now}
    )
    try:
        assert await server.worker.retention.clear(now) == (1, 1)
        assert await rows.find_one({"_id": ids["old"]}) is None
        assert await events.count_documents({"_id": {"$in": [young, pending]}}) == 2
        answer = await client.get(f"{ADMIN}/deliveries/{ids['old']}")
        assert_outcome(answer, 410, "deleted")
        assert "90 days" in answer.text
    finally:
        await rows.delete_many({"_id": {"$in": list(ids.values())}})
        await events.delete_many({"_id": {"$in": [young, pending]}})


def test_ids_tell_their_time() -> None:
    made = time_of(new_id())
    assert made is not None
    assert first_id(made) < new_id()
    assert time_of(first_id(made)) == made
    assert time_of("e1") is None
    assert time_of("00000000-0000-4000-8000-000000000000") is None


async def test_a_topic_that_is_put_can_be_subscribed_to_at_once(
    server: Server, client: httpx.AsyncClient, receiver: Receiver
) -> None:
    answer = await client.put(f"{ADMIN}/topics/plans", json=TOPIC)
    assert (answer.status_code, answer.json()) == (201, {**TOPIC, "id": "plans"})
    assert (await client.get(f"{ADMIN}/topics")).json() == {"topics": [answer.json()]}
    draft = topic_based("patient=t1", endpoint=receiver.url) | {"criteria": PLANS}
    made = await client.post("Subscription", json=draft)
    assert made.status_code == 201, made.text
    await server.worker.drain()
    subject = {"subject": {"reference": "Patient/t1"}}
    plan = {"resourceType": "CarePlan", "status": "active", "intent": "plan", **subject}
    await client.post("CarePlan", json=plan)
    await receiver.wait(1)

    assert_outcome(await client.delete(f"{ADMIN}/topics/plans"), 409, "conflict")
    again = await client.put(f"{ADMIN}/topics/plans", json={**TOPIC, "status": "retired"})
    assert again.status_code == 200
    assert_outcome(await client.post("Subscription", json=draft), 422, "not-supported")
    await client.delete(f"Subscription/{made.json()['id']}")
    assert (await client.delete(f"{ADMIN}/topics/plans")).status_code == 204
    assert_outcome(await client.get(f"{ADMIN}/topics/plans"), 404, "not-found")


@pytest.mark.parametrize(
    ("name", "changes", "status", "expression"),
    [
        pytest.param("Plans!", {}, 400, None, id="name"),
        pytest.param("plans", {"id": "other"}, 400, "SubscriptionTopic.id", id="id"),
        pytest.param(
            "plans",
            {"resourceTrigger": [{"resource": "CarePlan", "queryCriteria": {"current": "x=1"}}]},
            422,
            "SubscriptionTopic.resourceTrigger[0].queryCriteria.current",
            id="what-cannot-be-evaluated",
        ),
        pytest.param(
            "admissions",
            {"url": "http://carerelay.example/SubscriptionTopic/encounter-admission"},
            409,
            None,
            id="url-of-a-file",
        ),
    ],
)
async def test_topics_are_refused_with_reasons(
    client: httpx.AsyncClient, name: str, changes: dict[str, Any], status: int, expression: str
) -> None:
    answer = await client.put(f"{ADMIN}/topics/{name}", json={**TOPIC, **changes})
    assert answer.status_code == status
    (issue,) = answer.json()["issue"]
    assert issue.get("expression") == ([expression] if expression else None)


async def test_a_topic_keeps_its_url(client: httpx.AsyncClient) -> None:
    assert (await client.put(f"{ADMIN}/topics/one", json=TOPIC)).status_code == 201
    moved = await client.put(f"{ADMIN}/topics/one", json={**TOPIC, "url": PLANS + "-2"})
    assert_outcome(moved, 409, "conflict")
    assert_outcome(await client.put(f"{ADMIN}/topics/two", json=TOPIC), 409, "conflict")
    await client.delete(f"{ADMIN}/topics/one")


async def shown_as_basic(client: httpx.AsyncClient, url: str) -> list[dict[str, Any]]:
    """The Basics that show the topic with this URL, as a client would look for them."""
    answer = await client.get(
        "Basic", params={"code": "http://hl7.org/fhir/fhir-types|SubscriptionTopic", "_count": 100}
    )
    resources = [entry["resource"] for entry in answer.json()["entry"]]
    return [each for each in resources if element(each, "url") == url]


def element(basic: dict[str, Any], name: str) -> str | None:
    """A string of the topic that a Basic shows."""
    for extension in basic["extension"]:
        if extension["url"].endswith(f"extension-SubscriptionTopic.{name}"):
            return str(extension.get("valueUri", extension.get("valueString")))
    return None


async def test_the_basic_that_shows_a_topic_follows_it_at_once(client: httpx.AsyncClient) -> None:
    topics, url = f"{ADMIN}/topics/shown", "http://hub.example/SubscriptionTopic/shown"
    topic = {**TOPIC, "url": url}
    await client.put(topics, json={**topic, "title": "Plans"})
    (basic,) = await shown_as_basic(client, url)
    assert (element(basic, "title"), basic["meta"]["versionId"]) == ("Plans", "1")

    await client.put(topics, json={**topic, "title": "Care plans"})
    (basic,) = await shown_as_basic(client, url)
    assert (element(basic, "title"), basic["meta"]["versionId"]) == ("Care plans", "2")
    await client.put(topics, json={**topic, "title": "Care plans"})
    assert await shown_as_basic(client, url) == [basic]

    await client.put(topics, json={**topic, "status": "retired"})
    assert await shown_as_basic(client, url) == []
    await client.put(topics, json=topic)
    assert len(await shown_as_basic(client, url)) == 1
    assert (await client.delete(topics)).status_code == 204
    assert await shown_as_basic(client, url) == []
    assert_outcome(await client.get(f"Basic/{basic['id']}"), 410, "deleted")


async def test_topics_whose_urls_end_alike_are_both_shown(client: httpx.AsyncClient) -> None:
    ours = "http://carerelay.example/SubscriptionTopic/encounter-admission"
    theirs = "http://hub.example/SubscriptionTopic/encounter-admission"
    before = await shown_as_basic(client, ours)
    await client.put(f"{ADMIN}/topics/admission", json={**TOPIC, "url": theirs})
    try:
        (other,) = await shown_as_basic(client, theirs)
        assert other["id"].startswith("topic-encounter-admission-")
        assert await shown_as_basic(client, ours) == before != []
    finally:
        await client.delete(f"{ADMIN}/topics/admission")
    assert await shown_as_basic(client, theirs) == []


async def test_with_authorization_on_strangers_are_no_operators(mongod: str) -> None:
    async with running(make_settings(mongod, auth="smart")) as (_, client):
        assert_outcome(await client.get(f"{ADMIN}/deliveries"), 401, "login")
