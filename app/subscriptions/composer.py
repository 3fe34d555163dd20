"""What a delivery row becomes on the wire: the pinned version, its context, the Subscription's own headers."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Collection, Sequence
from datetime import datetime

from app.fhir_json import Resource
from app.mongo import Document
from app.security import secrets
from app.settings import Settings
from app.store import Store
from app.subscriptions import notification
from app.subscriptions.channels import CHANNELS, Draft, Notice
from app.subscriptions.channels.http_endpoint import split_header
from app.subscriptions.channels.payload import FHIR_JSON, body as payload_body
from app.subscriptions.ledger import Delivery
from app.subscriptions.notification import Head, Kind
from app.subscriptions.registration import Registration
from app.subscriptions.registry import Registry
from app.subscriptions.telling import Teller
from app.versions import Event

_REMEMBERED = 10_000


class Composer:
    """Builds notices. Secrets are read from beside the Subscription and remembered for as long as its version lasts."""

    def __init__(self, settings: Settings, store: Store, registry: Registry) -> None:
        self._settings = settings
        self._teller = Teller(store, settings.base_url.rstrip("/"))
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
        self._keep(current, private)
        return current

    async def make_ready(self, subscriptions: Collection[str]) -> None:
        """Read what many Subscriptions keep beside them at once, before their notices ask one by one."""
        unknown = [id_ for id_ in subscriptions if id_ not in self._private]
        if len(unknown) > 1:
            for current, private in await self._registry.many_with_private(unknown):
                self._keep(current, private)

    def _keep(self, current: Registration, private: Document) -> None:
        if sealed := private.get("headers"):
            headers = secrets.of_settings(self._settings).open_all(sealed)
            private = {**private, "headers": headers}
        self._private[current.id] = (current.version, private)
        if len(self._private) > _REMEMBERED:
            self._private.popitem(last=False)

    async def notice(
        self, rows: Sequence[tuple[Delivery, Event | None]], registration: Registration
    ) -> Notice:
        """One message for several rows of a Subscription, in the order of their numbers.

        The same rows make the same message. Raises VersionGoneError where the version of a single row is gone; one
        among several is told as gone.
        """
        first, last = rows[0][0], rows[-1][0]
        content = registration.channel.content
        if content is None:
            return await self._classic(first, registration, rows[0][1])
        tell = self._teller.told if len(rows) == 1 else self._teller.told_if_stored
        events = [
            await tell(delivery, registration.topic, content, event) for delivery, event in rows
        ]
        notice_id = first.id
        if len(rows) > 1:
            ids = " ".join(delivery.id for delivery, _ in rows)
            notice_id = str(uuid.uuid5(uuid.UUID(first.id), ids))
        head = self.head(registration, notice_id, last.number, last.created_at)
        bundle = notification.events_notification(head, "event-notification", events)
        return self._notice(registration, notice_id, last.created_at, bundle)

    async def status_notice(
        self, registration: Registration, kind: Kind, number: int, at: datetime
    ) -> Notice:
        """A handshake or heartbeat."""
        notice_id = str(uuid.uuid4())
        head = self.head(registration, notice_id, number, at)
        return self._notice(registration, notice_id, at, notification.status_only(head, kind))

    async def _classic(
        self, delivery: Delivery, registration: Registration, event: Event | None
    ) -> Notice:
        carries = registration.channel.payload is not None
        resource = await self._teller.pinned(delivery, event) if carries else None
        focus = f"{delivery.focus['type']}/{delivery.focus['id']}"
        return self._notice(registration, delivery.id, delivery.created_at, resource, focus)

    def head(self, registration: Registration, notice_id: str, number: int, at: datetime) -> Head:
        """What every notice of the Subscription begins with."""
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
        at: datetime,
        resource: Resource | None,
        focus: str | None = None,
    ) -> Notice:
        """The message in the form of the Subscription's channel, with its own headers."""
        channel = registration.channel
        base_url = self._base_url(registration.id)
        shape = CHANNELS[channel.type].shape(
            Draft(
                notice_id,
                registration.id,
                channel.endpoint,
                channel.payload,
                base_url,
                at,
                resource,
                focus,
            )
        )
        headers = [
            split_header(line) for line in self._private[registration.id][1].get("headers", ())
        ]
        body = payload_body(shape.content, channel.payload)
        if body:
            headers.append(("Content-Type", channel.payload or FHIR_JSON))
        return Notice(
            id=notice_id,
            method=shape.method,
            url=shape.url,
            headers=tuple(header for header in headers if header is not None),
            body=body,
            timeout=channel.timeout,
            subscription=registration.id,
        )
