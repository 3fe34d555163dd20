"""The request for an access token as one of a server's clients, for the command line."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx

from app.network.backend_services_client import BackendToken, TokenError
from app.network.endpoint_credentials import TokenTerms

# Seconds in which a server that is just starting, with a database of its own, answers.
_PATIENCE = 60.0


async def ask(base_url: str, client_id: str, key: Path, scopes: str) -> str:
    """An access token. Raises TokenError."""
    async with httpx.AsyncClient(timeout=30) as client:
        token_url = await _token_url(client, base_url.rstrip("/"))
        terms = TokenTerms(url=token_url, client_id=client_id, key=str(key), scope=scopes)

        async def post(request: httpx.Request) -> httpx.Response:
            return await client.send(request, stream=True)

        return await BackendToken(terms, post).value()


async def _token_url(client: httpx.AsyncClient, base_url: str) -> str:
    address = f"{base_url}/.well-known/smart-configuration"
    give_up = time.monotonic() + _PATIENCE
    while True:
        try:
            answer = await client.get(address)
            break
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise TokenError(f"{base_url} is no address") from None
        except httpx.TransportError:
            if time.monotonic() > give_up:
                raise TokenError(f"no server answers at {base_url}") from None
            await asyncio.sleep(0.1)
    found: Any = answer.json() if answer.status_code == 200 else {}
    if "token_endpoint" not in found:
        raise TokenError(f"{address} names no token endpoint: is authorization on?")
    return str(found["token_endpoint"])
