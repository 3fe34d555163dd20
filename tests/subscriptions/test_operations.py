"""$status, $events and $resend over HTTP, with real notices behind them; topics as resources."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fhir.resources.R4B.bundle import Bundle

from app.subscriptions.channels.protocol import REFUSED
from app.subscriptions.notices.notification import NOTIFICATION_PROFILE, STATUS_PROFILE
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import ADMISSION, classic, encounter, subscribed, topic_based
from tests.conftest import BASE, JSON, Server, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo
Pair = tuple[Server, httpx.AsyncClient]


@pytest.fixture(scope="module")
async def pair(mongod: str) -> AsyncIterator[Pair]:
    async with running(make_settings(mongod, max_count=5)) as pair:
        yield pair


@pytest.fixture(autouse=True)
async def _no_others(pair: Pair) -> AsyncIterator[None]:
    yield
    found = (await pair[1].get("/Subscription")).json()
    for entry in found.get("entry", []):
        await pair[1].delete(f"/Subscription/{entry['resource']['id']}")


async def admitted(pair: Pair, count: int = 1, patient: str = "p1") -> list[dict[str, Any]]:
    stays = [
        await pair[1].post("/Encounter", json=encounter(patient=patient)) for _ in range(count)
    ]
    await pair[0].worker.drain()
    return [stay.json() for stay in stays]


async def got(client: httpx.AsyncClient, path: str, **query: Any) -> dict[str, Any]:
    answer = await client.get(path, params=query or None)
    assert answer.status_code == 200, answer.text
    bundle: dict[str, Any] = answer.json()
    Bundle.model_validate(bundle)
    return bundle


def values(parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        entry["name"]: next(value for key, value in entry.items() if key != "name")
        for entry in parameters["parameter"]
    }


def statuses(bundle: dict[str, Any]) -> dict[str, str]:
    found = [values(entry["resource"]) for entry in bundle.get("entry", [])]
    return {v["subscription"]["reference"].rpartition("/")[2]: v["status"] for v in found}


def numbers(bundle: dict[str, Any]) -> list[int]:
    return [
        int(part["valueString"])
        for parameter in bundle["entry"][0]["resource"]["parameter"]
        if parameter["name"] == "notification-event"
        for part in parameter["part"]
        if part["name"] == "event-number"
    ]


async def test_the_status_of_one_is_a_searchset_of_parameters(
    pair: Pair, receiver: Receiver
) -> None:
    id_ = await subscribed(pair, topic_based(endpoint=receiver.url))
    await admitted(pair, 2)
    bundle = await got(pair[1], f"/Subscription/{id_}/$status")
    assert (bundle["type"], bundle["total"]) == ("searchset", 1)
    (entry,) = bundle["entry"]
    assert entry["search"] == {"mode": "match"}
    assert entry["resource"]["meta"]["profile"] == [STATUS_PROFILE]
    assert values(entry["resource"]) == {
        "subscription": {"reference": f"{BASE}/Subscription/{id_}"},
        "topic": ADMISSION,
        "status": "active",
        "type": "query-status",
        "events-since-subscription-start": "2",
    }


async def test_the_status_of_several_by_id_and_status_with_get_and_post(
    pair: Pair, receiver: Receiver
) -> None:
    _, client = pair
    active = await subscribed(pair, topic_based(endpoint=receiver.url))
    empty = await subscribed(pair, topic_based(endpoint=receiver.url, content="empty"))
    off = await subscribed(pair, {**topic_based(endpoint=receiver.url), "status": "off"})
    path = "/Subscription/$status"
    everything = {active: "active", empty: "active", off: "off"}
    assert statuses(await got(client, path)) == everything
    assert statuses(await got(client, path, id=[active, off])) == {active: "active", off: "off"}
    assert statuses(await got(client, path, status="off")) == {off: "off"}
    assert statuses(await got(client, path, status=["off", "active"])) == everything
    assert statuses(await got(client, path, id=[active, off], status="active")) == {
        active: "active"
    }
    assert statuses(await got(client, path, id="nobody")) == {}
    given = [{"name": "id", "valueId": empty}, {"name": "status", "valueCode": "active"}]
    posted = await client.post(path, json={"resourceType": "Parameters", "parameter": given})
    assert statuses(posted.json()) == {empty: "active"}
    assert "topic" not in values(posted.json()["entry"][0]["resource"])
    posted = await client.post(f"/Subscription/{off}/$status", headers=JSON)
    assert statuses(posted.json()) == {off: "off"}
    assert_outcome(await client.get(path, params={"status": "asleep"}), 400, "value", "status")
    assert_outcome(await client.get("/Subscription/nobody/$status"), 404, "not-found")


async def test_the_status_of_many_comes_in_pages(pair: Pair, receiver: Receiver) -> None:
    ids = [await subscribed(pair, {**classic(), "status": "off"}) for _ in range(7)]
    page = await got(pair[1], "/Subscription/$status", status="off")
    assert len(page["entry"]) == 5
    (link,) = page["link"]
    rest = await got(pair[1], link["url"].removeprefix(BASE))
    assert set(statuses(page)) | set(statuses(rest)) == set(ids)


async def test_the_status_tells_what_is_wrong(pair: Pair, receiver: Receiver) -> None:
    id_ = await subscribed(pair, topic_based(endpoint=receiver.url))
    receiver.answers([410])
    await admitted(pair, 1)
    (entry,) = (await got(pair[1], f"/Subscription/{id_}/$status"))["entry"]
    found = values(entry["resource"])
    assert (found["status"], found["events-since-subscription-start"]) == ("off", "1")
    assert found["error"]["coding"][0]["code"] == "error-response"
    assert found["error"]["text"] == REFUSED


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param({}, [1, 2, 3, 4], id="all"),
        pytest.param({"eventsSinceNumber": "3"}, [3, 4], id="since"),
        pytest.param({"eventsUntilNumber": "2"}, [1, 2], id="until"),
        pytest.param({"eventsSinceNumber": "2", "eventsUntilNumber": "3"}, [2, 3], id="between"),
        pytest.param({"eventsSinceNumber": "2", "eventsUntilNumber": "2"}, [2], id="one"),
        pytest.param({"eventsSinceNumber": "0"}, [1, 2, 3, 4], id="from-nought"),
        pytest.param({"eventsSinceNumber": "9"}, [], id="none-yet"),
    ],
)
async def test_past_events_by_number(
    pair: Pair, receiver: Receiver, query: dict[str, str], expected: list[int]
) -> None:
    id_ = await subscribed(pair, topic_based(endpoint=receiver.url))
    await admitted(pair, 4)
    bundle = await got(pair[1], f"/Subscription/{id_}/$events", **query)
    assert bundle["type"] == "history"
    assert bundle["meta"]["profile"] == [NOTIFICATION_PROFILE]
    found = values(bundle["entry"][0]["resource"])
    assert (found["type"], found["events-since-subscription-start"]) == ("query-event", "4")
    assert numbers(bundle) == expected
    assert len(bundle["entry"]) == 1 + len(expected)
    given = [{"name": name, "valueString": value} for name, value in query.items()]
    parameters = {"resourceType": "Parameters", **({"parameter": given} if given else {})}
    posted = await pair[1].post(f"/Subscription/{id_}/$events", json=parameters)
    assert numbers(posted.json()) == expected


@pytest.mark.parametrize(
    ("allowed", "asked", "has_focus", "has_resource"),
    [
        pytest.param("empty", "full-resource", False, False, id="never-more-than-empty"),
        pytest.param("id-only", "full-resource", True, False, id="never-more-than-ids"),
        pytest.param("full-resource", "id-only", True, False, id="less"),
        pytest.param("full-resource", "empty", False, False, id="least"),
        pytest.param("full-resource", None, True, True, id="as-subscribed"),
    ],
)
async def test_past_events_tell_no_more_than_was_allowed(
    pair: Pair,
    receiver: Receiver,
    allowed: str,
    asked: str | None,
    has_focus: bool,
    has_resource: bool,
) -> None:
    id_ = await subscribed(pair, topic_based(endpoint=receiver.url, content=allowed))
    await admitted(pair)
    query = {"content": asked} if asked else {}
    text = str(await got(pair[1], f"/Subscription/{id_}/$events", **query))
    assert ("'focus'" in text) is has_focus
    assert ("'Encounter'" in text and "'resourceType': 'Encounter'" in text) is has_resource
    assert (ADMISSION in text) is has_focus


async def test_past_events_hold_the_version_of_their_time(pair: Pair, receiver: Receiver) -> None:
    id_ = await subscribed(pair, topic_based(endpoint=receiver.url, content="full-resource"))
    (stay,) = await admitted(pair)
    await pair[1].put(f"/Encounter/{stay['id']}", json={**stay, "status": "finished"})
    bundle = await got(pair[1], f"/Subscription/{id_}/$events")
    assert bundle["entry"][1]["resource"] == stay
    await pair[0].mongo.collection("versions").delete_one({"_id.i": stay["id"], "_id.v": 1})
    gone = (await got(pair[1], f"/Subscription/{id_}/$events"))["entry"][1]
    assert "resource" not in gone
    assert gone["response"]["status"] == "410"


async def test_more_events_than_a_page_follow_by_link(pair: Pair, receiver: Receiver) -> None:
    id_ = await subscribed(pair, topic_based(endpoint=receiver.url))
    await admitted(pair, 7)
    page = await got(pair[1], f"/Subscription/{id_}/$events")
    assert numbers(page) == [1, 2, 3, 4, 5]
    (link,) = page["link"]
    assert numbers(await got(pair[1], link["url"].removeprefix(BASE))) == [6, 7]


async def test_events_that_are_no_longer_kept_are_gone(pair: Pair, receiver: Receiver) -> None:
    id_ = await subscribed(pair, topic_based(endpoint=receiver.url))
    await admitted(pair, 4)
    deliveries = pair[0].mongo.collection("deliveries")
    await deliveries.delete_many({"subscription": id_, "number": {"$lte": 2}})
    path = f"/Subscription/{id_}/$events"
    for query in ({"eventsSinceNumber": "2"}, {"eventsUntilNumber": "1"}):
        outcome = assert_outcome(await pair[1].get(path, params=query), 410, "deleted")
        assert "the first that is kept is 3" in outcome["issue"][0]["diagnostics"]
    assert numbers(await got(pair[1], path, eventsSinceNumber="3")) == [3, 4]
    assert numbers(await got(pair[1], path)) == [3, 4]
    await deliveries.delete_many({"subscription": id_})
    outcome = assert_outcome(
        await pair[1].get(path, params={"eventsSinceNumber": "4"}), 410, "deleted"
    )
    assert "those before 5 are gone, none is kept" in outcome["issue"][0]["diagnostics"]
    # What comes next is not gone, it has not happened yet.
    assert numbers(await got(pair[1], path, eventsSinceNumber="5")) == []


@pytest.mark.parametrize(
    ("query", "expression"),
    [
        pytest.param({"eventsSinceNumber": "x"}, "eventsSinceNumber", id="no-number"),
        pytest.param({"eventsUntilNumber": "-1"}, "eventsUntilNumber", id="negative"),
        pytest.param(
            {"eventsSinceNumber": "3", "eventsUntilNumber": "2"},
            "eventsUntilNumber",
            id="backwards",
        ),
        pytest.param({"content": "everything"}, "content", id="content"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    pair: Pair, query: dict[str, str], expression: str
) -> None:
    id_ = await subscribed(pair, {**topic_based(), "status": "off"})
    answer = await pair[1].get(f"/Subscription/{id_}/$events", params=query)
    assert_outcome(answer, 400, "value", expression)


async def test_a_classic_subscription_has_no_events_operation(pair: Pair) -> None:
    id_ = await subscribed(pair, {**classic(), "status": "off"})
    assert_outcome(await pair[1].get(f"/Subscription/{id_}/$events"), 400, "not-supported")


async def resent(pair: Pair, id_: str, **bounds: str) -> httpx.Response:
    kinds = {"Number": "valueString", "Instant": "valueInstant"}
    given = [
        {"name": name, next(k for end, k in kinds.items() if name.endswith(end)): value}
        for name, value in bounds.items()
    ]
    body = {"resourceType": "Parameters", **({"parameter": given} if given else {})}
    answer = await pair[1].post(f"/Subscription/{id_}/$resend", json=body)
    await pair[0].worker.drain()
    return answer


async def test_notices_are_sent_again_by_number_and_time(pair: Pair, receiver: Receiver) -> None:
    id_ = await subscribed(pair, topic_based(endpoint=receiver.url))
    stays = await admitted(pair, 3)
    answer = await resent(pair, id_, eventsSinceNumber="2", eventsUntilNumber="3")
    assert answer.status_code == 202
    assert answer.json()["issue"][0]["diagnostics"] == "2 notices are sent again"
    assert [r.number for r in receiver.events] == [1, 2, 3, 2, 3]
    assert receiver.events[1].body == receiver.events[3].body
    await resent(pair, id_, eventsUntilInstant=stays[0]["meta"]["lastUpdated"])
    assert [r.number for r in receiver.events][5:] == [1]


async def test_sending_again_needs_a_post_and_an_active_subscription(pair: Pair) -> None:
    id_ = await subscribed(pair, {**topic_based(), "status": "off"})
    assert_outcome(await resent(pair, id_), 409, "conflict")
    answer = await pair[1].get(f"/Subscription/{id_}/$resend")
    assert_outcome(answer, 405, "not-supported")
    answer = await pair[1].post(
        f"/Subscription/{id_}/$resend",
        json={
            "resourceType": "Parameters",
            "parameter": [{"name": "eventsSinceInstant", "valueInstant": "2026-11-21"}],
        },
    )
    assert answer.status_code in (400, 409)


async def test_topics_can_be_read_as_basic(pair: Pair) -> None:
    server, client = pair
    query = {"code": "http://hl7.org/fhir/fhir-types|SubscriptionTopic"}
    bundle = await got(client, "/Basic", **query)
    shown = {
        extension["valueUri"]: entry["resource"]
        for entry in bundle["entry"]
        for extension in entry["resource"]["extension"]
        if extension["url"].endswith("SubscriptionTopic.url")
    }
    assert set(shown) <= set(server.worker.registry.catalogue.by_url)
    topic = (await client.get("/Basic/topic-encounter-admission")).json()
    assert topic["modifierExtension"][0]["valueCode"] == "active"
    triggers = [e for e in topic["extension"] if e["url"].endswith(".resourceTrigger")]
    assert len(triggers) == 5
    assert {"url": "resource", "valueUri": "Encounter"} in triggers[0]["extension"]


async def test_the_capability_statement_says_what_the_guide_asks_for(pair: Pair) -> None:
    statement = (await pair[1].get("/metadata")).json()
    guide = "http://hl7.org/fhir/uv/subscriptions-backport"
    assert (
        f"{guide}/CapabilityStatement/backport-subscription-server-r4" in statement["instantiates"]
    )
    (rest,) = statement["rest"]
    assert rest["extension"][0]["valueUri"] == "ws://carerelay.test/fhir/websocket"
    (subscription,) = [each for each in rest["resource"] if each["type"] == "Subscription"]
    profile = f"{guide}/StructureDefinition/backport-subscription"
    assert subscription["supportedProfile"] == [profile]
    assert {e["valueCanonical"] for e in subscription["extension"]} == set(
        pair[0].worker.registry.catalogue.by_url
    )
    assert {"status", "events", "get-ws-binding-token"} <= {
        operation["name"] for operation in subscription["operation"]
    }
    assert {"read", "create", "update", "delete"} <= {
        interaction["code"] for interaction in subscription["interaction"]
    }
    assert {"url", "status"} <= {parameter["name"] for parameter in subscription["searchParam"]}
    assert "SubscriptionTopic" not in {each["type"] for each in rest["resource"]}
