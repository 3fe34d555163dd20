"""Websockets against those who come too often, say too much, or speak no websocket at all."""

from __future__ import annotations

import asyncio
import base64
import logging
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import httpx
import pytest

from app.api import websocket_limits
from app.api.websocket_limits import WebSocketLimits
from app.cli.serve import options
from app.errors import TooManyRequests
from app.main import create_app
from app.settings import Settings
from tests.builders.listening import listening
from tests.builders.subscriptions import classic, websocket
from tests.builders.websocket_clients import Client, Party, connect, join
from tests.conftest import Server, make_settings

pytestmark = [pytest.mark.mongo, pytest.mark.slow]
Pair = tuple[Server, httpx.AsyncClient]
TEXT, BINARY, CLOSE, PING, FINAL, PACKED = 0x1, 0x2, 0x8, 0x9, 0x80, 0x40
HANDSHAKE = (
    b"GET /fhir/websocket HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: " + base64.b64encode(b"k" * 16) + b"\r\n\r\n"
)


@asynccontextmanager
async def guarded(
    mongod: str, tmp_path_factory: pytest.TempPathFactory, **changes: Any
) -> AsyncIterator[Pair]:
    """A server as it is served, with authorization."""
    settings = make_settings(
        mongod, auth="smart", data=tmp_path_factory.mktemp("d"), token_rate_limit=0, **changes
    )
    async with listening(settings, **options(Settings())) as pair:
        yield pair


@pytest.fixture(scope="module")
async def pair(mongod: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    async with guarded(mongod, tmp_path_factory, websocket_rate_limit=0) as pair:
        yield pair


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


class Raw:
    """A connection that sends what no client's library would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def flood(self, data: bytes) -> None:
        """Send it again and again. Raises ConnectionError as soon as this side notices that it is cut off."""
        async with asyncio.timeout(10):
            while True:
                await self.send(data)
                await asyncio.sleep(0)

    async def closed(self) -> int | None:
        """The code that it is closed with; None where it is cut."""
        async with asyncio.timeout(10):
            try:
                while True:
                    first, length = await self._reader.readexactly(2)
                    if length == 126:
                        (length,) = struct.unpack("!H", await self._reader.readexactly(2))
                    content = await self._reader.readexactly(length)
                    if first & 0xF == CLOSE:
                        return int.from_bytes(content[:2])
            except (ConnectionError, asyncio.IncompleteReadError):
                return None

    def leave(self) -> None:
        self._writer.close()


async def raw(client: httpx.AsyncClient, offer: bytes = b"") -> Raw:
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(HANDSHAKE.replace(b"\r\n\r\n", b"\r\n" + offer + b"\r\n"))
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 101 " in head
    return Raw(reader, writer)


def frame(first: int, content: bytes = b"", *, masked: bool = True) -> bytes:
    """A frame; its mask is nothing but zeros."""
    mask = 0x80 if masked else 0
    if len(content) < 126:
        head = struct.pack("!BB", first, mask | len(content))
    elif len(content) < 65536:
        head = struct.pack("!BBH", first, mask | 126, len(content))
    else:
        head = struct.pack("!BBQ", first, mask | 127, len(content))
    return head + (b"\0\0\0\0" if masked else b"") + content


def said(text: str) -> bytes:
    return frame(FINAL | TEXT, text.encode())


def bomb() -> bytes:
    """A message of 16 MiB that is packed into 16 KiB."""
    packer = zlib.compressobj(9, wbits=-12)
    packed = packer.compress(b" " * (16 << 20)) + packer.flush(zlib.Z_SYNC_FLUSH)
    return frame(FINAL | PACKED | TEXT, packed[:-4])


# Garbage


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(said("hello"), 1008, id="words"),
        pytest.param(said(""), 1008, id="nothing"),
        pytest.param(said("bind-with-token: " + "x" * 2000), 1008, id="long"),
        pytest.param(said("bind-with-token: \0\U0001f4a3"), 1008, id="no-token"),
        pytest.param(frame(FINAL | BINARY, b"bind x"), 1008, id="binary"),
        pytest.param(frame(FINAL | TEXT, b"\xff\xfe"), 1007, id="no-utf-8"),
        pytest.param(frame(FINAL | TEXT, b"x" * 70_000), 1009, id="oversized"),
        pytest.param(
            frame(TEXT, b"x" * 60_000) + frame(FINAL, b"x" * 60_000), 1009, id="oversized-in-pieces"
        ),
        pytest.param(struct.pack("!BBQ", FINAL | TEXT, 0x80 | 127, 2**62), 1009, id="endless"),
        pytest.param(frame(FINAL | TEXT, b"x", masked=False), 1002, id="unmasked"),
        pytest.param(frame(FINAL, b"x"), 1002, id="piece-of-nothing"),
        pytest.param(frame(FINAL | 0x3, b"x"), 1002, id="unknown-kind"),
        pytest.param(frame(FINAL | PACKED | TEXT, b"x"), 1002, id="packed-without-leave"),
        pytest.param(frame(FINAL | PING, b"x" * 126), 1002, id="long-ping"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 1002, id="http"),
    ],
)
async def test_garbage_closes_its_connection_and_nothing_else(
    pair: Pair, caplog: pytest.LogCaptureFixture, data: bytes, code: int
) -> None:
    caplog.set_level(logging.WARNING)
    connection = await raw(pair[1])
    await connection.send(data)
    assert await connection.closed() == code
    connection.leave()
    assert (await pair[1].get("/metadata")).status_code == 200
    assert caplog.messages == [], "nobody fills the log"


async def test_a_packed_bomb_is_not_unpacked(pair: Pair) -> None:
    offer = b"sec-websocket-extensions: permessage-deflate\r\n"
    connection = await raw(pair[1], offer)
    await connection.send(bomb())
    assert await connection.closed() == 1009
    connection.leave()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(frame(TEXT), id="pieces-of-a-message-without-end"),
        pytest.param(frame(FINAL | PING, b"x" * 125), id="pings"),
        pytest.param(frame(FINAL | 0xA, b"x" * 125), id="pongs"),
    ],
)
async def test_who_says_too_much_is_cut_off(pair: Pair, data: bytes) -> None:
    """Nothing of it is read on this side, so that what the server answers would pile up."""
    connection = await raw(pair[1])
    await connection.send(data)
    piece = frame(0) if data == frame(TEXT) else data
    with pytest.raises(ConnectionError):
        await connection.flood(piece * (64 * 1024 // len(piece)))
    connection.leave()
    assert (await pair[1].get("/metadata")).status_code == 200


async def test_who_says_too_much_is_told_why(pair: Pair) -> None:
    connection = await raw(pair[1])
    await connection.send(frame(FINAL | 0xA, b"x" * 125) * 2100)  # just over the limit
    assert await connection.closed() == 1008
    connection.leave()


# How often, how many


async def refused(
    session: aiohttp.ClientSession, client: httpx.AsyncClient, **options: Any
) -> aiohttp.WSServerHandshakeError:
    url = str(client.base_url).replace("http", "ws", 1) + "websocket"
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await session.ws_connect(url, **options)
    return caught.value


async def test_handshakes_of_an_address_are_limited(
    mongod: str,
    tmp_path_factory: pytest.TempPathFactory,
    session: aiohttp.ClientSession,
    caplog: pytest.LogCaptureFixture,
) -> None:
    changes: dict[str, Any] = {"websocket_rate_limit": 0.5, "trusted_proxy": "127.0.0.1"}
    async with guarded(mongod, tmp_path_factory, **changes) as (_, client):
        for _ in range(2):
            await (await connect(session, client)).socket.close()
        refusal = await refused(session, client)
        assert refusal.status == 429
        assert refusal.headers is not None
        assert 1 <= int(refusal.headers["retry-after"]) <= 2
        assert refusal.headers["x-content-type-options"] == "nosniff"
        url = str(client.base_url).replace("http", "ws", 1) + "websocket"
        elsewhere = {"x-forwarded-for": "203.0.113.9"}
        caplog.set_level(logging.INFO, "uvicorn.error")  # as another log configuration may have it
        await (await session.ws_connect(url, headers=elsewhere)).close()
        for place in ("websocket", "Patient/planted"):
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await session.ws_connect(url.replace("websocket", place))
        assert (await client.get("/metadata")).status_code == 200
        # Neither where to, nor a line for each.
        assert [each.message for each in caplog.records if each.name.startswith("uvicorn")] == []


async def test_the_limits_where_nothing_else_is_set() -> None:
    limits = WebSocketLimits(Settings(auth="smart"))
    for _ in range(20):
        limits.enter("203.0.113.1").leave()
    with pytest.raises(TooManyRequests, match="handshakes"):
        limits.enter("203.0.113.1")
    limits.enter("203.0.113.2")
    limits = WebSocketLimits(Settings(auth="smart", websocket_rate_limit=0))
    places = [limits.enter("2001:db8::1") for _ in range(64)]
    with pytest.raises(TooManyRequests, match="bound nothing"):
        limits.enter("2001:db8::2")  # of the same network
    places[0].claim("one")
    limits.enter("2001:db8::2")


@asynccontextmanager
async def small(
    mongod: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Pair, Party]]:
    """A server where each may have two websockets, and a client of it."""
    changes: dict[str, Any] = {"max_websockets": 2, "websocket_rate_limit": 0}
    async with guarded(mongod, tmp_path_factory, **changes) as pair:
        yield pair, await join(pair, "Organization/north", "hospital")


async def attempted(session: aiohttp.ClientSession, client: httpx.AsyncClient) -> Client | None:
    """A connection; None where there is no room for it."""
    try:
        return await connect(session, client)
    except aiohttp.WSServerHandshakeError as refusal:
        if refusal.status != 429:
            raise
        return None


async def settled(session: aiohttp.ClientSession, client: httpx.AsyncClient) -> Client:
    """A connection, as soon as there is room: the server notices by itself that somebody has left."""
    async with asyncio.timeout(5):
        while True:
            if (listener := await attempted(session, client)) is not None:
                return listener


async def test_sockets_that_bind_nothing_are_counted_by_address(
    mongod: str, tmp_path_factory: pytest.TempPathFactory, session: aiohttp.ClientSession
) -> None:
    async with small(mongod, tmp_path_factory) as ((_, client), _):
        one, other = await connect(session, client), await connect(session, client)
        assert (await refused(session, client)).status == 429
        await one.socket.close()
        await settled(session, client)
        await other.socket.close()


async def test_sockets_that_are_bound_are_counted_by_client(
    mongod: str, tmp_path_factory: pytest.TempPathFactory, session: aiohttp.ClientSession
) -> None:
    async with small(mongod, tmp_path_factory) as (pair, party):
        client = pair[1]
        someone = await join(pair, "Organization/south", "hospital")
        words = {
            each.id: f"bind-with-token: {await each.token(await each.subscribe(websocket()))}"
            for each in (party, someone)
        }
        listeners = []
        for each in (party, someone, party, someone):  # four of one address
            listener = await settled(session, client)
            await listener.say(words[each.id])
            await listener.notice()
            listeners.append(listener)
        third = await settled(session, client)
        await third.say(words[party.id])
        assert await third.closed() == 1013
        await listeners[0].socket.close()
        async with asyncio.timeout(5):
            while True:
                again = await settled(session, client)
                await again.say(words[party.id])
                if (await again.socket.receive()).type == aiohttp.WSMsgType.TEXT:
                    break


async def test_who_binds_nothing_is_sent_away(
    mongod: str,
    tmp_path_factory: pytest.TempPathFactory,
    session: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(websocket_limits, "PATIENCE", 0.3)
    async with small(mongod, tmp_path_factory) as ((_, client), party):
        tokens = [await party.token(await party.subscribe(websocket())) for _ in range(2)]
        idle, bound = await connect(session, client), await connect(session, client)
        await bound.say(f"bind-with-token: {tokens[0]}")
        await bound.notice()
        farewell = await idle.socket.receive(timeout=3)
        assert (farewell.data, farewell.extra) == (1008, "Nothing was bound in time")
        await bound.say(f"bind-with-token: {tokens[1]}")  # it is still there
        await bound.notice()


async def test_messages_of_a_socket_are_limited(pair: Pair, session: aiohttp.ClientSession) -> None:
    party = await join(pair, "Organization/north", "hospital")
    token = await party.token(await party.subscribe(websocket()))
    listener, quiet = await connect(session, pair[1]), await connect(session, pair[1])
    for _ in range(2 * int(websocket_limits.MESSAGES_AT_ONCE)):
        await listener.say(f"bind-with-token: {token}")
    await listener.notice()
    assert await listener.closed() == 1013
    await quiet.say(f"bind-with-token: {token}")
    await quiet.notice()


async def test_nobody_is_limited_without_authorization_unless_it_is_set(
    mongod: str, session: aiohttp.ClientSession
) -> None:
    async with listening(make_settings(mongod), **options(Settings())) as (server, client):
        body = classic("Encounter?status=planned") | {"channel": {"type": "websocket"}}
        id_ = (await client.post("/Subscription", json=body)).json()["id"]
        await server.worker.drain()
        listeners = [await connect(session, client) for _ in range(80)]
        for _ in range(50):
            await listeners[0].say(f"bind {id_}")
        await listeners[0].say("hello")
        assert await listeners[0].hear() == f"bound {id_}"
        assert await listeners[0].closed() == 1008
        for each in listeners:
            await each.socket.close()


# Past the proxy


async def shaken(app: Callable[..., Any], address: str, **headers: str) -> list[dict[str, Any]]:
    """What the server sends to a handshake that comes from an address."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return (
            {"type": "websocket.disconnect", "code": 1000}
            if sent
            else {"type": "websocket.connect"}
        )

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": "/fhir/websocket",
        "raw_path": b"/fhir/websocket",
        "root_path": "",
        "scheme": "ws",
        "query_string": b"",
        "headers": [
            (b"host", b"fhir.test"),
            *((name.encode(), text.encode()) for name, text in headers.items()),
        ],
        "client": (address, 1),
        "server": ("fhir.test", 80),
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}},
    }
    await app(scope, receive, send)
    return sent


async def test_behind_a_proxy_only_what_came_over_tls_is_let_in(
    mongod: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = make_settings(
        mongod,
        host="192.0.2.7",
        auth="smart",
        trusted_proxy="10.1.0.0/16",
        data=tmp_path_factory.mktemp("d"),
    )
    app = create_app(settings)
    over_tls = {"x-forwarded-proto": "https"}
    async with app.router.lifespan_context(app):
        let_in = await shaken(app, "10.1.0.1", **over_tls)
        assert let_in[0]["type"] == "websocket.accept"
        for address, headers in (("10.1.0.1", {}), ("10.2.0.1", over_tls)):
            answer = await shaken(app, address, **headers)
            assert (answer[0]["type"], answer[0]["status"]) == (
                "websocket.http.response.start",
                403,
            )
