"""Access tokens for endpoints that require one: SMART Backend Services, as its client.

https://hl7.org/fhir/smart-app-launch/backend-services.html
A signed assertion is exchanged for an access token, which is used until shortly before it expires.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
from joserfc import jwt
from joserfc.jwk import ECKey, JWKRegistry, RSAKey

from app.network.endpoint_credentials import TokenTerms

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
# An assertion may be valid for five minutes at most.
ASSERTION_SECONDS = 240
# Tokens are renewed so long before they end, and at the latest halfway.
_EARLY_SECONDS = 30.0
_UNSTATED_SECONDS = 300.0
_ANSWER_LIMIT = 64 * 1024

Post = Callable[[httpx.Request], Awaitable[httpx.Response]]


class TokenError(Exception):
    """No token could be obtained; the text is our own and holds no secret."""


@dataclass(slots=True)
class _Token:
    value: str
    fresh_until: float


class BackendToken:
    """The token of one endpoint. `post` sends a request that has passed the egress rules."""

    def __init__(
        self, terms: TokenTerms, post: Post, clock: Callable[[], float] = time.time
    ) -> None:
        self._terms = terms
        self._post = post
        self._clock = clock
        self._token: _Token | None = None
        self._request_lock = asyncio.Lock()

    async def value(self) -> str:
        """A token that is still valid; concurrent callers share one request. Raises TokenError."""
        async with self._request_lock:
            if self._token is None or self._clock() >= self._token.fresh_until:
                self._token = await self._ask()
            return self._token.value

    def refused(self, value: str) -> None:
        """Discard a token that the endpoint has refused: the next caller requests another."""
        if self._token is not None and self._token.value == value:
            self._token = None

    async def _ask(self) -> _Token:
        requested = self._clock()
        request = httpx.Request(
            "POST",
            self._terms.url,
            data={
                "grant_type": "client_credentials",
                "scope": self._terms.scope,
                "client_assertion_type": ASSERTION_TYPE,
                "client_assertion": self._assertion(int(requested)),
            },
            headers={"Accept": "application/json"},
        )
        answer = await self._answer(request)
        seconds = answer.get("expires_in", _UNSTATED_SECONDS)
        if not isinstance(seconds, int | float):
            seconds = _UNSTATED_SECONDS
        return _Token(
            str(answer["access_token"]), requested + max(seconds - _EARLY_SECONDS, seconds / 2)
        )

    async def _answer(self, request: httpx.Request) -> dict[str, Any]:
        try:
            response = await self._post(request)
            try:
                body = b""
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > _ANSWER_LIMIT:
                        break
            finally:
                await response.aclose()
        except httpx.HTTPError:
            raise TokenError("the token endpoint does not answer") from None
        if response.status_code != 200:
            raise TokenError(f"the token endpoint answered {response.status_code}")
        try:
            answer = msgspec.json.decode(body, type=dict[str, Any])
        except msgspec.DecodeError:
            answer = {}
        if not isinstance(answer.get("access_token"), str):
            raise TokenError("the token endpoint answered without a token")
        return answer

    def _assertion(self, now: int) -> str:
        key, key_id, algorithm = self._key()
        header = {"alg": algorithm, "typ": "JWT", **({"kid": key_id} if key_id else {})}
        claims = {
            "iss": self._terms.client_id,
            "sub": self._terms.client_id,
            "aud": self._terms.url,
            "exp": now + ASSERTION_SECONDS,
            "jti": str(uuid.uuid4()),
        }
        return jwt.encode(header, claims, key, algorithms=[algorithm])

    def _key(self) -> tuple[RSAKey | ECKey, str | None, str]:
        """The private key, read anew for each assertion, so that a new one takes effect without a restart."""
        try:
            text = Path(self._terms.key).read_text()
            if text.lstrip().startswith("{"):
                jwk = msgspec.json.decode(text, type=dict[str, Any])
                key = JWKRegistry.import_key(jwk)
            else:
                jwk = {}
                key = JWKRegistry.import_key(text, "EC" if "BEGIN EC" in text else "RSA")
        except (OSError, ValueError, msgspec.DecodeError):
            raise TokenError("the key for the token's assertion cannot be read") from None
        if not isinstance(key, RSAKey | ECKey):
            raise TokenError("the key for the token's assertion is neither RSA nor EC")
        algorithm = self._terms.algorithm or jwk.get("alg")
        default = "RS384" if isinstance(key, RSAKey) else "ES384"
        return key, self._terms.key_id or jwk.get("kid"), algorithm or default
