"""Operations in general, $validate, $everything and $meta. https://hl7.org/fhir/R4/operations.html"""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import pytest

from app.operations.registry import OPERATIONS
from app.search import page_bytes
from tests.conftest import JSON, make_settings, running
from tests.outcomes import assert_outcome

NARRATIVE = {
    "status": "generated",
    "div": '<div xmlns="http://www.w3.org/1999/xhtml">What is said here</div>',
}


def fresh() -> str:
    return f"t-{uuid.uuid4()}"


def parameters(*given: dict[str, Any]) -> dict[str, Any]:
    return {"resourceType": "Parameters", "parameter": list(given)}


async def put(client: httpx.AsyncClient, resource: dict[str, Any]) -> str:
    url = f"/{resource['resourceType']}/{resource['id']}"
    response = await client.put(url, json=resource)
    assert response.status_code in (200, 201), response.text
    return url


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.definition)
async def test_every_operation_serves_its_definition(
    client: httpx.AsyncClient, operation: Any
) -> None:
    response = await client.get(f"/OperationDefinition/{operation.definition}")
    assert response.status_code == 200
    assert response.json()["code"] == operation.code
    found = await client.get("/OperationDefinition", params={"url": operation.resource["url"]})
    assert [e["resource"]["id"] for e in found.json()["entry"]] == [operation.definition]


@pytest.mark.parametrize(
    ("method", "url", "status", "code"),
    [
        pytest.param("GET", "/$bogus", 404, "not-supported", id="unknown"),
        pytest.param("GET", "/Encounter/$everything", 404, "not-supported", id="other-type"),
        pytest.param(
            "GET", "/Patient/x/$everything?bogus=1", 400, "not-supported", id="unknown-parameter"
        ),
        pytest.param("GET", "/Patient/x/$everything?_count=many", 400, "value", id="bad-value"),
        pytest.param("POST", "/Patient/x/$meta-add", 400, "required", id="missing-parameter"),
        pytest.param("GET", "/Patient/x/$meta-add", 405, "not-supported", id="change-by-get"),
        pytest.param("DELETE", "/Patient/x/$everything", 405, "not-supported", id="verb"),
    ],
)
async def test_calls_that_do_not_fit_are_refused(
    client: httpx.AsyncClient, method: str, url: str, status: int, code: str
) -> None:
    assert_outcome(await client.request(method, url, headers=JSON), status, code)


async def test_posted_parameters_are_checked_against_the_definition(
    client: httpx.AsyncClient,
) -> None:
    unknown = parameters({"name": "bogus", "valueString": "x"})
    assert_outcome(
        await client.post("/Patient/$validate", json=unknown),
        400,
        "not-supported",
        "Parameters.parameter[0]",
    )
    twice = parameters(
        {"name": "mode", "valueCode": "create"}, {"name": "mode", "valueCode": "create"}
    )
    assert_outcome(await client.post("/Patient/$validate", json=twice), 400, "invalid", "mode")
    wrong = parameters({"name": "mode", "valueInteger": 1})
    assert_outcome(await client.post("/Patient/$validate", json=wrong), 400, "value")


async def test_validate_judges_without_storing(client: httpx.AsyncClient) -> None:
    id_ = fresh()
    text = {"status": "generated", "div": "<div xmlns='http://www.w3.org/1999/xhtml'>active</div>"}
    good = {"resourceType": "Patient", "id": id_, "text": text, "active": True}
    for body in (good, parameters({"name": "resource", "resource": good})):
        outcome = (await client.post("/Patient/$validate", json=body)).json()
        assert [issue["severity"] for issue in outcome["issue"]] == ["information"]
    assert_outcome(await client.get(f"/Patient/{id_}"), 404, "not-found")


async def test_validate_judges_types_that_r4b_dropped_or_reworked_by_r4(
    client: httpx.AsyncClient,
) -> None:
    """`outcome` of Evidence and the MedicinalProduct are R4's; R4B has neither."""
    evidence: dict[str, Any] = {
        "resourceType": "Evidence",
        "status": "draft",
        "exposureBackground": {"reference": "EvidenceVariable/1"},
        "outcome": [{"reference": "EvidenceVariable/2"}],
        "text": NARRATIVE,
        "extension": [{"url": "http://e.example/product", "valueReference": {"reference": "#p"}}],
        "contained": [
            {"resourceType": "MedicinalProduct", "id": "p", "name": [{"productName": "Equilidem"}]}
        ],
    }
    answer = await client.post("/Evidence/$validate", json=evidence)
    assert [issue["severity"] for issue in answer.json()["issue"]] == ["information"]
    assert (await client.post("/Evidence", json=evidence)).status_code == 201
    del evidence["contained"][0]["name"]
    (issue,) = (await client.post("/Evidence/$validate", json=evidence)).json()["issue"]
    assert (issue["code"], issue["expression"]) == ("required", ["Evidence.contained[0].name"])


async def test_validate_names_what_is_wrong(client: httpx.AsyncClient) -> None:
    bad = {"resourceType": "Patient", "gender": "banana", "birthDate": "1999-02-30"}
    response = await client.post("/Patient/$validate", json=bad)
    assert response.status_code == 200
    found = {
        (i["code"], *i.get("expression", ()))
        for i in response.json()["issue"]
        if i["severity"] == "error"
    }
    assert ("code-invalid", "Patient.gender") in found
    assert any(path[1:] == ("Patient.birthDate",) for path in found)
    other = await client.post("/Encounter/$validate", json={"resourceType": "Patient"})
    assert other.json()["issue"][0]["severity"] == "error"


US_CORE = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-patient"


@pytest.mark.parametrize("beside", [True, False], ids=["plain-resource", "parameters"])
async def test_a_profile_that_cannot_be_checked_is_an_error(
    client: httpx.AsyncClient, *, beside: bool
) -> None:
    resource = {"resourceType": "Patient"}
    if beside:
        answer = await client.post(f"/Patient/$validate?profile={US_CORE}", json=resource)
    else:
        named = {"name": "profile", "valueUri": US_CORE}
        body = parameters({"name": "resource", "resource": resource}, named)
        answer = await client.post("/Patient/$validate", json=body)
    assert_outcome(answer, 400, "not-supported", "profile")


@pytest.mark.parametrize(
    ("profile", "severity"),
    [
        pytest.param("Patient", "information", id="its-own"),
        pytest.param("Patient|4.0.1", "information", id="version"),
        pytest.param("Encounter", "error", id="another-type"),
    ],
)
async def test_the_base_definition_is_a_profile_that_is_checked(
    client: httpx.AsyncClient, profile: str, severity: str
) -> None:
    url = f"/Patient/$validate?profile=http://hl7.org/fhir/StructureDefinition/{profile}"
    outcome = (await client.post(url, json={"resourceType": "Patient", "text": NARRATIVE})).json()
    assert [issue["severity"] for issue in outcome["issue"]] == [severity]


async def test_a_claim_of_a_profile_is_told_to_be_unchecked(client: httpx.AsyncClient) -> None:
    body = {"resourceType": "Patient", "meta": {"profile": [US_CORE]}, "text": NARRATIVE}
    first = (await client.post("/Patient/$validate", json=body)).json()["issue"][0]
    assert (first["severity"], first["expression"]) == ("warning", ["Patient.meta.profile[0]"])


@pytest.mark.parametrize(
    ("query", "code", "named"),
    [
        pytest.param("mode=banana", "invalid", "mode", id="value"),
        pytest.param("banana=1", "not-supported", "banana", id="name"),
        pytest.param("mode=profile", "required", "profile", id="profile-without-one"),
        pytest.param("mode=delete", "invalid", "resource", id="delete-with-a-resource"),
    ],
)
async def test_a_query_beside_a_plain_resource_is_read(
    client: httpx.AsyncClient, query: str, code: str, named: str
) -> None:
    answer = await client.post(f"/Patient/$validate?{query}", json={"resourceType": "Patient"})
    assert_outcome(answer, 400, code, named)


async def test_validate_judges_a_deletion(mongod: str) -> None:
    settings = make_settings(mongod, referential_integrity="checked")
    async with running(settings) as (_, client):
        url = await put(client, {"resourceType": "Patient", "id": fresh()})
        free = (await client.get(f"{url}/$validate?mode=delete")).json()
        assert [issue["severity"] for issue in free["issue"]] == ["information"]
        subject = {"reference": url.removeprefix("/")}
        await put(client, {"resourceType": "Condition", "id": fresh(), "subject": subject})
        needed = (await client.get(f"{url}/$validate?mode=delete")).json()
        assert [issue["severity"] for issue in needed["issue"]] == ["error"]
        assert (await client.get(url)).status_code == 200


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"name": "mode", "resource": {"resourceType": "Patient"}}, id="no-resource"),
        pytest.param(
            {"name": "mode", "part": [{"name": "x", "valueCode": "create"}]}, id="no-parts"
        ),
        pytest.param(
            {
                "name": "mode",
                "valueCode": "create",
                "modifierExtension": [{"url": "u:x", "valueCode": "x"}],
            },
            id="modifier",
        ),
        pytest.param(
            {
                "name": "mode",
                "valueCode": "create",
                "modifierExtension": [{"url": "urn:not", "valueBoolean": True}],
            },
            id="modifier",
        ),
    ],
)
async def test_what_a_parameter_brings_beside_its_value_is_refused(
    client: httpx.AsyncClient, given: dict[str, Any]
) -> None:
    body = parameters({"name": "resource", "resource": {"resourceType": "Patient"}}, given)
    answer = await client.post("/Patient/$validate", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["issue"][0]["expression"][0].startswith("Parameters.parameter[1]")


async def test_validate_of_an_instance(client: httpx.AsyncClient) -> None:
    url = await put(client, {"resourceType": "Patient", "id": fresh()})
    issues = (await client.get(f"{url}/$validate")).json()["issue"]
    assert [issue["severity"] for issue in issues] == ["warning", "information"]
    assert "dom-6" in issues[0]["diagnostics"]
    assert_outcome(await client.get("/Patient/none-such/$validate"), 404, "not-found")
    update = parameters(
        {"name": "resource", "resource": {"resourceType": "Patient", "id": "other"}},
        {"name": "mode", "valueCode": "update"},
    )
    issues = (await client.post(f"{url}/$validate", json=update)).json()["issue"]
    assert ("error", ["Patient.id"]) in [(i["severity"], i.get("expression")) for i in issues]


async def story(client: httpx.AsyncClient) -> dict[str, str]:
    """A patient with resources in the compartment, what they refer to, and another patient beside."""
    ids = {
        name: fresh()
        for name in ("patient", "other", "encounter", "condition", "org", "doctor", "team")
    }
    subject = {"reference": f"Patient/{ids['patient']}"}
    klass = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"}
    for resource in (
        {"resourceType": "Organization", "id": ids["org"], "name": "Hospital"},
        {"resourceType": "Practitioner", "id": ids["doctor"]},
        {"resourceType": "Patient", "id": ids["patient"]},
        {
            "resourceType": "Patient",
            "id": ids["other"],
            "generalPractitioner": [{"reference": f"Practitioner/{ids['doctor']}"}],
        },
        {
            "resourceType": "Encounter",
            "id": ids["encounter"],
            "status": "finished",
            "class": klass,
            "subject": subject,
            "period": {"start": "2026-03-01T10:00:00Z", "end": "2026-03-04T10:00:00Z"},
            "serviceProvider": {"reference": f"Organization/{ids['org']}"},
        },
        {
            "resourceType": "Condition",
            "id": ids["condition"],
            "subject": subject,
            "onsetDateTime": "2019-01-01",
            "asserter": {"reference": f"Practitioner/{ids['doctor']}"},
        },
        {
            "resourceType": "CareTeam",
            "id": ids["team"],
            "subject": subject,
            "participant": [{"member": {"reference": f"Patient/{ids['other']}"}}],
        },
    ):
        await put(client, resource)
    return ids


def references(bundle: dict[str, Any], mode: str) -> set[str]:
    return {
        f"{entry['resource']['resourceType']}/{entry['resource']['id']}"
        for entry in bundle.get("entry", [])
        if entry["search"]["mode"] == mode
    }


async def test_everything_is_the_compartment_and_what_it_refers_to_but_no_other_patient(
    client: httpx.AsyncClient,
) -> None:
    ids = await story(client)
    bundle = (await client.get(f"/Patient/{ids['patient']}/$everything")).json()
    assert bundle["type"] == "searchset"
    assert references(bundle, "match") == {
        f"Patient/{ids['patient']}",
        f"Encounter/{ids['encounter']}",
        f"Condition/{ids['condition']}",
        f"CareTeam/{ids['team']}",
    }
    assert references(bundle, "include") == {
        f"Organization/{ids['org']}",
        f"Practitioner/{ids['doctor']}",
    }


async def test_everything_has_the_binaries_that_documents_attach(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so much on a page as fits with them."""
    monkeypatch.setattr(page_bytes, "PAGE_BYTES", 40_000)
    ids = await story(client)
    base, pdf = str(client.base_url).rstrip("/"), {"content-type": "application/pdf"}
    for number in range(3):
        name = f"{ids['patient']}-{number}"
        await client.put(f"/Binary/{name}", content=b"%PDF" * 3_000, headers=pdf)
        url = f"Binary/{name}" if number else f"{base}/Binary/{name}"
        document = {
            "resourceType": "DocumentReference",
            "id": name,
            "status": "current",
            "subject": {"reference": f"Patient/{ids['patient']}"},
            "content": [{"attachment": {"url": url}}],
        }
        await put(client, document)
    met: list[set[str]] = []
    following: str | None = f"/Patient/{ids['patient']}/$everything?_type=DocumentReference"
    while following:
        page = (await client.get(following)).json()
        matches, others = references(page, "match"), references(page, "include")
        documents = {each.replace("DocumentReference", "Binary") for each in matches}
        assert others == documents
        met.append(matches)
        links = {each["relation"]: each["url"] for each in page["link"]}
        following = links.get("next")
    assert [len(each) for each in met] == [2, 1]
    # One that attaches more than a page holds brings what fits, and says so.
    urls = [{"attachment": {"url": f"Binary/{ids['patient']}-{number}"}} for number in range(3)]
    await put(client, {**document, "id": f"{ids['patient']}-0", "content": urls})
    url = f"/Patient/{ids['patient']}/$everything?_type=DocumentReference&_count=1"
    page = (await client.get(url)).json()
    assert len(references(page, "include")) == 2
    told = page["entry"][-1]
    assert (told["search"]["mode"], told["resource"]["issue"][0]["code"]) == (
        "outcome",
        "too-costly",
    )


async def test_everything_in_pages_meets_each_match_once(client: httpx.AsyncClient) -> None:
    ids = await story(client)
    url = f"/Patient/{ids['patient']}/$everything?_count=1"
    seen: list[str] = []
    while url:
        bundle = (await client.get(url)).json()
        assert len(references(bundle, "match")) == 1
        seen += references(bundle, "match")
        url = next((link["url"] for link in bundle["link"] if link["relation"] == "next"), "")
    assert len(seen) == len(set(seen)) == 4


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param("_type=Encounter", {"encounter"}, id="type"),
        pytest.param("_type=Encounter,Condition", {"encounter", "condition"}, id="types"),
        pytest.param("start=2026-01-01", {"patient", "encounter", "team"}, id="start"),
        pytest.param("end=2020-01-01", {"patient", "condition", "team"}, id="end"),
        pytest.param("_since=2999-01-01T00:00:00Z", set(), id="since"),
    ],
)
async def test_everything_filtered(
    client: httpx.AsyncClient, query: str, expected: set[str]
) -> None:
    ids = await story(client)
    bundle = (await client.get(f"/Patient/{ids['patient']}/$everything?{query}")).json()
    found = {
        name
        for name, id_ in ids.items()
        for match in references(bundle, "match")
        if match.endswith(id_)
    }
    assert found == expected


async def test_everything_of_nobody(client: httpx.AsyncClient) -> None:
    assert_outcome(await client.get("/Patient/none-such/$everything"), 404, "not-found")


async def test_meta_operations_read_add_and_delete_labels(client: httpx.AsyncClient) -> None:
    tag = {"system": f"urn:{fresh()}", "code": "a"}
    url = await put(client, {"resourceType": "Patient", "id": fresh(), "meta": {"tag": [tag]}})
    added = {"security": [{"system": "urn:s", "code": "R"}], "tag": [{**tag, "display": "again"}]}
    body = parameters({"name": "meta", "valueMeta": added})
    answer = await client.post(f"{url}/$meta-add", json=body)
    written = (answer.headers["etag"], answer.headers["content-location"].partition("/fhir")[2])
    assert written == ('W/"2"', f"{url}/_history/2")
    meta = answer.json()["parameter"][0]["valueMeta"]
    assert (meta["tag"], meta["security"], meta["versionId"]) == ([tag], added["security"], "2")
    in_use = (await client.get("/Patient/$meta")).json()["parameter"][0]["valueMeta"]
    assert tag in in_use["tag"]
    body = parameters(
        {"name": "meta", "valueMeta": {"tag": [{"system": tag["system"], "code": "a"}]}}
    )
    meta = (await client.post(f"{url}/$meta-delete", json=body)).json()["parameter"][0]["valueMeta"]
    assert "tag" not in meta
    again = (await client.get(f"{url}/$meta")).json()["parameter"][0]["valueMeta"]
    assert again == meta
