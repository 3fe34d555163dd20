"""Two of each kind of organization, two patients, and callers for the tests of access.

Everything of `pn` is north's (practice), general's (hospital) and plan-a's; of `ps` it is south's, city's and plan-b's.
The agency has a Contract about the visits and conditions of `pn`, the bureau one about those of `ps` and what was
observed. Tokens are names: what proves a token is no matter here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx

from app.authentication import access_tokens
from app.authentication.caller import Caller, Role
from app.errors import Unauthorized
from app.fhir.codes import RESOURCE_TYPE
from tests.builders.practices import group, organization, patient, practitioner, ref, role
from tests.conftest import Server, make_settings, running

Resource = dict[str, Any]
EVERYTHING = ("system/*.cruds",)
# The types of records that the Contracts with the agencies give.
AGREED = {"agency": ("Condition", "Encounter"), "bureau": ("Condition", "Encounter", "Observation")}


@dataclass
class Registered:
    """A client as the registry has it."""

    organization: str | None
    role: Role
    scopes: tuple[str, ...] = EVERYTHING
    disabled: bool = False
    version: int = 1


@dataclass
class Authority(access_tokens.Authority):
    """Takes a client's id for its token, and scopes behind it for those of the token."""

    known: dict[str, Registered]
    token_url: str = "http://carerelay.test/auth/token"
    base_url: str = "http://carerelay.test/fhir"

    def __post_init__(self) -> None:
        self.clients = self  # type: ignore[assignment]

    async def close(self) -> None:
        """It has nothing open."""

    async def get(self, client_id: str) -> Registered | None:
        return self.known.get(client_id)

    async def caller(self, header: str | None) -> Caller:
        name = (header or "").removeprefix("Bearer ")
        client_id, _, scopes = name.partition(" ")
        client = self.known.get(client_id)
        if client is None:
            raise Unauthorized("Who is that?", headers={"WWW-Authenticate": "Bearer"})
        given = tuple(scopes.split()) or client.scopes
        return Caller(client_id, client.organization, client.role, given)


CLIENTS: dict[str, Registered] = {
    "admin": Registered(None, "administrator"),
    "north": Registered("Organization/north", "practice"),
    "south": Registered("Organization/south", "practice"),
    "general": Registered("Organization/general", "hospital"),
    "city": Registered("Organization/city", "hospital"),
    "plan-a": Registered("Organization/plan-a", "plan"),
    "plan-b": Registered("Organization/plan-b", "plan"),
    "agency": Registered("Organization/agency", "state"),
    "bureau": Registered("Organization/bureau", "state"),
    "registrar": Registered("Organization/registrar", "directory"),
}


@dataclass
class World:
    server: Server
    client: httpx.AsyncClient
    authority: Authority

    async def ask(
        self, who: str, method: str, url: str, body: Any = None, *, scopes: str = "", **more: Any
    ) -> httpx.Response:
        """A request of a client, by default with all scopes."""
        headers = {"Authorization": f"Bearer {who} {scopes}".strip(), **more.pop("headers", {})}
        if body is not None:
            more["json"] = body
        elif method == "POST":
            headers.setdefault("Content-Type", "application/json")
        return await self.client.request(method, url, headers=headers, **more)

    async def get(self, who: str, url: str, **more: Any) -> httpx.Response:
        return await self.ask(who, "GET", url, **more)

    async def put(self, who: str, *resources: Resource) -> None:
        for each in resources:
            answer = await self.ask(who, "PUT", f"/{each['resourceType']}/{each['id']}", each)
            assert answer.status_code in (200, 201), answer.text

    async def write(self, *resources: Resource) -> None:
        """By the administrator; returns once it was told."""
        await self.put("admin", *resources)
        await self.server.worker.drain()

    async def subscribe(self, who: str, body: Resource, **more: Any) -> str:
        """The id of a Subscription whose handshake was answered."""
        answer = await self.ask(who, "POST", "/Subscription", body, **more)
        assert answer.status_code == 201, answer.text
        await self.server.worker.drain()
        return str(answer.json()["id"])

    async def end_subscriptions(self) -> None:
        for each in await self.found("admin", "/Subscription?_count=1000"):
            await self.ask("admin", "DELETE", f"/{each}")
        await self.server.worker.drain()

    async def found(self, who: str, url: str, **more: Any) -> list[str]:
        """The references that a search finds."""
        answer = await self.get(who, url, **more)
        assert answer.status_code == 200, answer.text
        return references(answer.json())


def references(bundle: Resource) -> list[str]:
    """What a Bundle holds, OperationOutcomes aside."""
    return sorted(
        f"{each['resource']['resourceType']}/{each['resource']['id']}"
        for each in bundle.get("entry", ())
        if each.get("resource", {}).get("resourceType") not in (None, "OperationOutcome")
    )


def encounter(id_: str, who: str, hospital: str | None = None, **more: Any) -> Resource:
    made: Resource = {
        "resourceType": "Encounter",
        "id": id_,
        "status": "in-progress",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"},
        "subject": ref(f"Patient/{who}"),
        **more,
    }
    return made | ({"serviceProvider": ref(f"Organization/{hospital}")} if hospital else {})


def condition(id_: str, who: str, **more: Any) -> Resource:
    return {
        "resourceType": "Condition",
        "id": id_,
        "code": {"text": "Broken heart", "coding": [{"code": "c"}]},
        "subject": ref(f"Patient/{who}"),
        **more,
    }


def coverage(id_: str, who: str, plan: str, **more: Any) -> Resource:
    return {
        "resourceType": "Coverage",
        "id": id_,
        "status": "active",
        "beneficiary": ref(f"Patient/{who}"),
        "payor": [ref(f"Organization/{plan}")],
        **more,
    }


def designated(id_: str, agency: str, *who: str) -> Resource:
    return group(
        id_, *(f"Patient/{each}" for each in who), managingEntity=ref(f"Organization/{agency}")
    )


def contract(id_: str, group_id: str, agency: str, *types: str, plan: str = "") -> Resource:
    """An executed Contract that gives an agency records of these types about a Group's members."""
    of = [ref(f"Group/{group_id}")] + ([ref(f"Organization/{plan}")] if plan else [])
    asset = {"coding": [{"system": RESOURCE_TYPE, "code": each} for each in types]}
    return {
        "resourceType": "Contract",
        "id": id_,
        "status": "executed",
        "subject": of,
        "authority": [ref(f"Organization/{agency}")],
        **({"term": [{"offer": {"text": "-"}, "asset": [{"type": [asset]}]}]} if types else {}),
    }


def security(code: str) -> Resource:
    system = "Confidentiality" if len(code) == 1 else "ActCode"
    label = {"system": f"http://terminology.hl7.org/CodeSystem/v3-{system}", "code": code}
    return {"security": [label]}


def people() -> list[Resource]:
    """What there is in the world."""
    made: list[Resource] = [
        organization(each.partition("/")[2])
        for client in CLIENTS.values()
        if (each := client.organization)
    ]
    for side, hospital, plan in (("n", "general", "plan-a"), ("s", "city", "plan-b")):
        practice = {"n": "north", "s": "south"}[side]
        made += [
            practitioner(f"dr-{side}"),
            role(f"role-{side}", f"dr-{side}", practice),
            patient(
                f"p{side}",
                ref(f"PractitionerRole/role-{side}"),
                identifier=[{"system": "urn:mrn", "value": side}],
                birthDate="1950-01-01",
            )
            | {"name": [{"family": f"Family{side}"}]},
            encounter(f"e{side}", f"p{side}", hospital),
            condition(f"c{side}", f"p{side}"),
            coverage(f"v{side}", f"p{side}", plan),
        ]
    return [
        *made,
        designated("list-n", "agency", "pn"),
        designated("list-s", "bureau", "ps"),
        contract("with-agency", "list-n", "agency", *AGREED["agency"]),
        contract("with-bureau", "list-s", "bureau", *AGREED["bureau"]),
    ]


@asynccontextmanager
async def world(mongod: str, **changes: Any) -> AsyncIterator[World]:
    """A server with authorization on, and everybody in it."""
    authority = Authority({name: replace(each) for name, each in CLIENTS.items()})
    settings = make_settings(mongod, auth="smart", **changes)
    async with running(settings, authority) as (server, client):
        found = World(server, client, authority)
        await found.put("admin", *people())
        yield found
