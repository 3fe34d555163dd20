"""A notice as a Communication, which practices, auditors and measures read long after the ledger's row is gone.

https://hl7.org/fhir/R4/communication.html. It says that there was a notice, never what was in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.fhir.codes import (
    EVENT_NOTICE,
    EVENT_TIME,
    NOTICE_COMMITTED,
    NOTICE_ENDPOINT,
    NOTICE_ID,
    NOTICE_KIND,
    NOTICE_SHA_256,
    NOTICE_STATUS,
    NOTICE_SUBSCRIPTION,
    NOTICE_TO_PCP,
)
from app.fhir.instants import instant, moment
from app.fhir.json import Resource
from app.proof.notice import NoticeRecord

_NOT_DONE = "http://terminology.hl7.org/CodeSystem/communication-not-done-reason"
_STATUS = {"delivered": "completed", "dead": "stopped", "suppressed": "not-done"}
_CONSENT = "Withheld: consent-"


@dataclass(frozen=True, slots=True)
class Receipt:
    """The proof of one notice about a stay; `at` is when it was received, None where it was not."""

    notice: str
    subscription: str | None
    encounter: str
    topic: str
    trigger: str | None
    recipients: tuple[str, ...]
    to_pcp: bool
    at: datetime | None


def communication(notice: NoticeRecord, sender: Resource) -> Resource:
    """The Communication of a notice; its id is the row's. `sender` is how the server names itself."""
    resource: Resource = {
        "resourceType": "Communication",
        "id": notice.id,
        "extension": _extensions(notice),
        "identifier": [{"system": NOTICE_ID, "value": notice.id}],
        "instantiatesUri": [notice.topic],
        "status": _STATUS.get(notice.state, "in-progress"),
        "category": [{"coding": [{"system": NOTICE_KIND, "code": EVENT_NOTICE}]}],
        "about": [{"reference": notice.focus}],
        "sender": sender,
    }
    if notice.security:
        resource["meta"] = {"security": [dict(each) for each in notice.security]}
    if notice.sha256 is not None:
        resource["identifier"].append({"system": NOTICE_SHA_256, "value": notice.sha256})
    if notice.reason and notice.state in ("dead", "suppressed"):
        resource["statusReason"] = _why(notice)
    if notice.trigger:
        resource["topic"] = {"coding": [dict(notice.trigger)]}
    if notice.patient is not None:
        resource["subject"] = {"reference": notice.patient}
    if notice.encounter is not None:
        resource["encounter"] = {"reference": notice.encounter}
    if recipients := _recipients(notice):
        resource["recipient"] = recipients
    if notice.sent is not None:
        resource["sent"] = instant(notice.sent)
    if notice.received is not None:
        resource["received"] = instant(notice.received)
    return resource


def receipt(resource: Resource) -> Receipt:
    """The receipt of a Communication of ours, read back."""
    flags = {each["url"]: each for each in resource.get("extension", ())}
    codings = resource.get("topic", {}).get("coding", [{}])
    received = resource.get("received")
    subscription = flags.get(NOTICE_SUBSCRIPTION, {}).get("valueReference", {}).get("reference", "")
    return Receipt(
        resource["id"],
        subscription.rpartition("/")[2] or None,
        resource.get("encounter", {}).get("reference", ""),
        next(iter(resource.get("instantiatesUri", ())), ""),
        codings[0].get("code"),
        tuple(each["reference"] for each in resource.get("recipient", ()) if "reference" in each),
        flags.get(NOTICE_TO_PCP, {}).get("valueBoolean") is True,
        moment(received) if received else None,
    )


def receipt_of(notice: NoticeRecord) -> Receipt:
    """The receipt of a notice."""
    return Receipt(
        notice.id,
        notice.subscription,
        notice.encounter or "",
        notice.topic,
        (notice.trigger or {}).get("code"),
        notice.recipients,
        notice.to_pcp,
        notice.received,
    )


def _recipients(notice: NoticeRecord) -> list[Resource]:
    """Whom the notice was for; of a Subscription that names nobody, what answers at its address."""
    if notice.recipients or notice.subscription is None:
        return [{"reference": each} for each in notice.recipients]
    if notice.endpoint is None:
        return [{"type": "Device", "display": f"The client of Subscription/{notice.subscription}"}]
    address = {"system": "urn:ietf:rfc:3986", "value": notice.endpoint}
    return [{"type": "Device", "identifier": address}]


def _why(notice: NoticeRecord) -> Resource:
    if notice.state == "dead":
        code = "system-error"
    elif notice.reason.startswith(_CONSENT):
        code = "patient-objection"
    elif notice.subscription is None:
        code = "recipient-unavailable"
    else:
        return {"text": notice.reason}
    return {"coding": [{"system": _NOT_DONE, "code": code}], "text": notice.reason}


def _extensions(notice: NoticeRecord) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"url": EVENT_TIME, "valueInstant": instant(notice.event_time)},
        {"url": NOTICE_COMMITTED, "valueInstant": instant(notice.committed)},
    ]
    if notice.endpoint is not None:
        found.append({"url": NOTICE_ENDPOINT, "valueUrl": notice.endpoint})
    # Of one that was not taken its readers are told no more than the reason (app/subscriptions/channels/protocol.py).
    if notice.status is not None and notice.received is not None:
        found.append({"url": NOTICE_STATUS, "valueInteger": notice.status})
    if notice.subscription is not None:
        reference = {"reference": f"Subscription/{notice.subscription}"}
        found.append({"url": NOTICE_SUBSCRIPTION, "valueReference": reference})
    if notice.to_pcp:
        found.append({"url": NOTICE_TO_PCP, "valueBoolean": True})
    return found
