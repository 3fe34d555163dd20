"""The websocket door for Subscriptions: what a client says, and what it is answered.

https://hl7.org/fhir/R4/subscription.html#2.46.7.2; the Subscriptions R5 Backport guide, Channels, Websockets

    bind-with-token: <token>   answered by one greeting for each Subscription of the token
    bind <id>                  classic, and only while authorization is off

The greeting is a handshake Bundle, or `bound <id>` of a classic Subscription, which is told `ping <id>` of each event.
Anything else closes the connection with 1008 and the reason, too much of it with 1013. Either side may close at any
time. With authorization a connection is the client's that its token was given to, and ends when that is shut out or
registered otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from functools import partial

from pymongo.errors import PyMongoError
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.api import audited, exchange
from app.api.fhir_endpoint import PREFIX
from app.api.security_headers import secured
from app.api.web_pages import WebPages
from app.api.websocket_limits import Place, WebSocketLimits
from app.authentication.caller import EVERYBODY, Caller
from app.context import Services
from app.errors import FhirError, Forbidden, TooManyRequests, Unavailable
from app.network import exposure
from app.settings import Settings
from app.subscriptions.channels.websocket import PATH
from app.subscriptions.websocket import socket_tokens
from app.subscriptions.websocket.binding import Binder, BindingRefusedError
from app.subscriptions.websocket.socket_tokens import Holder

_POLICY_VIOLATION, _TRY_AGAIN_LATER = 1008, 1013
_MOST_BINDINGS = 1000
_LONGEST_MESSAGE = 1024
# Seconds after which a connection on which nothing happens is asked about again.
LOOK_AGAIN = 10.0
_USAGE = "Say `bind-with-token: <token>` or `bind <id>`"
_NOT_BY_ID = "With authorization a token binds: Subscription/$get-ws-binding-token"
_NOT_ANY_MORE = "This client may not be told any more; ask for another token"


class Connection:
    """One client. Frames leave one after the other. `patience`: seconds until something has to be bound."""

    def __init__(
        self, services: Services, websocket: WebSocket, place: Place, patience: float | None
    ) -> None:
        self._services = services
        self._binder = services.get(Binder)
        self._is_open = services.settings.auth != "smart"
        self._websocket = websocket
        self._place = place
        self._patience = patience
        self._sending = asyncio.Lock()
        self._bindings: list[tuple[str, str]] = []
        self._greeted: set[str] = set()
        self._holder: Holder | None = None
        self._waiting: asyncio.Timeout | None = None
        self._is_over = False

    async def converse(self) -> None:
        """Until the client leaves. Raises BindingRefusedError for what it may not say, TooManyRequests for too much."""
        try:
            while True:
                text = await self._next()
                if text is not None:
                    self._place.heard()
                    await self._hear(text.strip())
                elif self._is_over or (self._bindings and not await self._is_admitted()):
                    raise BindingRefusedError(_NOT_ANY_MORE)
                elif not self._bindings:
                    raise BindingRefusedError("Nothing was bound in time")
        finally:
            for subscription, binding in self._bindings:
                await self._binder.unbind(subscription, binding)

    async def _next(self) -> str | None:
        """What the client says next; None where it says nothing for a while."""
        pause = LOOK_AGAIN if self._bindings else self._patience
        try:
            async with asyncio.timeout(None if self._is_open else pause) as self._waiting:
                if self._is_over:
                    return None
                message = await self._websocket.receive()
        except TimeoutError:
            return None
        finally:
            self._waiting = None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"], message.get("reason"))
        text: str | None = message.get("text")
        if text is None or len(text) > _LONGEST_MESSAGE:
            raise BindingRefusedError(_USAGE)
        return text

    async def _is_admitted(self) -> bool:
        try:
            return await self._binder.admits(self._holder)
        except PyMongoError:
            return True  # nobody can say now, and nothing is told without asking

    async def _hear(self, text: str) -> None:
        word, _, rest = text.partition(" ")
        rest = rest.strip()
        if word.rstrip(":") == "bind-with-token" and rest:
            await self._bind_with_token(rest)
        elif word == "bind" and rest and self._is_open:
            await self._bind_all([rest], EVERYBODY, by_token=False)
        else:
            raise BindingRefusedError(_USAGE if self._is_open else _NOT_BY_ID)

    async def _bind_with_token(self, text: str) -> None:
        token = await socket_tokens.redeem(self._services.mongo, text)
        if token is None:
            await self._record(None, refused=_POLICY_VIOLATION)
            raise BindingRefusedError("The token is unknown or has expired")
        if self._holder is None and token.holder is not None:
            self._place.claim(token.holder.client_id)
            self._holder = token.holder
        await self._bind_all(token.subscriptions, _caller(token.holder), by_token=True)

    async def _bind_all(
        self, subscriptions: Sequence[str], caller: Caller, *, by_token: bool
    ) -> None:
        """What is bound is put on record with its greeting, what is refused here."""
        try:
            # Another client's token binds nothing here: every Subscription has to be the first holder's.
            for subscription in subscriptions:
                await self._bind(subscription, by_token=by_token)
        except BindingRefusedError:
            await self._record(caller, subscriptions, refused=_POLICY_VIOLATION)
            raise

    async def _record(
        self,
        caller: Caller | None,
        subscriptions: Sequence[str] = (),
        *,
        refused: int | None = None,
    ) -> None:
        address = _address(self._websocket)
        await audited.bind(self._services.audit, address, caller, subscriptions, refused=refused)

    async def _bind(self, subscription: str, *, by_token: bool) -> None:
        if any(subscription == bound for bound, _ in self._bindings):
            return  # a token used again, before the one before has expired
        if len(self._bindings) >= _MOST_BINDINGS:
            raise BindingRefusedError("Too many Subscriptions on one connection")
        listener = partial(self._tell, subscription)
        binding = await self._binder.bind(subscription, listener, by_token=by_token)
        self._bindings.append((subscription, binding))

    async def _tell(self, subscription: str, text: str) -> None:
        """The listener of a Subscription.

        Raises BindingRefusedError where its client has lost the right to it, Unavailable where that it hears from now
        on cannot be put on record.
        """
        if self._is_over or not await self._binder.may_hear(self._holder, subscription):
            self._is_over = True
            if self._waiting is not None and not self._waiting.expired():
                self._waiting.reschedule(0.0)  # `converse` is to end now
            raise BindingRefusedError(_NOT_ANY_MORE)
        if subscription not in self._greeted:
            await self._record(_caller(self._holder), [subscription])
            self._greeted.add(subscription)
        async with self._sending:
            await self._websocket.send_text(text)


class Door:
    """Where connections come in."""

    def __init__(self, settings: Settings) -> None:
        self._limits = WebSocketLimits(settings)
        self._web_pages = WebPages(settings)
        self._only_tls = exposure.needs_tls(settings) and not exposure.has_own_tls(settings)

    async def serve(self, websocket: WebSocket) -> None:
        """One connection, from its handshake to its end."""
        services: Services = websocket.app.state.services
        try:
            place = self._admit(websocket)
        except FhirError as error:
            response = exchange.respond_error(error)
            response.raw_headers = secured(response.raw_headers, tls=_is_encrypted(websocket))
            await websocket.send_denial_response(response)
            return
        try:
            await websocket.accept()
            await Connection(services, websocket, place, self._limits.patience).converse()
        except WebSocketDisconnect:
            return
        except BindingRefusedError as refusal:
            await _close(websocket, _POLICY_VIOLATION, str(refusal))
        except TooManyRequests as refusal:
            await _close(websocket, _TRY_AGAIN_LATER, str(refusal))
        except (PyMongoError, Unavailable):
            await _close(websocket, _TRY_AGAIN_LATER, "The database does not answer; try again")
        finally:
            place.leave()

    def _admit(self, websocket: WebSocket) -> Place:
        """Raises FhirError for a handshake that is refused."""
        if self._only_tls and not _is_encrypted(websocket):
            raise Forbidden("Only over TLS: call the address of the proxy")
        self._web_pages.check_socket(websocket.scope["headers"])
        return self._limits.enter(_address(websocket))


def _address(websocket: WebSocket) -> str:
    return websocket.client.host if websocket.client else ""


def _caller(holder: Holder | None) -> Caller:
    """Who binds by a token; with authorization off it was given to anybody."""
    return EVERYBODY if holder is None else Caller(holder.client_id)


def _is_encrypted(websocket: WebSocket) -> bool:
    return bool(websocket.scope["scheme"] == "wss")


async def _close(websocket: WebSocket, code: int, reason: str) -> None:
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # the client has left meanwhile
        await websocket.close(code, reason)


def routes(settings: Settings) -> list[WebSocketRoute]:
    return [WebSocketRoute(PREFIX + PATH, Door(settings).serve)]
