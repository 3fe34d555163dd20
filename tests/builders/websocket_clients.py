"""Clients of websockets that give what they hear; with authorization, the parties behind them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx

from tests.builders.smart import Key, bearer, ec_key, register, token_for
from tests.builders.subscriptions import websocket
from tests.conftest import Server

Pair = tuple[Server, httpx.AsyncClient]


class Client:
    """A websocket client that gives what it hears."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def say(self, text: str) -> None:
        await self.socket.send_str(text)

    async def hear(self) -> str:
        async with asyncio.timeout(10):
            return str(await self.socket.receive_str())

    async def notice(self) -> dict[str, Any]:
        bundle: dict[str, Any] = json.loads(await self.hear())
        return bundle

    async def closed(self) -> int | None:
        async with asyncio.timeout(10):
            message = await self.socket.receive()
        assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        return self.socket.close_code


async def connect(session: aiohttp.ClientSession, client: httpx.AsyncClient) -> Client:
    url = str(client.base_url).replace("http", "ws", 1).rstrip("/") + "/websocket"
    return Client(await session.ws_connect(url))


def parameters(bundle: dict[str, Any]) -> dict[str, Any]:
    """What the status says that opens a notification Bundle."""
    return {
        entry["name"]: next(value for key, value in entry.items() if key != "name")
        for entry in bundle["entry"][0]["resource"]["parameter"]
    }


@dataclass
class Party:
    """A registered client with a key."""

    pair: Pair
    id: str
    key: Key
    headers: dict[str, str]

    async def ask(self, method: str, url: str, body: Any = None) -> httpx.Response:
        return await self.pair[1].request(method, url, json=body, headers=self.headers)

    async def renew(self, scope: str = "system/*.cruds") -> None:
        """Another access token."""
        self.headers = bearer(await token_for(*self.pair, self.id, self.key, scope))

    async def subscribe(self, body: dict[str, Any] | None = None) -> str:
        answer = await self.ask("POST", "/Subscription", body or websocket("patient=pn"))
        assert answer.status_code == 201, answer.text
        await self.pair[0].worker.drain()
        return str(answer.json()["id"])

    async def binding(self, *ids: str) -> httpx.Response:
        body = {
            "resourceType": "Parameters",
            "parameter": [{"name": "id", "valueId": each} for each in ids],
        }
        return await self.ask("POST", "/Subscription/$get-ws-binding-token", body)

    async def token(self, *ids: str) -> str:
        answer = await self.binding(*ids)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["parameter"][0]["valueString"])


async def join(
    pair: Pair, organization: str | None = "Organization/north", role: str = "practice", **more: Any
) -> Party:
    key = ec_key()
    wanted = {"organization": organization, "role": role, **more}
    party = Party(pair, await register(pair[0], key, **wanted), key, {})
    await party.renew()
    return party
