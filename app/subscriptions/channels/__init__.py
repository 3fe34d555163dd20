"""Channels: how a notice leaves the server. One file per channel type, one entry in `CHANNELS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from app.security.egress import Egress
from app.subscriptions.channels.protocol import Channel, Notice, Outcome
from app.subscriptions.channels.rest_hook import RestHook

__all__ = ["CHANNELS", "Channel", "Notice", "Outcome"]

CHANNELS: Mapping[str, Callable[[Egress], Channel]] = MappingProxyType({"rest-hook": RestHook})
