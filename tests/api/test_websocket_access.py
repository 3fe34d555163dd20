"""Websockets with authorization: who is given a token, what it binds, and that who was shut out hears nothing more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import httpx
import pytest

from app.api import websocket_session as door
from app.cli.serve import options
from app.fhir.ids import new_id
from app.settings import Settings
from tests.builders.access_world import encounter, people
from tests.builders.audit_events import entities, refusing_rows
from tests.builders.listening import listening
from tests.builders.smart import ec_key, key_set
from tests.builders.subscriptions import classic, topic_based, websocket
from tests.builders.websocket_clients import Client, Party, connect, join, parameters
from tests.conftest import Server, make_settings
from tests.outcomes import assert_outcome

pytestmark = [pytest.mark.mongo, pytest.mark.slow]
Pair = tuple[Server, httpx.AsyncClient]
Resource = dict[str, Any]


@pytest.fixture(scope="module")
async def pair(mongod: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    settings = make_settings(
        mongod,
        auth="smart",
        data=tmp_path_factory.mktemp("d"),
        token_rate_limit=0,
        websocket_rate_limit=0,
    )
    async with listening(settings, **options(Settings())) as pair:
        yield pair


@pytest.fixture(scope="module")
async def other(pair: Pair) -> AsyncIterator[Pair]:
    """Another process's worth of server on the same database."""
    async with listening(pair[0].settings) as other:
        yield other


@pytest.fixture(scope="module")
async def admin(pair: Pair) -> Party:
    """The administrator of a world with patients and practices."""
    admin = await join(pair, None, "administrator")
    entries = [
        {
            "resource": each,
            "request": {"method": "PUT", "url": f"{each['resourceType']}/{each['id']}"},
        }
        for each in people()
    ]
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    answer = await admin.ask("POST", "/", bundle)
    assert answer.status_code == 200, answer.text
    return admin


@pytest.fixture
async def north(pair: Pair, admin: Party) -> Party:
    """A client of the practice that `pn` is a patient of."""
    return await join(pair)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def say(session: aiohttp.ClientSession, client: httpx.AsyncClient, text: str) -> Client:
    listener = await connect(session, client)
    await listener.say(text)
    return listener


async def bound(session: aiohttp.ClientSession, party: Party, *ids: str) -> Client:
    """A socket that has bound these."""
    token = await party.token(*ids)
    listener = await say(session, party.pair[1], f"bind-with-token: {token}")
    for _ in ids:
        assert parameters(await listener.notice())["type"] == "handshake"
    return listener


async def admit(admin: Party) -> str:
    """A stay of north's patient."""
    id_ = new_id()
    answer = await admin.ask("PUT", f"/Encounter/{id_}", encounter(id_, "pn", "general"))
    assert answer.status_code == 201, answer.text
    return id_


async def outcome_of(server: Server, subscription: str, stay: str) -> tuple[str, str | None]:
    await server.worker.drain()
    rows = server.mongo.collection("deliveries")
    row = await rows.find_one({"subscription": subscription, "focus.id": stay})
    assert row is not None
    return row["state"], row.get("reason")


# Who is given a token


@pytest.mark.parametrize(
    ("organization", "role", "status"),
    [
        pytest.param("Organization/south", "practice", 404, id="another-practice"),
        pytest.param("Organization/general", "hospital", 404, id="the-patient's-hospital"),
        pytest.param("Organization/north", "practice", 403, id="another-of-the-same"),
        pytest.param(None, "administrator", 403, id="administrator"),
    ],
)
async def test_only_the_client_that_wrote_a_subscription_is_given_its_token(
    pair: Pair, north: Party, organization: str | None, role: str, status: int
) -> None:
    someone = await join(pair, organization, role)
    theirs, own = await north.subscribe(), await someone.subscribe(websocket())
    code = "not-found" if status == 404 else "forbidden"
    instance = f"/Subscription/{theirs}/$get-ws-binding-token"
    assert_outcome(await someone.ask("GET", instance), status, code)
    assert_outcome(await someone.binding(theirs), status, code)
    # Not for one's own either, where another is named beside it.
    assert_outcome(await someone.binding(own, theirs), status, code)
    tokens = pair[0].mongo.collection("websocket_tokens")
    assert await tokens.count_documents({"subscriptions": theirs}) == 0
    assert (await someone.binding(own)).status_code == 200
    assert (await north.ask("GET", instance)).status_code == 200


async def test_a_token_needs_the_right_to_read_subscriptions(pair: Pair, north: Party) -> None:
    id_ = await north.subscribe()
    await north.renew("system/Subscription.cu system/Encounter.rs")
    assert_outcome(await north.binding(id_), 403, "forbidden")
    north.headers = {}
    assert_outcome(await north.binding(id_), 401, "login")


async def test_what_is_told_otherwise_is_not_bound(north: Party) -> None:
    id_ = await north.subscribe(topic_based())
    answer = await north.binding(id_)
    assert_outcome(answer, 422, "not-supported", "Subscription.channel.type")


# What it binds


async def test_its_holder_is_told_and_may_come_back_with_it(
    admin: Party, north: Party, session: aiohttp.ClientSession
) -> None:
    id_ = await north.subscribe()
    token = await north.token(id_)
    for _ in range(2):
        listener = await say(session, north.pair[1], f"bind-with-token: {token}")
        assert parameters(await listener.notice())["type"] == "handshake"
        stay = await admit(admin)
        assert f"Encounter/{stay}" in await listener.hear()
        assert await outcome_of(north.pair[0], id_, stay) == ("delivered", None)
        await listener.socket.close()


async def test_a_classic_subscription_is_bound_by_token_too(
    admin: Party, north: Party, session: aiohttp.ClientSession
) -> None:
    body = classic("Encounter?patient=Patient/pn")
    body["channel"] = {"type": "websocket"}
    id_ = await north.subscribe(body)
    listener = await say(session, north.pair[1], f"bind-with-token: {await north.token(id_)}")
    assert await listener.hear() == f"bound {id_}"
    await admit(admin)
    assert await listener.hear() == f"ping {id_}"


@pytest.mark.parametrize("is_classic", [True, False], ids=["classic", "topic"])
async def test_an_id_binds_nothing(
    north: Party, session: aiohttp.ClientSession, is_classic: bool
) -> None:
    body = classic("Encounter?patient=Patient/pn") if is_classic else websocket("patient=pn")
    body["channel"] = {"type": "websocket"} if is_classic else body["channel"]
    id_ = await north.subscribe(body)
    stranger = await say(session, north.pair[1], f"bind {id_}")
    assert await stranger.closed() == 1008
    listener = await connect(session, north.pair[1])
    await listener.say(f"bind-with-token: {await north.token(id_)}")
    await listener.hear()
    await listener.say(f"bind {id_}")  # nor for who has shown a token
    assert await listener.closed() == 1008


async def test_an_expired_token_binds_nothing(north: Party, session: aiohttp.ClientSession) -> None:
    id_ = await north.subscribe()
    server, client = north.pair
    token = await north.token(id_)
    tokens = server.mongo.collection("websocket_tokens")
    await tokens.update_many({"subscriptions": id_}, {"$set": {"expires_at": server.mongo.now()}})
    assert await (await say(session, client, f"bind-with-token: {token}")).closed() == 1008


async def test_a_token_from_when_there_was_no_authorization_binds_nothing(
    north: Party, session: aiohttp.ClientSession
) -> None:
    id_ = await north.subscribe()
    server, client = north.pair
    token = await north.token(id_)
    tokens = server.mongo.collection("websocket_tokens")
    await tokens.update_many({"subscriptions": id_}, {"$unset": {"holder": 1}})
    assert await (await say(session, client, f"bind-with-token: {token}")).closed() == 1008


async def test_a_connection_is_one_clients(
    pair: Pair, north: Party, session: aiohttp.ClientSession
) -> None:
    someone = await join(pair)
    listener = await bound(session, north, await north.subscribe())
    await listener.say(f"bind-with-token: {await someone.token(await someone.subscribe())}")
    assert await listener.closed() == 1008


async def test_a_token_ends_with_the_subscription_becoming_anothers(
    pair: Pair, admin: Party, north: Party, session: aiohttp.ClientSession
) -> None:
    """A colleague of the same practice writes it anew: what it tells is that client's now."""
    id_ = await north.subscribe()
    token = await north.token(id_)
    listener = await say(session, pair[1], f"bind-with-token: {token}")
    await listener.hear()
    colleague = await join(pair)
    written = await colleague.ask(
        "PUT", f"/Subscription/{id_}", websocket("patient=pn") | {"id": id_}
    )
    assert written.status_code == 200, written.text
    stay = await admit(admin)
    assert await listener.closed() == 1008
    again = await say(session, pair[1], f"bind-with-token: {token}")
    assert await again.closed() == 1008
    assert_outcome(await north.binding(id_), 403, "forbidden")
    heir = await bound(session, colleague, id_)
    assert f"Encounter/{stay}" in await heir.hear()


# What is on record of it


async def on_record(admin: Party, agent: str) -> list[Resource]:
    """What an agent's sockets have bound, or were refused; the newest first."""
    answer = await admin.ask("GET", f"/AuditEvent?subtype=110126&agent={agent}")
    return [entry["resource"] for entry in answer.json().get("entry", ())]


async def test_what_a_socket_binds_is_on_record_with_its_client(
    admin: Party, north: Party, session: aiohttp.ClientSession
) -> None:
    first, second = await north.subscribe(), await north.subscribe()
    await bound(session, north, first, second)
    found = await on_record(admin, north.id)
    told = {entities(each, "2", "9")[0]["what"]["reference"]: each["outcome"] for each in found}
    assert told == {f"Subscription/{first}": "0", f"Subscription/{second}": "0"}


async def test_who_is_refused_a_subscription_is_on_record(
    pair: Pair, admin: Party, north: Party, session: aiohttp.ClientSession
) -> None:
    id_ = await north.subscribe()
    token = await north.token(id_)
    await change(admin, north, "disable", {})
    assert await (await say(session, pair[1], f"bind-with-token: {token}")).closed() == 1008
    (event,) = await on_record(admin, north.id)
    assert (event["outcome"], event["outcomeDesc"]) == ("4", "WebSocket 1008")
    assert entities(event, "2", "9")[0]["what"] == {"reference": f"Subscription/{id_}"}


async def test_guessed_tokens_are_on_record(
    pair: Pair, admin: Party, session: aiohttp.ClientSession
) -> None:
    assert await (await say(session, pair[1], "bind-with-token: guessed")).closed() == 1008
    event = (await on_record(admin, "unknown"))[0]
    assert (event["outcome"], "entity" in event) == ("4", False)


async def test_what_cannot_be_put_on_record_is_not_bound(
    north: Party, session: aiohttp.ClientSession
) -> None:
    server, client = north.pair
    token = await north.token(await north.subscribe())
    async with refusing_rows(server):
        listener = await say(session, client, f"bind-with-token: {token}")
        assert await listener.closed() == 1013
    listener = await say(session, client, f"bind-with-token: {token}")
    assert parameters(await listener.notice())["type"] == "handshake"


# Who has lost the right


CHANGES = [
    pytest.param("disable", {}, id="disabled"),
    pytest.param("scopes", {"scopes": "system/Subscription.rs"}, id="scopes-cut"),
    pytest.param("rotate", {"jwks": key_set(ec_key())}, id="new-keys"),
]


async def change(admin: Party, party: Party, what: str, body: Resource) -> None:
    root = str(admin.pair[1].base_url).removesuffix("/fhir/")
    answer = await admin.ask("POST", f"{root}/admin/clients/{party.id}/{what}", body)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("what", "body"), CHANGES)
async def test_who_was_shut_out_is_told_nothing_more(
    pair: Pair,
    admin: Party,
    north: Party,
    session: aiohttp.ClientSession,
    what: str,
    body: Resource,
) -> None:
    server = pair[0]
    id_ = await north.subscribe(websocket("patient=pn", heartbeat=3600))
    token = await north.token(id_)
    listener = await say(session, pair[1], f"bind-with-token: {token}")
    await listener.hear()
    await change(admin, north, what, body)
    # Not even that all is well.
    states = server.mongo.collection("subscription_state")
    due = {"$set": {"heartbeat_at": server.mongo.now()}}
    assert (await states.update_one({"_id": id_}, due)).matched_count == 1
    assert await listener.closed() == 1008
    again = await say(session, pair[1], f"bind-with-token: {token}")
    assert await again.closed() == 1008
    stay = await admit(admin)
    state, reason = await outcome_of(server, id_, stay)
    if what == "rotate":
        assert state == "retrying", "it is still the client's, which has to come back"
    else:
        assert (state, reason) == ("suppressed", "Withheld: access")


@pytest.mark.parametrize(("what", "body"), CHANGES)
async def test_a_notice_does_not_reach_who_was_shut_out(
    pair: Pair,
    admin: Party,
    north: Party,
    session: aiohttp.ClientSession,
    what: str,
    body: Resource,
) -> None:
    id_ = await north.subscribe()
    listener = await bound(session, north, id_)
    await change(admin, north, what, body)
    stay = await admit(admin)
    state, _ = await outcome_of(pair[0], id_, stay)
    assert state in ("suppressed", "retrying")
    await listener.say("bind-with-token: x")  # no frame has come before the answer to this
    assert await listener.closed() == 1008


async def test_a_quiet_connection_of_who_was_shut_out_is_closed(
    pair: Pair,
    other: Pair,
    admin: Party,
    north: Party,
    session: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In all processes, though nothing is sent: within a second and the time until it is asked about again."""
    monkeypatch.setattr(door, "LOOK_AGAIN", 0.05)
    id_ = await north.subscribe()
    token = await north.token(id_)
    listeners = [await say(session, each[1], f"bind-with-token: {token}") for each in (pair, other)]
    for listener in listeners:
        await listener.hear()
    await change(admin, north, "disable", {})
    for listener in listeners:
        assert await listener.closed() == 1008


async def test_with_new_keys_a_client_comes_back_to_what_waited(
    pair: Pair, admin: Party, north: Party, session: aiohttp.ClientSession
) -> None:
    id_ = await north.subscribe()
    await bound(session, north, id_)
    north.key = ec_key()
    await change(admin, north, "rotate", {"jwks": key_set(north.key)})
    stay = await admit(admin)
    await pair[0].worker.drain()
    await north.renew()
    listener = await bound(session, north, id_)
    assert f"Encounter/{stay}" in await listener.hear()
