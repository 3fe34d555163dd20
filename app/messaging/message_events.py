"""The events whose messages are taken, what a message of each has to be about, and what it says of a stay.

Those of Da Vinci Unsolicited Notifications that this server sends itself, and the admissions, transfers, discharges and
their cancellations of HL7 v2 (http://terminology.hl7.org/CodeSystem/v2-0003).
http://hl7.org/fhir/us/davinci-alerts/CodeSystem/notification-event
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from app.errors import Unprocessable
from app.fhir.encounter_status import ACTIVE, CANCELLED, is_discharged
from app.fhir.json import Resource
from app.subscriptions.channels.davinci import EVENT_SYSTEM

ADT_SYSTEM = "http://terminology.hl7.org/CodeSystem/v2-0003"


@dataclass(frozen=True, slots=True)
class StayEvent:
    """What an event says of a stay: the `status` of an Encounter that states none, and those that agree with it.

    `goes_on`: the patient has not left, whatever the status.
    """

    status: str
    agreeing: frozenset[str]
    goes_on: bool = False

    def said_by(self, encounter: Resource) -> Resource:
        """The Encounter, with the status of the event where it has none, or one that is not known."""
        if encounter.get("status", "unknown") != "unknown":
            return encounter
        return {**_without(encounter, "_status"), "status": self.status}

    def agrees(self, encounter: Resource, at: datetime) -> bool:
        """Whether an Encounter says at a moment what the event says."""
        has_left = is_discharged(encounter, at)
        if self.status == "finished":
            return has_left
        return encounter["status"] in self.agreeing and not (self.goes_on and has_left)


@dataclass(frozen=True, slots=True)
class MessageEvent:
    """`focus` are the types that such a message is about; an `is_alert` follows Da Vinci's profiles.

    `stay` is what it says of an Encounter, if it does: an update says nothing.
    """

    code: str
    focus: frozenset[str]
    is_alert: bool
    stay: StayEvent | None


def _without(resource: Resource, name: str) -> Resource:
    return {key: value for key, value in resource.items() if key != name}


_STAY = frozenset({"Encounter"})
_ALERTS: Mapping[str, frozenset[str]] = {
    "notification-admit": _STAY,
    "notification-discharge": _STAY,
    "notification-transfer": _STAY,
    "notification-care-team-change": frozenset({"CareTeam"}),
    "notification-new-condition": frozenset({"Condition"}),
    "notification-referral": frozenset({"ServiceRequest", "Task"}),
}
_STAYING = StayEvent("in-progress", ACTIVE, goes_on=True)
# To another place, which may be another hospital.
_MOVING = StayEvent("in-progress", ACTIVE)
_LEAVING = StayEvent("finished", ACTIVE | {"finished"})
_EXPECTED = StayEvent("planned", frozenset({"planned"}))
_NOT_SO = StayEvent("cancelled", CANCELLED)
_ADT: Mapping[str, StayEvent | None] = {
    "A01": _STAYING,
    "A02": _MOVING,
    "A03": _LEAVING,
    "A04": _STAYING,
    "A05": _EXPECTED,
    "A06": _STAYING,
    "A07": _STAYING,
    "A08": None,
    "A11": _NOT_SO,
    "A12": _MOVING,
    "A13": _STAYING,
}
_STAYS = {
    "notification-admit": _STAYING,
    "notification-discharge": _LEAVING,
    "notification-transfer": _MOVING,
}

EVENTS: Mapping[tuple[str, str], MessageEvent] = MappingProxyType(
    {
        **{
            (EVENT_SYSTEM, code): MessageEvent(code, focus, True, _STAYS.get(code))
            for code, focus in _ALERTS.items()
        },
        **{
            (ADT_SYSTEM, code): MessageEvent(code, _STAY, False, stay)
            for code, stay in _ADT.items()
        },
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
