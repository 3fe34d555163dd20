"""References between resources: made relative on write, and checked where the operator asks for it.

https://hl7.org/fhir/R4/references.html
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.records.versions import Change
from tests.conftest import BASE, Server, make_settings, running
from tests.outcomes import assert_outcome


@pytest.fixture(scope="module")
async def checked(mongod: str) -> AsyncIterator[httpx.AsyncClient]:
    """A server that checks references."""
    settings = make_settings(mongod, referential_integrity="checked")
    async with running(settings) as (_, client):
        yield client


def fresh() -> str:
    return f"t-{uuid.uuid4()}"


def condition(subject: str, **more: Any) -> dict[str, Any]:
    return {"resourceType": "Condition", "subject": {"reference": subject}, **more}


async def new_patient(client: httpx.AsyncClient) -> str:
    """Its reference."""
    response = await client.post("/Patient", json={"resourceType": "Patient"})
    assert response.status_code == 201, response.text
    return f"Patient/{response.json()['id']}"


def entry(
    method: str, url: str, resource: dict[str, Any] | None = None, **more: str
) -> dict[str, Any]:
    made: dict[str, Any] = {"request": {"method": method, "url": url}, **more}
    return made if resource is None else {**made, "resource": resource}


def transaction(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": "transaction", "entry": list(entries)}


# On write


async def test_a_reference_to_nothing_is_refused_by_name(checked: httpx.AsyncClient) -> None:
    id_ = fresh()
    body = condition("Patient/nobody", id=id_, encounter={"reference": "Encounter/none"})
    outcome = assert_outcome(
        await checked.put(f"/Condition/{id_}", json=body), 422, "business-rule"
    )
    said = " ".join(issue["diagnostics"] for issue in outcome["issue"])
    assert "Patient/nobody" in said
    assert "Encounter/none" in said
    assert_outcome(await checked.get(f"/Condition/{id_}"), 404, "not-found")


async def test_a_reference_to_what_was_deleted_is_refused(checked: httpx.AsyncClient) -> None:
    reference = await new_patient(checked)
    assert (await checked.delete(f"/{reference}")).status_code == 204
    response = await checked.post("/Condition", json=condition(reference))
    assert_outcome(response, 422, "business-rule")


async def test_updates_and_patches_are_checked_too(checked: httpx.AsyncClient) -> None:
    reference = await new_patient(checked)
    created = (await checked.post("/Condition", json=condition(reference))).json()
    path = f"/Condition/{created['id']}"
    wrong = {**created, "subject": {"reference": "Patient/nobody"}}
    assert_outcome(await checked.put(path, json=wrong), 422, "business-rule")
    patch = '[{"op": "replace", "path": "/subject/reference", "value": "Patient/nobody"}]'
    headers = {"content-type": "application/json-patch+json"}
    response = await checked.patch(path, content=patch, headers=headers)
    assert_outcome(response, 422, "business-rule")
    assert (await checked.get(path)).json() == created


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param({"reference": "http://elsewhere.example/fhir/Patient/1"}, id="elsewhere"),
        pytest.param({"reference": "urn:uuid:" + str(uuid.uuid4())}, id="urn"),
        pytest.param({"reference": "#p"}, id="contained"),
        pytest.param({"identifier": {"value": "1"}}, id="logical"),
        pytest.param({"display": "Somebody"}, id="display"),
    ],
)
async def test_what_is_no_reference_to_this_server_is_not_checked(
    checked: httpx.AsyncClient, subject: dict[str, Any]
) -> None:
    body = {
        "resourceType": "Condition",
        "contained": [{"resourceType": "Patient", "id": "p"}],
        "subject": subject,
        "asserter": {"reference": "#p"},
    }
    response = await checked.post("/Condition", json=body)
    assert response.status_code == 201, response.text
    assert response.json()["subject"] == subject


async def test_what_an_attachment_leads_to_on_this_server_has_to_be_there(
    checked: httpx.AsyncClient,
) -> None:
    """The address of an attachment is a reference in all but its type; it is kept as it was sent."""
    binary = {"resourceType": "Binary", "contentType": "text/plain", "data": "eA=="}
    id_ = (await checked.post("/Binary", json=binary)).json()["id"]
    places: list[dict[str, Any]] = [
        {"resourceType": "DiagnosticReport", "status": "final", "code": {"text": "x"}},
        {"resourceType": "DocumentReference", "status": "current"},
    ]
    for place, base in zip(places, ("", BASE + "/"), strict=True):
        for name, status in ((fresh(), 422), (id_, 201)):
            attachment = {"url": f"{base}Binary/{name}"}
            content = {"presentedForm": [attachment], "content": [{"attachment": attachment}]}
            own = "presentedForm" if place["resourceType"] == "DiagnosticReport" else "content"
            body = {**place, own: content[own]}
            answer = await checked.post(f"/{place['resourceType']}", json=body)
            assert answer.status_code == status, answer.text
            assert f"Binary/{name}" in answer.text
    assert answer.json()["content"][0]["attachment"]["url"] == f"{BASE}/Binary/{id_}"
    # What a search of DocumentReferences finds by its address is not deleted before them.
    assert_outcome(await checked.delete(f"/Binary/{id_}"), 409, "conflict")


async def test_by_default_nothing_is_checked(client: httpx.AsyncClient) -> None:
    assert (await client.post("/Condition", json=condition("Patient/nobody"))).status_code == 201


# On delete


@pytest.mark.slow
async def test_what_others_refer_to_cannot_be_deleted_before_them(
    checked: httpx.AsyncClient,
) -> None:
    reference = await new_patient(checked)
    created = (await checked.post("/Condition", json=condition(reference))).json()
    outcome = assert_outcome(await checked.delete(f"/{reference}"), 409, "conflict")
    assert f"Condition/{created['id']}" in outcome["issue"][0]["diagnostics"]
    assert (await checked.get(f"/{reference}")).status_code == 200
    assert (await checked.delete(f"/Condition/{created['id']}")).status_code == 204
    assert (await checked.delete(f"/{reference}")).status_code == 204


async def test_a_conditional_delete_is_checked(checked: httpx.AsyncClient) -> None:
    reference = await new_patient(checked)
    await checked.post("/Condition", json=condition(reference))
    query = {"_id": reference.partition("/")[2]}
    assert_outcome(await checked.delete("/Patient", params=query), 409, "conflict")


async def test_a_resource_that_refers_to_itself_can_be_deleted(checked: httpx.AsyncClient) -> None:
    reference = await new_patient(checked)
    body = {
        "resourceType": "Patient",
        "id": reference.partition("/")[2],
        "link": [{"type": "seealso", "other": {"reference": reference}}],
    }
    assert (await checked.put(f"/{reference}", json=body)).status_code == 200
    assert (await checked.delete(f"/{reference}")).status_code == 204


# Inside a transaction


async def test_a_transaction_may_refer_to_what_it_creates(checked: httpx.AsyncClient) -> None:
    id_, urn = fresh(), f"urn:uuid:{uuid.uuid4()}"
    bundle = transaction(
        entry("POST", "Condition", condition(urn)),
        entry("POST", "Condition", condition(f"Patient/{id_}")),
        entry("POST", "Patient", {"resourceType": "Patient"}, fullUrl=urn),
        entry("PUT", f"Patient/{id_}", {"resourceType": "Patient", "id": id_}),
    )
    assert (await checked.post("", json=bundle)).status_code == 200


async def test_a_transaction_with_one_dangling_reference_stores_nothing(
    checked: httpx.AsyncClient,
) -> None:
    id_ = fresh()
    bundle = transaction(
        entry("PUT", f"Patient/{id_}", {"resourceType": "Patient", "id": id_}),
        entry("POST", "Condition", condition("Patient/nobody")),
    )
    assert_outcome(await checked.post("", json=bundle), 422, "business-rule")
    assert_outcome(await checked.get(f"/Patient/{id_}"), 404, "not-found")


async def test_a_transaction_may_not_refer_to_what_it_deletes(checked: httpx.AsyncClient) -> None:
    reference = await new_patient(checked)
    bundle = transaction(
        entry("DELETE", reference), entry("POST", "Condition", condition(reference))
    )
    response = await checked.post("", json=bundle)
    assert_outcome(response, 422, "business-rule")
    assert (await checked.get(f"/{reference}")).status_code == 200


@pytest.mark.slow
async def test_a_transaction_may_delete_a_resource_with_all_that_refer_to_it(
    checked: httpx.AsyncClient,
) -> None:
    reference = await new_patient(checked)
    created = [
        (await checked.post("/Condition", json=condition(reference))).json() for _ in range(2)
    ]
    one = transaction(entry("DELETE", reference), entry("DELETE", f"Condition/{created[0]['id']}"))
    assert_outcome(await checked.post("", json=one), 409, "conflict")
    assert (await checked.get(f"/Condition/{created[0]['id']}")).status_code == 200
    every = transaction(
        entry("DELETE", reference), *(entry("DELETE", f"Condition/{c['id']}") for c in created)
    )
    response = await checked.post("", json=every)
    assert response.status_code == 200, response.text
    assert_outcome(await checked.get(f"/{reference}"), 410, "deleted")


async def test_a_transaction_may_delete_what_its_update_no_longer_refers_to(
    checked: httpx.AsyncClient,
) -> None:
    old, new = await new_patient(checked), await new_patient(checked)
    created = (await checked.post("/Condition", json=condition(old))).json()
    moved = {**created, "subject": {"reference": new}}
    bundle = transaction(entry("DELETE", old), entry("PUT", f"Condition/{created['id']}", moved))
    response = await checked.post("", json=bundle)
    assert response.status_code == 200, response.text


# Absolute references


@pytest.mark.parametrize("integrity", ["off", "checked"])
async def test_an_absolute_reference_to_this_server_is_kept_as_a_relative_one(
    client: httpx.AsyncClient, checked: httpx.AsyncClient, integrity: str
) -> None:
    asked = checked if integrity == "checked" else client
    reference = await new_patient(asked)
    contained = condition(f"{BASE}/{reference}", id="c")
    body = condition(f"{BASE}/{reference}", contained=[contained], evidence=[])
    del body["evidence"]
    body["evidence"] = [{"detail": [{"reference": "#c"}, {"reference": f"{BASE}/{reference}"}]}]
    stored = (await asked.post("/Condition", json=body)).json()
    assert stored["subject"]["reference"] == reference
    assert stored["contained"][0]["subject"]["reference"] == reference
    assert [each["reference"] for each in stored["evidence"][0]["detail"]] == ["#c", reference]
    for subject in (reference, f"{BASE}/{reference}"):
        found = (await asked.get("/Condition", params={"subject": subject})).json()
        assert [e["resource"]["id"] for e in found["entry"]] == [stored["id"]]


async def test_a_version_specific_reference_stays_so(checked: httpx.AsyncClient) -> None:
    reference = await new_patient(checked)
    stored = await checked.post("/Condition", json=condition(f"{BASE}/{reference}/_history/1"))
    assert stored.json()["subject"]["reference"] == f"{reference}/_history/1"


async def test_an_absolute_reference_to_nothing_here_is_refused(checked: httpx.AsyncClient) -> None:
    response = await checked.post("/Condition", json=condition(f"{BASE}/Patient/nobody"))
    assert_outcome(response, 422, "business-rule")


async def test_a_base_that_only_begins_like_ours_is_somebody_elses(
    client: httpx.AsyncClient,
) -> None:
    foreign = f"{BASE}2/Patient/1"
    stored = await client.post("/Condition", json=condition(foreign))
    assert stored.json()["subject"]["reference"] == foreign


@pytest.mark.slow
async def test_a_conditional_delete_of_several_may_take_those_that_refer_to_one_another(
    mongod: str,
) -> None:
    settings = make_settings(mongod, referential_integrity="checked", conditional_delete="multiple")
    async with running(settings) as (_, client):
        first = await new_patient(client)
        link = {"type": "seealso", "other": {"reference": first}}
        await client.post("/Patient", json={"resourceType": "Patient", "link": [link]})
        response = await client.delete("/Patient", params={"_lastUpdated": "gt2000"})
        assert response.status_code == 204, response.text
        assert (await client.get("/Patient")).json()["total"] == 0


# Conditional references outside of transactions


async def identified(client: httpx.AsyncClient) -> tuple[str, str]:
    """A new Patient's reference, and one that finds it by its identifier."""
    value = fresh()
    body = {"resourceType": "Patient", "identifier": [{"system": "urn:t", "value": value}]}
    made = await client.post("/Patient", json=body)
    return f"Patient/{made.json()['id']}", f"Patient?identifier=urn:t|{value}"


@pytest.mark.parametrize("base", ["", f"{BASE}/"], ids=["relative", "absolute"])
async def test_a_conditional_reference_is_kept_as_what_it_finds(
    client: httpx.AsyncClient, base: str
) -> None:
    literal, criteria = await identified(client)
    body = condition(base + criteria, id=(id_ := fresh()))
    single = await client.put(f"/Condition/{id_}", json=body)
    assert single.json()["subject"] == {"reference": literal}
    batch = {"resourceType": "Bundle", "type": "batch"}
    posted = {
        "request": {"method": "POST", "url": "Condition"},
        "resource": condition(base + criteria),
    }
    (answered,) = (await client.post("", json={**batch, "entry": [posted]})).json()["entry"]
    assert answered["resource"]["subject"] == {"reference": literal}
    patch = [{"op": "add", "path": "/asserter", "value": {"reference": base + criteria}}]
    patched = await client.patch(
        f"/Condition/{id_}", json=patch, headers={"content-type": "application/json-patch+json"}
    )
    assert patched.json()["asserter"] == {"reference": literal}
    assert (await client.get(f"/Condition?subject={literal}")).json()["total"] == 2


@pytest.mark.parametrize(
    ("reference", "status", "code"),
    [
        pytest.param("Patient?identifier=urn:t|none-such", 412, "not-found", id="nothing"),
        pytest.param("Patient?active:missing=true", 412, "multiple-matches", id="several"),
        pytest.param("Patient?banana=1", 400, "not-supported", id="unknown"),
        pytest.param("Patient?_count=1", 400, "not-supported", id="no-criterion"),
    ],
)
async def test_a_conditional_reference_that_finds_not_one_is_refused(
    client: httpx.AsyncClient, reference: str, status: int, code: str
) -> None:
    for _ in range(2):
        await new_patient(client)
    id_ = fresh()
    answer = await client.put(f"/Condition/{id_}", json=condition(reference, id=id_))
    assert_outcome(answer, status, code)
    assert (await client.get(f"/Condition/{id_}")).status_code == 404


async def test_what_an_earlier_release_kept_conditional_keeps_nobody_from_a_change(
    server: Server, client: httpx.AsyncClient
) -> None:
    id_, criteria = fresh(), f"Patient?identifier=urn:t|{fresh()}"
    kept = condition(criteria, id=id_)
    await server.store.commit([Change("update", "Condition", id_, kept, None)])
    recorded = {**kept, "recordedDate": "2026"}
    changed = await client.put(f"/Condition/{id_}", json=recorded)
    assert (changed.status_code, changed.json()["subject"]) == (200, {"reference": criteria})
    again = {**recorded, "asserter": {"reference": f"{criteria}x"}}
    assert_outcome(await client.put(f"/Condition/{id_}", json=again), 412, "not-found")


async def test_a_bundle_that_is_only_kept_keeps_its_conditional_references(
    client: httpx.AsyncClient,
) -> None:
    reference = "Patient?identifier=urn:t|none-such"
    inside = {
        "resource": condition(reference),
        "fullUrl": "urn:uuid:6c6a3b1e-5f0e-4b7d-9d6c-1f1f0a1b2c3d",
    }
    kept = {"resourceType": "Bundle", "type": "collection", "entry": [inside]}
    stored = await client.post("/Bundle", json=kept)
    assert stored.status_code == 201, stored.text
    assert stored.json()["entry"][0]["resource"]["subject"] == {"reference": reference}


@pytest.mark.parametrize("reference", ["/Patient/77", "//host.example/fhir/Patient/77"])
async def test_a_reference_that_begins_with_a_slash_is_refused(
    client: httpx.AsyncClient, reference: str
) -> None:
    """https://hl7.org/fhir/R4/references.html#literal: relative ones are Type/id."""
    answer = await client.post("/Condition", json=condition(reference))
    assert_outcome(answer, 422, "value", "Condition.subject.reference")
