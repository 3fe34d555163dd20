"""A member with a care plan, and a practice that wants to hear of it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx

from tests.builders.receiver import Received, Receiver, receiving
from tests.builders.subscriptions import topic_based
from tests.conftest import Server, make_settings, running

BASE = "http://carerelay.test/fhir"
CHANGE = "http://carerelay.example/SubscriptionTopic/careplan-change"
REVIEW = "http://carerelay.example/SubscriptionTopic/careplan-annual-review"

Json = dict[str, Any]


def reference(literal: str, display: str | None = None) -> Json:
    return {"reference": literal} | ({"display": display} if display else {})


def patient(id_: str = "ann") -> Json:
    return {
        "resourceType": "Patient",
        "id": id_,
        "name": [{"given": ["Ann"], "family": "Winter"}],
        "birthDate": "1950-03-04",
    }


def goal(id_: str, text: str, status: str = "active", **more: Any) -> Json:
    return {
        "resourceType": "Goal",
        "id": id_,
        "lifecycleStatus": status,
        "description": {"text": text},
        "subject": reference("Patient/ann"),
        **more,
    }


def achieved(code: str = "achieved") -> Json:
    system = "http://terminology.hl7.org/CodeSystem/goal-achievement"
    return {"coding": [{"system": system, "code": code}]}


def care_team(*participants: Json, id_: str = "team", **more: Any) -> Json:
    return {
        "resourceType": "CareTeam",
        "id": id_,
        "status": "active",
        "subject": reference("Patient/ann"),
        "participant": list(participants),
        **more,
    }


def participant(member: str, role: str, **more: Any) -> Json:
    return {"member": reference(member), "role": [{"text": role}], **more}


def plan(status: str = "active", goals: tuple[str, ...] = ("walk",), **more: Any) -> Json:
    return {
        "resourceType": "CarePlan",
        "id": "plan",
        "status": status,
        "intent": "plan",
        "title": "Living with heart failure",
        "subject": reference("Patient/ann"),
        **({"goal": [reference(f"Goal/{each}") for each in goals]} if goals else {}),
        "careTeam": [reference("CareTeam/team")],
        **more,
    }


def tier(text: str, status: str = "active") -> Json:
    category = {"coding": [{"system": "http://carerelay.example/CodeSystem/flag-category"}]}
    category["coding"][0]["code"] = "risk-tier"
    return {
        "resourceType": "Flag",
        "id": "tier",
        "status": status,
        "category": [category],
        "code": {"text": text},
        "subject": reference("Patient/ann"),
    }


@dataclass
class Desk:
    """A server, a client of it, and a practice's endpoint, for one member of its own.

    Resources are named as if there were this member alone; `put` and `ref` give them ids of its own,
    except where an id has a hyphen: that is the server's.
    """

    server: Server
    client: httpx.AsyncClient
    receiver: Receiver
    member: str

    def ref(self, literal: str) -> str:
        """The reference as it is stored."""
        return f"{literal}-{self.member}"

    def _owned(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._owned(child) for child in value]
        if not isinstance(value, dict):
            return value
        return {
            key: self.ref(child)
            if key in ("id", "reference") and isinstance(child, str) and "-" not in child
            else self._owned(child)
            for key, child in value.items()
        }

    async def put(self, *resources: Json) -> None:
        for given in resources:
            resource = self._owned(given)
            answer = await self.client.put(
                f"{resource['resourceType']}/{resource['id']}", json=resource
            )
            assert answer.status_code in (200, 201), answer.text

    async def settle(self) -> list[Received]:
        """Everything that is due has happened; returns all notices received so far."""
        await self.server.engine.drain()
        await self.server.worker.drain()
        return self.receiver.events

    async def after(self, **span: float) -> list[Received]:
        """The same once this time has passed."""
        await self.server.engine.drain()
        self.server.clock.advance(timedelta(**span))
        return await self.settle()

    async def subscribe(self, topic: str, content: str = "full-resource") -> None:
        draft = topic_based(
            f"patient={self.ref('Patient/ann')}", endpoint=self.receiver.url, content=content
        )
        draft |= {"id": f"{topic.rpartition('/')[2]}-{self.member}", "criteria": topic}
        answer = await self.client.put(f"Subscription/{draft['id']}", json=draft)
        assert answer.status_code == 201, answer.text
        await self.server.worker.drain()

    async def begin(self, member: Json | None = None, **more: Any) -> None:
        """The member, a team, a goal and an active plan; told."""
        await self.put(
            member or patient(),
            {"resourceType": "Practitioner", "id": "rn", "name": [{"text": "Rosa Nunez RN"}]},
            care_team(participant("Practitioner/rn", "Nurse care manager")),
            goal("walk", "Walk twenty minutes a day"),
            plan(**more),
        )
        await self.after(seconds=900)

    async def get(self, path: str) -> Json:
        answer = await self.client.get(path)
        assert answer.status_code == 200, answer.text
        found: Json = answer.json()
        return found

    async def end(self) -> None:
        """Nothing more happens to this member, however far later tests move the calendar."""
        for topic in (CHANGE, REVIEW):
            await self.client.delete(f"Subscription/{topic.rpartition('/')[2]}-{self.member}")
        await self.server.engine.drain()
        timers = self.server.mongo.collection("timers")
        await timers.delete_many({"key": self.ref("plan")})


Pair = tuple[Server, httpx.AsyncClient]


@asynccontextmanager
async def serving(mongod: str, quiet: int = 900) -> AsyncIterator[Pair]:
    """A server whose calendar can be moved."""
    settings = make_settings(mongod, base_url=BASE, test_clock=True, plan_quiet_period=quiet)
    async with running(settings) as pair:
        yield pair


@asynccontextmanager
async def desk(pair: Pair) -> AsyncIterator[Desk]:
    """A member of this test's own, and a practice subscribed to changes of her plans."""
    async with receiving() as receiver:
        at = Desk(*pair, receiver, uuid.uuid4().hex[:8])
        await at.subscribe(CHANGE)
        yield at
        await at.end()


def resources(notice: Received, resource_type: str) -> list[Json]:
    """The resources of a type that a notice carries."""
    found = [entry.get("resource", {}) for entry in notice.json["entry"]]
    return [each for each in found if each.get("resourceType") == resource_type]


def trigger(notice: Received) -> str:
    parts = {part["name"]: part for part in notice.parameter("notification-event")}
    return str(parts["trigger"]["valueCoding"]["code"])


def words(notice: Received) -> str:
    """What the notice says, as its reader sees it."""
    (communication,) = resources(notice, "Communication")
    return str(communication["payload"][0]["contentString"])
