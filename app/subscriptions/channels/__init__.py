"""Channels: how a notice leaves the server. One file for each channel type, one entry in `CHANNELS`.

protocol         is what every channel is given and gives back, and what a channel type says of itself
rest_hook        sends HTTP requests
websocket        tells bound clients
email            sends mail
message          sends FHIR messages
davinci          sends Da Vinci Unsolicited Notifications
http_sender      sends over HTTP for the channels that call an endpoint: signature, certificate, token
http_endpoint    checks endpoint, headers and payload type of these
connections      keeps a small pool for each origin, with addresses judged as they are opened
response_heads   reads the head of a response before what follows it, and few informational ones
patience         lets an attempt that hangs be ended for others
payload          reads the payload types that `channel.payload` may name
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from app.subscriptions.channels.davinci import ASKED_BY, DAVINCI
from app.subscriptions.channels.email import EMAIL
from app.subscriptions.channels.message import MESSAGE
from app.subscriptions.channels.protocol import (
    AttemptOutcome,
    Channel,
    ChannelDependencies,
    ChannelRequest,
    ChannelType,
    Draft,
    Notice,
)
from app.subscriptions.channels.rest_hook import REST_HOOK
from app.subscriptions.channels.websocket import WEBSOCKET

__all__ = [
    "ADDITIONAL",
    "CHANNELS",
    "AttemptOutcome",
    "Channel",
    "ChannelDependencies",
    "ChannelRequest",
    "Draft",
    "Notice",
]

CHANNELS: Mapping[str, ChannelType] = MappingProxyType(
    {
        "rest-hook": REST_HOOK,
        "websocket": WEBSOCKET,
        "email": EMAIL,
        "message": MESSAGE,
        "davinci-alerts": DAVINCI,
    }
)
# Channel types that R4 has no code for: by the coding that asks for one, the code that stands beside it, and its key.
ADDITIONAL: Mapping[tuple[str, str], tuple[str, str]] = MappingProxyType(
    {ASKED_BY: ("message", "davinci-alerts")}
)
