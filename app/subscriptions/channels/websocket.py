"""The websocket channel: a client connects to the server, binds its Subscription and receives its notices.

https://hl7.org/fhir/R4/subscription.html#2.46.7.2; the Subscriptions R5 Backport guide, Channels, Websockets
Topic-based: the notification Bundle as text. Classic: `ping <id>`. While no client is bound a notice is retried like
any other; the Binder (binding.py) sends waiting ones as soon as a client binds.

The client may be connected to another process than the one that sends: `websocket_bindings` says which processes hold
connections for a Subscription, and process messages carry the text there and the answer back.

    websocket_bindings  {_id, subscription, owner: process, until}

A binding is no work and nobody claims it: it says where a connection is, and goes with the process that holds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from urllib.parse import urlsplit

from pymongo import ASCENDING, IndexModel
from pymongo.errors import PyMongoError

from app.fhir.json import Resource
from app.network.egress_policy import is_loopback_host
from app.runtime import collections
from app.runtime.loops import Loop
from app.runtime.mongo import Document
from app.runtime.process_messages import ProcessMessages
from app.settings import Settings
from app.subscriptions.channels import payload
from app.subscriptions.channels.protocol import (
    AttemptOutcome,
    ChannelDependencies,
    ChannelRequest,
    ChannelType,
    Complaint,
    Draft,
    Notice,
)

log = logging.getLogger(__name__)

# Takes one text frame; raises where the connection is gone.
Listener = Callable[[str], Awaitable[None]]

COLLECTION = "websocket_bindings"
# Below the FHIR base.
PATH = "/websocket"
_LEASE = timedelta(seconds=30)
_RENEW_EVERY = 10.0


class Websocket:
    """The connections of this process, and the way to those of the others."""

    def __init__(self, around: ChannelDependencies) -> None:
        self._mongo = around.mongo
        self._owner = around.owner
        self._bindings = around.mongo.collection(COLLECTION)
        self._messages = ProcessMessages(around.mongo, around.owner, self._from_elsewhere)
        self._listeners: dict[str, dict[str, Listener]] = {}
        self._renewal = Loop("websockets")

    @property
    def loops(self) -> list[Loop]:
        return [self._renewal, *self._messages.loops]

    async def send(self, notice: Notice) -> AttemptOutcome:
        """One attempt over every bound connection; it is accepted where at least one took the text."""
        text = notice.body.decode()
        taken = 0
        try:
            async with asyncio.timeout(notice.timeout):
                taken = await self._send_here(notice.subscription, text)
                elsewhere = await self._owners(notice.subscription)
                message = {"subscription": notice.subscription, "text": text}
                answers = await asyncio.gather(
                    *(self._messages.ask(owner, message) for owner in elsewhere)
                )
            taken += sum(answer["taken"] for answer in answers)
            failure = "nobody is connected"
        except TimeoutError:
            failure = "timeout"
        except PyMongoError:
            failure = "the process that holds the connection cannot be reached"
        return AttemptOutcome(None, accepted=True) if taken else AttemptOutcome(None, failure)

    async def bind(self, subscription: str, listener: Listener) -> str:
        """Send the Subscription's notices to `listener` from now on; returns the binding's id for `unbind`."""
        await self._open()
        binding = uuid.uuid4().hex
        await self._bindings.insert_one(
            {
                "_id": binding,
                "subscription": subscription,
                "owner": self._owner,
                "until": self._mongo.now() + _LEASE,
            }
        )
        self._listeners.setdefault(subscription, {})[binding] = listener
        return binding

    async def unbind(self, subscription: str, binding: str) -> None:
        listeners = self._listeners.get(subscription, {})
        listeners.pop(binding, None)
        if not listeners:
            self._listeners.pop(subscription, None)
        with contextlib.suppress(PyMongoError):  # its lease ends by itself
            await self._bindings.delete_one({"_id": binding})

    async def take_from(self, owner: str) -> None:
        """End the bindings of a process that is gone: their connections went with it."""
        await self._bindings.delete_many({"owner": owner})

    async def close(self) -> None:
        if not self._renewal.is_started:
            await self._messages.close()
            return
        await self._renewal.end()
        await self._messages.close()
        with contextlib.suppress(PyMongoError):
            await self._bindings.delete_many({"owner": self._owner})

    async def _send_here(self, subscription: str, text: str) -> int:
        """Send a text over this process's connections; returns how many took it."""
        listeners = list(self._listeners.get(subscription, {}).values())
        results = await asyncio.gather(
            *(listener(text) for listener in listeners), return_exceptions=True
        )
        return sum(not isinstance(result, BaseException) for result in results)

    async def _owners(self, subscription: str) -> list[str]:
        """The other processes that hold a connection for the Subscription."""
        owners: list[str] = await self._bindings.distinct(
            "owner",
            {
                "subscription": subscription,
                "owner": {"$ne": self._owner},
                "until": {"$gt": self._mongo.now()},
            },
        )
        return owners

    async def _from_elsewhere(self, message: Document) -> Document:
        return {"taken": await self._send_here(message["subscription"], message["text"])}

    async def _open(self) -> None:
        """Receive process messages and renew leases, which a process without connections does not need."""
        if self._renewal.is_started:
            return
        self._renewal.start(self._renew())
        models = [
            IndexModel([("subscription", ASCENDING)]),
            IndexModel([("until", ASCENDING)], expireAfterSeconds=0),
        ]
        await collections.ensure(self._mongo, COLLECTION, models)
        await self._messages.open()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_EVERY)
            try:
                with self._renewal.step():
                    await self._bindings.update_many(
                        {"owner": self._owner}, {"$set": {"until": self._mongo.now() + _LEASE}}
                    )
            except PyMongoError as error:
                log.warning("worker", extra={"action": "renew", "error": type(error).__name__})


def address(base_url: str) -> str:
    """Where clients connect, by the FHIR base they know."""
    return "ws" + base_url.removeprefix("http") + PATH


def check(requested: ChannelRequest, settings: Settings) -> Iterator[Complaint]:
    if requested.endpoint:
        yield "endpoint", "not-supported", "The client of a websocket connects to the server"
    if requested.headers:
        yield "header", "not-supported", "A websocket carries no headers"
    if not requested.topical:
        if requested.payload is not None:
            yield "payload", "not-supported", "A classic websocket says ping and carries no payload"
        return
    if requested.payload is not None and payload.format_of(requested.payload) is None:
        supported = f"The payload type is not supported; use {payload.SUPPORTED}"
        yield "payload", "not-supported", supported
    encrypted = urlsplit(settings.base_url).scheme == "https" or is_loopback_host(settings.host)
    if requested.content == "full-resource" and not encrypted:
        yield "payload", "security", "Whole resources leave only over wss"


def message(draft: Draft) -> Resource | bytes | None:
    """The content of a frame: the notification Bundle, or `ping <id>` for a classic Subscription."""
    return draft.resource if draft.focus is None else f"ping {draft.subscription}".encode()


WEBSOCKET = ChannelType(
    make=Websocket,
    check=check,
    address=lambda _, __: ("SEND", ""),
    wrap=message,
    calls_out=False,
    proves=False,
)
