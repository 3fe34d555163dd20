"""Panel subscriptions: one Subscription of a practice, told of all its patients and of nobody else's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from app.fhir.codes import REVIEW_REASON
from app.runtime.mongo import Document
from app.subscriptions.recipient import recipient_of
from app.subscriptions.sending import release_check
from app.subscriptions.sending.recheck_recipient import REASSIGNED, still_concerns
from tests.builders.practices import (
    PAST,
    TOMORROW,
    YESTERDAY,
    care_team,
    dated,
    endpoint,
    group,
    organization,
    panel,
    patient,
    practitioner,
    put,
    ref,
    role,
)
from tests.builders.receiver import Receiver, receiving
from tests.builders.subscriptions import encounter, topic_based
from tests.conftest import Server, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

Pair = tuple[Server, httpx.AsyncClient]


@pytest.fixture(scope="module")
async def hub(mongod: str) -> AsyncIterator[Pair]:
    """A hub with two practices: doctor a at practice a, doctor b at practice b."""
    settings = make_settings(
        mongod, egress_allow="127.0.0.1", endpoint_topics="encounter-admission"
    )
    async with running(settings) as (server, client):
        await put(
            client,
            organization("a"),
            organization("b"),
            practitioner("dr-a"),
            practitioner("dr-b"),
            role("role-a", "dr-a", "a"),
            role("role-b", "dr-b", "b"),
        )
        yield server, client


async def subscribe(pair: Pair, receiver: Receiver, *filters: str, **more: Any) -> str:
    """An active Subscription; returns its id."""
    server, client = pair
    body = topic_based(*filters, endpoint=receiver.url, **more)
    response = await client.post("/Subscription", json=body)
    assert response.status_code == 201, response.text
    await server.worker.drain()
    return str(response.json()["id"])


async def admit(pair: Pair, name: str, of: str, **more: Any) -> None:
    """An admission, and everything that follows from it."""
    server, client = pair
    await put(client, {**encounter(patient=of, **more), "id": name})
    await server.worker.drain()


async def told(pair: Pair, receiver: Receiver) -> list[str]:
    """The ids of the Encounters that were told of, in order."""
    await pair[0].worker.drain()
    return [event.focus.rpartition("/")[2] for event in receiver.events]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("filter_", "named"),
    [
        pytest.param("Practitioner/dr-a", "PractitionerRole/role-a", id="practitioner-of-role"),
        pytest.param("PractitionerRole/role-a", "Practitioner/dr-a", id="role-of-practitioner"),
        pytest.param("Organization/a", "PractitionerRole/role-a", id="organization-of-role"),
        pytest.param("Organization/a", "Practitioner/dr-a", id="organization-of-practitioner"),
        pytest.param("Organization/a", "Organization/a", id="organization"),
        pytest.param("dr-a", "Practitioner/dr-a", id="id-alone"),
        pytest.param("Organization/b,Organization/a", "Organization/a", id="one-of-several"),
    ],
)
async def test_one_subscription_covers_the_panel(
    hub: Pair, receiver: Receiver, filter_: str, named: str
) -> None:
    name = f"{filter_}{named}".replace("/", "").replace(",", "")[:40]
    await put(hub[1], patient(name, ref(named)), patient(f"{name}-other", ref("Practitioner/dr-x")))
    await subscribe(hub, receiver, f"general-practitioner={filter_}")
    await admit(hub, name, name)
    await admit(hub, f"{name}-other", f"{name}-other")
    assert await told(hub, receiver) == [name]


async def test_a_panel_follows_its_roster(hub: Pair, receiver: Receiver) -> None:
    await put(
        hub[1], patient("ro-1"), patient("ro-2"), panel("ro", "Organization/a", "Patient/ro-1")
    )
    await subscribe(hub, receiver, "general-practitioner=Organization/a")
    await admit(hub, "ro-e1", "ro-1")
    await admit(hub, "ro-e2", "ro-2")
    await put(hub[1], panel("ro", "Organization/a", "Patient/ro-2"))
    await hub[0].engine.drain()
    await admit(hub, "ro-e3", "ro-1")
    await admit(hub, "ro-e4", "ro-2")
    # Of ro-2 nobody had been told before: that is told after all (test_untold.py).
    assert await told(hub, receiver) == ["ro-e1", "ro-e2", "ro-e4"]


async def test_a_reassignment_moves_notices_from_that_moment(hub: Pair, receiver: Receiver) -> None:
    async with receiving() as old:
        await put(hub[1], patient("re", ref("PractitionerRole/role-a")))
        await subscribe(hub, old, "general-practitioner=Organization/a")
        await subscribe(hub, receiver, "general-practitioner=Organization/b")
        await admit(hub, "re-1", "re")
        assert await told(hub, old) == ["re-1"]
        await put(hub[1], patient("re", ref("PractitionerRole/role-b")))
        await admit(hub, "re-2", "re")
        assert await told(hub, old) == ["re-1"]
        assert await told(hub, receiver) == ["re-2"]


async def test_a_reassignment_by_date_needs_no_write(hub: Pair, receiver: Receiver) -> None:
    """The old practice until its period's last day, the new one from its first."""
    handed_over = patient(
        "da",
        dated("PractitionerRole/role-a", PAST, YESTERDAY),
        dated("PractitionerRole/role-b", datetime.now(UTC).date().isoformat()),
    )
    await put(hub[1], handed_over)
    async with receiving() as old:
        await subscribe(hub, old, "general-practitioner=Organization/a")
        await subscribe(hub, receiver, "general-practitioner=Organization/b")
        await admit(hub, "da-1", "da")
        assert await told(hub, old) == []
        assert await told(hub, receiver) == ["da-1"]


async def test_the_care_team_goes_before_the_patients_own_record(
    hub: Pair, receiver: Receiver
) -> None:
    team = care_team("pr", "pr", "PractitionerRole/role-b")
    await put(hub[1], patient("pr", ref("PractitionerRole/role-a")), team)
    async with receiving() as other:
        await subscribe(hub, other, "general-practitioner=Organization/a")
        await subscribe(hub, receiver, "general-practitioner=Organization/b")
        await admit(hub, "pr-1", "pr")
        assert await told(hub, other) == []
        assert await told(hub, receiver) == ["pr-1"]


async def test_a_merged_patients_events_go_to_the_survivors_practice(
    hub: Pair, receiver: Receiver
) -> None:
    merged = patient("me-old", ref("PractitionerRole/role-a"), active=False)
    merged["link"] = [{"type": "replaced-by", "other": ref("Patient/me-new")}]
    await put(hub[1], patient("me-new", ref("PractitionerRole/role-b")), merged)
    await subscribe(hub, receiver, "general-practitioner=Organization/b")
    await admit(hub, "me-1", "me-old")
    assert await told(hub, receiver) == ["me-1"]


@pytest.mark.parametrize(
    ("member", "more", "expected"),
    [
        pytest.param({}, {}, True, id="member"),
        pytest.param({"period": {"start": PAST, "end": TOMORROW}}, {}, True, id="current"),
        pytest.param({"period": {"start": PAST, "end": YESTERDAY}}, {}, False, id="ended"),
        pytest.param({"period": {"start": TOMORROW}}, {}, False, id="future"),
        pytest.param({"inactive": True}, {}, False, id="inactive"),
        pytest.param({}, {"active": False}, False, id="group-not-active"),
    ],
)
async def test_a_group_filter_covers_its_current_members(
    hub: Pair,
    receiver: Receiver,
    member: dict[str, Any],
    more: dict[str, Any],
    expected: bool,
    request: pytest.FixtureRequest,
) -> None:
    name = request.node.callspec.id
    listed = group(f"gr-{name}", f"Patient/gr-{name}", **more)
    await put(hub[1], patient(f"gr-{name}"), listed)
    # Only the period changes: the row follows.
    await put(hub[1], {**listed, "member": [{**listed["member"][0], **member}]})
    await subscribe(hub, receiver, f"group=Group/gr-{name}")
    await admit(hub, f"gr-{name}", f"gr-{name}")
    assert await told(hub, receiver) == ([f"gr-{name}"] if expected else [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("facility", "expected"),
    [
        pytest.param("snf", ["fa-class", "fa-location"], id="snf"),
        pytest.param("hospital", ["fa-hospital", "fa-moved-on", "fa-cah"], id="hospital"),
        pytest.param("cah", ["fa-cah"], id="cah"),
    ],
)
async def test_a_facility_filter_tells_nursing_facilities_from_hospitals(
    hub: Pair, receiver: Receiver, facility: str, expected: list[str]
) -> None:
    role_code = "http://terminology.hl7.org/CodeSystem/v3-RoleCode"
    taxonomy = "http://nucc.org/provider-taxonomy"
    name = f"fa-{facility}"
    home = {
        "resourceType": "Location",
        "id": name,
        "type": [{"coding": [{"system": role_code, "code": "SNF"}]}],
    }
    room = {"resourceType": "Location", "id": f"{name}-room", "partOf": ref(f"Location/{name}")}
    rural = organization(f"{name}-cah")
    rural["type"] = [{"coding": [{"system": taxonomy, "code": "282NC0060X"}]}]
    await put(hub[1], home, room, rural, patient(name))
    await subscribe(hub, receiver, f"patient=Patient/{name}", f"facility-type={facility}")
    place = {"location": [{"location": ref(f"Location/{name}-room")}]}
    at_cah = {"serviceProvider": ref(f"Organization/{name}-cah")}
    await admit(hub, f"{name}-class", name, class_="NONAC")
    await admit(hub, f"{name}-location", name, **place)
    await admit(hub, f"{name}-hospital", name)
    ward = {"location": ref(f"Location/{name}-ward"), "status": "active"}
    left = {"location": [{**place["location"][0], "status": "completed"}, ward]}
    await admit(hub, f"{name}-moved-on", name, **left)
    await admit(hub, f"{name}-cah", name, **at_cah)
    assert await told(hub, receiver) == [each.replace("fa-", f"{name}-") for each in expected]


@pytest.mark.slow
async def test_an_operators_table_says_what_facilities_are(
    mongod: str, receiver: Receiver, tmp_path: Any
) -> None:
    table = tmp_path / "facilities.json"
    table.write_text('{"http://hl7.org/fhir/sid/us-npi|1234567893": "snf"}')
    settings = make_settings(mongod, egress_allow="127.0.0.1", facilities=table)
    async with running(settings) as pair:
        home = organization("home")
        home["identifier"] = [{"system": "http://hl7.org/fhir/sid/us-npi", "value": "1234567893"}]
        await put(pair[1], home, patient("p"))
        await subscribe(pair, receiver, "facility-type=snf")
        await admit(pair, "e1", "p", serviceProvider=ref("Organization/home"))
        await admit(pair, "e2", "p")
        assert await told(pair, receiver) == ["e1"]


@pytest.mark.parametrize(
    ("filter_", "code"),
    [
        pytest.param("general-practitioner=Patient/x", "value", id="no-provider"),
        pytest.param("general-practitioner=https://elsewhere/Practitioner/x", "value", id="far"),
        pytest.param("group=Organization/x", "value", id="no-group"),
        pytest.param("facility-type=castle", "code-invalid", id="no-facility"),
        pytest.param("general-practitioner:not=Practitioner/x", "not-supported", id="modifier"),
    ],
)
async def test_filters_that_mean_nothing_are_refused(hub: Pair, filter_: str, code: str) -> None:
    response = await hub[1].post("/Subscription", json=topic_based(filter_))
    assert_outcome(response, 422, code)


async def test_a_reassigned_patients_late_notice_no_longer_concerns_the_old_practice(
    hub: Pair, receiver: Receiver
) -> None:
    server, client = hub
    await put(client, patient("la", ref("PractitionerRole/role-a")))
    id_ = await subscribe(hub, receiver, "general-practitioner=Organization/a", "class=IMP")
    await admit(hub, "la-1", "la")
    registration = server.worker.registry.get(id_)
    assert registration is not None

    async def concerns() -> bool:
        focus = {"type": "Encounter", "id": "la-1", "version": 1}
        return await still_concerns(
            server.store, registration.criteria, focus, server.settings, server.mongo.now()
        )

    assert await concerns()
    await put(client, patient("la", ref("PractitionerRole/role-b")))
    assert not await concerns()


@pytest.mark.parametrize("is_late", [False, True])
async def test_whose_patient_has_left_meanwhile_is_told_only_of_what_has_just_happened(
    hub: Pair, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    """It waited until the endpoint was proven, and goes out for the first time."""
    server, client = hub
    name = f"wait-{is_late}"
    await put(client, patient(name, ref("PractitionerRole/role-a")))
    receiver.answer = lambda _: 404
    id_ = await subscribe(hub, receiver, "general-practitioner=Organization/a")
    await admit(hub, name, name)
    assert await told(hub, receiver) == []
    await put(client, patient(name, ref("PractitionerRole/role-b")))
    monkeypatch.setattr(release_check, "FRESH", timedelta(hours=0 if is_late else 1))
    receiver.answer = lambda _: 200
    asked = (await client.get(f"/Subscription/{id_}")).json() | {"status": "requested"}
    await put(client, asked)
    assert await told(hub, receiver) == ([] if is_late else [name])
    row = await server.mongo.collection("deliveries").find_one({"subscription": id_})
    assert row.get("reason") == (REASSIGNED if is_late else None)


async def test_a_filter_of_other_kinds_is_not_judged_again(hub: Pair, receiver: Receiver) -> None:
    server, _ = hub
    registration = server.worker.registry.get(
        await subscribe(hub, receiver, "patient=Patient/x", "facility-type=hospital")
    )
    assert registration is not None
    focus = {"type": "Encounter", "id": "none", "version": 1}
    now = server.mongo.now()
    assert await still_concerns(server.store, registration.criteria, focus, server.settings, now)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        pytest.param(["general-practitioner=Organization/a"], "Organization/a", id="filter"),
        pytest.param(
            ["Encounter?general-practitioner=Practitioner/p&class=IMP"],
            "Practitioner/p",
            id="with-type",
        ),
        pytest.param(["patient=Patient/p"], None, id="unknown"),
        pytest.param(["general-practitioner=Organization/a,Organization/b"], None, id="several"),
    ],
)
def test_the_recipient_of_a_subscription(filters: list[str], expected: str | None) -> None:
    assert recipient_of(topic_based(*filters)) == expected


# Events that concern no practice


async def rows(server: Server, encounter_: str) -> list[Document]:
    found = server.mongo.collection("deliveries").find({"focus.id": encounter_})
    unrouted: list[Document] = [
        row for row in await found.to_list(None) if row["subscription"].startswith("unrouted-")
    ]
    return unrouted


async def reviews(client: httpx.AsyncClient, focus: str) -> set[str]:
    response = await client.get("/Task", params={"focus": focus, "status": "requested"})
    return {
        coding["code"]
        for entry in response.json().get("entry", [])
        for coding in entry["resource"]["code"]["coding"]
        if coding["system"] == REVIEW_REASON
    }


@pytest.mark.parametrize(
    ("resources", "reason", "focus"),
    [
        pytest.param([patient("un")], "no-pcp", "Encounter/un-no-pcp", id="no-pcp"),
        pytest.param(
            [patient("un-ended", dated("PractitionerRole/role-a", PAST, YESTERDAY))],
            "pcp-period-ended",
            "Encounter/un-pcp-period-ended",
            id="ended",
        ),
        pytest.param(
            [patient("un-silent", ref("Organization/silent"))],
            "no-endpoint",
            "Organization/silent",
            id="no-endpoint",
        ),
    ],
)
async def test_an_admission_that_reaches_no_practice_is_in_the_ledger_and_the_review_queue(
    hub: Pair, resources: list[dict[str, Any]], reason: str, focus: str
) -> None:
    server, client = hub
    await put(client, organization("silent"), *resources)
    await admit(hub, f"un-{reason}", resources[0]["id"])
    await server.engine.drain()
    (row,) = await rows(server, f"un-{reason}")
    assert row["state"] == "suppressed"
    assert row["topic"].endswith("/encounter-admission")
    assert reason in await reviews(client, focus)


async def test_two_practices_are_told_and_a_person_is_asked(hub: Pair, receiver: Receiver) -> None:
    server, client = hub
    both = ref("PractitionerRole/role-a"), ref("PractitionerRole/role-b")
    await put(client, patient("tw", *both))
    await subscribe(hub, receiver, "general-practitioner=Organization/a")
    await subscribe(hub, receiver, "general-practitioner=Organization/b")
    await admit(hub, "tw-1", "tw")
    await server.engine.drain()
    assert await told(hub, receiver) == ["tw-1", "tw-1"]
    assert await rows(server, "tw-1") == []
    assert await reviews(client, "Encounter/tw-1") == {"several-pcps"}


async def test_an_admission_of_a_routed_patient_needs_no_review(
    hub: Pair, receiver: Receiver
) -> None:
    server, client = hub
    await put(client, patient("ok", ref("PractitionerRole/role-a")))
    await subscribe(hub, receiver, "general-practitioner=Organization/a")
    await admit(hub, "ok-1", "ok")
    await server.engine.drain()
    assert await rows(server, "ok-1") == []
    assert await reviews(client, "Encounter/ok-1") == set()
    assert server.engine.recently.knows("Patient/ok")


async def test_what_was_in_order_is_looked_at_again_once_it_has_changed(
    hub: Pair, receiver: Receiver
) -> None:
    server, client = hub
    await put(client, patient("ch", ref("PractitionerRole/role-a")))
    await subscribe(hub, receiver, "general-practitioner=Organization/a")
    await admit(hub, "ch-1", "ch")
    await server.engine.drain()
    assert await reviews(client, "Encounter/ch-1") == set()
    await put(client, patient("ch"))
    await admit(hub, "ch-2", "ch")
    await server.engine.drain()
    assert len(await rows(server, "ch-2")) == 1
    assert await reviews(client, "Encounter/ch-2") == {"no-pcp"}


# Subscriptions that the server keeps for Endpoints


@pytest.fixture
async def keeping(mongod: str) -> AsyncIterator[Pair]:
    settings = make_settings(
        mongod,
        egress_allow="127.0.0.1",
        endpoint_subscriptions=True,
        endpoint_topics="encounter-admission",
    )
    async with running(settings) as pair:
        yield pair


async def settled(pair: Pair) -> None:
    await pair[0].engine.drain()
    await pair[0].worker.drain()


async def kept(client: httpx.AsyncClient) -> dict[str, str]:
    """The Subscriptions' filters with their status."""
    response = await client.get("/Subscription")
    return {
        recipient_of(entry["resource"]) or "": entry["resource"]["status"]
        for entry in response.json().get("entry", [])
    }


@pytest.mark.slow
async def test_an_endpoint_of_the_pcp_is_enough(keeping: Pair, receiver: Receiver) -> None:
    await put(
        keeping[1],
        endpoint("e", receiver.url),
        organization("o"),
        role("r", "d", "o", "e"),
        patient("p", ref("PractitionerRole/r")),
    )
    await settled(keeping)
    assert await kept(keeping[1]) == {"PractitionerRole/r": "active"}
    await admit(keeping, "e1", "p")
    assert await told(keeping, receiver) == ["e1"]


@pytest.mark.slow
async def test_the_kept_subscription_goes_with_its_endpoint_and_returns(
    keeping: Pair, receiver: Receiver
) -> None:
    await put(
        keeping[1],
        endpoint("e", receiver.url),
        organization("o", "e"),
        role("r", "d", "o"),
        patient("p", ref("PractitionerRole/r")),
    )
    await settled(keeping)
    assert await kept(keeping[1]) == {"Organization/o": "active"}
    await put(keeping[1], endpoint("e", receiver.url, status="suspended"))
    await settled(keeping)
    assert await kept(keeping[1]) == {"Organization/o": "off"}
    await put(keeping[1], endpoint("e", receiver.url))
    await settled(keeping)
    assert await kept(keeping[1]) == {"Organization/o": "active"}


async def test_an_endpoint_of_others_is_left_alone(keeping: Pair, receiver: Receiver) -> None:
    """A hospital's Endpoint is no practice's: it is not even sent a handshake."""
    await put(keeping[1], endpoint("e", receiver.url), organization("hospital", "e"))
    await settled(keeping)
    assert await kept(keeping[1]) == {}
    assert receiver.requests == []


async def test_a_message_endpoint_is_told_by_message(keeping: Pair, receiver: Receiver) -> None:
    await put(
        keeping[1],
        endpoint("e", receiver.url, connection="hl7-fhir-msg"),
        organization("o", "e"),
        patient("p", ref("Organization/o")),
    )
    await settled(keeping)
    response = await keeping[1].get("/Subscription")
    (entry,) = response.json()["entry"]
    assert entry["resource"]["channel"]["type"] == "message"


@pytest.mark.slow
@pytest.mark.processes
async def test_a_roster_of_ten_thousand_is_applied_while_notices_flow(
    hub: Pair, receiver: Receiver
) -> None:
    """No notice waits for the roster: each comes within a second of its commit while the members are written."""
    _, client = hub
    await put(client, patient("te", ref("PractitionerRole/role-a")))
    await subscribe(hub, receiver, "general-practitioner=Organization/a")
    members = [f"Patient/te-{number}" for number in range(10_000)]
    roster = panel("te", "Organization/b", *members)
    writing = asyncio.create_task(put(client, roster))
    sent: list[float] = []
    while not writing.done() or len(sent) < 5:
        before = len(receiver.events)
        begun = time.perf_counter()
        await put(client, {**encounter(patient="te"), "id": f"te-{len(sent)}"})
        await receiver.wait(before + 1)
        sent.append(time.perf_counter() - begun)
    await writing
    assert max(sent) < timedelta(seconds=2).total_seconds(), sent
