"""The names in notices with full resources: patient, practitioner, institution and diagnosis, as far as one may know.

42 CFR 482.24(d); https://build.fhir.org/ig/Carequality/CEQSubscription/artifacts.html
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.fhir.resource_names import name_of
from tests.builders.access_world import security
from tests.builders.davinci import Hospital, ref
from tests.builders.receiver import Received
from tests.builders.topic_listener import FEED, Listener, listening

pytestmark = pytest.mark.mongo
Json = dict[str, Any]
ADMISSION = "encounter-admission"


@pytest.fixture(scope="module")
async def hub(mongod: str) -> AsyncIterator[Listener]:
    async with listening(mongod) as listener:
        yield listener


async def told(hub: Listener, stay: Json, topic: str, content: str = "full-resource") -> Received:
    """The notice of a stay to a Subscription that was made for it."""
    patient = stay["subject"]["reference"]
    filter_ = f"Encounter?patient={patient}" if topic == FEED else f"patient={patient}"
    slug = "patient-data-feed" if topic == FEED else topic
    subscription = await hub.listen(slug, filter_, content=content)
    hub.receiver.requests.clear()
    await hub.put(stay)
    await hub.server.worker.drain()
    assert (await hub.client.delete(f"Subscription/{subscription}")).is_success
    (notice,) = hub.receiver.events
    return notice


def carried(notice: Received, resource_type: str) -> Json:
    found: Json = next(
        each["resource"]
        for each in notice.json["entry"]
        if each.get("resource", {}).get("resourceType") == resource_type
    )
    return found


async def test_patient_practitioner_institution_and_diagnosis_are_named(hub: Listener) -> None:
    hospital = Hospital()
    for each in hospital.directory:
        await hub.put(each)
    stay = hospital.stay()
    notice = await told(hub, stay, ADMISSION)
    focus = carried(notice, "Encounter")
    assert focus["subject"]["display"] == "Ada Meadow"
    assert [each["individual"].get("display") for each in focus["participant"]] == ["Birch", None]
    assert focus["serviceProvider"]["display"] == "General Hospital"
    assert focus["location"][0]["location"]["display"] == "Ward 3"
    assert focus["diagnosis"][0]["condition"]["display"] == "Heart failure"
    # Who runs the ward, for a stay that names no institution itself.
    assert carried(notice, "Location")["managingOrganization"]["display"] == "General Hospital"
    # The record itself has no names beside its references, and the reference is as it was.
    stored = (await hub.client.get(f"Encounter/{stay['id']}")).json()
    assert stored["subject"] == ref(f"Patient/p-{hospital.n}")
    assert focus["subject"]["reference"] == stored["subject"]["reference"]


@pytest.mark.parametrize("content", ["empty", "id-only"])
async def test_a_notice_without_resources_names_nobody(hub: Listener, content: str) -> None:
    hospital = Hospital()
    for each in hospital.directory:
        await hub.put(each)
    body = (await told(hub, hospital.stay(), ADMISSION, content)).body.decode()
    for name in ("Meadow", "Birch", "General Hospital", "Ward 3", "Heart failure"):
        assert name not in body


async def test_a_name_that_the_writer_gave_stays(hub: Listener) -> None:
    hospital = Hospital()
    for each in hospital.directory:
        await hub.put(each)
    withheld = {"extension": [{"url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason",
                               "valueCode": "masked"}]}  # fmt: skip
    stay = hospital.stay(
        serviceProvider=ref(f"Organization/o-{hospital.n}", display="The old hospital"),
        diagnosis=[{"condition": ref(f"Condition/c-{hospital.n}", _display=withheld)}],
    )
    focus = carried(await told(hub, stay, ADMISSION), "Encounter")
    assert focus["serviceProvider"]["display"] == "The old hospital"
    assert "display" not in focus["diagnosis"][0]["condition"]


async def test_names_of_what_does_not_travel_along_are_judged_like_it(hub: Listener) -> None:
    """US Core's feed has nothing beside its focus."""
    hospital, other = Hospital(), Hospital()
    for each in (*hospital.directory, *other.directory):
        await hub.put(each)
    n = hospital.n
    in_error = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/condition-ver-status",
                            "code": "entered-in-error"}]}  # fmt: skip
    labelled = {"id": f"labelled-{n}", "code": {"text": "Dependence"}, "meta": security("ETH")}
    wrong = {"id": f"wrong-{n}", "code": {"text": "Gout"}, "verificationStatus": in_error}
    for more in (labelled, wrong):
        await hub.put({**hospital.condition, **more})
    diagnoses = [f"c-{n}", f"labelled-{n}", f"wrong-{n}", f"c-{other.n}", "nowhere"]
    stay = hospital.stay(diagnosis=[{"condition": ref(f"Condition/{each}")} for each in diagnoses])
    notice = await told(hub, stay, FEED)
    focus = carried(notice, "Encounter")
    assert focus["subject"]["display"] == "Ada Meadow"
    assert focus["participant"][0]["individual"]["display"] == "Birch"
    named = [each["condition"].get("display") for each in focus["diagnosis"]]
    assert named == ["Heart failure", None, None, None, None]


async def test_past_events_have_the_names_of_now(hub: Listener) -> None:
    hospital = Hospital()
    for each in hospital.directory:
        await hub.put(each)
    stay = hospital.stay()
    id_ = await hub.listen(ADMISSION, f"patient=Patient/p-{hospital.n}", content="full-resource")
    await hub.put(stay)
    await hub.put({**hospital.patient, "name": [
        {"use": "old", "text": "Ada Meadow"}, {"use": "official", "text": "Ada Hill"}]})  # fmt: skip
    events = (await hub.client.get(f"Subscription/{id_}/$events")).json()
    focus = next(each for each in events["entry"] if f"Encounter/{stay['id']}" in each["fullUrl"])
    assert focus["resource"]["subject"]["display"] == "Ada Hill"
    assert (await hub.client.delete(f"Subscription/{id_}")).is_success


@pytest.mark.parametrize(
    ("resource", "name"),
    [
        pytest.param({"name": [{"given": ["Ada", "B."], "family": "Meadow", "suffix": ["MD"]}]},
                     "Ada B. Meadow MD", id="parts"),
        pytest.param({"name": [{"family": "Meadow"}, {"use": "official", "text": "A. Meadow"}]},
                     "A. Meadow", id="official-first"),
        pytest.param({"name": [{"use": "old", "family": "Meadow"}]}, "", id="given-up"),
        pytest.param({"name": "Ward 3"}, "Ward 3", id="place"),
        pytest.param({"code": {"coding": [{"code": "1"}, {"display": "Gout"}]}}, "Gout", id="code"),
        pytest.param({"name": "Team", "status": "entered-in-error"}, "", id="in-error"),
        pytest.param({}, "", id="none"),
    ],
)  # fmt: skip
def test_what_a_resource_is_called(resource: Json, name: str) -> None:
    assert name_of(resource) == name
