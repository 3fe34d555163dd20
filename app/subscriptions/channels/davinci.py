"""The davinci-alerts channel: each event as a Da Vinci Unsolicited Notification, posted to $process-message.

http://hl7.org/fhir/us/davinci-alerts, for endpoints that take messages and no Subscription notices. A message has
full resources and is complete in itself (davinci_message.py composes it): no handshake, no heartbeat, one event each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from app.fhir.codes import CHANNEL_TYPE, DAVINCI_ALERTS
from app.settings import Settings
from app.subscriptions.channels import http_endpoint
from app.subscriptions.channels.http_sender import HttpSender
from app.subscriptions.channels.protocol import (
    AttemptOutcome,
    Channel,
    ChannelDependencies,
    ChannelRequest,
    ChannelType,
    Complaint,
    Notice,
)

Coding = Mapping[str, str]

# The additional channel type, on `message`, by which a Subscription requests this channel.
ASKED_BY = (CHANNEL_TYPE, DAVINCI_ALERTS)
EVENT_SYSTEM = "http://hl7.org/fhir/us/davinci-alerts/CodeSystem/notification-event"
# The guide's event codes, by the last part of our topics' URLs.
_EVENTS = MappingProxyType(
    {
        "encounter-admission": ("notification-admit", "Admit Notification"),
        "encounter-snf-admission": ("notification-admit", "Admit Notification"),
        "encounter-discharge": ("notification-discharge", "Discharge Notification"),
        "encounter-transfer": ("notification-transfer", "Transfer Notification"),
        "careteam-change": ("notification-care-team-change", "Care Team Change Notification"),
        "condition-new": ("notification-new-condition", "New Condition Notification"),
        "referral": ("notification-referral", "Referral Notification"),
    }
)
# The message itself is at fault: a repetition would be refused too.
_OF_NO_USE = frozenset({400, 422})
# The least number of seconds to wait after a 429.
_SLOWER = 30.0


def event_of(topic: str | None, settings: Settings) -> Coding | None:
    """The guide's code for a topic by its URL; None where it has none."""
    base = settings.topic_base.rstrip("/") + "/"
    if topic is None or not topic.startswith(base):
        return None
    found = _EVENTS.get(topic.removeprefix(base).partition("|")[0])
    if found is None:
        return None
    return {"system": EVENT_SYSTEM, "code": found[0], "display": found[1]}


class Alerts:
    """Sends by HTTP, and maps the responses as the guide requires."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def send(self, notice: Notice) -> AttemptOutcome:
        """One attempt."""
        outcome = await self._channel.send(notice)
        if outcome.status in _OF_NO_USE:
            return outcome._replace(refused=True)
        if outcome.status == 429:
            return outcome._replace(retry_after=max(outcome.retry_after or 0.0, _SLOWER))
        return outcome

    async def close(self) -> None:
        await self._channel.close()


def _make(around: ChannelDependencies) -> Alerts:
    return Alerts(HttpSender.within(around))


def check(requested: ChannelRequest, settings: Settings) -> Iterator[Complaint]:
    """The checks of any URL endpoint, and those of messages: an event that the guide knows, full resources."""
    yield from http_endpoint.check(requested, settings)
    if event_of(requested.topic, settings) is None:
        known = ", ".join(sorted(_EVENTS))
        yield (
            "type",
            "not-supported",
            f"Da Vinci notifications have no event for this; they have for the topics {known}",
        )
    if requested.topical and requested.content != "full-resource":
        yield "payload", "not-supported", "A message has whole resources: full-resource content"


DAVINCI = ChannelType(
    make=_make,
    check=check,
    address=http_endpoint.process_message,
    calls_out=True,
    proves=False,
    is_message=True,
)
