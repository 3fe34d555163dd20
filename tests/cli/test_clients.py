"""Real clients against a live server: what others wrote by the specification, not by our reading of it.

fhirpy's `patch` and `get_or_create` speak another server's dialect and are left out.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from fhirclient import client as smart, server as smart_server  # type: ignore[import-untyped]
from fhirclient.models import (  # type: ignore[import-untyped]
    bundle as smart_bundle,
    encounter as smart_encounter,
    observation as smart_observation,
    patient as smart_patient,
)
from fhirpy import AsyncFHIRClient
from fhirpy.base.exceptions import MultipleResourcesFound, OperationOutcome, ResourceNotFound

from tests.processes import environment, started, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.processes]

SYSTEM = "http://carerelay.example/sid/test"
CLASS = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"}


@pytest.fixture(scope="module")
def base(mongod: str) -> Iterator[str]:
    """The FHIR base of a server in a process of its own."""
    settings = environment(mongodb_uri=mongod, mongodb_database=f"t{uuid.uuid4().hex[:12]}")
    command = ("serve", "--port", "0")
    with started("FHIR base: ", *command, env=settings) as (_, address):
        wait_for(f"{address}/metadata")
        yield address


@pytest.fixture
def fhirpy(base: str) -> AsyncFHIRClient:
    return AsyncFHIRClient(base)


@pytest.fixture
def batch() -> str:
    """An identifier for what one test creates."""
    return uuid.uuid4().hex


def patient(batch: str, family: str, **more: Any) -> dict[str, Any]:
    return {
        "identifier": [{"system": SYSTEM, "value": batch}],
        "name": [{"family": family, "given": ["Test"]}],
        **more,
    }


# fhirpy


async def test_fhirpy_creates_saves_and_reads(fhirpy: AsyncFHIRClient, batch: str) -> None:
    created = fhirpy.resource("Patient", **patient(batch, "Oakenshade"))
    await created.save()
    assert created["id"]
    assert created["meta"]["versionId"] == "1"
    created["name"][0]["family"] = "Thistlewick"
    await created.save()
    read = await fhirpy.reference("Patient", created["id"]).to_resource()
    assert read["name"][0]["family"] == "Thistlewick"
    assert read["meta"]["versionId"] == "2"
    assert read.serialize() == created.serialize()


async def test_fhirpy_updates_by_id_and_by_criteria(fhirpy: AsyncFHIRClient, batch: str) -> None:
    created = fhirpy.resource("Patient", **patient(batch, "Oakenshade"), id=f"p-{batch}")
    await created.update()  # an update that creates
    matching = fhirpy.resources("Patient").search(identifier=f"{SYSTEM}|{batch}")
    replacement = fhirpy.resource("Patient", **patient(batch, "Thistlewick"))
    updated, is_new = await matching.update(replacement)
    assert (updated["id"], is_new) == (f"p-{batch}", False)
    await created.refresh()
    assert created["name"][0]["family"] == "Thistlewick"
    assert (await matching.get())["meta"]["versionId"] == "2"


async def test_fhirpy_searches_counts_sorts_and_pages(fhirpy: AsyncFHIRClient, batch: str) -> None:
    names = [f"Family{number:02}" for number in range(25)]
    for name in reversed(names):
        await fhirpy.resource("Patient", **patient(batch, name)).save()
    found = fhirpy.resources("Patient").search(identifier=f"{SYSTEM}|{batch}")
    everyone = await found.sort("family").limit(4).fetch_all()
    assert [each["name"][0]["family"] for each in everyone] == names
    assert len(await found.limit(4).fetch()) == 4
    walked = [each["name"][0]["family"] async for each in found.sort("-family").limit(7)]
    assert walked == names[::-1]
    one = await found.search(family="Family07").first()
    assert one is not None
    assert one["name"][0]["family"] == "Family07"
    with pytest.raises(MultipleResourcesFound):
        await found.get()
    assert await fhirpy.resources("Patient").search(identifier="nobody").first() is None


async def test_fhirpy_counts_where_the_server_is_lenient(base: str, batch: str) -> None:
    """It asks with a parameter that is no FHIR."""
    lenient = AsyncFHIRClient(base, extra_headers={"prefer": "handling=lenient"})
    for name in ("Oakenshade", "Thistlewick"):
        await lenient.resource("Patient", **patient(batch, name)).save()
    found = lenient.resources("Patient").search(identifier=f"{SYSTEM}|{batch}")
    assert await found.count() == 2


async def test_fhirpy_follows_references(fhirpy: AsyncFHIRClient, batch: str) -> None:
    subject = fhirpy.resource("Patient", **patient(batch, "Oakenshade"))
    await subject.save()
    stay = fhirpy.resource(
        "Encounter", **{"status": "in-progress", "class": CLASS, "subject": subject.to_reference()}
    )
    await stay.save()
    read = await fhirpy.reference("Encounter", stay["id"]).to_resource()
    reference = fhirpy.reference(reference=read["subject"]["reference"])
    assert (await reference.to_resource())["id"] == subject["id"]
    found = await fhirpy.resources("Encounter").search(subject=subject.reference).fetch()
    assert [each["id"] for each in found] == [stay["id"]]


async def test_fhirpy_deletes(fhirpy: AsyncFHIRClient, batch: str) -> None:
    created = fhirpy.resource("Patient", **patient(batch, "Oakenshade"))
    await created.save()
    await created.delete()
    with pytest.raises(ResourceNotFound):
        await fhirpy.get("Patient", created["id"])
    assert await fhirpy.resources("Patient").search(identifier=f"{SYSTEM}|{batch}").fetch() == []


async def test_fhirpy_understands_our_refusals(fhirpy: AsyncFHIRClient, batch: str) -> None:
    invalid = fhirpy.resource("Patient", **patient(batch, "Oakenshade", gender="banana"))
    with pytest.raises(OperationOutcome) as refusal:
        await invalid.save()
    assert refusal.value.resource["issue"][0]["expression"] == ["Patient.gender"]
    assert await invalid.is_valid() is False
    valid = fhirpy.resource("Patient", **patient(batch, "Oakenshade"))
    assert await valid.is_valid() is True


async def test_fhirpy_runs_operations_and_transactions(fhirpy: AsyncFHIRClient, batch: str) -> None:
    urn = f"urn:uuid:{uuid.uuid4()}"
    bundle = fhirpy.resource(
        "Bundle",
        type="transaction",
        entry=[
            {
                "fullUrl": urn,
                "resource": {"resourceType": "Patient", **patient(batch, "Oakenshade")},
                "request": {"method": "POST", "url": "Patient"},
            },
            {
                "resource": {
                    "resourceType": "Encounter",
                    "status": "planned",
                    "class": CLASS,
                    "subject": {"reference": urn},
                },
                "request": {"method": "POST", "url": "Encounter"},
            },
        ],
    )
    answer = await fhirpy.execute("", data=bundle.serialize())
    assert [entry["response"]["status"] for entry in answer["entry"]] == ["201", "201"]
    id_ = answer["entry"][0]["resource"]["id"]
    everything = await fhirpy.reference("Patient", id_).execute("$everything", method="get")
    assert {e["resource"]["resourceType"] for e in everything["entry"]} == {"Patient", "Encounter"}


# fhirclient (SMART)


@pytest.fixture
def fhirclient(base: str) -> smart.FHIRClient:
    return smart.FHIRClient(settings={"app_id": "carerelay-tests", "api_base": base})


@pytest.fixture
async def family(fhirpy: AsyncFHIRClient, batch: str) -> list[str]:
    """The ids of five Patients, in the order of their names."""
    ids = []
    for number in range(5):
        more = {"birthDate": f"194{number}-05-14", "gender": "female"}
        created = fhirpy.resource("Patient", **patient(batch, f"Family{number}", **more))
        await created.save()
        ids.append(created["id"])
    return ids


def test_fhirclient_needs_no_authorization_here(fhirclient: smart.FHIRClient) -> None:
    assert fhirclient.prepare()
    assert fhirclient.ready
    statement = fhirclient.server.capabilityStatement
    assert statement.fhirVersion == "4.0.1"


async def test_fhirclient_reads(fhirclient: smart.FHIRClient, family: list[str]) -> None:
    read = smart_patient.Patient.read(family[2], fhirclient.server)
    assert read.name[0].family == "Family2"
    assert read.birthDate.isostring == "1942-05-14"
    assert fhirclient.human_name(read.name[0]) == "Test Family2"
    with pytest.raises(smart_server.FHIRNotFoundException):
        smart_patient.Patient.read("none-such", fhirclient.server)


async def test_fhirclient_searches_and_pages(
    fhirclient: smart.FHIRClient, family: list[str], batch: str
) -> None:
    struct = {"identifier": f"{SYSTEM}|{batch}", "_sort": "family", "_count": "2"}
    search = smart_patient.Patient.where(struct=struct)
    found = list(search.perform_resources_iter(fhirclient.server))
    assert [each.id for each in found] == family
    pages = list(search.perform_iter(fhirclient.server))
    assert all(isinstance(page, smart_bundle.Bundle) for page in pages)
    assert [len(page.entry) for page in pages] == [2, 2, 1]
    born = {"identifier": f"{SYSTEM}|{batch}", "birthdate": "ge1943"}
    younger = smart_patient.Patient.where(struct=born)
    found = list(younger.perform_resources_iter(fhirclient.server))
    assert {each.id for each in found} == set(family[3:])


async def test_fhirclient_takes_every_kind_of_value(
    fhirclient: smart.FHIRClient, fhirpy: AsyncFHIRClient, family: list[str]
) -> None:
    """Its models are strict: what they parse is R4 as others understand it."""
    reference = {"reference": f"Patient/{family[0]}"}
    observed = fhirpy.resource(
        "Observation",
        status="final",
        code={"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
        subject=reference,
        effectiveDateTime="2026-05-14T10:00:00-04:00",
        valueQuantity={"value": 61.50, "unit": "/min"},
    )
    await observed.save()
    struct = {"subject": reference["reference"], "code": "http://loinc.org|8867-4"}
    search = smart_observation.Observation.where(struct=struct)
    (found,) = search.perform_resources_iter(fhirclient.server)
    assert (found.id, found.valueQuantity.value) == (observed["id"], 61.5)
    assert found.effectiveDateTime.isostring == "2026-05-14T10:00:00-04:00"
    none = smart_encounter.Encounter.where(struct={"subject": reference["reference"]})
    assert list(none.perform_resources_iter(fhirclient.server)) == []
