"""State and plan contracts: who is told of the designated members' admissions, and what happens as a deadline passes.

The obligation is 42 CFR 422.107(d): group, recipient, time and method are each state's own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.fhir.codes import CONSENT_CATEGORY, CONTRACT_DEADLINE, INPATIENT, REVIEW_REASON
from tests.builders.practices import group, organization, patient, practitioner, put, ref
from tests.builders.receiver import Receiver
from tests.builders.spoilt import spoilt
from tests.builders.subscriptions import encounter
from tests.conftest import Server, make_settings, running
from tests.outcomes import assert_outcome, errors_in

pytestmark = pytest.mark.mongo

ADMIN = "http://carerelay.test/admin"
Pair = tuple[Server, httpx.AsyncClient]


@pytest.fixture
async def hub(mongod: str) -> AsyncIterator[Pair]:
    """A server that knows a state, its group of high-risk members with one member, and another patient."""
    async with running(make_settings(mongod)) as (server, client):
        await put(
            client,
            organization("medicaid"),
            patient("member", ref("Practitioner/dr")),
            practitioner("dr"),
            patient("other"),
            group("high-risk", "Patient/member"),
        )
        yield server, client


def contract(receiver: Receiver, **more: Any) -> dict[str, Any]:
    return {
        "id": "state",
        "title": "Admissions of high-risk members",
        "group": "Group/high-risk",
        "recipient": "Organization/medicaid",
        "deadline": 24,
        "alert_before": 4,
        "channel": {
            "type": "rest-hook",
            "endpoint": receiver.url,
            "headers": ["Authorization: Bearer state-secret"],
        },
        **more,
    }


async def keep(pair: Pair, terms: dict[str, Any], status: int = 201) -> dict[str, Any]:
    server, client = pair
    answer = await client.put(f"{ADMIN}/contracts/{terms['id']}", json=terms)
    assert answer.status_code == status, answer.text
    await server.worker.drain()
    kept: dict[str, Any] = answer.json()
    return kept


async def admit(pair: Pair, name: str, of: str = "member", **more: Any) -> None:
    """An admission that happened now."""
    server, client = pair
    period = {"start": datetime.now(UTC).isoformat(timespec="seconds")}
    await put(client, {**encounter(patient=of, **{"period": period, **more}), "id": name})
    await server.worker.drain()


def told(receiver: Receiver) -> list[str]:
    return [
        f"{each.parameter('topic').rpartition('/')[2]} {each.focus.rpartition('/')[2]}"
        for each in receiver.events
    ]


async def reviews(pair: Pair, **search: str) -> list[tuple[str, str]]:
    """Reason and focus of what people are asked."""
    await pair[0].engine.drain()
    found = await pair[1].get("/Task", params={"code": f"{REVIEW_REASON}|", **search})
    tasks = [entry["resource"] for entry in found.json().get("entry", ())]
    return sorted(
        (task["code"]["coding"][0]["code"], task["focus"]["reference"])
        for task in tasks
        if task["code"]["coding"][0]["code"].startswith("deadline")
    )


def failing(receiver: Receiver) -> None:
    """From now on notices are answered 500, handshakes 200."""
    receiver.answers([], then=500)


@pytest.mark.slow
async def test_hospital_and_snf_admissions_of_the_group_go_to_the_state(
    hub: Pair, receiver: Receiver
) -> None:
    await keep(hub, contract(receiver))
    await admit(hub, "hospital")
    await admit(hub, "nursing", class_="NONAC")
    await admit(hub, "emergency", class_="EMER")
    await admit(hub, "of-another", of="other")
    assert sorted(told(receiver)) == [
        "encounter-admission hospital",
        "encounter-snf-admission nursing",
    ]
    assert receiver.events[0].headers["authorization"] == "Bearer state-secret"


async def test_a_contract_of_before_tells_once_from_the_next_start_on(
    hub: Pair, receiver: Receiver
) -> None:
    """Its Subscription to admissions has no filter by kind of facility; its secret stays."""
    server, client = hub
    kept = await keep(hub, contract(receiver))
    for each in kept["resources"][1:]:
        found = (await client.get(f"/{each}")).json()
        filters = found["_criteria"]["extension"]
        mine = [one for one in filters if "facility-type" not in one["valueString"]]
        channel = {**found["channel"], "header": ["Authorization: Bearer state-secret"]}
        await put(client, {**found, "_criteria": {"extension": mine}, "channel": channel})
    await server.worker.drain()
    async with running(server.settings) as later:
        await later[0].worker.drain()
        await admit(later, "nursing", class_="NONAC")
    assert told(receiver) == ["encounter-snf-admission nursing"]
    assert receiver.events[0].headers["authorization"] == "Bearer state-secret"


async def test_a_contract_is_shown_as_resources(hub: Pair, receiver: Receiver) -> None:
    kept = await keep(hub, contract(receiver))
    client = hub[1]
    shown = (await client.get("/Contract/state")).json()
    assert errors_in(shown) == []
    assert shown["status"] == "executed"
    assert shown["subject"] == [ref("Group/high-risk")]
    assert shown["authority"] == [ref("Organization/medicaid")]
    hours = {each["url"]: each["valueDuration"]["value"] for each in shown["extension"]}
    assert hours[CONTRACT_DEADLINE] == 24
    assert "within 24 hours" in shown["term"][0]["offer"]["text"]
    subscriptions = [each for each in kept["resources"] if each.startswith("Subscription/")]
    assert len(subscriptions) == 2
    for each in subscriptions:
        subscription = (await client.get(f"/{each}")).json()
        assert subscription["status"] == "active"
        assert subscription["channel"]["header"] == ["Authorization: ********"]


def types(resource: dict[str, Any]) -> list[str]:
    """The types of records that a Contract gives."""
    (asset,) = resource["term"][0]["asset"]
    return sorted(each["code"] for concept in asset["type"] for each in concept["coding"])


def stays(resource: dict[str, Any]) -> set[str]:
    """The classes of stays that a Contract gives, and SNF for those in nursing facilities."""
    (asset,) = resource["term"][0]["asset"]
    return {each["code"] for concept in asset.get("subtype", ()) for each in concept["coding"]}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        pytest.param({}, ["Encounter"], id="events"),
        pytest.param(
            {"payload": "full-resource"},
            ["Condition", "Encounter", "Procedure"],
            id="what-notices-carry",
        ),
        pytest.param(
            {"topics": ["careplan-change"], "payload": "empty"}, ["CarePlan"], id="other-events"
        ),
    ],
)
async def test_a_contract_names_its_parties_and_the_records_that_it_takes(
    hub: Pair, receiver: Receiver, more: dict[str, Any], expected: list[str]
) -> None:
    """One that was written by an earlier version, which named none, is written anew at the next start."""
    server, client = hub
    await put(client, organization("dual-plan"))
    await keep(hub, contract(receiver, plan="Organization/dual-plan", **more))
    shown = (await client.get("/Contract/state")).json()
    assert errors_in(shown) == []
    assert shown["subject"] == [ref("Group/high-risk"), ref("Organization/dual-plan")]
    assert types(shown) == expected
    of_stays = {*INPATIENT, "SNF"} if "Encounter" in expected else set()
    assert stays(shown) == of_stays
    earlier = {**shown, "term": [{"offer": shown["term"][0]["offer"]}]}
    await put(client, earlier)
    async with running(server.settings) as (_, other):
        anew = (await other.get("/Contract/state")).json()
        assert (types(anew), stays(anew)) == (expected, of_stays)


async def test_secrets_are_not_shown_and_may_be_sent_back_masked(
    hub: Pair, receiver: Receiver
) -> None:
    kept = await keep(hub, contract(receiver))
    assert "state-secret" not in json.dumps(kept)
    again = contract(receiver, title="New title")
    again["channel"]["headers"] = kept["channel"]["headers"]
    await keep(hub, again, 200)
    await admit(hub, "hospital")
    assert receiver.events[0].headers["authorization"] == "Bearer state-secret"


async def test_a_new_secret_is_used(hub: Pair, receiver: Receiver) -> None:
    await keep(hub, contract(receiver))
    changed = contract(receiver)
    changed["channel"]["headers"] = ["Authorization: Bearer new-secret"]
    await keep(hub, changed, 200)
    await admit(hub, "hospital")
    assert receiver.events[0].headers["authorization"] == "Bearer new-secret"


async def test_who_refuses_notices_to_the_pcp_does_not_stop_the_state(
    hub: Pair, receiver: Receiver
) -> None:
    await keep(hub, contract(receiver))
    await put(
        hub[1],
        {
            "resourceType": "Consent",
            "id": "refusal",
            "status": "active",
            "scope": {"coding": [{"code": "patient-privacy"}]},
            "category": [{"coding": [{"system": CONSENT_CATEGORY, "code": "pcp-notification"}]}],
            "patient": ref("Patient/member"),
            "dateTime": "2026-01-01",
            "policyRule": {"text": "Plan policy"},
            "provision": {"type": "deny"},
        },
    )
    await admit(hub, "hospital")
    assert told(receiver) == ["encounter-admission hospital"]


async def test_topics_classes_payload_and_deadline_are_each_contracts_own(
    hub: Pair, receiver: Receiver
) -> None:
    terms = contract(
        receiver,
        topics=["encounter-discharge", "encounter-admission"],
        classes=["EMER"],
        payload="full-resource",
        deadline=48.5,
    )
    kept = await keep(hub, terms)
    for each in kept["resources"][
        1:
    ]:  # without a topic of nursing facilities theirs count as others
        assert "facility-type" not in (await hub[1].get(f"/{each}")).text
    await admit(hub, "emergency", class_="EMER")
    await admit(hub, "hospital")
    assert told(receiver) == ["encounter-admission emergency"]
    kinds = [entry["resource"]["resourceType"] for entry in receiver.events[0].json["entry"]]
    assert "Encounter" in kinds
    assert "within 48.5 hours" in str((await hub[1].get("/Contract/state")).json())


async def test_a_contract_that_ends_tells_nobody(hub: Pair, receiver: Receiver) -> None:
    await keep(hub, contract(receiver))
    client = hub[1]
    assert (await client.delete(f"{ADMIN}/contracts/state")).status_code == 204
    await admit(hub, "hospital")
    assert told(receiver) == []
    assert (await client.get("/Contract/state")).json()["status"] == "terminated"
    assert_outcome(await client.get(f"{ADMIN}/contracts/state"), 404, "not-found")


@pytest.mark.slow
async def test_a_person_is_asked_before_the_deadline_and_at_it(
    hub: Pair, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    server = hub[0]
    await keep(hub, contract(receiver))
    failing(receiver)
    await admit(hub, "hospital")
    assert await reviews(hub) == []
    server.clock.advance(timedelta(hours=19, minutes=50))
    assert await reviews(hub) == []
    with caplog.at_level(logging.WARNING, "app.coordination.contracts.contract_deadlines"):
        caplog.clear()
        server.clock.advance(timedelta(minutes=15))
        near = ("deadline-near", "Encounter/hospital")
        assert await reviews(hub) == [near]
        server.clock.advance(timedelta(hours=4))
        missed = ("deadline-missed", "Encounter/hospital")
        assert await reviews(hub, patient="Patient/member") == [missed, near]
        server.clock.advance(timedelta(days=2))
        assert await reviews(hub) == [missed, near]
    assert [record.action for record in caplog.records] == ["deadline-near", "deadline-missed"]  # type: ignore[attr-defined]


async def test_what_was_delivered_needs_nobody(hub: Pair, receiver: Receiver) -> None:
    await keep(hub, contract(receiver))
    await admit(hub, "hospital")
    hub[0].clock.advance(timedelta(days=3))
    assert await reviews(hub) == []


@pytest.mark.slow
async def test_what_the_endpoint_refused_for_good_is_late_too(
    hub: Pair, receiver: Receiver
) -> None:
    await keep(hub, contract(receiver, alert_before=0))
    receiver.answers([], then=410)
    await admit(hub, "hospital")
    hub[0].clock.advance(timedelta(hours=23))
    assert await reviews(hub) == []
    hub[0].clock.advance(timedelta(hours=2))
    assert await reviews(hub) == [("deadline-missed", "Encounter/hospital")]


async def test_the_deadline_counts_from_the_event_and_not_from_its_message(
    hub: Pair, receiver: Receiver
) -> None:
    await keep(hub, contract(receiver))
    failing(receiver)
    start = (datetime.now(UTC) - timedelta(hours=25)).isoformat(timespec="seconds")
    await admit(hub, "late", period={"start": start})
    hub[0].clock.advance(timedelta(minutes=6))
    assert await reviews(hub) == [("deadline-missed", "Encounter/late")]


async def test_what_consent_withholds_is_no_missed_deadline(hub: Pair, receiver: Receiver) -> None:
    await keep(hub, contract(receiver))
    label = {
        "system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality",
        "code": "V",
    }
    await admit(hub, "secret", meta={"security": [label]})
    assert told(receiver) == []
    hub[0].clock.advance(timedelta(hours=30))
    assert await reviews(hub) == []


@pytest.mark.parametrize(
    ("change", "names"),
    [
        pytest.param({"deadline": None}, "deadline", id="no-deadline"),
        pytest.param({"deadline": 0}, "deadline", id="deadline-of-nothing"),
        pytest.param({"alert_before": 24}, "alert_before", id="alert-after-the-deadline"),
        pytest.param({"group": "high-risk"}, "group", id="no-group"),
        pytest.param({"recipient": "Patient/member"}, "recipient", id="no-organization"),
        pytest.param({"topics": ["no-such-topic"]}, "topics[0]", id="unknown-topic"),
        pytest.param({"payload": "everything"}, "payload", id="unknown-payload"),
        pytest.param({"dead_line": 3}, "dead_line", id="unknown-field"),
        pytest.param({"channel": {"type": "fax", "endpoint": "x"}}, "channel.type", id="fax"),
        pytest.param({"id": "another"}, "id", id="other-id"),
    ],
)
async def test_what_a_contract_must_not_say_is_refused(
    client: httpx.AsyncClient, change: dict[str, Any], names: str
) -> None:
    terms = {**contract(Receiver(url="http://127.0.0.1:9/state")), **change}
    terms = {name: value for name, value in terms.items() if value is not None}
    answer = await client.put(f"{ADMIN}/contracts/state", json=terms)
    assert answer.status_code == 422, answer.text
    assert names in answer.text
    assert "state-secret" not in answer.text


async def test_who_names_a_party_that_is_not_here_is_refused(hub: Pair, receiver: Receiver) -> None:
    """It would tell nobody, and nobody would notice."""
    strangers = {
        "group": "Group/nobodys",
        "recipient": "Organization/nowhere",
        "plan": "Organization/none",
    }
    answer = await hub[1].put(f"{ADMIN}/contracts/state", json=contract(receiver, **strangers))
    assert answer.status_code == 422, answer.text
    issues = answer.json()["issue"]
    assert [(each["code"], *each["expression"], each["diagnostics"]) for each in issues] == [
        ("not-found", field, f"There is no {reference}") for field, reference in strangers.items()
    ]
    assert (await hub[1].get(f"{ADMIN}/contracts")).json()["contracts"] == []


async def test_a_party_that_comes_later_or_goes_is_somebodys_task_until_it_is_here(
    mongod: str, receiver: Receiver, tmp_path: Path
) -> None:
    """The file of a new server is there before what it names."""
    (tmp_path / "state.json").write_text(json.dumps(contract(receiver)))
    async with running(make_settings(mongod, contracts=tmp_path)) as (server, client):

        async def asked() -> list[tuple[str, str]]:
            await server.engine.drain()
            search = {"code": f"{REVIEW_REASON}|contract-party-missing", "_sort": "authored-on"}
            found = (await client.get("/Task", params=search)).json().get("entry", ())
            tasks = [entry["resource"] for entry in found]
            return [(each["status"], each["reasonCode"]["text"]) for each in tasks]

        both = "There is no Group/high-risk and no Organization/medicaid"
        assert await asked() == [("requested", both)]
        await put(client, organization("medicaid"))
        assert [status for status, _ in await asked()] == ["requested"]
        await put(client, patient("member"), group("high-risk", "Patient/member"))
        assert await asked() == [("completed", both)]
        await client.delete("/Group/high-risk")
        assert await asked() == [
            ("completed", both),
            ("requested", "There is no Group/high-risk"),
        ]


@pytest.mark.slow
async def test_contracts_come_from_files_and_go_with_them(
    mongod: str, receiver: Receiver, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(contract(receiver)))
    (tmp_path / "b.json").write_text(json.dumps([contract(receiver, id="plan", deadline=8)]))
    settings = make_settings(mongod, contracts=tmp_path)
    async with running(settings) as pair:
        await pair[0].worker.drain()
        listed = (await pair[1].get(f"{ADMIN}/contracts")).json()["contracts"]
        assert [(each["id"], each["deadline"]) for each in listed] == [("plan", 8), ("state", 24)]
        before = (await pair[1].get("/Contract/plan")).json()["meta"]["versionId"]
    (tmp_path / "a.json").unlink()
    async with running(settings) as pair:
        listed = (await pair[1].get(f"{ADMIN}/contracts")).json()["contracts"]
        assert [each["id"] for each in listed] == ["plan"]
        assert (await pair[1].get("/Contract/state")).json()["status"] == "terminated"
        assert (await pair[1].get("/Contract/plan")).json()["meta"]["versionId"] == before


@pytest.mark.parametrize(
    ("text", "names"),
    [
        pytest.param("{", "not JSON", id="no-json"),
        pytest.param('{"id": "x"}', "deadline", id="incomplete"),
        pytest.param("3", "state.json", id="no-object"),
    ],
)
async def test_a_bad_file_keeps_the_server_from_starting(
    mongod: str, tmp_path: Path, text: str, names: str
) -> None:
    file = tmp_path / "state.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=names):
        async with running(make_settings(mongod, contracts=file)):
            pass


@pytest.mark.slow
async def test_a_record_that_cannot_be_read_hides_no_missed_deadline(
    hub: Pair, receiver: Receiver
) -> None:
    """Not even its own, which then counts from when it was stored."""
    await keep(hub, contract(receiver, alert_before=0))
    failing(receiver)
    for name in ("one", "two"):
        await admit(hub, name)
    async with spoilt(hub[0].mongo, "Encounter/one"):
        hub[0].clock.advance(timedelta(hours=25))
        found = await reviews(hub)
    assert found == [("deadline-missed", "Encounter/one"), ("deadline-missed", "Encounter/two")]
