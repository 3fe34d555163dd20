"""Clients with keys, their assertions and their tokens: what tests of authorization begin with."""

from __future__ import annotations

import time
import uuid
from typing import Any

import httpx
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey
from joserfc.jws import JWSRegistry

from app.authentication.access_tokens import Authority
from app.network.backend_services_client import ASSERTION_TYPE
from tests.conftest import Server

Key = ECKey | RSAKey


def ec_key(kid: str | None = None, curve: str = "P-384") -> ECKey:
    return ECKey.generate_key(curve, {"kid": kid or uuid.uuid4().hex})


def rsa_key(kid: str | None = None) -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": kid or uuid.uuid4().hex})


def key_set(*keys: Key) -> dict[str, Any]:
    """The public halves as a JWK Set."""
    return {"keys": [dict(key.as_dict(private=False)) for key in keys]}


def authority_of(server: Server) -> Authority:
    assert server.authority is not None
    return server.authority


async def register(server: Server, *keys: Key, **changes: Any) -> str:
    """A client of the registry; its id."""
    wanted = {
        "name": "Test client",
        "role": "practice",
        "organization": "Organization/practice-1",
        "scopes": "system/*.cruds",
        **({"jwks": key_set(*keys)} if keys else {}),
        **changes,
    }
    return (await authority_of(server).clients.add(wanted)).client_id


def claims_of(server: Server, client_id: str, **changes: Any) -> dict[str, Any]:
    """Claims of a good assertion but for the changes; what is changed to None is left out."""
    claims = {
        "iss": client_id,
        "sub": client_id,
        "aud": authority_of(server).token_url,
        "exp": int(time.time()) + 240,
        "jti": uuid.uuid4().hex,
        **changes,
    }
    return {name: value for name, value in claims.items() if value is not None}


def signed(claims: dict[str, Any], key: Key, **header: Any) -> str:
    """A JWT; what is None in the header is left out."""
    algorithm = "ES384" if isinstance(key, ECKey) else "RS384"
    whole = {"alg": algorithm, "typ": "JWT", "kid": key.kid, **header}
    whole = {name: value for name, value in whole.items() if value is not None}
    return jwt.encode(whole, claims, key, registry=_Loose([whole["alg"]]))


class _Loose(JWSRegistry):
    """Signs whatever header a test wants."""

    max_header_length = 10_000

    def __init__(self, algorithms: list[str]) -> None:
        super().__init__(algorithms=algorithms, strict_check_header=False)


def form(assertion: str, **changes: Any) -> dict[str, Any]:
    """The fields of a token request; what is changed to None is left out."""
    fields = {
        "grant_type": "client_credentials",
        "scope": "system/*.rs",
        "client_assertion_type": ASSERTION_TYPE,
        "client_assertion": assertion,
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not None}


async def ask(client: httpx.AsyncClient, assertion: str, **changes: Any) -> httpx.Response:
    """The token endpoint's answer."""
    return await client.post("/auth/token", data=form(assertion, **changes))


async def token_for(
    server: Server,
    client: httpx.AsyncClient,
    client_id: str,
    key: Key,
    scope: str = "system/*.cruds",
) -> str:
    """An access token, asked for as the client would."""
    answer = await ask(client, signed(claims_of(server, client_id), key), scope=scope)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["access_token"])


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}
