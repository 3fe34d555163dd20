"""Server-side request forgery: URLs that look like one place and lead to another, at every door that takes a URL.

Beside tests/network/test_egress.py, which has the plain rules. The server is asked for as one that listens beyond
loopback.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web

from app.authentication.jwks import DocumentError, Documents
from app.network.egress_policy import CheckedResolver, Egress, EgressRefusedError
from app.settings import Settings
from tests.builders.subscriptions import classic, topic_based
from tests.conftest import make_settings, running
from tests.outcomes import assert_outcome

ELSEWHERE = "192.0.2.1"

DISGUISED = {
    # Numbers
    "decimal": "http://2130706433/",
    "decimal-metadata": "http://2852039166/latest/meta-data/",
    "decimal-overflow": "http://4294967297/",
    "hex": "http://0x7f000001/",
    "hex-upper": "http://0X7F000001/",
    "hex-dotted": "http://0x7f.0x0.0x0.0x1/",
    "hex-metadata": "http://0xa9.0xfe.0xa9.0xfe/",
    "hex-empty": "http://0x/",
    "octal": "http://0177.0.0.1/",
    "octal-whole": "http://017700000001/",
    "octal-metadata": "http://0251.0376.0251.0376/",
    "octal-long": "http://00000177.0.0.1/",
    "octal-quad": "http://127.0.0.01/",
    "mixed": "http://0x7f.1/",
    "short-2": "http://127.1/",
    "short-3": "http://127.0.1/",
    "short-10": "http://10.1/",
    "zero": "http://0/",
    "zero-quad": "http://0.0.0.0/",
    "trailing-dot": "http://169.254.169.254./",
    "two-dots": "http://127.0.0.1../",
    "five-parts": "http://127.0.0.1.1/",
    # IPv6 with IPv4 inside
    "mapped": "http://[::ffff:127.0.0.1]/",
    "mapped-hex": "http://[::ffff:7f00:1]/",
    "mapped-metadata": "http://[::ffff:169.254.169.254]/",
    "mapped-long": "http://[0:0:0:0:0:ffff:a9fe:a9fe]/",
    "compatible": "http://[::127.0.0.1]/",
    "compatible-private": "http://[::10.0.0.1]/",
    "compatible-metadata": "http://[::a9fe:a9fe]/",
    "translated": "http://[::ffff:0:127.0.0.1]/",
    "nat64": "http://[64:ff9b::127.0.0.1]/",
    "nat64-metadata": "http://[64:ff9b::a9fe:a9fe]/",
    "nat64-local": "http://[64:ff9b:1::a9fe:a9fe]/",
    "6to4": "http://[2002:7f00:1::]/",
    "6to4-metadata": "http://[2002:a9fe:a9fe::1]/",
    "teredo": "http://[2001:0:7f00:1::80ff:fffe]/",
    "isatap": "http://[fe80::5efe:10.0.0.1]/",
    # Places
    "metadata": "http://169.254.169.254/latest/meta-data/iam/",
    "metadata-alibaba": "http://100.100.100.200/",
    "metadata-oracle": "http://192.0.0.192/",
    "metadata-aws-6": "http://[fd00:ec2::254]/",
    "link-local": "http://169.254.0.1/",
    "link-local-6": "http://[fe80::1]/",
    "zone": "http://[fe80::1%25lo]/",
    "zone-loopback": "http://[::1%25lo]/",
    "site-local": "http://[fec0::1]/",
    "unique-local": "http://[fc00::1]/",
    "documentation": "http://[2001:db8::1]/",
    "discard": "http://[100::1]/",
    "benchmark": "http://198.18.0.1/",
    "test-net": "http://203.0.113.1/",
    "broadcast": "http://255.255.255.255/",
    "multicast": "http://239.1.1.1/",
    "future": "http://240.0.0.1/",
    # Names
    "localhost": "http://localhost/",
    "localhost-dot": "http://localhost./",
    "localhost-upper": "http://LOCALHOST/",
    "localhost-below": "http://a.localhost/",
    "localhost-below-dot": "http://a.b.LocalHost./",
    "idn-dot": "http://127\u30020\u30020\u30021/",
    "idn-dot-halfwidth": "http://127\uff610\uff610\uff611/",
    "idn-dot-fullwidth": "http://169\uff0e254\uff0e169\uff0e254/",
    "circled": "http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/",
    "fullwidth-name": "http://\uff4c\uff4f\uff43\uff41\uff4c\uff48\uff4f\uff53\uff54/",
    "dotless-i": "http://loca\u217chost/",
    "soft-hyphen": "http://local\u00adhost/",
    "zero-width": "http://local\u200bhost/",
    "percent-name": "http://%6c%6f%63%61%6c%68%6f%73%74/",
    "percent-address": "http://%31%32%37.0.0.1/",
    "percent-dot": "http://127%2e0%2e0%2e1/",
    "null": "http://8.8.8.8\x00.127.0.0.1/",
    "null-percent": "http://127.0.0.1%00.example.org/",
    # Parsers that disagree
    "credentials": "http://user:secret@8.8.8.8/",
    "credentials-host": "http://8.8.8.8@127.0.0.1/",
    "credentials-empty": "http://@127.0.0.1/",
    "credentials-twice": "http://a@8.8.8.8@127.0.0.1/",
    "credentials-port": "http://8.8.8.8:80@127.0.0.1/",
    "backslash": "http://8.8.8.8\\@127.0.0.1/",
    "backslash-host": "http:\\\\127.0.0.1/",
    "fragment": "http://127.0.0.1#@8.8.8.8/",
    "tab": "http://127.0.\t0.1/",
    "newline": "http://8.8.8.8/\r\nhost: x",
    "space": "http://8.8.8.8 .127.0.0.1/",
    "three-slashes": "http:///127.0.0.1/",
    "no-slashes": "http:127.0.0.1/",
    "relative": "//127.0.0.1/",
    "port-zero": "http://8.8.8.8:0/",
    "port-large": "http://8.8.8.8:65616/",
    "port-negative": "http://8.8.8.8:-1/",
    "brackets": "http://[127.0.0.1]/",
    "brackets-open": "http://[::1/",
    # Other schemes
    "file": "file:///etc/passwd",
    "file-host": "file://127.0.0.1/etc/passwd",
    "gopher": "gopher://127.0.0.1:27017/_",
    "dict": "dict://127.0.0.1:11211/",
    "ftp": "ftp://8.8.8.8/",
    "data": "data:text/plain,x",
    "unix": "http+unix://%2Fvar%2Frun%2Fdocker.sock/",
    "jar": "jar:http://8.8.8.8!/",
}


def rules(allow: str = "") -> Egress:
    return Egress.from_settings(Settings(host=ELSEWHERE, egress_allow=allow))


@pytest.mark.parametrize("name", DISGUISED)
async def test_no_disguise_passes_the_rules(name: str) -> None:
    with pytest.raises(EgressRefusedError) as refused:
        await rules().check(DISGUISED[name])
    assert "secret" not in str(refused.value)


@pytest.fixture(scope="module")
async def beyond(mongod: str) -> AsyncIterator[httpx.AsyncClient]:
    settings = make_settings(mongod, host=ELSEWHERE, allow_open=True, auth="off")
    async with running(settings) as (_, client):
        yield client


@pytest.mark.parametrize("name", DISGUISED)
async def test_no_disguise_passes_as_an_endpoint(beyond: httpx.AsyncClient, name: str) -> None:
    for subscription in (classic(endpoint=DISGUISED[name]), topic_based(endpoint=DISGUISED[name])):
        answer = await beyond.post("/Subscription", json=subscription)
        assert answer.status_code in (400, 422), answer.text
        assert answer.json()["resourceType"] == "OperationOutcome"


async def test_an_update_or_patch_is_judged_as_a_create_is(beyond: httpx.AsyncClient) -> None:
    made = await beyond.post("/Subscription", json=classic(endpoint="https://8.8.8.8/hook"))
    assert made.status_code == 201, made.text
    stored = made.json()
    url = f"/Subscription/{stored['id']}"
    moved = {**stored, "channel": {**stored["channel"], "endpoint": DISGUISED["mapped-metadata"]}}
    assert_outcome(
        await beyond.put(url, json=moved), 422, "security", "Subscription.channel.endpoint"
    )
    patch = [{"op": "replace", "path": "/channel/endpoint", "value": DISGUISED["decimal"]}]
    patched = await beyond.patch(
        url, json=patch, headers={"content-type": "application/json-patch+json"}
    )
    assert patched.status_code in (400, 422)
    kept = (await beyond.get(url)).json()
    assert kept["channel"]["endpoint"] == "https://8.8.8.8/hook"


class Names:
    """A name server at the seam: each answer is used once, the last for good."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def getaddrinfo(self, *_: Any, **__: Any) -> list[Any]:
        self.asked += 1
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            (socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 80))
            for a in addresses
        ]


def install(monkeypatch: pytest.MonkeyPatch, names: Names) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", names.getaddrinfo, raising=False)


PRIVATE = ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fd00:ec2::254"]


@pytest.mark.parametrize("address", PRIVATE)
async def test_a_name_that_leads_inside_is_refused(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    for answer in ([address], ["8.8.8.8", address], [address, "8.8.8.8"]):
        install(monkeypatch, Names(answer))
        with pytest.raises(EgressRefusedError) as refused:
            await rules().check("https://pcp.example.org/")
        assert address not in str(refused.value)


@asynccontextmanager
async def inside() -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server on loopback that nobody outside may reach, and what it was asked."""
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readline())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heard


@pytest.mark.parametrize("address", PRIVATE)
async def test_a_name_that_changes_between_check_and_call_reaches_nothing(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """DNS rebinding: the answer at the check is fine, the one at the call leads inside."""
    judge = rules()
    async with inside() as (port, heard):
        url = f"http://pcp.example.org:{port}/"
        names = Names(["8.8.8.8"], [address])
        install(monkeypatch, names)
        await judge.check(url)
        connector = aiohttp.TCPConnector(resolver=CheckedResolver(judge), use_dns_cache=False)
        async with aiohttp.ClientSession(connector=connector) as session:
            with pytest.raises((EgressRefusedError, aiohttp.ClientError)):
                await session.post(url, allow_redirects=False)
        assert names.asked == 2
        assert heard == []


# Key sets of clients: the other address that somebody else may name


@pytest.mark.parametrize("name", DISGUISED)
async def test_no_disguise_passes_as_the_address_of_a_key_set(name: str) -> None:
    documents = Documents(rules())
    try:
        with pytest.raises(DocumentError):
            await documents.get(DISGUISED[name])
    finally:
        await documents.close()


async def test_a_key_sets_name_is_judged_again_at_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Names(["127.0.0.1"]))
    async with inside() as (port, heard):
        documents = Documents(rules())
        with pytest.raises(DocumentError):
            await documents.get(f"https://client.example.org:{port}/jwks")
        await documents.close()
        assert heard == []


async def test_a_key_sets_redirect_is_not_followed() -> None:
    asked: list[str] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(request.path)
        if request.path == "/jwks":
            return web.Response(status=302, headers={"Location": "/inside"})
        return web.json_response({"keys": []})

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    documents = Documents(Egress.from_settings(Settings(host="127.0.0.1")))
    try:
        port = runner.addresses[0][1]
        with pytest.raises(DocumentError, match="302"):
            await documents.get(f"http://127.0.0.1:{port}/jwks")
        assert asked == ["/jwks"]
    finally:
        await documents.close()
        await runner.cleanup()
