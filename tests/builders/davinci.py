"""Subscriptions to Da Vinci messages, and a hospital stay with all that belongs to it."""

from __future__ import annotations

from typing import Any

from app.fhir.codes import CHANNEL_TYPE, DAVINCI_ALERTS
from app.fhir.ids import new_id
from app.subscriptions.matching.channel_terms import CHANNEL_TYPE as CHANNEL_TYPE_EXTENSION
from tests.builders.subscriptions import encounter, topic_based

Json = dict[str, Any]
TOPICS = "http://carerelay.example/SubscriptionTopic/"
PARTICIPATION = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"


def alerts(endpoint: str, topic: str = "encounter-admission", **more: Any) -> Json:
    """A Subscription that asks for Da Vinci messages."""
    coding = {"system": CHANNEL_TYPE, "code": DAVINCI_ALERTS}
    asked = {"extension": [{"url": CHANNEL_TYPE_EXTENSION, "valueCoding": coding}]}
    given = {"content": "full-resource", "type": "message", "_type": asked, **more}
    return {**topic_based(endpoint=endpoint, **given), "criteria": TOPICS + topic}


def ref(reference: str, **more: Any) -> Json:
    return {"reference": reference, **more}


class Hospital:
    """A stay with all that belongs to it, under ids of its own."""

    def __init__(self) -> None:
        self.n = new_id()
        n = self.n
        self.patient: Json = {
            "resourceType": "Patient",
            "id": f"p-{n}",
            "identifier": [{"system": "urn:mrn", "value": n}],
            "name": [{"family": "Meadow", "given": ["Ada"]}],
            "gender": "female",
            "generalPractitioner": [ref("Practitioner/elsewhere", display="Dr. Elsewhere")],
        }
        self.doctor: Json = {
            "resourceType": "Practitioner",
            "id": f"d-{n}",
            "identifier": [{"system": "http://hl7.org/fhir/sid/us-npi", "value": "9999999995"}],
            "name": [{"family": "Birch"}],
        }
        self.role: Json = {
            "resourceType": "PractitionerRole",
            "id": f"r-{n}",
            "practitioner": ref(f"Practitioner/d-{n}"),
            "organization": ref(f"Organization/o-{n}"),
        }
        self.place: Json = {
            "resourceType": "Location",
            "id": f"l-{n}",
            "name": "Ward 3",
            "managingOrganization": ref(f"Organization/o-{n}"),
        }
        self.organization: Json = {
            "resourceType": "Organization",
            "id": f"o-{n}",
            "active": True,
            "name": "General Hospital",
            "endpoint": [ref("Endpoint/nowhere")],
        }
        self.condition: Json = {
            "resourceType": "Condition",
            "id": f"c-{n}",
            "subject": ref(f"Patient/p-{n}"),
            "encounter": ref(f"Encounter/e-{n}"),
            "code": {"text": "Heart failure"},
        }
        self.coverage: Json = {
            "resourceType": "Coverage",
            "id": f"v-{n}",
            "status": "active",
            "beneficiary": ref(f"Patient/p-{n}"),
            "payor": [ref(f"Organization/payor-{n}"), ref("Organization/nowhere")],
        }
        self.payor: Json = {
            "resourceType": "Organization",
            "id": f"payor-{n}",
            "active": True,
            "name": "Plan",
        }

    @property
    def directory(self) -> list[Json]:
        people = [self.patient, self.doctor, self.role, self.place, self.organization]
        return [*people, self.condition, self.coverage, self.payor]

    def stay(self, status: str = "in-progress", class_: str = "IMP", **more: Any) -> Json:
        attending = {"coding": [{"system": PARTICIPATION, "code": "ATND"}]}
        given = {
            "id": f"e-{self.n}",
            "participant": [
                {"type": [attending], "individual": ref(f"PractitionerRole/r-{self.n}")},
                {"individual": ref("RelatedPerson/daughter")},
            ],
            "location": [{"location": ref(f"Location/l-{self.n}")}],
            "serviceProvider": ref(f"Organization/o-{self.n}"),
            "diagnosis": [{"condition": ref(f"Condition/c-{self.n}")}],
            **more,
        }
        made = encounter(status, class_, f"p-{self.n}", **given)
        return {name: value for name, value in made.items() if value is not None}
