"""When the topic encounter-admission fires, and with which trigger: a table over pairs of versions."""

from __future__ import annotations

from typing import Any

import pytest

from app.search.extract import extract
from app.settings import Settings
from app.subscriptions.topics import topic_store, topics
from tests.builders.match_context import Pair, found
from tests.builders.subscriptions import ADMISSION, encounter


@pytest.fixture(scope="module")
def topic() -> topics.Topic:
    loaded = topic_store.load(Settings()).find(ADMISSION)
    assert loaded is not None
    return loaded


def version(text: str | None) -> dict[str, Any] | None:
    """`status class`, or nothing."""
    return None if text is None else encounter(*text.split())


@pytest.mark.parametrize(
    ("before", "after", "trigger"),
    [
        pytest.param(None, "arrived EMER", "A04", id="emergency-registered"),
        pytest.param(None, "triaged EMER", "A04", id="created-triaged"),
        pytest.param(None, "in-progress OBSENC", "A04", id="observation-begins"),
        pytest.param(None, "in-progress IMP", "A01", id="inpatient-admitted"),
        pytest.param(None, "onleave ACUTE", "A01", id="created-on-leave"),
        pytest.param(None, "in-progress NONAC", "A01", id="non-acute"),
        pytest.param(None, "in-progress SS", "A01", id="short-stay"),
        pytest.param(None, "in-progress AMB", None, id="ambulatory"),
        pytest.param(None, "planned IMP", None, id="planned"),
        pytest.param(None, "finished IMP", None, id="created-finished"),
        pytest.param(None, "entered-in-error IMP", None, id="created-in-error"),
        pytest.param("planned IMP", "arrived IMP", "A01", id="planned-arrives"),
        pytest.param("planned EMER", "in-progress EMER", "A04", id="planned-emergency"),
        pytest.param("planned EMER", "in-progress IMP", "A01", id="planned-and-changed"),
        pytest.param("unknown IMP", "in-progress IMP", "A01", id="unknown-becomes-active"),
        pytest.param("arrived IMP", "in-progress IMP", None, id="active-stays-active"),
        pytest.param("onleave IMP", "in-progress IMP", None, id="back-from-leave"),
        pytest.param("in-progress IMP", "in-progress IMP", None, id="unchanged"),
        pytest.param("in-progress EMER", "in-progress IMP", "A06", id="emergency-to-inpatient"),
        pytest.param(
            "in-progress EMER", "in-progress OBSENC", "A04", id="emergency-to-observation"
        ),
        pytest.param("in-progress OBSENC", "in-progress ACUTE", "A06", id="observation-to-acute"),
        pytest.param("in-progress AMB", "in-progress EMER", "A04", id="ambulatory-to-emergency"),
        pytest.param("in-progress AMB", "in-progress IMP", "A06", id="ambulatory-to-inpatient"),
        pytest.param("in-progress IMP", "in-progress ACUTE", None, id="same-rank"),
        pytest.param("in-progress IMP", "in-progress OBSENC", None, id="falls-to-observation"),
        pytest.param("in-progress OBSENC", "in-progress EMER", None, id="falls-to-emergency"),
        pytest.param("in-progress EMER", "finished EMER", None, id="goes-home"),
        pytest.param("in-progress EMER", "finished IMP", None, id="rises-when-over"),
        pytest.param("in-progress IMP", "cancelled IMP", None, id="cancelled"),
        pytest.param("finished IMP", "in-progress IMP", None, id="discharge-taken-back"),
        pytest.param("in-progress IMP", None, None, id="deleted"),
    ],
)
async def test_when_an_admission_fires(
    topic: topics.Topic, before: str | None, after: str | None, trigger: str | None
) -> None:
    fired = await topic.fired(Pair(version(before), version(after)), found)
    assert (fired is None) == (trigger is None)
    if fired is not None:
        assert fired.coding is not None
        assert fired.coding["code"] == trigger
        assert fired.coding["system"] == "http://terminology.hl7.org/CodeSystem/v2-0003"


async def test_other_types_do_not_fire_it(topic: topics.Topic) -> None:
    goal = {"resourceType": "Goal", "lifecycleStatus": "active"}
    assert await topic.fired(Pair(None, goal, "Goal"), found) is None


def test_what_travels_along(topic: topics.Topic) -> None:
    fields = extract(
        "Encounter",
        encounter(
            location=[{"location": {"reference": "Location/l1"}}],
            diagnosis=[{"condition": {"reference": "Condition/c1"}}],
            participant=[
                {"individual": {"reference": "Practitioner/d1"}},
                {"individual": {"reference": "RelatedPerson/r1"}},
            ],
            serviceProvider={"reference": "Organization/o1"},
        ),
    )
    assert topic.context("Encounter", fields) == [
        "Patient/p1",
        "Location/l1",
        "Condition/c1",
        "Practitioner/d1",
        "Organization/o1",
    ]


def test_the_base_of_our_topics_is_a_setting() -> None:
    catalogue = topic_store.load(Settings(topic_base="https://hub.example/topics"))
    assert catalogue.find("https://hub.example/topics/encounter-admission") is not None
    assert catalogue.find(ADMISSION) is None


def test_a_canonical_may_name_a_version() -> None:
    catalogue = topic_store.load(Settings())
    assert catalogue.find(f"{ADMISSION}|1.1.0") is not None
    assert catalogue.find(f"{ADMISSION}|9.9.9") is None
