"""Which URLs the server may call, and that the connection goes to the address that was judged."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from app.network.egress_policy import CheckedResolver, Egress, EgressRefusedError, UnresolvableError
from app.settings import Settings


def egress(host: str = "192.0.2.1", allow: str = "", auth: Any = None) -> Egress:
    return Egress.from_settings(Settings(host=host, egress_allow=allow, auth=auth))


def answering(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every name resolve to these addresses."""

    async def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        return [
            (socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 443))
            for a in addresses
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("ftp://pcp.example/hook", id="scheme"),
        pytest.param("pcp.example/hook", id="no-scheme"),
        pytest.param("https:///hook", id="no-host"),
        pytest.param("https://user:secret@8.8.8.8/", id="credentials"),
        pytest.param("https://user@8.8.8.8/", id="user"),
        pytest.param("https://8.8.8.8:0/", id="port-zero"),
        pytest.param("https://8.8.8.8:99999/", id="port-range"),
        pytest.param("https://8.8.8.8\\@10.0.0.1/", id="backslash"),
        pytest.param("https://8.8.8.8/a b", id="space"),
        pytest.param("http://127.0.0.1/", id="loopback"),
        pytest.param("http://127.9.8.7/", id="loopback-net"),
        pytest.param("http://localhost/", id="localhost"),
        pytest.param("http://hook.localhost./", id="localhost-below"),
        pytest.param("http://[::1]/", id="loopback-6"),
        pytest.param("http://[::ffff:127.0.0.1]/", id="mapped-loopback"),
        pytest.param("http://[::ffff:10.0.0.1]/", id="mapped-private"),
        pytest.param("http://[64:ff9b::a00:1]/", id="nat64-private"),
        pytest.param("http://[2002:a00:1::1]/", id="6to4-private"),
        pytest.param("http://10.1.2.3/", id="private-10"),
        pytest.param("http://172.16.0.1/", id="private-172"),
        pytest.param("http://192.168.1.1/", id="private-192"),
        pytest.param("http://100.64.0.1/", id="carrier-nat"),
        pytest.param("http://169.254.169.254/latest/meta-data/", id="metadata"),
        pytest.param("http://[fd00:ec2::254]/", id="metadata-6"),
        pytest.param("http://[fe80::1]/", id="link-local-6"),
        pytest.param("http://[fe80::1%25eth0]/", id="zone"),
        pytest.param("http://224.0.0.1/", id="multicast"),
        pytest.param("http://[ff02::1]/", id="multicast-6"),
        pytest.param("http://0.0.0.0/", id="unspecified"),
        pytest.param("http://[::]/", id="unspecified-6"),
        pytest.param("http://255.255.255.255/", id="broadcast"),
        pytest.param("http://2130706433/", id="decimal"),
        pytest.param("http://0x7f000001/", id="hex"),
        pytest.param("http://0x7f.0.0.1/", id="hex-part"),
        pytest.param("http://0177.0.0.1/", id="octal"),
        pytest.param("http://127.1/", id="short"),
        pytest.param("http://127.0.0.1./", id="trailing-dot"),
        pytest.param("http://\uff11\uff12\uff17.0.0.1/", id="fullwidth-digits"),
        pytest.param("http://ex%61mple.org/", id="percent"),
    ],
)
async def test_forbidden_urls_are_refused(url: str) -> None:
    with pytest.raises(EgressRefusedError):
        await egress().check(url)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("https://8.8.8.8/hook", id="public"),
        pytest.param("https://[2001:4860:4860::8888]:8443/hook", id="public-6"),
        pytest.param("https://[::ffff:8.8.8.8]/", id="mapped-public"),
    ],
)
async def test_public_addresses_are_allowed(url: str) -> None:
    await egress().check(url)


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("127.0.0.1", id="address"),
        pytest.param("localhost", id="name"),
        pytest.param("::1", id="v6"),
    ],
)
async def test_loopback_is_allowed_while_the_server_is_on_loopback(host: str) -> None:
    await egress(host).check("http://127.0.0.1:9000/")
    await egress(host).check("http://localhost:9000/")
    with pytest.raises(EgressRefusedError):
        await egress(host).check("http://10.0.0.1/")


@pytest.mark.parametrize(
    "name",
    [
        *("127.0.0.1", "127.9.8.7", "[::1]", "[::ffff:127.0.0.1]", "[::]"),
        "0.0.0.0",  # noqa: S104 - it is not listened on
        *("localhost", "LOCALHOST.", "a.localhost", "169.254.169.254", "[fe80::1]"),
    ],
)
async def test_with_authorization_loopback_has_to_be_listed(name: str) -> None:
    """Clients may come through a proxy on the same host, and what listens on loopback is not theirs."""
    with pytest.raises(EgressRefusedError) as refused:
        await egress("127.0.0.1", auth="smart").check(f"http://{name}:9000/")
    assert (
        str(refused.value)
        == "The address is not public and not on the operator's egress allow-list"
    )


@pytest.mark.parametrize(
    ("allow", "name"),
    [
        ("127.0.0.0/8", "127.0.0.1"),
        ("127.0.0.1,::1", "localhost"),
        ("localhost", "localhost"),
        ("::1", "[::1]"),
    ],
)
async def test_loopback_that_is_listed_may_be_called_with_authorization(
    allow: str, name: str
) -> None:
    await egress("127.0.0.1", allow, "smart").check(f"http://{name}:9000/")
    with pytest.raises(EgressRefusedError):
        await egress("127.0.0.1", allow, "smart").check("http://10.0.0.1/")


@pytest.mark.parametrize(
    ("allow", "url"),
    [
        pytest.param("10.0.0.0/8", "http://10.1.2.3/", id="cidr"),
        pytest.param("10.1.2.3", "http://10.1.2.3/", id="address"),
        pytest.param(" 192.168.0.0/16 , 10.0.0.0/8", "http://10.1.2.3/", id="several"),
        pytest.param("10.0.0.0/8", "http://[::ffff:10.1.2.3]/", id="cidr-mapped"),
        pytest.param("fd00::/8", "http://[fd00::5]/", id="cidr-6"),
        pytest.param("localhost", "http://localhost:9000/", id="loopback-by-name"),
    ],
)
async def test_the_operator_may_list_networks_and_hosts(allow: str, url: str) -> None:
    await egress(allow=allow).check(url)


async def test_a_name_is_refused_when_any_of_its_addresses_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answering(monkeypatch, "8.8.8.8", "10.0.0.1")
    with pytest.raises(EgressRefusedError):
        await egress().check("https://pcp.example/")
    answering(monkeypatch, "8.8.8.8", "2001:4860:4860::8888")
    await egress().check("https://pcp.example/")


async def test_a_listed_name_may_lead_to_private_but_never_to_metadata_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rules = egress(allow="PCP.practice.internal")
    answering(monkeypatch, "10.0.0.1", "fd12::1")
    await rules.check("https://pcp.practice.internal/")
    with pytest.raises(EgressRefusedError):
        await rules.check("https://other.practice.internal/")
    answering(monkeypatch, "169.254.169.254")
    with pytest.raises(EgressRefusedError):
        await rules.check("https://pcp.practice.internal/")


async def test_the_connector_gets_only_judged_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the second answer of the name server is judged again, right where the connection is opened."""
    resolver = CheckedResolver(egress())
    answering(monkeypatch, "8.8.8.8")
    (result,) = await resolver.resolve("pcp.example", 443, socket.AF_UNSPEC)
    assert result["host"] == "8.8.8.8"
    answering(monkeypatch, "127.0.0.1")
    with pytest.raises(EgressRefusedError):
        await resolver.resolve("pcp.example", 443, socket.AF_UNSPEC)


async def test_an_unknown_name_is_not_a_forbidden_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)
    with pytest.raises(UnresolvableError):
        await egress().check("https://nowhere.invalid/")
