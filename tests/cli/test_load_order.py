"""Many files in one load: what waits for what, what is begun again, and whose ids are whose."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.cli.load.load import load
from app.cli.load.outcome import LoadReport
from tests.builders.bundles import bundle, entry, identified, patient, visit
from tests.builders.messages import ROOT, ForeignStay, found, taken
from tests.conftest import make_settings, running

pytestmark = pytest.mark.mongo
Resource = dict[str, Any]

NORTH, SOUTH = "https://north.example/fhir", "https://south.example/fhir"
ALLERGY_STATUS = "http://terminology.hl7.org/CodeSystem/allergyintolerance-clinical"
DOCTOR = "Practitioner?identifier=urn:npi|1"


class Gateway(httpx.AsyncBaseTransport):
    """The way to the server: counts the Bundles that are under way together, and can break down behind one."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner
        self.most = self._open = self.posts = 0
        self.breaks_after: int | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method != "POST":
            return await self._inner.handle_async_request(request)
        self._open += 1
        self.posts += 1
        self.most = max(self.most, self._open)
        await asyncio.sleep(0)  # lets those that are ready come
        try:
            response = await self._inner.handle_async_request(request)
        finally:
            self._open -= 1
        if self.breaks_after is not None:
            self.breaks_after -= 1
            if self.breaks_after < 0:
                raise httpx.ConnectError("gone")
        return response


class World:
    """A server, files for it, and loads of them."""

    def __init__(self, client: httpx.AsyncClient, directory: Path) -> None:
        self.client = client
        self.directory = directory
        self.gateway = Gateway(client._transport)

    def write(self, name: str, *documents: Resource) -> Path:
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(json.dumps(each) for each in documents))
        return path

    async def load(self, *paths: Path, source: str = "") -> LoadReport:
        base = str(self.client.base_url)
        where = paths or (self.directory,)
        self.done: list[Path] = []
        return await load(where, base, self.done.append, self.gateway, source=source)

    async def all(self, query: str) -> list[Resource]:
        answer = (await self.client.get(query)).json()
        return [each["resource"] for each in answer.get("entry", ())]


@pytest.fixture
async def world(mongod: str, tmp_path: Path) -> AsyncIterator[World]:
    async with running(make_settings(mongod)) as (_, client):
        yield World(client, tmp_path)


def doctor() -> Resource:
    return {"resourceType": "Practitioner", "identifier": [{"system": "urn:npi", "value": "1"}]}


def history(number: int, **changes: Any) -> Resource:
    """A patient with a visit at the doctor's, as Synthea writes it: ids of the source, names by urn."""
    person, stay = f"urn:uuid:p{number}", f"urn:uuid:v{number}"
    doctors = [{"individual": {"reference": DOCTOR}}]
    return bundle(
        entry("POST", "Patient", identified(f"p{number}", id=f"p{number}", **changes), person),
        entry("POST", "Encounter", visit(person, f"v{number}", participant=doctors), stay),
    )


@pytest.mark.parametrize(("name", "in_vain"), [("0-doctors.json", 0), ("z-doctors.json", 5)])
async def test_what_refers_conditionally_is_not_tried_again_and_again(
    world: World, name: str, in_vain: int
) -> None:
    """Names in order: each file is sent once, as it is read. Else a few are sent in vain: those that go
    side by side, and the one that waits for its turn."""
    doctors = entry("POST", "Practitioner", doctor(), "urn:uuid:d", ifNoneExist=DOCTOR)
    world.write(name, bundle(doctors, type="batch"))
    files = 12
    for number in range(files):
        world.write(f"history-{number:02}.json", history(number))
    report = await world.load()
    assert (report.refusals, report.created["Encounter"]) == ([], files)
    assert len(world.done) == len(set(world.done)) == files + 1
    assert files + 1 <= world.gateway.posts <= files + 1 + in_vain


async def test_what_refers_conditionally_waits_whatever_the_names(world: World) -> None:
    """Also over two steps, within one batch, and from a single resource."""
    role = {"resourceType": "PractitionerRole", "practitioner": {"reference": "urn:uuid:d"}}
    place = {"resourceType": "Organization", "identifier": [{"system": "urn:o", "value": "1"}]}
    stay = visit("Patient?identifier=urn:test|p1", "late")
    lines = [{**stay, "id": "late", "serviceProvider": {"reference": "Organization?name=Late"}}]
    late = {**place, "name": "Late", "endpoint": [{"reference": "Endpoint?identifier=urn:e|1"}]}
    endpoint = {
        "resourceType": "Endpoint",
        "identifier": [{"system": "urn:e", "value": "1"}],
        "status": "active",
        "connectionType": {"code": "hl7-fhir-rest"},
        "payloadType": [{"text": "any"}],
        "address": "https://e.example",
    }
    world.write("a.ndjson", *lines)
    world.write("b.json", history(1))
    world.write("c.json", bundle(entry("POST", "Organization", late, "urn:uuid:o")))
    world.write("x.json", bundle(entry("POST", "Endpoint", endpoint, "urn:uuid:e")))
    known = entry("POST", "Practitioner", doctor(), "urn:uuid:d", ifNoneExist=DOCTOR)
    roles = entry("POST", "PractitionerRole", role, "urn:uuid:r")
    world.write("z.json", bundle(roles, known, type="batch"))
    report = await world.load()
    assert report.refusals == []
    assert sorted(each.name[0] for each in world.done) == ["a", "b", "c", "x", "z"]
    (person,), (who,) = await world.all("Patient?"), await world.all("Practitioner?")
    (stored,) = await world.all("PractitionerRole?")
    assert stored["practitioner"]["reference"] == f"Practitioner/{who['id']}"
    stays = await world.all("Encounter?")
    assert {each["subject"]["reference"] for each in stays} == {f"Patient/{person['id']}"}
    assert report.created.total() == 7


async def test_a_broken_off_load_begun_again_finishes_and_doubles_nothing(world: World) -> None:
    """Neither what was answered nor what was stored with its answer lost."""
    world.write("0.json", bundle(entry("POST", "Practitioner", doctor(), ifNoneExist=DOCTOR)))
    for number in range(8):
        world.write(f"{number + 1}.json", history(number))
    world.write("z.ndjson", *[patient()] * 3)
    world.gateway.breaks_after = 4
    with pytest.raises(Exception, match="does not answer"):
        await world.load()
    stored = len(await world.all("Patient?_count=100"))
    assert 0 < stored < 11
    world.gateway.breaks_after = None
    report = await world.load()
    assert report.refusals == []
    assert report.existing["Patient"] + report.updated["Patient"] >= stored
    for query, count in (("Patient", 11), ("Encounter", 8), ("Practitioner", 1)):
        found = await world.all(f"{query}?_count=100")
        assert len(found) == count
        assert {each["meta"]["versionId"] for each in found} == {"1"}


async def test_transactions_go_side_by_side_but_those_of_one_record_do_not(world: World) -> None:
    for number in range(6):
        world.write(
            f"a{number}.json", bundle(entry("POST", "Patient", patient(), f"urn:uuid:{number}"))
        )
    await world.load()
    assert world.gateway.most == 4
    world.gateway.most = 0
    files = [
        world.write(
            f"b{number}.json",
            bundle(entry("PUT", "Patient/same", identified("x", id="same", language=f"l{number}"))),
        )
        for number in range(4)
    ]
    report = await world.load(*files)
    assert (report.created.total(), report.updated.total()) == (1, 3)
    assert world.gateway.most <= 4
    assert (await world.client.get("Patient/same")).json()["language"] == "l3"


async def test_a_transaction_is_refused_as_one(world: World) -> None:
    world.write("0.json", bundle(entry("POST", "Practitioner", doctor(), ifNoneExist=DOCTOR)))
    world.write("1.json", history(1, gender="banana"))
    world.write("2.json", history(2))
    report = await world.load()
    (refusal,) = report.refusals
    assert refusal.file.endswith("1.json")
    assert "Patient.gender" in refusal.reason or "gender" in refusal.reason
    assert report.refused == {"Patient": 1, "Encounter": 1}
    assert len(await world.all("Patient?")) == 1


@pytest.mark.parametrize("kind", ["transaction", "batch"])
async def test_references_follow_creates_that_are_known_by_the_id_of_their_source(
    world: World, kind: str
) -> None:
    """Entries without fullUrl: our own Patient/1 is somebody else."""
    (await world.client.put("Patient/1", json=identified("ours", id="1"))).raise_for_status()
    theirs = entry("POST", "Patient", identified("theirs", id="1"))
    stay = entry("POST", "Encounter", visit("Patient/1", "v", id="1"))
    world.write("x.json", bundle(theirs, stay, type=kind))
    report = await world.load()
    assert report.refusals == []
    (stored,) = await world.all("Encounter?")
    (person,) = await world.all("Patient?identifier=urn:test|theirs")
    assert stored["subject"]["reference"] == f"Patient/{person['id']}" != "Patient/1"
    assert stored["id"] != "1"


def bulk(hospital: str) -> list[Resource]:
    """An NDJSON export: the visit comes first, and an allergy has no identifier that tells whose it is."""
    allergy = {
        "resourceType": "AllergyIntolerance",
        "id": "1",
        "clinicalStatus": {"coding": [{"system": ALLERGY_STATUS, "code": "active"}]},
        "patient": {"reference": "Patient/1"},
        "code": {"text": hospital},
    }
    return [allergy, visit("Patient/1", f"{hospital}-1", id="1"), identified(hospital, id="1")]


async def test_a_second_source_with_the_same_ids_is_refused_or_kept_apart(world: World) -> None:
    north, south = (world.write(f"{name}.ndjson", *bulk(name)) for name in ("north", "south"))
    both = await world.load(north, south)
    assert both.stored == 0
    assert "--source" in both.refusals[0].reason
    assert (await world.load(north)).created.total() == 3
    refused = await world.load(south)
    assert refused.stored == 0
    (refusal,) = refused.refusals
    assert "Patient/1" in refusal.reason
    for times in (1, 2):
        apart = await world.load(south, source="south")
        assert apart.refusals == []
        assert apart.created.total() == (3 if times == 1 else 0)
    for name in ("north", "south"):
        (person,) = await world.all(f"Patient?identifier=urn:test|{name}")
        (allergy,) = await world.all(f"AllergyIntolerance?patient={person['id']}")
        assert allergy["code"]["text"] == name
        (stay,) = await world.all(f"Encounter?subject=Patient/{person['id']}")
        assert stay["identifier"][0]["value"] == f"{name}-1"


async def test_ids_that_two_servers_want_to_keep_are_told_by_their_roots(world: World) -> None:
    north, south = (
        world.write(
            f"{number}.json",
            bundle(entry("PUT", "Patient/1", patient(id="1"), f"{root}/Patient/1")),
        )
        for number, root in enumerate((NORTH, SOUTH))
    )
    assert (await world.load(north, south)).stored == 0
    assert (await world.load(north)).stored == 1
    assert (await world.load(north)).refusals == []
    (refusal,) = (await world.load(south)).refusals
    assert "Patient/1" in refusal.reason
    assert (await world.load(south, source="south")).created.total() == 1


async def test_criteria_that_may_name_a_record_of_the_source_are_refused(world: World) -> None:
    person = identified("x", id="1")
    stay = entry("PUT", "Encounter?subject=Patient/1", visit("Patient/1", "v"))
    world.write("x.json", bundle(entry("PUT", "Patient/1", person), stay))
    (refusal,) = (await world.load(source="north")).refusals
    assert "name it by an identifier" in refusal.reason


async def test_a_message_goes_through_the_door_of_messages(world: World) -> None:
    """Its ids are nobody's here; it finds the person by identifiers, and is one however often it comes."""
    stay = ForeignStay()
    ours = {**patient(id="77"), "identifier": [{"system": "urn:ours", "value": "77"}]}
    known = {**stay.patient, "id": stay.n}
    for each in (ours, known):
        assert (await world.client.put(f"/Patient/{each['id']}", json=each)).is_success
    before = (await world.client.get("/Patient/77")).headers["etag"]
    text = json.dumps(stay.message("A01"))
    for place in ("Encounter/12", "Patient/77", "Organization/1", "Practitioner/5", "Location/3"):
        name = f'"urn:uuid:{uuid.uuid4()}"'
        text = text.replace(f'"{ROOT}/{place}"', name).replace(f'"{place}"', name)
    message = json.loads(text)
    path = world.write("a01.json", message)
    for _ in range(2):
        assert (await world.load(path)).refusals == []
    (visit_,) = await found(world.client, stay.visit)
    assert visit_["subject"] == {"reference": f"Patient/{stay.n}"}
    assert (await world.client.get("/Patient/77")).headers["etag"] == before
    assert await found(world.client, "/MessageHeader") == []
    await taken(world.client, message)
    wrong = stay.message("A11", "2026-11-20T09:00:00Z")
    (refusal,) = (await world.load(world.write("a11.json", wrong))).refusals
    assert "the stay is cancelled" in refusal.reason


@pytest.mark.parametrize("ours", [{}, {"identifier": [{"system": "urn:ours", "value": "1"}]}])
async def test_a_collection_takes_the_place_of_nobody(world: World, ours: Resource) -> None:
    """Its entries are named by URNs, and their ids are those of somebody here, who may have no identifier."""
    assert (await world.client.put("/Patient/77", json=patient(id="77", **ours))).is_success
    before = (await world.client.get("/Patient/77")).headers["etag"]
    theirs = {"fullUrl": f"urn:uuid:{uuid.uuid4()}", "resource": identified("theirs", id="77")}
    path = world.write(
        "theirs.json", {"resourceType": "Bundle", "type": "collection", "entry": [theirs]}
    )
    (refusal,) = (await world.load(path)).refusals
    assert "--source" in refusal.reason
    assert (await world.client.get("/Patient/77")).headers["etag"] == before
    for _ in range(2):
        assert (await world.load(path, source="theirs")).refusals == []
    assert len(await world.all("Patient?identifier=urn:test|theirs")) == 1
