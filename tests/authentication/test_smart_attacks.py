"""Attacks on tokens: each is refused with the right error, quickly, and without calling anybody an attacker names."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest
from aiohttp import web
from joserfc import jws
from joserfc.jwk import ECKey

from app.authentication import jwt
from app.authentication.access_tokens import authenticate
from app.errors import Unauthorized
from tests.builders.smart import (
    Key,
    ask,
    authority_of,
    claims_of,
    ec_key,
    form,
    key_set,
    register,
    rsa_key,
    signed,
    token_for,
)
from tests.conftest import BASE, Server, make_settings, running

pytestmark = pytest.mark.mongo
ROOT = BASE.removesuffix("/fhir")
QUICK = 0.1  # seconds
MINE, THEIRS = ec_key("mine"), ec_key("theirs")
RSA = rsa_key("rsa")


@pytest.fixture(scope="module")
async def pair(mongod: str, tmp_path_factory) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    settings = make_settings(
        mongod,
        auth="smart",
        base_url=BASE,
        data=tmp_path_factory.mktemp("d"),
        token_rate_limit=0,
        rate_limit=0,
    )
    async with running(settings) as pair:
        await register(pair[0], MINE, RSA, client_id="victim")
        await register(pair[0], THEIRS, client_id="attacker")
        yield pair


@pytest.fixture
def server(pair: tuple[Server, httpx.AsyncClient]) -> Server:
    return pair[0]


@pytest.fixture
def client(pair: tuple[Server, httpx.AsyncClient]) -> httpx.AsyncClient:
    return pair[1]


@asynccontextmanager
async def stranger() -> AsyncIterator[tuple[str, list[str]]]:
    """A key server of the attacker's, and who called it."""
    called: list[str] = []

    async def keys(request: web.Request) -> web.Response:
        called.append(request.path)
        return web.json_response(key_set(THEIRS))

    app = web.Application()
    app.router.add_get("/{path:.*}", keys)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"http://127.0.0.1:{port}/jwks", called
    finally:
        await runner.cleanup()


def segment(content: Any) -> str:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def unsigned(header: dict[str, Any], claims: Any, signature: str = "") -> str:
    return f"{segment(header)}.{segment(claims)}.{signature}"


def by_public_key(claims: dict[str, Any]) -> str:
    """HS256 with the victim's public key as the secret."""
    return mac({"alg": "HS256", "typ": "JWT", "kid": RSA.kid}, claims, RSA)


def mac(header: dict[str, Any], claims: dict[str, Any], key: Key) -> str:
    """What a library that believes the header would take for signed."""
    content = f"{segment(header)}.{segment(claims)}"
    digest = hmac.digest(key.as_pem(private=False), content.encode(), "sha256")
    return f"{content}.{segment(digest)}"


def crafted(header: dict[str, Any], claims: dict[str, Any], key: ECKey) -> str:
    """Signed with ES384, whatever the header says; what is None in it is left out."""
    head = {"alg": "ES384", "typ": "JWT", "kid": key.kid, **header}
    content = f"{segment({n: v for n, v in head.items() if v is not None})}.{segment(claims)}"
    signature = jws.JWSRegistry.algorithms["ES384"].sign(content.encode(), key)
    return f"{content}.{segment(signature)}"


def tampered(token: str, **claims: Any) -> str:
    """The signature of one token under the claims of another."""
    head, body, signature = token.split(".")
    found = json.loads(base64.urlsafe_b64decode(body + "=="))
    return f"{head}.{segment({**found, **claims})}.{signature}"


async def refused(client: httpx.AsyncClient, assertion: str, **changes: Any) -> str:
    """The error that an assertion is refused with, quickly."""
    begun = time.perf_counter()
    answer = await ask(client, assertion, **changes)
    took = time.perf_counter() - begun
    assert answer.status_code in (400, 413), answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error", "error_description"}
    assert took < QUICK, f"took {took:.3f} s"
    return str(answer.json()["error"])


HEADERS = [
    pytest.param({"alg": "ES256"}, id="alg-not-allowed"),
    pytest.param({"alg": "RS384"}, id="alg-of-another-kind-of-key"),
    pytest.param({"alg": "none"}, id="alg-none"),
    pytest.param({"alg": "nOnE"}, id="alg-none-in-disguise"),
    pytest.param({"alg": ["ES384"]}, id="alg-list"),
    pytest.param({"typ": None}, id="typ-missing"),
    pytest.param({"typ": "at+jwt"}, id="typ-of-an-access-token"),
    pytest.param({"typ": 1}, id="typ-number"),
    pytest.param({"kid": None}, id="kid-missing"),
    pytest.param({"kid": ""}, id="kid-empty"),
    pytest.param({"kid": "../../../../dev/null"}, id="kid-path"),
    pytest.param({"kid": "' UNION SELECT 'x"}, id="kid-sql"),
    pytest.param({"kid": {"$ne": ""}}, id="kid-operator"),
    pytest.param({"kid": ["mine"]}, id="kid-list"),
    pytest.param({"kid": "mine\0"}, id="kid-null-byte"),
    pytest.param({"kid": "m" * 300}, id="kid-long"),
    pytest.param({"kid": "theirs"}, id="kid-of-another-client"),
    pytest.param({"jwk": THEIRS.as_dict(private=False)}, id="jwk-embedded"),
    pytest.param({"x5c": ["MIIB"]}, id="x5c-embedded"),
    pytest.param({"x5u": "https://attacker.example/cert"}, id="x5u"),
    pytest.param({"crit": ["exp"], "exp": 1}, id="crit"),
    pytest.param({"b64": False, "crit": ["b64"]}, id="b64"),
    pytest.param({"jku": "https://attacker.example/jwks"}, id="jku-elsewhere"),
    pytest.param({"jku": "https://169.254.169.254/latest"}, id="jku-cloud-metadata"),
    pytest.param({"jku": "file:///etc/passwd"}, id="jku-file"),
    pytest.param({"jku": None, "jku ": 1, "x": "y" * 3000}, id="header-long"),
]


@pytest.mark.parametrize("header", HEADERS)
async def test_headers_that_try_something(server, client, header):
    """The attacker signs with a key of his own, so that only what the header says could get him in."""
    assertion = crafted({"kid": "mine", **header}, claims_of(server, "victim"), THEIRS)
    assert await refused(client, assertion) == "invalid_client"


@pytest.mark.parametrize(
    "header",
    [
        pytest.param({"typ": None}, id="typ-missing"),
        pytest.param({"typ": "at+jwt"}, id="typ-of-an-access-token"),
        pytest.param({"jwk": MINE.as_dict(private=False)}, id="own-jwk"),
        pytest.param({"jku": "https://attacker.example/jwks"}, id="jku-not-registered"),
        pytest.param({"crit": ["x"], "x": 1}, id="crit"),
    ],
)
async def test_headers_that_are_not_right_though_well_signed(server, client, header):
    assertion = crafted(header, claims_of(server, "victim"), MINE)
    assert await refused(client, assertion) == "invalid_client"


async def test_what_the_crafted_ones_have_in_common_is_right(server, client):
    """The tests above would prove nothing otherwise."""
    assert (await ask(client, crafted({}, claims_of(server, "victim"), MINE))).status_code == 200


CLAIMS = [
    pytest.param({"aud": "https://elsewhere.example/auth/token"}, id="aud-elsewhere"),
    pytest.param({"aud": BASE}, id="aud-base"),
    pytest.param({"aud": None}, id="aud-missing"),
    pytest.param({"aud": [f"{ROOT}/auth/token", "https://elsewhere.example"]}, id="aud-two"),
    pytest.param({"exp": 1}, id="stale-for-long"),
    pytest.param({"exp": -1}, id="exp-negative"),
    pytest.param({"exp": None}, id="exp-missing"),
    pytest.param({"exp": "tomorrow"}, id="exp-text"),
    pytest.param({"exp": True}, id="exp-boolean"),
    pytest.param({"exp": 10**300}, id="exp-huge"),
    pytest.param({"exp": {"$gt": 0}}, id="exp-operator"),
    pytest.param({"iss": "attacker"}, id="iss-differs"),
    pytest.param({"sub": "attacker"}, id="sub-differs"),
    pytest.param({"iss": "nobody", "sub": "nobody"}, id="unknown-client"),
    pytest.param({"iss": "attacker", "sub": "attacker"}, id="key-of-another-client"),
    pytest.param({"iss": {"$ne": ""}, "sub": {"$ne": ""}}, id="iss-operator"),
    pytest.param({"iss": "victim\0", "sub": "victim\0"}, id="iss-null-byte"),
    pytest.param({"iss": None}, id="iss-missing"),
    pytest.param({"sub": None}, id="sub-missing"),
    pytest.param({"jti": None}, id="jti-missing"),
    pytest.param({"jti": ""}, id="jti-empty"),
    pytest.param({"jti": 7}, id="jti-number"),
    pytest.param({"jti": "j" * 300}, id="jti-long"),
]


@pytest.mark.parametrize("changes", CLAIMS)
async def test_claims_that_are_not_right_though_well_signed(server, client, changes):
    assertion = signed(claims_of(server, "victim", **changes), MINE)
    assert await refused(client, assertion) == "invalid_client"


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        pytest.param("exp", -1, id="stale"),
        pytest.param("exp", 310, id="exp-too-far"),
        pytest.param("nbf", 60, id="not-yet"),
        pytest.param("iat", 60, id="made-in-the-future"),
    ],
)
async def test_times_that_are_not_right(server, client, name, seconds):
    claims = claims_of(server, "victim", **{name: int(time.time()) + seconds})
    assert await refused(client, signed(claims, MINE)) == "invalid_client"


async def test_five_minutes_are_not_too_far(server, client):
    claims = claims_of(server, "victim", exp=int(time.time()) + 300)
    assert (await ask(client, signed(claims, MINE))).status_code == 200


async def test_a_signature_is_needed_and_has_to_be_that_of_the_client(server, client):
    claims = claims_of(server, "victim")
    none = unsigned({"alg": "none", "typ": "JWT", "kid": "mine"}, claims)
    assert await refused(client, none) == "invalid_client"
    assert await refused(client, by_public_key(claims)) == "invalid_client"
    assert await refused(client, signed(claims, THEIRS, kid="mine")) == "invalid_client"
    good = signed(claims, MINE)
    assert await refused(client, good.rpartition(".")[0] + ".") == "invalid_client"
    assert await refused(client, tampered(good, scope="x")) == "invalid_client"
    zero = base64.urlsafe_b64encode(bytes(96)).rstrip(b"=").decode()
    assert await refused(client, f"{good.rpartition('.')[0]}.{zero}") == "invalid_client"
    assert (await ask(client, good)).status_code == 200, "none of these used up its jti"


@pytest.mark.slow
async def test_a_signature_with_two_keys_of_one_id_is_not_guessed_at(server, client):
    """The registry takes no such set; one that came otherwise is refused all the same."""
    client_id = await register(server, ec_key("same"))
    first = ec_key("same")
    twice = key_set(first, ec_key("same"))["keys"]
    rows = server.mongo.collection("clients")
    await rows.update_one({"_id": client_id}, {"$set": {"jwks": twice}, "$inc": {"version": 1}})
    async with running(server.settings) as (_, other):
        claims = claims_of(server, client_id)
        assert await refused(other, signed(claims, first)) == "invalid_client"


@pytest.mark.slow
async def test_an_assertion_is_good_once_in_all_processes(server, client):
    async with running(server.settings) as (_, other):
        assertion = signed(claims_of(server, "victim"), MINE)
        both = await asyncio.gather(*[ask(each, assertion) for each in (client, other) * 5])
        assert sorted(answer.status_code for answer in both) == [200] + [400] * 9
        assert await refused(other, assertion) == "invalid_client"
        assert await refused(client, assertion) == "invalid_client"


async def test_another_client_may_use_the_same_jti(server, client):
    for who, key in (("victim", MINE), ("attacker", THEIRS)):
        claims = claims_of(server, who, jti="the-same")
        assert (await ask(client, signed(claims, key))).status_code == 200


async def test_used_assertions_are_forgotten_once_they_have_expired(server):
    indexes = await server.mongo.collection("assertions").index_information()
    assert indexes["expires_1"]["expireAfterSeconds"] == 0
    row = await server.mongo.collection("assertions").find_one({})
    if row is not None:
        assert row["expires"].timestamp() > time.time()


GARBAGE = [
    pytest.param("x", id="no-dots"),
    pytest.param("..", id="dots"),
    pytest.param("a.b.c", id="no-base64"),
    pytest.param("a.b.c.d.e", id="encrypted"),
    pytest.param(f"{segment([])}.{segment({})}.x", id="header-list"),
    pytest.param(f"{segment(b'null')}.{segment({})}.x", id="header-null"),
    pytest.param(f"{segment({'alg': 'ES384'})}.{segment([])}.x", id="claims-list"),
    pytest.param(f"{segment(b'[' * 1500)}.{segment({})}.x", id="header-nested"),
    pytest.param(
        f"{segment({'alg': 'ES384', 'typ': 'JWT', 'kid': 'mine'})}.{segment(b'[' * 5000)}.x",
        id="claims-nested",
    ),
    pytest.param(f"{segment(b'{')}.{segment(b'{')}.x", id="json-cut-off"),
    pytest.param(f"{segment(bytes(range(128, 256)))}.{segment({})}.x", id="no-utf8"),
    pytest.param("é.é.é", id="not-ascii"),
    pytest.param("a" * 9_000, id="long"),
    pytest.param(".".join(["a" * 4000] * 3), id="long-segments"),
]


@pytest.mark.parametrize("assertion", GARBAGE)
async def test_garbage(client, assertion):
    assert await refused(client, assertion) == "invalid_client"


async def test_an_oversized_request_is_not_read_to_its_end(client):
    assert await refused(client, "a" * 200_000) == "invalid_request"


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        pytest.param(b'{"grant_type": "client_credentials"}', "application/json", id="json"),
        pytest.param(b"grant_type=client_credentials", "text/plain", id="plain"),
        pytest.param(b"grant_type=client_credentials", "", id="no-media-type"),
        pytest.param(b"", "application/x-www-form-urlencoded", id="empty"),
        pytest.param(b"\xff=\xfe", "application/x-www-form-urlencoded", id="no-utf8"),
        pytest.param(b"a=%ff%fe", "application/x-www-form-urlencoded", id="no-utf8-in-disguise"),
        pytest.param(
            b"&".join([b"a=1"] * 50), "application/x-www-form-urlencoded", id="many-fields"
        ),
    ],
)
async def test_what_is_no_form_of_a_token_request(client, content, media_type):
    headers = {"Content-Type": media_type} if media_type else {}
    answer = await client.post("/auth/token", content=content, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"] == "invalid_request"


@pytest.mark.parametrize("name", ["grant_type", "scope", "client_assertion"])
async def test_a_field_that_is_given_twice(server, client, name):
    fields = form(signed(claims_of(server, "victim"), MINE))
    fields[name] = [fields[name], fields[name]]
    answer = await client.post("/auth/token", data=fields)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


async def test_two_ways_of_proving_oneself_at_once(server, client):
    fields = form(signed(claims_of(server, "victim"), MINE))
    answer = await client.post("/auth/token", data=fields, headers={"Authorization": "Basic dTpw"})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "PATCH"])
async def test_the_token_endpoint_takes_post_only(client, method):
    answer = await client.request(method, "/auth/token")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


async def test_nobody_is_called_but_who_is_registered(server, client):
    """Not for a `jku` elsewhere, nor for one in the name of a client that has keys of its own."""
    async with stranger() as (url, called):
        for key, kid in ((THEIRS, "theirs"), (MINE, "mine")):
            assertion = signed(claims_of(server, "victim"), key, kid=kid, jku=url)
            assert await refused(client, assertion) == "invalid_client"
        assert called == []


async def test_a_host_header_does_not_choose_the_audience(server, client):
    """An assertion that was made for another server, passed on by it."""
    claims = claims_of(server, "victim", aud="http://attacker.example/auth/token")
    fields = form(signed(claims, MINE))
    headers = {"Host": "attacker.example", "X-Forwarded-Host": "attacker.example"}
    answer = await client.post("/auth/token", data=fields, headers=headers)
    assert answer.json()["error"] == "invalid_client"


async def reason(server: Server, token: str) -> str:
    begun = time.perf_counter()
    with pytest.raises(Unauthorized) as error:
        await authenticate(server.authority, f"Bearer {token}")
    assert time.perf_counter() - begun < QUICK
    return str(error.value)


async def test_access_tokens_cannot_be_made_or_changed_by_others(server, client):
    token = await token_for(server, client, "attacker", THEIRS, "system/Patient.rs")
    head, body, signature = token.split(".")
    header = json.loads(base64.urlsafe_b64decode(head + "=="))
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    assert "signature" in await reason(server, tampered(token, scope="system/*.cruds"))
    assert "signature" in await reason(server, tampered(token, client_id="victim"))
    assert "signature" in await reason(server, f"{head}.{body}.")
    forged = signed(claims, THEIRS, typ="at+jwt", kid=header["kid"])
    assert "signature" in await reason(server, forged)
    assert "'alg'" in await reason(server, unsigned({**header, "alg": "none"}, claims))
    public = (await authority_of(server).keys.signing()).public
    assert "'alg'" in await reason(server, mac({**header, "alg": "HS256"}, claims, public))
    stranger_key = unsigned({**header, "kid": "../../dev/null"}, claims, signature)
    assert "key" in await reason(server, stranger_key)
    embedded = {**header, "jwk": THEIRS.as_dict(private=False), "kid": "theirs"}
    assert "key" in await reason(server, unsigned(embedded, claims, signature))
    assert "'typ'" in await reason(server, signed(claims_of(server, "victim"), MINE))
    await authenticate(server.authority, f"Bearer {token}")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        pytest.param({"exp": 1}, "expired", id="stale"),
        pytest.param({"exp": None}, "expired", id="no-end"),
        pytest.param({"aud": "https://elsewhere.example/fhir"}, "another server", id="aud"),
        pytest.param({"iss": "https://elsewhere.example/fhir"}, "another server", id="iss"),
        pytest.param({"client_version": 0}, "changed", id="client-of-before"),
        pytest.param({"client_id": "nobody"}, "not admitted", id="unknown-client"),
        pytest.param({"client_id": {"$ne": ""}}, "client_id", id="operator"),
        pytest.param({"scope": None}, "scope", id="no-scope"),
    ],
)
async def test_access_tokens_of_our_own_key_for_something_else(server, changes, word):
    """What another deployment with the same key, or an earlier version, could have signed."""
    key = await authority_of(server).keys.signing()
    assert key.private is not None
    claims = {
        "iss": BASE,
        "aud": BASE,
        "client_id": "victim",
        "client_version": 1,
        "scope": "system/*.rs",
        "exp": int(time.time()) + 100,
        **changes,
    }
    claims = {name: value for name, value in claims.items() if value is not None}
    assert word in await reason(server, signed(claims, key.private, typ="at+jwt", kid=key.kid))


async def test_a_token_ends_though_it_was_used_before(server, client, monkeypatch):
    token = await token_for(server, client, "victim", MINE)
    await authenticate(server.authority, f"Bearer {token}")
    later = server.mongo.now() + timedelta(seconds=301)
    monkeypatch.setattr(server.mongo, "now", lambda: later)
    assert "expired" in await reason(server, token)


@pytest.mark.parametrize("off", [-3600, 3600], ids=["behind", "ahead"])
async def test_a_wrong_clock_of_the_machine_changes_no_tokens_life(
    server, client, monkeypatch, off
):
    """Another process, whose clock is right, takes what this one issues, and refuses it when it has ended."""
    good = signed(claims_of(server, "victim"), MINE)
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + off)
    answer = await ask(client, good)
    assert answer.status_code == 200, answer.text
    token = answer.json()["access_token"]
    await authenticate(server.authority, f"Bearer {token}")
    assert 290 < jwt.read(token).claims["exp"] - right() <= 301  # the database's clock and ours


async def test_neither_logs_nor_refusals_repeat_what_was_sent(server, client, caplog):
    caplog.set_level(logging.DEBUG)
    good = signed(claims_of(server, "victim", name="Agnes Thistlewick"), MINE)
    token = (await ask(client, good)).json()["access_token"]
    answers = [
        await ask(client, tampered(good, name="Agnes Thistlewick")),
        await ask(client, good, scope="system/Agnes.rs"),
        await client.get("/Patient", headers={"Authorization": f"Bearer {token}x"}),
    ]
    said = caplog.text + "".join(answer.text + str(answer.headers) for answer in answers)
    said += "".join(str(vars(record)) for record in caplog.records)
    for secret in (token, good, good.split(".")[2], "Agnes"):
        assert secret not in said
