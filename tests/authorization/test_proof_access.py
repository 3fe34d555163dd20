"""Proof: a plan shows what was done about its members, a state agency what it was told, a practice how soon it was.

Everybody else is refused, and of others' members there is nothing to be found.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.fhir.ids import new_id
from tests.builders.access_world import (
    World,
    coverage,
    encounter,
    security,
    world as a_world,
)
from tests.builders.consents import actor, consent, deny
from tests.builders.practices import ref
from tests.builders.receiver import Receiver, receiving
from tests.builders.subscriptions import topic_based
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

ADMIN = "http://carerelay.test/admin"
STAY = "stay-of-pn"
TEXT = {"text": "Policy"}
ALL_ROLES = ("north", "south", "general", "city", "plan-a", "plan-b", "agency", "bureau")


@pytest.fixture(scope="module")
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as found:
        yield found


@pytest.fixture(scope="module")
async def world(mongod: str, receiver: Receiver) -> AsyncIterator[World]:
    """A stay of north's patient, of which north and the agency were told, and one of south's."""
    async with a_world(mongod, rate_limit=0) as found:
        # Of the world's own stays nobody could be told: the rows that say so are no matter here.
        await found.server.worker.drain()
        await found.server.engine.drain()
        await found.server.mongo.collection("deliveries").delete_many({})
        for who in ("north", "south"):
            panel = topic_based(
                f"general-practitioner=Organization/{who}", endpoint=f"{receiver.url}/{who}"
            )
            assert (await found.ask(who, "POST", "/Subscription", panel)).status_code == 201
        for agency, list_, plan in (
            ("agency", "list-n", "plan-a"),
            ("bureau", "list-s", "plan-b"),
        ):
            terms = contract(f"by-{agency}", list_, agency, plan, f"{receiver.url}/{agency}")
            answer = await found.ask("admin", "PUT", f"{ADMIN}/contracts/by-{agency}", terms)
            assert answer.status_code == 201, answer.text
        await found.server.worker.drain()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        for hospital, name, of in (("general", STAY, "pn"), ("city", "stay-of-ps", "ps")):
            await found.put(hospital, encounter(name, of, hospital, period={"start": now}))
        await found.server.worker.drain()
        found.server.clock.advance(timedelta(minutes=1))  # the publisher's next round
        await found.server.engine.drain()
        yield found


def contract(id_: str, group: str, agency: str, plan: str, endpoint: str) -> dict[str, Any]:
    return {
        "id": id_,
        "title": "Admissions",
        "group": f"Group/{group}",
        "recipient": f"Organization/{agency}",
        "plan": f"Organization/{plan}",
        "deadline": 24,
        "channel": {"type": "rest-hook", "endpoint": endpoint},
    }


async def notices(world: World, who: str, stay: str = STAY) -> tuple[int, list[str]]:
    """The status, and whom the notices of a stay were for."""
    answer = await world.get(who, f"/Encounter/{stay}/$notices")
    found = [each["resource"] for each in answer.json().get("entry", ())]
    told = [each for each in found if each["resourceType"] == "Communication"]
    audited = [each for each in found if each["resourceType"] == "AuditEvent"]
    # One for each attempt; somebody may have sent a notice again.
    assert {each["id"] for each in told} == {each["id"].rpartition("-")[0] for each in audited}
    return answer.status_code, sorted(
        each["reference"] for one in told for each in one.get("recipient", ())
    )


BOTH = ["Organization/agency", "Organization/north"]
EXPECTED = {
    "admin": (200, BOTH),
    "plan-a": (200, BOTH),
    "agency": (200, ["Organization/agency"]),
    "plan-b": (404, []),
    "bureau": (404, []),
    **dict.fromkeys(("north", "south", "general", "city"), (403, [])),
}


@pytest.mark.parametrize("who", EXPECTED)
async def test_the_notices_of_a_stay(world: World, who: str) -> None:
    """Before and after they are published, as long as the ledger has them."""
    assert await notices(world, who) == EXPECTED[who]


@pytest.mark.parametrize(
    ("who", "told"),
    [("plan-a", BOTH), ("agency", BOTH[:1]), ("north", BOTH[1:]), ("south", []), ("general", [])],
)
async def test_published_proof_is_read_by_whom_it_is_for(
    world: World, who: str, told: list[str]
) -> None:
    """By search and one by one; a practice asks for no others' though the patient is its own."""
    url = f"/Communication?encounter=Encounter/{STAY}"
    for each in (await world.get("admin", url)).json()["entry"]:
        (recipient,) = each["resource"]["recipient"]
        place = f"/Communication/{each['resource']['id']}"
        is_told = recipient["reference"] in told
        for door in (place, f"{place}/_history/1"):
            assert (await world.get(who, door)).status_code == (200 if is_told else 404)
    found = (await world.get(who, url)).json().get("entry", ())
    assert sorted(each["resource"]["recipient"][0]["reference"] for each in found) == told


async def test_what_tells_of_a_stay_is_told_as_far_as_the_stay_is(world: World) -> None:
    """Its proof and what asks people to look at it, as a Consent and labels have it now."""
    stay, labelled_ = new_id(), new_id()
    ended = encounter(stay, "pn", "general") | {"status": "cancelled"}
    await world.put("admin", ended, ended | {"id": labelled_, "meta": security("SUD")})
    await world.server.engine.drain()
    tasks = "/Task?patient=pn&code=cancel-without-admission"
    asked = {
        each["resource"]["focus"]["reference"]: each["resource"]
        for each in (await world.get("admin", tasks)).json()["entry"]
    }
    assert asked.keys() >= {f"Encounter/{stay}", f"Encounter/{labelled_}"}
    task, label_ = asked[f"Encounter/{stay}"], asked[f"Encounter/{labelled_}"]["meta"]["security"]
    assert label_ == security("SUD")["security"]
    assert await world.found("north", tasks) == [f"Task/{task['id']}"]
    await world.put("admin", ended | {"meta": security("SUD")})
    assert (await world.get("north", f"/Task/{task['id']}")).status_code == 404

    urls = (f"/Communication?encounter=Encounter/{STAY}", f"{ADMIN}/deliveries")
    assert len(await world.found("plan-a", urls[0])) == 2
    about = {"meaning": "instance", "reference": ref(f"Encounter/{STAY}")}
    refusal = consent(provision=deny(data=[about], actor=actor("Organization/plan-a")))
    await world.put("admin", refusal | {"patient": ref("Patient/pn"), "policyRule": TEXT})
    try:
        assert await world.found("plan-a", urls[0]) == []
        assert (await world.get("plan-a", urls[1])).json()["deliveries"] == []
        assert len(await world.found("agency", urls[0])) == 1
    finally:
        await world.ask("admin", "DELETE", f"/Consent/{refusal['id']}")


@pytest.mark.parametrize("who", EXPECTED)
async def test_the_ledger_shows_the_rows_of_ones_own_members(world: World, who: str) -> None:
    status, recipients = EXPECTED[who]
    answer = await world.get(who, f"{ADMIN}/deliveries?focus=Encounter/{STAY}")
    if status == 403:
        assert_outcome(answer, 403, "forbidden")
        return
    rows = answer.json()["deliveries"]
    assert len(rows) == len(recipients)
    everything = (await world.get(who, f"{ADMIN}/deliveries")).json()["deliveries"]
    of_others = {"plan-b": 2, "bureau": 1, "admin": 2}.get(who, 0)
    assert len(everything) == len(recipients) + of_others
    for row in (await world.get("admin", f"{ADMIN}/deliveries")).json()["deliveries"]:
        one = await world.get(who, f"{ADMIN}/deliveries/{row['id']}")
        assert (one.status_code == 200) == (row["id"] in {each["id"] for each in everything})
        if one.status_code == 200:
            has_answer = any("answer" in each for each in one.json()["attempts"])
            assert has_answer == (who == "admin" and any("answer" in a for a in row["attempts"]))
        else:
            assert_outcome(one, 404, "not-found")
    for method, url in (
        ("POST", f"{ADMIN}/deliveries/resend?focus=Encounter/{STAY}"),
        ("GET", f"{ADMIN}/contracts"),
    ):
        again = await world.ask(who, method, url)
        assert again.status_code == 403 or who == "admin"


async def test_pages_of_the_ledger_skip_what_is_anothers(world: World) -> None:
    """The next page begins where one's own rows go on; nothing tells how many others lie between."""
    url, found = f"{ADMIN}/deliveries?_count=1", []
    while url:
        page = (await world.get("plan-a", url)).json()
        assert len(page["deliveries"]) == 1
        found += [each["focus"].partition("/_history")[0] for each in page["deliveries"]]
        url = page.get("next", "")
    assert found == [f"Encounter/{STAY}"] * 2


COUNTED = {
    "admin": (2, {"Organization/north", "Organization/south"}),
    "plan-a": (1, {"Organization/north"}),
    "plan-b": (1, {"Organization/south"}),
    "agency": (1, {"Organization/north"}),
    "bureau": (1, {"Organization/south"}),
    "north": (1, {"Organization/north"}),
    "south": (1, {"Organization/south"}),
}


@pytest.mark.parametrize("who", [*COUNTED, "general", "city"])
async def test_the_timeliness_of_what_one_sees(world: World, who: str) -> None:
    """As a MeasureReport and as CSV; of everybody else's stays not even the number is told."""
    day = datetime.now(UTC).date().isoformat()
    period = f"periodStart={day[:7]}&periodEnd={day[:7]}"
    url = f"/Measure/carerelay-notice-timeliness/$evaluate-measure?{period}"
    report = await world.get(who, url)
    table = await world.get(who, f"{ADMIN}/reports/notices.csv?{period}")
    if who not in COUNTED:
        assert_outcome(report, 403, "forbidden")
        assert_outcome(table, 403, "forbidden")
        return
    admissions = report.json()["group"][0]
    counts = {each["code"]["coding"][0]["code"]: each["count"] for each in admissions["population"]}
    total, practices = COUNTED[who]
    assert (counts["denominator"], counts["numerator"]) == (total, total)
    by_practice = next(e for e in admissions["stratifier"] if e["code"][0]["text"] == "practice")
    assert {each["value"]["text"] for each in by_practice["stratum"]} == practices
    assert f"admission,,,,,,{total},{total},0" in table.text
    other = await world.get(
        who, f"{url}&organization=Organization/{'south' if who == 'north' else 'north'}"
    )
    shown = other.json()["group"][0]["population"][0]["count"]
    assert shown == (1 if "Organization/north" in practices and who != "north" else 0)


async def test_what_a_practice_counts_is_its_own_and_not_that_of_the_practice_before(
    world: World,
) -> None:
    moved = (await world.get("admin", "/Patient/pn")).json()
    await world.put("admin", {**moved, "generalPractitioner": [ref("PractitionerRole/role-s")]})
    day = datetime.now(UTC).date().isoformat()
    url = "/Measure/carerelay-notice-timeliness/$evaluate-measure"
    try:
        for who, count in (("north", 0), ("south", 1), ("plan-a", 1)):
            report = await world.get(who, f"{url}?periodStart={day}&periodEnd={day}")
            assert report.json()["group"][0]["population"][0]["count"] == count, who
    finally:
        await world.put("admin", moved)


async def test_the_proof_goes_with_the_member(world: World) -> None:
    """A member who has left takes it along; the scope that is missing is named."""
    ended = coverage("vn", "pn", "plan-a")
    await world.put("admin", {**ended, "status": "cancelled"})
    try:
        assert await notices(world, "plan-a") == (404, [])
        ledger = await world.get("plan-a", f"{ADMIN}/deliveries")
        assert ledger.json()["deliveries"] == []
    finally:
        await world.put("admin", ended)
    narrow = await world.get("plan-a", f"{ADMIN}/deliveries", scopes="system/Encounter.rs")
    assert_outcome(narrow, 403, "forbidden")
    assert "system/Communication.r" in narrow.text
    asked = await world.get("plan-a", f"/Encounter/{STAY}/$notices", scopes="system/Encounter.rs")
    assert_outcome(asked, 403, "forbidden")


async def test_published_proof_is_shown_like_the_ledgers(world: World) -> None:
    """What the ledger no longer has."""
    rows = world.server.mongo.collection("deliveries")
    kept = await rows.find({"focus.id": STAY}).to_list(None)
    stored = [
        each["resource"]["id"]
        for each in (await world.get("admin", f"/Communication?encounter=Encounter/{STAY}"))
        .json()
        .get("entry", ())
    ]
    assert len(stored) == 2
    await rows.delete_many({"focus.id": STAY})
    try:
        for who in ("plan-a", "agency", "plan-b", "north"):
            assert await notices(world, who) == EXPECTED[who]
    finally:
        await rows.insert_many(kept)


async def test_what_a_plan_sends_to_itself_no_practice_received(
    mongod: str, receiver: Receiver
) -> None:
    """A plan whose numbers rise by it has nobody told; what the practice has itself sent counts.

    Its proof says so: it was for the plan itself, at that endpoint.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    measure = (
        "/Measure/carerelay-notice-timeliness/$evaluate-measure?organization=Organization/north"
    )
    async with a_world(mongod, rate_limit=0) as world:
        for who, counted in (("plan-a", (1, 0)), ("north", (2, 1))):
            panel = topic_based(
                "general-practitioner=Organization/north", endpoint=f"{receiver.url}/{who}"
            )
            assert (await world.ask(who, "POST", "/Subscription", panel)).status_code == 201
            await world.server.worker.drain()
            stay = encounter(new_id(), "pn", "general", period={"start": now})
            await world.put("general", stay)
            await world.server.worker.drain()
            report = await world.get(
                "plan-a", f"{measure}&periodStart={now[:10]}&periodEnd={now[:10]}"
            )
            population = report.json()["group"][0]["population"]
            counts = {each["code"]["coding"][0]["code"]: each["count"] for each in population}
            assert (counts["denominator"], counts["numerator"]) == counted
            _, told = await notices(world, "plan-a", stay["id"])
            assert told == sorted({"Organization/plan-a", f"Organization/{who}"})


async def test_what_is_due_for_a_labelled_enrolment_is_told_as_far_as_that_is(world: World) -> None:
    """The plan that made it has its Task; the practice has neither that nor a letter about it."""
    name = new_id()
    kind = {"system": "http://carerelay.example/CodeSystem/episode-type", "code": "case-management"}
    enrolment = {
        "resourceType": "EpisodeOfCare",
        "id": name,
        "status": "active",
        "patient": ref("Patient/pn"),
        "type": [{"coding": [kind]}],
        "period": {"start": "2026-01-01"},
        "meta": security("PSY"),
    }
    await world.put("plan-a", enrolment)
    try:
        await world.server.engine.drain()

        async def read_by(who: str, kind: str) -> list[dict[str, Any]]:
            found = (await world.get(who, f"/{kind}?patient=Patient/pn")).json().get("entry", [])
            return [each["resource"] for each in found if name in str(each)]

        (task,) = await read_by("plan-a", "Task")
        assert task["focus"] == ref(f"EpisodeOfCare/{name}")
        assert await read_by("north", "Task") == []
        letters = await read_by("admin", "Communication")
        assert {str(each["meta"]["security"]) for each in letters} == {
            str(security("PSY")["security"])
        }
        assert await read_by("north", "Communication") == []
    finally:
        await world.ask("admin", "DELETE", f"/EpisodeOfCare/{name}")
