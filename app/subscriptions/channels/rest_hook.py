"""The rest-hook channel: an HTTP request to the subscriber's endpoint.

https://hl7.org/fhir/R4/subscription.html#2.46.7.1
"""

from __future__ import annotations

from app.subscriptions.channels import http_endpoint
from app.subscriptions.channels.http_sender import HttpSender
from app.subscriptions.channels.protocol import ChannelType


def address(endpoint: str, carried: str | None) -> tuple[str, str]:
    """POST for a notice; PUT for a resource that a classic one carries, with the endpoint as its FHIR base."""
    if carried is None:
        return "POST", endpoint
    return "PUT", http_endpoint.extend(endpoint, f"/{carried}")


REST_HOOK = ChannelType(
    make=HttpSender.within,
    check=http_endpoint.check,
    address=address,
    calls_out=True,
)
