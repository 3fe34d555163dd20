"""fhirpy against a live server.

Its `get_or_create` and its `patch` speak another server's dialect: they are refused with what to send instead.
"""

from __future__ import annotations

import asyncio
import uuid

import pytest
from fhirpy import AsyncFHIRClient
from fhirpy.base.exceptions import (
    AuthorizationError,
    MultipleResourcesFound,
    OperationOutcome,
    ResourceNotFound,
)

from tests.clients.conftest import CLASS, SYSTEM, Smart, patient

pytestmark = [pytest.mark.slow, pytest.mark.processes]


@pytest.fixture
def fhirpy(base: str) -> AsyncFHIRClient:
    return AsyncFHIRClient(base)


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


async def test_fhirpy_counts(fhirpy: AsyncFHIRClient, batch: str) -> None:
    """It asks with a parameter that is no FHIR."""
    for name in ("Oakenshade", "Thistlewick"):
        await fhirpy.resource("Patient", **patient(batch, name)).save()
    found = fhirpy.resources("Patient").search(identifier=f"{SYSTEM}|{batch}")
    assert await found.count() == 2


async def test_fhirpy_includes(fhirpy: AsyncFHIRClient, batch: str) -> None:
    subject = await fhirpy.resource("Patient", **patient(batch, "Oakenshade")).save()
    stay = {"status": "in-progress", "class": CLASS, "subject": {"reference": subject.reference}}
    await fhirpy.resource("Encounter", **stay).save()
    stays = fhirpy.resources("Encounter").search(subject=subject.reference)
    bundle = await stays.include("Encounter", "subject").fetch_raw()
    assert [entry["resource"]["resourceType"] for entry in bundle["entry"]] == [
        "Encounter",
        "Patient",
    ]
    people = (
        fhirpy.resources("Patient").search(_id=subject["id"]).revinclude("Encounter", "subject")
    )
    assert len((await people.fetch_raw())["entry"]) == 2


async def test_fhirpy_creates_once_by_if_none_exist(
    base: str, fhirpy: AsyncFHIRClient, batch: str
) -> None:
    criteria = f"identifier={SYSTEM}|{batch}"
    once = AsyncFHIRClient(base, extra_headers={"If-None-Exist": criteria})
    first = await once.resource("Patient", **patient(batch, "Oakenshade")).save()
    again = await once.resource("Patient", **patient(batch, "Oakenshade")).save()
    assert again["id"] == first["id"]
    # Other servers take these criteria from the URL, where they would be dropped.
    wanted = fhirpy.resource("Patient", **patient(batch, "Oakenshade"))
    with pytest.raises(OperationOutcome, match="If-None-Exist"):
        await (
            fhirpy.resources("Patient").search(identifier=f"{SYSTEM}|{batch}").get_or_create(wanted)
        )
    assert await fhirpy.resources("Patient").search(identifier=f"{SYSTEM}|{batch}").count() == 1


async def test_fhirpy_updates_no_version_that_it_does_not_know(
    base: str, fhirpy: AsyncFHIRClient, batch: str
) -> None:
    created = await fhirpy.resource("Patient", **patient(batch, "Oakenshade")).save()
    careful = AsyncFHIRClient(base, extra_headers={"If-Match": 'W/"1"'})
    await careful.resource("Patient", **created.serialize()).save()
    await careful.resource("Patient", **{**created.serialize(), "gender": "female"}).save()
    late = careful.resource("Patient", **{**created.serialize(), "gender": "male"})
    with pytest.raises(MultipleResourcesFound, match="version"):  # so it calls every 412
        await late.save()


async def test_fhirpy_patches_by_fhirpath(fhirpy: AsyncFHIRClient, batch: str) -> None:
    created = await fhirpy.resource("Patient", **patient(batch, "Oakenshade")).save()
    change = [
        {"name": "type", "valueCode": "replace"},
        {"name": "path", "valueString": "Patient.name[0].family"},
        {"name": "value", "valueString": "Thistlewick"},
    ]
    patch = {
        "resourceType": "Parameters",
        "parameter": [{"name": "operation", "part": change}],
    }
    patched = await fhirpy.execute(created.reference, "patch", data=patch)
    assert patched["name"][0]["family"] == "Thistlewick"
    with pytest.raises(OperationOutcome, match="Parameters"):
        await created.patch(gender="female")


async def test_fhirpy_reads_histories(fhirpy: AsyncFHIRClient, batch: str) -> None:
    created = await fhirpy.resource("Patient", **patient(batch, "Oakenshade")).save()
    await created.delete()
    history = await fhirpy.execute(f"Patient/{created['id']}/_history", "get")
    assert [entry["request"]["method"] for entry in history["entry"]] == ["DELETE", "POST"]


async def test_fhirpy_shows_a_token(smart: Smart, batch: str) -> None:
    token = await asyncio.to_thread(smart.token)
    stranger = AsyncFHIRClient(smart.base)
    with pytest.raises(AuthorizationError, match="token"):
        await stranger.resources("Patient").fetch()
    known = AsyncFHIRClient(smart.base, authorization=f"Bearer {token}")
    created = await known.resource("Patient", **patient(batch, "Oakenshade")).save()
    assert (await known.get("Patient", created["id"]))["id"] == created["id"]


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
