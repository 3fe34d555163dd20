"""Messages of a hospital that this server does not know: a stay as Da Vinci alerts or ADT messages, in foreign ids."""

from __future__ import annotations

import copy
import uuid
from typing import Any

import httpx

from app.fhir.ids import new_id
from app.messaging.message_events import ADT_SYSTEM
from app.subscriptions.channels.davinci import EVENT_SYSTEM
from tests.builders.subscriptions import ACT_CODE
from tests.outcomes import errors_in

Json = dict[str, Any]
ROOT = "https://ehr.example.org/fhir"


class ForeignStay:
    """A stay in a hospital's own words, whose ids are small numbers that others have as well."""

    def __init__(self, root: str = ROOT) -> None:
        self.n = new_id()
        self.root = root
        self.patient: Json = {
            "resourceType": "Patient",
            "id": "77",
            "identifier": [{"system": "urn:mrn", "value": self.n}],
            "name": [{"family": "Meadow", "given": ["Ada"]}],
            "gender": "female",
        }
        self.organization: Json = {
            "resourceType": "Organization",
            "id": "1",
            "identifier": [{"system": "urn:facility", "value": self.n}],
            "active": True,
            "name": "General Hospital",
        }
        self.doctor: Json = {
            "resourceType": "Practitioner",
            "id": "5",
            "identifier": [{"system": "urn:staff", "value": self.n}],
            "name": [{"family": "Birch", "given": ["Bo"]}],
        }
        self.place: Json = {
            "resourceType": "Location",
            "id": "3",
            "identifier": [{"system": "urn:wards", "value": self.n}],
            "name": "Ward 3",
            "managingOrganization": {"reference": "Organization/1"},
        }
        self.condition: Json = {
            "resourceType": "Condition",
            "id": "9",
            "subject": {"reference": "Patient/77"},
            "encounter": {"reference": "Encounter/12"},
            "code": {"text": "Heart failure"},
        }
        self.coverage: Json = {
            "resourceType": "Coverage",
            "id": "4",
            "status": "active",
            "beneficiary": {"reference": "Patient/77"},
            "payor": [{"reference": "Organization/1"}],
        }

    @property
    def visit(self) -> str:
        """What finds the Encounter."""
        return f"/Encounter?identifier=urn:visits|{self.n}"

    @property
    def person(self) -> str:
        """What finds the Patient."""
        return f"/Patient?identifier=urn:mrn|{self.n}"

    def encounter(self, status: str = "in-progress", class_: str = "IMP", **more: Any) -> Json:
        return {
            "resourceType": "Encounter",
            "id": "12",
            "identifier": [{"system": "urn:visits", "value": self.n}],
            "status": status,
            "class": {"system": ACT_CODE, "code": class_},
            "subject": {"reference": "Patient/77"},
            "participant": [{"individual": {"reference": "Practitioner/5"}}],
            "location": [{"location": {"reference": "Location/3"}}],
            "serviceProvider": {"reference": "Organization/1"},
            **more,
        }

    def message(
        self,
        event: str = "admit",
        at: str = "2026-11-20T08:00:00Z",
        encounter: Json | None = None,
        **more: Any,
    ) -> Json:
        """An alert about the Encounter; an `event` such as A01 is one of HL7 v2."""
        is_adt = event[:1] == "A"
        coding = (
            {"system": ADT_SYSTEM, "code": event}
            if is_adt
            else {"system": EVENT_SYSTEM, "code": f"notification-{event}"}
        )
        header_id = str(uuid.uuid4())
        header: Json = {
            "resourceType": "MessageHeader",
            "id": header_id,
            "eventCoding": coding,
            "destination": [{"endpoint": "http://carerelay.test/fhir"}],
            "source": {"name": "EHR", "endpoint": f"{self.root}/out"},
            "sender": {"reference": f"{self.root}/Organization/1"},
            "focus": [{"reference": f"{self.root}/Encounter/12"}],
        }
        others = [encounter or self.encounter(), self.patient, self.organization, self.doctor]
        return {
            "resourceType": "Bundle",
            "id": str(uuid.uuid4()),
            "type": "message",
            "timestamp": at,
            "entry": [
                {"fullUrl": f"urn:uuid:{header_id}", "resource": header},
                *(self.entry(each) for each in (*others, self.place, self.condition)),
            ],
            **more,
        }

    def entry(self, resource: Json) -> Json:
        url = f"{self.root}/{resource['resourceType']}/{resource['id']}"
        return {"fullUrl": url, "resource": copy.deepcopy(resource)}


async def send(http: httpx.AsyncClient, message: Json, **more: Any) -> httpx.Response:
    return await http.post("/$process-message", json=message, **more)


async def taken(http: httpx.AsyncClient, message: Json, status: int = 200) -> Json:
    """The OperationOutcome of the response to a message that is taken."""
    return outcome_of(await send(http, message), message, status, "ok")


async def refused(http: httpx.AsyncClient, message: Json, status: int = 422) -> Json:
    """The OperationOutcome of the response to a message that is not."""
    return outcome_of(await send(http, message), message, status, "fatal-error")


def outcome_of(answer: httpx.Response, message: Json, status: int, code: str) -> Json:
    """A response message is R4, says whose response it is, and has the details in it."""
    assert answer.status_code == status, answer.text
    response: Json = answer.json()
    assert (response["resourceType"], response["type"]) == ("Bundle", "message")
    assert errors_in(response) == []
    head, outcome = (each["resource"] for each in response["entry"])
    sent = message["entry"][0]["resource"]
    assert head["eventCoding"] == sent["eventCoding"]
    assert head["response"]["identifier"] == sent["id"]
    assert head["response"]["code"] == code
    assert head["destination"][0]["endpoint"] == sent["source"]["endpoint"]
    assert head["response"]["details"]["reference"] == response["entry"][1]["fullUrl"]
    assert outcome["resourceType"] == "OperationOutcome"
    return dict(outcome)


async def found(http: httpx.AsyncClient, url: str) -> list[Json]:
    answer = await http.get(url)
    assert answer.status_code == 200, answer.text
    return [each["resource"] for each in answer.json().get("entry", ())]


async def one(http: httpx.AsyncClient, url: str) -> Json:
    (only,) = await found(http, url)
    return only
