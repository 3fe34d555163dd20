"""The composer of notices from delivery rows: the pinned version, its context, the Subscription's own headers."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Collection, Hashable, Sequence
from datetime import datetime

from cachetools import FIFOCache

from app.consent.redisclosure import consents_of, with_redisclosure_notice
from app.fhir.json import Resource
from app.runtime.mongo import Document
from app.settings import Settings
from app.store.events import Event
from app.store.store import Store
from app.subscriptions.channels import Draft, Notice
from app.subscriptions.channels.davinci import event_of
from app.subscriptions.channels.payload import body as payload_body
from app.subscriptions.ledger.ledger import Delivery
from app.subscriptions.matching.registration import Registration
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.notices import notification
from app.subscriptions.notices.davinci_message import Alert, Messages
from app.subscriptions.notices.envelope import Envelope, Template
from app.subscriptions.notices.event_reader import EventReader, WithheldError
from app.subscriptions.notices.notification import Head, NotificationKind
from app.subscriptions.sending.release_limits import NO_LIMITS, Limit, Limits

log = logging.getLogger(__name__)

_ENVELOPES, _TEMPLATES = 10_000, 256


class Composer:
    """Builds notices. A Subscription's secrets are read from its `private` fields and cached for its version."""

    def __init__(self, settings: Settings, store: Store, registry: SubscriptionRegistry) -> None:
        self._settings = settings
        self._reader = EventReader(store, settings.base_url.rstrip("/"))
        self._messages = Messages(store)
        self._registry = registry
        self._envelopes: FIFOCache[str, Envelope] = FIFOCache(_ENVELOPES)
        self._templates: FIFOCache[Hashable, Template] = FIFOCache(_TEMPLATES)

    async def registration(self, subscription: str) -> Registration | None:
        """The Subscription with its secrets at hand, both of one version; None where it is gone."""
        current = self._registry.get(subscription)
        known = self._envelopes.get(subscription)
        if current is not None and known is not None and known.version == current.version:
            return current
        found = await self._registry.with_private(subscription)
        if found is None:
            return None
        current, private = found
        self._keep(current, private)
        return current

    async def make_ready(self, subscriptions: Collection[str]) -> None:
        """Read the secrets of Subscriptions in one read, before their notices need them one by one."""
        unknown = [id_ for id_ in subscriptions if id_ not in self._envelopes]
        if unknown:
            for current, private in await self._registry.many_with_private(unknown):
                try:
                    self._keep(current, private)
                except Exception as error:  # its own notices will fail by it, and no others
                    log.error(
                        "secrets cannot be opened",
                        extra={
                            "action": "compose",
                            "id": current.id,
                            "error": type(error).__name__,
                        },
                    )

    def owner(self, registration: Registration) -> str | None:
        """For whom a Subscription's notices are sent: whom the server keeps it for, else the client that wrote it.

        The client is known once `registration` or `make_ready` has read its secrets.
        """
        envelope = self._envelopes.get(registration.id)
        return registration.kept_for or (None if envelope is None else envelope.owner)

    def _keep(self, current: Registration, private: Document) -> None:
        self._envelopes[current.id] = Envelope.of(current, private, self._settings)

    async def notice(
        self,
        rows: Sequence[tuple[Delivery, Event | None]],
        registration: Registration,
        limits: Limits = NO_LIMITS,
    ) -> Notice:
        """One message for several rows of a Subscription, in the order of their numbers, as far as limits allow.

        The same rows make the same message. Raises VersionGoneError where the version of a single row is gone; one
        among several is sent with a response of 410.
        """
        envelope = self._envelopes[registration.id]
        first, event = rows[0]
        if registration.channel.content is None:
            return await self._classic(first, event, registration, envelope, limits.get(first.id))
        if registration.channel.is_message:
            return await self._message(first, event, envelope, limits)
        if len(rows) > 1:
            return await self._several(rows, registration, envelope, limits)
        limit = limits.get(first.id)
        own = limit is not None and bool(
            limit.verdict == "withhold" or limit.hidden or limit.judgement.permitted_by
        )
        if envelope.takes_text and registration.channel.content != "full-resource" and not own:
            template = await self._template(first, event, registration, envelope)
            body = template.fill(first.id, registration.id, first.number)
            return envelope.notice(first.id, body)
        content = await self._reader.told(
            first, registration.topic, registration.channel.content, event, limit
        )
        head = _head(registration, envelope, first.id, first.number, first.created_at)
        bundle = notification.events_notification(head, "event-notification", [content])
        return _enclosed(envelope, first.id, first.created_at, bundle)

    async def _several(
        self,
        rows: Sequence[tuple[Delivery, Event | None]],
        registration: Registration,
        envelope: Envelope,
        limits: Limits,
    ) -> Notice:
        content, topic = registration.channel.content or "empty", registration.topic
        events = [
            await self._reader.told_if_stored(
                delivery, topic, content, event, limits.get(delivery.id)
            )
            for delivery, event in rows
        ]
        last = rows[-1][0]
        ids = " ".join(delivery.id for delivery, _ in rows)
        notice_id = str(uuid.uuid5(uuid.UUID(rows[0][0].id), ids))
        head = _head(registration, envelope, notice_id, last.number, last.created_at)
        bundle = notification.events_notification(head, "event-notification", events)
        return _enclosed(envelope, notice_id, last.created_at, bundle)

    async def _message(
        self, delivery: Delivery, event: Event | None, envelope: Envelope, limits: Limits
    ) -> Notice:
        """A message that is complete in itself. Raises WithheldError where a part that it requires may not be sent."""
        code = event_of(delivery.topic, self._settings)
        if code is None:
            raise WithheldError("Withheld: the topic has no Da Vinci event any more")
        alert = Alert(
            delivery.id,
            delivery.created_at,
            code,
            envelope.base_url,
            envelope.terms.endpoint,
            await self._reader.pinned(delivery, event),
            delivery.context,
            limits.get(delivery.id),
        )
        message = await self._messages.of(alert)
        body = payload_body(message, envelope.media_type)
        return envelope.notice(delivery.id, body, permitted_by=consents_of(message))

    async def _template(
        self,
        delivery: Delivery,
        event: Event | None,
        registration: Registration,
        envelope: Envelope,
    ) -> Template:
        """The template that the notice shares with other Subscriptions' for the same event and content level."""
        focus, topic = delivery.focus, registration.topic
        key = (
            focus["type"],
            focus["id"],
            focus["version"],
            delivery.created_at,
            topic and topic.canonical,
            tuple(tuple(each.items()) for each in delivery.triggers),
            registration.status,
            registration.channel.content,
            envelope.base_url,
        )
        try:
            return self._templates[key]
        except KeyError:
            pass
        content = registration.channel.content or "empty"
        read = await self._reader.told(delivery, topic, content, event)
        head = _head(registration, envelope, delivery.id, delivery.number, delivery.created_at)
        found = self._templates[key] = Template(head, read)
        return found

    async def status_notice(
        self, registration: Registration, kind: NotificationKind, number: int, at: datetime
    ) -> Notice:
        """A handshake or heartbeat."""
        notice_id = str(uuid.uuid4())
        envelope = self._envelopes[registration.id]
        head = _head(registration, envelope, notice_id, number, at)
        return _enclosed(envelope, notice_id, at, notification.status_only(head, kind))

    async def _classic(
        self,
        delivery: Delivery,
        event: Event | None,
        registration: Registration,
        envelope: Envelope,
        limit: Limit | None,
    ) -> Notice:
        carries = registration.channel.payload is not None
        resource = await self._reader.pinned(delivery, event) if carries else None
        if resource is not None and limit is not None:
            permitted_by = limit.judgement.permitted_by
            resource = with_redisclosure_notice(resource, permitted_by, envelope.base_url)
        focus = f"{delivery.focus['type']}/{delivery.focus['id']}"
        return _enclosed(envelope, delivery.id, delivery.created_at, resource, focus)


def _head(
    registration: Registration, envelope: Envelope, notice_id: str, number: int, at: datetime
) -> Head:
    """The head of a notice of the Subscription."""
    return Head(
        id=notice_id,
        base_url=envelope.base_url,
        subscription=registration.id,
        topic=registration.topic.canonical if registration.topic else None,
        status=registration.status,
        content=registration.channel.content or "empty",
        number=number,
        at=at,
    )


def _enclosed(
    envelope: Envelope,
    notice_id: str,
    at: datetime,
    resource: Resource | None,
    focus: str | None = None,
) -> Notice:
    """The message in the form of the Subscription's channel."""
    wrap = envelope.channel.wrap
    content: Resource | bytes | None = resource
    if wrap is not None:
        content = wrap(
            Draft(
                notice_id,
                envelope.subscription,
                envelope.terms.endpoint,
                envelope.terms.payload,
                envelope.base_url,
                at,
                resource,
                focus,
            )
        )
    body = payload_body(content, envelope.media_type)
    carried = focus if resource is not None else None
    return envelope.notice(notice_id, body, carried, consents_of(resource))
