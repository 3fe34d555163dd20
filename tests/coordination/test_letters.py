"""The two letters that follow an opt-in to case management, through the front door."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import pytest

from app.fhir.codes import CONSENT_CATEGORY, EPISODE_TYPE, LETTER_KIND, REVIEW_REASON
from app.fhir.ids import new_id
from tests.builders.receiver import receiving
from tests.builders.subscriptions import topic_based
from tests.conftest import Server, make_settings, running

pytestmark = pytest.mark.mongo


async def put(client: httpx.AsyncClient, resource: dict[str, Any]) -> dict[str, Any]:
    url = f"/{resource['resourceType']}/{resource['id']}"
    response = await client.put(url, json=resource)
    assert response.status_code in (200, 201), response.text
    stored: dict[str, Any] = response.json()
    return stored


async def member(client: httpx.AsyncClient, *, pcp: bool = True) -> str:
    """A member, with a practice that has an address; returns the Patient's id."""
    patient = new_id()
    resource: dict[str, Any] = {"resourceType": "Patient", "id": patient}
    if pcp:
        await put(
            client, {"resourceType": "Organization", "id": f"o-{patient}", "name": "Practice"}
        )
        resource["generalPractitioner"] = [{"reference": f"Organization/o-{patient}"}]
    await put(client, resource)
    return patient


def consent(patient: str, *categories: str, type_: str = "permit", **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Consent",
        "id": new_id(),
        "status": "active",
        "scope": {"coding": [{"code": "patient-privacy"}]},
        "category": [
            {"coding": [{"system": CONSENT_CATEGORY, "code": code}]}
            for code in categories or ("case-management",)
        ],
        "patient": {"reference": f"Patient/{patient}"},
        "dateTime": "2026-01-01",
        "policyRule": {"text": "Plan policy"},
        "provision": {"type": type_},
        **more,
    }


def enrolment(patient: str, status: str = "active", **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "EpisodeOfCare",
        "id": new_id(),
        "status": status,
        "type": [{"coding": [{"system": EPISODE_TYPE, "code": "case-management"}]}],
        "patient": {"reference": f"Patient/{patient}"},
        "period": {"start": "2026-01-01"},
        **more,
    }


async def letters(server: Server, client: httpx.AsyncClient, patient: str) -> dict[str, Any]:
    """The letters about a member by kind; two of one kind are a mistake."""
    await server.engine.drain()
    found = await client.get(
        "/Communication", params={"subject": f"Patient/{patient}", "category": f"{LETTER_KIND}|"}
    )
    entries = [entry["resource"] for entry in found.json().get("entry", ())]
    by_kind = {each["category"][0]["coding"][0]["code"]: each for each in entries}
    assert len(by_kind) == len(entries)
    return by_kind


async def tasks(client: httpx.AsyncClient, patient: str, reason: str = "") -> list[dict[str, Any]]:
    """The review Tasks about a member, of a reason where one is given."""
    found = await client.get(
        "/Task", params={"patient": f"Patient/{patient}", "code": f"{REVIEW_REASON}|{reason}"}
    )
    return [entry["resource"] for entry in found.json().get("entry", ())]


async def reviews(client: httpx.AsyncClient, patient: str) -> list[str]:
    return sorted(each["code"]["coding"][0]["code"] for each in await tasks(client, patient))


async def test_on_opt_in_a_letter_goes_to_the_member_and_one_to_the_practice(
    server: Server, client: httpx.AsyncClient
) -> None:
    patient = await member(client)
    given = consent(patient, organization=[{"reference": f"Organization/o-{patient}"}])
    await put(client, given)
    found = await letters(server, client, patient)
    assert found.keys() == {"opt-in-member", "opt-in-provider"}
    mine, theirs = found["opt-in-member"], found["opt-in-provider"]
    assert mine["recipient"] == [{"reference": f"Patient/{patient}"}]
    assert theirs["recipient"] == [{"reference": f"Organization/o-{patient}"}]
    for letter in (mine, theirs):
        assert letter["status"] == "preparation"
        assert letter["about"] == [{"reference": f"Consent/{given['id']}"}]
        assert letter["sender"] == {"reference": f"Organization/o-{patient}"}
        assert "programme" in letter["payload"][0]["contentString"]


async def test_an_enrolment_that_becomes_active_is_an_opt_in(
    server: Server, client: httpx.AsyncClient
) -> None:
    patient = await member(client)
    planned = enrolment(patient, "planned")
    await put(client, planned)
    assert await letters(server, client, patient) == {}
    await put(client, {**planned, "status": "active"})
    found = await letters(server, client, patient)
    assert found["opt-in-member"]["about"] == [{"reference": f"EpisodeOfCare/{planned['id']}"}]
    assert len(found) == 2


async def test_consent_and_enrolment_together_are_told_once(
    server: Server, client: httpx.AsyncClient
) -> None:
    patient = await member(client)
    await put(client, consent(patient))
    await letters(server, client, patient)
    await put(client, enrolment(patient))
    assert len(await letters(server, client, patient)) == 2


async def test_enrolment_first_and_consent_later_are_told_once(
    server: Server, client: httpx.AsyncClient
) -> None:
    patient = await member(client)
    await put(client, enrolment(patient))
    await letters(server, client, patient)
    await put(client, consent(patient))
    assert len(await letters(server, client, patient)) == 2


async def test_a_letter_that_was_sent_stays_as_it_is(
    server: Server, client: httpx.AsyncClient
) -> None:
    patient = await member(client)
    given = await put(client, consent(patient))
    letter = (await letters(server, client, patient))["opt-in-member"]
    await put(client, {**letter, "status": "completed", "sent": "2026-01-02T09:00:00Z"})
    await put(client, {**given, "status": "inactive"})
    await put(client, {**given, "status": "active"})
    found = await letters(server, client, patient)
    assert found["opt-in-member"]["status"] == "completed"


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"type_": "deny"}, id="an opt-out"),
        pytest.param({"status": "proposed"}, id="a consent that is not active"),
        pytest.param({"provision": {"type": "permit", "period": {"end": "2020-01-01"}}}, id="over"),
    ],
)
async def test_what_is_no_opt_in_brings_no_letter(
    server: Server, client: httpx.AsyncClient, given: dict[str, Any]
) -> None:
    patient = await member(client)
    await put(client, consent(patient, **given))
    assert await letters(server, client, patient) == {}


async def test_consent_to_something_else_brings_no_letter(
    server: Server, client: httpx.AsyncClient
) -> None:
    patient = await member(client)
    await put(client, consent(patient, "provider-access"))
    assert await letters(server, client, patient) == {}


async def test_a_renewal_is_no_news(server: Server, client: httpx.AsyncClient) -> None:
    patient = await member(client)
    await put(client, consent(patient))
    before = await letters(server, client, patient)
    await put(client, consent(patient, dateTime="2026-02-01"))
    assert await letters(server, client, patient) == before


async def test_who_opts_in_again_after_an_opt_out_is_told_again(
    server: Server, client: httpx.AsyncClient
) -> None:
    patient = await member(client)
    await put(client, consent(patient, type_="deny"))
    again = consent(patient, dateTime="2026-02-01")
    await put(client, again)
    found = await letters(server, client, patient)
    assert found["opt-in-member"]["about"] == [{"reference": f"Consent/{again['id']}"}]


async def test_a_practice_that_must_not_be_told_gets_no_letter(
    server: Server, client: httpx.AsyncClient
) -> None:
    patient = await member(client)
    await put(client, consent(patient, "pcp-notification", type_="deny"))
    await put(client, consent(patient))
    theirs = (await letters(server, client, patient))["opt-in-provider"]
    assert theirs["status"] == "not-done"
    assert theirs["statusReason"]["coding"][0]["code"] == "patient-objection"
    assert theirs.keys().isdisjoint({"recipient", "payload"})


async def test_without_a_practice_somebody_has_to_look(
    server: Server, client: httpx.AsyncClient
) -> None:
    patient = await member(client, pcp=False)
    await put(client, consent(patient))
    theirs = (await letters(server, client, patient))["opt-in-provider"]
    assert theirs["statusReason"]["coding"][0]["code"] == "recipient-unavailable"
    assert await reviews(client, patient) == ["no-pcp"]


async def test_a_consent_that_cannot_be_understood_is_looked_at_by_a_person(
    server: Server, client: httpx.AsyncClient
) -> None:
    patient = await member(client)
    unclear = consent(patient, provision={"type": "deny", "dataPeriod": {"start": "2020"}})
    await put(client, unclear)
    await server.engine.drain()
    assert await reviews(client, patient) == ["unsuitable-consent"]
    await put(client, {**unclear, "dateTime": "2026-01-03"})
    await server.engine.drain()
    assert await reviews(client, patient) == ["unsuitable-consent"]


async def test_a_practice_that_listens_has_its_letter_sent_and_nobody_mails_it(
    mongod: str,
) -> None:
    async with receiving() as receiver, running(make_settings(mongod, test_clock=True)) as pair:
        server, client = pair
        told, other = await member(client), await member(client)
        draft = topic_based(f"general-practitioner=Organization/o-{told}", endpoint=receiver.url)
        letter = {"criteria": "http://carerelay.example/SubscriptionTopic/letter"}
        assert (await client.post("/Subscription", json=draft | letter)).status_code == 201
        await server.worker.drain()
        for patient in (told, other):
            await put(client, enrolment(patient))
        theirs = (await letters(server, client, told))["opt-in-provider"]
        await server.worker.drain()
        (notice,) = receiver.events
        assert notice.focus.endswith(f"Communication/{theirs['id']}")
        server.clock.advance(timedelta(minutes=1))
        sent = await letters(server, client, told)
        assert sent["opt-in-provider"]["status"] == "completed"
        assert "sent" in sent["opt-in-provider"]
        mailed = await letters(server, client, other)
        statuses = {mailed["opt-in-provider"]["status"], sent["opt-in-member"]["status"]}
        assert statuses == {"preparation"}


async def test_a_letter_without_a_practice_is_told_once_one_is_named(mongod: str) -> None:
    async with receiving() as receiver, running(make_settings(mongod)) as pair:
        server, client = pair
        late, unwilling, left = [await member(client, pcp=False) for _ in range(3)]
        practice = {"resourceType": "Organization", "id": "named-late", "name": "Practice"}
        await put(client, practice)
        draft = topic_based("general-practitioner=Organization/named-late", endpoint=receiver.url)
        letter = {"criteria": "http://carerelay.example/SubscriptionTopic/letter"}
        assert (await client.post("/Subscription", json=draft | letter)).status_code == 201
        await server.worker.drain()
        for patient in (late, unwilling):
            await put(client, consent(patient))
        episode = enrolment(left)
        await put(client, episode)
        await letters(server, client, left)
        (task,) = await tasks(client, late)
        assert "Name the patient's primary care practice" in task["reasonCode"]["text"]

        await put(client, consent(unwilling, "pcp-notification", type_="deny"))
        await put(client, {**episode, "status": "finished"})
        pcp = [{"reference": "Organization/named-late"}]
        for patient in (late, unwilling, left):
            named = {"resourceType": "Patient", "id": patient, "generalPractitioner": pcp}
            await put(client, named)
        theirs = [
            (await letters(server, client, patient))["opt-in-provider"]
            for patient in (late, unwilling, left)
        ]
        await server.worker.drain()
        assert [each["status"] for each in theirs] == ["preparation", "not-done", "not-done"]
        assert theirs[0]["recipient"] == pcp
        assert "programme" in theirs[0]["payload"][0]["contentString"]
        assert "statusReason" not in theirs[0]
        assert theirs[1]["statusReason"]["coding"][0]["code"] == "patient-objection"
        assert theirs[2]["statusReason"]["coding"][0]["code"] == "recipient-unavailable"
        assert [each.focus.rpartition("/")[2] for each in receiver.events] == [theirs[0]["id"]]
        for patient in (late, unwilling, left):
            (asked,) = await tasks(client, patient, "no-pcp")
            assert asked["status"] == "completed"
