"""Da Vinci Unsolicited Notifications: what an endpoint for messages gets, from a commit to $process-message."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fhir.resources.R4B.bundle import Bundle

from app.fhir.ids import new_id
from app.subscriptions.notices.davinci_stay import complete
from tests.builders.consents import consent, deny, label
from tests.builders.davinci import PARTICIPATION, Hospital, alerts, ref
from tests.builders.practices import endpoint, organization
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import subscribed
from tests.conftest import Server, make_settings, running
from tests.outcomes import errors_in
from tests.subscriptions.davinci_checker import (
    DAVINCI,
    needs_profiles,
    problems,
    references,
    us_core_problems,
)

BASE = "http://carerelay.test/fhir"
DATA_ABSENT = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"
ABSENT = {"extension": [{"url": DATA_ABSENT, "valueCode": "unknown"}]}
Json = dict[str, Any]
Pair = tuple[Server, httpx.AsyncClient]


@pytest.fixture(scope="module")
async def pair(mongod: str) -> AsyncIterator[Pair]:
    async with running(make_settings(mongod, base_url=BASE)) as pair:
        yield pair


@pytest.fixture(autouse=True)
async def _no_others(pair: Pair) -> AsyncIterator[None]:
    yield
    found = (await pair[1].get("/Subscription", params={"_count": 1000})).json()
    for entry in found.get("entry", []):
        await pair[1].delete(f"/Subscription/{entry['resource']['id']}")
    await pair[0].worker.drain()


async def put(pair: Pair, *resources: Json) -> None:
    for resource in resources:
        url = f"/{resource['resourceType']}/{resource['id']}"
        response = await pair[1].put(url, json=resource)
        assert response.status_code in (200, 201), response.text


async def row_of(pair: Pair, subscription: str) -> Json:
    deliveries = pair[0].mongo.collection("deliveries")
    (row,) = await deliveries.find({"subscription": subscription}).to_list(None)
    found: Json = row
    return found


async def status_of(pair: Pair, subscription: str) -> str:
    return str((await pair[1].get(f"/Subscription/{subscription}")).json()["status"])


@pytest.fixture
def hospital() -> Hospital:
    return Hospital()


async def message_of(pair: Pair, receiver: Receiver, count: int = 1) -> Json:
    """The last of so many messages; it is R4."""
    await pair[0].worker.drain()
    received = (await receiver.wait(count, events=False))[count - 1]
    assert (received.method, received.path) == ("POST", "/fhir/$process-message")
    bundle: Json = received.json
    assert errors_in(bundle) == []
    for entry in bundle["entry"]:
        assert errors_in(entry["resource"]) == []
    Bundle.model_validate(bundle)
    return bundle


def carried(bundle: Json) -> dict[str, Json]:
    """What a message holds by type; of several of one type the last."""
    return {entry["resource"]["resourceType"]: entry["resource"] for entry in bundle["entry"]}


def types(bundle: Json) -> list[str]:
    return sorted(entry["resource"]["resourceType"] for entry in bundle["entry"])


async def admit(pair: Pair, receiver: Receiver, hospital: Hospital, **more: Any) -> Json:
    await subscribed(pair, alerts(receiver.url + "/fhir"))
    await put(pair, hospital.stay(**more))
    return await message_of(pair, receiver)


# What is sent


@pytest.mark.mongo
async def test_a_message_holds_nothing_about_somebody_else(
    pair: Pair, receiver: Receiver, hospital: Hospital
) -> None:
    """Neither what the stay names nor what names the stay."""
    other = ref(f"Patient/other-{hospital.n}")
    named, naming = (
        {**hospital.condition, "id": f"{name}-{hospital.n}", "subject": other}
        for name in ("named", "naming")
    )
    kin = {"resourceType": "RelatedPerson", "id": f"kin-{hospital.n}", "patient": other}
    await put(pair, hospital.patient, named, naming, kin)
    bundle = await admit(
        pair,
        receiver,
        hospital,
        diagnosis=[{"condition": ref(f"Condition/{named['id']}")}],
        participant=[{"individual": ref(f"RelatedPerson/{kin['id']}")}],
    )
    assert {"Condition", "RelatedPerson"}.isdisjoint(types(bundle))


@pytest.mark.slow
@needs_profiles
@pytest.mark.mongo
@pytest.mark.parametrize(
    ("topic", "event", "before", "after"),
    [
        pytest.param("encounter-admission", "admit", None, ("in-progress", "IMP"), id="inpatient"),
        pytest.param("encounter-admission", "admit", None, ("in-progress", "EMER"), id="emergency"),
        pytest.param(
            "encounter-discharge",
            "discharge",
            ("in-progress", "IMP"),
            ("finished", "IMP"),
            id="discharge",
        ),
        pytest.param(
            "encounter-transfer",
            "transfer",
            ("in-progress", "EMER"),
            ("in-progress", "IMP"),
            id="transfer",
        ),
    ],
)
async def test_a_stay_becomes_a_message_that_is_valid_by_the_published_profiles(
    pair: Pair,
    receiver: Receiver,
    hospital: Hospital,
    topic: str,
    event: str,
    before: tuple[str, str] | None,
    after: tuple[str, str],
) -> None:
    await put(pair, *hospital.directory)
    if before:
        await put(pair, hospital.stay(*before))
    await pair[0].worker.drain()
    await subscribed(pair, alerts(receiver.url + "/fhir", topic))
    await put(pair, hospital.stay(*after))
    bundle = await message_of(pair, receiver)
    assert problems(bundle) == []
    assert us_core_problems(bundle) == []
    header = bundle["entry"][0]["resource"]
    assert header["eventCoding"]["code"] == f"notification-{event}"
    assert header["destination"] == [{"endpoint": receiver.url + "/fhir"}]
    assert header["source"]["endpoint"] == BASE
    assert header["focus"] == [ref(f"{BASE}/Encounter/e-{hospital.n}")]
    assert header["sender"]["reference"] == f"{BASE}/Organization/o-{hospital.n}"
    assert f"{DAVINCI}{event}-notification-messageheader" in header["meta"]["profile"]
    assert types(bundle) == [
        "Condition",
        "Coverage",
        "Encounter",
        "Location",
        "MessageHeader",
        "Organization",
        "Organization",
        "Patient",
        "Practitioner",
    ]


@pytest.mark.mongo
async def test_a_role_is_told_as_its_practitioner_and_others_are_no_individuals(
    pair: Pair, receiver: Receiver, hospital: Hospital
) -> None:
    await put(pair, *hospital.directory)
    bundle = await admit(pair, receiver, hospital)
    (participant,) = carried(bundle)["Encounter"]["participant"]
    assert participant["individual"] == ref(f"{BASE}/Practitioner/d-{hospital.n}")


@pytest.mark.mongo
async def test_what_is_not_in_the_message_is_told_by_its_display_or_as_unknown(
    pair: Pair, receiver: Receiver, hospital: Hospital
) -> None:
    await put(pair, *hospital.directory)
    bundle = await admit(pair, receiver, hospital)
    assert set(references(bundle)) <= {entry["fullUrl"] for entry in bundle["entry"]}
    held = carried(bundle)
    assert held["Patient"]["generalPractitioner"] == [{"display": "Dr. Elsewhere"}]
    unknown = {"extension": [{"url": DATA_ABSENT, "valueCode": "unknown"}]}
    assert held["Coverage"]["payor"] == [ref(f"{BASE}/Organization/payor-{hospital.n}"), unknown]


@needs_profiles
@pytest.mark.mongo
async def test_names_that_nobody_knows_are_stated_as_absent(
    pair: Pair, receiver: Receiver, hospital: Hospital
) -> None:
    """Nothing that the stay refers to is stored, and it names neither practitioner nor institution nor place."""
    bundle = await admit(
        pair, receiver, hospital, participant=None, location=None, serviceProvider=None
    )
    assert problems(bundle) == []
    assert us_core_problems(bundle) == []
    held = carried(bundle)
    absent = [{"url": DATA_ABSENT, "valueCode": "unknown"}]
    assert held["Patient"]["name"] == [{"extension": absent}]
    assert held["Patient"]["identifier"] == [
        {"system": "urn:ietf:rfc:3986", "value": f"{BASE}/Patient/p-{hospital.n}"}
    ]
    assert held["Practitioner"]["name"] == [{"_family": {"extension": absent}}]
    assert held["Organization"]["_name"] == {"extension": absent}
    assert held["Location"]["_name"] == {"extension": absent}
    (participant,) = held["Encounter"]["participant"]
    assert participant["type"][0]["coding"][0]["code"] == "ATND"


@pytest.mark.parametrize(
    ("resource_type", "name", "expected"),
    [
        ("Patient", {"family": "Rivera"}, {"family": "Rivera"}),
        ("Patient", {"_family": ABSENT}, {"_family": ABSENT}),
        ("Patient", {"given": ["Ana"]}, {"given": ["Ana"]}),
        ("Patient", {"text": "Ana R."}, {"text": "Ana R.", **ABSENT}),
        ("Practitioner", {"family": "Rivera"}, {"family": "Rivera"}),
        ("Practitioner", {"given": ["Ana"]}, {"given": ["Ana"], "_family": ABSENT}),
    ],
)
def test_of_a_name_that_alone_is_stated_as_absent_which_us_core_requires_and_is_not_there(
    resource_type: str, name: dict[str, Any], expected: dict[str, Any]
) -> None:
    """A Patient needs a family or given name, a Practitioner a family name (us-core-6, us-core-practitioner)."""
    completed = complete({"resourceType": resource_type, "name": [name]})
    assert completed["name"] == [expected]


@needs_profiles
@pytest.mark.mongo
async def test_what_a_stay_says_of_people_who_are_not_stored_is_their_name(
    pair: Pair, receiver: Receiver, hospital: Hospital
) -> None:
    attending = {"type": [{"coding": [{"system": PARTICIPATION, "code": "ADM"}]}]}
    bundle = await admit(
        pair,
        receiver,
        hospital,
        location=[{"location": {"display": "Ward 3"}}],
        subject=ref(f"Patient/p-{hospital.n}", display="Ada Meadow"),
        participant=[{**attending, "individual": {"display": "Dr. Birch"}}],
        serviceProvider={"display": "General Hospital"},
    )
    held = carried(bundle)
    assert held["Patient"]["name"][0]["text"] == "Ada Meadow"
    assert held["Practitioner"]["name"][0]["text"] == "Dr. Birch"
    assert held["Organization"]["name"] == "General Hospital"
    assert held["Location"]["name"] == "Ward 3"
    assert us_core_problems(bundle) == []
    assert bundle["entry"][0]["resource"]["sender"]["display"] == "General Hospital"


@pytest.mark.slow
@pytest.mark.mongo
async def test_every_attempt_sends_the_same_bytes(
    pair: Pair, receiver: Receiver, hospital: Hospital
) -> None:
    await put(pair, *hospital.directory[:-1])  # a payor that is not stored
    receiver.answers([503])
    await subscribed(pair, alerts(receiver.url + "/fhir"))
    await put(pair, hospital.stay(participant=None))
    first, second = await receiver.wait(2, events=False)
    assert first.body == second.body
    assert first.json["id"] == first.headers["carerelay-notification-id"]


@needs_profiles
@pytest.mark.mongo
@pytest.mark.parametrize(
    ("topic", "event", "focus", "beside"),
    [
        pytest.param(
            "careteam-change",
            "care-team-change",
            {
                "resourceType": "CareTeam",
                "status": "active",
                "participant": [{"member": "PractitionerRole/r-"}],
            },
            ["Organization", "Patient", "Practitioner", "PractitionerRole"],
            id="care-team",
        ),
        pytest.param(
            "condition-new",
            "new-condition",
            {
                "resourceType": "Condition",
                "clinicalStatus": {
                    "coding": [
                        {
                            "system": "http://terminology.hl7.org/CodeSystem/condition-clinical",
                            "code": "active",
                        }
                    ]
                },
            },
            ["Patient"],
            id="condition",
        ),
        pytest.param(
            "referral",
            "referral",
            {
                "resourceType": "ServiceRequest",
                "status": "active",
                "intent": "order",
                "requester": "Practitioner/d-",
            },
            ["Patient", "Practitioner"],
            id="referral",
        ),
    ],
)
async def test_other_topics_that_the_guide_has_an_event_for(
    pair: Pair,
    receiver: Receiver,
    hospital: Hospital,
    topic: str,
    event: str,
    focus: Json,
    beside: list[str],
) -> None:
    await put(pair, *hospital.directory)
    await subscribed(pair, alerts(receiver.url + "/fhir", topic))

    def placed(value: Any) -> Any:
        if isinstance(value, str) and value.endswith("-") and "/" in value:
            return ref(value + hospital.n)
        if isinstance(value, list):
            return [placed(each) for each in value]
        return {k: placed(v) for k, v in value.items()} if isinstance(value, dict) else value

    about = {"id": f"x-{hospital.n}", "subject": ref(f"Patient/p-{hospital.n}")}
    made = {**placed(focus), **about}
    if topic == "careteam-change":  # somebody joins a team that is known
        await put(pair, {name: each for name, each in made.items() if name != "participant"})
    await put(pair, made)
    bundle = await message_of(pair, receiver)
    assert problems(bundle) == []
    assert us_core_problems(bundle) == []
    assert bundle["entry"][0]["resource"]["eventCoding"]["code"] == f"notification-{event}"
    assert types(bundle) == sorted(["MessageHeader", focus["resourceType"], *beside])


# What is answered


@pytest.mark.mongo
@pytest.mark.parametrize(
    ("status", "state", "subscription"),
    [
        pytest.param(200, "delivered", "active", id="200"),
        pytest.param(202, "delivered", "active", id="202"),
        pytest.param(204, "delivered", "active", id="204"),
        pytest.param(400, "dead", "active", id="400-the-message-is-at-fault"),
        pytest.param(422, "dead", "active", id="422-the-message-is-at-fault"),
        pytest.param(401, "retrying", "active", id="401-until-corrected"),
        pytest.param(404, "retrying", "active", id="404-until-corrected"),
        pytest.param(429, "retrying", "active", id="429-slower"),
        pytest.param(503, "retrying", "active", id="503-again"),
    ],
)
async def test_answers_are_read_as_the_guide_says(
    pair: Pair,
    receiver: Receiver,
    hospital: Hospital,
    status: int,
    state: str,
    subscription: str,
) -> None:
    receiver.answer = lambda _: status
    id_ = await subscribed(pair, alerts(receiver.url + "/fhir"))
    assert await status_of(pair, id_) == "active"  # nothing had to be proven
    await put(pair, hospital.stay())
    await receiver.wait(1, events=False)
    await pair[0].worker.drain()
    row = await row_of(pair, id_)
    assert (row["state"], await status_of(pair, id_)) == (state, subscription)
    if status == 429:
        waited = row["next_at"] - row["attempts"][0]["at"]
        assert waited.total_seconds() > 25


# What may be asked


@pytest.mark.mongo
@pytest.mark.parametrize(
    ("change", "element"),
    [
        pytest.param({"topic": "encounter-cancelled"}, "channel.type", id="no-event-cancelled"),
        pytest.param({"topic": "careplan-change"}, "channel.type", id="no-event-care-plan"),
        pytest.param({"content": "id-only"}, "channel.payload", id="less-than-whole"),
        pytest.param({"heartbeat": 60}, "channel.extension", id="heartbeat"),
        pytest.param({"max_count": 2}, "channel.extension", id="several-events"),
        pytest.param({"type": "rest-hook"}, "channel.type.extension[0]", id="on-rest-hook"),
    ],
)
async def test_what_a_message_cannot_give_is_refused(
    pair: Pair, change: Json, element: str
) -> None:
    response = await pair[1].post("/Subscription", json=alerts("http://127.0.0.1:9/fhir", **change))
    assert response.status_code == 422
    (issue,) = response.json()["issue"]
    assert issue["expression"] == [f"Subscription.{element}"]


@pytest.mark.mongo
async def test_a_classic_subscription_has_no_such_channel(pair: Pair) -> None:
    subscription = alerts("http://127.0.0.1:9/fhir")
    subscription["criteria"] = "Encounter?"
    del subscription["channel"]["_payload"]
    response = await pair[1].post("/Subscription", json=subscription)
    assert response.status_code == 422
    assert response.json()["issue"][0]["expression"] == ["Subscription.channel.type"]


@pytest.mark.slow
@pytest.mark.mongo
async def test_a_practice_with_an_endpoint_for_messages_needs_no_subscription(
    mongod: str, receiver: Receiver, hospital: Hospital
) -> None:
    """Where Da Vinci has an event for a topic its message is sent, for other topics a plain message.

    A rise to inpatient is one message, an admission.
    """
    topics = "encounter-admission,encounter-transfer,careplan-change"
    settings = make_settings(
        mongod,
        base_url=BASE,
        egress_allow="127.0.0.1",
        endpoint_subscriptions=True,
        endpoint_topics=topics,
    )
    async with running(settings) as pair:
        practice = organization("practice", "e")
        hospital.patient["generalPractitioner"] = [ref("Organization/practice")]
        address = receiver.url + "/fhir"
        await put(pair, endpoint("e", address, connection="hl7-fhir-msg"), practice)
        await put(pair, *hospital.directory)
        await pair[0].engine.drain()
        await pair[0].worker.drain()
        found = (await pair[1].get("/Subscription")).json()["entry"]
        channels = {e["resource"]["criteria"]: e["resource"]["channel"] for e in found}
        assert {each["type"] for each in channels.values()} == {"message"}
        assert {url.rpartition("/")[2]: "_type" in each for url, each in channels.items()} == {
            "encounter-admission": True,
            "encounter-transfer": True,
            "careplan-change": False,
        }
        handshake = len(receiver.requests)
        await put(pair, hospital.stay(class_="EMER"))
        await put(pair, hospital.stay(class_="IMP"))
        await message_of(pair, receiver, handshake + 2)
        bundles = [each.json for each in receiver.requests[handshake:]]
        codes = [each["entry"][0]["resource"]["eventCoding"]["code"] for each in bundles]
        assert codes == ["notification-admit", "notification-admit"]


# What may be told


@pytest.mark.mongo
async def test_what_may_only_be_told_by_reference_is_withheld_with_the_reason(
    pair: Pair, receiver: Receiver, hospital: Hospital
) -> None:
    id_ = await subscribed(pair, alerts(receiver.url + "/fhir"))
    await put(pair, {**hospital.stay(), "meta": {"security": label("R")}})
    await pair[0].worker.drain()
    row = await row_of(pair, id_)
    assert row["state"] == "suppressed"
    assert row["reason"].startswith("Withheld: ")
    assert receiver.requests == []


@pytest.mark.mongo
async def test_what_a_patient_refuses_is_withheld(
    pair: Pair, receiver: Receiver, hospital: Hospital
) -> None:
    await put(pair, *hospital.directory)
    refusal = {**consent(provision=deny()), "id": new_id(), "policyRule": {"text": "Policy"}}
    await put(pair, {**refusal, "patient": ref(f"Patient/p-{hospital.n}")})
    id_ = await subscribed(pair, alerts(receiver.url + "/fhir"))
    await put(pair, hospital.stay())
    await pair[0].worker.drain()
    assert (await row_of(pair, id_))["state"] == "suppressed"
    assert receiver.requests == []


@needs_profiles
@pytest.mark.mongo
async def test_a_labelled_condition_stays_behind_and_is_not_even_named(
    pair: Pair, receiver: Receiver, hospital: Hospital
) -> None:
    hospital.condition["meta"] = {"security": label("PSY")}
    await put(pair, *hospital.directory)
    diagnosis = ref(f"Condition/c-{hospital.n}", display="Secret")
    bundle = await admit(pair, receiver, hospital, diagnosis=[{"condition": diagnosis}])
    assert problems(bundle) == []
    assert us_core_problems(bundle) == []
    assert "Condition" not in types(bundle)
    assert "Secret" not in json.dumps(bundle)
    assert f"c-{hospital.n}" not in json.dumps(bundle)


@pytest.mark.mongo
async def test_without_the_patient_there_is_no_message(
    pair: Pair, receiver: Receiver, hospital: Hospital
) -> None:
    hospital.patient["meta"] = {"security": label("V")}
    await put(pair, *hospital.directory)
    id_ = await subscribed(pair, alerts(receiver.url + "/fhir"))
    await put(pair, hospital.stay())
    await pair[0].worker.drain()
    assert receiver.requests == []
    row = await row_of(pair, id_)
    assert (row["state"], row["attempts"]) == ("suppressed", [])
    assert row["reason"].startswith("Withheld: ")


@pytest.mark.mongo
async def test_errors_and_coverage_that_is_over_stay_behind(
    pair: Pair, receiver: Receiver, hospital: Hospital
) -> None:
    hospital.coverage["status"] = "cancelled"
    hospital.condition["verificationStatus"] = {
        "coding": [
            {
                "system": "http://terminology.hl7.org/CodeSystem/condition-ver-status",
                "code": "entered-in-error",
            }
        ]
    }
    await put(pair, *hospital.directory)
    bundle = await admit(pair, receiver, hospital, diagnosis=None)
    assert {"Condition", "Coverage"}.isdisjoint(types(bundle))
