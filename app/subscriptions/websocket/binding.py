"""The binding of a websocket client to a Subscription: a greeting, new notices, and those that waited for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from app.runtime.mongo import Mongo
from app.subscriptions.channels import Channel
from app.subscriptions.channels.websocket import Listener, Websocket
from app.subscriptions.ledger.outbox import Outbox
from app.subscriptions.matching.registration import Registration
from app.subscriptions.notices.composer import Composer
from app.subscriptions.sending.backlog import Backlog
from app.subscriptions.sending.owner_rights import OwnerRights
from app.subscriptions.websocket.socket_tokens import Holder

WEBSOCKET = "websocket"


class BindingRefusedError(Exception):
    """The Subscription cannot be bound; the text is for the client."""


class Binder:
    """The bindings of this process's connections."""

    def __init__(
        self,
        mongo: Mongo,
        composer: Composer,
        outbox: Outbox,
        backlog: Backlog,
        channels: Mapping[str, Channel],
        rights: OwnerRights,
    ) -> None:
        self._rights = rights
        self._mongo = mongo
        self._composer = composer
        self._outbox = outbox
        self._backlog = backlog
        self._channels = channels

    @property
    def _channel(self) -> Websocket:
        return cast("Websocket", self._channels[WEBSOCKET])

    async def admits(self, holder: Holder | None) -> bool:
        """Whether the client that a token was issued to is enabled, and registered as it was then."""
        return await self._rights.admits(holder)

    async def may_hear(self, holder: Holder | None, subscription: str) -> bool:
        """Whether that client may receive the Subscription's notices now. Raises PyMongoError."""
        registration = await self._composer.registration(subscription)
        return registration is not None and await self._rights.may_hear(holder, registration)

    async def bind(self, subscription: str, listener: Listener, *, by_token: bool) -> str:
        """Greet the client, then bind it; returns the binding's id for `unbind`. Raises BindingRefusedError.

        The greeting is a handshake, or `bound <id>` for a classic Subscription. It comes before any notice.
        """
        registration = await self._composer.registration(subscription)
        if registration is None or registration.channel.type != WEBSOCKET:
            raise BindingRefusedError("There is no such Subscription with a websocket channel")
        if registration.topic is not None and not by_token:
            raise BindingRefusedError("A topic-based Subscription is bound with a token")
        await listener(await self._greeting(registration))
        binding = await self._channel.bind(subscription, listener)
        await self._backlog.resume(subscription)
        return binding

    async def unbind(self, subscription: str, binding: str) -> None:
        await self._channel.unbind(subscription, binding)

    async def take_from(self, owner: str) -> None:
        """End the bindings of a process that is gone, so that nothing is sent there."""
        if WEBSOCKET in self._channels:
            await self._channel.take_from(owner)

    async def _greeting(self, registration: Registration) -> str:
        if registration.topic is None:
            return f"bound {registration.id}"
        number = await self._outbox.number(registration.id)
        notice = await self._composer.status_notice(
            registration, "handshake", number, self._mongo.now()
        )
        return notice.body.decode()
