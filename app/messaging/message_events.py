"""The events whose messages are taken, and what a message of each has to be about.

Those of Da Vinci Unsolicited Notifications that this server sends itself, and the admissions, transfers, discharges and
their cancellations of HL7 v2 (http://terminology.hl7.org/CodeSystem/v2-0003).
http://hl7.org/fhir/us/davinci-alerts/CodeSystem/notification-event
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from app.errors import Unprocessable
from app.fhir.json import Resource
from app.subscriptions.channels.davinci import EVENT_SYSTEM

ADT_SYSTEM = "http://terminology.hl7.org/CodeSystem/v2-0003"


@dataclass(frozen=True, slots=True)
class MessageEvent:
    """`focus` are the types that such a message is about; an `is_alert` follows Da Vinci's profiles."""

    focus: frozenset[str]
    is_alert: bool


_STAY = frozenset({"Encounter"})
_ALERTS: Mapping[str, frozenset[str]] = {
    "notification-admit": _STAY,
    "notification-discharge": _STAY,
    "notification-transfer": _STAY,
    "notification-care-team-change": frozenset({"CareTeam"}),
    "notification-new-condition": frozenset({"Condition"}),
    "notification-referral": frozenset({"ServiceRequest", "Task"}),
}
_ADT = ("A01", "A02", "A03", "A04", "A05", "A06", "A07", "A08", "A11", "A12", "A13")

EVENTS: Mapping[tuple[str, str], MessageEvent] = MappingProxyType(
    {
        **{(EVENT_SYSTEM, code): MessageEvent(focus, True) for code, focus in _ALERTS.items()},
        **{(ADT_SYSTEM, code): MessageEvent(_STAY, False) for code in _ADT},
    }
)


def event_of(header: Resource) -> MessageEvent:
    """The event of a MessageHeader. Raises Unprocessable for one whose messages are not taken."""
    coding = header.get("eventCoding", {})
    found = EVENTS.get((coding.get("system", ""), coding.get("code", "")))
    if found is None:
        raise Unprocessable(
            "Messages of this event are not taken. Taken are "
            f"{', '.join(_ALERTS)} of {EVENT_SYSTEM} and {', '.join(_ADT)} of {ADT_SYSTEM}",
            code="not-supported",
            expression="Bundle.entry[0].resource.event",
        )
    return found
