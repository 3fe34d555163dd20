"""One event's notices as text: what they have in common is composed and encoded once, what differs is put in.

The shape of a notice has one source, notification.py: its Bundle is composed with stand-ins in the place of its id, its
Subscription and its number. They are random, so nothing that a client wrote can be mistaken for one.
"""

from __future__ import annotations

import secrets
import uuid
from dataclasses import replace

from app.fhir import json as fhir_json
from app.subscriptions.notices import notification
from app.subscriptions.notices.notification import Head, Told


class Template:
    """The JSON of a notice of one event, with gaps; only for content levels that carry no resources."""

    def __init__(self, head: Head, event: Told) -> None:
        stand_in = replace(
            head,
            id=str(uuid.uuid4()),
            subscription=uuid.uuid4().hex,
            number=10**18 + secrets.randbelow(10**18),
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
