"""Visits as hospitals send them: through any door, late, twice, out of order and side by side (docs/encounters.md)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.builders.reactions import make_due
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import classic, topic_based
from tests.builders.visit_messages import Message, deliveries, message, visits
from tests.conftest import Server, make_settings, running

Pair = tuple[Server, httpx.AsyncClient]
Send = Callable[[httpx.AsyncClient, str, Message], Awaitable[httpx.Response]]

VISITS = "https://hospital.example/visits"
APPLIED = "CareRelay-Applied"


@pytest.fixture(scope="module")
async def pair(mongod: str) -> AsyncIterator[Pair]:
    async with running(make_settings(mongod)) as pair:
        await pair[1].put("/Patient/p1", json={"resourceType": "Patient", "id": "p1"})
        yield pair


def told(visit: str, event: str, hour: float, **more: Any) -> Message:
    """A message about the visit of that number."""
    known = {
        "identifier": [{"system": VISITS, "value": visit}],
        "subject": {"reference": "Patient/p1"},
    }
    return {**message(event, hour), **known, **more}


async def put(client: httpx.AsyncClient, visit: str, sent: Message) -> httpx.Response:
    return await client.put(f"/Encounter/{visit}", json={**sent, "id": visit})


async def put_by_number(client: httpx.AsyncClient, visit: str, sent: Message) -> httpx.Response:
    return await client.put("/Encounter", params={"identifier": f"{VISITS}|{visit}"}, json=sent)


async def post_if_none_exist(
    client: httpx.AsyncClient, visit: str, sent: Message
) -> httpx.Response:
    headers = {"If-None-Exist": f"identifier={VISITS}|{visit}"}
    return await client.post("/Encounter", json=sent, headers=headers)


def transaction(request: dict[str, str], sent: Message, kind: str = "transaction") -> Message:
    entry = {"request": request, "resource": sent}
    return {"resourceType": "Bundle", "type": kind, "entry": [entry]}


async def transaction_put(client: httpx.AsyncClient, visit: str, sent: Message) -> httpx.Response:
    request = {"method": "PUT", "url": f"Encounter/{visit}"}
    return await client.post("", json=transaction(request, {**sent, "id": visit}))


async def transaction_by_number(
    client: httpx.AsyncClient, visit: str, sent: Message
) -> httpx.Response:
    request = {"method": "PUT", "url": f"Encounter?identifier={VISITS}|{visit}"}
    return await client.post("", json=transaction(request, sent))


async def transaction_post(client: httpx.AsyncClient, visit: str, sent: Message) -> httpx.Response:
    request = {
        "method": "POST",
        "url": "Encounter",
        "ifNoneExist": f"identifier={VISITS}|{visit}",
    }
    return await client.post("", json=transaction(request, sent))


async def batch_put(client: httpx.AsyncClient, visit: str, sent: Message) -> httpx.Response:
    request = {"method": "PUT", "url": f"Encounter/{visit}"}
    return await client.post("", json=transaction(request, {**sent, "id": visit}, "batch"))


DOORS = [
    pytest.param(door, id=door.__name__)
    for door in (
        put,
        put_by_number,
        post_if_none_exist,
        transaction_put,
        transaction_by_number,
        transaction_post,
        batch_put,
    )
]


async def the_visit(client: httpx.AsyncClient, visit: str) -> Message:
    """The one Encounter with that visit number."""
    found = await client.get("/Encounter", params={"identifier": f"{VISITS}|{visit}"})
    (entry,) = found.json()["entry"]
    return dict(entry["resource"])


# What is asked of a visit itself; who is to be told of it is another matter.
REASONS = {
    "cancel-without-admission",
    "late-admission",
    "merged-patient",
    "no-subject",
    "unknown-patient",
}


async def reviews(pair: Pair, encounter: str) -> list[str]:
    """The reasons of the review Tasks about an Encounter."""
    await pair[0].engine.drain()
    found = (await pair[1].get("/Task", params={"focus": f"Encounter/{encounter}"})).json()
    tasks = [entry["resource"] for entry in found.get("entry", ())]
    return sorted(REASONS.intersection(task["code"]["coding"][0]["code"] for task in tasks))


def issue(outcome: Message) -> str:
    (only,) = outcome["issue"]
    assert (only["severity"], only["code"]) == ("information", "informational")
    return str(only["diagnostics"])


@pytest.mark.parametrize("send", DOORS)
async def test_an_admission_after_its_discharge_fills_in_what_was_unknown(
    pair: Pair, send: Send
) -> None:
    _, client = pair
    visit = f"fill-{send.__name__}".replace("_", "-")
    assert (await send(client, visit, told(visit, "A03", 50))).is_success
    answer = await send(client, visit, told(visit, "A01", 2))
    assert answer.status_code == 200
    stay = await the_visit(client, visit)
    assert stay["status"] == "finished"
    assert stay["period"] == {
        "start": message("A01", 2)["period"]["start"],
        "end": message("A03", 50)["period"]["end"],
    }
    if answer.json()["resourceType"] == "Bundle":
        (entry,) = answer.json()["entry"]
        assert "only what they do not mention" in issue(entry["response"]["outcome"])
    else:
        assert answer.headers[APPLIED] == "filled"
        assert answer.json() == stay


async def test_a_conditional_create_that_is_a_message_says_where_its_visit_is(pair: Pair) -> None:
    first = await post_if_none_exist(pair[1], "posted", told("posted", "A01", 1))
    second = await post_if_none_exist(pair[1], "posted", told("posted", "A02", 2))
    assert (first.status_code, second.status_code) == (201, 200)
    assert second.headers["Location"] == first.headers["Location"].replace("/1", "/2")


async def test_a_conditional_create_without_event_time_changes_nothing(pair: Pair) -> None:
    """As FHIR has it."""
    plain = {**told("plain", "A01", 1), "extension": []}
    del plain["extension"]
    await post_if_none_exist(pair[1], "plain", plain)
    again = await post_if_none_exist(pair[1], "plain", {**plain, "status": "finished"})
    assert again.status_code == 200
    assert again.headers["ETag"] == 'W/"1"'
    assert APPLIED not in again.headers


async def test_two_messages_about_one_visit_in_one_transaction_are_refused(pair: Pair) -> None:
    request = {"method": "POST", "url": "Encounter", "ifNoneExist": f"identifier={VISITS}|double"}
    await put_by_number(pair[1], "double", told("double", "A01", 1))
    bundle = transaction(request, told("double", "A02", 2))
    bundle["entry"].append({"request": request, "resource": told("double", "A03", 3)})
    assert (await pair[1].post("", json=bundle)).status_code == 400


async def test_an_older_message_with_nothing_new_is_kept_in_the_history_only(pair: Pair) -> None:
    _, client = pair
    await put(client, "late", told("late", "A03", 50, period={"start": "2026-11-01"}))
    before = (await client.get("/Encounter/late")).json()
    late = told("late", "A02", 20)
    answer = await client.put(
        "/Encounter/late",
        json={**late, "id": "late"},
    )
    assert answer.status_code == 202
    assert answer.headers[APPLIED] == "history-only"
    assert "kept in the history" in issue(answer.json())
    now = (await client.get("/Encounter/late")).json()
    assert {**now, "meta": None} == {**before, "meta": None}
    history = (await client.get("/Encounter/late/_history")).json()["entry"]
    versions = [entry["resource"]["meta"]["versionId"] for entry in history]
    assert versions == ["3", "2", "1"]
    assert answer.headers["ETag"] == 'W/"3"'
    assert history[0]["resource"] == now
    passing = (await client.get("/Encounter/late/_history/2")).json()
    assert history[1]["resource"] == passing
    assert {**passing, "meta": None} == {**late, "id": "late", "meta": None}
    times = [entry["resource"]["meta"]["lastUpdated"] for entry in history]
    assert times == sorted(times, reverse=True)
    assert len(set(times)) == 3


async def test_what_is_known_already_makes_no_version(pair: Pair) -> None:
    """Repetitions of the newest message, of an older one, and of one that came late."""
    _, client = pair
    sent = [told("again", event, hour) for event, hour in (("A01", 1), ("A03", 9), ("A02", 5))]
    for each in sent:
        await put(client, "again", each)
    before = (await client.get("/Encounter/again/_history")).json()["total"]
    for each in (*sent, *reversed(sent)):
        answer = await put(client, "again", each)
        assert (answer.status_code, answer.headers[APPLIED]) == (200, "repeated")
    after = (await client.get("/Encounter/again/_history")).json()["total"]
    assert after == before


async def test_a_late_message_tells_nobody_anything(pair: Pair, receiver: Receiver) -> None:
    """Neither a topic nor plain criteria that the current state still meets."""
    server, client = pair
    for body in (
        topic_based("patient=Patient/quiet", endpoint=receiver.url),
        classic("Encounter?patient=Patient/quiet&status=finished,cancelled", receiver.url),
    ):
        assert (await client.post("/Subscription", json=body)).status_code == 201
    await server.worker.drain()
    handshakes = len(receiver.requests)
    quiet = {"subject": {"reference": "Patient/quiet"}}
    ends = {"period": {"start": "2026-11-01", "end": "2026-11-03"}}
    await put(client, "quiet", told("quiet", "A03", 50, **quiet, **ends))
    await server.worker.drain()
    assert len(receiver.requests) == handshakes + 1  # the plain one, of the discharge
    late = await put(client, "quiet", told("quiet", "A01", 2, **quiet))
    assert late.headers[APPLIED] == "history-only"
    await server.worker.drain()
    assert len(receiver.requests) == handshakes + 1
    newer = told("quiet", "A03", 60, **quiet, **ends, reasonCode=[{"text": "falls"}])
    await put(client, "quiet", newer)
    await server.worker.drain()
    assert len(receiver.requests) == handshakes + 2  # and what follows is told again


async def test_a_late_admission_asks_for_a_look_once(pair: Pair) -> None:
    await put(pair[1], "late-a01", told("late-a01", "A03", 50))
    assert await reviews(pair, "late-a01") == []
    await put(pair[1], "late-a01", told("late-a01", "A01", 2))
    await put(pair[1], "late-a01", told("late-a01", "A02", 3))
    assert await reviews(pair, "late-a01") == ["late-admission"]


async def test_a_late_transfer_of_a_known_admission_asks_for_nothing(pair: Pair) -> None:
    for event, hour in (("A01", 1), ("A03", 9), ("A02", 5)):
        await put(pair[1], "late-a02", told("late-a02", event, hour))
    assert await reviews(pair, "late-a02") == []


async def test_a_cancel_before_its_admission_stays_and_is_looked_at(
    pair: Pair, receiver: Receiver
) -> None:
    server, client = pair
    body = topic_based("patient=Patient/p1", endpoint=receiver.url)
    await client.post("/Subscription", json=body)
    admitted = told("a11", "A01", 2)
    cancelled = {**told("a11", "A11", 4), "period": admitted["period"]}
    await put(client, "a11", cancelled)
    answer = await put(client, "a11", admitted)
    assert answer.headers[APPLIED] == "history-only"
    assert (await client.get("/Encounter/a11")).json()["status"] == "cancelled"
    assert await reviews(pair, "a11") == ["cancel-without-admission"]
    await server.worker.drain()
    assert receiver.events == []


async def test_a_cancel_after_its_admission_is_in_order(pair: Pair) -> None:
    await put(pair[1], "in-order", told("in-order", "A01", 1))
    await put(pair[1], "in-order", told("in-order", "A11", 2))
    assert await reviews(pair, "in-order") == []


async def test_a_cancelled_discharge_takes_its_end_along(pair: Pair) -> None:
    _, client = pair
    for event, hour in (("A01", 1), ("A13", 11), ("A03", 9)):
        await put(client, "a13", told("a13", event, hour))
    stay = (await client.get("/Encounter/a13")).json()
    assert stay["status"] == "in-progress"
    assert stay["period"] == message("A01", 1)["period"]
    assert "hospitalization" not in stay


async def test_messages_without_event_time_are_ordered_by_their_periods(pair: Pair) -> None:
    _, client = pair
    whole = {
        "resourceType": "Encounter",
        "id": "derived",
        "class": {"code": "IMP"},
        "subject": {"reference": "Patient/p1"},
    }
    finished = {
        **whole,
        "status": "finished",
        "period": {"start": "2026-11-01T07:00:00Z", "end": "2026-11-03T07:00:00Z"},
    }
    active = {**whole, "status": "in-progress", "period": {"start": "2026-11-01T07:00:00Z"}}
    await client.put("/Encounter/derived", json=finished)
    answer = await client.put("/Encounter/derived", json=active)
    assert (answer.status_code, answer.headers[APPLIED]) == (202, "history-only")
    reopened = {
        **active,
        "statusHistory": [
            {
                "status": "finished",
                "period": {"start": "2026-11-03T07:00:00Z", "end": "2026-11-03T07:20:00Z"},
            }
        ],
    }
    answer = await client.put("/Encounter/derived", json=reopened)
    assert (answer.headers[APPLIED], answer.json()["status"]) == ("all", "in-progress")


@pytest.mark.slow
async def test_messages_side_by_side_end_as_if_one_by_one(mongod: str) -> None:
    """Two processes, each with a connection of its own, on one database."""
    shared = make_settings(mongod)
    sent = [
        told("many", event, hour, location=[{"location": {"display": f"bed {hour}"}}])
        for event, hour in (("A04", 0), ("A01", 1), ("A02", 2), ("A02", 3), ("A03", 4))
    ]
    async with running(shared) as (_, one), running(shared) as (_, other):
        answers = await asyncio.gather(
            *(
                door(client, "many", each)
                for door in (put_by_number, post_if_none_exist, transaction_by_number)
                for client in (one, other)
                for each in sent
            )
        )
        assert {answer.status_code for answer in answers} <= {200, 201, 202}
        stay = await the_visit(one, "many")
        history = (await one.get(f"/Encounter/{stay['id']}/_history?_count=100")).json()["entry"]
    assert stay["status"] == "finished"
    assert stay["location"] == [{"location": {"display": "bed 4"}}]
    assert stay["period"]["start"] == message("A01", 1)["period"]["start"]
    versions = [int(entry["resource"]["meta"]["versionId"]) for entry in history]
    assert versions == list(range(len(versions), 0, -1))


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(
            lambda client: client.patch(
                "/Encounter/edit-{}",
                content='[{"op": "replace", "path": "/status", "value": "onleave"}]',
                headers={"Content-Type": "application/json-patch+json"},
            ),
            id="patch",
        ),
        pytest.param(
            lambda client: client.put(
                "/Encounter/edit-{}",
                json={**told("edit", "A01", 1), "id": "edit-{}", "status": "onleave"},
                headers={"If-Match": 'W/"1"'},
            ),
            id="if-match",
        ),
        pytest.param(
            lambda client: client.put(
                "/Encounter/edit-{}",
                json={
                    "resourceType": "Encounter",
                    "id": "edit-{}",
                    "status": "onleave",
                    "class": {"code": "IMP"},
                },
            ),
            id="no-event-time",
        ),
    ],
)
async def test_a_persons_edit_is_taken_as_it_is_and_outlives_older_messages(
    pair: Pair, edit: Callable[[Any], Awaitable[httpx.Response]], request: pytest.FixtureRequest
) -> None:
    _, client = pair
    name = f"edit-{request.node.callspec.id}"

    class Named:
        """The client, with the test's own id in place of `edit-{}`."""

        def __getattr__(self, verb: str) -> Any:
            def call(url: str, **more: Any) -> Any:
                if "json" in more:
                    more["json"] = {**more["json"], "id": name}
                return getattr(client, verb)(url.replace("edit-{}", name), **more)

            return call

    await put(client, name, told(name, "A01", 1))
    answer = await edit(Named())
    assert (answer.status_code, answer.json()["status"]) == (200, "onleave")
    assert APPLIED not in answer.headers
    await put(client, name, told(name, "A02", 2))
    assert (await client.get(f"/Encounter/{name}")).json()["status"] == "onleave"


async def test_the_security_label_of_a_late_message_is_kept(pair: Pair) -> None:
    _, client = pair
    label = {"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}
    await put(client, "label", told("label", "A03", 9))
    await put(client, "label", told("label", "A02", 2, meta={"security": [label]}))
    stay = (await client.get("/Encounter/label")).json()
    assert stay["meta"]["security"] == [label]
    assert stay["status"] == "finished"


PATIENT = {"resourceType": "Patient"}


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        pytest.param(None, ["no-subject"], id="none"),
        pytest.param({"reference": "Patient/nobody"}, ["unknown-patient"], id="nowhere"),
        pytest.param({"reference": "urn:uuid:0"}, ["unknown-patient"], id="elsewhere"),
        pytest.param({"display": "A. Nonymous"}, ["unknown-patient"], id="name-alone"),
        pytest.param(
            {"identifier": {"system": "urn:mrn", "value": "0"}},
            ["unknown-patient"],
            id="unknown-number",
        ),
        pytest.param({"identifier": {"system": "urn:mrn", "value": "1"}}, [], id="known-number"),
        pytest.param({"reference": "Patient/p1"}, [], id="known"),
        pytest.param({"reference": "Group/ward"}, [], id="group"),
        pytest.param({"reference": "Patient/merged"}, ["merged-patient"], id="merged"),
        pytest.param({"reference": "Patient/inactive"}, ["merged-patient"], id="inactive"),
    ],
)
async def test_whom_a_visit_is_about_is_looked_at_where_nobody_knows(
    pair: Pair, subject: Message | None, expected: list[str], request: pytest.FixtureRequest
) -> None:
    _, client = pair
    numbered = {"identifier": [{"system": "urn:mrn", "value": "1"}]}
    link = {"link": [{"type": "replaced-by", "other": {"reference": "Patient/p1"}}]}
    for id_, more in (("numbered", numbered), ("merged", link), ("inactive", {"active": False})):
        await client.put(f"/Patient/{id_}", json={**PATIENT, "id": id_, **more})
    visit = f"subject-{request.node.callspec.id}"
    sent = told(visit, "A01", 1)
    sent = {**sent, "subject": subject} if subject else {**sent}
    if subject is None:
        del sent["subject"]
    assert (await put(client, visit, sent)).status_code == 201
    assert await reviews(pair, visit) == expected


async def test_loaded_records_of_long_ago_ask_for_nothing(pair: Pair) -> None:
    old = {"period": {"start": "2019-03-01", "end": "2019-03-04"}}
    for status in ("finished", "cancelled"):
        record = {
            "resourceType": "Encounter",
            "status": status,
            "class": {"code": "IMP"},
            "statusHistory": [{"status": "in-progress", "period": old["period"]}],
            **old,
        }
        await put(pair[1], f"old-{status}", record)
        assert await reviews(pair, f"old-{status}") == []


@pytest.mark.slow
@given(visits(), st.data())
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_any_order_of_arrival_ends_in_the_same_visit(
    pair: Pair, visit: list[Message], data: st.DataObject
) -> None:
    _, client = pair
    arrived = data.draw(deliveries(visit))
    number = data.draw(st.uuids()).hex
    for messages, name in ((visit, f"a-{number}"), (arrived, f"b-{number}")):
        for each in messages:
            assert (await put(client, name, each)).status_code in (200, 201, 202)
    straight, crooked = [
        (await client.get(f"/Encounter/{name}")).json() for name in (f"a-{number}", f"b-{number}")
    ]
    own = {"id": None, "meta": None}
    assert {**crooked, **own} == {**straight, **own}


TOPICS = ("admission", "snf-admission", "discharge", "transfer", "cancelled")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arrived", "expected"),
    [
        pytest.param(["A01 1", "A03 9"], ["admission", "discharge"], id="in-order"),
        pytest.param(["A03 9", "A01 1"], ["discharge"], id="discharge-first"),
        pytest.param(["A01 1", "A03 9", "A02 5"], ["admission", "discharge"], id="late-transfer"),
        pytest.param(
            ["A01 1", "A11 9", "A02 5"], ["admission", "cancelled"], id="late-of-cancelled"
        ),
        pytest.param(["A11 9", "A01 1"], [], id="cancel-first"),
        pytest.param(["A01 1", "A13 11", "A03 9"], ["admission"], id="discharge-taken-back-first"),
        pytest.param(["A01 1", "A03 9", "A01 1"], ["admission", "discharge"], id="twice"),
    ],
)
async def test_notices_never_contradict_what_is_known_to_be_later(
    pair: Pair, receiver: Receiver, arrived: list[str], expected: list[str], request: Any
) -> None:
    """The transfer (A02) leads to another hospital, which would be news if it came in time."""
    server, client = pair
    name = f"notices-{request.node.callspec.id}"
    for topic in TOPICS:
        body = topic_based(f"patient=Patient/{name}", endpoint=f"{receiver.url}/{topic}")
        body["criteria"] = body["criteria"].replace("encounter-admission", f"encounter-{topic}")
        assert (await client.post("/Subscription", json=body)).status_code == 201
    await server.worker.drain()
    for text in arrived:
        event, hour = text.split()
        more = {
            "subject": {"reference": f"Patient/{name}"},
            "serviceProvider": {
                "reference": f"Organization/{'other' if event == 'A02' else 'first'}"
            },
        }
        await put(client, name, told(name, event, float(hour), **more))
        await server.worker.drain()
    heard = [received.path.removeprefix("/") for received in receiver.events]
    assert heard == expected


@pytest.mark.slow
async def test_a_late_admission_is_looked_at_though_its_process_died(mongod: str) -> None:
    shared = make_settings(mongod)
    async with running(shared) as (server, client):
        await put(client, "died", told("died", "A03", 9, period={"start": "2026-11-01"}))
        await server.engine.drain()
        await server.engine.reactions.stop()  # as if it had died after the commit
        answer = await put(client, "died", told("died", "A01", 1))
        assert answer.headers[APPLIED] == "history-only"
        await make_due(server.mongo)
    async with running(shared) as (server, client):
        await server.engine.reactions.sweep()
        assert "late-admission" in await reviews((server, client), "died")
