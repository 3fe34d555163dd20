"""The message channel: each notice as the focus of a FHIR message, posted to $process-message of the endpoint.

https://hl7.org/fhir/R4/messaging.html; the Subscriptions R5 Backport guide, Channels, FHIR Messaging
The endpoint is the destination's FHIR base, or its $process-message itself.
"""

from __future__ import annotations

import uuid
from typing import Any

from app.fhir.instants import instant
from app.fhir.json import Resource
from app.subscriptions.channels import http_endpoint
from app.subscriptions.channels.http_sender import HttpSender
from app.subscriptions.channels.protocol import ChannelType, Draft

# The event of a message, named by its content: the guide and R4 define no event code for notices.
NOTIFICATION_EVENT = (
    "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/"
    "backport-subscription-notification-r4"
)
CLASSIC_EVENT = "http://hl7.org/fhir/StructureDefinition/Subscription"


def message(draft: Draft) -> Resource:
    """The message Bundle. Its ids derive from the notice's: every attempt sends the same message."""
    header_id, bundle_id = (_id(draft, part) for part in ("header", "message"))
    header: dict[str, Any] = {
        "resourceType": "MessageHeader",
        "id": header_id,
        "eventUri": CLASSIC_EVENT if draft.focus else NOTIFICATION_EVENT,
        "destination": [{"endpoint": draft.endpoint}],
        "source": {"name": "CareRelay", "software": "CareRelay", "endpoint": draft.base_url},
    }
    entries = [{"fullUrl": f"urn:uuid:{header_id}", "resource": header}]
    if draft.resource is not None:
        place = f"{draft.base_url}/{draft.focus}" if draft.focus else f"urn:uuid:{draft.id}"
        header["focus"] = [{"reference": place}]
        entries.append({"fullUrl": place, "resource": draft.resource})
    return {
        "resourceType": "Bundle",
        "id": bundle_id,
        "type": "message",
        "timestamp": instant(draft.at),
        "entry": entries,
    }


def _id(draft: Draft, part: str) -> str:
    return str(uuid.uuid5(uuid.UUID(draft.id), part))


MESSAGE = ChannelType(
    make=HttpSender.within,
    check=http_endpoint.check,
    address=http_endpoint.process_message,
    wrap=message,
    calls_out=True,
)
