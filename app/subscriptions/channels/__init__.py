"""Channels: how a notice leaves the server. One file per channel type, one entry in `CHANNELS`.

protocol        what a channel is given and gives back, and what a channel type says of itself
payload         the formats that `channel.payload` may name
http_endpoint   what is demanded of an endpoint that is called by HTTP
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
