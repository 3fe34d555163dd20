"""A server without authorization, and web pages that its users have open: nothing is done for those from elsewhere."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx
import pytest

from app.authentication.clients import Clients
from app.fhir.codes import PART_2_DISCLOSURE
from app.network.egress_policy import Egress
from tests.builders.access_world import condition
from tests.builders.consents import actor, consent, deny, label, permit
from tests.builders.receiver import receiving
from tests.builders.smart import (
    ask,
    bearer,
    claims_of,
    ec_key,
    key_set,
    register,
    signed,
    token_for,
)
from tests.builders.subscriptions import classic
from tests.conftest import JSON, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

ROOT = "http://carerelay.test"
PATIENT = {"resourceType": "Patient", "id": "web-page"}
ELSEWHERE = {"origin": "https://evil.example"}


# What it is called


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("carerelay.test", 200),
        ("CareRelay.test:8080", 200),
        ("localhost:8080", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8080", 200),
        ("evil.example", 403),
        ("evil.example:8080", 403),
        ("carerelay.test.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("10.0.0.1", 403),
        ("", 403),
    ],
)
async def test_no_other_name_leads_to_it(client: httpx.AsyncClient, host: str, status: int) -> None:
    """A page that has its own name lead to this address (DNS rebinding) would be no page from elsewhere."""
    for url in ("/metadata", f"{ROOT}/admin/topics"):
        answer = await client.get(url, headers={"host": host})
        assert answer.status_code == status, answer.text
    # Whoever watches it may call it as it likes, and is told nothing.
    watched = await client.get(f"{ROOT}/healthz", headers={"host": host or "x"})
    assert watched.status_code == 200


async def test_the_base_urls_name_and_its_address_are_its_own(mongod: str) -> None:
    settings = make_settings(
        mongod,
        base_url="https://fhir.example.org/fhir",
        host="192.0.2.7",
        hosts="",
        allow_open=True,
    )
    async with running(settings) as (_, client):
        for host, status in (
            ("fhir.example.org", 200),
            ("192.0.2.7:8080", 200),
            ("a.example", 403),
        ):
            assert (await client.get("/metadata", headers={"host": host})).status_code == status
        own = {"host": "fhir.example.org", "origin": "https://fhir.example.org"}
        assert (await client.put("/Patient/web-page", json=PATIENT, headers=own)).is_success


# Who asks


NAVIGATION = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.mark.parametrize(
    ("method", "headers", "is_answered"),
    [
        pytest.param("GET", {}, True, id="a-program"),
        pytest.param("GET", {"sec-fetch-site": "none", **NAVIGATION}, True, id="typed"),
        pytest.param("GET", {"sec-fetch-site": "cross-site", **NAVIGATION}, True, id="a-link"),
        pytest.param("GET", {"sec-fetch-site": "same-origin"}, True, id="its-own-page"),
        pytest.param("PUT", {"origin": ROOT}, True, id="its-own-page-writes"),
        pytest.param("PUT", {"origin": "https://app.example"}, True, id="an-allowed-page"),
        pytest.param("PUT", ELSEWHERE, False, id="another-page"),
        pytest.param("PUT", {"origin": "null"}, False, id="a-sandboxed-page"),
        pytest.param("PUT", {"origin": f"{ROOT}:9"}, False, id="another-port"),
        pytest.param("PUT", {"sec-fetch-site": "same-site"}, False, id="the-same-site"),
        pytest.param("GET", {"sec-fetch-site": "cross-site"}, False, id="without-looking"),
        pytest.param(
            "GET", {"sec-fetch-site": "cross-site", **NAVIGATION, "sec-fetch-dest": "iframe"}, False
        ),
        pytest.param("DELETE", {"sec-fetch-site": "cross-site", **NAVIGATION}, False, id="no-link"),
    ],
)
async def test_pages_from_elsewhere_get_nothing_but_links_followed(
    mongod: str, method: str, headers: dict[str, str], is_answered: bool
) -> None:
    async with running(make_settings(mongod, cors_origins="https://app.example")) as (_, client):
        if method != "PUT":
            await client.put("/Patient/web-page", json=PATIENT)
        body = PATIENT if method == "PUT" else None
        answer = await client.request(method, "/Patient/web-page", json=body, headers=headers)
        if not is_answered:
            assert_outcome(answer, 403, "forbidden")
        kept = await client.get("/Patient/web-page")
        assert (answer.is_success, kept.is_success) == (is_answered, is_answered or method != "PUT")


# What is sent


@pytest.mark.parametrize("declared", [None, "text/plain", "multipart/form-data", "application/*"])
async def test_no_body_is_guessed_and_no_empty_post_acts(
    client: httpx.AsyncClient, declared: str | None
) -> None:
    """What a form or a page can send without asking has one of three types, or none."""
    headers = {"content-type": declared} if declared else {}
    for method, place, body in (
        ("POST", "/fhir", {"resourceType": "Bundle", "type": "batch"}),
        ("POST", "/fhir/Patient", PATIENT),
        ("PUT", "/fhir/Patient/web-page", PATIENT),
        ("POST", "/fhir/Binary", {"resourceType": "Binary", "contentType": "a/b"}),
        ("PATCH", "/fhir/Patient/web-page", []),
        ("POST", "/fhir/$reindex", None),
        ("POST", "/fhir/Subscription/none/$resend", None),
        ("POST", "/admin/deliveries/resend?state=dead", None),
        ("POST", "/admin/events/replay?all=true", None),
        ("POST", "/admin/dead-letters/retry?queue=timers", None),
        ("POST", "/admin/clients", {"client_id": "web-page", "name": "x", "role": "administrator"}),
        ("POST", "/admin/clock", {"advance": 1}),
        ("PUT", "/admin/topics/web-page", {"resourceType": "SubscriptionTopic"}),
        ("PUT", "/admin/contracts/web-page", {}),
    ):
        content = json.dumps(body) if body is not None else None
        answer = await client.request(method, ROOT + place, content=content, headers=headers)
        assert_outcome(answer, 415, "not-supported")
    assert (await client.get("/Patient/web-page")).status_code == 404


async def test_a_search_by_post_is_a_form_and_an_empty_one_needs_no_type(
    client: httpx.AsyncClient,
) -> None:
    assert (await client.post("/Patient/_search")).status_code == 200
    assert (await client.post("/Patient/_search", data={"active": "true"})).status_code == 200
    assert (await client.post("/Patient/_search", content="active=true")).status_code == 415


# What is left of it once there is authorization


async def test_a_client_from_before_authorization_is_shut_out_until_it_is_confirmed(
    mongod: str, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = ec_key(), ec_key()
    settings = make_settings(mongod, hosts="carerelay.test")
    async with running(settings) as (server, client):
        # One that the operator registered by the command line, and one that is added over HTTP.
        own = Clients(server.mongo, Egress())
        wanted = {"name": "x", "role": "administrator", "scopes": "system/*.cruds"}
        await own.add({**wanted, "client_id": "operator", "jwks": key_set(ours)})
        await own.add({**wanted, "client_id": "changed", "jwks": key_set(ours)})
        added = {**wanted, "client_id": "intruder", "jwks": key_set(theirs)}
        answer = await client.post(f"{ROOT}/admin/clients", json=added)
        assert (answer.status_code, answer.json()["unconfirmed"]) == (201, True)
        # New keys for one that is there are as good as a new client, and so is letting one in again.
        await client.post(f"{ROOT}/admin/clients/changed/rotate", json={"jwks": key_set(theirs)})
        refused = await client.post(f"{ROOT}/admin/clients/intruder/confirm", headers=JSON)
        assert_outcome(refused, 403, "forbidden")
        await client.post(f"{ROOT}/admin/clients/intruder/enable", headers=JSON)
    caplog.set_level(logging.WARNING)
    async with running(settings.model_copy(update={"auth": "smart"})) as (server, client):
        named = [each.client_id for each in caplog.records if hasattr(each, "client_id")]
        assert named == ["changed", "intruder"]
        for client_id in named:
            answer = await ask(client, signed(claims_of(server, client_id), theirs))
            assert (answer.status_code, answer.json()["error"]) == (400, "invalid_client")
        headers = bearer(await token_for(server, client, "operator", ours))
        listed = (await client.get(f"{ROOT}/admin/clients", headers=headers)).json()["clients"]
        assert {each["client_id"]: each["unconfirmed"] for each in listed} == {
            "operator": False,
            "changed": True,
            "intruder": True,
        }
        confirmed = await client.post(
            f"{ROOT}/admin/clients/changed/confirm", headers={**headers, **JSON}
        )
        assert (confirmed.status_code, confirmed.json()["disabled"]) == (200, False)
        assert await token_for(server, client, "changed", theirs)


async def test_what_steers_the_server_from_before_authorization_is_listed_once(
    mongod: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = make_settings(mongod)
    topic = {
        "resourceType": "SubscriptionTopic",
        "url": "http://example.org/SubscriptionTopic/planted",
        "status": "active",
        "resourceTrigger": [{"resource": "Patient", "supportedInteraction": ["create"]}],
    }
    agreed = {"resourceType": "Contract", "id": "planted", "status": "executed"}
    draft = {"resourceType": "Contract", "id": "draft", "status": "negotiable"}
    url = "/Task?code=before-authorization"
    async with running(settings) as (_, client):
        for each in (agreed, draft):
            await client.put(f"/Contract/{each['id']}", json=each)
        assert (await client.put(f"{ROOT}/admin/topics/planted", json=topic)).is_success
        made = (await client.post("/Subscription", json=classic("Patient?"))).json()
        for name, status in (("planted", "active"), ("old", "inactive")):
            given = {**consent(PART_2_DISCLOSURE, status=status), "id": name}
            assert (await client.put(f"/Consent/{name}", json=given)).is_success
        assert "entry" not in (await client.get(url)).json()
    caplog.set_level(logging.WARNING)
    smart = settings.model_copy(update={"auth": "smart"})
    for listed in (4, 0):  # the second start has nothing to say
        caplog.clear()
        async with running(smart) as (server, client):
            said = [each.count for each in caplog.records if hasattr(each, "count")]
            assert said == [1] * listed
            key = ec_key()
            admin = await register(server, key, role="administrator")
            headers = bearer(await token_for(server, client, admin, key))
            (entry,) = (await client.get(url, headers=headers)).json()["entry"]
    assert [
        each.get("valueCanonical") or each["valueReference"]["reference"]
        for each in entry["resource"]["input"]
    ] == ["Contract/planted", topic["url"], f"Subscription/{made['id']}", "Consent/planted"]


async def test_a_subscription_from_before_authorization_tells_nobody(mongod: str) -> None:
    """Whatever it says of itself: here that the server keeps it for a practice, which sees the patient."""
    settings = make_settings(mongod)
    async with receiving() as elsewhere:
        async with running(settings) as (_, client):
            installed = classic("Encounter?", endpoint=elsewhere.url, payload="application/json")
            owner = {"reference": "Organization/practice-1"}
            installed["meta"] = {
                "tag": [{"system": "http://carerelay.example/CodeSystem/subscription-origin"}]
            }
            installed["meta"]["tag"][0]["code"] = "endpoint"
            installed["extension"] = [
                {
                    "url": "http://carerelay.example/StructureDefinition/subscription-recipient",
                    "valueReference": owner,
                }
            ]
            made = await client.post("/Subscription", json=installed)
            assert made.status_code == 201, made.text
            for each in (
                {"resourceType": "Organization", "id": "practice-1", "name": "Practice"},
                {"resourceType": "Patient", "id": "p1", "generalPractitioner": [owner]},
            ):
                await client.put(f"/{each['resourceType']}/{each['id']}", json=each)
        smart = settings.model_copy(update={"auth": "smart", "egress_allow": "127.0.0.1"})
        async with running(smart) as (server, client):
            key = ec_key()
            admin = await register(server, key, role="administrator")
            headers = bearer(await token_for(server, client, admin, key))
            stay: dict[str, Any] = {
                "resourceType": "Encounter",
                "status": "in-progress",
                "class": {"code": "IMP"},
                "subject": {"reference": "Patient/p1"},
            }
            assert (await client.post("/Encounter", json=stay, headers=headers)).is_success
            await server.worker.drain()
            [row] = await server.mongo.collection("deliveries").find({}).to_list(None)
            assert (row["state"], row["reason"]) == ("suppressed", "Withheld: access")
            assert elsewhere.requests == []


async def test_a_consent_from_before_authorization_permits_nothing_until_it_is_written_again(
    mongod: str,
) -> None:
    """Anybody could record it; what it refuses counts all the same."""
    settings = make_settings(mongod)
    practice = {"reference": "Organization/practice-1"}
    own = label("42CFRPart2")
    given = consent(
        PART_2_DISCLOSURE,
        provision=permit(securityLabel=own, actor=actor(practice["reference"])),
    )
    refused = {**consent(provision=deny()), "id": "c2", "patient": {"reference": "Patient/p2"}}
    async with running(settings) as (_, client):
        for each in (
            {"resourceType": "Organization", "id": "practice-1", "name": "Practice"},
            {"resourceType": "Patient", "id": "p1", "generalPractitioner": [practice]},
            {"resourceType": "Patient", "id": "p2", "generalPractitioner": [practice]},
            condition("d1", "p1", meta={"security": label("SUD")}),
            given,
            refused,
        ):
            answer = await client.put(f"/{each['resourceType']}/{each['id']}", json=each)
            assert answer.is_success, answer.text
    smart = settings.model_copy(update={"auth": "smart"})
    async with running(smart) as (server, client):
        key = ec_key()
        admin = await register(server, key, role="administrator")
        reader = await register(
            server, key, client_id="reader", role="practice", organization=practice["reference"]
        )
        headers = bearer(await token_for(server, client, admin, key))
        theirs = bearer(await token_for(server, client, reader, key))

        async def read() -> list[int]:
            places = ("/Patient/p1", "/Condition/d1", "/Patient/p2")
            return [(await client.get(each, headers=theirs)).status_code for each in places]

        assert await read() == [200, 404, 404]
        verified = {**given, "verification": [{"verified": True}]}
        answer = await client.put(f"/Consent/{given['id']}", json=verified, headers=headers)
        assert answer.status_code == 200, answer.text
        assert await read() == [200, 200, 404]
