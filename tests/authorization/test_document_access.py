"""Documents: whoever one was made for reads it, by what attaches it, while the patient is its own.

A notice of a care plan names its document, one of a discharge the hospital's papers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.fhir.ids import new_id
from tests.builders.access_world import CLIENTS, World, encounter, security, world as a_world
from tests.builders.practices import patient, ref

pytestmark = pytest.mark.mongo

NORTH, SOUTH = ref("PractitionerRole/role-n"), ref("PractitionerRole/role-s")
HOSPITAL = {"general", "city"}


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod, plan_quiet_period=0) as found:
        yield found


async def readers(world: World, reference: str) -> set[str]:
    """The clients, administrators aside, that read and find it: by each door the same ones."""
    type_, _, id_ = reference.partition("/")
    found: set[str] = set()
    for who in sorted(set(CLIENTS) - {"admin"}):
        doors = {
            (await world.get(who, f"/{reference}")).status_code == 200,
            (await world.get(who, f"/{reference}/_history/1")).status_code == 200,
            (await world.get(who, f"/{type_}?_id={id_}")).json().get("total") == 1,
        }
        assert len(doors) == 1, (who, doors)
        found |= {who} if doors == {True} else set()
    return found


def paper(id_: str, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Binary",
        "id": id_,
        "contentType": "text/plain",
        "data": "cGFwZXI=",
        **more,
    }


def attaching(id_: str, patient_id: str, url: str, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "DocumentReference",
        "id": id_,
        "status": "current",
        "subject": ref(f"Patient/{patient_id}"),
        "content": [{"attachment": {"contentType": "text/plain", "url": url}}],
        **more,
    }


async def test_the_document_of_a_care_plan_is_its_patients_practices_and_plans(
    world: World,
) -> None:
    """It follows the patient: to the next practice, and away from the one before."""
    about = {"subject": ref("Patient/pn"), "status": "active", "intent": "plan"}
    await world.put("plan-a", {"resourceType": "CarePlan", "id": "with-document", **about})
    await world.server.engine.drain()
    entries = (await world.get("north", "/DocumentReference?patient=pn")).json()["entry"]
    (index,) = [each["resource"] for each in entries]
    url = index["content"][0]["attachment"]["url"]
    document = "/".join(url.split("/")[-2:])
    assert await readers(world, document) == {"north", "plan-a"}
    assert (await world.get("north", f"/{document}")).json()["type"] == "document"
    for method, body in (
        ("DELETE", None),
        ("PUT", {"resourceType": "Bundle", "type": "collection"}),
    ):
        given = None if body is None else {**body, "id": document.partition("/")[2]}
        answer = await world.ask("north", method, f"/{document}", given)
        assert answer.status_code in (204, 403)
    assert (await world.get("admin", f"/{document}")).status_code == 200
    moved = (await world.get("admin", "/Patient/pn")).json()
    await world.put("admin", {**moved, "generalPractitioner": [SOUTH]})
    try:
        assert await readers(world, document) == {"south", "plan-a"}
    finally:
        await world.put("admin", moved)


async def test_a_hospitals_paper_goes_with_what_attaches_it(world: World) -> None:
    """Its labels are its own, and what it was replaced by or loses is read no more."""
    name = new_id()
    await world.put("admin", patient(name, NORTH), encounter(name, name, "general"))
    await world.put("general", paper(name), paper(f"{name}-r", meta=security("R")))
    assert await readers(world, f"Binary/{name}") == {"general"}
    index = attaching(name, name, f"Binary/{name}")
    labelled = attaching(f"{name}-r", name, f"Binary/{name}-r")
    await world.put("general", index, labelled)
    assert await readers(world, f"Binary/{name}") == {"general", "north"}
    assert await readers(world, f"Binary/{name}-r") == {"general"}
    assert (await world.get("general", f"/DocumentReference/{name}")).status_code == 200
    await world.put("general", {**index, "meta": security("R")})
    assert await readers(world, f"Binary/{name}") == {"general"}
    await world.put("general", index)
    await world.ask("general", "DELETE", f"/DocumentReference/{name}")
    assert await readers(world, f"Binary/{name}") == {"general"}


async def test_nobody_reaches_a_paper_by_naming_it(world: World) -> None:
    """Neither by a DocumentReference of its own nor by changing one that its writer made."""
    name = new_id()
    await world.put("admin", patient(name, NORTH), encounter(name, name, "general"))
    await world.put("general", paper(name), paper(f"{name}-2"))
    hidden = f"Binary/{name}"
    await world.put("north", attaching(f"{name}-mine", name, hidden))
    assert await readers(world, hidden) == {"general"}
    index = attaching(f"{name}-2", name, f"Binary/{name}-2")
    await world.put("general", index)
    assert await readers(world, f"Binary/{name}-2") == {"general", "north"}
    await world.put("north", attaching(f"{name}-2", name, hidden))
    assert await readers(world, hidden) == {"general"}
    # Nor by one about somebody else's patient.
    await world.put("general", attaching(f"{name}-3", name, f"http://elsewhere.example/{hidden}"))
    assert await readers(world, hidden) == {"general"}
