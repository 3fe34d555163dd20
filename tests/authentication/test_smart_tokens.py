"""SMART Backend Services from the outside: discovery, asking for a token, and what a token is good for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import msgspec
import pytest
from joserfc import jws
from joserfc.jwk import KeySet

from app.authentication import clients
from app.authentication.access_tokens import Authority, authenticate
from app.authentication.caller import Caller
from app.authentication.scopes import CONSENT_AUTHORITY
from app.errors import Unauthorized
from tests.builders.smart import (
    ask,
    authority_of,
    bearer,
    claims_of,
    ec_key,
    form,
    key_set,
    register,
    rsa_key,
    signed,
    token_for,
)
from tests.conftest import BASE, JSON, Server, make_settings, running

pytestmark = pytest.mark.mongo
ROOT = BASE.removesuffix("/fhir")


@pytest.fixture(scope="module")
async def pair(mongod: str, tmp_path_factory) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    settings = make_settings(
        mongod,
        auth="smart",
        base_url=BASE,
        data=tmp_path_factory.mktemp("d"),
        token_rate_limit=0,
    )
    async with running(settings) as pair:
        yield pair


@pytest.fixture
def server(pair: tuple[Server, httpx.AsyncClient]) -> Server:
    return pair[0]


@pytest.fixture
def client(pair: tuple[Server, httpx.AsyncClient]) -> httpx.AsyncClient:
    return pair[1]


async def caller_of(server: Server, token: str) -> Caller:
    return await authenticate(server.authority, f"Bearer {token}")


async def refusal_of(server: Server, header: str | None) -> Unauthorized:
    with pytest.raises(Unauthorized) as refused:
        await authenticate(server.authority, header)
    return refused.value


@pytest.mark.parametrize("place", [f"{BASE}/", f"{ROOT}/"])
async def test_discovery_names_the_token_endpoint(client, place):
    answer = await client.get(f"{place}.well-known/smart-configuration")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert found["token_endpoint"] == f"{ROOT}/auth/token"
    assert found["token_endpoint_auth_methods_supported"] == ["private_key_jwt"]
    assert found["token_endpoint_auth_signing_alg_values_supported"] == ["RS384", "ES384"]
    assert found["grant_types_supported"] == ["client_credentials"]
    assert found["capabilities"] == [
        "client-confidential-asymmetric",
        "permission-v1",
        "permission-v2",
    ]
    assert "system/*.rs" in found["scopes_supported"]


async def test_capability_statement_says_how_to_be_admitted(client):
    (rest,) = (await client.get(f"{BASE}/metadata")).json()["rest"]
    (service,) = rest["security"]["service"]
    assert service["coding"][0]["code"] == "SMART-on-FHIR"
    (addresses,) = rest["security"]["extension"]
    assert addresses["extension"] == [{"url": "token", "valueUri": f"{ROOT}/auth/token"}]


async def test_without_authorization_there_is_nothing_of_it(mongod):
    async with running(make_settings(mongod)) as (server, client):
        assert (await client.get(f"{BASE}/.well-known/smart-configuration")).status_code == 404
        assert (await client.post("/auth/token")).status_code in (404, 405)
        (rest,) = (await client.get(f"{BASE}/metadata")).json()["rest"]
        assert "security" not in rest
        assert server.services.find(Authority) is None


@pytest.mark.parametrize(
    "make", [pytest.param(ec_key, id="ES384"), pytest.param(rsa_key, id="RS384")]
)
async def test_an_assertion_buys_a_token_for_the_scopes_that_are_registered(server, client, make):
    key = make()
    client_id = await register(server, key, scopes="system/Patient.rs system/Encounter.cruds")
    asked = "system/Patient.cruds system/Encounter.rs system/Observation.rs launch openid"
    before = time.time()
    answer = await ask(client, signed(claims_of(server, client_id), key), scope=asked)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert body["token_type"] == "bearer"
    assert body["expires_in"] == 300
    assert body["scope"] == "system/Patient.rs system/Encounter.rs"
    assert "refresh_token" not in body
    assert await caller_of(server, body["access_token"]) == Caller(
        client_id,
        "Organization/practice-1",
        "practice",
        ("system/Patient.rs", "system/Encounter.rs"),
    )

    keys = KeySet.import_key_set((await client.get(f"{ROOT}/auth/jwks")).json())
    token = jws.deserialize_compact(body["access_token"], keys, algorithms=["ES384"])
    assert token.headers()["typ"] == "at+jwt"
    claims = msgspec.json.decode(token.payload)
    assert claims["aud"] == BASE
    assert claims["client_id"] == claims["sub"] == client_id
    assert claims["organization"] == "Organization/practice-1"
    assert before + 299 <= claims["exp"] <= time.time() + 300


async def test_a_consent_authority_is_registered_with_its_scope(server, client):
    key = ec_key()
    found = (await client.get(f"{BASE}/.well-known/smart-configuration")).json()
    assert CONSENT_AUTHORITY in found["scopes_supported"]
    scopes = f"system/Consent.cruds {CONSENT_AUTHORITY}"
    client_id = await register(server, key, role="consent-authority", scopes=scopes)
    token = await token_for(server, client, client_id, key, scopes)
    caller = await caller_of(server, token)
    assert (caller.role, caller.scopes) == ("consent-authority", tuple(scopes.split()))


async def test_the_token_endpoint_is_below_the_base_too(server, client):
    key = ec_key()
    client_id = await register(server, key)
    answer = await client.post(
        f"{BASE}/auth/token", data=form(signed(claims_of(server, client_id), key))
    )
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        pytest.param({"grant_type": None}, "invalid_request", id="no-grant-type"),
        pytest.param({"grant_type": "password"}, "unsupported_grant_type", id="another-grant-type"),
        pytest.param({"grant_type": "refresh_token"}, "unsupported_grant_type", id="refresh"),
        pytest.param({"client_assertion_type": None}, "invalid_request", id="no-assertion-type"),
        pytest.param(
            {"client_assertion_type": "x"}, "invalid_request", id="another-assertion-type"
        ),
        pytest.param({"client_assertion": None}, "invalid_request", id="no-assertion"),
        pytest.param({"client_secret": "s"}, "invalid_request", id="a-secret-as-well"),
        pytest.param({"client_id": "another"}, "invalid_client", id="another-client-id"),
        pytest.param({"scope": None}, "invalid_scope", id="no-scope"),
        pytest.param({"scope": "system/Observation.rs"}, "invalid_scope", id="not-registered"),
        pytest.param({"scope": "user/*.rs patient/*.rs"}, "invalid_scope", id="not-for-systems"),
    ],
)
async def test_a_request_that_is_not_right_is_refused_as_oauth_has_it(
    server, client, changes, error
):
    key = ec_key()
    client_id = await register(server, key, scopes="system/Patient.rs")
    answer = await ask(client, signed(claims_of(server, client_id), key), **changes)
    assert answer.status_code == 400
    assert answer.json()["error"] == error
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.slow
async def test_a_disabled_client_is_refused_everywhere_within_a_second(server, client):
    key = ec_key()
    client_id = await register(server, key)
    token = await token_for(server, client, client_id, key)
    assert (await caller_of(server, token)).client_id == client_id
    async with running(server.settings) as (other, _):
        await authority_of(other).clients.disable(client_id)
        assert (await refusal_of(other, f"Bearer {token}")).status == 401
    await asyncio.sleep(clients.BELIEVED + 0.05)  # what is promised is a second
    refused = await refusal_of(server, f"Bearer {token}")
    assert 'error="invalid_token"' in refused.headers["WWW-Authenticate"]
    answer = await ask(client, signed(claims_of(server, client_id), key))
    assert answer.json()["error"] == "invalid_client"

    await authority_of(server).clients.disable(client_id, disabled=False)
    assert await token_for(server, client, client_id, key)


async def test_new_keys_end_the_tokens_and_the_old_keys(server, client):
    old, new = ec_key(), rsa_key()
    client_id = await register(server, old)
    token = await token_for(server, client, client_id, old)
    await authority_of(server).clients.rotate(client_id, jwks=key_set(new))
    assert "changed" in str(await refusal_of(server, f"Bearer {token}"))
    answer = await ask(client, signed(claims_of(server, client_id), old))
    assert answer.json()["error"] == "invalid_client"
    await caller_of(server, await token_for(server, client, client_id, new))


@pytest.mark.slow
async def test_other_scopes_end_the_tokens_everywhere_within_a_second(server, client):
    admins, key = ec_key(), ec_key()
    admin = await register(server, admins, role="administrator", organization=None)
    client_id = await register(server, key, scopes="system/Patient.rs system/Encounter.rs")
    place = f"{ROOT}/admin/clients/{client_id}/scopes"
    wanted = {"scopes": "system/Patient.r"}
    async with running(server.settings) as (_, elsewhere):
        headers = bearer(await token_for(server, elsewhere, admin, admins))
        token = await token_for(server, client, client_id, key, "system/*.rs")
        assert (await client.get(f"{BASE}/Encounter", headers=bearer(token))).status_code == 200
        changed = await elsewhere.post(place, json=wanted, headers=headers)
        assert changed.status_code == 200, changed.text
        assert changed.json()["scopes"] == ["system/Patient.r"]
    await asyncio.sleep(clients.BELIEVED + 0.05)  # what is promised is a second
    refused = await client.get(f"{BASE}/Encounter", headers=bearer(token))
    assert refused.status_code == 401
    assert 'error="invalid_token"' in refused.headers["WWW-Authenticate"]
    answer = await ask(client, signed(claims_of(server, client_id), key), scope="system/*.rs")
    assert answer.json()["scope"] == "system/Patient.r"
    again = bearer(answer.json()["access_token"])
    assert (await client.get(f"{BASE}/Encounter", headers=again)).status_code == 403


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"scopes": ""}, id="none"),
        pytest.param({}, id="missing"),
        pytest.param({"scopes": "user/*.rs"}, id="of-a-person"),
        pytest.param({"scopes": ["system/Patient.rs", {"$ne": 1}]}, id="no-texts"),
        pytest.param({"scopes": "system/*.rs", "role": "administrator"}, id="a-role-as-well"),
    ],
)
async def test_scopes_that_make_no_sense_change_nothing(server, client, body):
    key = ec_key()
    admin = await register(server, key, role="administrator", organization=None)
    client_id = await register(server, scopes="system/Patient.rs")
    headers = bearer(await token_for(server, client, admin, key))
    place = f"{ROOT}/admin/clients/{client_id}"
    before = (await client.get(place, headers=headers)).json()
    answer = await client.post(f"{place}/scopes", json=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["resourceType"] == "OperationOutcome"
    assert (await client.get(place, headers=headers)).json() == before
    nobody = f"{ROOT}/admin/clients/nobody/scopes"
    answer = await client.post(nobody, json={"scopes": "system/*.rs"}, headers=headers)
    assert answer.status_code == 404


async def test_only_an_administrator_changes_scopes_and_it_is_on_record(server, client):
    key, admins = ec_key(), ec_key()
    client_id = await register(server, key, scopes="system/Patient.rs")
    admin = await register(server, admins, role="administrator", organization=None)
    wider = {"scopes": "system/*.cruds"}
    place = f"{ROOT}/admin/clients/{client_id}/scopes"
    own = bearer(await token_for(server, client, client_id, key))
    assert (await client.post(place, json=wider, headers=own)).status_code == 403
    assert (await client.post(place, json=wider)).status_code == 401
    headers = bearer(await token_for(server, client, admin, admins))
    assert (await client.post(place, json=wider, headers=headers)).status_code == 200
    found = await client.get(f"{BASE}/AuditEvent?type=110113&agent={admin}", headers=headers)
    (event,) = [entry["resource"] for entry in found.json()["entry"]]
    descriptions = [each.get("description") for each in event["entity"]]
    assert f"POST /admin/clients/{client_id}/scopes" in descriptions


@pytest.mark.slow
async def test_tokens_outlast_the_servers_key(server, client):
    key = ec_key()
    client_id = await register(server, key)
    before = await token_for(server, client, client_id, key)
    async with running(server.settings) as (other, other_client):
        kid = await authority_of(other).keys.rotate()
        after = await token_for(other, other_client, client_id, key)
        await caller_of(other, before)
    assert jws.extract_compact(after.encode()).headers()["kid"] == kid
    await asyncio.sleep(1.05)  # an unknown key has this process look again, once a second
    await caller_of(server, after)
    listed = await authority_of(server).keys.list()
    assert listed[0]["kid"] == kid
    assert listed[0]["expires"] is None
    assert all(row["expires"] is not None for row in listed[1:])


async def test_signing_keys_are_sealed_where_they_are_stored(server):
    row = await server.mongo.collection("signing_keys").find_one({})
    assert row["private"].startswith("sealed:")
    assert "d" not in row["public"]


@pytest.mark.slow
async def test_processes_that_start_together_sign_with_one_key(mongod, tmp_path):
    settings = make_settings(mongod, auth="smart", base_url=BASE, data=tmp_path, token_rate_limit=0)
    async with running(settings) as (one, _), running(settings) as (other, _):
        keys = [await authority_of(each).keys.signing() for each in (one, other)]
    assert keys[0].kid == keys[1].kid


@pytest.mark.parametrize(
    ("header", "code"),
    [
        pytest.param(None, "login", id="none"),
        pytest.param("", "login", id="empty"),
        pytest.param("Basic dTpw", "login", id="another-scheme"),
        pytest.param("Bearer", "login", id="no-token"),
        pytest.param("Bearer x", "unknown", id="no-jwt"),
        pytest.param("Bearer " + "a" * 10_000, "unknown", id="oversized"),
        pytest.param("Bearer a.b.c", "unknown", id="garbage"),
        pytest.param("Bearer ä.ö.ü", "unknown", id="not-ascii"),
    ],
)
async def test_who_shows_no_token_is_asked_for_one(server, header, code):
    refused = await refusal_of(server, header)
    assert refused.status == 401
    assert refused.issues[0].code == code
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")


async def test_the_administrator_keeps_the_registry(server, client):
    key, theirs = ec_key(), ec_key()
    admin = await register(server, key, role="administrator", organization=None)
    headers = bearer(await token_for(server, client, admin, key))
    wanted = {
        "client_id": "hospital-a",
        "name": "Hospital A",
        "role": "hospital",
        "organization": "Organization/a",
        "scopes": "system/Encounter.cu",
        "jwks": key_set(theirs),
    }
    answer = await client.post(f"{ROOT}/admin/clients", json=wanted, headers=headers)
    assert answer.status_code == 201, answer.text
    assert answer.json()["keys"] == [theirs.kid]
    token = await token_for(server, client, "hospital-a", theirs)
    refused = await client.get(f"{ROOT}/admin/clients", headers=bearer(token))
    assert refused.status_code == 403
    assert (await client.get(f"{ROOT}/admin/clients")).status_code == 401

    listed = (await client.get(f"{ROOT}/admin/clients", headers=headers)).json()["clients"]
    assert "hospital-a" in [each["client_id"] for each in listed]
    place = f"{ROOT}/admin/clients/hospital-a"
    assert (await client.post(f"{place}/disable", headers={**headers, **JSON})).json()[
        "disabled"
    ] is True
    assert (await client.post(f"{place}/enable", headers={**headers, **JSON})).json()[
        "disabled"
    ] is False
    body = {"jwks_uri": "https://hospital.example/jwks"}
    rotated = await client.post(f"{place}/rotate", json=body, headers=headers)
    assert rotated.json()["jwks_uri"] == body["jwks_uri"]
    assert (await client.get(place, headers=headers)).json() == rotated.json()
    nobody = await client.get(f"{ROOT}/admin/clients/nobody", headers=headers)
    assert nobody.status_code == 404


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"role": "server"}, id="role-of-the-server-itself"),
        pytest.param({"role": None}, id="no-role"),
        pytest.param({"organization": None}, id="no-organisation"),
        pytest.param({"organization": "Patient/1"}, id="no-such-organisation"),
        pytest.param({"scopes": "patient/*.rs"}, id="scope-of-a-person"),
        pytest.param({"scopes": ""}, id="no-scopes"),
        pytest.param({"scopes": [{"$ne": 1}]}, id="scopes-that-are-no-texts"),
        pytest.param({"client_id": "a b"}, id="client-id-with-a-space"),
        pytest.param({"client_id": {"$ne": ""}}, id="client-id-that-is-no-text"),
        pytest.param({"name": ""}, id="no-name"),
        pytest.param({"name": "a\nb"}, id="name-of-two-lines"),
        pytest.param({"jwks": {"keys": []}}, id="no-keys"),
        pytest.param(
            {"jwks": {"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "1"}]}}, id="shared-secret"
        ),
        pytest.param({"jwks": key_set(ec_key(curve="P-256"))}, id="another-curve"),
        pytest.param({"jwks": {"keys": [ec_key().as_dict(private=True)]}}, id="private-key"),
        pytest.param({"jwks": key_set(ec_key("k"), ec_key("k"))}, id="two-keys-of-one-kid"),
        pytest.param({"jwks": {"keys": [ec_key().as_dict(private=False, kid="")]}}, id="no-kid"),
        pytest.param({"jwks_uri": "http://hospital.example/jwks"}, id="without-tls"),
        pytest.param({"jwks_uri": "https://169.254.169.254/jwks"}, id="cloud-metadata"),
        pytest.param(
            {"jwks_uri": "https://u:p@hospital.example/jwks"}, id="credentials-in-the-url"
        ),
        pytest.param({"jwks_uri": "file:///etc/passwd"}, id="a-file"),
        pytest.param(
            {"jwks": key_set(ec_key()), "jwks_uri": "https://hospital.example/jwks"}, id="both"
        ),
    ],
)
async def test_a_client_that_makes_no_sense_is_not_registered(server, changes):
    with pytest.raises(clients.RegistryError) as refused:
        await register(server, **changes)
    assert len(str(refused.value)) > 10


async def test_a_client_id_is_given_once(server):
    client_id = await register(server, ec_key())
    with pytest.raises(clients.RegistryError, match="already"):
        await register(server, ec_key(), client_id=client_id)
