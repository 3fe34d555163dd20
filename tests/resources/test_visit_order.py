"""The order of a visit's messages: however they arrive, the visit ends as if they had come one after another."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from app.fhir.encounter_status import ACTIVE
from app.resources import visit_order
from app.resources.event_time import BEGINNING, PLANNED, moment
from app.resources.visit_order import Memory, VisitOutcome, merge, remembered
from tests.builders.visit_messages import EVENT_TIME, START, Message, deliveries, visits

ARRIVAL = datetime(2026, 11, 21, 12, tzinfo=UTC)
LATER = START + timedelta(days=9)
DAY = "2026-11-20T"


def deliver(messages: list[Message], arrival: datetime = ARRIVAL) -> list[VisitOutcome]:
    """What became of each message, in the order of their arrival."""
    current, memory = messages[0], remembered(messages[0], arrival)
    outcomes = [VisitOutcome(current, memory, "all")]
    for message in messages[1:]:
        when = moment(message, arrival)
        if when is None:
            memory = visit_order.edited(current, memory, message, arrival)
            outcomes.append(VisitOutcome(message, memory, "all"))
        else:
            outcomes.append(merge(current, memory, message, when))
        current, memory = outcomes[-1].resource, outcomes[-1].memory
    return outcomes


def normal(encounter: Message) -> Any:
    """An Encounter without the order of its extensions."""
    return {**encounter, "extension": sorted(encounter.get("extension", ()), key=str)}


@pytest.mark.slow
@given(visits(), st.data())
@settings(max_examples=400, deadline=None)
def test_the_order_of_arrival_and_repetitions_make_no_difference(
    visit: list[Message], data: st.DataObject
) -> None:
    arrived = data.draw(deliveries(visit))
    expected = deliver(visit, LATER)[-1].resource
    assert normal(deliver(arrived, LATER)[-1].resource) == normal(expected)


@pytest.mark.slow
@given(visits(), st.data())
@settings(max_examples=200, deadline=None)
def test_a_visit_never_goes_back_to_what_an_older_message_says(
    visit: list[Message], data: st.DataObject
) -> None:
    """So no notice can contradict a later message: notices follow changes of status, class and place."""
    arrived = data.draw(deliveries(visit))
    for count, outcome in enumerate(deliver(arrived, LATER), start=1):
        known = [each for each in arrived[:count] if each["status"] != "unknown"]
        if known:
            newest = max(known, key=lambda each: moment(each, LATER).time)  # type: ignore[union-attr]
            assert outcome.resource["status"] == newest["status"]
            if newest["status"] in ACTIVE:
                assert "end" not in outcome.resource.get("period", {})


@pytest.mark.slow
@given(visits(), st.data())
@settings(max_examples=200, deadline=None)
def test_what_has_come_before_changes_nothing(visit: list[Message], data: st.DataObject) -> None:
    arrived = data.draw(deliveries(visit))
    before = deliver(arrived, LATER)[-1]
    again = merge(before.resource, before.memory, arrived[0], moment(arrived[0], LATER))  # type: ignore[arg-type]
    assert normal(again.resource) == normal(before.resource)
    if again.applied == "history-only":
        assert visit_order.digest(arrived[0]) in before.memory.seen


def period(start: str | None, end: str | None = None) -> dict[str, str]:
    both = {"start": start and f"{DAY}{start}:00Z", "end": end and f"{DAY}{end}:00Z"}
    return {name: text for name, text in both.items() if text}


@pytest.mark.parametrize(
    ("encounter", "expected"),
    [
        pytest.param(
            {
                "status": "finished",
                "period": period("07:00", "11:00"),
                **EVENT_TIME(f"{DAY}09:30:00.25Z"),
            },
            "2026-11-20T09:30:00.250000+00:00",
            id="stated",
        ),
        pytest.param(
            {"status": "in-progress", **EVENT_TIME(f"{DAY}09:30:00-06:00")},
            "2026-11-20T15:30:00.000000+00:00",
            id="stated-with-zone",
        ),
        pytest.param(
            {"status": "in-progress", **EVENT_TIME("2026-11-21T13:30:00Z")},
            "2026-11-21T12:00:00.000000+00:00",
            id="stated-far-ahead-is-the-arrival",
        ),
        pytest.param(
            {"status": "in-progress", **EVENT_TIME("2026-11-21T12:30:00Z")},
            "2026-11-21T12:30:00.000000+00:00",
            id="stated-a-little-ahead",
        ),
        pytest.param(
            {"status": "in-progress", "period": period("07:00")},
            "2026-11-20T07:00:00.000000+00:00",
            id="start",
        ),
        pytest.param(
            {"status": "finished", "period": period("07:00", "11:00")},
            "2026-11-20T11:00:00.000000+00:00",
            id="end",
        ),
        pytest.param(
            {"status": "finished", "period": {"start": "2026-11-19", "end": "2026-11-20"}},
            "2026-11-20T00:00:00.000000+00:00",
            id="end-on-a-day",
        ),
        pytest.param(
            {"status": "in-progress", "period": period("07:00") | {"end": "2026-11-23"}},
            "2026-11-20T07:00:00.000000+00:00",
            id="an-end-to-come-says-nothing",
        ),
        pytest.param(
            {"status": "in-progress", "period": {"start": "2026-11-21T12:04:00Z"}},
            "2026-11-21T12:00:00.000000+00:00",
            id="a-start-to-come-is-the-arrival",
        ),
        pytest.param(
            {"status": "finished", "period": period("07:00") | {"end": "2026-11-23"}},
            "2026-11-21T12:00:00.000000+00:00",
            id="finished-before-the-expected-end-is-the-arrival",
        ),
        pytest.param(
            {"status": "finished", "period": period("07:00")},
            "2026-11-21T12:00:00.000000+00:00",
            id="end-not-said-is-the-arrival",
        ),
        pytest.param(
            {"status": "cancelled", "period": period("07:00", "11:00")},
            "2026-11-21T12:00:00.000000+00:00",
            id="cancel-not-dated-is-the-arrival",
        ),
        pytest.param(
            {
                "status": "cancelled",
                "statusHistory": [{"status": "in-progress", "period": period("07:00", "08:15")}],
            },
            "2026-11-20T08:15:00.000000+00:00",
            id="cancel-by-status-history",
        ),
        pytest.param(
            {
                "status": "in-progress",
                "period": period("07:00"),
                "statusHistory": [{"status": "finished", "period": period("11:00", "11:20")}],
            },
            "2026-11-20T11:20:00.000000+00:00",
            id="status-history",
        ),
        pytest.param(
            {
                "status": "in-progress",
                "period": period("07:00"),
                "location": [
                    {"status": "active", "period": period("10:00")},
                    {"status": "planned", "period": period("11:00")},
                ],
            },
            "2026-11-20T10:00:00.000000+00:00",
            id="place-but-not-a-planned-one",
        ),
        pytest.param({"status": "planned", "period": period("07:00")}, PLANNED, id="planned"),
        pytest.param({"status": "in-progress"}, None, id="nothing-said"),
        pytest.param(
            {"status": "in-progress", **EVENT_TIME("0001-01-01T00:00:00+14:00")},
            None,
            id="before-the-calendar",
        ),
    ],
)
def test_when_a_message_happened(encounter: dict[str, Any], expected: str | None) -> None:
    found = moment({"resourceType": "Encounter", **encounter}, ARRIVAL)
    assert (found and found.time) == expected


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        pytest.param("2026", "2026-01-01T00:00:00.000000", "2026-12-31T23:59:59.999999", id="year"),
        pytest.param("2026-11", "2026-11-01T00:00:00.000000", "2026-11-30T23:59:59.999999", id="month"),
        pytest.param("2026-11-20", "2026-11-20T00:00:00.000000", "2026-11-20T23:59:59.999999", id="day"),
        pytest.param(
            "2026-11-20T09:30:00-06:00", "2026-11-20T15:30:00.000000", "2026-11-20T15:30:59.999999", id="minute"
        ),
        pytest.param(
            "2026-11-20T09:30:15Z", "2026-11-20T09:30:15.000000", "2026-11-20T09:30:15.999999", id="second"
        ),
        pytest.param(
            "2026-11-20T09:30:00.0Z", "2026-11-20T09:30:00.000000", "2026-11-20T09:30:00.099999", id="tenth"
        ),
        pytest.param(
            "2026-11-20T09:30:15.250Z", "2026-11-20T09:30:15.250000", "2026-11-20T09:30:15.250999", id="millisecond"
        ),
    ],
)  # fmt: skip
def test_a_time_is_as_precise_as_it_is_written(text: str, first: str, last: str) -> None:
    found = moment(
        {"resourceType": "Encounter", "status": "in-progress", **EVENT_TIME(text)}, ARRIVAL
    )
    assert found is not None
    assert (found.time, found.latest) == (f"{first}+00:00", f"{last}+00:00")


def snapshot(**content: Any) -> Message:
    return {"resourceType": "Encounter", "class": {"code": "IMP"}, **content}


ADMITTED = snapshot(status="in-progress", period=period("07:00"), reasonCode=[{"text": "falls"}])
FINISHED = snapshot(status="finished", period=period(None, "11:00"))


def test_a_whole_encounter_drops_what_it_leaves_out() -> None:
    """Without a stated time a PUT means what FHIR says it means."""
    assert deliver([ADMITTED, FINISHED])[-1].resource == FINISHED


def test_a_message_that_states_its_time_keeps_what_it_leaves_out() -> None:
    discharge = {**FINISHED, **EVENT_TIME(f"{DAY}11:00:00Z")}
    result = deliver([ADMITTED, discharge])[-1].resource
    assert result["period"] == period("07:00", "11:00")
    assert result["reasonCode"] == ADMITTED["reasonCode"]


def test_a_late_admission_fills_the_start() -> None:
    outcome = deliver([FINISHED, ADMITTED])[-1]
    assert outcome.applied == "filled"
    assert outcome.resource["status"] == "finished"
    assert outcome.resource["period"] == period("07:00", "11:00")


def test_of_two_at_the_same_time_the_later_arrival_counts() -> None:
    corrected = snapshot(
        status="in-progress", period=period("07:00"), reasonCode=[{"text": "fall"}]
    )
    assert deliver([ADMITTED, corrected])[-1].resource == corrected
    assert deliver([corrected, ADMITTED])[-1].resource == ADMITTED


def test_an_edit_is_not_undone_by_an_older_message_but_by_a_newer_one() -> None:
    edit = snapshot(status="onleave")
    older = {**ADMITTED, **EVENT_TIME(f"{DAY}08:00:00Z")}
    newer = {**FINISHED, **EVENT_TIME((ARRIVAL + timedelta(minutes=1)).isoformat())}
    assert deliver([ADMITTED, edit, older])[-1].resource["status"] == "onleave"
    assert deliver([ADMITTED, edit, newer])[-1].resource["status"] == "finished"


def test_without_any_time_there_is_no_order() -> None:
    plain = snapshot(status="finished")
    assert deliver([plain, snapshot(status="arrived"), ADMITTED])[-1].resource == ADMITTED


def test_contained_resources_stay_with_their_message() -> None:
    held = {**FINISHED, "contained": [{"resourceType": "Patient", "id": "p"}]}
    assert deliver([held, ADMITTED])[-1].resource == held
    assert deliver([ADMITTED, held])[-1].resource == held


def test_other_extensions_and_parts_of_primitives_are_kept() -> None:
    other = {"url": "http://example.org/x", "valueString": "y"}
    first = snapshot(
        status="in-progress", period=period("07:00"), extension=[other], _status={"id": "s"}
    )
    second = {**FINISHED, **EVENT_TIME(f"{DAY}11:00:00Z")}
    result = deliver([first, second])[-1].resource
    assert other in result["extension"]
    assert len(result["extension"]) == 2
    assert "_status" not in result


def test_memory_survives_its_document() -> None:
    memory = deliver([FINISHED, ADMITTED])[-1].memory
    assert visit_order.of_document(visit_order.as_document(memory)) == memory
    assert Memory({}).newest == BEGINNING


def test_the_memory_of_earlier_servers_is_read() -> None:
    """They kept no more than clocks and digests: forward steps count, and a step back that is not newer is doubted."""
    document = visit_order.as_document(remembered(FINISHED, ARRIVAL))
    memory = visit_order.of_document({name: document[name] for name in ("clocks", "seen")})
    assert (memory.latest, memory.certain) == (memory.newest, False)
    cancelled = {**FINISHED, "status": "cancelled", **EVENT_TIME(f"{DAY}10:00:00Z")}
    for message, expected in (
        (ADMITTED, "finished"),
        (snapshot(**{**FINISHED, "status": "cancelled"}), "cancelled"),
        (cancelled, "finished"),
    ):
        when = moment(message, ARRIVAL)
        assert when is not None
        assert merge(FINISHED, memory, message, when).resource["status"] == expected
