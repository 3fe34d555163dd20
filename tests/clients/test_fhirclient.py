"""fhirclient, the SMART client for Python, against a live server."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import requests
from fhirclient import client as smart_client, server as smart_server  # type: ignore[import-untyped]
from fhirclient.models import (  # type: ignore[import-untyped]
    bundle as smart_bundle,
    encounter as smart_encounter,
    observation as smart_observation,
    patient as smart_patient,
)

from tests.clients.conftest import CLASS, SYSTEM, Smart, patient

pytestmark = [pytest.mark.slow, pytest.mark.processes]


@pytest.fixture
def fhirclient(base: str) -> smart_client.FHIRClient:
    made = smart_client.FHIRClient(settings={"app_id": "carerelay-tests", "api_base": base})
    assert made.prepare()
    return made


def told(error: requests.HTTPError) -> Any:
    """What the server answered: the error brings it."""
    assert error.response is not None
    return error.response.json()


def create(client: smart_client.FHIRClient, batch: str, family: str, **more: Any) -> Any:
    """A Patient as its models have it, created."""
    made = smart_patient.Patient(patient(batch, family, **more))
    made.id = made.create(client.server)["id"]
    made.origin_server = client.server
    return made


@pytest.fixture
def family(fhirclient: smart_client.FHIRClient, batch: str) -> list[str]:
    """The ids of five Patients, in the order of their names."""
    more = [{"birthDate": f"194{number}-05-14", "gender": "female"} for number in range(5)]
    return [create(fhirclient, batch, f"Family{n}", **each).id for n, each in enumerate(more)]


def test_fhirclient_needs_no_authorization_here(fhirclient: smart_client.FHIRClient) -> None:
    assert fhirclient.ready
    statement = fhirclient.server.capabilityStatement
    assert statement.fhirVersion == "4.0.1"


def test_fhirclient_reads(fhirclient: smart_client.FHIRClient, family: list[str]) -> None:
    read = smart_patient.Patient.read(family[2], fhirclient.server)
    assert read.name[0].family == "Family2"
    assert read.birthDate.isostring == "1942-05-14"
    assert fhirclient.human_name(read.name[0]) == "Test Family2"
    with pytest.raises(smart_server.FHIRNotFoundException):
        smart_patient.Patient.read("none-such", fhirclient.server)


def test_fhirclient_searches_and_pages(
    fhirclient: smart_client.FHIRClient, family: list[str], batch: str
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


def test_fhirclient_takes_every_kind_of_value(
    fhirclient: smart_client.FHIRClient, family: list[str]
) -> None:
    """Its models are strict: what they parse is R4 as others understand it."""
    reference = {"reference": f"Patient/{family[0]}"}
    observed = smart_observation.Observation(
        {
            "status": "final",
            "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
            "subject": reference,
            "effectiveDateTime": "2026-05-14T10:00:00-04:00",
            "valueQuantity": {"value": 61.5, "unit": "/min"},
        }
    ).create(fhirclient.server)
    struct = {"subject": reference["reference"], "code": "http://loinc.org|8867-4"}
    search = smart_observation.Observation.where(struct=struct)
    (found,) = search.perform_resources_iter(fhirclient.server)
    assert (found.id, found.valueQuantity.value) == (observed["id"], 61.5)
    assert found.effectiveDateTime.isostring == "2026-05-14T10:00:00-04:00"
    none = smart_encounter.Encounter.where(struct={"subject": reference["reference"]})
    assert list(none.perform_resources_iter(fhirclient.server)) == []


def test_fhirclient_updates_and_deletes(fhirclient: smart_client.FHIRClient, batch: str) -> None:
    made = create(fhirclient, batch, "Oakenshade")
    made.gender = "female"
    made.update(fhirclient.server)
    history = fhirclient.server.request_json(f"Patient/{made.id}/_history")
    assert [each["request"]["method"] for each in history["entry"]] == ["PUT", "POST"]
    made.delete(fhirclient.server)
    with pytest.raises(requests.HTTPError) as gone:
        smart_patient.Patient.read(made.id, fhirclient.server)
    assert told(gone.value)["issue"][0]["code"] == "deleted"


def test_fhirclient_includes(fhirclient: smart_client.FHIRClient, family: list[str]) -> None:
    stay = {
        "status": "in-progress",
        "class": CLASS,
        "subject": {"reference": f"Patient/{family[0]}"},
    }
    smart_encounter.Encounter(stay).create(fhirclient.server)
    search = smart_encounter.Encounter.where(struct={"subject": f"Patient/{family[0]}"})
    found = list(search.include("subject").perform_resources_iter(fhirclient.server))
    assert [each.resource_type for each in found] == ["Encounter", "Patient"]


def test_fhirclient_sends_transactions_and_calls_operations(
    fhirclient: smart_client.FHIRClient, batch: str
) -> None:
    urn = f"urn:uuid:{uuid.uuid4()}"
    stay = {
        "resourceType": "Encounter",
        "status": "planned",
        "class": CLASS,
        "subject": {"reference": urn},
    }
    person = {"resourceType": "Patient", **patient(batch, "Oakenshade")}
    entries = [
        {"fullUrl": urn, "resource": person, "request": {"method": "POST", "url": "Patient"}},
        {"resource": stay, "request": {"method": "POST", "url": "Encounter"}},
    ]
    sent = smart_bundle.Bundle({"type": "transaction", "entry": entries})
    answer = smart_bundle.Bundle(fhirclient.server.post_json("", sent.as_json()).json())
    assert [each.response.status for each in answer.entry] == ["201", "201"]
    path = f"Patient/{answer.entry[0].resource.id}/$everything"
    everything = smart_bundle.Bundle.read_from(path, fhirclient.server)
    assert {each.resource.resource_type for each in everything.entry} == {"Patient", "Encounter"}


def test_fhirclient_understands_our_refusals(
    fhirclient: smart_client.FHIRClient, batch: str
) -> None:
    with pytest.raises(requests.HTTPError) as refusal:
        create(fhirclient, batch, "Oakenshade", gender="banana")
    assert told(refusal.value)["issue"][0]["expression"] == ["Patient.gender"]


def test_fhirclient_asks_for_a_token_by_itself(smart: Smart, batch: str) -> None:
    """As a backend service: the CapabilityStatement tells it where."""
    settings = {
        "app_id": smart.client,
        "api_base": smart.base,
        "jwt_token": smart.assertion(),
        "scope": "system/*.cruds",
    }
    service = smart_client.FHIRClient(settings=settings)
    service.wants_patient = False
    assert not service.prepare()
    with pytest.raises(smart_server.FHIRUnauthorizedException) as refused:
        create(service, batch, "Oakenshade")
    assert refused.value.response.json()["issue"][0]["code"] == "login"
    service.authorize()
    assert service.ready
    made = create(service, batch, "Oakenshade")
    assert smart_patient.Patient.read(made.id, service.server).name[0].family == "Oakenshade"
    with pytest.raises(requests.HTTPError) as again:
        service.authorize()
    assert told(again.value)["error"] == "invalid_client", "an assertion is good once"
