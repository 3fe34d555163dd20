"""What single endpoints ask for: a signature, a client certificate, a token. Against real endpoints."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from joserfc import jwt
from joserfc.jwk import ECKey

from app.network import endpoint_credentials
from app.network.egress_policy import Egress
from app.network.endpoint_credentials import EndpointsError
from app.network.notice_signature import SIGNATURE_HEADER
from app.settings import Settings
from app.subscriptions.channels import Notice
from app.subscriptions.channels.http_sender import HttpSender
from tests.builders.receiver import Receiver


def hook(tmp_path: Path, terms: dict[str, Any]) -> HttpSender:
    file = tmp_path / f"endpoints-{len(list(tmp_path.iterdir()))}.json"
    file.write_text(json.dumps(terms))
    return HttpSender(
        Egress(loopback=True), terms=endpoint_credentials.of_settings(Settings(endpoints_file=file))
    )


def notice(url: str) -> Notice:
    return Notice("n1", "POST", url, (("Content-Type", "application/fhir+json"),), b'{"a":1}', 5.0)


async def test_a_receiver_can_verify_the_signature(tmp_path: Path, receiver: Receiver) -> None:
    """As docs/delivery.md tells receivers to do."""
    signing = hook(tmp_path, {receiver.url: {"signature_secret": "s3cret"}})
    await signing.send(notice(receiver.url + "/hook"))
    await signing.close()
    (received,) = receiver.requests
    parts = dict(p.split("=") for p in received.headers[SIGNATURE_HEADER.lower()].split(","))
    notice_id = received.headers["carerelay-notification-id"]
    signed = f"{parts['t']}.{notice_id}.".encode() + received.body
    assert parts["v1"] == hmac.new(b"s3cret", signed, hashlib.sha256).hexdigest()
    assert abs(int(parts["t"]) - datetime.now(UTC).timestamp()) < 60


async def test_other_origins_get_no_signature(tmp_path: Path, receiver: Receiver) -> None:
    signing = hook(tmp_path, {"https://pcp.example": {"signature_secret": "s3cret"}})
    await signing.send(notice(receiver.url))
    await signing.close()
    assert SIGNATURE_HEADER.lower() not in receiver.requests[0].headers


class Authority:
    """A token endpoint that checks assertions, and counts what it gave out."""

    def __init__(self, key: ECKey) -> None:
        self.key = key
        self.given = 0
        self.expires_in = 300

    async def token(self, request: web.Request) -> web.Response:
        form = {k: v[0] for k, v in parse_qs(await request.text()).items()}
        assertion = jwt.decode(form["client_assertion"], self.key, algorithms=["ES384"])
        assert assertion.header["kid"] == "k1"
        assert assertion.claims["iss"] == assertion.claims["sub"] == "carerelay"
        assert assertion.claims["aud"] == str(request.url)
        assert form["grant_type"] == "client_credentials"
        assert form["scope"] == "system/Communication.c"
        self.given += 1
        return web.json_response(
            {
                "access_token": f"t{self.given}",
                "expires_in": self.expires_in,
                "token_type": "bearer",
            }
        )


@pytest.fixture
async def authority(tmp_path: Path) -> AsyncIterator[tuple[Authority, dict[str, Any]]]:
    key = ECKey.generate_key("P-384", parameters={"kid": "k1"}, private=True)
    (tmp_path / "jwk.json").write_text(json.dumps(key.as_dict(private=True)))
    authority = Authority(key)
    app = web.Application()
    app.router.add_post("/token", authority.token)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield (
        authority,
        {
            "url": f"http://127.0.0.1:{runner.addresses[0][1]}/token",
            "client_id": "carerelay",
            "key": str(tmp_path / "jwk.json"),
            "scope": "system/Communication.c",
        },
    )
    await runner.cleanup()


async def test_one_token_serves_many_notices_until_it_expires(
    tmp_path: Path, receiver: Receiver, authority: tuple[Authority, dict[str, Any]]
) -> None:
    asked, terms = authority
    client = hook(tmp_path, {receiver.url: {"token": terms}})
    await asyncio.gather(*(client.send(notice(receiver.url)) for _ in range(5)))
    assert asked.given == 1
    assert len(receiver.requests) == 5
    assert {each.headers["authorization"] for each in receiver.requests} == {"Bearer t1"}
    await client.close()


async def test_a_token_that_is_refused_is_replaced_once(
    tmp_path: Path, receiver: Receiver, authority: tuple[Authority, dict[str, Any]]
) -> None:
    asked, terms = authority
    client = hook(tmp_path, {receiver.url: {"token": terms}})
    receiver.answer = lambda r: 200 if r.headers["authorization"] == "Bearer t2" else 401
    assert (await client.send(notice(receiver.url))).status == 200
    receiver.answer = lambda _: 401
    assert (await client.send(notice(receiver.url))).status == 401
    assert asked.given == 3
    await client.close()


async def test_without_a_token_the_notice_waits(tmp_path: Path, receiver: Receiver) -> None:
    terms = {
        "url": f"{receiver.url}/token",
        "client_id": "carerelay",
        "key": str(tmp_path / "none.json"),
        "scope": "system/*.c",
    }
    client = hook(tmp_path, {receiver.url: {"token": terms}})
    outcome = await client.send(notice(receiver.url))
    assert (outcome.status, outcome.reason) == (
        None,
        "the key for the token's assertion cannot be read",
    )
    assert not receiver.requests
    await client.close()


def certificate(directory: Path, name: str, issuer: str | None = None) -> tuple[Path, Path]:
    """A certificate for loopback and its key, signed by `issuer` made here before, or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer, signer_name = key, subject
    if issuer is not None:
        loaded = serialization.load_pem_private_key(
            (directory / f"{issuer}.key").read_bytes(), None
        )
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signer = loaded
        signer_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    pem, key_file = directory / f"{name}.pem", directory / f"{name}.key"
    pem.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return pem, key_file


async def test_an_endpoint_that_wants_a_client_certificate_gets_it(tmp_path: Path) -> None:
    authority, _ = certificate(tmp_path, "authority")
    server_pem, server_key = certificate(tmp_path, "server", "authority")
    client_pem, client_key = certificate(tmp_path, "client", "authority")
    demanding = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority)
    demanding.load_cert_chain(server_pem, server_key)
    demanding.verify_mode = ssl.CERT_REQUIRED

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=demanding) as server:
        url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
        terms = {"authority": str(authority)}
        without = hook(tmp_path, {url: terms})
        assert (await without.send(notice(url))).status is None
        await without.close()
        known = {"client_certificate": str(client_pem), "client_key": str(client_key)}
        client = hook(tmp_path, {url: {**terms, **known}})
        assert (await client.send(notice(url))).status == 200
        await client.close()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("{", id="no-json"),
        pytest.param('{"pcp.example": {}}', id="no-origin"),
        pytest.param('{"https://pcp.example": {"secret": "x"}}', id="unknown-term"),
        pytest.param('{"https://pcp.example": {"client_certificate": "/none.pem"}}', id="no-file"),
    ],
)
def test_a_file_of_endpoints_that_cannot_be_used_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "endpoints.json"
    file.write_text(content)
    with pytest.raises(EndpointsError):
        endpoint_credentials.of_settings(Settings(endpoints_file=file))
