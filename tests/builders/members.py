"""Members, their enrolments, assessments and plans, with days counted from the server's today."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import httpx

from tests.conftest import Server

CODES = "http://carerelay.example/CodeSystem/"
EXTENSIONS = "http://carerelay.example/StructureDefinition/"
HRA = "http://carerelay.example/Questionnaire/health-risk-assessment|1"
Resource = dict[str, Any]


def concept(system: str, code: str) -> Resource:
    """A CodeableConcept; `system` is one of ours, or a whole URL."""
    return {"coding": [{"system": system if ":" in system else CODES + system, "code": code}]}


def codes(concepts: Any) -> list[str]:
    listed = concepts if isinstance(concepts, list) else [concepts or {}]
    return [coding["code"] for each in listed for coding in each.get("coding", ())]


@dataclass(frozen=True)
class Member:
    """A patient of a test's own, on a server whose calendar the test moves."""

    server: Server
    client: httpx.AsyncClient
    id: str

    @classmethod
    async def new(cls, server: Server, client: httpx.AsyncClient) -> Member:
        member = cls(server, client, f"m{uuid.uuid4().hex[:12]}")
        await member.put({"resourceType": "Patient"}, member.id)
        return member

    @property
    def patient(self) -> Resource:
        return {"reference": f"Patient/{self.id}"}

    def date(self, days: int = 0) -> date:
        return self.server.clock.now().date() + timedelta(days=days)

    def day(self, days: int = 0) -> str:
        """So many days from the server's today."""
        return self.date(days).isoformat()

    async def put(self, resource: Mapping[str, Any], name: str) -> Resource:
        """Store it, and wait until the hub has done what follows."""
        resource_id = name if name == self.id else f"{self.id}-{name}"
        body = {**resource, "id": resource_id}
        response = await self.client.put(f"/{body['resourceType']}/{resource_id}", json=body)
        assert response.status_code in (200, 201), response.text
        await self.server.engine.drain()
        stored: Resource = response.json()
        return stored

    async def delete(self, resource: Resource) -> None:
        response = await self.client.delete(f"/{resource['resourceType']}/{resource['id']}")
        assert response.status_code == 204, response.text
        await self.server.engine.drain()

    async def days_pass(self, days: int) -> None:
        self.server.clock.advance(timedelta(days=days))
        await self.server.engine.drain()

    async def found(self, resource_type: str, **query: str) -> list[Resource]:
        parameters = {"patient" if resource_type != "Flag" else "subject": f"Patient/{self.id}"}
        response = await self.client.get(f"/{resource_type}", params={**parameters, **query})
        assert response.status_code == 200, response.text
        return [entry["resource"] for entry in response.json().get("entry", ())]

    async def tasks(self, system: str, code: str) -> list[Resource]:
        """The member's Tasks of a code, those that are due first in front."""
        found = await self.found("Task", code=f"{CODES}{system}|{code}")
        return sorted(found, key=lambda task: task.get("restriction", {}).get("period", {})["end"])

    async def reviews(self) -> list[Resource]:
        """The questions whether to enrol the member again, in the order they were asked."""
        found = await self.found("Task", code=f"{CODES}review-reason|re-enrolment")
        return sorted(found, key=lambda task: task["authoredOn"])

    async def enrol(self, name: str = "episode", **changes: Any) -> Resource:
        """An EpisodeOfCare of case management, active from today where not said otherwise."""
        return await self.put(
            {
                "resourceType": "EpisodeOfCare",
                "status": "active",
                "type": [concept("episode-type", "case-management")],
                "patient": self.patient,
                "period": {"start": self.day()},
                **changes,
            },
            name,
        )

    async def finish(self, reason: str = "goals-met", days_ago: int = 10) -> Resource:
        """An enrolment that has ended."""
        return await self.enrol(
            status="finished",
            period={"start": self.day(-200), "end": self.day(-days_ago)},
            extension=[
                {
                    "url": f"{EXTENSIONS}episode-end-reason",
                    "valueCodeableConcept": concept("episode-end-reason", reason),
                }
            ],
        )

    async def assess(self, name: str = "hra", days: int = 0, **changes: Any) -> Resource:
        """A completed health risk assessment."""
        return await self.put(
            {
                "resourceType": "QuestionnaireResponse",
                "status": "completed",
                "questionnaire": HRA,
                "subject": self.patient,
                "authored": self.day(days),
                **changes,
            },
            name,
        )

    async def refer(self, name: str = "referral", **changes: Any) -> Resource:
        """A referral to case management."""
        return await self.put(
            {
                "resourceType": "ServiceRequest",
                "status": "active",
                "intent": "order",
                "category": [concept("service-category", "case-management")],
                "subject": self.patient,
                **changes,
            },
            name,
        )

    async def decide(self, status: str, kind: str, days: int = 0) -> Resource:
        """A Consent about case management, given so many days from today."""
        return await self.put(
            {
                "resourceType": "Consent",
                "status": status,
                "scope": concept("http://terminology.hl7.org/CodeSystem/consentscope", "treatment"),
                "category": [concept("consent-category", "case-management")],
                "patient": self.patient,
                "dateTime": self.day(days),
                "policy": [{"uri": "http://example.org/policy"}],
                "provision": {"type": kind},
            },
            f"consent{days}",
        )
