"""`:in`, `:not-in`, `:below` and `:above` against the ValueSets and CodeSystems that are stored here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.errors import BadRequest
from app.records.versions import Change
from app.runtime.mongo import Mongo
from app.search.query import parse
from app.search.resolution import resolve
from app.settings import Settings
from app.store.store import Store
from tests.conftest import make_settings

pytestmark = pytest.mark.mongo
CS = "http://t.example/cs"
VS = "http://t.example/vs"


def value_set(id_: str, compose: dict[str, Any], **more: Any) -> dict[str, Any]:
    url = f"{VS}/{id_}"
    head = {"resourceType": "ValueSet", "id": id_, "url": url, "status": "active"}
    return {**head, "compose": compose, **more}


def condition(id_: str, *codings: tuple[str | None, str]) -> dict[str, Any]:
    coded = [{"code": code} | ({"system": system} if system else {}) for system, code in codings]
    return {
        "resourceType": "Condition",
        "id": id_,
        "subject": {"reference": "Patient/1"},
        "code": {"coding": coded} if coded else {"text": "?"},
    }


RESOURCES: list[dict[str, Any]] = [
    {
        "resourceType": "CodeSystem",
        "id": "cs",
        "url": CS,
        "version": "2",
        "status": "active",
        "content": "complete",
        "concept": [
            {"code": "heart", "concept": [{"code": "failure", "concept": [{"code": "acute"}]}]},
            {"code": "lung", "property": [{"code": "parent", "valueCode": "chest"}]},
            {"code": "chest"},
        ],
    },
    {
        "resourceType": "CodeSystem",
        "id": "stub",
        "url": f"{CS}/stub",
        "status": "active",
        "content": "not-present",
    },
    value_set("listed", {"include": [{"system": CS, "concept": [{"code": "acute"}]}]}),
    value_set("whole", {"include": [{"system": CS}]}),
    value_set(
        "hearts",
        {
            "include": [
                {
                    "system": CS,
                    "version": "2",
                    "filter": [{"property": "concept", "op": "is-a", "value": "heart"}],
                }
            ],
            "exclude": [{"system": CS, "concept": [{"code": "failure"}]}],
        },
    ),
    value_set("both", {"include": [{"valueSet": [f"{VS}/whole", f"{VS}/listed"]}]}),
    value_set("circle", {"include": [{"valueSet": [f"{VS}/circle"]}]}),
    value_set("foreign", {"include": [{"system": "http://snomed.info/sct"}]}),
    value_set("stubbed", {"include": [{"system": f"{CS}/stub"}]}),
    value_set(
        "property",
        {"include": [{"system": CS, "filter": [{"property": "x", "op": "=", "value": "y"}]}]},
    ),
    {
        "resourceType": "ValueSet",
        "id": "expanded",
        "url": f"{VS}/expanded",
        "status": "active",
        "expansion": {
            "timestamp": "2026-01-01",
            "contains": [
                {
                    "system": CS,
                    "code": "lung",
                    "abstract": True,
                    "contains": [{"system": CS, "code": "failure"}],
                },
                {"display": "Others", "contains": [{"system": CS, "code": "acute"}]},
            ],
        },
    },
    condition("acute", (CS, "acute")),
    condition("failure", (CS, "failure"), ("http://other", "z")),
    condition("lung", (CS, "lung")),
    condition("other", ("http://other", "acute")),
    condition("bare", (None, "acute")),
    condition("none"),
    {
        "resourceType": "Encounter",
        "id": "e",
        "status": "finished",
        "class": {"code": "IMP"},
    },
]


@pytest.fixture(scope="module")
async def held(mongod: str) -> AsyncIterator[Store]:
    mongo = await Mongo.open(make_settings(mongod))
    store = Store(mongo)
    await store.prepare()
    await store.commit([Change("create", r["resourceType"], r["id"], r) for r in RESOURCES])
    yield store
    await mongo.close()


async def found(store: Store, resource_type: str, name: str, value: str) -> set[str]:
    query = parse(resource_type, [(name, value)], lenient=False, settings=Settings())
    rows = await store.find(resource_type, (await resolve(store, query)).filter)
    return {row["_id"] for row in rows}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        pytest.param("code:in", f"{VS}/listed", {"acute"}, id="listed"),
        pytest.param("code:in", "ValueSet/listed", {"acute"}, id="by-id"),
        pytest.param("code:in", f"{VS}/whole", {"acute", "failure", "lung"}, id="whole-system"),
        pytest.param("code:in", f"{VS}/hearts", {"acute"}, id="is-a-and-exclude"),
        pytest.param("code:in", f"{VS}/both", {"acute"}, id="intersection"),
        pytest.param("code:in", f"{VS}/expanded", {"acute", "failure"}, id="no-headings"),
        pytest.param("code:in", f"{VS}/listed,{VS}/whole", {"acute", "failure", "lung"}, id="or"),
        pytest.param("code:not-in", f"{VS}/whole", {"other", "bare", "none"}, id="not-in"),
        pytest.param("code:below", f"{CS}|heart", {"acute", "failure"}, id="below"),
        pytest.param("code:below", f"{CS}|chest", {"lung"}, id="below-by-property"),
        pytest.param("code:above", f"{CS}|failure", {"failure"}, id="above"),
        pytest.param("code:above", f"{CS}|acute", {"acute", "failure"}, id="above-itself"),
        pytest.param("_filter", f"code in {VS}/listed", {"acute"}, id="filter-in"),
        pytest.param("_filter", f"code ss {CS}|heart", {"acute", "failure"}, id="filter-subsumes"),
        pytest.param(
            "_filter",
            f"code ni {VS}/whole and code pr true",
            {"other", "bare", "none"},
            id="filter-ni",
        ),
    ],
)
async def test_codes_are_found(held: Store, name: str, value: str, expected: set[str]) -> None:
    assert await found(held, "Condition", name, value) == expected


async def test_required_bindings_are_held(held: Store) -> None:
    value_set = "http://hl7.org/fhir/ValueSet/encounter-status"
    assert await found(held, "Encounter", "status:in", value_set) == {"e"}
    assert await found(held, "Encounter", "status:not-in", value_set) == set()


@pytest.mark.parametrize(
    ("name", "value", "code", "named"),
    [
        pytest.param("code:in", "http://x.example/vs", "not-supported", "http://x", id="unknown"),
        pytest.param("code:in", "ValueSet/none", "not-supported", "none", id="unknown-id"),
        pytest.param("code:in", f"{VS}/listed|9", "not-supported", "|9", id="unknown-version"),
        pytest.param("code:in", f"{VS}/foreign", "not-supported", "snomed", id="no-system"),
        pytest.param("code:in", f"{VS}/stubbed", "not-supported", "without all", id="no-content"),
        pytest.param("code:in", f"{VS}/property", "not-supported", "filter", id="property"),
        pytest.param("code:in", f"{VS}/circle", "not-supported", "end", id="circle"),
        pytest.param("code:in", "abc", "value", "'code'", id="no-url"),
        pytest.param(
            "code:below", "http://no.example|x", "not-supported", "no.example", id="below"
        ),
        pytest.param("code:below", "heart", "value", "system|code", id="below-no-system"),
    ],
)
async def test_what_is_not_held_is_refused(
    held: Store, name: str, value: str, code: str, named: str
) -> None:
    with pytest.raises(BadRequest) as refusal:
        await found(held, "Condition", name, value)
    assert refusal.value.issues[0].code == code
    assert named in refusal.value.issues[0].diagnostics
