"""$process-message: what a message writes, whom it is about, and who is told.

https://hl7.org/fhir/R4/messaging.html and http://hl7.org/fhir/us/davinci-alerts
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from app.fhir import xml
from app.fhir.codes import REVIEW_REASON
from tests.builders.davinci import Hospital, alerts
from tests.builders.messages import ROOT, ForeignStay, found, one, outcome_of, refused, send, taken
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import encounter, subscribed, topic_based
from tests.conftest import BASE, SHARED, Server, make_settings, running

pytestmark = pytest.mark.mongo

Json = dict[str, Any]
Pair = tuple[Server, httpx.AsyncClient]
UNKNOWN = {
    "url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason",
    "valueCode": "unknown",
}
EXAMPLES = SHARED / "data" / "davinci-alerts" / "examples"


# What a message writes


async def test_an_admission_becomes_the_records_that_it_tells_of(
    pair: Pair, http: httpx.AsyncClient, stay: ForeignStay, receiver: Receiver
) -> None:
    """Under ids of this server, referring to each other; whoever waits for admissions is told."""
    await subscribed(pair, topic_based(endpoint=receiver.url + "/notices"))
    message = stay.message()
    answer = await send(http, message)
    outcome_of(answer, message, 200, "ok")
    visit, person = await one(http, stay.visit), await one(http, stay.person)
    assert answer.json()["entry"][0]["resource"]["focus"] == [
        {"reference": f"{BASE}/Encounter/{visit['id']}"}
    ]
    assert visit["subject"]["reference"] == f"Patient/{person['id']}"
    assert {visit["id"], person["id"]}.isdisjoint({"12", "77"})
    place = await one(http, f"/Location?identifier=urn:wards|{stay.n}")
    assert visit["location"] == [{"location": {"reference": f"Location/{place['id']}"}}]
    assert visit["serviceProvider"] == place["managingOrganization"]
    condition = await one(http, f"/Condition?encounter=Encounter/{visit['id']}")
    assert condition["subject"] == visit["subject"]
    await pair[0].worker.drain()
    (notice,) = receiver.events
    assert notice.focus.endswith(f"/Encounter/{visit['id']}")
    # The message is kept as it came, under an id of this server's, and found by its own.
    record = await one(http, f"/Bundle?identifier={ROOT}/out|{message['id']}")
    assert record["entry"] == message["entry"]


async def test_a_foreign_id_is_nobody_here(http: httpx.AsyncClient, stay: ForeignStay) -> None:
    """This server's Patient/77 and Encounter/12 are others, whatever the message calls its own."""
    ours = {"resourceType": "Patient", "id": "77", "name": [{"family": "Somebody else"}]}
    ids = [("Patient/77", ours), ("Encounter/12", {**encounter(patient="77"), "id": "12"})]
    for place, resource in ids:
        assert (await http.put(f"/{place}", json=resource)).status_code in (200, 201)
    before = [(await http.get(f"/{place}")).headers["etag"] for place, _ in ids]
    await taken(http, stay.message())
    assert (await one(http, stay.visit))["subject"]["reference"] != "Patient/77"
    assert [(await http.get(f"/{place}")).headers["etag"] for place, _ in ids] == before


@pytest.mark.parametrize("urns", [False, True], ids=["addresses", "urns"])
async def test_a_name_that_leads_to_no_entry_is_refused_and_never_ours(
    http: httpx.AsyncClient, stay: ForeignStay, urns: bool
) -> None:
    """Not even where the entries are urn:uuid, and a transaction would take it for this server's."""
    assert (await http.put("/Practitioner/5", json={**stay.doctor, "id": "5"})).is_success
    message = stay.message()
    del message["entry"][4]
    if urns:
        text = json.dumps(message)
        for entry in message["entry"]:
            id_ = entry["resource"]["id"]
            type_ = entry["resource"]["resourceType"]
            text = text.replace(f"{ROOT}/{type_}/{id_}", f"urn:uuid:{stay.n}-{type_}")
            text = text.replace(f'"{type_}/{id_}"', f'"urn:uuid:{stay.n}-{type_}"')
        message = json.loads(text)
    outcome = await refused(http, message)
    assert {each["expression"][0] for each in outcome["issue"]} >= {
        "Bundle.entry[1].resource.participant[0].individual"
    }
    assert await found(http, stay.visit) == []


async def test_a_known_person_gains_what_was_not_known_and_loses_nothing(
    http: httpx.AsyncClient, stay: ForeignStay
) -> None:
    """A message that tells of an event may be old: it fills a record, and names no primary care provider."""
    numbers = [*stay.patient["identifier"], {"system": "urn:member", "value": stay.n}]
    known = {
        "resourceType": "Patient",
        "id": stay.n,
        "identifier": numbers,
        "name": [{"family": "Meadow-Hill"}],
        "generalPractitioner": [{"display": "Dr. Own"}],
        "deceasedBoolean": False,
    }
    assert (await http.put(f"/Patient/{stay.n}", json=known)).status_code == 201
    stay.patient |= {
        "generalPractitioner": [{"display": "Dr. Other"}],
        "birthDate": "1950-01-02",
        "deceasedDateTime": "2026-11-20",
    }
    stay.patient["identifier"].append({"system": "urn:other", "value": stay.n})
    await taken(http, stay.message())
    person = await one(http, stay.person)
    assert {**person, "meta": None} == {
        **known,
        "meta": None,
        "identifier": [*numbers, {"system": "urn:other", "value": stay.n}],
        "gender": "female",
        "birthDate": "1950-01-02",
    }
    assert (await one(http, stay.visit))["subject"]["reference"] == f"Patient/{stay.n}"


async def test_a_record_of_another_person_with_the_same_number_stays_as_it_is(
    http: httpx.AsyncClient, stay: ForeignStay
) -> None:
    """Many senders number diagnoses for each patient alone."""
    first = {"system": "urn:diagnoses", "value": f"1 {stay.n}"}
    other = ForeignStay()
    for each in (stay, other):
        each.condition["identifier"] = [first]
        await taken(http, each.message())
        each.condition["code"] = {"text": "Worse"}
        await taken(http, each.message("A08", "2026-11-20T09:00:00Z"))
    records = await found(http, f"/Condition?identifier=urn:diagnoses|1 {stay.n}")
    assert len({each["subject"]["reference"] for each in records}) == len(records) == 2
    assert {each["code"]["text"] for each in records} == {"Worse"}


async def test_of_whom_it_might_be_nobody_is_taken_and_a_person_is_asked(
    pair: Pair, http: httpx.AsyncClient, stay: ForeignStay
) -> None:
    alike = [f"{name}-{stay.n}" for name in ("one", "two")]
    for id_ in alike:
        twin = {**stay.patient, "id": id_}
        assert (await http.put(f"/Patient/{id_}", json=twin)).status_code == 201
    for _ in range(2):
        outcome = await refused(http, stay.message())
        assert outcome["issue"][0]["code"] == "multiple-matches"
    assert await found(http, stay.visit) == []
    await pair[0].engine.drain()
    for id_ in alike:
        url = f"/Task?code={REVIEW_REASON}|ambiguous-patient&focus=Patient/{id_}"
        assert "for" not in await one(http, url)
    # Once they are one person, it is that one.
    merged = {"other": {"reference": f"Patient/{alike[1]}"}, "type": "replaced-by"}
    body = {**stay.patient, "id": alike[0], "link": [merged]}
    assert (await http.put(f"/Patient/{alike[0]}", json=body)).status_code == 200
    await taken(http, stay.message())
    assert (await one(http, stay.visit))["subject"]["reference"] == f"Patient/{alike[1]}"


def of_type(code: str, value: str) -> Json:
    coding = {"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": code}
    return {"type": {"coding": [coding]}, "system": f"urn:{code}", "value": value}


async def test_what_a_family_or_several_visits_have_together_tells_none_apart(
    http: httpx.AsyncClient, stay: ForeignStay
) -> None:
    """The subscriber's number of an insurance finds nobody, and an account no visit."""
    other = ForeignStay()
    for each in (stay, other):
        each.patient["identifier"] += [of_type("SN", stay.n)]
        visit = each.encounter()
        visit["identifier"] += [of_type("VN", each.n), of_type("AN", stay.n)]
        await taken(http, each.message(encounter=visit))
    people = await found(http, f"/Patient?identifier=urn:SN|{stay.n}")
    visits = await found(http, f"/Encounter?identifier=urn:AN|{stay.n}")
    assert {each["subject"]["reference"] for each in visits} == {
        f"Patient/{each['id']}" for each in people
    }
    assert len(people) == len(visits) == 2


@pytest.mark.parametrize(
    "former", [{"use": "old"}, {"period": {"end": "2010-01-01"}}], ids=["old", "over"]
)
async def test_a_number_that_was_somebodys_does_not_find_its_former_owner(
    http: httpx.AsyncClient, stay: ForeignStay, former: Json
) -> None:
    """It is another's now, whose messages find that one from then on."""
    (number,) = stay.patient["identifier"]
    known = {**stay.patient, "id": stay.n, "identifier": [{**number, **former}]}
    assert (await http.put(f"/Patient/{stay.n}", json=known)).status_code == 201
    for event in ("A01", "A08"):
        await taken(http, stay.message(event))
        visit = await one(http, stay.visit)
        assert visit["subject"]["reference"] != f"Patient/{stay.n}"
    assert len(await found(http, stay.person)) == 2


async def test_what_has_no_number_is_found_by_its_own_address(
    http: httpx.AsyncClient, stay: ForeignStay
) -> None:
    """That is no id of somebody's: it says whose it is."""
    stay.root = f"https://{stay.n}.example.org/fhir"
    for event, status in (("admit", "in-progress"), ("discharge", "finished")):
        visit = stay.encounter(status)
        del visit["identifier"]
        at = {"admit": "2026-11-20T08:00:00Z", "discharge": "2026-11-21T08:00:00Z"}[event]
        await taken(http, stay.message(event, at, visit))
    only = await one(http, f"/Encounter?identifier=urn:ietf:rfc:3986|{stay.root}/Encounter/12")
    assert only["status"] == "finished"
    await one(http, f"/Condition?identifier=urn:ietf:rfc:3986|{stay.root}/Condition/9")


PERSON = {"reference": "Patient/77"}
TEAM = {"resourceType": "CareTeam", "id": "21", "status": "active", "subject": PERSON}
ORDER = {"status": "active", "intent": "order", "subject": PERSON}


@pytest.mark.parametrize(
    ("event", "resource"),
    [
        ("new-condition", {"resourceType": "Condition", "id": "22", "subject": PERSON}),
        ("care-team-change", TEAM),
        ("referral", {"resourceType": "ServiceRequest", "id": "23", **ORDER}),
    ],
)
async def test_the_other_events_that_this_server_tells_of_are_taken(
    http: httpx.AsyncClient, stay: ForeignStay, event: str, resource: Json
) -> None:
    message = stay.message(event)
    message["entry"].append(stay.entry(resource))
    place = message["entry"][-1]["fullUrl"]
    message["entry"][0]["resource"]["focus"] = [{"reference": place}]
    answer = await send(http, message)
    outcome_of(answer, message, 200, "ok")
    (focus,) = answer.json()["entry"][0]["resource"]["focus"]
    stored = (await http.get(focus["reference"].removeprefix(BASE))).json()
    person = await one(http, stay.person)
    assert stored["resourceType"] == resource["resourceType"]
    assert stored["subject"] == {"reference": f"Patient/{person['id']}"}


# The order of a visit's messages


async def test_messages_of_a_visit_out_of_order_end_as_if_in_order(
    http: httpx.AsyncClient, stay: ForeignStay
) -> None:
    """By when each was made; the door is one more beside PUT (docs/encounters.md)."""
    period = {"start": "2026-11-20T08:00:00Z", "end": "2026-11-21T10:00:00Z"}
    discharge = stay.message(
        "discharge", "2026-11-21T10:00:00Z", stay.encounter("finished", period=period)
    )
    await taken(http, discharge)
    stay.condition["code"] = {"text": "As it was before"}
    late = stay.message("A01", encounter=stay.encounter(class_="EMER"))
    outcome = await taken(http, late, 202)
    assert any("Newer messages" in each["diagnostics"] for each in outcome["issue"])
    visit = await one(http, stay.visit)
    assert (visit["status"], visit["class"]["code"]) == ("finished", "IMP")
    about = f"/Condition?encounter=Encounter/{visit['id']}"
    assert (await one(http, about))["code"]["text"] == "Heart failure"
    # A message of HL7 v2 without a focus is about its Encounter.
    reopened = stay.message("A13", "2026-11-21T11:00:00Z")
    del reopened["entry"][0]["resource"]["focus"]
    await taken(http, reopened)
    visit = await one(http, stay.visit)
    assert visit["status"] == "in-progress"
    assert "end" not in visit.get("period", {})


def alert(stay: ForeignStay, event: str, at: str, resource: Json) -> Json:
    """A notification about one record, no visit."""
    message = stay.message(event, at)
    entry = stay.entry(resource)
    kept = [each for each in message["entry"] if each["resource"]["resourceType"] == "Patient"]
    message["entry"] = [message["entry"][0], *kept, entry]
    message["entry"][0]["resource"]["focus"] = [{"reference": entry["fullUrl"]}]
    return message


LATE = "known as it was later"


@pytest.mark.parametrize(
    ("event", "resource", "what_it_says"),
    [
        ("care-team-change", TEAM, "name"),
        ("new-condition", {"resourceType": "Condition", "id": "22", "subject": PERSON}, "code"),
        ("referral", {"resourceType": "ServiceRequest", "id": "23", **ORDER}, "code"),
    ],
)
async def test_a_late_alert_does_not_put_back_what_a_newer_one_has_changed(
    http: httpx.AsyncClient, stay: ForeignStay, event: str, resource: Json, what_it_says: str
) -> None:
    """As one that is sent again after an outage: it would name the former practice."""

    def saying(text: str, hour: int) -> Json:
        value = text if what_it_says == "name" else {"text": text}
        return alert(stay, event, f"2026-11-20T{hour:02}:00:00Z", {**resource, what_it_says: value})

    await taken(http, saying("First", 8))
    place = f"/{resource['resourceType']}?subject:Patient.identifier=urn:mrn|{stay.n}"

    async def said() -> Any:
        value = (await one(http, place))[what_it_says]
        return value if what_it_says == "name" else value["text"]

    await taken(http, saying("Newer", 12))
    outcome = await taken(http, saying("Older", 10), 202)
    assert any(LATE in each["diagnostics"] for each in outcome["issue"])
    assert await said() == "Newer"
    # The same again in a message of its own says that it still is so, and so is newer than what comes late.
    await taken(http, saying("Newer", 14))
    await taken(http, saying("Older", 13), 202)
    assert await said() == "Newer"
    await taken(http, saying("Newest", 15))
    assert await said() == "Newest"
    # What was written by another door is as new as that.
    stored = await one(http, place)
    path = f"/{stored['resourceType']}/{stored['id']}"
    assert (await http.put(path, json={**stored, "language": "en"})).is_success
    await taken(http, saying("Older", 16), 202)
    assert await said() == "Newest"


async def test_a_late_message_of_another_visit_leaves_a_newer_diagnosis(
    http: httpx.AsyncClient, stay: ForeignStay
) -> None:
    """A diagnosis with an identifier of its own, in the messages of two visits."""
    stay.condition["identifier"] = [{"system": "urn:problems", "value": stay.n}]
    await taken(http, stay.message("A01", "2026-11-20T10:00:00Z"))
    former = {**stay.encounter(), "identifier": [{"system": "urn:visits", "value": f"{stay.n}-0"}]}
    stay.condition["code"] = {"text": "As it was before"}
    outcome = await taken(http, stay.message("A01", "2026-11-20T09:00:00Z", former), 202)
    assert any(LATE in each["diagnostics"] for each in outcome["issue"])
    assert (await one(http, f"/Encounter?identifier={stay.n}-0"))["status"] == "in-progress"
    found = await one(http, f"/Condition?identifier=urn:problems|{stay.n}")
    assert found["code"]["text"] == "Heart failure"
    stay.condition["code"] = {"text": "As it is now"}
    await taken(http, stay.message("A08", "2026-11-20T11:00:00Z", former))
    found = await one(http, f"/Condition?identifier=urn:problems|{stay.n}")
    assert found["code"]["text"] == "As it is now"


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("is_reversed", [False, True])
async def test_a_batch_runs_messages_and_writes_of_one_visit_in_the_order_of_their_events(
    http: httpx.AsyncClient, stay: ForeignStay, wrapped: bool, is_reversed: bool
) -> None:
    """Whatever their order in the Bundle, and by whatever door: an admission after its discharge would be late."""
    admission: Json = stay.message("A01", "2026-11-20T08:00:00Z")
    if wrapped:
        content = [{"name": "content", "resource": admission}]
        admission = {"resourceType": "Parameters", "parameter": content}
    period = {"start": "2026-11-20T08:00:00Z", "end": "2026-11-21T10:00:00Z"}
    discharge = {**stay.encounter("finished", period=period)}
    for name in ("id", "participant", "location", "serviceProvider"):
        del discharge[name]
    person = (await http.post("/Patient", json=stay.patient)).json()
    discharge["subject"] = {"reference": f"Patient/{person['id']}"}
    entries = [
        {
            "resource": discharge,
            "request": {"method": "PUT", "url": f"Encounter?identifier=urn:visits|{stay.n}"},
        },
        {"resource": admission, "request": {"method": "POST", "url": "$process-message"}},
    ]
    batch = {
        "resourceType": "Bundle",
        "type": "batch",
        "entry": entries[::-1] if is_reversed else entries,
    }
    answers = (await http.post("", json=batch)).json()["entry"]
    statuses = [each["response"]["status"][:3] for each in answers]
    assert (statuses[::-1] if is_reversed else statuses) == ["200", "200"]
    visit = await one(http, stay.visit)
    assert visit["status"] == "finished"
    history = (await http.get(f"/Encounter/{visit['id']}/_history")).json()["entry"]
    assert [each["resource"]["status"] for each in history] == ["finished", "in-progress"]


async def test_a_status_that_is_not_known_is_that_of_the_event(
    pair: Pair, http: httpx.AsyncClient, stay: ForeignStay, receiver: Receiver
) -> None:
    """As interface engines send it that map PV2-24 alone: each step is told."""
    for topic in ("encounter-admission", "encounter-discharge", "encounter-cancelled"):
        listening = topic_based(endpoint=f"{receiver.url}/{stay.n}/{topic}")
        criteria = listening["criteria"].replace("encounter-admission", topic)
        await subscribed(pair, {**listening, "criteria": criteria})
    receiver.requests.clear()
    unstated: list[Json] = [
        {"status": "unknown"},
        {"status": None, "_status": {"extension": [UNKNOWN]}},
    ]
    steps = [
        ("A05", "planned"),
        ("A01", "in-progress"),
        ("A08", "in-progress"),
        ("A03", "finished"),
        ("A13", "in-progress"),
        ("A11", "cancelled"),
    ]
    for hour, (event, status) in enumerate(steps):
        visit = {**stay.encounter(), **unstated[hour % 2]}
        visit = {key: value for key, value in visit.items() if value is not None}
        await taken(http, stay.message(event, f"2026-11-20T{hour:02}:00:00Z", visit))
        assert (await one(http, stay.visit))["status"] == status
        await pair[0].worker.drain()
    told = [each.path.rpartition("-")[2] for each in receiver.requests if stay.n in each.path]
    assert told == ["admission", "discharge", "cancelled", "cancelled"]


GONE: Json = {
    "period": {"start": "2026-11-19T08:00:00Z", "end": "2026-11-20T08:00:00Z"},
    "hospitalization": {"dischargeDisposition": {"text": "Home"}},
}


@pytest.mark.parametrize(
    ("event", "status", "more"),
    [
        ("A01", "cancelled", {}),
        ("A03", "in-progress", {}),
        ("A05", "in-progress", {}),
        ("A11", "in-progress", {}),
        ("A13", "in-progress", GONE),
        ("A01", "unknown", GONE),
        ("admit", "finished", {}),
        ("discharge", "in-progress", {"period": GONE["period"]}),
        ("transfer", "planned", {}),
    ],
)
async def test_a_status_that_contradicts_the_event_is_refused(
    http: httpx.AsyncClient, stay: ForeignStay, event: str, status: str, more: Json
) -> None:
    """Nobody can tell whether somebody was admitted; the sender is told what does not agree."""
    outcome = await refused(http, stay.message(event, encounter=stay.encounter(status, **more)))
    (issue,) = outcome["issue"]
    assert issue["code"] == "business-rule"
    assert issue["expression"] == ["Bundle.entry[1].resource.status"]
    assert await found(http, stay.visit) == []


async def test_who_has_left_is_discharged_though_the_stay_is_not_closed(
    http: httpx.AsyncClient, stay: ForeignStay
) -> None:
    """An active status with a disposition and an end is a discharge, as docs/encounters.md has it."""
    message = stay.message("A03", encounter=stay.encounter("in-progress", **GONE))
    await taken(http, message)


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the guide's examples are not at hand")
async def test_the_examples_of_the_guide_are_taken(http: httpx.AsyncClient) -> None:
    """Six messages of one stay, through intermediaries too: one person, one visit, one coverage."""
    examples = [json.loads(path.read_text()) for path in EXAMPLES.glob("*.json")]
    for message in sorted(examples, key=lambda each: str(each["timestamp"])):
        await taken(http, message)
    person = await one(http, "/Patient?identifier=http://hl7.org/fhir/sid/us-ssn|999-87-1037")
    about = f"patient=Patient/{person['id']}"
    visit = await one(http, f"/Encounter?{about}")
    assert visit["serviceProvider"]["reference"].startswith("Organization/")
    assert len(await found(http, f"/Coverage?beneficiary=Patient/{person['id']}")) == 1
    assert len(await found(http, f"/Condition?{about}")) == 1
    assert len(await found(http, "/Practitioner?identifier=9999999995")) == 1


async def test_the_capability_statement_says_where_messages_are_taken(
    http: httpx.AsyncClient,
) -> None:
    (stated,) = (await http.get("/metadata")).json()["messaging"]
    assert stated["endpoint"][0]["address"] == f"{BASE}/$process-message"
    assert stated["reliableCache"] == 30 * 24 * 60
    assert "notification-discharge" in stated["documentation"]


async def test_a_message_in_xml_is_answered_in_xml(
    http: httpx.AsyncClient, stay: ForeignStay
) -> None:
    kind = "application/fhir+xml"
    answer = await http.post(
        "/$process-message",
        content=xml.encode(stay.message()),
        headers={"content-type": kind, "accept": kind},
    )
    assert answer.status_code == 200, answer.text
    assert xml.decode(answer.content)["type"] == "message"


# From one server to another


async def test_the_alert_of_one_server_is_taken_by_another_which_tells_its_own(
    mongod: str, pair: Pair, http: httpx.AsyncClient, receiver: Receiver
) -> None:
    """Admission and discharge; the second server's records are its own, and its practice hears of each once."""
    hospital = Hospital()
    hospital.organization["identifier"] = [{"system": "urn:facility", "value": hospital.n}]
    number = [{"system": "urn:visits", "value": hospital.n}]
    started_ = "2026-11-20T08:00:00Z"
    steps = [
        hospital.stay(identifier=number, period={"start": started_}),
        hospital.stay(
            "finished",
            identifier=number,
            period={"start": started_, "end": "2026-11-21T08:00:00Z"},
        ),
    ]
    async with running(make_settings(mongod, base_url="http://first.test/fhir")) as first:
        for topic in ("encounter-admission", "encounter-discharge"):
            await subscribed(first, alerts(receiver.url + "/alerts", topic))
            listening = topic_based(endpoint=receiver.url + "/notices")
            criteria = listening["criteria"].replace("encounter-admission", topic)
            await subscribed(pair, {**listening, "criteria": criteria})
        for resource in (*hospital.directory, *steps):
            place = f"/{resource['resourceType']}/{resource['id']}"
            assert (await first[1].put(place, json=resource)).is_success
            await first[0].worker.drain()
    sent = [each.json for each in receiver.requests if each.path == "/alerts/$process-message"]
    codes = [each["entry"][0]["resource"]["eventCoding"]["code"] for each in sent]
    assert codes == ["notification-admit", "notification-discharge"]
    receiver.requests.clear()
    for message in (sent[0], sent[1], *sent):
        await taken(http, message)
        await pair[0].worker.drain()
    visit = await one(http, f"/Encounter?identifier=urn:visits|{hospital.n}")
    assert (visit["status"], visit["id"] == steps[0]["id"]) == ("finished", False)
    person = await one(http, f"/Patient?identifier=urn:mrn|{hospital.n}")
    assert visit["subject"]["reference"] == f"Patient/{person['id']}"
    told = [each for each in receiver.events if each.focus.endswith(visit["id"])]
    assert len(told) == 2
