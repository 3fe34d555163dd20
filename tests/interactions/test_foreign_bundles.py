"""Bundles of other servers, whose ids are theirs. https://hl7.org/fhir/R4/bundle.html#references

docs/decisions/0032-references-of-bundles.md
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.builders.bundles import bundle, condition, entry, identified, patient, visit
from tests.conftest import BASE, make_settings, running
from tests.outcomes import assert_outcome

NORTH, SOUTH = "https://north.example/fhir", "https://south.example/fhir"


@pytest.fixture
async def taken(client: httpx.AsyncClient) -> str:
    """The id of a Patient of ours, which other servers have given to somebody else."""
    id_ = f"t-{uuid.uuid4()}"
    (await client.put(f"/Patient/{id_}", json=identified(f"ours-{id_}", id=id_))).raise_for_status()
    return id_


async def whose(client: httpx.AsyncClient, reference: str) -> str:
    """The identifier of the Patient that a reference leads to."""
    answer = await client.get(f"/{reference}")
    assert answer.status_code == 200, reference
    return str(answer.json()["identifier"][0]["value"])


async def sent(client: httpx.AsyncClient, *entries: dict[str, Any], **kind: str) -> list[Any]:
    answer = await client.post("", json=bundle(*entries, **kind))
    assert answer.status_code == 200, answer.text
    return list(answer.json()["entry"])


def exported(root: str, id_: str, value: str, number: str) -> list[dict[str, Any]]:
    """An EHR's export of a patient with an Encounter, its Condition, and a document about it."""
    document = {
        "resourceType": "DocumentReference",
        "status": "current",
        "subject": {"reference": f"Patient/{id_}"},
        "context": {"encounter": [{"reference": f"Encounter/{id_}/_history/4"}]},
        "content": [{"attachment": {"url": f"Binary/{id_}"}}],
    }
    binary = {"resourceType": "Binary", "id": id_, "contentType": "text/plain", "data": "AAAA"}
    resources: list[dict[str, Any]] = [
        visit(f"Patient/{id_}", number, id=id_),
        condition(f"Patient/{id_}", id=id_, encounter={"reference": f"Encounter/{id_}"}),
        {**document, "id": id_},
        binary,
        identified(value, id=id_),
    ]
    return [
        entry("POST", each["resourceType"], each, f"{root}/{each['resourceType']}/{id_}")
        for each in resources
    ]


async def test_the_references_of_two_hospitals_lead_to_the_patients_of_each(
    client: httpx.AsyncClient, taken: str
) -> None:
    """Both in one Bundle, with the ids of each other and of ours."""
    numbers = [str(uuid.uuid4()), str(uuid.uuid4())]
    answers = await sent(
        client,
        *exported(NORTH, taken, f"north-{taken}", numbers[0]),
        *exported(SOUTH, taken, f"south-{taken}", numbers[1]),
    )
    resources = [each["resource"] for each in answers]
    for hospital, own in (("north", resources[:5]), ("south", resources[5:])):
        stay, problem, document, binary, person = own
        reference = f"Patient/{person['id']}"
        assert person["id"] != taken
        assert await whose(client, reference) == f"{hospital}-{taken}"
        for each in (stay, problem, document):
            assert each["subject"] == {"reference": reference}
        assert problem["encounter"] == {"reference": f"Encounter/{stay['id']}"}
        assert document["context"]["encounter"] == [{"reference": f"Encounter/{stay['id']}"}]
        assert document["content"][0]["attachment"]["url"] == f"Binary/{binary['id']}"
    assert (await client.get(f"/Encounter?subject=Patient/{taken}")).json()["total"] == 0


@pytest.mark.parametrize("kind", ["transaction", "batch"])
async def test_what_a_foreign_bundle_lacks_stays_where_it_is(
    client: httpx.AsyncClient, taken: str, kind: str
) -> None:
    stay = visit(f"Patient/{taken}", str(uuid.uuid4()), partOf={"reference": "Encounter/1#x"})
    (answer,) = await sent(
        client, entry("POST", "Encounter", stay, f"{NORTH}/Encounter/9"), type=kind
    )
    assert answer["resource"]["subject"] == {"reference": f"{NORTH}/Patient/{taken}"}
    assert answer["resource"]["partOf"] == {"reference": f"{NORTH}/Encounter/1#x"}
    found = await client.get(f"/Encounter?subject={NORTH}/Patient/{taken}")
    assert [each["resource"]["id"] for each in found.json()["entry"]] == [answer["resource"]["id"]]
    assert len((await client.get(f"/Patient/{taken}/$everything")).json()["entry"]) == 1


async def test_references_follow_an_entry_wherever_it_goes(
    client: httpx.AsyncClient, taken: str
) -> None:
    """To the match of a condition, to the resource of a conditional update, to the id of a PUT."""
    known, updated, other = (f"{name}-{taken}" for name in ("known", "updated", "other"))
    made = [await client.post("/Patient", json=identified(each)) for each in (known, updated)]
    found = [each.json()["id"] for each in made]
    answers = await sent(
        client,
        *(
            entry("POST", "Condition", condition(f"Patient/{id_}"), f"{NORTH}/Condition/{id_}")
            for id_ in (taken, "2", "3")
        ),
        entry("POST", "Patient", identified(known, id=taken), f"{NORTH}/Patient/{taken}",
              ifNoneExist=f"identifier=urn:test|{known}"),
        entry("PUT", f"Patient?identifier=urn:test|{updated}", identified(updated), f"{NORTH}/Patient/2"),
        entry("PUT", f"Patient/{other}", identified(other, id=other), f"{NORTH}/Patient/3"),
    )  # fmt: skip
    subjects = [each["resource"]["subject"]["reference"] for each in answers[:3]]
    assert subjects == [f"Patient/{id_}" for id_ in (*found, other)]


@pytest.mark.parametrize(
    ("full_url", "ours"),
    [
        pytest.param(f"urn:uuid:{uuid.UUID(int=7)}", True, id="urn-uuid"),
        pytest.param("urn:oid:1.2.36.146.595.217.0.1", True, id="urn-oid"),
        pytest.param(f"{BASE}/Condition/made-up", True, id="own-base"),
        pytest.param(None, True, id="none"),
        pytest.param(f"{NORTH}/Condition/9", False, id="foreign"),
    ],
)
async def test_only_an_entry_without_a_foreign_root_speaks_of_our_records(
    client: httpx.AsyncClient, taken: str, full_url: str | None, ours: bool
) -> None:
    (answer,) = await sent(
        client, entry("POST", "Condition", condition(f"Patient/{taken}"), full_url)
    )
    reference = answer["resource"]["subject"]["reference"]
    assert reference == (f"Patient/{taken}" if ours else f"{NORTH}/Patient/{taken}")


async def test_without_a_full_url_the_bundles_own_entry_comes_before_ours(
    client: httpx.AsyncClient, taken: str
) -> None:
    answers = await sent(
        client,
        entry("POST", "Condition", condition(f"Patient/{taken}")),
        entry("POST", "Patient", identified(f"new-{taken}", id=taken)),
    )
    reference = answers[0]["resource"]["subject"]["reference"]
    assert await whose(client, reference) == f"new-{taken}"


@pytest.mark.parametrize("kind", ["transaction", "batch"])
async def test_a_reference_that_may_be_theirs_or_ours_is_refused(
    client: httpx.AsyncClient, taken: str, kind: str
) -> None:
    number = str(uuid.uuid4())
    answer = await client.post(
        "",
        json=bundle(
            entry("PUT", f"Patient/n-{taken}", patient(id=f"n-{taken}"), f"{NORTH}/Patient/{taken}"),
            entry("POST", "Encounter", visit(f"Patient/{taken}", number)),
            type=kind,
        ),
    )  # fmt: skip
    place = "Bundle.entry[1].resource.subject.reference"
    if kind == "transaction":
        assert_outcome(answer, 422, "value", place)
    else:
        refused = answer.json()["entry"][1]["response"]
        assert refused["status"] == "422"
        assert refused["outcome"]["issue"][0]["expression"] == [place]
    assert (await client.get(f"/Encounter?identifier=urn:visit|{number}")).json()["total"] == 0


async def test_a_batch_knows_the_ids_that_are_given_and_refuses_to_guess_others(
    client: httpx.AsyncClient, taken: str
) -> None:
    """https://hl7.org/fhir/R4/http.html#brules: its entries do not depend on what others create."""
    urn = f"urn:uuid:{uuid.uuid4()}"
    given = f"n-{taken}"
    answers = await sent(
        client,
        entry("POST", "Condition", condition(f"Patient/{taken}"), f"{NORTH}/Condition/1"),
        entry("PUT", f"Patient/{given}", patient(id=given), f"{NORTH}/Patient/{taken}"),
        entry("POST", "Condition", condition(f"Patient/{taken}"), f"{SOUTH}/Condition/1"),
        entry("POST", "Patient", patient(id=taken), f"{SOUTH}/Patient/{taken}"),
        entry("POST", "Condition", condition(urn)),
        entry("POST", "Patient", patient(), urn),
        type="batch",
    )
    assert answers[0]["resource"]["subject"] == {"reference": f"Patient/{given}"}
    for index in (2, 4):
        (issue,) = answers[index]["response"]["outcome"]["issue"]
        assert issue["expression"] == [f"Bundle.entry[{index}].resource.subject.reference"]
        assert "transaction" in issue["diagnostics"]
    assert [answers[index]["response"]["status"] for index in (1, 3, 5)] == ["201"] * 3


@pytest.mark.parametrize(
    ("criteria", "root", "refused"),
    [
        pytest.param("subject=Patient/{id}&code=x", NORTH, True, id="reference"),
        pytest.param("patient={id}", NORTH, True, id="bare-id"),
        pytest.param("subject:Patient={id}", NORTH, True, id="typed"),
        pytest.param("_id={id}", NORTH, True, id="id"),
        pytest.param("subject:Patient._id={id}", NORTH, True, id="chain"),
        pytest.param("patient._id={id}", NORTH, True, id="chain-without-a-type"),
        pytest.param("patient.link={id}", NORTH, True, id="chain-to-a-reference"),
        pytest.param("patient._has:Condition:patient:subject=Patient/{id}", NORTH, True, id="has"),
        pytest.param("_filter=subject eq Patient/{id}", NORTH, True, id="filter"),
        pytest.param("_list={id}", NORTH, True, id="list"),
        pytest.param("patient.identifier=urn:x|none", NORTH, False, id="chain-to-an-identifier"),
        pytest.param("subject=urn:uuid:00000000-0000-4000-8000-000000000007", "", True, id="urn"),
        pytest.param(f"subject={NORTH}/Patient/{{id}}", NORTH, False, id="absolute"),
        pytest.param("subject=Patient/{id}", BASE, False, id="ours"),
    ],
)
@pytest.mark.parametrize("kind", ["transaction", "batch"])
async def test_criteria_speak_of_no_ids_but_ours(
    client: httpx.AsyncClient, taken: str, kind: str, criteria: str, root: str, refused: bool
) -> None:
    """Else a conditional update of a foreign entry would find, and take, the record of somebody of ours."""
    made = await client.post("/Condition", json=condition(f"Patient/{taken}", code={"text": "x"}))
    urn = "urn:uuid:00000000-0000-4000-8000-000000000007"
    answer = await client.post(
        "",
        json=bundle(
            entry("PUT", f"Condition?{criteria.format(id=taken)}", condition(urn), root and f"{root}/Condition/1"),
            entry("PUT", f"Patient/p-{taken}", patient(id=f"p-{taken}"), urn),
            type=kind,
        ),
    )  # fmt: skip
    if kind == "batch":
        outcome = answer.json()["entry"][0]["response"].get("outcome", {"issue": [{}]})
    else:
        outcome = answer.json()
    if refused:
        (issue,) = outcome["issue"]
        assert issue["expression"] == ["Bundle.entry[0].request.url"]
        stored = (await client.get(f"/Condition/{made.json()['id']}")).json()
        assert stored["subject"] == {"reference": f"Patient/{taken}"}
    else:
        assert answer.status_code == 200, answer.text
        assert answer.json()["entry"][0]["response"]["status"] in ("200", "201")


@pytest.mark.parametrize("kind", ["transaction", "batch"])
@pytest.mark.parametrize(
    ("root", "refused"),
    [
        pytest.param(NORTH, True, id="another-server"),
        pytest.param("", True, id="left-open"),
        pytest.param(BASE, False, id="ours"),
    ],
)
async def test_an_entry_is_found_by_its_own_id_only_where_that_is_ours(
    client: httpx.AsyncClient, taken: str, kind: str, root: str, refused: bool
) -> None:
    named = patient(id=taken, gender="other")
    answer = await client.post(
        "",
        json=bundle(
            entry("PUT", f"Patient?_id={taken}", named, root and f"{root}/Patient/{taken}"),
            *([entry("POST", "Condition", condition("Patient/9"), f"{NORTH}/Condition/9")] if root != BASE else []),
            type=kind,
        ),
    )  # fmt: skip
    status = answer.json().get("entry", [{"response": {"status": "422"}}])[0]["response"]["status"]
    assert status[:3] == ("422" if refused else "200"), answer.text
    stored = (await client.get(f"/Patient/{taken}")).json()
    assert ("gender" in stored) is not refused


@pytest.mark.parametrize("kind", ["transaction", "batch"])
async def test_a_patch_leaves_what_is_ours_and_reads_what_it_adds_by_its_root(
    client: httpx.AsyncClient, taken: str, kind: str
) -> None:
    made = await client.post("/Condition", json=condition(f"Patient/{taken}"))
    operations = [
        {"op": "add", "path": "/recorder", "value": {"reference": f"Patient/{taken}"}},
        {"op": "add", "path": "/asserter", "value": {"reference": "Practitioner/77"}},
    ]
    patch = {
        "resourceType": "Binary",
        "contentType": "application/json-patch+json",
        "data": base64.b64encode(json.dumps(operations).encode()).decode(),
    }
    url = f"Condition/{made.json()['id']}"
    (answer,) = await sent(client, entry("PATCH", url, patch, f"{NORTH}/Condition/1"), type=kind)
    patched = answer["resource"]
    assert patched["subject"] == {"reference": f"Patient/{taken}"}
    assert patched["asserter"] == {"reference": f"{NORTH}/Practitioner/77"}


@pytest.mark.parametrize("kind", ["transaction", "batch"])
@pytest.mark.parametrize(("method", "element"), [("POST", "subject"), ("PATCH", "asserter")])
async def test_a_conditional_reference_speaks_of_no_ids_but_ours(
    client: httpx.AsyncClient, taken: str, kind: str, method: str, element: str
) -> None:
    """It is a search here: by the id that a foreign entry has for somebody it would find a person of ours."""
    reference = f"Patient?_id={taken}"
    made = await client.post("/Condition", json=condition(f"Patient/{taken}"))
    url = "Condition" if method == "POST" else f"Condition/{made.json()['id']}"

    def asked(root: str) -> dict[str, Any]:
        content = condition(reference) if method == "POST" else adding(element, reference)
        return entry(method, url, content, f"{root}/Condition/1")

    (answer,) = await sent(client, asked(BASE), type=kind)
    assert answer["resource"][element] == {"reference": f"Patient/{taken}"}

    # That one of ours has the same reference is no leave for the other.
    ours = entry("POST", "Condition", condition(reference), f"{BASE}/Condition/0")
    refused = (await client.post("", json=bundle(ours, asked(NORTH), type=kind))).json()
    outcome = refused if kind == "transaction" else refused["entry"][1]["response"]["outcome"]
    (issue,) = outcome["issue"]
    assert issue["expression"] == ["Bundle.entry[1].resource"]
    assert "id of another server" in issue["diagnostics"]


def adding(element: str, reference: str) -> dict[str, Any]:
    """A JSON Patch that adds a reference."""
    operation = {"op": "add", "path": f"/{element}", "value": {"reference": reference}}
    return {
        "resourceType": "Binary",
        "contentType": "application/json-patch+json",
        "data": base64.b64encode(json.dumps([operation]).encode()).decode(),
    }


@pytest.fixture
async def checked(mongod: str) -> AsyncIterator[httpx.AsyncClient]:
    settings = make_settings(mongod, referential_integrity="checked")
    async with running(settings) as (_, client):
        yield client


async def test_a_stored_document_keeps_its_own_references(checked: httpx.AsyncClient) -> None:
    """They are neither looked for here nor rewritten: the document may be signed."""
    document = {
        "resourceType": "Bundle",
        "type": "document",
        "identifier": {"system": "urn:documents", "value": "1"},
        "timestamp": "2026-05-04T08:00:00Z",
        "entry": [
            {
                "fullUrl": f"{NORTH}/Composition/1",
                "resource": {
                    "resourceType": "Composition",
                    "id": "1",
                    "status": "final",
                    "type": {"text": "summary"},
                    "date": "2026-05-04",
                    "title": "Summary",
                    "author": [{"reference": "Practitioner/9"}],
                    "subject": {"reference": f"{BASE}/Patient/77"},
                },
            }
        ],
    }
    stored = await checked.post("/Bundle", json=document)
    assert stored.status_code == 201, stored.text
    assert stored.json()["entry"] == document["entry"]
    answers = await sent(checked, entry("POST", "Bundle", document, f"{SOUTH}/Bundle/1"))
    assert answers[0]["resource"]["entry"] == document["entry"]


@pytest.mark.parametrize("kind", ["transaction", "batch"])
@pytest.mark.parametrize(
    ("full_url", "place"),
    [
        pytest.param(f" {NORTH}/Condition/1", "fullUrl", id="blank-before"),
        pytest.param(f"{NORTH}/Condition/1 ", "fullUrl", id="blank-after"),
        pytest.param("//north.example/fhir/Condition/1", "fullUrl", id="no-scheme"),
        pytest.param("/Condition/1", "fullUrl", id="slash"),
        pytest.param("Condition/1", "resource.subject.reference", id="no-root"),
        pytest.param("urn:isbn:3", "resource.subject.reference", id="other-urn"),
    ],
)
async def test_what_is_no_address_of_ours_never_reads_references_as_ours(
    client: httpx.AsyncClient, taken: str, kind: str, full_url: str, place: str
) -> None:
    asked = entry("POST", "Condition", condition(f"Patient/{taken}"), full_url)
    answer = (await client.post("", json=bundle(asked, type=kind))).json()
    outcome = answer if kind == "transaction" else answer["entry"][0]["response"]["outcome"]
    (issue,) = outcome["issue"]
    assert (issue["code"], issue["expression"]) == ("value", [f"Bundle.entry[0].{place}"])
    assert (await client.get(f"/Condition?subject=Patient/{taken}")).json()["total"] == 0


async def test_a_slash_too_many_below_our_base_is_none(
    client: httpx.AsyncClient, taken: str
) -> None:
    answers = await sent(
        client,
        entry("POST", "Condition", condition(f"Patient/{taken}"), f"{BASE}//Condition/1"),
        entry("POST", "Condition", condition(f"{BASE}//Patient/{taken}"), f"{NORTH}/Condition/1"),
    )
    for each in answers:
        assert each["resource"]["subject"] == {"reference": f"Patient/{taken}"}


@pytest.mark.parametrize(
    ("method", "url", "id_", "full_url", "status"),
    [
        pytest.param("POST", "Patient", "6", f"{NORTH}/Patient/5", 400, id="id"),
        pytest.param("POST", "Patient", None, f"{NORTH}/Encounter/5", 400, id="type"),
        pytest.param("POST", "Patient", None, f"{NORTH}/Patient/5", 200, id="create-without-id"),
        pytest.param("POST", "Patient", "5", "urn:uuid:00000000-0000-4000-8000-000000000008", 200, id="urn"),
        pytest.param("PUT", "Patient/moved-6", "moved-6", f"{NORTH}/Patient/5", 200, id="given-another-id-here"),
    ],
)  # fmt: skip
async def test_a_full_url_agrees_with_the_type_and_id_of_the_resource(
    client: httpx.AsyncClient, method: str, url: str, id_: str | None, full_url: str, status: int
) -> None:
    """https://hl7.org/fhir/R4/bundle-definitions.html#Bundle.entry.fullUrl"""
    content = patient() if id_ is None else patient(id=id_)
    answer = await client.post("", json=bundle(entry(method, url, content, full_url)))
    assert answer.status_code == status, answer.text
    if status == 400:
        assert_outcome(answer, 400, "value", "Bundle.entry[0].fullUrl")
