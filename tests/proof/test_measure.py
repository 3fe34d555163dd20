"""How many notices were received in time: the day of the event or 2 calendar days after, where the facility is.

The window is that of HEDIS's Transitions of Care: receipt of the notice of admission and of the discharge information.
"""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from app.cli import report as report_cli
from app.cli.commands import app as cli
from app.fhir import json as fhir_json
from app.fhir.codes import EVENT_NOTICE, NOTICE_KIND
from app.fhir.time_zones import TIME_ZONE
from app.fhir.validation.models import model_issues
from tests.builders.practices import organization, patient, put, ref, role
from tests.builders.receiver import receiving
from tests.builders.subscriptions import encounter, topic_based
from tests.conftest import Server, make_settings, running
from tests.outcomes import assert_outcome, errors_in

pytestmark = [pytest.mark.mongo, pytest.mark.slow]

Pair = tuple[Server, httpx.AsyncClient]
TOPICS = "http://carerelay.example/SubscriptionTopic/"
EVALUATE = "/Measure/carerelay-notice-timeliness/$evaluate-measure"
CSV = "http://carerelay.test/admin/reports/notices.csv"
YEAR = {"periodStart": "2026-01-01", "periodEnd": "2026-12-31"}
ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"


@pytest.fixture
async def hub(mongod: str) -> AsyncIterator[Pair]:
    """A practice with a patient, a hospital in New York, and somebody whose PCP nobody knows."""
    async with running(make_settings(mongod)) as (server, client):
        await put(
            client,
            organization("practice"),
            {
                **organization("hospital"),
                "name": "General Hospital",
                "extension": [{"url": TIME_ZONE, "valueCode": "America/New_York"}],
            },
            patient("member", ref("Organization/practice")),
            patient("alone"),
        )
        yield server, client


def stay(name: str, start: str, end: str | None = None, **more: Any) -> dict[str, Any]:
    period = {"start": start, **({"end": end} if end else {})}
    given = {"id": name, "period": period, "serviceProvider": ref("Organization/hospital"), **more}
    return encounter("finished" if end else "in-progress", **{"patient": "member", **given})


def received(
    of: str,
    at: str,
    topic: str = "encounter-admission",
    by: str = "Organization/practice",
    trigger: str = "A01",
) -> dict[str, Any]:
    """A published notice, whose row the ledger has no longer."""
    return {
        "resourceType": "Communication",
        "id": f"{of}-{topic}-{by.rpartition('/')[2]}-{len(at)}",
        "status": "completed",
        "category": [{"coding": [{"system": NOTICE_KIND, "code": EVENT_NOTICE}]}],
        "instantiatesUri": [TOPICS + topic],
        "topic": {"coding": [{"code": trigger}]},
        "encounter": ref(f"Encounter/{of}"),
        "recipient": [ref(by)],
        "received": at,
    }


async def evaluate(pair: Pair, **parameters: Any) -> dict[str, Any]:
    answer = await pair[1].get(EVALUATE, params={**YEAR, **parameters})
    assert answer.status_code == 200, answer.text
    report = fhir_json.decode(answer.content)
    assert errors_in(report) == []
    assert model_issues(report) == []
    return report


def share(report: dict[str, Any], event: str) -> tuple[int, int]:
    """Numerator and denominator of one event."""
    (group,) = [each for each in report["group"] if each["code"]["text"] == event]
    return counts(group)


def counts(group: dict[str, Any]) -> tuple[int, int]:
    found = {
        each["code"]["coding"][0]["code"]: each["count"] for each in group.get("population", ())
    }
    assert found["initial-population"] == found["denominator"]
    return found["numerator"], found["denominator"]


async def lines(pair: Pair, **parameters: Any) -> list[dict[str, str]]:
    answer = await pair[1].get(CSV, params={**YEAR, **parameters})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/csv")
    return list(csv.DictReader(io.StringIO(answer.text)))


# New York changes its clocks on 2026-03-08 and 2026-11-01 (at 2:00 local time).
@pytest.mark.parametrize(
    ("start", "received_at", "in_time"),
    [
        pytest.param("2026-05-04T10:00:00-04:00", "2026-05-04T10:00:01-04:00", True, id="at-once"),
        pytest.param(
            "2026-05-04T00:00:00-04:00",
            "2026-05-06T23:59:59-04:00",
            True,
            id="end-of-2nd-day-after",
        ),
        pytest.param(
            "2026-05-04T23:59:59-04:00", "2026-05-07T00:00:00-04:00", False, id="third-day-after"
        ),
        pytest.param(
            "2026-05-05T03:59:59Z", "2026-05-07T00:00:00-04:00", False, id="utc-date-is-a-day-later"
        ),
        pytest.param(
            "2026-05-04T23:00:00-04:00", "2026-05-07T03:59:59Z", True, id="received-before-midnight"
        ),
        pytest.param(
            "2026-03-06T12:00:00-05:00", "2026-03-09T03:59:59Z", True, id="a-day-of-23-hours"
        ),
        pytest.param(
            "2026-03-06T12:00:00-05:00", "2026-03-09T04:00:00Z", False, id="after-23-hours"
        ),
        pytest.param(
            "2026-10-30T12:00:00-04:00", "2026-11-02T04:59:59Z", True, id="a-day-of-25-hours"
        ),
        pytest.param(
            "2026-10-30T12:00:00-04:00", "2026-11-02T05:00:00Z", False, id="after-25-hours"
        ),
        pytest.param("2026-05-04", "2026-05-07T03:59:59Z", True, id="a-date-is-the-local-day"),
        pytest.param("2026-05-04", "2026-05-07T04:00:00Z", False, id="three-days-after-a-date"),
        pytest.param("2026-06-30T23:59:60Z", "2026-07-03T03:59:59Z", True, id="in-a-leap-second"),
    ],
)
async def test_days_are_calendar_days_where_the_facility_is(
    hub: Pair, start: str, received_at: str, in_time: bool
) -> None:
    await put(hub[1], stay("e", start), received("e", received_at))
    assert share(await evaluate(hub), "admission") == (int(in_time), 1)
    total = (await lines(hub))[0]
    assert (total["numerator"], total["late"]) == (("1", "0") if in_time else ("0", "1"))


@pytest.mark.parametrize(
    ("more", "setting", "day"),
    [
        pytest.param({}, "UTC", "2026-05-03", id="organization"),
        pytest.param(
            {"location": [{"location": ref("Location/ward")}]}, "UTC", "2026-05-04", id="location"
        ),
        pytest.param(
            {"location": [{"location": ref("Location/bed")}]}, "UTC", "2026-05-04", id="its-owner"
        ),
        pytest.param({"serviceProvider": ref("Organization/x")}, "UTC", "2026-05-04", id="default"),
        pytest.param(
            {"serviceProvider": ref("Organization/x")}, "Asia/Tokyo", "2026-05-04", id="setting"
        ),
        pytest.param(
            {
                "serviceProvider": ref("Organization/x"),
                "period": {"start": "2026-05-03T21:00:00-05:00"},
            },
            "UTC",
            "2026-05-03",
            id="offset-of-the-period",
        ),
    ],
)
async def test_the_time_zone_comes_from_the_place_then_the_offset_then_the_setting(
    mongod: str, more: dict[str, Any], setting: str, day: str
) -> None:
    def place(id_: str, kind: str, **given: Any) -> dict[str, Any]:
        return {"resourceType": kind, "id": id_, **given}

    def zone(name: str) -> list[dict[str, Any]]:
        return [{"url": TIME_ZONE, "valueCode": name}]

    async with running(make_settings(mongod, time_zone=setting)) as pair:
        await put(
            pair[1],
            place("hospital", "Organization", name="H", extension=zone("America/New_York")),
            place("ward", "Location", name="W", extension=zone("Asia/Tokyo")),
            place("bed", "Location", name="B", partOf=ref("Location/ward")),
            stay("e", "2026-05-04T02:00:00Z", **more),
        )
        found = await lines(pair, periodStart=day, periodEnd=day)
        assert found[0]["denominator"] == "1"


async def test_what_counts_in_numerator_and_denominator(hub: Pair) -> None:
    client = hub[1]
    start, end = "2026-05-04T10:00:00-04:00", "2026-05-09T10:00:00-04:00"
    await put(
        client,
        stay("told", start, end),
        received("told", "2026-05-04T11:00:00-04:00"),
        received("told", "2026-05-09T11:00:00-04:00", "encounter-discharge"),
        stay("admission-only", start, end),
        received("admission-only", "2026-05-05T11:00:00-04:00"),
        stay("nobody-known", start, patient="alone"),
        stay("others-told", start),
        received("others-told", start, by="Organization/somebody-else"),
        stay("registered-only", start),
        received("registered-only", start, trigger="A04"),
        stay("nursing", start, class_="NONAC"),
        received("nursing", start, "encounter-snf-admission"),
        {**stay("cancelled", start), "status": "cancelled"},
        {**stay("planned", start), "status": "planned"},
        stay("office", start, class_="AMB"),
        stay("emergency", start, class_="EMER"),
        received("emergency", start, trigger="A04"),
        stay("before", "2025-12-31T23:59:59-05:00", "2026-01-01T00:00:00-05:00"),
    )
    report = await evaluate(hub)
    assert share(report, "admission") == (3, 6)
    assert share(report, "discharge") == (1, 3)
    emergencies = await evaluate(hub, **{"class": "EMER"})
    assert share(emergencies, "admission") == (1, 1)


@pytest.mark.parametrize(
    ("received_at", "in_time"),
    [
        pytest.param("2026-05-03T08:00:00-04:00", False, id="three-days-before"),
        pytest.param("2026-05-06T10:59:59-04:00", False, id="on-that-day-but-before"),
        pytest.param("2026-05-06T11:00:00-04:00", True, id="at-the-moment"),
        pytest.param("2026-05-08T23:00:00-04:00", True, id="after"),
    ],
)
async def test_a_notice_before_the_event_was_not_of_it(
    hub: Pair, received_at: str, in_time: bool
) -> None:
    """A discharge that was told when it was expected, and not when it happened."""
    await put(
        hub[1],
        stay("false", "2026-05-01T09:00:00-04:00", "2026-05-06T11:00:00-04:00"),
        received("false", received_at, "encounter-discharge"),
    )
    assert share(await evaluate(hub), "discharge") == (int(in_time), 1)


async def test_a_notice_of_a_day_counts_from_its_beginning(hub: Pair) -> None:
    await put(
        hub[1],
        stay("dated", "2026-05-01", "2026-05-06"),
        received("dated", "2026-05-06T00:00:00-04:00", "encounter-discharge"),
        received("dated", "2026-04-30T23:59:00-04:00"),
    )
    report = await evaluate(hub)
    assert (share(report, "admission"), share(report, "discharge")) == ((0, 1), (1, 1))


async def test_a_notice_counts_though_the_time_of_its_event_is_corrected_to_a_later_one(
    hub: Pair,
) -> None:
    """What counts is that it was received after the discharge became known, not after what is said of it now."""
    now = datetime.now(UTC)
    start = (now - timedelta(days=2)).isoformat()
    await put(hub[1], stay("clock", start, (now - timedelta(hours=1)).isoformat()))
    # The database's clock, by which the discharge became known, may be some milliseconds ahead.
    receipt = datetime.now(UTC) + timedelta(milliseconds=50)
    await put(hub[1], received("clock", receipt.isoformat(), "encounter-discharge"))
    later = (receipt + timedelta(milliseconds=20)).isoformat(timespec="milliseconds")
    while datetime.now(UTC) < datetime.fromisoformat(later):
        await hub[1].get("/Encounter/clock")
    await put(hub[1], stay("clock", start, later))
    assert share(await evaluate(hub, **lately(now)), "discharge") == (1, 1)


def lately(now: datetime) -> dict[str, str]:
    """The parameters for the days around now."""
    days = {"periodStart": -4, "periodEnd": 4}
    return {name: (now + timedelta(days=each)).date().isoformat() for name, each in days.items()}


async def test_a_discharge_before_its_expected_end_was_when_it_became_known(hub: Pair) -> None:
    """And stays so, whatever is written of the stay afterwards."""
    now = datetime.now(UTC)
    start = (now - timedelta(days=2)).isoformat()
    expected = stay("expected", start, (now + timedelta(days=3)).isoformat())
    await put(hub[1], {**expected, "status": "in-progress"})
    too_early = datetime.now(UTC).isoformat()
    await put(hub[1], received("expected", too_early, "encounter-discharge"))
    await put(hub[1], expected)
    assert share(await evaluate(hub, **lately(now)), "discharge") == (0, 1)
    told = received("expected", datetime.now(UTC).isoformat(), "encounter-discharge")
    await put(hub[1], {**told, "id": "expected-told"})
    await put(hub[1], {**expected, "reasonCode": [{"text": "coded"}]})
    assert share(await evaluate(hub, **lately(now)), "discharge") == (1, 1)


async def test_an_inpatient_stay_begins_when_it_becomes_one(hub: Pair) -> None:
    emergency = {
        "class": {"system": ACT_CODE, "code": "EMER"},
        "period": {"start": "2026-05-04T10:00:00-04:00", "end": "2026-05-06T08:00:00-04:00"},
    }
    await put(
        hub[1],
        stay("e", "2026-05-04T10:00:00-04:00", classHistory=[emergency]),
        received("e", "2026-05-08T23:00:00-04:00", trigger="A06"),
    )
    assert share(await evaluate(hub, periodStart="2026-05-06"), "admission") == (1, 1)


async def test_shares_are_told_by_practice_hospital_and_month(hub: Pair) -> None:
    client = hub[1]
    await put(
        client,
        stay("may", "2026-05-31T23:00:00-04:00"),
        received("may", "2026-06-01T01:00:00-04:00"),
        stay("june", "2026-06-10", patient="alone"),
    )
    report = await evaluate(hub)
    (group, _) = report["group"]
    assert group["measureScore"]["value"] == Decimal("0.5")
    strata = {
        stratifier["code"][0]["text"]: {
            stratum["value"]["text"]: counts(stratum)
            for stratum in stratifier["stratum"]
            if "value" in stratum
        }
        for stratifier in group["stratifier"]
    }
    assert strata["practice"] == {"Organization/practice": (1, 1), "unknown": (0, 1)}
    assert strata["hospital"] == {"Organization/hospital": (1, 2)}
    assert strata["month"] == {"2026-05": (1, 1), "2026-06": (0, 1)}
    found = [each for each in await lines(hub) if each["event"] == "admission"]
    assert len(found) == 1 + 2 + 1 + 2 + 2
    combined = [each for each in found if each["practice"] and each["month"]]
    assert [(each["practice_name"], each["hospital_name"], each["share"]) for each in combined] == [
        ("Practice practice", "General Hospital", "1.0000"),
        ("", "General Hospital", "0.0000"),
    ]


async def test_a_report_may_be_of_one_practice(hub: Pair) -> None:
    start = "2026-05-04T10:00:00-04:00"
    await put(
        hub[1],
        organization("second"),
        role("dr-role", "dr", "second"),
        patient("theirs", ref("PractitionerRole/dr-role")),
        stay("first", start),
        stay("other", start, patient="theirs"),
        received("other", start, by="PractitionerRole/dr-role"),
    )
    assert share(await evaluate(hub), "admission") == (1, 2)
    assert share(await evaluate(hub, organization="Organization/second"), "admission") == (1, 1)
    assert share(await evaluate(hub, organization="Organization/practice"), "admission") == (0, 1)
    assert share(await evaluate(hub, practitioner="Practitioner/dr"), "admission") == (1, 1)


async def test_real_notices_count_by_the_day_they_were_first_received(hub: Pair) -> None:
    server, client = hub
    today = datetime.now(UTC)
    async with receiving() as receiver:
        body = topic_based("general-practitioner=Organization/practice", endpoint=receiver.url)
        assert (await client.post("/Subscription", json=body)).status_code == 201
        await server.worker.drain()
        for name, days in (("in-time", 1), ("late", 4)):
            start = (today - timedelta(days=days)).isoformat(timespec="seconds")
            await put(client, stay(name, start))
        await server.worker.drain()
        assert len(receiver.events) == 2
    # Whose patient it was then is proven by the notice, whatever the record says now.
    await put(client, patient("member"))
    period = {
        "periodStart": (today.date() - timedelta(days=9)).isoformat(),
        "periodEnd": today.date().isoformat(),
    }
    for _ in range(2):
        report = await evaluate(hub, **period)
        assert share(report, "admission") == (1, 2)
        (by_practice, *_) = report["group"][0]["stratifier"]
        assert [each["value"]["text"] for each in by_practice["stratum"]] == [
            "Organization/practice"
        ]
        # Now from what was published, once the ledger has forgotten.
        server.clock.advance(timedelta(minutes=1))
        await server.engine.drain()
        await server.mongo.collection("deliveries").delete_many({})


async def test_the_measure_is_published(client: httpx.AsyncClient) -> None:
    measure = (await client.get("/Measure/carerelay-notice-timeliness")).json()
    assert errors_in(measure) == []
    assert [each["code"]["text"] for each in measure["group"]] == ["admission", "discharge"]


@pytest.mark.parametrize(
    ("parameters", "status", "code"),
    [
        pytest.param({"periodStart": None}, 400, "required", id="no-start"),
        pytest.param({"periodStart": "yesterday"}, 400, "value", id="no-date"),
        pytest.param({"periodEnd": "2025-12-31"}, 400, "value", id="ends-before-it-begins"),
        pytest.param({"periodEnd": "2028-12-31"}, 400, "too-long", id="too-long"),
        pytest.param({"reportType": "subject"}, 422, "not-supported", id="subject-report"),
        pytest.param({"organization": "Patient/x"}, 400, "value", id="no-practice"),
        pytest.param({"class": "IMP&x"}, 400, "value", id="no-class"),
    ],
)
async def test_what_cannot_be_evaluated_is_refused(
    client: httpx.AsyncClient, parameters: dict[str, Any], status: int, code: str
) -> None:
    given = {name: each for name, each in {**YEAR, **parameters}.items() if each is not None}
    assert_outcome(await client.get(EVALUATE, params=given), status, code)


async def test_another_measure_is_not_evaluated(client: httpx.AsyncClient) -> None:
    other = {"resourceType": "Measure", "id": "other", "status": "active"}
    await put(client, other)
    answer = await client.get("/Measure/other/$evaluate-measure", params=YEAR)
    assert_outcome(answer, 422, "not-supported")


def test_the_command_line_shows_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "event,practice,practice_name,hospital,hospital_name,month,denominator,numerator,late,share\r\n"
        "admission,,,,,,4,3,1,0.7500\r\n"
        "admission,Organization/a,Practice A,,,,4,3,1,0.7500\r\n"
        "admission,Organization/a,Practice A,Organization/h,H,2026-05,4,3,1,0.7500\r\n"
    )
    asked: list[tuple[str, dict[str, str]]] = []

    def ask(url: str, query: dict[str, str]) -> str:
        asked.append((url, query))
        return text

    monkeypatch.setattr(report_cli, "_ask", ask)
    result = CliRunner().invoke(
        cli, ["report", "2026-05", "2026-06", "--practice", "Organization/a"]
    )
    assert result.exit_code == 0, result.output
    assert "Practice A" in result.output
    assert "Organization/h" not in result.output
    assert asked[0][1] == {
        "periodStart": "2026-05",
        "periodEnd": "2026-06",
        "organization": "Organization/a",
    }
    raw = CliRunner().invoke(cli, ["report", "2026-05", "2026-06", "--csv"])
    assert raw.output.splitlines() == text.splitlines()


async def test_months_and_years_stand_for_their_days(hub: Pair) -> None:
    await put(hub[1], stay("e", "2026-02-28T12:00:00-05:00"))
    assert (await lines(hub, periodStart="2026-02", periodEnd="2026-02"))[0]["denominator"] == "1"
    assert (await lines(hub, periodStart="2026", periodEnd="2026"))[0]["denominator"] == "1"
