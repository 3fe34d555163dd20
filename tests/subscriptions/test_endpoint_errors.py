"""What clients are told of an endpoint that does not take notices: not what there is behind its address."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest

from app.runtime.leases import BackOff
from app.subscriptions.channels.protocol import REFUSED, UNREACHED
from app.subscriptions.sending import lifecycle
from tests.builders.receiver import receiving
from tests.builders.smart import bearer, ec_key, register, token_for
from tests.builders.subscriptions import classic, encounter, topic_based
from tests.conftest import make_settings, running
from tests.outcomes import assert_outcome
from tests.processes import free_port

pytestmark = pytest.mark.mongo

ADMIN = "http://carerelay.test/admin"


@asynccontextmanager
async def speaking_something_else() -> AsyncIterator[str]:
    """An open port of something that is no web server."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"-ERR unknown command\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def error_of(client: httpx.AsyncClient, subscription: str) -> tuple[str, str]:
    """What the Subscription says, and what its `$status` does."""
    shown = (await client.get(f"/Subscription/{subscription}")).json()
    status = (await client.get(f"/Subscription/{subscription}/$status")).json()
    parameters = status["entry"][0]["resource"]["parameter"]
    [told] = [each for each in parameters if each["name"] == "error"]
    concept = told["valueCodeableConcept"]
    assert concept["text"] == shown["error"]
    return shown["error"], concept["coding"][0]["code"]


async def test_there_are_two_errors_whatever_there_is_behind_the_address(
    mongod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "_BACK_OFF", BackOff(timedelta(), timedelta(), most=1))
    inside: list[Any] = [(2, 1, 6, "", ("10.0.0.1", 80))]

    async with (
        running(make_settings(mongod)) as (server, client),
        speaking_something_else() as other,
        receiving() as receiver,
    ):
        getaddrinfo = asyncio.get_running_loop().getaddrinfo

        async def resolved(host: str, *rest: Any, **more: Any) -> list[Any]:
            return inside if host == "db.corp.example" else await getaddrinfo(host, *rest, **more)

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolved, raising=False)
        receiver.answer = lambda _: 401
        told = []
        for endpoint in (
            f"http://127.0.0.1:{free_port()}",
            other,
            "http://nowhere.invalid",
            "http://db.corp.example",
            receiver.url,
        ):
            made = await client.post("/Subscription", json=topic_based(endpoint=endpoint))
            # A name that leads inside is stored as one that leads nowhere is.
            assert made.status_code == 201, made.text
            await server.worker.drain()
            told.append(await error_of(client, made.json()["id"]))
    assert told == [*[(UNREACHED, "no-response")] * 4, (REFUSED, "error-response")]


async def test_administrators_see_why_an_attempt_failed(mongod: str) -> None:
    async with (
        running(make_settings(mongod)) as (server, client),
        speaking_something_else() as other,
        receiving() as receiver,
    ):
        receiver.answer = lambda _: 401
        endpoints = (f"http://127.0.0.1:{free_port()}", other, receiver.url)
        for endpoint in endpoints:
            await client.post("/Subscription", json=classic(endpoint=endpoint))
        await client.put("/Encounter/stay", json={**encounter(), "id": "stay"})
        await server.worker.drain()
        rows = (await client.get(f"{ADMIN}/deliveries")).json()["deliveries"]
        attempts = [row["attempts"][0] for row in rows]
        found = {(each["reason"], each.get("status")) for each in attempts}
        assert found == {("no connection", None), ("broken connection", None), ("", 401)}


async def test_a_client_may_not_have_loopback_called(mongod: str) -> None:
    """Neither as an endpoint nor as the address of keys, while the server itself listens there behind a proxy."""
    settings = make_settings(mongod, auth="smart", host="127.0.0.1", egress_allow="")
    async with running(settings) as (server, client):
        key = ec_key()
        admin = await register(server, key, role="administrator")
        headers = bearer(await token_for(server, client, admin, key))
        for endpoint in ("http://127.0.0.1:27017/", "http://localhost:9/", "http://[::1]:9/"):
            refused = await client.post(
                "/Subscription", json=classic(endpoint=endpoint), headers=headers
            )
            assert_outcome(refused, 422, "security", "Subscription.channel.endpoint")
            wanted = {"name": "x", "role": "administrator", "scopes": "system/*.rs"}
            keys = {**wanted, "jwks_uri": endpoint}
            answer = await client.post(f"{ADMIN}/clients", json=keys, headers=headers)
            assert_outcome(answer, 400, "value")
