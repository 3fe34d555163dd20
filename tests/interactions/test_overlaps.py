"""A transaction is planned against itself. https://hl7.org/fhir/R4/http.html#trules"""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import pytest

from tests.builders.bundles import bundle, condition, entry, identified, visit
from tests.builders.visit_messages import message
from tests.outcomes import assert_outcome


@pytest.fixture
def value() -> str:
    """An identifier that nobody has yet."""
    return str(uuid.uuid4())


def person(value: str) -> str:
    return f"identifier=urn:test|{value}"


async def count(client: httpx.AsyncClient, query: str) -> int:
    total: int = (await client.get(f"/{query}&_total=accurate")).json()["total"]
    return total


async def test_a_repeated_conditional_create_of_equal_content_is_one(
    client: httpx.AsyncClient, value: str
) -> None:
    """Whatever the sources' ids, and however what they refer to is written."""
    urns = [f"urn:uuid:{uuid.uuid4()}" for _ in range(3)]
    request = bundle(
        entry("POST", "Patient", identified(value, managingOrganization={"reference": urns[2]}, id="1"),
              urns[0], ifNoneExist=person(value)),
        entry("POST", "Organization", {"resourceType": "Organization", "name": value}, urns[2]),
        entry("POST", "Condition", condition(urns[1])),
        entry("POST", "Patient", identified(value, managingOrganization={"reference": urns[2]}, id="2"),
              urns[1], ifNoneExist=person(value)),
        entry("POST", "Condition", condition(urns[0])),
    )  # fmt: skip
    answers = (await client.post("", json=request)).json()["entry"]
    assert [each["response"]["status"] for each in answers] == ["201", "201", "201", "200", "201"]
    reference = f"Patient/{answers[0]['resource']['id']}"
    assert answers[3]["resource"] == answers[0]["resource"]
    assert {answers[i]["resource"]["subject"]["reference"] for i in (2, 4)} == {reference}
    again = (await client.post("", json=request)).json()["entry"]
    assert [again[i]["response"]["status"] for i in (0, 3)] == ["200", "200"]
    assert await count(client, f"Patient?{person(value)}") == 1


async def test_a_repeated_create_has_its_own_conditions(
    client: httpx.AsyncClient, value: str
) -> None:
    create = entry("POST", "Patient", identified(value), ifNoneExist=person(value))
    repeated = {**create, "request": {**create["request"], "ifMatch": 'W/"1"'}}
    answer = await client.post("", json=bundle(create, repeated))
    assert_outcome(answer, 412, "conflict", "Bundle.entry[1]")
    assert await count(client, f"Patient?{person(value)}") == 0


def overlapping(value: str) -> dict[str, list[dict[str, Any]]]:
    """Pairs of entries that would make two resources which nobody could tell apart by the same identifier."""
    other, criteria = identified(value, gender="female"), person(value)
    both = identified(value)
    both["identifier"].append({"system": "urn:test", "value": f"{value}-b"})
    create = entry("POST", "Patient", identified(value), ifNoneExist=criteria)
    return {
        "unequal creates": [create, entry("POST", "Patient", other, ifNoneExist=criteria)],
        "updates": [entry("PUT", f"Patient?{criteria}", identified(value))] * 2,
        "create and update": [create, entry("PUT", f"Patient?{criteria}", identified(value))],
        "plain create": [entry("POST", "Patient", identified(value)), create],
        "plain update": [create, entry("PUT", f"Patient/p-{value}", {**other, "id": f"p-{value}"})],
        "other criteria": [
            entry("PUT", f"Patient?{criteria}", both),
            entry("PUT", f"Patient?{person(value + '-b')}", both),
        ],
        "criteria that its own content does not meet": [
            entry("PUT", f"Patient?{criteria}", identified(f"{value}-{n}")) for n in "ab"
        ],
    }


@pytest.mark.parametrize("case", list(overlapping("")))
async def test_overlapping_identities_fail_and_name_both_places(
    client: httpx.AsyncClient, value: str, case: str
) -> None:
    answer = await client.post("", json=bundle(*overlapping(value)[case]))
    outcome = assert_outcome(answer, 400, "invalid")
    assert outcome["issue"][0]["expression"] == ["Bundle.entry[0]", "Bundle.entry[1]"]
    assert await count(client, f"Patient?{person(value)}") == 0


async def test_a_patch_may_not_make_what_another_entrys_condition_finds(
    client: httpx.AsyncClient, value: str
) -> None:
    made = (await client.post("/Patient", json=identified(f"{value}-old"))).json()["id"]
    patch = {
        "resourceType": "Parameters",
        "parameter": [
            {
                "name": "operation",
                "part": [
                    {"name": "type", "valueCode": "replace"},
                    {"name": "path", "valueString": "Patient.identifier[0].value"},
                    {"name": "value", "valueString": value},
                ],
            }
        ],
    }
    answer = await client.post(
        "",
        json=bundle(
            entry("PATCH", f"Patient/{made}", patch),
            entry("POST", "Patient", identified(value), ifNoneExist=person(value)),
        ),
    )
    assert_outcome(answer, 400, "invalid", "Bundle.entry[0]")
    assert (await client.get(f"/Patient/{made}")).json()["meta"]["versionId"] == "1"


@pytest.mark.parametrize("again", ["create", "update"])
async def test_what_is_deleted_is_found_by_no_other_entry(
    client: httpx.AsyncClient, value: str, again: str
) -> None:
    """R4 deletes before it creates, in whatever order the entries come."""
    old = (await client.post("/Patient", json=identified(value))).json()["id"]
    written = {
        "create": entry("POST", "Patient", identified(value), ifNoneExist=person(value)),
        "update": entry("PUT", f"Patient?{person(value)}", identified(value)),
    }[again]
    delete = entry("DELETE", f"Patient?{person(value)}")
    answer = await client.post("", json=bundle(written, delete))
    assert answer.status_code == 200, answer.text
    statuses = [each["response"]["status"] for each in answer.json()["entry"]]
    assert statuses == ["201", "204"]
    assert answer.json()["entry"][0]["resource"]["id"] != old
    assert (await client.get(f"/Patient/{old}")).status_code == 410
    assert await count(client, f"Patient?{person(value)}") == 1


def messages(value: str, by: str, *events: str) -> list[dict[str, Any]]:
    """Messages of one visit as entries, which name it in one of the ways there are."""
    entries = []
    for event in events:
        hour = {"A04": 1, "A01": 3, "A03": 30}[event]
        stay = message(event, hour, identifier=[{"system": "urn:visit", "value": value}])
        criteria = f"identifier=urn:visit|{value}"
        if by == "id":
            entries.append(entry("PUT", f"Encounter/v-{value}", {**stay, "id": f"v-{value}"}))
        elif by == "update":
            entries.append(entry("PUT", f"Encounter?{criteria}", stay))
        elif by == "create":
            entries.append(entry("POST", "Encounter", stay, ifNoneExist=criteria))
        else:
            entries.append(entry("POST", "Encounter", stay))
    return entries


@pytest.mark.parametrize("by", ["id", "update", "create", "identifier"])
async def test_two_messages_of_one_visit_fail_in_a_transaction(
    client: httpx.AsyncClient, value: str, by: str
) -> None:
    answer = await client.post("", json=bundle(*messages(value, by, "A04", "A01")))
    outcome = assert_outcome(answer, 400, "invalid")
    assert set(outcome["issue"][0]["expression"]) == {"Bundle.entry[0]", "Bundle.entry[1]"}
    assert await count(client, f"Encounter?identifier=urn:visit|{value}") == 0


@pytest.mark.parametrize("by", ["id", "update", "create"])
async def test_messages_of_one_visit_count_in_the_order_of_their_events_in_a_batch(
    client: httpx.AsyncClient, value: str, by: str
) -> None:
    request = bundle(*messages(value, by, "A03", "A01", "A04"), type="batch")
    answers = (await client.post("", json=request)).json()["entry"]
    # The last event first: it is answered as the third version, and nothing came late.
    assert [each["response"]["etag"] for each in answers] == ['W/"3"', 'W/"2"', 'W/"1"']
    assert [each["resource"]["status"] for each in answers] == ["finished", "in-progress", "arrived"]  # fmt: skip
    assert await count(client, f"Encounter?identifier=urn:visit|{value}") == 1


async def test_a_visit_that_is_named_in_two_ways_is_one(
    client: httpx.AsyncClient, value: str
) -> None:
    """By its id and by its identifier, the last entry by both: only it shows that all are about the same."""
    admission, transfer = messages(value, "id", "A04", "A01")
    (discharge,) = messages(value, "update", "A03")
    del transfer["resource"]["identifier"]
    stay = visit("Patient/1", f"{value}-w", id=f"w-{value}")
    other = entry("PUT", f"Encounter/w-{value}", stay)
    request = bundle(transfer, discharge, other, admission, type="batch")
    answers = (await client.post("", json=request)).json()["entry"]
    assert [each["response"]["etag"] for each in answers] == [
        f'W/"{version}"' for version in (2, 3, 1, 1)
    ]
    assert answers[1]["resource"]["id"] == f"v-{value}"
    assert answers[1]["resource"]["status"] == "finished"


async def test_a_visit_that_nobody_can_read_is_refused_alone(
    client: httpx.AsyncClient, value: str
) -> None:
    broken, fine = messages(value, "update", "A01", "A03")
    broken["resource"] |= {"period": "today", "extension": 7}
    answers = (await client.post("", json=bundle(broken, fine, type="batch"))).json()["entry"]
    assert [each["response"]["status"] for each in answers] == ["400", "201"]


@pytest.mark.parametrize(("broad", "status"), [(50, 200), (51, 422)])
async def test_conditions_that_name_no_value_are_few(
    client: httpx.AsyncClient, value: str, broad: int, status: int
) -> None:
    """Each of them is judged against all that the transaction writes of its type; one with an identifier is not."""
    criteria = [f"created=gt2999&identifier:not=urn:test|{value}-{n}" for n in range(broad)]
    basic = {"resourceType": "Basic", "code": {"text": "x"}}
    named = [f"{value}-{n}" for n in range(60)]
    request = bundle(
        *(entry("POST", "Patient", identified(each), ifNoneExist=person(each)) for each in named),
        *(entry("PUT", f"Basic?{each}", basic) for each in criteria),
    )
    answer = await client.post("", json=request)
    if status == 200:
        assert answer.status_code == 200, answer.text
    else:
        place = f"Bundle.entry[{len(named) + 50}]"
        assert_outcome(answer, status, "too-costly", place)
    assert await count(client, f"Patient?{person(named[0])}") == (1 if status == 200 else 0)
