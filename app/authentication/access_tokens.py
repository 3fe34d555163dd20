"""The server's own access tokens, and the caller that the token of a request identifies.

https://hl7.org/fhir/smart-app-launch/backend-services.html and RFC 9068
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass

import msgspec
from cachetools import FIFOCache
from joserfc import jws

from app.authentication import jwt
from app.authentication.caller import Caller
from app.authentication.client_assertions import Assertions
from app.authentication.clients import Client, Clients
from app.authentication.jwks import Documents
from app.authentication.jwt import Parts, TokenRefused
from app.authentication.oidc import Outside
from app.authentication.scopes import intersect
from app.authentication.signing_keys import ALGORITHM, ServerKeys
from app.errors import Unauthorized
from app.network import exposure
from app.network.egress_policy import Egress
from app.runtime import secrets
from app.runtime.mongo import Mongo
from app.settings import Settings

# The lifetime of an access token.
SECONDS = 300
TOKEN_TYPE = "at+jwt"  # noqa: S105 - a media type
_MAX_KEPT = 10_000
_CHALLENGE = 'Bearer realm="CareRelay"'

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Judged:
    """A token whose signature and claims are valid, and the caller made from it and one version of its client."""

    client_id: str
    scopes: tuple[str, ...]
    until: float
    version: int | None  # of the client, where the token is bound to one
    caller: Caller
    caller_version: int


class Authority:
    """The parts of authentication in a process; `base_url` is the FHIR base that tokens are made for."""

    def __init__(self, settings: Settings, mongo: Mongo) -> None:
        egress = Egress.from_settings(settings)
        self.base_url = base_url(settings)
        self.token_url = f"{self.base_url.removesuffix('/fhir')}/auth/token"
        self.documents = Documents(egress)
        self.keys = ServerKeys(mongo, secrets.of_settings(settings))
        self._mongo = mongo
        self.clients = Clients(mongo, egress)
        self.assertions = Assertions(mongo, self.clients, self.documents, self._now)
        self.outside = (
            Outside(settings, self.documents, self._now) if settings.oidc_issuer else None
        )
        self._kept: FIFOCache[str, _Judged] = FIFOCache(_MAX_KEPT)

    @classmethod
    async def open(cls, settings: Settings, mongo: Mongo) -> Authority:
        """An authority with its keys and indexes ready. Raises secrets.SecretsError for a sealed key it cannot open."""
        authority = cls(settings, mongo)
        await authority.keys.prepare()
        await authority.assertions.prepare()
        for client_id in await authority.clients.unconfirmed():
            log.warning(
                "client registered or changed while authorization was off: it is shut out until it is confirmed",
                extra={"action": "clients", "client_id": client_id},
            )
        return authority

    async def close(self) -> None:
        await self.documents.close()

    def _now(self) -> float:
        """Seconds since 1970 by the database's clock, so that all processes agree on when a token ends."""
        return self._mongo.now().timestamp()

    async def issue(self, client: Client, scopes: tuple[str, ...]) -> str:
        """An access token for these scopes, valid for SECONDS and bound to the client's current version."""
        key, now = await self.keys.signing(), int(self._now())
        claims = {
            "iss": self.base_url,
            "aud": self.base_url,
            "sub": client.client_id,
            "client_id": client.client_id,
            "client_version": client.version,
            "role": client.role,
            **({"organization": client.organization} if client.organization else {}),
            "scope": " ".join(scopes),
            "iat": now,
            "exp": now + SECONDS,
            "jti": str(uuid.uuid4()),
        }
        header = {"alg": ALGORITHM, "typ": TOKEN_TYPE, "kid": key.kid}
        payload = msgspec.json.encode(claims)
        return jws.serialize_compact(header, payload, key.private, algorithms=[ALGORITHM])

    async def caller(self, header: str | None) -> Caller:
        """The caller that an Authorization header identifies. Raises Unauthorized.

        Signature and claims are checked once for each token; the client each time, as of a second ago at most.
        """
        token = _bearer(header)
        judged: _Judged | None
        try:
            judged = self._kept[token]
        except KeyError:
            judged = None
        if judged is None or judged.until <= self._now():
            try:
                judged = await self._judge(token)
            except TokenRefused as refused:
                self._kept.pop(token, None)
                raise _invalid(str(refused)) from None
            self._kept[token] = judged
        client = await self.clients.get(judged.client_id)
        if client is None or client.disabled:
            raise _invalid("The token's client is not admitted")
        if client.version != judged.caller_version:
            if judged.version is not None:
                raise _invalid("The token's client has changed; ask for another token")
            judged.caller = _caller(client, judged.scopes)
            judged.caller_version = client.version
        return judged.caller

    async def _judge(self, token: str) -> _Judged:
        parts = jwt.read(token)
        if self.outside is not None and parts.claims.get("iss") == self.outside.issuer:
            claims = await self.outside.judge(parts)
            client = await self._client(claims.client_id)
            # Judged again after SECONDS at most, so that a key that the provider withdraws ends its tokens.
            until = min(claims.expires, self._now() + SECONDS)
            caller = _caller(client, claims.scopes)
            return _Judged(client.client_id, claims.scopes, until, None, caller, client.version)
        return await self._judge_own(parts)

    async def _judge_own(self, parts: Parts) -> _Judged:
        kid = jwt.check_header(parts, (ALGORITHM,), (TOKEN_TYPE,))
        if parts.claims.get("iss") != self.base_url or parts.claims.get("aud") != self.base_url:
            raise TokenRefused("The token is made for another server")
        expires = parts.moment("exp")
        if expires is None or expires <= self._now():
            raise TokenRefused("The token has expired")
        key = await self.keys.verifying(kid)
        if key is None:
            raise TokenRefused("The token is signed with a key that this server does not have")
        jwt.verify(parts, key)
        client = await self._client(parts.text_claim("client_id"))
        scopes = tuple(parts.text_claim("scope").split())
        version = parts.claims.get("client_version")
        if not isinstance(version, int) or version != client.version:
            raise TokenRefused("The token's client has changed; ask for another token")
        caller = _caller(client, scopes)
        return _Judged(client.client_id, scopes, expires, version, caller, client.version)

    async def _client(self, client_id: str) -> Client:
        client = await self.clients.get(client_id)
        if client is None:
            raise TokenRefused("The token's client is not admitted")
        return client


async def authenticate(authority: Authority | None, authorization: str | None) -> Caller:
    """The caller of a request with this Authorization header. Raises Unauthorized."""
    if authority is None:
        raise Unauthorized("This server gives no tokens and takes none")
    return await authority.caller(authorization)


def base_url(settings: Settings) -> str:
    """The FHIR base that tokens are made for.

    Never from a request's Host header: with a chosen one, another server could pass on assertions made for itself.
    """
    return settings.base_url.rstrip("/") or f"{exposure.address(settings)}/fhir"


def _caller(client: Client, scopes: tuple[str, ...]) -> Caller:
    granted = intersect(scopes, client.scopes)
    return Caller(client.client_id, client.organization, client.role, granted)


def _bearer(header: str | None) -> str:
    if not header:
        raise Unauthorized("Send an access token", headers={"WWW-Authenticate": _CHALLENGE})
    scheme, _, token = header.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise Unauthorized(
            "Send an access token as Bearer", headers={"WWW-Authenticate": _CHALLENGE}
        )
    if len(token) > jwt.MAX_TOKEN or not token.isascii():
        raise _invalid("The token is too long or no JWT")
    return token


def _invalid(reason: str) -> Unauthorized:
    challenge = f'{_CHALLENGE}, error="invalid_token", error_description="{reason}"'
    code = "expired" if "expired" in reason else "unknown"
    return Unauthorized(reason, code=code, headers={"WWW-Authenticate": challenge})
