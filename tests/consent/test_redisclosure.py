"""42 CFR Part 2: what a Consent lets somebody have says so, whatever way it goes, and is accounted for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from app.audit.accounting import disclosures
from app.consent.redisclosure import HEADER, NOTICE
from app.fhir.codes import PART_2_DISCLOSURE, REDISCLOSURE_NOTICE, SUBSCRIPTION_RECIPIENT
from app.fhir.ids import new_id
from tests.builders.access_world import World, coverage, encounter, security, world as a_world
from tests.builders.consents import actor, consent, label, permit
from tests.builders.davinci import alerts
from tests.builders.exporting import kick_off
from tests.builders.practices import patient, ref
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import classic, email, subscribed, topic_based
from tests.conftest import BASE, make_settings, running
from tests.subscriptions.test_email import Mailbox, attachments, mailbox

pytestmark = pytest.mark.mongo
Resource = dict[str, Any]
FHIR = "application/fhir+json"
__all__ = ["mailbox"]  # a fixture

SCOPE = (
    "given 2026-01-01: permits disclosure of records labelled 42CFRPart2 "
    "to Organization/north until 2099-12-31"
)


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod, base_url=BASE) as found:
        yield found


@pytest.fixture(autouse=True)
async def _no_others(world: World) -> AsyncIterator[None]:
    yield
    await world.end_subscriptions()


def permission(who: str, to: str = "north") -> Resource:
    rule = permit(
        securityLabel=label("42CFRPart2"),
        actor=actor(f"Organization/{to}"),
        period={"end": "2099-12-31"},
    )
    given = consent(PART_2_DISCLOSURE, provision=rule)
    own = {"id": f"c-{who}", "patient": ref(f"Patient/{who}"), "policyRule": {"text": "P"}}
    return {**given, **own}


def stay(who: str, labelled: bool = True) -> Resource:
    meta = {"meta": security("SUD")} if labelled else {}
    return encounter(new_id(), who, "general", **meta)


async def arrive(world: World) -> str:
    """A patient of north's; general has its word that north may have what is labelled."""
    who = new_id()
    known = patient(who, ref("PractitionerRole/role-n")) | {"name": [{"family": "Meadow"}]}
    await world.put("admin", known, stay(who, labelled=False))
    await world.put("general", stay(who), permission(who))
    await world.server.worker.drain()
    return who


def notice_in(resource: Resource) -> Resource | None:
    """The notice that a resource carries, as its parts."""
    found = [
        each for each in resource["meta"].get("extension", ()) if each["url"] == REDISCLOSURE_NOTICE
    ]
    assert len(found) < 2
    if not found:
        return None
    codes = {each["code"] for each in resource["meta"]["security"]}
    assert {"42CFRPart2", "NORDSCLCD"} <= codes
    text, *consents = found[0]["extension"]
    assert text == {"url": "notice", "valueString": NOTICE}
    (one,) = consents
    return dict(one["valueReference"])


def asking(body: Resource) -> Resource:
    recipient = {"url": SUBSCRIPTION_RECIPIENT, "valueReference": ref("Organization/north")}
    return body | {"extension": [recipient]}


def subscription(channel: str, who: str, url: str) -> Resource:
    if channel == "classic":
        return classic(f"Encounter?patient=Patient/{who}", url, FHIR)
    if channel == "davinci":
        return alerts(url)
    asked = topic_based(content="full-resource", endpoint=url)
    asked["channel"]["type"] = channel
    return asked


def carried(channel: str, body: Resource) -> Resource:
    """The Bundle or resource that a notice brought."""
    return dict(body["entry"][1]["resource"]) if channel == "message" else body


@pytest.mark.parametrize("channel", ["rest-hook", "classic", "message", "davinci"])
async def test_a_notice_under_consent_carries_the_notice_and_the_scope(
    world: World, receiver: Receiver, channel: str
) -> None:
    who = await arrive(world)
    asked = asking(subscription(channel, who, f"{receiver.url}/{channel}"))
    answer = await world.ask("north", "POST", "/Subscription", asked)
    assert answer.status_code == 201, answer.text
    await world.server.worker.drain()
    receiver.requests.clear()
    await world.put("general", stay(who))
    await world.server.worker.drain()
    (received,) = receiver.requests
    told = notice_in(carried(channel, received.json))
    assert told == {"reference": f"{BASE}/Consent/c-{who}", "display": f"Consent/c-{who}, {SCOPE}"}
    # What needed no Consent carries none.
    receiver.requests.clear()
    await world.put("general", stay(who, labelled=False))
    await world.server.worker.drain()
    (received,) = receiver.requests
    assert notice_in(carried(channel, received.json)) is None


async def test_a_mail_under_consent_says_it_in_words_too(mongod: str, mailbox: Mailbox) -> None:
    settings = make_settings(
        mongod,
        smtp_host="127.0.0.1",
        smtp_port=mailbox.port,
        smtp_security="none",
        smtp_from="hub@carerelay.test",
    )
    async with running(settings) as (server, client):
        who = new_id()
        await put(client, patient(who), permission(who))
        await subscribed((server, client), asking(email(content="full-resource")))
        await put(client, stay(who))
        await server.worker.drain()
        mail = mailbox.messages[-1]
        body = mail.get_body()
        assert body is not None
        assert NOTICE in body.get_content()
        assert SCOPE in body.get_content().replace("\n", " ")
        ((_, attached),) = attachments(mail)
        assert notice_in(msgspec.json.decode(attached)) is not None


async def put(client: httpx.AsyncClient, *resources: Resource) -> None:
    for each in resources:
        answer = await client.put(f"/{each['resourceType']}/{each['id']}", json=each)
        assert answer.status_code in (200, 201), answer.text


async def test_an_answer_under_consent_carries_them_in_a_header(world: World) -> None:
    who = await arrive(world)
    visit = stay(who)
    await world.put("general", visit)
    for url in (f"/Encounter/{visit['id']}", f"/Encounter?patient=Patient/{who}"):
        answer = await world.get("north", url)
        assert answer.headers[HEADER] == f"{NOTICE} Consent/c-{who}, {SCOPE}."
    assert HEADER not in (await world.get("north", f"/Patient/{who}")).headers
    # Who knows it already needs no Consent.
    assert HEADER not in (await world.get("general", f"/Encounter/{visit['id']}")).headers


async def test_a_file_of_an_export_carries_them_in_a_header(world: World) -> None:
    who = await arrive(world)
    only = f"_typeFilter=Encounter%3Fpatient%3DPatient%2F{who}"
    url = f"/Patient/$export?_type=Encounter,Patient&{only}"
    export = await kick_off(world, "north", url)
    files = await export.files()
    told = (await world.get("north", files["Encounter"])).headers[HEADER]
    assert told.startswith(NOTICE)
    assert f"Consent/c-{who}, {SCOPE}." in told
    assert HEADER not in (await world.get("north", files["Patient"])).headers
    found = [each async for each in disclosures(world.server.mongo, who, part_2=True)]
    assert [(each["what"], each["resource"], each["consent"]) for each in found] == [
        ("export", "Encounter", f"Consent/c-{who}")
    ]


async def test_events_that_are_asked_for_carry_them(world: World, receiver: Receiver) -> None:
    who = await arrive(world)
    asked = asking(subscription("rest-hook", who, f"{receiver.url}/events"))
    id_ = (await world.ask("north", "POST", "/Subscription", asked)).json()["id"]
    await world.server.worker.drain()
    await world.put("general", stay(who))
    await world.server.worker.drain()
    url = f"/Subscription/{id_}/$events?content=full-resource"
    assert notice_in((await world.get("north", url)).json()) is not None


@pytest.mark.parametrize("content", ["id-only", "empty"])
async def test_a_reference_under_consent_carries_them(
    world: World, receiver: Receiver, content: str
) -> None:
    """It tells that there is such a record; the number of an empty notice tells nothing."""
    who = await arrive(world)
    asked = asking(topic_based(content=content, endpoint=f"{receiver.url}/{content}"))
    assert (await world.ask("north", "POST", "/Subscription", asked)).status_code == 201
    await world.server.worker.drain()
    receiver.requests.clear()
    await world.put("general", stay(who))
    await world.server.worker.drain()
    (received,) = receiver.requests
    is_told = content == "id-only"
    assert (notice_in(received.json) is not None) is is_told
    found = [each["what"] async for each in disclosures(world.server.mongo, who, part_2=True)]
    assert found == (["delivery"] if is_told else [])


async def test_answers_about_notices_under_consent_carry_them(
    world: World, receiver: Receiver
) -> None:
    who = await arrive(world)
    await world.put("admin", coverage(new_id(), who, "plan-a"))
    # The proof of a notice is the server's: an organization's word would open its own records alone.
    await world.put("admin", permission(who, "plan-a") | {"id": f"plan-{who}"})
    asked = asking(topic_based(endpoint=f"{receiver.url}/about"))
    assert (await world.ask("north", "POST", "/Subscription", asked)).status_code == 201
    await world.server.worker.drain()
    await world.put("general", stay(who))
    await world.server.worker.drain()
    await world.server.engine.drain()
    url = world.server.settings.base_url.removesuffix("/fhir")
    answer = await world.ask("plan-a", "GET", f"{url}/admin/deliveries")
    assert f"Consent/plan-{who}" in answer.headers[HEADER]
    found = [each["what"] async for each in disclosures(world.server.mongo, who, part_2=True)]
    assert found[-1] == "administration"


async def test_what_was_disclosed_under_consent_can_be_listed(
    world: World, receiver: Receiver
) -> None:
    who = await arrive(world)
    asked = asking(subscription("rest-hook", who, f"{receiver.url}/listed"))
    answer = await world.ask("north", "POST", "/Subscription", asked)
    assert answer.status_code == 201, answer.text
    await world.server.worker.drain()
    visit = stay(who)
    await world.put("general", visit)
    await world.server.worker.drain()
    await world.get("north", f"/Encounter/{visit['id']}")
    await world.get("north", f"/Patient/{who}")
    await world.get("general", f"/Encounter/{visit['id']}")
    found = [each async for each in disclosures(world.server.mongo, who, part_2=True)]
    shown = [(each["what"], each["organization"], each["consent"]) for each in found]
    assert shown == [
        ("delivery", "Organization/north", f"Consent/c-{who}"),
        ("read", "Organization/north", f"Consent/c-{who}"),
    ]
    assert {each["resource"] for each in found} == {f"Encounter/{visit['id']}/_history/1"}
    assert len([each async for each in disclosures(world.server.mongo, who)]) > 2
    events = await world.get("admin", f"/AuditEvent?patient=Patient/{who}&_count=100")
    named = [
        each["what"]["reference"]
        for entry in events.json()["entry"]
        for each in entry["resource"]["entity"]
        if each["what"].get("reference", "").startswith("Consent/")
        and "_history" not in each["what"]["reference"]
    ]
    assert named == [f"Consent/c-{who}"] * 2
