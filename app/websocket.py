"""The websocket door for Subscriptions: what a client says, and what it is answered.

https://hl7.org/fhir/R4/subscription.html#2.46.7.2; the Subscriptions R5 Backport guide, Channels, Websockets

    bind-with-token: <token>   topic-based; answered by one handshake Bundle for each Subscription of the token
    bind <id>                  classic; answered by `bound <id>`, then `ping <id>` for each event

Anything else closes the connection with 1008 and the reason. Either side may close at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

from pymongo.errors import PyMongoError
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.context import Server
from app.router import PREFIX
from app.subscriptions import tokens
from app.subscriptions.binding import BindingRefusedError
from app.subscriptions.channels.websocket import PATH

_POLICY_VIOLATION, _TRY_AGAIN_LATER = 1008, 1013
_MOST_BINDINGS = 1000
_LONGEST_MESSAGE = 1024
_USAGE = "Say `bind-with-token: <token>` or `bind <id>`"


class Connection:
    """One client. Frames leave one after the other."""

    def __init__(self, server: Server, websocket: WebSocket) -> None:
        self._server = server
        self._websocket = websocket
        self._sending = asyncio.Lock()
        self._bindings: list[tuple[str, str]] = []

    async def converse(self) -> None:
        """Until the client leaves. Raises BindingRefusedError for what it may not say."""
        try:
            while True:
                await self._hear((await self._websocket.receive_text()).strip())
        finally:
            for subscription, binding in self._bindings:
                await self._server.worker.binder.unbind(subscription, binding)

    async def _hear(self, text: str) -> None:
        word, _, rest = text[:_LONGEST_MESSAGE].partition(" ")
        rest = rest.strip()
        if word.rstrip(":") == "bind-with-token" and rest:
            subscriptions = await tokens.redeem(self._server.mongo, rest)
            if subscriptions is None:
                raise BindingRefusedError("The token is unknown or has expired")
            for subscription in subscriptions:
                await self._bind(subscription, topical=True)
        elif word == "bind" and rest and self._server.settings.auth != "smart":
            await self._bind(rest, topical=False)
        else:
            raise BindingRefusedError(_USAGE)

    async def _bind(self, subscription: str, *, topical: bool) -> None:
        if any(subscription == bound for bound, _ in self._bindings):
            return  # a token used again, before the one before has expired
        if len(self._bindings) >= _MOST_BINDINGS:
            raise BindingRefusedError("Too many Subscriptions on one connection")
        binder = self._server.worker.binder
        binding = await binder.bind(subscription, self._say, topical=topical)
        self._bindings.append((subscription, binding))

    async def _say(self, text: str) -> None:
        async with self._sending:
            await self._websocket.send_text(text)


async def serve(websocket: WebSocket) -> None:
    """One connection, from its handshake to its end."""
    server: Server = websocket.app.state.server
    if not _is_own_page(websocket, server):
        await websocket.close(_POLICY_VIOLATION)  # before it is accepted: 403
        return
    await websocket.accept()
    try:
        await Connection(server, websocket).converse()
    except WebSocketDisconnect:
        return
    except BindingRefusedError as refusal:
        await _close(websocket, _POLICY_VIOLATION, str(refusal))
    except KeyError:  # a binary frame
        await _close(websocket, _POLICY_VIOLATION, _USAGE)
    except PyMongoError:
        await _close(websocket, _TRY_AGAIN_LATER, "The database does not answer; try again")


def _is_own_page(websocket: WebSocket, server: Server) -> bool:
    """Browsers let any page connect anywhere and say where it is from; other clients say nothing."""
    origin = websocket.headers.get("origin")
    if origin is None:
        return True
    allowed = [entry.strip() for entry in server.settings.cors_origins.split(",")]
    same = urlsplit(origin).netloc == websocket.headers.get("host")
    return same or origin in allowed or "*" in allowed


async def _close(websocket: WebSocket, code: int, reason: str) -> None:
    with contextlib.suppress(RuntimeError):  # the client has left meanwhile
        await websocket.close(code, reason)


ROUTES = [WebSocketRoute(PREFIX + PATH, serve)]
