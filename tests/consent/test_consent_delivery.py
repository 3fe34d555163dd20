"""Consents and labels, judged before an event is numbered and when it is sent: to a real endpoint, in the ledger."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pymongo.errors import AutoReconnect

from app.fhir.codes import RECIPIENT_KIND, SUBSCRIPTION_RECIPIENT
from app.fhir.ids import new_id
from app.runtime import batch_cache
from tests.builders.consents import PERIOD_OVER, actor, consent, deny, label, permit
from tests.builders.deliveries import make_due
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import classic, encounter, subscribed, topic_based
from tests.conftest import Server, make_settings, running

pytestmark = pytest.mark.mongo
Pair = tuple[Server, httpx.AsyncClient]
SECRET = "Meadow"  # a word of the content, which no ledger row may hold


@pytest.fixture(scope="module")
async def pair(mongod: str) -> AsyncIterator[Pair]:
    # Without the proof of notices: it reads what was told in its own time, and reads are counted here.
    settings = make_settings(mongod, test_clock=True, publish_notices=False)
    async with running(settings) as pair:
        yield pair


@pytest.fixture(autouse=True)
async def _no_others(pair: Pair) -> AsyncIterator[None]:
    yield
    found = (await pair[1].get("/Subscription", params={"_count": 1000})).json()
    for entry in found.get("entry", []):
        await pair[1].delete(f"/Subscription/{entry['resource']['id']}")
    await pair[0].worker.drain()


@pytest.fixture
async def patient(pair: Pair) -> str:
    """A member whom nobody else is about."""
    id_ = new_id()
    resource = {"resourceType": "Patient", "id": id_, "name": [{"family": SECRET}]}
    await put(pair, resource)
    return id_


async def put(pair: Pair, resource: dict[str, Any]) -> dict[str, Any]:
    url = f"/{resource['resourceType']}/{resource['id']}"
    response = await pair[1].put(url, json=resource)
    assert response.status_code in (200, 201), response.text
    stored: dict[str, Any] = response.json()
    return stored


async def agrees(pair: Pair, patient: str, given: dict[str, Any]) -> dict[str, Any]:
    """A Consent of the patient's own."""
    consent = {**given, "id": new_id(), "patient": {"reference": f"Patient/{patient}"}}
    return await put(pair, {**consent, "policyRule": given.get("policyRule", {"text": "Policy"})})


async def admitted(pair: Pair, patient: str, **more: Any) -> dict[str, Any]:
    stay = encounter(patient=patient, reasonCode=[{"text": SECRET}], **more)
    created = await pair[1].post("/Encounter", json=stay)
    assert created.status_code == 201, created.text
    await pair[0].worker.drain()
    encounter_: dict[str, Any] = created.json()
    return encounter_


async def row_of(pair: Pair, subscription: str) -> dict[str, Any]:
    deliveries = pair[0].mongo.collection("deliveries")
    (row,) = await deliveries.find({"subscription": subscription}).to_list(None)
    found: dict[str, Any] = row
    return found


def resources(received: Any) -> list[str]:
    """The types of the resources that a notice carries, its status aside."""
    entries = received.json["entry"][1:]
    return [each["resource"]["resourceType"] for each in entries if "resource" in each]


def told(recipient: str, **more: Any) -> dict[str, Any]:
    """A Subscription that says whom it tells."""
    named = {"url": SUBSCRIPTION_RECIPIENT, "valueReference": {"reference": recipient}}
    return {**topic_based(**more), "extension": [named]}


async def test_without_a_consent_the_whole_resource_is_told(
    pair: Pair, receiver: Receiver, patient: str
) -> None:
    await subscribed(pair, topic_based(endpoint=receiver.url, content="full-resource"))
    await admitted(pair, patient)
    (notice,) = await receiver.wait(1)
    assert sorted(resources(notice)) == ["Encounter", "Patient"]


async def test_what_a_patient_refuses_is_withheld_and_the_ledger_says_why_without_content(
    pair: Pair, receiver: Receiver, patient: str
) -> None:
    id_ = await subscribed(pair, topic_based(endpoint=receiver.url, content="full-resource"))
    given = await agrees(pair, patient, consent(provision=deny()))
    await admitted(pair, patient)
    assert receiver.events == []
    row = await row_of(pair, id_)
    assert (row["state"], row["reason"]) == (
        "suppressed",
        f"Withheld: consent-privacy Consent/{given['id']}",
    )
    assert row["attempts"] == []
    assert SECRET not in str(row)


async def test_a_lane_goes_on_after_what_was_withheld(
    pair: Pair, receiver: Receiver, patient: str
) -> None:
    await subscribed(pair, topic_based(endpoint=receiver.url))
    given = await agrees(pair, patient, consent(provision=deny()))
    await admitted(pair, patient)
    await put(pair, {**given, "status": "inactive"})
    second = await admitted(pair, patient)
    (notice,) = await receiver.wait(1)
    assert notice.focus.endswith(second["id"])
    assert notice.number == 1  # what was withheld is no event


async def test_the_ledger_has_the_events_by_number_and_then_what_was_withheld(
    pair: Pair, receiver: Receiver, patient: str
) -> None:
    id_ = await subscribed(pair, topic_based(endpoint=receiver.url))
    given = consent(provision=deny(), status="inactive")
    given = await agrees(pair, patient, given)
    expected: dict[str, int] = {}
    for number, status in ((1, "inactive"), (-2, "active"), (2, "inactive"), (-1, "active")):
        given = await put(pair, {**given, "status": status})
        expected[(await admitted(pair, patient))["id"]] = number
    found: list[str] = []
    page: dict[str, str] = {"subscription": id_, "_count": "1"}
    while "_cursor" in page or not found:
        answer = await pair[1].get("http://carerelay.test/admin/deliveries", params=page)
        (row,) = answer.json()["deliveries"]
        found.append(row["focus"].split("/")[1])
        following = answer.json().get("next")
        page = dict(httpx.URL(following).params) if following else {}
    assert [expected[each] for each in found] == [2, 1, -1, -2]


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(consent(provision=deny(), status="inactive"), id="inactive"),
        pytest.param(consent(provision=deny(), status="draft"), id="draft"),
        pytest.param(consent(provision=deny(), status="entered-in-error"), id="in error"),
        pytest.param(consent(provision=deny(period=PERIOD_OVER)), id="over"),
        pytest.param(consent(provision=permit()), id="a permission"),
        pytest.param(consent("case-management", provision=deny()), id="about something else"),
    ],
)
async def test_a_consent_that_does_not_count_changes_nothing(
    pair: Pair, receiver: Receiver, patient: str, given: dict[str, Any]
) -> None:
    await subscribed(pair, topic_based(endpoint=receiver.url, content="full-resource"))
    await agrees(pair, patient, given)
    await admitted(pair, patient)
    (notice,) = await receiver.wait(1)
    assert "Encounter" in resources(notice)


async def test_a_refusal_that_comes_between_event_and_retry_counts(
    pair: Pair, receiver: Receiver, patient: str
) -> None:
    receiver.answers([503])
    id_ = await subscribed(pair, topic_based(endpoint=receiver.url))
    await admitted(pair, patient)
    assert (await row_of(pair, id_))["state"] == "retrying"
    await agrees(pair, patient, consent("pcp-notification", provision=deny()))
    await make_due(pair[0].mongo)
    await pair[0].worker.run_once()
    row = await row_of(pair, id_)
    assert (row["state"], len(row["attempts"])) == ("suppressed", 1)
    assert row["reason"].startswith("Withheld: consent-pcp-notification Consent/")
    assert len(receiver.events) == 1


async def test_a_refusal_ends_with_its_period_by_the_clock(
    pair: Pair, receiver: Receiver, patient: str
) -> None:
    server = pair[0]
    tomorrow = (server.clock.now() + timedelta(days=1)).isoformat(timespec="seconds")
    id_ = await subscribed(pair, topic_based(endpoint=receiver.url))
    await agrees(pair, patient, consent(provision=deny(period={"end": tomorrow})))
    await admitted(pair, patient)
    assert (await row_of(pair, id_))["state"] == "suppressed"
    server.clock.advance(timedelta(days=2))
    try:
        await admitted(pair, patient)
    finally:
        server.clock.advance(-timedelta(days=2))
    assert len(await receiver.wait(1)) == 1


async def test_who_is_excepted_is_told(pair: Pair, receiver: Receiver, patient: str) -> None:
    role, practice, above = new_id(), new_id(), new_id()
    await put(pair, {"resourceType": "Organization", "id": above, "name": "Chain"})
    await put(
        pair,
        {
            "resourceType": "Organization",
            "id": practice,
            "name": "Practice",
            "partOf": {"reference": f"Organization/{above}"},
        },
    )
    await put(
        pair,
        {
            "resourceType": "PractitionerRole",
            "id": role,
            "organization": {"reference": f"Organization/{practice}"},
            "telecom": [{"system": "phone", "value": "555"}],
        },
    )
    mine = await subscribed(pair, told(f"PractitionerRole/{role}", endpoint=receiver.url))
    other = await subscribed(pair, told(f"Organization/{above}", endpoint=receiver.url))
    exception = permit(actor=actor(f"Organization/{practice}"))
    given = await agrees(pair, patient, consent(provision=deny(provision=[exception])))
    await admitted(pair, patient)
    assert (await row_of(pair, mine))["state"] == "delivered"
    assert (await row_of(pair, other))["state"] == "suppressed"

    await put(
        pair, {**given, "provision": permit(provision=[deny(actor=actor(f"Organization/{above}"))])}
    )
    await admitted(pair, patient)
    rows = pair[0].mongo.collection("deliveries").find({"subscription": {"$in": [mine, other]}})
    states = [row["state"] for row in await rows.to_list(None)]
    assert sorted(states) == ["delivered", "suppressed", "suppressed", "suppressed"]


async def test_a_role_belongs_to_the_practice_whichever_version_of_it_is_named(
    pair: Pair, receiver: Receiver, patient: str
) -> None:
    role, practice = new_id(), new_id()
    await put(pair, {"resourceType": "Organization", "id": practice, "name": "Practice"})
    await put(
        pair,
        {
            "resourceType": "PractitionerRole",
            "id": role,
            "organization": {"reference": f"Organization/{practice}/_history/1"},
            "telecom": [{"system": "phone", "value": "555"}],
        },
    )
    id_ = await subscribed(pair, told(f"PractitionerRole/{role}", endpoint=receiver.url))
    exception = permit(actor=actor(f"Organization/{practice}"))
    await agrees(pair, patient, consent(provision=deny(provision=[exception])))
    await admitted(pair, patient)
    assert (await row_of(pair, id_))["state"] == "delivered"


async def test_a_state_contract_is_kept_where_the_practice_is_refused(
    pair: Pair, receiver: Receiver, patient: str
) -> None:
    state = topic_based(endpoint=receiver.url)
    state["extension"] = [{"url": RECIPIENT_KIND, "valueCode": "authority"}]
    contract = await subscribed(pair, state)
    practice = await subscribed(pair, topic_based(endpoint=receiver.url))
    await agrees(pair, patient, consent("pcp-notification", provision=deny()))
    await admitted(pair, patient)
    assert (await row_of(pair, contract))["state"] == "delivered"
    assert (await row_of(pair, practice))["state"] == "suppressed"


async def test_an_opt_out_of_case_management_withholds_the_enrolment(
    pair: Pair, receiver: Receiver, patient: str
) -> None:
    id_ = await subscribed(pair, classic("EpisodeOfCare?status=active", endpoint=receiver.url))
    await agrees(pair, patient, consent("case-management", provision=deny()))
    episode = {"resourceType": "EpisodeOfCare", "id": new_id(), "status": "active"}
    await put(pair, {**episode, "patient": {"reference": f"Patient/{patient}"}})
    await pair[0].worker.drain()
    assert (await row_of(pair, id_))["state"] == "suppressed"


async def test_labelled_content_is_told_by_its_id(
    pair: Pair, receiver: Receiver, patient: str
) -> None:
    id_ = await subscribed(pair, topic_based(endpoint=receiver.url, content="full-resource"))
    stay = await admitted(pair, patient, meta={"security": label("42CFRPart2", "R")})
    (notice,) = await receiver.wait(1)
    assert resources(notice) == []
    assert notice.focus.endswith(f"Encounter/{stay['id']}")
    assert SECRET.encode() not in notice.body
    row = await row_of(pair, id_)
    assert row["state"] == "delivered"
    assert row["attempts"][0]["reduced"] == "label 42CFRPart2 R"


async def test_part_2_content_travels_whole_where_a_consent_permits_it(
    pair: Pair, receiver: Receiver, patient: str
) -> None:
    practice = f"Organization/{new_id()}"
    subscription = told(practice, endpoint=receiver.url, content="full-resource")
    await subscribed(pair, subscription)
    await agrees(pair, patient, consent("part-2", provision=permit(actor=actor(practice))))
    await admitted(pair, patient, meta={"security": label("42CFRPart2", "ETH", "R")})
    (notice,) = await receiver.wait(1)
    assert "Encounter" in resources(notice)


async def test_a_label_on_what_travels_along_keeps_all_of_it_back(
    pair: Pair, receiver: Receiver, patient: str
) -> None:
    await subscribed(pair, topic_based(endpoint=receiver.url, content="full-resource"))
    labelled = {"resourceType": "Patient", "id": patient, "meta": {"security": label("V")}}
    await put(pair, {**labelled, "name": [{"family": SECRET}]})
    await admitted(pair, patient)
    (notice,) = await receiver.wait(1)
    assert resources(notice) == []
    assert SECRET.encode() not in notice.body


async def test_a_class_that_is_refused_does_not_travel_along(
    pair: Pair, receiver: Receiver, patient: str
) -> None:
    await subscribed(pair, topic_based(endpoint=receiver.url, content="full-resource"))
    of_patient = [{"system": "http://hl7.org/fhir/resource-types", "code": "Patient"}]
    refused = deny(**{"class": of_patient})
    await agrees(pair, patient, consent(provision=permit(provision=[refused])))
    await admitted(pair, patient)
    (notice,) = await receiver.wait(1)
    assert resources(notice) == []


async def test_the_most_confidential_is_not_told_at_all(
    pair: Pair, receiver: Receiver, patient: str
) -> None:
    id_ = await subscribed(pair, topic_based(endpoint=receiver.url, content="empty"))
    await admitted(pair, patient, meta={"security": label("V")})
    assert (await row_of(pair, id_))["reason"] == "Withheld: label V"
    assert receiver.events == []


@pytest.mark.parametrize(
    ("payload", "state"),
    [
        pytest.param("application/fhir+json", "suppressed", id="with the resource"),
        pytest.param(None, "delivered", id="without a body"),
    ],
)
async def test_a_classic_notice_cannot_be_reduced(
    pair: Pair, receiver: Receiver, patient: str, payload: str | None, state: str
) -> None:
    subscription = classic(f"Encounter?patient={patient}", receiver.url, payload)
    id_ = await subscribed(pair, subscription)
    await admitted(pair, patient, meta={"security": label("PSY")})
    assert (await row_of(pair, id_))["state"] == state


async def test_one_notice_of_several_events_leaves_out_what_is_withheld(
    pair: Pair, receiver: Receiver, patient: str
) -> None:
    subscription = topic_based(endpoint=receiver.url, content="full-resource", max_count=10)
    await subscribed(pair, subscription)
    refusing = new_id()
    await put(pair, {"resourceType": "Patient", "id": refusing})
    await agrees(pair, refusing, consent(provision=deny()))
    stays = [
        encounter(patient=patient),
        encounter(patient=refusing),
        encounter(
            patient=patient, meta={"security": label("HIV")}, reasonCode=[{"text": "Hidden"}]
        ),
    ]
    entries = [
        {"resource": stay, "request": {"method": "POST", "url": "Encounter"}} for stay in stays
    ]
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    await pair[1].post("", json=bundle)
    await pair[0].worker.drain()
    bodies = b"".join(notice.body for notice in receiver.events)
    assert refusing.encode() not in bodies
    assert b"Hidden" not in bodies
    numbers = [
        int(part["valueString"])
        for notice in receiver.events
        for each in notice.json["entry"][0]["resource"]["parameter"]
        if each["name"] == "notification-event"
        for part in each["part"]
        if part["name"] == "event-number"
    ]
    assert sorted(numbers) == [1, 2]


async def test_past_events_are_told_as_far_as_they_may_be_told_now(
    pair: Pair, receiver: Receiver, patient: str
) -> None:
    id_ = await subscribed(pair, topic_based(endpoint=receiver.url, content="full-resource"))
    await admitted(pair, patient)
    labelled = await admitted(pair, patient, meta={"security": label("SUD")})
    other = new_id()
    await put(pair, {"resourceType": "Patient", "id": other})
    await admitted(pair, other)
    await agrees(pair, other, consent(provision=deny()))

    # Another process has not judged them before.
    async with running(pair[0].settings) as (_, elsewhere):
        for client in (pair[1], elsewhere):
            answer = await client.get(f"/Subscription/{id_}/$events")
            bundle = answer.json()
            events = [
                {part["name"] for part in each["part"]}
                for each in bundle["entry"][0]["resource"]["parameter"]
                if each["name"] == "notification-event"
            ]
            assert [("focus" in names) for names in events] == [True, True, False]
            sent = [each["resource"] for each in bundle["entry"][1:] if "resource" in each]
            assert sorted(each["resourceType"] for each in sent) == ["Encounter", "Patient"]
            assert f"Encounter/{labelled['id']}" in answer.text
            assert other not in answer.text


async def test_deletions_of_a_patients_record_are_withheld_as_well(
    pair: Pair, receiver: Receiver, patient: str
) -> None:
    feed = topic_based(f"Condition?patient=Patient/{patient}", endpoint=receiver.url)
    feed["criteria"] = "http://hl7.org/fhir/us/core/SubscriptionTopic/patient-data-feed"
    id_ = await subscribed(pair, feed)
    note = {
        "resourceType": "Condition",
        "id": new_id(),
        "subject": {"reference": f"Patient/{patient}"},
    }
    await agrees(pair, patient, consent(provision=deny()))
    await put(pair, note)
    await pair[1].delete(f"/Condition/{note['id']}")
    await pair[0].worker.drain()
    found = pair[0].mongo.collection("deliveries").find({"subscription": id_})
    assert {row["state"] for row in await found.to_list(None)} <= {"suppressed"}
    assert receiver.events == []


async def test_heartbeats_and_handshakes_have_no_patient(pair: Pair, receiver: Receiver) -> None:
    await subscribed(pair, topic_based(endpoint=receiver.url))
    assert [each.kind for each in receiver.requests] == ["handshake"]


@pytest.mark.slow
@pytest.mark.parametrize("refuses", [False, True], ids=["nothing refused", "somebody refused"])
async def test_a_hundred_subscribers_read_consents_once(
    pair: Pair,
    receiver: Receiver,
    patient: str,
    refuses: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = pair[0]
    entries = [
        {
            "resource": topic_based(f"patient={patient}", endpoint=receiver.url),
            "request": {"method": "POST", "url": "Subscription"},
        }
        for _ in range(100)
    ]
    batch = {"resourceType": "Bundle", "type": "batch", "entry": entries}
    await pair[1].post("", json=batch)
    await server.worker.drain()
    await admitted(pair, patient)  # so that all are known as active
    refused = permit(provision=[deny(actor=actor("Practitioner/x"))])
    status = "active" if refuses else "inactive"
    await agrees(pair, patient, consent(provision=refused, status=status))
    reads: Counter[str] = Counter()
    find = server.store.find

    async def counting(resource_type: str, *args: Any, **kwargs: Any) -> Any:
        reads[resource_type] += 1
        return await find(resource_type, *args, **kwargs)

    monkeypatch.setattr(server.store, "find", counting)
    # Consents are read again after a second, and a hundred notices may take longer.
    moment = time.monotonic()
    monkeypatch.setattr(batch_cache, "time", SimpleNamespace(monotonic=lambda: moment))
    await admitted(pair, patient)
    assert reads["Consent"] == 1
    assert reads["Subscription"] == (1 if refuses else 0)
    if refuses:  # nobody knows who they are, so none of them is told
        assert len(receiver.events) == 100
    else:
        assert len(await receiver.wait(200)) == 200


async def test_where_consents_cannot_be_read_nothing_is_numbered_and_nothing_sent(
    pair: Pair, receiver: Receiver, patient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = pair[0]
    receiver.answers([503] * 50)
    id_ = await subscribed(pair, topic_based(endpoint=receiver.url))
    find = server.store.find

    async def failing(resource_type: str, *args: Any, **kwargs: Any) -> Any:
        if resource_type == "Consent":
            raise AutoReconnect("gone")
        return await find(resource_type, *args, **kwargs)

    with monkeypatch.context() as broken:
        broken.setattr(server.store, "find", failing)
        with pytest.raises(AutoReconnect):
            await admitted(pair, patient)
        assert await server.mongo.collection("deliveries").find_one({"subscription": id_}) is None
    await server.worker.drain()
    # On a busy machine it may have been tried again meanwhile; from now on that takes an hour.
    deliveries = server.mongo.collection("deliveries")
    later_than_this = {"$set": {"next_at": server.mongo.now() + timedelta(hours=1)}}
    await deliveries.update_one({"subscription": id_, "state": "retrying"}, later_than_this)
    row, tried = await row_of(pair, id_), len(receiver.events)
    assert (row["number"], row["state"], row["attempt"]) == (1, "retrying", tried)

    with monkeypatch.context() as broken:
        broken.setattr(server.store, "find", failing)
        later = SimpleNamespace(monotonic=lambda: time.monotonic() + 2)  # nothing is remembered
        broken.setattr(batch_cache, "time", later)
        await make_due(server.mongo)
        await server.worker.run_once()
        assert (await row_of(pair, id_))["attempt"] == tried
        assert len(receiver.events) == tried
    receiver.answers([])
    await make_due(server.mongo)
    await server.worker.run_once()
    assert len(await receiver.wait(tried + 1)) == tried + 1


@pytest.mark.slow
async def test_an_operator_may_have_labelled_content_withheld(
    mongod: str, receiver: Receiver
) -> None:
    async with running(make_settings(mongod, labelled_content="withhold")) as pair:
        id_ = await subscribed(pair, topic_based(endpoint=receiver.url))
        await admitted(pair, "p1", meta={"security": label("SDV")})
        row = await row_of(pair, id_)
        assert (row["state"], row["reason"]) == ("suppressed", "Withheld: label SDV")
    assert receiver.events == []
