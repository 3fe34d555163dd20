"""`_text` and `_content`: the same words through MongoDB and in memory, bounded, and refused where switched off."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.errors import BadRequest
from app.records.versions import Change
from app.runtime.mongo import Mongo
from app.search import words
from app.search.extract import extract
from app.search.query import Query, parse
from app.search.search_state import SearchState
from app.settings import Settings
from app.store.store import Store
from tests.conftest import make_settings

CARE_PLAN: dict[str, Any] = {
    "resourceType": "CarePlan",
    "id": "plan",
    "status": "active",
    "intent": "plan",
    "subject": {"reference": "Patient/smith", "display": "Ana Müller"},
    "text": {
        "status": "generated",
        "div": '<div xmlns="http://www.w3.org/1999/xhtml">Weight&nbsp;loss <b title="hidden">plan</b></div>',
    },
    "note": [{"text": "Reduce **salt**; walk daily"}],
    "category": [{"coding": [{"system": "http://x.example/cs", "code": "secret"}]}],
    "contained": [
        {"resourceType": "Goal", "id": "g", "description": {"text": "Sodium below limit"}}
    ],
}


def read(name: str, text: str) -> Query:
    return parse("CarePlan", [(name, text)], lenient=False, settings=Settings())


@pytest.fixture(scope="module")
async def stored(mongod: str) -> AsyncIterator[Store]:
    mongo = await Mongo.open(make_settings(mongod))
    store = Store(mongo)
    await store.prepare()
    await store.commit([Change("create", "CarePlan", "plan", CARE_PLAN)])
    yield store
    await mongo.close()


@pytest.mark.mongo
@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        pytest.param("_text", "weight", True, id="word"),
        pytest.param("_text", "LOSS Weight", True, id="all-words-in-any-order"),
        pytest.param("_text", "weight gain", False, id="one-is-missing"),
        pytest.param("_text", "gain,loss", True, id="alternatives"),
        pytest.param("_text", "weig", False, id="whole-words"),
        pytest.param("_text", "weig*", True, id="beginning"),
        pytest.param("_text", "salt", False, id="not-the-narrative"),
        pytest.param("_text", "hidden", False, id="no-attributes"),
        pytest.param("_text", "xhtml", False, id="no-markup"),
        pytest.param("_content", "salt", True, id="markdown"),
        pytest.param("_content", "muller", True, id="accents"),
        pytest.param("_content", "weight salt", True, id="narrative-is-content"),
        pytest.param("_content", "sodium", True, id="contained"),
        pytest.param("_content", "secret", False, id="no-codes"),
        pytest.param("_content", "smith", False, id="no-references"),
    ],
)
async def test_words_are_found(stored: Store, name: str, text: str, expected: bool) -> None:
    query = read(name, text)
    assert bool(await stored.find("CarePlan", query.filter)) is expected
    assert query.matches(extract("CarePlan", CARE_PLAN)) is expected


def test_words_are_bounded() -> None:
    many = " ".join(f"word{number}" for number in range(1000))
    resource = {**CARE_PLAN, "description": many, "note": [{"text": "x" * 500}]}
    terms = words.terms("CarePlan", resource)
    assert len(terms) <= 400
    assert max(map(len, terms)) <= len("_content=") + 32
    assert len(set(terms)) == len(terms)


@pytest.mark.parametrize(
    ("resource_type", "holder"),
    [("Binary", {}), ("DocumentReference", {"content": [{"attachment": {}}]})],
)
def test_what_files_hold_is_no_text(resource_type: str, holder: dict[str, Any]) -> None:
    resource = {"resourceType": resource_type, **holder}
    place = holder["content"][0]["attachment"] if holder else resource
    place |= {"contentType": "text/plain", "data": "d29yZHM+d29yZHM/d29yZHM="}
    assert words.terms(resource_type, resource) == []


@pytest.mark.parametrize(
    ("resource_type", "name", "text", "code"),
    [
        pytest.param("CarePlan", "_text", "a", "value", id="no-word"),
        pytest.param("CarePlan", "_text:contains", "abc", "not-supported", id="modifier"),
        pytest.param("Bundle", "_text", "abc", "not-supported", id="no-narrative"),
    ],
)
def test_refusals(resource_type: str, name: str, text: str, code: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        parse(resource_type, [(name, text)], lenient=True, settings=Settings())
    assert refusal.value.issues[0].code == code


def test_switched_off() -> None:
    with SearchState(has_words=False).applied():
        assert not [t for t in extract("CarePlan", CARE_PLAN)["terms"] if t.startswith("_")]
        with pytest.raises(BadRequest, match="switched off"):
            read("_content", "salt")
