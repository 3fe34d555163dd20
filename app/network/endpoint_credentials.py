"""The credentials that single endpoints require: a signature, a client certificate, a token. Read from one file.

    {"https://pcp.example.org": {
        "signature_secret": "...",
        "client_certificate": "/etc/carerelay/client.pem", "client_key": "/etc/carerelay/client.key",
        "authority": "/etc/carerelay/their-ca.pem",
        "token": {"url": "https://pcp.example.org/token", "client_id": "carerelay",
                  "key": "/etc/carerelay/jwk.json", "scope": "system/Communication.c"}}}

Origins as in a browser: scheme, host, and the port where it is not the scheme's own.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import msgspec

from app.network.egress_policy import origin
from app.settings import Settings

_PORTS = {"http": 80, "https": 443}
Origin = tuple[str, str, int]


class EndpointsError(Exception):
    """The file of endpoints cannot be used; the text is for operators."""


class TokenTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The token endpoint, the client's id and scope, and the file of its private key (a JWK, or PEM with `key_id`)."""

    url: str
    client_id: str
    key: str
    scope: str
    key_id: str | None = None
    algorithm: str | None = None


class EndpointTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One endpoint's terms; it does not require what is None."""

    signature_secret: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None
    authority: str | None = None
    token: TokenTerms | None = None

    def tls(self) -> ssl.SSLContext | None:
        """A TLS context where the endpoint requires a client certificate or has an authority of its own, else None."""
        if self.client_certificate is None and self.authority is None:
            return None
        context = ssl.create_default_context(cafile=self.authority)
        if self.client_certificate is not None:
            context.load_cert_chain(self.client_certificate, self.client_key)
        return context


NO_TERMS = EndpointTerms()


def of_settings(settings: Settings) -> Mapping[Origin, EndpointTerms]:
    """All terms by origin. Raises EndpointsError where the file, or one that it names, cannot be read."""
    return {} if settings.endpoints_file is None else _read(settings.endpoints_file)


@lru_cache(maxsize=4)
def _read(file: Path) -> Mapping[Origin, EndpointTerms]:
    try:
        found = msgspec.json.decode(file.read_bytes(), type=dict[str, EndpointTerms])
    except OSError as error:
        raise EndpointsError(f"{file}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise EndpointsError(f"{file}: {error}") from None
    terms = {}
    for url, each in found.items():
        key = origin_of(url)
        if key is None:
            raise EndpointsError(f"{file}: {url} is no origin")
        try:
            each.tls()
        except (OSError, ssl.SSLError) as error:
            raise EndpointsError(f"{file}: the certificate for {url}: {error.strerror}") from None
        terms[key] = each
    return terms


def origin_of(url: str) -> Origin | None:
    """Scheme, host and port, the scheme's own port where none is given; None where it cannot be read."""
    found = origin(url)
    if found is None or not found[1] or found[0] not in _PORTS:
        return None
    scheme, host, port = found
    return scheme, host, port or _PORTS[scheme]
