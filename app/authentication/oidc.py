"""Access tokens of an outside OpenID provider, for organisations that have one.

https://openid.net/specs/openid-connect-discovery-1_0.html and RFC 9068
The provider's token names the client and its scopes; the client's organisation and role are those of the registry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.authentication import jwt
from app.authentication.jwks import DocumentError, Documents, key_of
from app.authentication.jwt import Parts, TokenRefused
from app.settings import Settings

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
_TYPES = ("", "jwt", "at+jwt", "application/at+jwt")
LEEWAY = 30.0
_DISCOVERY = "/.well-known/openid-configuration"


@dataclass(frozen=True, slots=True)
class Claims:
    """The client and scopes of a token, and its end with LEEWAY in seconds since 1970."""

    client_id: str
    scopes: tuple[str, ...]
    expires: float


class Outside:
    """Judges the tokens of one issuer. `now` returns seconds since 1970."""

    def __init__(self, settings: Settings, documents: Documents, now: Callable[[], float]) -> None:
        self.issuer = settings.oidc_issuer
        self._audience = settings.oidc_audience
        self._client_claim = settings.oidc_client_claim
        self._scopes_claim = settings.oidc_scopes_claim
        self._documents = documents
        self._now = now

    async def judge(self, parts: Parts) -> Claims:
        """The claims of a token of the provider. Raises TokenRefused."""
        kid = jwt.check_header(parts, ALGORITHMS, _TYPES)
        if parts.claims.get("iss") != self.issuer:
            raise TokenRefused("The token is of another issuer")
        audience = parts.claims.get("aud")
        if self._audience not in (audience if isinstance(audience, list) else [audience]):
            raise TokenRefused("The token is made for another audience")
        expires = self._check_time(parts)
        url = await self._jwks_uri()
        jwt.verify(parts, await key_of(self._documents, url, kid, parts.algorithm))
        return Claims(
            parts.text_claim(self._client_claim),
            _scopes(parts.claims.get(self._scopes_claim)),
            expires,
        )

    def _check_time(self, parts: Parts) -> float:
        now = self._now()
        expires = parts.moment("exp")
        if expires is None or expires + LEEWAY <= now:
            raise TokenRefused("The token has expired, or does not say when it does")
        begins = parts.moment("nbf")
        if begins is not None and begins > now + LEEWAY:
            raise TokenRefused("The token is not valid yet")
        return expires + LEEWAY

    async def _jwks_uri(self) -> str:
        try:
            found = await self._documents.get(self.issuer.rstrip("/") + _DISCOVERY)
        except DocumentError:
            raise TokenRefused("The provider's configuration cannot be had") from None
        url = found.get("jwks_uri")
        if found.get("issuer") != self.issuer or not isinstance(url, str):
            raise TokenRefused("The provider's configuration is another's or names no keys")
        return url


def _scopes(claim: Any) -> tuple[str, ...]:
    """One text with spaces, or a list of texts: providers differ."""
    if isinstance(claim, str):
        return tuple(claim.split())
    if isinstance(claim, list) and all(isinstance(each, str) for each in claim):
        return tuple(claim)
    return ()
