"""Loading files: what is sent, with which ids and references, and what is said about refusals."""

from __future__ import annotations

import bz2
import copy
import gzip
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.cli.load.files import LoadError, find_files
from app.cli.load.ids import Source
from app.cli.load.load import load
from app.cli.load.outcome import LoadReport
from app.cli.load.plan import LoadPlan, plan as plan_for, searches
from tests.processes import carerelay, environment, started, wait_for

BASE = "http://carerelay.test/fhir"
NORTH, SOUTH = "https://north.example/fhir", "https://south.example/fhir"
PATIENT_URN = "urn:uuid:5d0a0b6e-0d0c-4f1e-9a51-3c1d7f5a9d11"


def bundle(*entries: dict[str, Any], kind: str = "transaction") -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": kind, "entry": list(entries)}


def posted(resource: dict[str, Any], full_url: str = "", **request: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "resource": resource,
        "request": {"method": "POST", "url": resource["resourceType"], **request},
    }
    return {**entry, "fullUrl": full_url} if full_url else entry


def patient(**elements: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", **elements}


# What to send


def plan(document: Any, source: str = "") -> LoadPlan:
    digest = hashlib.sha256(json.dumps(document).encode()).hexdigest()
    return plan_for(document, digest, BASE, Source(source))


def test_the_same_content_has_the_same_ids_and_other_content_has_others():
    """A urn:uuid speaks of its Bundle only: the same in another Bundle is something else."""
    bundles = [bundle(posted(patient(gender=each), PATIENT_URN)) for each in ("male", "female")]
    first, again, other = (
        plan(copy.deepcopy(each)).entries[0].id for each in (*bundles[:1], *bundles)
    )
    assert first == again != other
    assert all(uuid.UUID(str(each)) for each in (first, other))
    assert f"urn:uuid:{first}" != PATIENT_URN


@pytest.mark.parametrize(
    ("written", "criteria"),
    [
        ("identifier=a|b?c=d", "identifier=a|b?c=d"),
        ("Patient?identifier=http://x/Y?z|b", "identifier=http://x/Y?z|b"),
        (f"{BASE}/Patient?identifier=a|b", "identifier=a|b"),
        ("?identifier=a|b", "identifier=a|b"),
    ],
)
def test_if_none_exist_may_have_its_type_and_values_with_question_marks(written, criteria):
    [entry] = plan(bundle(posted(patient(), ifNoneExist=written))).entries
    assert entry.condition == criteria


def test_a_source_gives_its_own_ids_to_what_keeps_them():
    line = patient(id="1")
    ids = {name: plan({**line}, name).entries[0].id for name in ("", "north", "south")}
    assert ids[""] == "1"
    assert len(set(ids.values())) == 3
    [again] = plan({**line}, "north").entries
    assert again.id == ids["north"]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        pytest.param(patient(id="p1"), "p1", id="single resource"),
        pytest.param(bundle({"resource": patient(id="p1")}, kind="collection"), "p1", id="entry"),
        pytest.param(
            bundle(
                {"resource": patient(id="p1"), "fullUrl": f"{BASE}/Patient/p1"}, kind="searchset"
            ),
            "p1",
            id="entry of this server",
        ),
        pytest.param(
            bundle(
                {"resource": patient(id="x"), "request": {"method": "PUT", "url": "Patient/p1"}}
            ),
            "p1",
            id="PUT by its url",
        ),
    ],
)
def test_id_of_an_entry(document, expected):
    [entry] = plan(document).entries
    assert entry.id == expected


def test_document_and_history_bundles_are_resources_themselves():
    for kind in ("document", "history"):
        [entry] = plan(bundle({"resource": patient(id="p1")}, kind=kind)).entries
        assert entry.resource_type == "Bundle"


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        pytest.param({"fullUrl": PATIENT_URN}, "no resource", id="no resource"),
        pytest.param(
            {"fullUrl": f"{NORTH}/Patient/2", "resource": {"resourceType": "Patient", "id": "1"}},
            "fullUrl",
            id="another id",
        ),
        pytest.param(
            {"fullUrl": "//north/Patient/1", "resource": {"resourceType": "Patient", "id": "1"}},
            "fullUrl",
            id="no URL",
        ),
        pytest.param({"resource": {"id": "x"}}, "no resource", id="no resourceType"),
        pytest.param("text", "not a Bundle entry", id="no object"),
        pytest.param(
            {"resource": patient(), "request": {"method": "DELETE", "url": "Patient/1"}},
            "DELETE",
            id="DELETE",
        ),
        pytest.param(
            {"resource": patient(), "request": {"method": "PUT", "url": "Person/1"}},
            "does not fit",
            id="PUT of another type",
        ),
    ],
)
def test_entry_that_cannot_be_loaded_is_refused_alone(entry, reason):
    planned = plan(bundle(entry, {"resource": patient(id="p1")}))
    [(label, said)] = planned.refused
    assert label == "entry 1"
    assert reason in said
    assert len(planned.entries) == 1


@pytest.mark.parametrize("full_url", [f"{NORTH}/Patient/p1", f"{BASE}/Patient/p1", PATIENT_URN, ""])
def test_a_create_never_keeps_the_id_of_its_source(full_url):
    [entry] = plan(bundle(posted(patient(id="p1"), full_url))).entries
    assert uuid.UUID(str(entry.id))


@pytest.mark.parametrize("kind", ["transaction", "collection"])
def test_the_same_id_of_two_servers_is_two_ids_and_always_the_same(kind):
    def entry_of(root):
        request = posted(patient(id="1"), f"{root}/Patient/1")
        if kind == "collection":
            del request["request"]
        [entry] = plan(bundle(request, kind=kind)).entries
        return entry.id

    assert entry_of(NORTH) == entry_of(NORTH)
    assert len({entry_of(NORTH), entry_of(SOUTH), "1"}) == 3


def test_conditional_references_are_found_in_depth():
    search = "Practitioner?identifier=a|b"
    resource = {"participant": [{"individual": {"reference": search}}], "url": "http://x/?a=b"}
    assert list(searches(resource)) == [search]


# Which files


def test_directories_give_their_json_in_order(tmp_path):
    for name in ("b.json", "a.ndjson.gz", "c/d.json.bz2", "notes.txt", "e.csv.gz"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = [str(file.relative_to(tmp_path)) for file in find_files([tmp_path])]
    assert found == ["a.ndjson.gz", "b.json", "c/d.json.bz2"]


@pytest.mark.parametrize("name", ["missing", "."])
def test_nothing_to_load_is_an_error(tmp_path, name):
    with pytest.raises(LoadError):
        find_files([tmp_path / name])


# Through a server


@pytest.fixture(scope="module")
def base(mongod: str) -> Iterator[str]:
    settings = environment(mongodb_uri=mongod, mongodb_database=f"load{uuid.uuid4().hex[:8]}")
    with started("FHIR base: ", "serve", "--port", "0", env=settings) as (_, url):
        wait_for(f"{url}/metadata").raise_for_status()
        yield url


def write(directory: Path, name: str, *documents: Any) -> Path:
    path = directory / name
    content = "\n".join(json.dumps(document) for document in documents).encode()
    packers: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress}
    packed = packers.get(path.suffix, bytes)(content)
    path.write_bytes(packed)
    return path


async def loaded(base: str, *paths: Path, **options: Any) -> LoadReport:
    return await load(paths, base, lambda _: None, **options)


@pytest.mark.processes
async def test_transaction_keeps_its_references(base, tmp_path):
    system = uuid.uuid4().hex
    practitioner = {
        "resourceType": "Practitioner",
        "identifier": [{"system": "http://example.org/npi", "value": system}],
    }
    search = f"Practitioner?identifier=http://example.org/npi|{system}"
    urn, stay = f"urn:uuid:{uuid.uuid4()}", f"urn:uuid:{uuid.uuid4()}"
    encounter = {
        "resourceType": "Encounter",
        "status": "finished",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"},
        "subject": {"reference": urn},
        "participant": [{"individual": {"reference": search}}],
    }
    write(tmp_path, "1.json.bz2", bundle(posted(practitioner, ifNoneExist=search), kind="batch"))
    write(tmp_path, "2.json.gz", bundle(posted(encounter, stay), posted(patient(), urn)))
    report = await loaded(base, tmp_path)
    assert report.refusals == []
    assert report.created == {"Practitioner": 1, "Encounter": 1, "Patient": 1}
    async with httpx.AsyncClient(base_url=base) as client:
        found = (await client.get(f"Encounter?participant.identifier={system}")).json()["entry"]
        (stored,) = [each["resource"] for each in found]
        assert (await client.get(stored["subject"]["reference"])).status_code == 200
        who = stored["participant"][0]["individual"]["reference"]
        assert (await client.get(who)).json()["identifier"][0]["value"] == system

    again = await loaded(base, tmp_path)
    assert again.existing == {"Practitioner": 1, "Encounter": 1, "Patient": 1}
    assert again.updated == {}
    assert again.created == {}


def export(root: str, name: str) -> dict[str, Any]:
    """What an EHR sends of a patient with a visit and a document; ids are its own, a practitioner is not in it."""
    stay = {
        "resourceType": "Encounter",
        "id": "1",
        "status": "finished",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"},
        "subject": {"reference": "Patient/1"},
        "participant": [{"individual": {"reference": "Practitioner/1"}}],
    }
    document = {
        "resourceType": "DocumentReference",
        "id": "1",
        "status": "current",
        "subject": {"reference": "Patient/1"},
        "content": [{"attachment": {"url": "Binary/1"}}],
    }
    binary = {"resourceType": "Binary", "id": "1", "contentType": "text/plain", "data": "AAAA"}
    person = patient(id="1", name=[{"family": name}])
    resources = (stay, document, binary, person)
    return bundle(*(posted(each, f"{root}/{each['resourceType']}/1") for each in resources))


@pytest.mark.processes
async def test_the_patients_of_two_hospitals_with_the_same_ids_are_not_mixed_up(base, tmp_path):
    """Nor with ours; and loading the files again changes nothing."""
    families = {root: f"Of{uuid.uuid4().hex}" for root in (NORTH, SOUTH)}
    async with httpx.AsyncClient(base_url=base) as client:
        ours = patient(id="1", name=[{"family": "Ours"}])
        (await client.put("Patient/1", json=ours)).raise_for_status()
        for times in (1, 2):
            for number, (root, family) in enumerate(families.items()):
                write(tmp_path, f"{number}.json", export(root, family))
            report = await loaded(base, tmp_path)
            assert report.refusals == []
            assert report.total == 8
            assert report.created.total() == (8 if times == 1 else 0)
        for root, family in families.items():
            found = (await client.get(f"Patient?family={family}")).json()["entry"]
            (reference,) = [f"Patient/{each['resource']['id']}" for each in found]
            for kind in ("Encounter", "DocumentReference"):
                (row,) = (await client.get(f"{kind}?subject={reference}")).json()["entry"]
                if kind == "Encounter":
                    who = row["resource"]["participant"][0]["individual"]["reference"]
                    assert who == f"{root}/Practitioner/1"
                else:
                    url = row["resource"]["content"][0]["attachment"]["url"]
                    assert (await client.get(url)).status_code == 200
        assert (await client.get("Patient/1")).json()["name"] == ours["name"]
        assert "entry" not in (await client.get("Encounter?subject=Patient/1")).json()


@pytest.mark.processes
async def test_ndjson_keeps_decimals_and_refuses_line_by_line(base, tmp_path):
    path = tmp_path / "observations.ndjson"
    identity = uuid.uuid4().hex
    good = (
        f'{{"resourceType":"Observation","id":"{identity}","status":"final",'
        '"code":{"text":"x"},"valueQuantity":{"value":1.50}}'
    )
    wrong = '{"resourceType":"Observation","id":"wrong","status":"banana","code":{"text":"x"}}'
    path.write_text(f"{good}\n\n{wrong}\n{{broken\n")
    report = await loaded(base, path)
    assert report.created == {"Observation": 1}
    by_name = {refusal.resource: refusal for refusal in report.refusals}
    assert by_name.keys() == {"Observation/wrong", "line 3"}
    assert "Observation.status" in by_name["Observation/wrong"].reason
    assert by_name["Observation/wrong"].file == str(path)
    async with httpx.AsyncClient(base_url=base) as client:
        answer = await client.get(f"Observation/{identity}")
    value = json.loads(answer.content, parse_float=Decimal)["valueQuantity"]["value"]
    assert str(value) == "1.50"


@pytest.mark.processes
async def test_a_message_that_is_kept_and_not_applied_is_named(base, tmp_path):
    stay = {
        "resourceType": "Encounter",
        "id": uuid.uuid4().hex,
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"},
    }
    period = {"start": "2026-05-04T08:00:00Z"}
    over = {**stay, "status": "finished", "period": {**period, "end": "2026-05-06T08:00:00Z"}}
    back = {**stay, "status": "in-progress", "period": period}
    path = tmp_path / "stays.ndjson"
    path.write_text(f"{json.dumps(over)}\n{json.dumps(back)}\n")
    report = await loaded(base, path)
    [refusal] = report.refusals
    assert "202" in refusal.reason
    assert "The status was not applied" in refusal.reason
    assert report.created == {"Encounter": 1}


@pytest.mark.processes
async def test_conditional_reference_without_one_match_is_refused(base, tmp_path):
    encounter = {"resourceType": "Encounter", "subject": {"reference": "Patient?identifier=no|one"}}
    report = await loaded(base, write(tmp_path, "e.json", bundle(posted(encounter))))
    [refusal] = report.refusals
    assert "matches nothing" in refusal.reason


@pytest.mark.processes
async def test_versions_of_one_resource_go_in_their_order(base, tmp_path):
    identity = uuid.uuid4().hex
    versions = [patient(id=identity, name=[{"text": f"v{number}"}]) for number in range(1, 9)]
    report = await loaded(base, write(tmp_path, "p.ndjson", *versions))
    assert (report.created["Patient"], report.updated["Patient"]) == (1, 7)
    async with httpx.AsyncClient(base_url=base) as client:
        stored = (await client.get(f"Patient/{identity}")).json()
    assert stored["name"][0]["text"] == "v8"


@pytest.mark.processes
async def test_resources_without_ids_are_stored_once_each(base, tmp_path):
    """Two equal lines are two; the file again is none more."""
    file = write(tmp_path, "p.ndjson", *[patient(language=uuid.uuid4().hex)] * 2)
    for created, existing in ((2, 0), (0, 2)):
        report = await loaded(base, file)
        assert (report.created.total(), report.updated.total()) == (created, existing)


@pytest.mark.processes
async def test_unpacking_failure_is_a_refusal(base, tmp_path):
    (tmp_path / "x.json.gz").write_bytes(b"not gzip")
    report = await loaded(base, tmp_path)
    assert "cannot be read" in report.refusals[0].reason


async def answered(tmp_path: Path, *answers: httpx.Response | Exception) -> LoadReport:
    """Load one Patient into a server that gives these answers, one a request."""
    waiting = iter(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        assert str(request.url) == "http://fhir.example/Patient/p1"
        given = next(waiting)
        if isinstance(given, Exception):
            raise given
        return given

    file = write(tmp_path, "p.json", patient(id="p1"))
    transport = httpx.MockTransport(answer)
    return await load([file], "http://fhir.example", lambda _: None, transport)


async def test_busy_server_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr("app.cli.load.server.FIRST_PAUSE", 0.0)
    report = await answered(
        tmp_path,
        httpx.Response(503),
        httpx.Response(429, headers={"Retry-After": "0"}),
        httpx.ReadError("connection lost"),
        httpx.Response(201),
    )
    assert report.created == {"Patient": 1}


async def test_refusal_without_an_outcome_shows_the_status(tmp_path):
    report = await answered(tmp_path, httpx.Response(502, text="<html>"))
    assert report.refusals[0].reason == "502"


async def test_no_server_ends_the_load(tmp_path):
    with pytest.raises(LoadError, match="does not answer"):
        await answered(tmp_path, httpx.ConnectError("refused"))


@pytest.mark.processes
def test_command_shows_counts_and_refusals_and_exits_1(base, tmp_path):
    file = write(tmp_path, "p.ndjson", patient(id=uuid.uuid4().hex), patient(gender="banana"))
    done = carerelay("load", file, "--url", base)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 resources" in done.stdout
    assert f"refused {file}: line 2, Patient: 4" in done.stdout
    assert "Patient.gender" in done.stdout


@pytest.mark.processes
def test_command_exits_0_when_all_is_stored(base, tmp_path):
    done = carerelay("load", write(tmp_path, "p.json", patient(id=uuid.uuid4().hex)), "--url", base)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.processes
def test_command_names_a_path_that_does_not_exist(tmp_path):
    done = carerelay("load", tmp_path / "nothing.json")
    assert done.returncode == 1
    assert "nothing.json does not exist" in done.stdout
