"""Which members need something, and how often they are in hospital, against answers that were worked out by hand."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from app.attribution import unattributed
from app.fhir import code_lists, json as fhir_json
from app.fhir.codes import FINDING_DUE, WORKLIST_QUESTION
from tests.builders.plan_members import MEMBERS, Day, Resource, expected, resources
from tests.conftest import JSON, Server, make_settings, running
from tests.outcomes import assert_outcome, errors_in

pytestmark = pytest.mark.mongo

Pair = tuple[Server, httpx.AsyncClient]
PLAN = {"organization": "Organization/plan"}
QUESTIONS = [each["code"] for each in code_lists.code_systems()[WORKLIST_QUESTION]["concept"]]


@pytest.fixture(scope="module")
async def hub(mongod: str) -> AsyncIterator[Pair]:
    """A plan with its members, and others who are none."""
    settings = make_settings(mongod, unrouted=False, publish_notices=False)
    async with running(settings) as (server, client):
        day = Day(server.clock.now().date())
        made = list(resources(day))
        entries = [
            {
                "resource": each,
                "request": {"method": "PUT", "url": f"{each['resourceType']}/{each['id']}"},
            }
            for each in made
        ]
        bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
        answer = await client.post("/", json=bundle)
        assert answer.status_code == 200, answer.text
        await server.engine.drain()
        yield server, client


async def rows(hub: Pair, question: str, **more: Any) -> list[dict[str, str]]:
    """The findings as lines."""
    given = {"question": question, "_outputFormat": "csv", **PLAN, **more}
    asked = {name: value for name, value in given.items() if value is not None}
    answer = await hub[1].get("/Patient/$worklist", params=asked)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.headers["content-disposition"] == f'attachment; filename="{question}.csv"'
    return list(csv.DictReader(io.StringIO(answer.text)))


async def names(hub: Pair, question: str, **more: Any) -> list[str]:
    found = await rows(hub, question, **more)
    return sorted({row["patient"].removeprefix("Patient/") for row in found})


@pytest.mark.parametrize("question", QUESTIONS)
async def test_each_question_finds_whom_it_should(hub: Pair, question: str) -> None:
    assert await names(hub, question) == expected(question)


async def test_a_million_members_have_the_same_pcps(
    hub: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told at a glance of many is what is read claim by claim of a few."""
    monkeypatch.setattr(unattributed, "_FEW", 0)
    assert await names(hub, "no-pcp") == expected("no-pcp")


async def test_a_finding_says_why_since_when_and_by_which_day(hub: Pair) -> None:
    day = Day(hub[0].clock.now().date())
    (unseen,) = [
        row
        for row in await rows(hub, "no-follow-up", within=7)
        if row["patient"] == "Patient/unseen"
    ]
    assert unseen == {
        "question": "no-follow-up",
        "patient": "Patient/unseen",
        "name": "",
        "birth_date": "1950-02-01",
        "identifier": "",
        "reason": "Not seen since the discharge",
        "since": day(-5),
        "due": day(2),
        "records": "Encounter/unseen-imp10",
        "practice": "Organization/riverside",
        "practice_name": "Practice riverside",
    }


async def test_the_time_asked_about_is_counted_in_days(hub: Pair) -> None:
    day = Day(hub[0].clock.now().date())
    assert await names(hub, "no-follow-up", start=day(-4)) == ["back-again", "moved-on"]
    assert await names(hub, "readmission", end=day(-6)) == []
    assert await names(hub, "readmission", start=day(-5), end=day(-5)) == ["back-again"]


async def test_a_plan_that_nobody_writes_for_a_year_is_overdue(mongod: str) -> None:
    async with running(make_settings(mongod, unrouted=False)) as (server, client):
        day = Day(server.clock.now().date())
        plan = {"resourceType": "CarePlan", "id": "p", "status": "active", "intent": "plan"}
        await client.put("/Patient/m", json={"resourceType": "Patient", "id": "m"})
        await client.put("/CarePlan/p", json={**plan, "subject": {"reference": "Patient/m"}})
        pair, everybody = (server, client), {"organization": None}
        assert await names(pair, "care-plan-overdue", **everybody) == []
        server.clock.advance(timedelta(days=366))
        (found,) = await rows(pair, "care-plan-overdue", **everybody)
        assert (found["since"], found["due"]) == (day(0), day(365))


async def test_pages_of_detected_issues_are_the_lines_of_the_table(hub: Pair) -> None:
    url = "/Patient/$worklist?question=no-pcp&_count=2&organization=Organization/plan"
    issues: list[Resource] = []
    while url:
        answer = await hub[1].get(url)
        assert answer.status_code == 200, answer.text
        bundle = fhir_json.decode(answer.content)
        assert errors_in(bundle) == []
        assert bundle["total"] == len(expected("no-pcp"))
        page = [each["resource"] for each in bundle["entry"] if each["search"]["mode"] == "match"]
        included = {
            f"Patient/{each['resource']['id']}"
            for each in bundle["entry"]
            if each["search"]["mode"] == "include"
        }
        assert {each["patient"]["reference"] for each in page} == included
        issues += page
        links = {each["relation"]: each["url"] for each in bundle["link"]}
        url = links.get("next", "")
    named = [each["patient"]["reference"].removeprefix("Patient/") for each in issues]
    assert named == expected("no-pcp")
    lines = await hub[1].get(
        "/Patient/$worklist", params={"question": "no-pcp", "_outputFormat": "ndjson", **PLAN}
    )
    assert lines.headers["content-type"] == "application/fhir+ndjson"
    told = [fhir_json.decode(line) for line in lines.content.splitlines()]
    assert [each["id"] for each in told] == [each["id"] for each in issues]


async def test_a_detected_issue_names_the_records_and_the_day(hub: Pair) -> None:
    answer = await hub[1].get("/Patient/$worklist", params={"question": "no-follow-up", **PLAN})
    issues = [each["resource"] for each in answer.json()["entry"]]
    (unseen,) = [
        each for each in issues if each.get("patient", {}).get("reference") == "Patient/unseen"
    ]
    day = Day(hub[0].clock.now().date())
    assert unseen["code"]["coding"][0]["code"] == "no-follow-up"
    assert unseen["implicated"] == [{"reference": "Encounter/unseen-imp10"}]
    assert unseen["identifiedPeriod"] == {"start": day(-5)}
    due = {each["url"]: each for each in unseen["extension"]}
    assert due[FINDING_DUE]["valueDate"] == day(9)


async def test_a_cell_is_no_formula(hub: Pair) -> None:
    (nobodys,) = [row for row in await rows(hub, "no-pcp") if row["patient"] == "Patient/nobodys"]
    assert nobodys["name"] == "'=1+1"


async def test_whom_a_question_is_about(hub: Pair) -> None:
    """All patients, those of a practice, or a Group's."""
    everybody = await names(hub, "no-pcp", organization=None)
    assert everybody == sorted([*expected("no-pcp"), "former", "of-another", "cancelled"])
    assert await names(hub, "no-pcp", practice="Organization/riverside") == []
    assert await names(hub, "no-care-plan", practice="Organization/general") == []
    assert "planless" in await names(hub, "no-care-plan", practice="Organization/riverside")
    answer = await hub[1].get(
        "/Group/roster/$worklist", params={"question": "no-pcp", "_outputFormat": "csv"}
    )
    assert answer.text.count("\r\n") == 1  # the head: who is off the roster is no member now
    assert_outcome(await hub[1].get("/Group/nowhere/$worklist?question=no-pcp"), 404, "not-found")


async def test_searches_say_the_same_where_they_can(hub: Pair) -> None:
    act = "http://terminology.hl7.org/CodeSystem/v3-ActCode|"
    classes = ",".join(act + each for each in ("IMP", "ACUTE", "NONAC", "SS", "OBSENC"))
    today = hub[0].clock.now().date().isoformat()
    for question, url in (
        ("in-hospital", f"Encounter?class={classes}&status=in-progress&end-date:missing=true"),
        ("care-plan-overdue", f"CarePlan?status=active&intent=plan&date=eb{today}"),
    ):
        entries = (await hub[1].get(f"/{url}")).json()["entry"]
        found = {each["resource"]["subject"]["reference"][8:] for each in entries}
        assert sorted(found) == expected(question)


async def test_how_often_members_are_in_hospital(hub: Pair) -> None:
    members = [each for each in MEMBERS if each.counts]
    admitted = Counter(hospital for each in members for hospital in each.admitted.split())
    answer = await hub[1].get("/Patient/$utilization", params={**PLAN, "_outputFormat": "csv"})
    assert answer.status_code == 200, answer.text
    lines = list(csv.DictReader(io.StringIO(answer.text)))
    by_hospital = {
        row["hospital"].removeprefix("Organization/"): int(row["count"])
        for row in lines
        if row["event"] == "admission" and row["hospital"] and not row["practice"]
    }
    assert by_hospital == admitted
    totals = {row["event"]: row for row in lines if not row["practice"] and not row["hospital"]}
    counts = {
        "admission": admitted.total(),
        "readmission": sum(each.readmissions for each in members),
        "emergency-visit": sum(each.emergencies for each in members),
    }
    assert {event: int(row["count"]) for event, row in totals.items()} == counts
    assert {int(row["members"]) for row in totals.values()} == {len(members)}
    visits = totals["emergency-visit"]
    assert visits["per_1000"] == f"{1000 / len(members):.1f}"
    assert visits["per_1000_a_year"] == f"{1000 / len(members) * 365 / 31:.1f}"


async def test_the_report_is_a_valid_summary(hub: Pair) -> None:
    report = fhir_json.decode((await hub[1].get("/Patient/$utilization", params=PLAN)).content)
    assert errors_in(report) == []
    (admissions,) = [each for each in report["group"] if each["code"]["text"] == "admission"]
    practice = admissions["stratifier"][0]["stratum"]
    assert [each["value"]["text"] for each in practice] == ["Organization/riverside"]
    measure = report["measure"]
    found = (await hub[1].get("/Measure", params={"url": measure})).json()
    assert found["total"] == 1


async def test_panels_say_by_which_source_a_member_is_whose(hub: Pair) -> None:
    answer = await hub[1].get("/Patient/$attributed", params=PLAN)
    bundle = fhir_json.decode(answer.content)
    assert errors_in(bundle) == []
    (panel,) = [each["resource"] for each in bundle["entry"]]
    assert panel["characteristic"][0]["valueReference"] == {"reference": "Organization/riverside"}
    source = {
        each["entity"]["reference"][8:]: each["extension"][0]["valueCode"]
        for each in panel["member"]
    }
    counted = {each.name for each in MEMBERS if each.counts}
    assert source.keys() == counted - set(expected("no-pcp"))
    assert (source["well"], source["by-team"]) == ("general-practitioner", "care-team")
    assert source["on-roster"] == "group"
    table = await hub[1].get("/Patient/$attributed", params={**PLAN, "_outputFormat": "csv"})
    assert len(list(csv.DictReader(io.StringIO(table.text)))) == len(source)
    roster = await hub[1].get("/Group/roster/$attributed")
    (panel,) = [each["resource"] for each in roster.json()["entry"]]
    assert [each["entity"]["reference"] for each in panel["member"]] == ["Patient/on-roster"]


@pytest.mark.parametrize(
    ("query", "code", "expression"),
    [
        ("", "required", "question"),
        ("question=who", "code-invalid", "question"),
        ("question=no-pcp&start=soon", "value", "start"),
        ("question=no-pcp&start=2026-05-02&end=2026-05-01", "value", "end"),
        ("question=no-pcp&start=2024-01-01&end=2026-01-01", "too-long", "end"),
        ("question=readmission&end=0001-01-05", "value", "end"),
        ("question=readmission&start=0001-01-01&end=0001-01-02", "value", "end"),
        ("question=no-follow-up&start=9999-12-01&end=9999-12-31", "value", "end"),
        ("question=no-pcp&within=0", "value", "within"),
        ("question=no-pcp&organization=plan", "value", "organization"),
        ("question=no-pcp&practice=Practitioner/x", "value", "practice"),
        ("question=no-pcp&_count=0", "value", "_count"),
        ("question=no-pcp&_outputFormat=xlsx", "not-supported", "_outputFormat"),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused(
    client: httpx.AsyncClient, query: str, code: str, expression: str
) -> None:
    assert_outcome(await client.get(f"/Patient/$worklist?{query}"), 400, code, expression)


async def test_an_entry_of_a_bundle_is_no_table(client: httpx.AsyncClient) -> None:
    url = "Patient/$worklist?question=no-pcp&_outputFormat=csv&organization=Organization/none"
    batch = {
        "resourceType": "Bundle",
        "type": "batch",
        "entry": [{"request": {"method": "GET", "url": url}}],
    }
    answer = await client.post("/", json=batch, headers=JSON)
    (entry,) = answer.json()["entry"]
    assert entry["response"]["status"].startswith("400")


def untimed(text: str) -> str:
    """Without the moments at which the answers were made."""
    return re.sub(r"T[\d:.]+Z", "", text)


@pytest.mark.parametrize("asked", ["accept", "_format"])
@pytest.mark.parametrize(
    "url",
    ["/Patient/$worklist?question=no-pcp&", "/Patient/$utilization?", "/Group/roster/$attributed?"],
)
async def test_a_table_is_asked_for_as_any_format_is(hub: Pair, url: str, asked: str) -> None:
    async def get(form: str, media_type: str) -> httpx.Response:
        if asked == "accept":
            return await hub[1].get(
                url, headers={"accept": f"{media_type}, application/json;q=0.5"}
            )
        return await hub[1].get(f"{url}_format={form}")

    for form, media_type in (("csv", "text/csv"), ("ndjson", "application/fhir+ndjson")):
        answer = await get(form, media_type)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith(media_type)
        same = await hub[1].get(f"{url}_outputFormat={form}")
        assert untimed(answer.text) == untimed(same.text)
    # What is named for the table itself counts more.
    both = await hub[1].get(f"{url}_outputFormat=ndjson", headers={"accept": "text/csv"})
    assert both.headers["content-type"] == "application/fhir+ndjson"


async def test_a_plus_sign_that_nobody_encoded_is_one(hub: Pair) -> None:
    answer = await hub[1].get("/Patient/$attributed?_format=application/fhir+ndjson")
    assert answer.headers["content-type"] == "application/fhir+ndjson"


async def test_other_operations_have_no_table(client: httpx.AsyncClient) -> None:
    url = "/Measure/carerelay-notice-timeliness/$evaluate-measure"
    assert_outcome(await client.get(url, headers={"accept": "text/csv"}), 406, "not-supported")
