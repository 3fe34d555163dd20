"""What a delivery row becomes on the wire: the pinned version, its context, the Subscription's own headers."""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from datetime import datetime

from app import fhir_json
from app.fhir_json import Resource
from app.mongo import Document
from app.search.extract import extract
from app.settings import Settings
from app.store import Event, Store
from app.subscriptions import notification
from app.subscriptions.channels import Notice
from app.subscriptions.ledger import Delivery
from app.subscriptions.notification import Focus, Head, Kind
from app.subscriptions.registration import Registration, split_header
from app.subscriptions.registry import Registry

_REMEMBERED = 10_000


class VersionGoneError(Exception):
    """What a notice should carry is no longer stored."""


class Composer:
    """Builds notices. Secrets are read from beside the Subscription and remembered for as long as its version lasts."""

    def __init__(self, settings: Settings, store: Store, registry: Registry) -> None:
        self._settings = settings
        self._store = store
        self._registry = registry
        self._private: OrderedDict[str, tuple[int, Document]] = OrderedDict()

    async def registration(self, subscription: str) -> Registration | None:
        """The Subscription with its secrets at hand, both of one version; None where it is gone."""
        current = self._registry.get(subscription)
        known = self._private.get(subscription)
        if current is not None and known is not None and known[0] == current.version:
            return current
        found = await self._registry.with_private(subscription)
        if found is None:
            return None
        current, private = found
        self._private[subscription] = (current.version, private)
        if len(self._private) > _REMEMBERED:
            self._private.popitem(last=False)
        return current

    async def notice(
        self, delivery: Delivery, registration: Registration, event: Event | None = None
    ) -> Notice:
        """The message of a row. Raises VersionGoneError where its version is gone."""
        if registration.channel.content is None:
            return await self._classic(delivery, registration, event)
        content = registration.channel.content
        focus, context = await self._focus(delivery, registration, event)
        head = self._head(registration, delivery.id, delivery.number, delivery.created_at)
        included: dict[str, Resource | None] = dict.fromkeys(context)
        if content == "full-resource":
            included = dict(zip(context, await self._read_all(context), strict=True))
        body = notification.event_notification(head, focus, included)
        return self._notice(registration, delivery.id, "POST", fhir_json.encode(body))

    async def status_notice(
        self, registration: Registration, kind: Kind, number: int, at: datetime
    ) -> Notice:
        """A handshake or heartbeat."""
        notice_id = str(uuid.uuid4())
        head = self._head(registration, notice_id, number, at)
        body = fhir_json.encode(notification.status_only(head, kind))
        return self._notice(registration, notice_id, "POST", body)

    async def _classic(
        self, delivery: Delivery, registration: Registration, event: Event | None
    ) -> Notice:
        if registration.channel.payload is None:
            return self._notice(registration, delivery.id, "POST", b"")
        resource = await self._pinned(delivery, event)
        suffix = f"/{delivery.focus['type']}/{delivery.focus['id']}"
        return self._notice(
            registration, delivery.id, "PUT", fhir_json.encode(resource), suffix=suffix
        )

    async def _focus(
        self, delivery: Delivery, registration: Registration, event: Event | None
    ) -> tuple[Focus, list[str]]:
        pinned = delivery.focus
        content = registration.channel.content
        resource: Resource | None = None
        context: list[str] = []
        if content != "empty" and pinned["method"] != "delete":
            resource = await self._pinned(delivery, event)
            if registration.topic is not None:
                fields = event.fields if event is not None and event.fields else None
                context = registration.topic.context(fields or extract(pinned["type"], resource))
        return (
            Focus(
                pinned["type"],
                pinned["id"],
                pinned["version"],
                pinned["method"],
                pinned["at"],
                delivery.trigger,
                resource if content == "full-resource" else None,
            ),
            context,
        )

    async def _pinned(self, delivery: Delivery, event: Event | None) -> Resource:
        """The very version of the event, whatever has become of the resource since."""
        if event is not None and event.resource is not None:
            return event.resource
        pinned = delivery.focus
        stored = await self._store.vread(pinned["type"], pinned["id"], pinned["version"])
        if stored is None or stored.deleted:
            raise VersionGoneError("The version is no longer stored")
        return stored.resource()

    async def _read_all(self, references: list[str]) -> list[Resource | None]:
        return await asyncio.gather(*(self._read(reference) for reference in references))

    async def _read(self, reference: str) -> Resource | None:
        resource_type, _, resource_id = reference.partition("/")
        stored = await self._store.read(resource_type, resource_id)
        return None if stored is None or stored.deleted else stored.resource()

    def _head(self, registration: Registration, notice_id: str, number: int, at: datetime) -> Head:
        return Head(
            id=notice_id,
            base_url=self._base_url(registration.id),
            subscription=registration.id,
            topic=registration.topic.url if registration.topic else None,
            status=registration.status,
            content=registration.channel.content or "empty",
            number=number,
            at=at,
        )

    def _base_url(self, subscription: str) -> str:
        """The FHIR base as the subscriber knows it: the one its Subscription was written through."""
        if self._settings.base_url:
            return self._settings.base_url.rstrip("/")
        base_url: str = self._private[subscription][1].get("base_url", "")
        return base_url or f"http://{self._settings.host}:{self._settings.port}/fhir"

    def _notice(
        self,
        registration: Registration,
        notice_id: str,
        method: str,
        body: bytes,
        *,
        suffix: str = "",
    ) -> Notice:
        channel = registration.channel
        headers = [
            split_header(line) for line in self._private[registration.id][1].get("headers", ())
        ]
        if channel.payload is not None:
            headers.append(("Content-Type", channel.payload))
        return Notice(
            id=notice_id,
            method=method,
            url=_extend(channel.endpoint, suffix),
            headers=tuple(header for header in headers if header is not None),
            body=body,
            timeout=channel.timeout,
        )


def _extend(endpoint: str, suffix: str) -> str:
    """The endpoint as a FHIR base: the path grows, the query stays."""
    if not suffix:
        return endpoint
    path, mark, parameters = endpoint.partition("?")
    return path.rstrip("/") + suffix + mark + parameters
