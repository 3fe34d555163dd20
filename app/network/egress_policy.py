"""The egress rules: this server calls public addresses, those the operator lists, and loopback while it is open.

Open is a server on loopback without authorization: who reaches it is on this machine already. With authorization a
proxy may stand in front, and what listens on loopback is not its clients' to call.

A name is resolved and checked when a Subscription is stored and again by the connector that opens the connection
(`CheckedResolver`), so an answer that changes in between (DNS rebinding) reaches no forbidden address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult

from app.settings import Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Hosts that resolvers and C libraries read as numbers although they are no dotted quad: 2130706433, 0x7f.1, 0177.0.0.1.
_NUMERIC_LABEL = re.compile(r"^(0x[0-9a-f]*|[0-9]+)$", re.IGNORECASE)
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"^(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*$")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
# Protocol assignments and the retired 6to4 relays: called global by some tables, of no use to any endpoint.
_SPECIAL = (ipaddress.IPv4Network("192.0.0.0/24"), ipaddress.IPv4Network("192.88.99.0/24"))
_INTERNAL: tuple[Network, ...] = (
    ipaddress.IPv4Network("10.0.0.0/8"),
    ipaddress.IPv4Network("172.16.0.0/12"),
    ipaddress.IPv4Network("192.168.0.0/16"),
    ipaddress.IPv4Network("100.64.0.0/10"),
    ipaddress.IPv6Network("fc00::/7"),
)
# The same words whatever kind of address it is: what a name leads to is not its caller's to know.
_NOT_CALLED = "The address is not public and not on the operator's egress allow-list"


class EgressRefusedError(Exception):
    """The server may not call this address; the message says why and is fit for an OperationOutcome."""


class UnresolvableError(Exception):
    """The name has no address at this moment: not forbidden, but not reachable either."""


@dataclass(frozen=True, slots=True)
class Egress:
    """The rules. `hosts` are trusted by name, `networks` by address."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()
    loopback: bool = False

    @classmethod
    def from_settings(cls, settings: Settings) -> Egress:
        hosts: set[str] = set()
        networks: list[Network] = []
        for entry in settings.egress_allow.split(","):
            item = entry.strip().rstrip(".").lower()
            if not item:
                continue
            try:
                networks.append(ipaddress.ip_network(item, strict=False))
            except ValueError:
                hosts.add(item)
        is_open = settings.auth != "smart" and is_loopback_host(settings.host)
        return cls(frozenset(hosts), tuple(networks), is_open)

    def check_url(self, url: str) -> SplitResult:
        """Check a URL without resolving its name; returns its parts. Raises EgressRefusedError."""
        parts = _split(url)
        literal = _literal(parts.hostname or "")
        if literal is not None:
            self._check_address(literal, by_name=False)
        elif is_loopback_host(parts.hostname or "") and not self._may_be_loopback(parts):
            raise EgressRefusedError(_NOT_CALLED)
        return parts

    def _may_be_loopback(self, parts: SplitResult) -> bool:
        is_listed = (parts.hostname or "").rstrip(".") in self.hosts
        return self.loopback or is_listed or any(each.is_loopback for each in self.networks)

    def is_named(self, url: str) -> bool:
        """Whether the operator stands for an address: not merely public, but listed, or loopback if allowed."""
        try:
            host = self.check_url(url).hostname or ""
            literal = _literal(host)
        except EgressRefusedError:
            return False
        if literal is None:
            return host.rstrip(".") in self.hosts or is_loopback_host(host)
        return literal.is_loopback or any(literal in network for network in self.networks)

    async def check(self, url: str) -> None:
        """Check a URL with all addresses its name has now. Raises EgressRefusedError or UnresolvableError."""
        parts = self.check_url(url)
        host = parts.hostname or ""
        if _literal(host) is None:
            await self.resolve(host, parts.port or (443 if parts.scheme == "https" else 80))

    async def resolve(
        self, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """All addresses of a name, where every one may be called. Raises EgressRefusedError or UnresolvableError."""
        loop = asyncio.get_running_loop()
        try:
            infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        except (socket.gaierror, UnicodeError):
            raise UnresolvableError("The host's name cannot be resolved") from None
        by_name = host.rstrip(".").lower() in self.hosts
        results = []
        for info_family, _, protocol, _, sockaddr in infos:
            address = str(sockaddr[0])
            self._check_address(ipaddress.ip_address(address), by_name=by_name)
            results.append(_resolved(host, address, port, info_family, protocol))
        return results

    def _check_address(self, address: Address, *, by_name: bool) -> None:
        """Raises EgressRefusedError for a forbidden address; the text never repeats the address that a name led to."""
        if any(address in network for network in self.networks):
            return
        for judged in _unwrapped(address):
            if any(judged in network for network in self.networks):
                continue
            if judged.is_loopback:
                if not (self.loopback or by_name):
                    raise EgressRefusedError(_NOT_CALLED)
            elif not (_is_public(judged) or (by_name and _is_internal(judged))):
                raise EgressRefusedError(_NOT_CALLED)


class CheckedResolver(AbstractResolver):
    """A resolver for aiohttp's connector, which connects to the addresses that were checked here."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return await self._egress.resolve(host, port, family)

    async def close(self) -> None:
        """Nothing is kept open."""


def is_loopback_host(host: str) -> bool:
    """Whether a host, as written in a setting or URL, is this machine's loopback."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    literal = _parse_address(name)
    return literal is not None and literal.is_loopback


def origin(url: str) -> tuple[str, str, int | None] | None:
    """Scheme, host and port of a URL; None where it cannot be read."""
    try:
        parts = urlsplit(url)
        return parts.scheme.lower(), (parts.hostname or "").lower(), parts.port
    except ValueError:
        return None


def _split(url: str) -> SplitResult:
    """The parts of an http or https URL without credentials or disguise. Raises EgressRefusedError."""
    if any(ord(character) <= 32 or ord(character) == 127 for character in url) or "\\" in url:
        raise EgressRefusedError("The URL holds spaces, backslashes or control characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise EgressRefusedError("The URL cannot be read") from None
    if parts.scheme not in ("http", "https"):
        raise EgressRefusedError("Only http and https URLs can be called")
    if not parts.hostname or port == 0:
        raise EgressRefusedError("The URL names no host or port that can be called")
    if parts.username is not None or parts.password is not None:
        raise EgressRefusedError("Credentials do not belong into a URL")
    return parts


def _literal(host: str) -> Address | None:
    """The address where the host is one; None for a name. Raises EgressRefusedError for a host that is neither."""
    address = _parse_address(host)
    if address is not None:
        return address
    name = host[:-1] if host.endswith(".") else host
    if _NUMERIC_LABEL.match(name.rpartition(".")[2]):
        raise EgressRefusedError("The host is a number in disguise; write the address in full")
    try:
        ascii_name = name.encode("idna").decode()
    except UnicodeError:
        raise EgressRefusedError("The host is no valid name") from None
    if not _HOST_NAME.match(ascii_name) or ascii_name.lower() != name.lower():
        raise EgressRefusedError(
            "The host is no valid ASCII name; write international names in their xn-- form"
        )
    return None


def _parse_address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _unwrapped(address: Address) -> list[Address]:
    """The addresses that a connection reaches: for IPv6 forms that carry an IPv4 address, that one as well."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in _NAT64:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    if address.sixtofour is not None:
        return [address, address.sixtofour]
    return [address, *(address.teredo or ())]


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        return address in _GLOBAL_UNICAST and address.is_global
    return (
        address.is_global
        and not address.is_multicast
        and not any(address in network for network in _SPECIAL)
    )


def _is_internal(address: Address) -> bool:
    """Whether an operator may trust the address by name. Never link-local: cloud metadata is served there."""
    return any(address in network for network in _INTERNAL)


def _resolved(host: str, address: str, port: int, family: Any, protocol: int) -> ResolveResult:
    return ResolveResult(
        hostname=host,
        host=address,
        port=port,
        family=family,
        proto=protocol,
        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    )
