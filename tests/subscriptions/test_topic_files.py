"""Topics as data: what an operator may write, what is refused, and when a topic fires."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.errors import Unprocessable
from app.settings import Settings
from app.subscriptions.matching import criteria
from app.subscriptions.matching.criteria_index import CriteriaIndex
from app.subscriptions.topics import topic_store, topics
from app.subscriptions.topics.topic_elements import (
    BESIDE_EXTENSION,
    FUNCTION_EXTENSION,
    TRIGGER_EXTENSION,
)
from app.subscriptions.topics.topic_reader import compile_topic
from app.subscriptions.topics.topic_shapes import SEARCH_EXTENSION
from tests.builders.match_context import Pair, facts, found
from tests.builders.subscriptions import encounter

SETTINGS = Settings()
URL = "http://hub.example/SubscriptionTopic/stays"
A03 = {"system": "http://terminology.hl7.org/CodeSystem/v2-0003", "code": "A03"}
BESIDE = {"url": BESIDE_EXTENSION, "valueBoolean": True}
PLAN: dict[str, Any] = {"resourceType": "CarePlan", "status": "active", "intent": "plan"}
PLAN |= {"subject": {"reference": "Patient/p1"}}


def topic(*triggers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "SubscriptionTopic",
        "url": URL,
        "status": "active",
        "resourceTrigger": [{"resource": "Encounter", **each} for each in triggers or ({},)],
        **more,
    }


def query(**criteria: Any) -> dict[str, Any]:
    return {"queryCriteria": criteria, "supportedInteraction": ["create", "update", "delete"]}


def compiled(resource: dict[str, Any]) -> topics.Topic:
    return compile_topic(resource, SETTINGS)


BEFORE, AFTER = "status=in-progress", "status=finished"


@pytest.mark.parametrize(
    ("trigger", "changes"),
    [
        # Each of `changes` is before > after, of those that fire.
        pytest.param(query(current=AFTER), "->f f->f i->f p->f", id="current-alone"),
        pytest.param(
            query(current=AFTER, resultForDelete="test-passes"),
            "->f f->f i->f p->f f-> i-> p->",
            id="current-alone-and-deletes",
        ),
        pytest.param(
            query(previous=BEFORE, current=AFTER, requireBoth=True), "->f i->f", id="both"
        ),
        pytest.param(
            query(previous=BEFORE, current=AFTER, requireBoth=True, resultForCreate="test-fails"),
            "i->f",
            id="both-and-no-creates",
        ),
        pytest.param(
            query(previous=BEFORE, current=AFTER, requireBoth=True, resultForDelete="test-passes"),
            "->f i->f i->",
            id="both-and-deletes",
        ),
        pytest.param(
            query(previous=BEFORE, current=AFTER, resultForCreate="test-fails"),
            "->f f->f i->f p->f i->i i->p i->",
            id="either",
        ),
        pytest.param(
            query(previous=BEFORE, current=AFTER, resultForCreate="test-passes"),
            "->f ->i ->p f->f i->f p->f i->i i->p i->",
            id="either-and-creates",
        ),
        pytest.param(
            query(previous=BEFORE, resultForCreate="test-fails"),
            "i->f i->i i->p i->",
            id="previous-alone",
        ),
        pytest.param({"supportedInteraction": ["delete"]}, "f-> i-> p->", id="any-delete"),
        pytest.param({"supportedInteraction": ["create"]}, "->f ->i ->p", id="any-create"),
        pytest.param(
            {"fhirPathCriteria": "%previous.status = 'planned' and %current.status != 'planned'"},
            "p->f p->i",
            id="fhirpath",
        ),
        pytest.param(
            {"fhirPathCriteria": "%previous.empty()"}, "->f ->i ->p", id="fhirpath-of-nothing"
        ),
        pytest.param(
            {"extension": [{"url": FUNCTION_EXTENSION, "valueCode": "content-changed"}]},
            "->f ->i ->p f->i f->p i->f i->p p->f p->i",
            id="function",
        ),
        pytest.param(
            {**query(current=AFTER), "fhirPathCriteria": "%previous.exists()"},
            "f->f i->f p->f",
            id="query-and-fhirpath",
        ),
    ],
)
async def test_when_a_trigger_fires(trigger: dict[str, Any], changes: str) -> None:
    states = {"f": "finished", "i": "in-progress", "p": "planned", "": None}
    read = compiled(topic(trigger))
    fired = []
    for before in states:
        for after in states:
            old, new = (encounter(s) if (s := states[key]) else None for key in (before, after))
            if old != new or old is not None:
                if old is not None:
                    old["meta"] = {"versionId": "1"}
                if await read.fired(Pair(old, new), found) is not None:
                    fired.append(f"{before}->{after}")
    assert sorted(fired) == sorted(changes.split())


@pytest.mark.parametrize(
    ("resource", "expression"),
    [
        pytest.param(topic(url=None), ".url", id="no-url"),
        pytest.param(topic(status="on"), ".status", id="status"),
        pytest.param(topic(resourceTrigger=[]), ".resourceTrigger", id="no-trigger"),
        pytest.param(topic(eventTrigger=[{}]), ".eventTrigger", id="event-trigger"),
        pytest.param(topic(modifierExtension=[{}]), ".modifierExtension", id="modifier"),
        pytest.param(topic({"resource": "Visit"}), ".resourceTrigger[0].resource", id="type"),
        pytest.param(
            topic({"resource": "Subscription"}), ".resourceTrigger[0].resource", id="of-itself"
        ),
        pytest.param(
            topic({"supportedInteraction": ["read"]}),
            ".resourceTrigger[0].supportedInteraction",
            id="interaction",
        ),
        pytest.param(
            topic(query(current="colour=red")),
            ".resourceTrigger[0].queryCriteria.current",
            id="unknown-parameter",
        ),
        pytest.param(
            topic(query(current="status")),
            ".resourceTrigger[0].queryCriteria.current",
            id="no-query",
        ),
        pytest.param(
            topic(query(sometimes="x")),
            ".resourceTrigger[0].queryCriteria.sometimes",
            id="unknown-element",
        ),
        pytest.param(
            topic(query(previous="status=planned")),
            ".resourceTrigger[0].queryCriteria.resultForCreate",
            id="unsaid-result",
        ),
        pytest.param(
            topic(query(current="status=planned", resultForDelete="maybe")),
            ".resourceTrigger[0].queryCriteria.resultForDelete",
            id="result",
        ),
        pytest.param(
            topic({"fhirPathCriteria": "%current.status ="}),
            ".resourceTrigger[0].fhirPathCriteria",
            id="fhirpath",
        ),
        pytest.param(
            topic({"fhirPathCriteria": "%before.status = 'x'"}),
            ".resourceTrigger[0].fhirPathCriteria",
            id="fhirpath-variable",
        ),
        pytest.param(
            topic({"extension": [{"url": FUNCTION_EXTENSION, "valueCode": "guess"}]}),
            ".resourceTrigger[0].extension",
            id="function",
        ),
        pytest.param(
            topic({"extension": [{"url": "urn:x", "valueCode": "y"}]}),
            ".resourceTrigger[0].extension[0]",
            id="extension",
        ),
        pytest.param(
            topic({"extension": [BESIDE, {"url": TRIGGER_EXTENSION, "valueCoding": A03}]}),
            ".resourceTrigger[0].extension",
            id="beside-nothing",
        ),
        pytest.param(
            topic({}, {"extension": [BESIDE]}),
            ".resourceTrigger[1].extension",
            id="beside-without-coding",
        ),
        pytest.param(
            topic(canFilterBy=[{"filterParameter": "colour"}]),
            ".canFilterBy[0].filterParameter",
            id="filter",
        ),
        pytest.param(
            topic(canFilterBy=[{"resource": "CarePlan", "filterParameter": "patient"}]),
            ".canFilterBy[0].resource",
            id="filter-of-other-type",
        ),
        pytest.param(
            topic(canFilterBy=[{"filterParameter": "date", "comparator": ["about"]}]),
            ".canFilterBy[0].comparator",
            id="comparator",
        ),
        pytest.param(
            topic(notificationShape=[{"resource": "Encounter", "include": ["Encounter:status"]}]),
            ".notificationShape[0].include[0]",
            id="include-of-no-reference",
        ),
        pytest.param(
            topic(notificationShape=[{"resource": "Encounter", "include": ["CarePlan:subject"]}]),
            ".notificationShape[0].include",
            id="include-elsewhere",
        ),
        pytest.param(
            topic(notificationShape=[{"resource": "Encounter", "revInclude": ["Condition"]}]),
            ".notificationShape[0].revInclude[0]",
            id="reverse-include",
        ),
        pytest.param(
            topic(notificationShape=[{"resource": "Encounter", "revInclude": ["Goal:patient"]}]),
            ".notificationShape[0].revInclude",
            id="reverse-include-of-another",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused_at_its_element(
    resource: dict[str, Any], expression: str
) -> None:
    with pytest.raises(Unprocessable) as caught:
        compiled(resource)
    assert [issue.expression for issue in caught.value.issues] == [
        (f"SubscriptionTopic{expression}",)
    ]


FEED = topic(
    {"extension": [{"url": TRIGGER_EXTENSION, "valueCoding": A03}]},
    {"resource": "http://hl7.org/fhir/StructureDefinition/CarePlan"},
    canFilterBy=[
        {"filterParameter": "patient"},
        {"resource": "CarePlan", "filterParameter": "category", "modifier": ["not"]},
        {"resource": "Encounter", "filterParameter": "trigger"},
        {"resource": "Encounter", "filterParameter": "date", "comparator": ["ge", "lt"]},
        {
            "resource": "Encounter",
            "filterParameter": "general-practitioner",
            "extension": [{"url": SEARCH_EXTENSION, "valueString": "patient.general-practitioner"}],
        },
    ],
    notificationShape=[
        {"resource": "Encounter", "include": ["Encounter:patient"]},
        {
            "resource": "CarePlan",
            "include": ["CarePlan:subject"],
            "revInclude": ["Observation:based-on"],
        },
    ],
)


@pytest.mark.parametrize(
    ("filters", "of_encounter", "of_plan"),
    [
        pytest.param([], True, True, id="none"),
        pytest.param(["patient=p1"], True, True, id="untyped-is-for-every-type"),
        pytest.param(["patient=p2"], False, False, id="untyped-and-not-his"),
        pytest.param(["Encounter?patient=p1"], True, False, id="one-type"),
        pytest.param(["Encounter?patient=p1", "CarePlan?patient=p1"], True, True, id="union"),
        pytest.param(["Encounter?patient=p2", "CarePlan?patient=p1"], False, True, id="either"),
        pytest.param(["Encounter?trigger=A03", "patient=p1"], True, False, id="and-inside"),
        pytest.param(["Encounter?trigger=A03", "patient=p2"], False, False, id="and-fails"),
        pytest.param(["CarePlan?category:not=x"], False, True, id="modifier"),
        pytest.param(["Encounter.date=ge2020"], True, False, id="comparator"),
    ],
)
async def test_filters_of_a_topic_on_several_types(
    filters: list[str], of_encounter: bool, of_plan: bool
) -> None:
    """AND inside a type, OR across types; without a type, for every type."""
    read = criteria.topic_based(compiled(FEED), filters, SETTINGS)
    index = CriteriaIndex(SETTINGS, {"s": read}.get)
    index.add("s", read)
    stay = Pair(None, encounter(period={"start": "2026-11-21T10:00:00Z"}))
    plan = Pair(None, PLAN, "CarePlan")
    for change, expected in ((stay, of_encounter), (plan, of_plan)):
        fired = await compiled(FEED).fired(change, found)
        assert fired is not None
        assert change.fields is not None
        version = facts(change.fields, change.type)
        codings = await compiled(FEED).codings_of(fired, change, found)
        matching = await index.matching(URL, version, codings)
        assert matching == (["s"] if expected else [])


@pytest.mark.parametrize(
    "filter_",
    [
        pytest.param("category=x", id="not-on-every-type"),
        pytest.param("Encounter?category=x", id="of-the-other-type"),
        pytest.param("Goal?patient=p1", id="of-no-type"),
        pytest.param("Encounter?trigger=A04", id="trigger"),
        pytest.param("CarePlan?trigger=A03", id="trigger-of-the-other"),
        pytest.param("Encounter?date=2026", id="comparator"),
        pytest.param("Encounter?patient:missing=true", id="modifier"),
    ],
)
def test_filters_that_the_topic_does_not_define_are_refused(filter_: str) -> None:
    with pytest.raises(Unprocessable):
        criteria.topic_based(compiled(FEED), [filter_], SETTINGS)


def test_a_filter_may_stand_for_a_chain_and_a_shape_for_references_both_ways() -> None:
    read = compiled(FEED)
    assert (
        read.filters["Encounter"]["general-practitioner"].search == "patient.general-practitioner"
    )
    assert read.shapes["CarePlan"].reverse == (("Observation", "based-on"),)
    assert read.resource_types == ("Encounter", "CarePlan")


def test_an_operators_directory_adds_topics_and_replaces_ours(tmp_path: Path) -> None:
    ours = "http://carerelay.example/SubscriptionTopic/encounter-admission"
    (tmp_path / "a.json").write_text(json.dumps(topic()))
    (tmp_path / "b.json").write_text(json.dumps(topic(url=ours, version="9")))
    (tmp_path / "c.json").write_text(json.dumps(topic(url=URL + "-draft", status="draft")))
    catalogue = topic_store.load(Settings(topics=tmp_path))
    assert catalogue.find(URL) is not None
    assert catalogue.find(f"{ours}|9") is not None
    assert catalogue.find(URL + "-draft") is None


@pytest.mark.parametrize(
    "content", [pytest.param("{", id="no-json"), pytest.param('{"url": "urn:x"}', id="no-topic")]
)
def test_a_file_that_cannot_be_evaluated_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "broken.json").write_text(content)
    with pytest.raises(ValueError, match=r"broken\.json"):
        topic_store.load(Settings(topics=tmp_path))
    with pytest.raises(ValueError, match="no directory"):
        topic_store.load(Settings(topics=tmp_path / "broken.json"))
