"""The envelope that all notices of one version of a Subscription share: their address and headers."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from secrets import randbelow

from app.fhir import json as fhir_json
from app.runtime import secrets
from app.runtime.mongo import Document
from app.settings import Settings
from app.subscriptions.channels import CHANNELS, Notice
from app.subscriptions.channels.http_endpoint import split_header
from app.subscriptions.channels.payload import FHIR_JSON, format_of
from app.subscriptions.channels.protocol import NOTICE_ID_HEADER, ChannelType
from app.subscriptions.matching.channel_terms import ChannelTerms
from app.subscriptions.matching.registration import Registration
from app.subscriptions.notices import notification
from app.subscriptions.notices.notification import Head, Told

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Envelope:
    """`base_url` is the FHIR base as the subscriber knows it; `media_type` the format of the body.

    `owner` is the client whose Subscription it is, if it is one's.
    """

    subscription: str
    version: int
    base_url: str
    terms: ChannelTerms
    channel: ChannelType
    media_type: str
    headers: Headers
    headers_of_body: Headers
    method: str
    url: str
    owner: str | None

    @classmethod
    def of(cls, registration: Registration, private: Document, settings: Settings) -> Envelope:
        """The envelope of a Subscription and its `private` fields; its secret headers are opened."""
        terms = registration.channel
        channel = CHANNELS[terms.type]
        sealed = private.get("headers")
        headers = _headers(secrets.of_settings(settings).open_all(sealed) if sealed else ())
        method, url = channel.address(terms.endpoint, None)
        return cls(
            subscription=registration.id,
            version=registration.version,
            base_url=_base_url(private, settings),
            terms=terms,
            channel=channel,
            media_type=(terms.payload and format_of(terms.payload)) or FHIR_JSON,
            headers=headers,
            headers_of_body=(*headers, ("Content-Type", terms.payload or FHIR_JSON)),
            method=method,
            url=url,
            owner=private.get("owner", {}).get("client_id") or None,
        )

    @property
    def takes_text(self) -> bool:
        """Whether the JSON of a notification Bundle is the body as it is."""
        return self.channel.wrap is None and self.media_type == FHIR_JSON

    def notice(
        self,
        notice_id: str,
        body: bytes,
        carried: str | None = None,
        permitted_by: tuple[str, ...] = (),
    ) -> Notice:
        """The message. `carried` is the resource that a classic one carries: its place may be part of the address."""
        method, url = self.method, self.url
        if carried is not None:
            method, url = self.channel.address(self.terms.endpoint, carried)
        headers = self.headers_of_body if body else self.headers
        timeout, own = self.terms.timeout, self.subscription
        return Notice(notice_id, method, url, headers, body, timeout, own, permitted_by)


def _headers(lines: Iterable[str]) -> Headers:
    """The Subscription's own headers, without that of the notice's id, which the server sets."""
    found = (split_header(line) for line in lines)
    return tuple(
        header
        for header in found
        if header is not None and header[0].lower() != NOTICE_ID_HEADER.lower()
    )


def _base_url(private: Document, settings: Settings) -> str:
    """The base URL of the settings, else the one that the Subscription was written through."""
    if settings.base_url:
        return settings.base_url.rstrip("/")
    base_url: str = private.get("base_url", "")
    return base_url or f"http://{settings.host}:{settings.port}/fhir"


# One event's notices as text: their common part is composed and encoded once, the differences are filled in.
#
# The shape of a notice has one source, notification.py: its Bundle is composed with placeholders for its id, its
# Subscription and its number. They are random, so nothing that a client wrote can be mistaken for one.


class Template:
    """The JSON of a notice of one event, with gaps; only for content levels that carry no resources."""

    def __init__(self, head: Head, event: Told) -> None:
        stand_in = replace(
            head,
            id=str(uuid.uuid4()),
            subscription=uuid.uuid4().hex,
            number=10**18 + randbelow(10**18),
        )
        bundle = notification.event_notification(stand_in, event.focus, event.context)
        gaps = {
            stand_in.id: "%(id)s",
            notification.status_id(stand_in.id): "%(status_id)s",
            stand_in.subscription: "%(subscription)s",
            str(stand_in.number): "%(number)d",
        }
        text = fhir_json.encode(bundle).decode().replace("%", "%%")
        for found, gap in gaps.items():
            text = text.replace(found, gap)
        self._text = text

    def fill(self, notice_id: str, subscription: str, number: int) -> bytes:
        """The notice of a Subscription: what `fhir_json.encode` makes of its Bundle."""
        text = self._text % {
            "id": notice_id,
            "status_id": notification.status_id(notice_id),
            "subscription": subscription,
            "number": number,
        }
        return text.encode()
