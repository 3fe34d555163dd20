"""One Subscription, topic or record that cannot be judged silences nobody else, and nothing is lost by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from bson import ObjectId

from app.coordination.practices import unmatched_review
from app.runtime.mongo import Document
from app.store.events import Event
from app.subscriptions.ledger.unmatched import event_row, row_of
from app.subscriptions.matching import criteria_check
from app.subscriptions.matching.judges import Failure
from tests.builders.access_world import world
from tests.builders.receiver import Receiver, receiving
from tests.builders.spoilt import spoilt
from tests.builders.subscriptions import classic, encounter, topic_based
from tests.conftest import JSON, Server, make_settings
from tests.outcomes import assert_outcome
from tests.processes import carerelay, environment, started

pytestmark = pytest.mark.mongo

Pair = tuple[Server, httpx.AsyncClient]
ADMIN = "http://carerelay.test/admin"
VALUE_SET = "http://codes.example/ValueSet/stays"
TYPES = "http://codes.example/CodeSystem/types"
TOPIC = "http://topics.example/checked"
CANNOT = "criteria, parameter type:in: the value set cannot be expanded here"
# Raises on every record that has an identifier.
RAISES = "%current.identifier.value.exists().not() or %current.identifier.value + 1 = 2"


@pytest.fixture
async def pair(mongod: str) -> AsyncIterator[Pair]:
    """A server, and a client of an administrator's: only these may change what Subscriptions are evaluated by."""
    async with world(mongod, egress_allow="127.0.0.1") as found:
        found.client.headers["Authorization"] = "Bearer admin"
        # What follows from the world's own records is over before anything is counted.
        await found.server.worker.drain()
        await found.server.engine.drain()
        await found.server.worker.drain()
        yield found.server, found.client


def value_set(*codes: str) -> dict[str, Any]:
    concepts = [{"code": code} for code in codes or ("ward",)]
    return {
        "resourceType": "ValueSet",
        "id": "stays",
        "url": VALUE_SET,
        "status": "active",
        "compose": {"include": [{"system": TYPES, "concept": concepts}]},
    }


def stay(id_: str, **more: Any) -> dict[str, Any]:
    return {**encounter(type=[{"coding": [{"system": TYPES, "code": "ward"}]}], **more), "id": id_}


def topic(criteria: str = RAISES) -> dict[str, Any]:
    return {
        "resourceType": "SubscriptionTopic",
        "url": TOPIC,
        "status": "active",
        "resourceTrigger": [{"resource": "Encounter", "fhirPathCriteria": criteria}],
    }


async def put(client: httpx.AsyncClient, *resources: dict[str, Any]) -> None:
    for each in resources:
        answer = await client.put(f"/{each['resourceType']}/{each['id']}", json=each)
        assert answer.status_code in (200, 201), answer.text


async def subscribe(pair: Pair, subscription: dict[str, Any], id_: str) -> None:
    await put(pair[1], {**subscription, "id": id_})
    await pair[0].worker.drain()


async def happen(pair: Pair, *resources: dict[str, Any]) -> None:
    """These are written, and all that follows from it is done, but for later tries."""
    await put(pair[1], *resources)
    await pair[0].worker.drain()


async def unmatched(client: httpx.AsyncClient, **which: str) -> list[tuple[str, str, str]]:
    answer = await client.get(f"{ADMIN}/events", params={"state": "unmatched", **which})
    assert answer.status_code == 200, answer.text
    return [(row["judge"], row["focus"], row["reason"]) for row in answer.json()["events"]]


async def replay(pair: Pair, **which: str) -> dict[str, int]:
    answer = await pair[1].post(
        f"{ADMIN}/events/replay", params=which or {"all": "true"}, headers=JSON
    )
    assert answer.status_code == 200, answer.text
    await pair[0].worker.drain()
    return dict(answer.json())


async def paced(rounds: Sequence[Awaitable[None]]) -> None:
    for each in rounds:
        await each
        await asyncio.sleep(0)


async def status_of(client: httpx.AsyncClient, id_: str) -> tuple[str, str | None]:
    found = (await client.get(f"/Subscription/{id_}")).json()
    return found["status"], found.get("error")


async def review_tasks(client: httpx.AsyncClient) -> list[tuple[str, str]]:
    found = (await client.get("/Task", params={"code": "unmatched"})).json()
    tasks = [each["resource"] for each in found.get("entry", ())]
    return sorted((each["focus"]["reference"], each["status"]) for each in tasks)


def paths(receiver: Receiver) -> list[str]:
    """Which Subscription was told, by the path of its endpoint."""
    return [request.path for request in receiver.requests]


OLD = {
    "birthDate": "1940-01-01",
    "generalPractitioner": [{"reference": "Organization/north"}],
}
UNSETTLED = [
    pytest.param("type:in=http://nope.example/vs", id="value-set"),
    pytest.param("type:not-in=http://nope.example/vs", id="not-in"),
    pytest.param("type:below=http://nope.example/cs|x", id="hierarchy"),
    pytest.param("type:in=ValueSet/nope", id="by-id"),
    pytest.param("patient.language:in=http://nope.example/vs", id="chain"),
    pytest.param("patient._has:Condition:patient:code:in=http://nope.example/vs", id="has"),
    pytest.param(
        "_has:Condition:encounter:patient._has:Condition:patient:code:in=http://nope.example/vs",
        id="has-in-has",
    ),
]


@pytest.mark.parametrize("criteria", UNSETTLED)
async def test_criteria_that_cannot_be_settled_are_refused(
    client: httpx.AsyncClient, criteria: str
) -> None:
    answer = await client.post("/Subscription", json=classic(f"Encounter?{criteria}"))
    outcome = assert_outcome(answer, 422, "not-supported", "Subscription.criteria")
    assert "nope" not in answer.text
    assert criteria.partition("=")[0] in outcome["issue"][0]["diagnostics"]


async def test_they_are_refused_however_they_are_written(client: httpx.AsyncClient) -> None:
    taken = (await client.post("/Subscription", json=classic("Encounter?"))).json()
    criteria = "Encounter?type:in=http://nope.example/vs"
    patch = [{"op": "replace", "path": "/criteria", "value": criteria}]
    patched = await client.patch(
        f"/Subscription/{taken['id']}",
        json=patch,
        headers={"Content-Type": "application/json-patch+json"},
    )
    assert_outcome(patched, 422, "not-supported", "Subscription.criteria")
    entry = {
        "resource": classic(criteria),
        "request": {"method": "POST", "url": "Subscription"},
    }
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [entry]}
    assert (await client.post("/", json=bundle)).status_code == 422
    off = {**classic(criteria), "status": "off"}
    assert (await client.post("/Subscription", json=off)).status_code == 201


async def test_a_topic_whose_queries_cannot_be_settled_is_refused(
    client: httpx.AsyncClient,
) -> None:
    query = {"current": "type:in=http://nope.example/vs"}
    asked = {**topic(), "resourceTrigger": [{"resource": "Encounter", "queryCriteria": query}]}
    answer = await client.put(f"{ADMIN}/topics/unsettled", json=asked)
    assert_outcome(answer, 422, "not-supported", "SubscriptionTopic.resourceTrigger")


@pytest.mark.slow
async def test_a_value_set_that_goes_silences_its_subscription_alone(
    pair: Pair, receiver: Receiver
) -> None:
    server, client = pair
    await put(client, value_set())
    await subscribe(pair, classic("Encounter?", f"{receiver.url}/all"), "all")
    asking = classic(f"Encounter?type:in={VALUE_SET}", f"{receiver.url}/wards")
    await subscribe(pair, asking, "w1")
    await happen(pair, stay("e1"))
    assert sorted(paths(receiver)) == ["/all", "/wards"]

    assert (await client.delete("/ValueSet/stays")).is_success
    await server.worker.drain()
    assert await status_of(client, "w1") == ("error", CANNOT)
    assert await status_of(client, "all") == ("active", None)
    await happen(pair, stay("e2"), stay("e2", status="finished"))
    assert paths(receiver)[2:] == ["/all", "/all"]
    # The younger version waits behind the older one, for this Subscription alone.
    assert await unmatched(client) == [
        ("Subscription/w1", "Encounter/e2/_history/1", CANNOT),
        ("Subscription/w1", "Encounter/e2/_history/2", "waits behind an older version"),
    ]
    assert await unmatched(client, judge="Subscription/w1") == await unmatched(client)
    assert await unmatched(client, subscription="all") == []
    events = server.mongo.collection("events")
    assert await events.count_documents({"state": "pending", "type": "Encounter"}) == 0
    assert await replay(pair) == {"decided": 0, "unmatched": 2}

    await put(client, value_set())
    await subscribe(pair, asking, "w1")
    # The server's own round comes by meanwhile, and takes nothing out of the operator's hands.
    rounds = [server.worker.rematching.replay_due() for _ in range(20)]
    replayed, *_ = await asyncio.gather(replay(pair, subscription="w1"), paced(rounds))
    assert replayed == {"decided": 2, "unmatched": 0}
    assert paths(receiver)[4:] == ["/wards", "/wards"]
    assert await unmatched(client) == []
    found = (await client.get(f"{ADMIN}/deliveries?subscription=w1")).json()["deliveries"]
    told = [(row["number"], row["focus"]) for row in reversed(found)]
    assert told == [
        (1, "Encounter/e1/_history/1"),
        (2, "Encounter/e2/_history/1"),
        (3, "Encounter/e2/_history/2"),
    ]


@pytest.mark.slow
async def test_criteria_that_are_known_to_be_at_fault_are_not_settled_for_each_event(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = pair
    await put(client, value_set())
    await subscribe(pair, classic(f"Encounter?type:in={VALUE_SET}"), "w1")
    await client.delete("/ValueSet/stays")
    await server.worker.drain()
    await happen(pair, stay("e1"))
    settled = []
    fault = criteria_check.fault

    async def noted(store: Any, criteria: Any, settings: Any) -> Any:
        settled.append(criteria)
        return await fault(store, criteria, settings)

    monkeypatch.setattr(criteria_check, "fault", noted)
    await happen(pair, stay("e2"), stay("e3"))
    assert settled == []
    assert await unmatched(client) == [
        ("Subscription/w1", f"Encounter/e{number}/_history/1", CANNOT) for number in (1, 2, 3)
    ]


def test_what_is_set_aside_is_the_event_with_all_that_it_was_raised_for() -> None:
    """A topic that it is for alone, with the trigger, the context and the providers: judged again, it is no other."""
    at = datetime(2026, 11, 21, tzinfo=UTC)
    plain = Event(ObjectId(), "Encounter", "e1", 2, "update", at, None, None)
    raised = replace(
        plain,
        topic=TOPIC,
        trigger={"code": "late"},
        context=("Task/t1",),
        only_for=("Organization/o1",),
    )
    for_it: Document = {
        "topic": TOPIC,
        "trigger": {"code": "late"},
        "context": ["Task/t1"],
        "only_for": ["Organization/o1"],
    }
    same = {"type": "Encounter", "id": "e1", "version": 2, "method": "update", "at": at}
    for event, expected in ((plain, {}), (raised, for_it)):
        found, values = row_of(event, Failure(TOPIC, "Exception"), at)
        row: Any = {**found, **values}
        assert event_row(row) == {"_id": event.id, **same, **expected}


@pytest.mark.slow
async def test_what_waits_is_matched_without_being_asked_for(
    pair: Pair, receiver: Receiver
) -> None:
    server, client = pair
    await put(client, value_set())
    asking = classic(f"Encounter?type:in={VALUE_SET}", f"{receiver.url}/wards")
    await subscribe(pair, asking, "w1")
    await client.delete("/ValueSet/stays")
    await happen(pair, stay("e1"), stay("e1", status="finished"))
    assert len(await unmatched(client)) == 2
    await put(client, value_set())
    await subscribe(pair, asking, "w1")
    await receiver.wait(2, events=False)
    await server.worker.drain()
    assert await unmatched(client) == []


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["off", "deleted"])
async def test_what_waits_for_a_subscription_ends_with_it(
    pair: Pair, receiver: Receiver, ends: str
) -> None:
    server, client = pair
    await put(client, value_set())
    asking = classic(f"Encounter?type:in={VALUE_SET}", f"{receiver.url}/wards")
    await subscribe(pair, asking, "w1")
    await client.delete("/ValueSet/stays")
    await happen(pair, stay("e1"))
    assert len(await unmatched(client)) == 1
    if ends == "off":
        await put(client, {**asking, "id": "w1", "status": "off"})
    else:
        await client.delete("/Subscription/w1")
    await server.worker.drain()
    assert await unmatched(client) == []


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("%current.trace('told').exists()", "trace"),
        ("'" + "a" * 40 + "!'.matches('(a+)+$')", "takes too long"),
    ],
    ids=["prints", "without-end"],
)
async def test_an_expression_that_may_not_be_evaluated_is_refused(
    client: httpx.AsyncClient, expression: str, reason: str
) -> None:
    answer = await client.put(f"{ADMIN}/topics/checked", json=topic(expression))
    assert answer.status_code == 422
    assert reason in answer.text


@pytest.mark.slow
async def test_a_topic_that_raises_silences_its_subscriptions_alone(
    pair: Pair, receiver: Receiver
) -> None:
    """The record that it raises on is set aside for the topic once, however many subscribe to it."""
    _, client = pair
    assert (await client.put(f"{ADMIN}/topics/checked", json=topic())).status_code == 201
    for name in ("one", "two"):
        asked = {**topic_based(endpoint=f"{receiver.url}/{name}"), "criteria": TOPIC}
        await subscribe(pair, asked, name)
    await subscribe(pair, topic_based(endpoint=f"{receiver.url}/admissions"), "admissions")
    await subscribe(pair, classic("Encounter?", f"{receiver.url}/all"), "all")
    receiver.requests.clear()
    odd = stay("odd", identifier=[{"value": "a7"}])
    await happen(pair, odd, stay("even"))
    assert sorted(paths(receiver)) == [
        *("/admissions", "/admissions", "/all", "/all", "/one", "/two")
    ]
    assert await unmatched(client) == [(TOPIC, "Encounter/odd/_history/1", "Exception")]
    assert await status_of(client, "one") == ("active", None)

    # Whatever comes of the younger version, it does not go out before the older one.
    await happen(pair, stay("odd", status="onleave"))
    assert [judge for judge, _, _ in await unmatched(client)] == [TOPIC, TOPIC]
    receiver.requests.clear()
    mended = topic("%current.status.exists()")
    assert (await client.put(f"{ADMIN}/topics/checked", json=mended)).status_code == 200
    assert await replay(pair, focus="Encounter/odd") == {"decided": 2, "unmatched": 0}
    assert sorted(paths(receiver)) == ["/one", "/one", "/two", "/two"]
    rows = (await client.get(f"{ADMIN}/deliveries?subscription=one")).json()["deliveries"]
    assert [(row["number"], row["focus"]) for row in rows] == [
        (3, "Encounter/odd/_history/2"),
        (2, "Encounter/odd/_history/1"),
        (1, "Encounter/even/_history/1"),
    ]


@pytest.mark.slow
async def test_a_subscription_whose_topic_is_retired_says_so(
    pair: Pair, receiver: Receiver
) -> None:
    server, client = pair
    await client.put(f"{ADMIN}/topics/checked", json=topic("true"))
    asked = {**topic_based(endpoint=f"{receiver.url}/one"), "criteria": TOPIC}
    await subscribe(pair, asked, "one")
    retired = {**topic("true"), "status": "retired"}
    assert (await client.put(f"{ADMIN}/topics/checked", json=retired)).status_code == 200
    await server.worker.run_once()
    assert await status_of(client, "one") == ("error", "criteria: the topic was retired")
    await client.put(f"{ADMIN}/topics/checked", json=topic("true"))
    await subscribe(pair, asked, "one")
    await happen(pair, stay("e1"))
    assert len(receiver.events) == 1


@pytest.mark.slow
async def test_a_record_that_criteria_fail_on_puts_nobody_into_error(
    pair: Pair, receiver: Receiver
) -> None:
    """A Patient's search fields are damaged: those whose criteria lead there cannot be judged, all others can."""
    server, client = pair
    chain = "Encounter?patient.general-practitioner=Organization/north"
    for name, criteria in {
        "c1": chain,
        "c2": chain,
        "c3": "Encounter?patient.birthdate=lt1950&status=in-progress",
        "c4": "Encounter?status=in-progress",
    }.items():
        await subscribe(pair, classic(criteria, f"{receiver.url}/{name}"), name)
    patients, damaged = server.mongo.collection("Patient"), {"_id": "pn"}
    before = await patients.find_one(damaged)
    broken = {"terms": [*before["terms"], 5], "dates": {"birthdate": 5}}
    await patients.update_one(damaged, {"$set": broken})
    await happen(pair, stay("e1", patient="pn"))
    assert paths(receiver) == ["/c4"]
    judges = [judge for judge, _, _ in await unmatched(client)]
    assert sorted(judges) == [
        "Encounter >patient>Patient>",
        "Subscription/c3",
    ]
    assert {await status_of(client, name) for name in ("c1", "c2", "c3")} == {("active", None)}
    assert await replay(pair) == {"decided": 0, "unmatched": 2}

    mended = {**before, "dates": {"birthdate": []}}
    await patients.replace_one(damaged, mended)
    await client.put("/Patient/pn", json=(await client.get("/Patient/pn")).json() | OLD)
    assert await replay(pair) == {"decided": 2, "unmatched": 0}
    assert sorted(paths(receiver)) == ["/c1", "/c2", "/c3", "/c4"]


@pytest.mark.slow
async def test_an_event_that_cannot_be_read_is_set_aside_for_everybody(
    pair: Pair, receiver: Receiver
) -> None:
    """Its process died before it was matched, and its version is damaged; the others of that process are told."""
    server, client = pair
    await subscribe(pair, classic("Encounter?", f"{receiver.url}/all"), "all")
    server.store.listeners.remove(server.worker._committed)
    await put(client, stay("damaged"), stay("whole"))
    versions, damaged = server.mongo.collection("versions"), {"_id.i": "damaged"}
    text = (await versions.find_one(damaged))["text"]
    await versions.update_one(damaged, {"$set": {"text": "{"}})
    # As an earlier version has left it after its last try.
    left = {"owner": "gone", "lease_until": server.mongo.now(), "attempts": 25}
    events = server.mongo.collection("events")
    await events.update_many({"state": "pending"}, {"$set": left})
    await receiver.wait(1, events=False)
    await server.worker.drain()
    ((judge, focus, reason),) = await unmatched(client)
    assert (judge, focus) == ("all", "Encounter/damaged/_history/1")
    assert reason
    await versions.update_one(damaged, {"$set": {"text": text}})
    assert await replay(pair, focus="Encounter/damaged") == {"decided": 1, "unmatched": 0}
    assert len(receiver.requests) == 2


@pytest.mark.slow
async def test_a_person_is_asked_until_the_cause_is_gone(pair: Pair, receiver: Receiver) -> None:
    """Of each cause, also while the Task about another cannot be read any more."""
    server, client = pair
    context = server.engine.context
    await put(client, value_set())
    asking = classic(f"Encounter?type:in={VALUE_SET}", f"{receiver.url}/wards")
    await subscribe(pair, asking, "w1")
    await client.delete("/ValueSet/stays")
    await client.put(f"{ADMIN}/topics/checked", json=topic())
    topical = {**topic_based(endpoint=f"{receiver.url}/one"), "criteria": TOPIC}
    await subscribe(pair, topical, "one")
    await happen(pair, stay("e1", identifier=[{"value": "a7"}]), stay("e2"))
    await long_ago(server)
    await unmatched_review.review(context)
    assert (await replay(pair))["decided"] == 0
    await unmatched_review.review(context)
    assert await review_tasks(client) == [
        ("Encounter/e1", "requested"),
        ("Subscription/w1", "requested"),
    ]
    await client.put(f"{ADMIN}/topics/checked", json=topic("true"))
    await replay(pair, focus="Encounter/e1")
    found = (await client.get("/Task", params={"focus": "Subscription/w1"})).json()
    async with spoilt(server.mongo, f"Task/{found['entry'][0]['resource']['id']}"):
        await unmatched_review.review(context)
    assert await review_tasks(client) == [
        ("Encounter/e1", "completed"),
        ("Subscription/w1", "requested"),
    ]


async def long_ago(server: Server) -> None:
    """What was set aside was so a while ago."""
    past = server.mongo.now() - timedelta(minutes=1)
    rows = server.mongo.collection("unmatched")
    await rows.update_many({}, {"$set": {"created_at": past}})


async def test_events_that_wait_long_in_a_busy_process_are_not_taken_for_abandoned(
    pair: Pair, receiver: Receiver
) -> None:
    """Twelve seconds' worth of work: the sweep comes by before the intake does."""
    server, client = pair
    await subscribe(pair, classic("Encounter?", f"{receiver.url}/all"), "all")
    recorder = server.worker._intake._recorder
    events = server.mongo.collection("events")
    async with recorder.lock:  # the intake is busy
        await put(client, stay("e1"))
        now = server.mongo.now()
        old = {"lease_until": now - timedelta(seconds=2), "at": now - timedelta(seconds=12)}
        await events.update_many({"state": "pending"}, {"$set": old})
        for event in server.worker._intake._queue:
            event.at = old["at"]
        await server.worker._intake.add_abandoned()
        (row,) = await events.find({"state": "pending"}).to_list(None)
        assert row["attempts"] == 0
        assert row["lease_until"] > now
        assert len(server.worker._intake._queue) == 1
    await server.worker.drain()
    assert paths(receiver) == ["/all"]


@pytest.mark.parametrize(
    ("query", "expression"),
    [
        pytest.param("state=done", "state", id="state"),
        pytest.param("nonsense=1", "nonsense", id="unknown"),
        pytest.param("focus=e1", "focus", id="focus"),
        pytest.param("_count=x", "_count", id="count"),
        pytest.param("_cursor=x", "_cursor", id="cursor"),
    ],
)
async def test_what_is_not_understood_is_refused(
    client: httpx.AsyncClient, query: str, expression: str
) -> None:
    answer = await client.get(f"{ADMIN}/events?{query}")
    assert answer.status_code == 400
    assert answer.json()["issue"][0]["expression"] == [expression]


async def test_all_of_it_has_to_be_asked_for(client: httpx.AsyncClient) -> None:
    assert (await client.post(f"{ADMIN}/events/replay", headers=JSON)).status_code == 400


@pytest.mark.processes
@pytest.mark.slow
async def test_the_command_lists_and_replays(mongod: str) -> None:
    settings = make_settings(mongod)
    named = {"mongodb_uri": mongod, "mongodb_database": settings.mongodb_database}
    env = environment(**named, egress_allow="127.0.0.1")
    async with receiving() as receiver:
        with started("FHIR base: ", "serve", "--port", "0", env=env) as (_, base):
            url = base.removesuffix("/fhir")
            async with httpx.AsyncClient(base_url=base) as client:
                await client.put(f"{url}/admin/topics/checked", json=topic())
                asked = {**topic_based(endpoint=receiver.url), "criteria": TOPIC, "id": "s1"}
                await put(client, asked)
                await receiver.wait(1, events=False)
                await put(client, stay("e1", identifier=[{"value": "a7"}]))
                while not (await client.get(f"{url}/admin/events")).json()["events"]:
                    pass
                listed = carerelay("events", "list", "--url", url)
                assert f"{TOPIC} " in listed.stdout
                assert "Encounter/e1/_history/1" in listed.stdout
                still = carerelay("events", "replay", "--all", "--url", url)
                assert "1 still unmatched" in still.stdout
                await client.put(f"{url}/admin/topics/checked", json=topic("true"))
                done = carerelay("events", "replay", "--judge", TOPIC, "--url", url)
                assert "1 matched again" in done.stdout, done.stdout
                await receiver.wait(1)
                assert carerelay("events", "replay", "--url", url).returncode != 0
