"""Compiled criteria and their index: an event finds those it concerns and touches no others."""

from __future__ import annotations

from typing import Any

import pytest

from app.search.extract import extract
from app.settings import Settings
from app.subscriptions.matching import criteria
from app.subscriptions.matching.criteria import Criteria
from app.subscriptions.matching.criteria_index import CriteriaIndex
from app.subscriptions.matching.match_context import MatchContext
from app.subscriptions.topics import topic_store
from tests.builders.match_context import facts
from tests.builders.subscriptions import ADMISSION, encounter

SETTINGS = Settings()
CATALOGUE = topic_store.load(SETTINGS)
A01 = {"system": "http://terminology.hl7.org/CodeSystem/v2-0003", "code": "A01"}


def admission(*filters: str) -> Criteria:
    topic = CATALOGUE.find(ADMISSION)
    assert topic is not None
    return criteria.topic_based(topic, filters, SETTINGS)


class Filed:
    """Subscriptions in an index."""

    def __init__(self) -> None:
        self.criteria: dict[str, Criteria] = {}
        self.index = CriteriaIndex(SETTINGS, self.criteria.get)

    def add(self, subscription: str, criteria: Criteria) -> None:
        self.remove(subscription)
        self.criteria[subscription] = criteria
        self.index.add(subscription, criteria)

    def remove(self, subscription: str) -> None:
        if subscription in self.criteria:
            self.index.remove(subscription, self.criteria.pop(subscription))


def stay(**more: Any) -> MatchContext:
    return facts(extract("Encounter", encounter(**more)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("Encounter?", True, id="all"),
        pytest.param("Encounter?status=in-progress", True, id="status"),
        pytest.param("Encounter?status=finished", False, id="other-status"),
        pytest.param("Encounter?status=in-progress&class=IMP", True, id="and"),
        pytest.param("Encounter?status=in-progress&class=EMER", False, id="and-fails"),
        pytest.param("Encounter?class=EMER,IMP", True, id="or"),
        pytest.param("Encounter?class:not=EMER", True, id="not"),
        pytest.param("Encounter?patient=p1", True, id="bare-id"),
        pytest.param("Encounter?subject=Patient/p1", True, id="subject"),
        pytest.param("Encounter?patient=Patient/p2", False, id="other-patient"),
        pytest.param(
            "Encounter?class=http%3A%2F%2Fterminology.hl7.org%2FCodeSystem%2Fv3-ActCode%7CIMP",
            True,
            id="encoded",
        ),
        pytest.param("Encounter?_id=e1", False, id="id"),
    ],
)
async def test_classic_criteria(text: str, expected: bool) -> None:
    compiled = criteria.classic(text, SETTINGS)
    assert await CriteriaIndex(SETTINGS, lambda _: None).holds(compiled, stay(), ()) is expected


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        pytest.param([], True, id="none"),
        pytest.param(["patient=Patient/p1"], True, id="patient"),
        pytest.param(["patient=p1", "class=IMP"], True, id="two-hold"),
        pytest.param(["patient=p1", "class=EMER"], False, id="one-fails"),
        pytest.param(["class=IMP", "class=EMER"], False, id="same-key-twice-is-and"),
        pytest.param(["class=IMP,EMER"], True, id="comma-is-or"),
        pytest.param(["Encounter?patient=p1&class=EMER"], False, id="query-form"),
        pytest.param(["trigger=A01"], True, id="trigger"),
        pytest.param(["trigger=A04,A06"], False, id="other-triggers"),
        pytest.param([f"trigger={A01['system']}|A01"], True, id="trigger-with-system"),
        pytest.param(["trigger=A01,A04", "trigger=A04"], False, id="triggers-and"),
    ],
)
async def test_topic_filters(filters: list[str], expected: bool) -> None:
    assert (
        await CriteriaIndex(SETTINGS, lambda _: None).holds(admission(*filters), stay(), [A01])
        is expected
    )


async def test_the_index_finds_exactly_those_that_match() -> None:
    filed = Filed()
    filed.add("mine", admission("patient=p1"))
    filed.add("other", admission("patient=p2"))
    filed.add("inpatient", admission("class=IMP"))
    filed.add("all", admission())
    filed.add("not-emergency", admission("class:not=EMER"))
    assert set(await filed.index.matching(ADMISSION, stay(), [A01])) == {
        "mine",
        "inpatient",
        "all",
        "not-emergency",
    }
    assert await filed.index.matching("Encounter", stay(), ()) == []


async def test_an_entry_can_be_replaced_and_removed() -> None:
    filed = Filed()
    filed.add("s", admission("patient=p1"))
    filed.add("s", admission("patient=p2"))
    assert not await filed.index.matching(ADMISSION, stay(), [A01])
    assert await filed.index.matching(ADMISSION, stay(patient="p2"), [A01]) == ["s"]
    filed.remove("s")
    assert filed.index.subscriptions(ADMISSION) == set()
    assert not await filed.index.matching(ADMISSION, stay(patient="p2"), [A01])


async def test_an_event_touches_only_those_that_can_match() -> None:
    """Thousands of practices that all ask for inpatient stays, each of its own patients."""
    filed = Filed()
    for number in range(2000):
        filed.add(f"s{number}", admission("class=IMP", f"patient=Patient/p{number}"))
    found = stay(patient="p77")
    assert await filed.index.candidates(ADMISSION, found) == {"s77"}
