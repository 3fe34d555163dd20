"""Practices, patients and rosters for the tests of routing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from app.fhir.codes import (
    ATTRIBUTION_PERIOD,
    GROUP_CHARACTERISTIC,
    GROUP_KIND,
    PCP,
    PCP_PANEL,
    SNOMED,
)

Resource = dict[str, Any]

_TODAY = datetime.now(UTC).date()
PAST = "2020-01-01"
YESTERDAY = (_TODAY - timedelta(days=1)).isoformat()
TOMORROW = (_TODAY + timedelta(days=1)).isoformat()
CONNECTION = "http://terminology.hl7.org/CodeSystem/endpoint-connection-type"


async def put(client: httpx.AsyncClient, *resources: Resource) -> None:
    for resource in resources:
        response = await client.put(f"/{resource['resourceType']}/{resource['id']}", json=resource)
        assert response.status_code in (200, 201), response.text


def ref(reference: str) -> Resource:
    return {"reference": reference}


def dated(reference: str, start: str, end: str | None = None) -> Resource:
    """A reference with the period of its attribution."""
    period = {"start": start, **({"end": end} if end else {})}
    return {"extension": [{"url": ATTRIBUTION_PERIOD, "valuePeriod": period}], **ref(reference)}


def patient(name: str, *practitioners: Resource, **more: Any) -> Resource:
    made: Resource = {"resourceType": "Patient", "id": name, **more}
    if practitioners:
        made["generalPractitioner"] = list(practitioners)
    return made


def practitioner(name: str) -> Resource:
    return {"resourceType": "Practitioner", "id": name, "name": [{"family": name}]}


def organization(name: str, *endpoints: str) -> Resource:
    made: Resource = {"resourceType": "Organization", "id": name, "name": f"Practice {name}"}
    if endpoints:
        made["endpoint"] = [ref(f"Endpoint/{each}") for each in endpoints]
    return made


def role(name: str, doctor: str, practice: str, *endpoints: str, active: bool = True) -> Resource:
    """A PractitionerRole; ids, or whole references."""

    def of(kind: str, id_: str) -> Resource:
        return ref(id_ if "/" in id_ else f"{kind}/{id_}")

    made = {
        "resourceType": "PractitionerRole",
        "id": name,
        "active": active,
        "practitioner": of("Practitioner", doctor),
        "organization": of("Organization", practice),
        "telecom": [{"system": "phone", "value": "555-0100"}],
    }
    if endpoints:
        made["endpoint"] = [of("Endpoint", each) for each in endpoints]
    return made


def endpoint(
    name: str,
    address: str = "http://127.0.0.1:9/hook",
    *,
    status: str = "active",
    connection: str = "hl7-fhir-rest",
) -> Resource:
    return {
        "resourceType": "Endpoint",
        "id": name,
        "status": status,
        "connectionType": {"system": CONNECTION, "code": connection},
        "payloadType": [{"text": "Notices"}],
        "address": address,
    }


def care_team(name: str, of: str, member: str, code: str = "453231000124104") -> Resource:
    """An active team with one participant, the PCP."""
    return {
        "resourceType": "CareTeam",
        "id": name,
        "status": "active",
        "subject": ref(f"Patient/{of}"),
        "participant": [
            {"role": [{"coding": [{"system": SNOMED, "code": code}]}], "member": ref(member)}
        ],
    }


def group(name: str, *members: str, **more: Any) -> Resource:
    return {
        "resourceType": "Group",
        "id": name,
        "type": "person",
        "actual": True,
        "member": [{"entity": ref(each)} for each in members],
        **more,
    }


def panel(name: str, manager: str, *members: str, of: str | None = None) -> Resource:
    """A roster; `of` names the PCP where the manager is not the one."""
    made = group(
        name,
        *members,
        code={"coding": [{"system": GROUP_KIND, "code": PCP_PANEL}]},
        managingEntity=ref(manager),
    )
    if of is not None:
        made["characteristic"] = [
            {
                "code": {"coding": [{"system": GROUP_CHARACTERISTIC, "code": PCP}]},
                "valueReference": ref(of),
                "exclude": False,
            }
        ]
    return made
