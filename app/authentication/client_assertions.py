"""The judgement of client assertions: signed JWTs, each valid once, by which a client requests a token.

https://hl7.org/fhir/smart-app-launch/client-confidential-asymmetric.html and RFC 7523
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from pymongo import ASCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from app.authentication import jwt
from app.authentication.clients import ALGORITHMS, Client, Clients
from app.authentication.jwks import Documents, key_of
from app.authentication.jwt import Parts, TokenRefused
from app.runtime import collections
from app.runtime.mongo import Mongo

COLLECTION = "assertions"
MOST_SECONDS = 300
# Clocks differ: an assertion may seem to be valid for so many seconds longer, or from so many later on.
LEEWAY = 2.0
_MAX_JTI = 256
# MongoDB removes used ids by its own clock, which may be ahead of ours.
_KEPT_LONGER = timedelta(minutes=5)
# Header fields by which a token brings its own key along.
_OWN_KEYS = ("jwk", "x5c", "x5u")
_STRANGER = "The client is unknown or disabled, or has no such key"


class Assertions:
    """Judges assertions. `now` returns seconds since 1970."""

    def __init__(
        self, mongo: Mongo, clients: Clients, documents: Documents, now: Callable[[], float]
    ) -> None:
        self._mongo = mongo
        self._clients = clients
        self._documents = documents
        self._now = now

    async def prepare(self) -> None:
        expiry = IndexModel([("expires", ASCENDING)], expireAfterSeconds=0)
        await collections.ensure(self._mongo, COLLECTION, [expiry])

    async def judge(self, assertion: str, token_url: str) -> Client:
        """The client who made an assertion for this token endpoint. Raises TokenRefused.

        Keys are fetched only from the client's registered address, and a `jti` counts as used only after all other
        checks: strangers cannot use up those of a client.
        """
        parts = jwt.read(assertion)
        kid = jwt.check_header(parts, ALGORITHMS, ("jwt",))
        if any(field in parts.header for field in _OWN_KEYS):
            raise TokenRefused("The assertion brings its own key along")
        client_id = parts.text_claim("iss")
        if parts.text_claim("sub") != client_id:
            raise TokenRefused("'iss' and 'sub' of the assertion differ")
        expires = self._check_time(parts)
        _check_audience(parts, token_url)
        jti = parts.text_claim("jti")
        if len(jti) > _MAX_JTI:
            raise TokenRefused("The assertion's 'jti' is too long")
        client = await self._clients.get(client_id)
        if client is None or client.disabled:
            raise TokenRefused(_STRANGER)
        await self._check_signature(parts, client, kid)
        await self._use_up(client_id, jti, expires)
        return client

    def _check_time(self, parts: Parts) -> float:
        """The expiry of the assertion in seconds since 1970. Raises TokenRefused."""
        now = self._now()
        expires = parts.moment("exp")
        if expires is None or expires <= now:
            raise TokenRefused("The assertion has expired, or does not say when it does")
        if expires > now + MOST_SECONDS + LEEWAY:
            raise TokenRefused("The assertion is valid for more than five minutes")
        for name in ("nbf", "iat"):
            moment = parts.moment(name)
            if moment is not None and moment > now + LEEWAY:
                raise TokenRefused("The assertion is not valid yet")
        return expires

    async def _check_signature(self, parts: Parts, client: Client, kid: str) -> None:
        stated = parts.header.get("jku")
        if "jku" in parts.header and (client.jwks_uri is None or stated != client.jwks_uri):
            raise TokenRefused("The assertion's 'jku' is not the registered URL")
        if client.jwks_uri is not None:
            key = await key_of(self._documents, client.jwks_uri, kid, parts.algorithm)
        else:
            key = jwt.the_key(jwt.matching(client.jwks, kid, parts.algorithm), parts.algorithm)
        jwt.verify(parts, key)

    async def _use_up(self, client_id: str, jti: str, expires: float) -> None:
        digest = hashlib.sha256(f"{client_id}\0{jti}".encode()).hexdigest()
        until = datetime.fromtimestamp(expires, UTC) + _KEPT_LONGER
        try:
            await self._mongo.collection(COLLECTION).insert_one({"_id": digest, "expires": until})
        except DuplicateKeyError:
            raise TokenRefused("The assertion was used before") from None


def _check_audience(parts: Parts, token_url: str) -> None:
    audience = parts.claims.get("aud")
    if audience not in (token_url, [token_url]):
        raise TokenRefused("The assertion is not made for this token endpoint ('aud')")
