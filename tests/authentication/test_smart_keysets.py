"""Keys that clients and providers publish: fetched from the registered address alone, kept, renewed and bounded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from aiohttp import web

from app.authentication import jwks
from app.authentication.access_tokens import authenticate
from app.authentication.caller import Caller
from app.authentication.jwks import DocumentError, Documents
from app.errors import Unauthorized
from app.network.egress_policy import Egress
from tests.builders.smart import (
    Key,
    ask,
    authority_of,
    bearer,
    claims_of,
    ec_key,
    key_set,
    register,
    rsa_key,
    signed,
)
from tests.conftest import BASE, Server, make_settings, running

pytestmark = pytest.mark.mongo
AUDIENCE = "https://carerelay.example"
K = ec_key("k")


@dataclass
class Publisher:
    """A server that publishes JSON documents, and what was asked of it."""

    url: str = ""
    documents: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    asked: list[str] = field(default_factory=list)
    called: asyncio.Event = field(default_factory=asyncio.Event)
    hold: asyncio.Event | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        self.called.set()
        if self.hold is not None:
            await self.hold.wait()
        content = self.documents.get(request.path, {})
        if isinstance(content, bytes):
            return web.Response(body=content, status=self.status, headers=self.headers)
        return web.json_response(content, status=self.status, headers=self.headers)


@asynccontextmanager
async def publishing() -> AsyncIterator[Publisher]:
    publisher = Publisher()
    app = web.Application()
    app.router.add_get("/{path:.*}", publisher.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    publisher.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield publisher
    finally:
        await runner.cleanup()


@pytest.fixture
async def publisher() -> AsyncIterator[Publisher]:
    async with publishing() as publisher:
        yield publisher


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def documents(clock: Clock) -> AsyncIterator[Documents]:
    documents = Documents(Egress(loopback=True), clock)
    yield documents
    await documents.close()


@pytest.mark.parametrize(
    ("control", "seconds"),
    [
        pytest.param("", 300, id="unstated"),
        pytest.param("max-age=600", 600, id="stated"),
        pytest.param("public, Max-Age=600", 600, id="in-any-case"),
        pytest.param("max-age=0", 60, id="floor"),
        pytest.param("no-store", 60, id="no-store"),
        pytest.param("no-cache, max-age=600", 60, id="no-cache"),
        pytest.param("max-age=31536000", 3600, id="ceiling"),
        pytest.param("max-age=99999999999999999999", 3600, id="huge"),
        pytest.param("s-maxage=5", 300, id="another-directive"),
        pytest.param("max-age=soon", 300, id="unreadable"),
    ],
)
async def test_documents_are_kept_as_cache_control_says(
    publisher, documents, clock, control, seconds
):
    publisher.headers["Cache-Control"] = control
    await documents.get(f"{publisher.url}/a")
    clock.now += seconds - 1
    await documents.get(f"{publisher.url}/a")
    assert len(publisher.asked) == 1
    clock.now += 2
    await documents.get(f"{publisher.url}/a")
    assert len(publisher.asked) == 2


async def test_those_who_ask_at_once_wait_for_one_answer(publisher, documents):
    publisher.hold = asyncio.Event()
    asking = [asyncio.create_task(documents.get(f"{publisher.url}/a")) for _ in range(20)]
    await publisher.called.wait()
    publisher.hold.set()
    await asyncio.gather(*asking)
    assert len(publisher.asked) == 1


@pytest.mark.parametrize(
    ("status", "content"),
    [
        pytest.param(500, {"keys": []}, id="failing"),
        pytest.param(302, {"keys": []}, id="redirecting"),
        pytest.param(200, [], id="list"),
        pytest.param(200, b"<html>", id="page"),
        pytest.param(200, b"[" * 50_000, id="nested"),
        pytest.param(200, b'{"a":' * 9_000, id="nested-objects"),
        pytest.param(200, b" " * (jwks.LIMIT + 1), id="large"),
    ],
)
async def test_a_failure_is_remembered_for_a_while(publisher, documents, clock, status, content):
    publisher.status, publisher.documents["/a"] = status, content
    publisher.headers["Location"] = f"{publisher.url}/elsewhere"
    for renew in (False, True, False):
        with pytest.raises(DocumentError):
            await documents.get(f"{publisher.url}/a", renew=renew)
    assert publisher.asked == ["/a"]
    publisher.status, publisher.documents["/a"] = 200, {"fine": True}
    clock.now += jwks.FAILED + 1
    assert await documents.get(f"{publisher.url}/a") == {"fine": True}


async def test_a_server_that_hangs_is_given_up(publisher, documents, monkeypatch):
    monkeypatch.setattr(jwks, "SECONDS", 0.05)
    publisher.hold = asyncio.Event()
    with pytest.raises(DocumentError, match="does not answer"):
        await documents.get(f"{publisher.url}/a")
    publisher.hold.set()


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://10.0.0.1/jwks", id="private"),
        pytest.param("https://169.254.169.254/jwks", id="cloud-metadata"),
        pytest.param("https://2130706433/jwks", id="number-in-disguise"),
        pytest.param("http://example.org/jwks", id="without-tls"),
        pytest.param("file:///etc/passwd", id="file"),
    ],
)
async def test_the_egress_rules_hold_here_too(documents, url):
    with pytest.raises(DocumentError):
        await documents.get(url)


@pytest.fixture(scope="module")
async def provider() -> AsyncIterator[Publisher]:
    async with publishing() as publisher:
        yield publisher


PROVIDERS_KEY = rsa_key("provider-1")


@pytest.fixture(scope="module")
async def pair(
    mongod: str, tmp_path_factory, provider: Publisher
) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    provider.documents["/.well-known/openid-configuration"] = {
        "issuer": provider.url,
        "jwks_uri": f"{provider.url}/keys",
    }
    provider.documents["/keys"] = key_set(PROVIDERS_KEY)
    settings = make_settings(
        mongod,
        token_rate_limit=0,
        auth="smart",
        base_url=BASE,
        data=tmp_path_factory.mktemp("d"),
        oidc_issuer=provider.url,
        oidc_audience=AUDIENCE,
        oidc_client_claim="azp",
        oidc_scopes_claim="scp",
    )
    async with running(settings) as pair:
        yield pair


@pytest.fixture
def server(pair: tuple[Server, httpx.AsyncClient]) -> Server:
    return pair[0]


@pytest.fixture
def client(pair: tuple[Server, httpx.AsyncClient]) -> httpx.AsyncClient:
    return pair[1]


async def test_a_client_publishes_its_keys(server, client, publisher):
    url = f"{publisher.url}/jwks"
    key = ec_key()
    publisher.documents["/jwks"] = key_set(key, rsa_key())
    client_id = await register(server, jwks_uri=url)
    for header in ({}, {"jku": url}):
        answer = await ask(client, signed(claims_of(server, client_id), key, **header))
        assert answer.status_code == 200, answer.text
    assert publisher.asked == ["/jwks"]
    elsewhere = signed(claims_of(server, client_id), key, jku=f"{publisher.url}/elsewhere")
    assert (await ask(client, elsewhere)).json()["error"] == "invalid_client"
    assert publisher.asked == ["/jwks"]


async def test_a_new_key_is_found_at_once_but_strangers_cause_no_flood(server, client, publisher):
    old, new = ec_key("old"), ec_key("new")
    publisher.documents["/jwks"] = key_set(old)
    clock = Clock()
    documents = authority_of(server).documents
    documents._clock = clock
    try:
        client_id = await register(server, jwks_uri=f"{publisher.url}/jwks")
        assert (await ask(client, signed(claims_of(server, client_id), old))).status_code == 200
        publisher.documents["/jwks"] = key_set(old, new)
        clock.now += jwks.RENEWED + 1
        assert (await ask(client, signed(claims_of(server, client_id), new))).status_code == 200
        assert len(publisher.asked) == 2
        for _ in range(5):
            unknown = signed(claims_of(server, client_id), new, kid="unknown")
            assert (await ask(client, unknown)).json()["error"] == "invalid_client"
        assert len(publisher.asked) == 2
    finally:
        documents._clock = time.monotonic


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({"keys": []}, id="none"),
        pytest.param({}, id="no-set"),
        pytest.param({"keys": {"kid": "k"}}, id="no-list"),
        pytest.param({"keys": [None, 1, "x", {}]}, id="no-keys"),
        pytest.param(key_set(K, ec_key("k")), id="two-of-one-kid"),
        pytest.param({"keys": [{"kty": "EC", "kid": "k", "crv": "P-384", "x": "AA", "y": "AA"}]}, id="no-point"),
        pytest.param({"keys": [{"kty": "EC", "kid": "k", "crv": "P-384", "x": "A" * 9999, "y": 1}]}, id="large"),
        pytest.param({"keys": [{"kty": "EC", "kid": "k"}]}, id="without-numbers"),
        pytest.param({"keys": [ec_key("k", "P-256").as_dict(private=False)]}, id="another-curve"),
        pytest.param({"keys": [K.as_dict(private=False, use="enc")]}, id="for-encryption"),
        pytest.param({"keys": [K.as_dict(private=False, alg="ES256")]}, id="another-alg"),
    ],
)  # fmt: skip
async def test_sets_without_the_one_key(server, client, publisher, keys):
    publisher.documents["/jwks"] = keys
    client_id = await register(server, jwks_uri=f"{publisher.url}/jwks")
    answer = await ask(client, signed(claims_of(server, client_id), K))
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_client")


async def test_sets_with_other_keys_beside_the_one(server, client, publisher):
    unusable = [
        None,
        {"kty": "oct", "k": "AA", "kid": "k"},
        {"kty": "RSA", "kid": "k"},
        {"kid": "k"},
    ]
    publisher.documents["/jwks"] = {"keys": [*unusable, *key_set(K, ec_key("other"))["keys"]]}
    client_id = await register(server, jwks_uri=f"{publisher.url}/jwks")
    answer = await ask(client, signed(claims_of(server, client_id), K))
    assert answer.status_code == 200, answer.text


def outside(
    provider: Publisher, client_id: str, *, key: Key = PROVIDERS_KEY, **changes: Any
) -> str:
    """A token of the provider's, but for the changes; `header` changes its header."""
    header = {"alg": "RS256", "typ": "at+jwt", **changes.pop("header", {})}
    claims = {
        "iss": provider.url,
        "aud": ["https://elsewhere.example", AUDIENCE],
        "exp": int(time.time()) + 3600,
        "azp": client_id,
        "scp": "system/Patient.rs system/Encounter.rs openid",
        **changes,
    }
    return signed(
        {name: value for name, value in claims.items() if value is not None}, key, **header
    )


async def caller_of(server: Server, token: str) -> Caller:
    return await authenticate(server.authority, f"Bearer {token}")


async def test_a_provider_says_who_asks_and_the_registry_what_it_is(server, client, provider):
    client_id = await register(
        server,
        client_id="0oa1b2",
        role="plan",
        organization="Organization/plan",
        scopes="system/*.r",
    )
    token = outside(provider, client_id)
    assert await caller_of(server, token) == Caller(
        "0oa1b2", "Organization/plan", "plan", ("system/Patient.r", "system/Encounter.r")
    )
    asked = len(provider.asked)
    await caller_of(
        server, outside(provider, client_id, scp=["system/Patient.r"], header={"typ": "JWT"})
    )
    assert len(provider.asked) == asked, "the provider's documents are kept"

    await authority_of(server).clients.disable(client_id)
    with pytest.raises(Unauthorized, match="not admitted"):
        await caller_of(server, token)


async def test_a_providers_tokens_are_cut_to_the_scopes_that_are_registered_now(
    server, client, provider
):
    client_id = await register(server, scopes="system/*.r")
    token = outside(provider, client_id)
    assert (await caller_of(server, token)).scopes == ("system/Patient.r", "system/Encounter.r")
    await authority_of(server).clients.set_scopes(client_id, ["system/Patient.rs"])
    assert (await caller_of(server, token)).scopes == ("system/Patient.rs",)
    refused = await client.get(f"{BASE}/Encounter/e1", headers=bearer(token))
    assert refused.status_code == 403


async def test_a_providers_client_comes_in_through_the_door(server, client, provider):
    client_id = await register(server, role="administrator", organization=None)
    headers = bearer(outside(provider, client_id))
    admin = f"{BASE.removesuffix('/fhir')}/admin/clients"
    assert (await client.get(admin, headers=headers)).status_code == 200
    assertion = signed(claims_of(server, client_id), ec_key())
    assert (await ask(client, assertion)).json()["error"] == "invalid_client", "it has no key here"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        pytest.param({"aud": "https://elsewhere.example"}, "audience", id="aud"),
        pytest.param({"aud": None}, "audience", id="no-aud"),
        pytest.param({"iss": "https://elsewhere.example"}, "'alg'", id="iss"),
        pytest.param({"exp": 1}, "expired", id="stale"),
        pytest.param({"exp": None}, "expired", id="no-end"),
        pytest.param({"nbf": 2**40}, "not valid yet", id="not-yet"),
        pytest.param({"azp": "nobody"}, "not admitted", id="unknown-client"),
        pytest.param({"azp": None}, "azp", id="no-client"),
        pytest.param({"azp": {"$ne": ""}}, "azp", id="operator"),
        pytest.param({"key": rsa_key("provider-1")}, "signature", id="another-key"),
        pytest.param({"key": rsa_key("unknown")}, "key", id="unknown-kid"),
        pytest.param({"key": ec_key("provider-1"), "header": {"alg": "ES384"}}, "key", id="kind"),
        pytest.param({"header": {"kid": None}}, "kid", id="no-kid"),
        pytest.param({"header": {"typ": "logout+jwt"}}, "typ", id="typ"),
    ],
)
async def test_tokens_of_the_provider_that_are_not_right(server, provider, changes, word):
    await register_once(server, "outsider")
    with pytest.raises(Unauthorized, match=word):
        await caller_of(server, outside(provider, "outsider", **changes))


async def register_once(server: Server, client_id: str) -> None:
    if await authority_of(server).clients.get(client_id) is None:
        await register(server, client_id=client_id)


@pytest.mark.slow
async def test_a_provider_that_says_it_is_another_is_not_believed(mongod, tmp_path, publisher):
    publisher.documents["/.well-known/openid-configuration"] = {
        "issuer": "https://elsewhere.example",
        "jwks_uri": f"{publisher.url}/keys",
    }
    settings = make_settings(
        mongod,
        token_rate_limit=0,
        auth="smart",
        data=tmp_path,
        oidc_issuer=publisher.url,
        oidc_audience=AUDIENCE,
    )
    async with running(settings) as (server, _):
        with pytest.raises(Unauthorized, match="configuration"):
            await caller_of(server, outside(publisher, "x"))
