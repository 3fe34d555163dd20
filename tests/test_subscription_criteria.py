"""Compiled criteria and their index: an event finds those it concerns and touches no others."""

from __future__ import annotations

import time
from typing import Any

import pytest

from app.search.extract import extract
from app.settings import Settings
from app.subscriptions import criteria, topics
from app.subscriptions.criteria import Criteria, CriteriaIndex, equality_terms
from tests.subscription_builders import ADMISSION, encounter

SETTINGS = Settings()
A01 = {"system": "http://terminology.hl7.org/CodeSystem/v2-0003", "code": "A01"}


def admission(*filters: str) -> Criteria:
    topic = topics.load(SETTINGS).find(ADMISSION)
    assert topic is not None
    return criteria.topic_based(topic, filters, SETTINGS)


def fields(**more: Any) -> dict[str, Any]:
    return extract("Encounter", encounter(**more))


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
def test_classic_criteria(text: str, expected: bool) -> None:
    compiled = criteria.classic(text, SETTINGS)
    assert compiled.matches(fields(), None) is expected


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
def test_topic_filters(filters: list[str], expected: bool) -> None:
    assert admission(*filters).matches(fields(), A01) is expected


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        pytest.param({"terms": "a=1"}, [["a=1"]], id="one"),
        pytest.param({"terms": "*"}, [], id="all"),
        pytest.param({"terms": {"$in": ["a=1", "a=2"]}}, [["a=1", "a=2"]], id="either"),
        pytest.param({"terms": {"$all": ["a=1", "b=2"]}}, [["a=1"], ["b=2"]], id="both"),
        pytest.param(
            {"$and": [{"terms": "a=1"}, {"terms": {"$in": ["b=1"]}}]}, [["a=1"], ["b=1"]], id="and"
        ),
        pytest.param({"$nor": [{"terms": "a=1"}]}, [], id="negated"),
        pytest.param({"$or": [{"terms": "a=1"}, {"date": 1}]}, [], id="alternatives"),
        pytest.param({"terms": {"$regex": "^a"}}, [], id="pattern"),
    ],
)
def test_the_terms_a_filter_demands(filter_: dict[str, Any], expected: list[list[str]]) -> None:
    assert equality_terms(filter_) == expected


def test_the_index_finds_exactly_those_that_match() -> None:
    index = CriteriaIndex()
    index.add("mine", admission("patient=p1"))
    index.add("other", admission("patient=p2"))
    index.add("inpatient", admission("class=IMP"))
    index.add("all", admission())
    index.add("not-emergency", admission("class:not=EMER"))
    assert set(index.matching(ADMISSION, fields(), A01)) == {
        "mine",
        "inpatient",
        "all",
        "not-emergency",
    }
    assert set(index.matching("Encounter", fields(), None)) == set()


def test_an_entry_can_be_replaced_and_removed() -> None:
    index = CriteriaIndex()
    index.add("s", admission("patient=p1"))
    index.add("s", admission("patient=p2"))
    assert not list(index.matching(ADMISSION, fields(), A01))
    assert list(index.matching(ADMISSION, fields(patient="p2"), A01)) == ["s"]
    index.remove("s")
    index.remove("s")
    assert len(index) == 0
    assert not list(index.matching(ADMISSION, fields(patient="p2"), A01))


def test_an_event_touches_only_those_that_can_match() -> None:
    """Thousands of practices that all ask for inpatient stays, each of its own patients."""
    index = CriteriaIndex()
    for number in range(2000):
        index.add(f"s{number}", admission("class=IMP", f"patient=Patient/p{number}"))
    found = fields(patient="p77")
    assert index.candidates(ADMISSION, found["terms"]) == {"s77"}
    begun = time.perf_counter()
    for _ in range(1000):
        list(index.matching(ADMISSION, found, A01))
    assert time.perf_counter() - begun < 1.0
