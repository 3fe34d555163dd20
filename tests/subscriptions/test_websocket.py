"""The websocket channel, with real clients: bound by token or by id, in this process or another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import aiohttp
import httpx
import pytest

from app.fhir.xml import decode
from app.runtime.mongo import Mongo
from app.store.store import Store
from app.subscriptions.channels.protocol import UNREACHED
from app.subscriptions.sending.retry import RetryPolicy
from tests.builders.deliveries import create, rows, status_of, working
from tests.builders.listening import listening
from tests.builders.subscriptions import classic, encounter, subscribed, topic_based, websocket
from tests.builders.websocket_clients import Client, connect, parameters
from tests.conftest import JSON, Server, make_settings
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo
Pair = tuple[Server, httpx.AsyncClient]


@pytest.fixture(scope="module")
async def pair(mongod: str) -> AsyncIterator[Pair]:
    async with listening(make_settings(mongod)) as pair:
        yield pair


@pytest.fixture(scope="module")
async def other(pair: Pair) -> AsyncIterator[Pair]:
    """Another process's worth of server on the same database."""
    async with listening(pair[0].settings) as other:
        yield other


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def token(client: httpx.AsyncClient, *ids: str) -> dict[str, Any]:
    answer = await client.get("/Subscription/$get-ws-binding-token", params={"id": ids})
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return {
        p["name"]: next(value for key, value in p.items() if key != "name")
        for p in answer.json()["parameter"]
    }


async def bound(
    session: aiohttp.ClientSession, client: httpx.AsyncClient, *ids: str
) -> tuple[Client, list[dict[str, Any]]]:
    """A client that has bound these, with its handshakes."""
    listener = await connect(session, client)
    await listener.say(f"bind-with-token: {(await token(client, *ids))['token']}")
    return listener, [await listener.notice() for _ in ids]


async def test_a_client_binds_with_a_token_and_is_told(
    pair: Pair, session: aiohttp.ClientSession
) -> None:
    server, client = pair
    first = await subscribed(pair, websocket("patient=w1"))
    second = await subscribed(pair, websocket("patient=w2", content="full-resource"))
    assert (await client.get(f"/Subscription/{first}")).json()["status"] == "active"
    given = await token(client, first, second)
    assert given["websocket-url"] == str(client.base_url).replace("http", "ws", 1) + "websocket"
    assert given["expiration"].endswith("Z")
    listener, handshakes = await bound(session, client, first, second)
    assert [parameters(h)["type"] for h in handshakes] == ["handshake", "handshake"]
    assert [parameters(h)["subscription"]["reference"].rpartition("/")[2] for h in handshakes] == [
        first,
        second,
    ]
    stay = (await client.post("/Encounter", json=encounter(patient="w2"))).json()
    notice = await listener.notice()
    assert parameters(notice)["type"] == "event-notification"
    assert notice["entry"][1]["resource"] == stay
    await client.post("/Encounter", json=encounter(patient="w1"))
    notice = await listener.notice()
    assert parameters(notice)["events-since-subscription-start"] == "1"
    assert "resource" not in notice["entry"][1]
    await server.worker.drain()


@pytest.mark.slow
async def test_what_came_while_nobody_was_there_is_sent_in_order_on_binding(
    pair: Pair, session: aiohttp.ClientSession
) -> None:
    server, client = pair
    id_ = await subscribed(pair, websocket("patient=away"))
    for _ in range(2):
        await client.post("/Encounter", json=encounter(patient="away"))
    await server.worker.drain()
    listener, (handshake,) = await bound(session, client, id_)
    assert parameters(handshake)["events-since-subscription-start"] == "2"
    numbers = [
        parameters(await listener.notice())["events-since-subscription-start"] for _ in range(2)
    ]
    assert numbers == ["1", "2"]


async def test_a_client_that_stays_away_for_the_whole_window_has_its_notices_wait(
    mongo: Mongo, store: Store
) -> None:
    async with working(mongo, store, loops=False, policy=RetryPolicy(window=0.0)) as worker:
        stored = await create(store, websocket())
        await worker.run_once()
        assert await status_of(store, stored.id) == ("active", None)
        await create(store, encounter())
        await worker.drain()
        reason = UNREACHED
        assert await status_of(store, stored.id) == ("error", reason)
    assert [(row["state"], row["open"]) for row in await rows(mongo)] == [("retrying", True)]


@pytest.mark.slow
async def test_what_a_connection_took_is_not_sent_again_on_the_next(
    pair: Pair, session: aiohttp.ClientSession
) -> None:
    """A frame has no answer: who lost one learns the count from the handshake and asks $events."""
    server, client = pair
    id_ = await subscribed(pair, websocket("patient=lossy"))
    listener, _ = await bound(session, client, id_)
    await client.post("/Encounter", json=encounter(patient="lossy"))
    await server.worker.drain()
    await listener.socket.close()
    again, (handshake,) = await bound(session, client, id_)
    assert parameters(handshake)["events-since-subscription-start"] == "1"
    await client.post("/Encounter", json=encounter(patient="lossy"))
    assert parameters(await again.notice())["events-since-subscription-start"] == "2"
    missed = await client.get(f"/Subscription/{id_}/$events", params={"eventsUntilNumber": "1"})
    assert len(missed.json()["entry"]) == 2


@pytest.mark.slow
async def test_a_client_of_another_process_is_told(
    pair: Pair, other: Pair, session: aiohttp.ClientSession
) -> None:
    """Committed, matched and sent here; the connection is there."""
    server, client = pair
    id_ = await subscribed(pair, websocket("patient=far"))
    here, _ = await bound(session, client, id_)
    there, _ = await bound(session, other[1], id_)
    await client.post("/Encounter", json=encounter(patient="far"))
    assert parameters(await here.notice()) == parameters(await there.notice())
    await here.socket.close()
    await client.post("/Encounter", json=encounter(patient="far"))
    assert parameters(await there.notice())["events-since-subscription-start"] == "2"
    await server.worker.drain()
    rows = server.mongo.collection("deliveries").find({"subscription": id_})
    assert [row["state"] for row in await rows.to_list(None)] == ["delivered", "delivered"]
    assert (
        await server.mongo.collection("mailbox").count_documents({"question": {"$exists": 1}}) == 0
    )


@pytest.mark.slow
async def test_a_connection_of_a_dead_process_holds_up_no_other(
    pair: Pair, other: Pair, session: aiohttp.ClientSession
) -> None:
    """What is sent is taken here at once, though the binding there seems to be alive."""
    server, client = pair
    id_ = await subscribed(pair, websocket("patient=orphan", timeout=1))
    here, _ = await bound(session, client, id_)
    binding = {"_id": "orphan", "subscription": id_, "owner": "dead"}
    bindings = server.mongo.collection("websocket_bindings")
    await bindings.insert_one({**binding, "until": server.mongo.now() + timedelta(seconds=30)})
    for number in ("1", "2"):
        await client.post("/Encounter", json=encounter(patient="orphan"))
        assert parameters(await here.notice())["events-since-subscription-start"] == number
        await server.worker.drain()
    rows = await server.mongo.collection("deliveries").find({"subscription": id_}).to_list(None)
    assert [(row["state"], row["attempt"]) for row in rows] == [("delivered", 1)] * 2
    await other[0].worker._take_over("dead", server.mongo.now())
    assert await bindings.count_documents({"_id": "orphan"}) == 0


@pytest.mark.slow
async def test_a_classic_client_is_pinged(pair: Pair, session: aiohttp.ClientSession) -> None:
    """Nothing but the id travels; neither a deletion nor a change that no longer matches is told."""
    server, client = pair
    subscription = classic("Encounter?patient=Patient/ping&status=in-progress")
    subscription["channel"] = {"type": "websocket"}
    id_ = await subscribed(pair, subscription)
    listener = await connect(session, client)
    await listener.say(f"bind {id_}")
    assert await listener.hear() == f"bound {id_}"
    stay = (await client.post("/Encounter", json=encounter(patient="ping"))).json()
    assert await listener.hear() == f"ping {id_}"
    await client.put(f"/Encounter/{stay['id']}", json={**stay, "status": "finished"})
    await client.delete(f"/Encounter/{stay['id']}")
    await client.post("/Encounter", json=encounter(patient="ping"))
    await server.worker.drain()
    assert await listener.hear() == f"ping {id_}"
    rows = server.mongo.collection("deliveries").find({"subscription": id_})
    assert len(await rows.to_list(None)) == 2


async def test_notices_come_in_the_format_of_the_payload(
    pair: Pair, session: aiohttp.ClientSession
) -> None:
    _, client = pair
    id_ = await subscribed(pair, websocket("patient=xml", payload="application/fhir+xml"))
    listener = await connect(session, client)
    await listener.say(f"bind-with-token: {(await token(client, id_))['token']}")
    assert parameters(decode((await listener.hear()).encode()))["type"] == "handshake"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("bind-with-token: nonsense", id="unknown-token"),
        pytest.param("bind nobody", id="unknown-subscription"),
        pytest.param("bind", id="no-id"),
        pytest.param("hello", id="unknown-word"),
    ],
)
async def test_a_client_that_may_not_is_turned_away(
    pair: Pair, session: aiohttp.ClientSession, text: str
) -> None:
    listener = await connect(session, pair[1])
    await listener.say(text)
    assert await listener.closed() == 1008


async def test_a_topic_based_subscription_is_not_bound_by_its_id(
    pair: Pair, session: aiohttp.ClientSession
) -> None:
    id_ = await subscribed(pair, websocket("patient=id"))
    listener = await connect(session, pair[1])
    await listener.say(f"bind {id_}")
    assert await listener.closed() == 1008


async def test_an_expired_token_binds_nothing(pair: Pair, session: aiohttp.ClientSession) -> None:
    server, client = pair
    id_ = await subscribed(pair, websocket("patient=late"))
    given = await token(client, id_)
    tokens = server.mongo.collection("websocket_tokens")
    await tokens.update_many({"subscriptions": id_}, {"$set": {"expires_at": server.mongo.now()}})
    listener = await connect(session, client)
    await listener.say(f"bind-with-token: {given['token']}")
    assert await listener.closed() == 1008


async def test_a_foreign_web_page_cannot_connect(
    pair: Pair, session: aiohttp.ClientSession
) -> None:
    url = str(pair[1].base_url).replace("http", "ws", 1) + "websocket"
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await session.ws_connect(url, origin="https://elsewhere.example")
    assert caught.value.status == 403
    own = await session.ws_connect(url, origin=str(pair[1].base_url.copy_with(path="")))
    await own.close()


async def test_tokens_are_for_topic_based_websocket_subscriptions(pair: Pair) -> None:
    _, client = pair
    created = await client.post("/Subscription", json=topic_based())
    path = f"/Subscription/{created.json()['id']}/$get-ws-binding-token"
    assert_outcome(await client.get(path), 422, "not-supported", "Subscription.channel.type")
    await client.delete(f"/Subscription/{created.json()['id']}")
    nobody = "/Subscription/nobody/$get-ws-binding-token"
    assert_outcome(await client.post(nobody, headers=JSON), 404, "not-found")
    assert_outcome(await client.get("/Subscription/$get-ws-binding-token"), 400, "required", "id")
