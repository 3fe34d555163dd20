"""`_filter`: the grammar, and that each operator means the same through MongoDB and in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.errors import BadRequest
from app.fhir.json import decode_stored
from app.records.versions import Change
from app.runtime.mongo import Mongo
from app.search.cost import Budget
from app.search.extract import extract
from app.search.filter_grammar import Assertion, Connection, Negation, parse as parse_filter
from app.search.query import Query, parse
from app.search.resolution import resolve
from app.settings import Settings
from app.store.store import Store
from tests.conftest import make_settings

LOINC = "http://loinc.org"
UCUM = "http://unitsofmeasure.org"


def shape(text: str) -> Any:
    def of(node: Any) -> Any:
        match node:
            case Assertion(path, operator, value):
                return f"{'.'.join(step.name for step in path)} {operator} {value}"
            case Negation(inner):
                return ("not", of(inner))
            case Connection(word, nodes):
                return (word, *map(of, nodes))

    return of(parse_filter(text, Budget()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("a eq b", "a eq b", id="test"),
        pytest.param("a eq b and c ne d", ("and", "a eq b", "c ne d"), id="and"),
        pytest.param(
            "a eq b or c eq d and e eq f",
            ("or", "a eq b", ("and", "c eq d", "e eq f")),
            id="and-binds-closer",
        ),
        pytest.param(
            "(a eq b or c eq d) and e eq f",
            ("and", ("or", "a eq b", "c eq d"), "e eq f"),
            id="parentheses",
        ),
        pytest.param("not (a eq b)", ("not", "a eq b"), id="not"),
        pytest.param("not(a eq b)and c eq d", ("and", ("not", "a eq b"), "c eq d"), id="tight"),
        pytest.param('a eq "x ) and y"', "a eq x ) and y", id="string"),
        pytest.param('a eq "\\"\\u00e4"', 'a eq "ä', id="json-escapes"),
        pytest.param("a.b:C.d eq e", "a.b:C.d eq e", id="path"),
        pytest.param("a[b eq c].d eq e", "a.d eq e", id="criterion"),
        pytest.param("not eq b", "not eq b", id="parameter-called-not"),
        pytest.param("android eq b", "android eq b", id="name-beginning-like-a-word"),
    ],
)
def test_grammar(text: str, expected: Any) -> None:
    assert shape(text) == expected


@pytest.mark.parametrize(
    ("text", "code", "named"),
    [
        pytest.param("status", "value", "operator", id="no-operator"),
        pytest.param("status eq", "value", "a value", id="no-value"),
        pytest.param("status is x", "value", "operator", id="unknown-operator"),
        pytest.param("(status eq x", "value", "')'", id="open-parenthesis"),
        pytest.param("status eq x y", "value", "the end", id="too-much"),
        pytest.param('status eq "x', "value", "string", id="open-string"),
        pytest.param("status eq x and", "value", "name", id="dangling-and"),
        pytest.param("(" * 30 + "status eq x", "too-costly", "deeply", id="deep"),
        pytest.param("nonsense eq x", "not-supported", "'nonsense'", id="unknown-parameter"),
        pytest.param("status gt x", "not-supported", "'gt'", id="operator-of-another-type"),
        pytest.param("status:not eq x", "not-supported", "operators", id="modifier"),
        pytest.param("date eq yesterday", "value", "'date'", id="date"),
        pytest.param("date gt ge2026", "value", "'date'", id="prefix"),
        pytest.param("status pr maybe", "value", "'status'", id="present"),
        pytest.param("status.x eq y", "value", "no reference", id="path-through-a-code"),
        pytest.param("subject.nonsense eq x", "not-supported", "nonsense", id="unknown-in-chain"),
    ],
)
def test_refusals(text: str, code: str, named: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        query("Encounter", text)
    assert refusal.value.issues[0].code == code
    assert named in refusal.value.issues[0].diagnostics


def query(resource_type: str, text: str) -> Query:
    return parse(resource_type, [("_filter", text)], lenient=False, settings=Settings())


NAMED = {"name": [{"family": "Müller", "given": ["Ana", "Zoë"]}], "birthDate": "1950-03-01"}
SODIUM = {
    "code": {"coding": [{"system": LOINC, "code": "2951-2"}]},
    "valueQuantity": {"value": 140, "system": UCUM, "code": "mmol/L"},
    "subject": {"reference": "Patient/named"},
    "effectivePeriod": {"start": "2026-05-10", "end": "2026-05-14"},
}
TWO = {"code": {"coding": [{"system": LOINC, "code": "a"}, {"system": "http://x", "code": "b"}]}}
PRESSURE = {
    "component": [
        {"code": {"coding": [{"code": "sys"}]}, "valueQuantity": {"value": 120}},
        {"code": {"coding": [{"code": "dia"}]}, "valueQuantity": {"value": 80}},
    ]
}
RESOURCES: dict[tuple[str, str], dict[str, Any]] = {
    ("Patient", "named"): NAMED,
    ("Patient", "bare"): {},
    ("Observation", "sodium"): SODIUM,
    ("Observation", "two"): TWO,
    ("Observation", "pressure"): PRESSURE,
    ("Encounter", "open"): {"status": "in-progress", "subject": {"reference": "Patient/bare"}},
    ("ValueSet", "vs"): {"url": "http://a.org/v/1"},
}


@pytest.fixture(scope="module")
async def filled(mongod: str) -> AsyncIterator[Store]:
    mongo = await Mongo.open(make_settings(mongod))
    store = Store(mongo)
    await store.prepare()
    await store.commit(
        [
            Change("create", kind, id_, {"resourceType": kind, "id": id_, **elements})
            for (kind, id_), elements in RESOURCES.items()
        ]
    )
    yield store
    await mongo.close()


@pytest.mark.mongo
@pytest.mark.parametrize(
    ("resource_type", "text", "expected"),
    [
        pytest.param("Patient", "name eq muller", {"named"}, id="string-eq"),
        pytest.param("Patient", "name eq mull", set(), id="string-eq-whole"),
        pytest.param("Patient", 'name co "üll"', {"named"}, id="string-co"),
        pytest.param("Patient", "name sw mü", {"named"}, id="string-sw"),
        pytest.param("Patient", "name ew LER", {"named"}, id="string-ew"),
        pytest.param("Patient", "name ew mull", set(), id="string-ew-not"),
        pytest.param("Patient", "given ne ana", {"named"}, id="string-ne-another-item"),
        pytest.param("Patient", "family ne müller", set(), id="string-ne"),
        pytest.param("Patient", "not (family eq müller)", {"bare"}, id="not"),
        pytest.param("Patient", "birthdate pr true", {"named"}, id="present"),
        pytest.param("Patient", "birthdate pr false", {"bare"}, id="absent"),
        pytest.param("Patient", "_id eq bare", {"bare"}, id="id"),
        pytest.param(
            "Patient", "birthdate ge 1950 and (name eq x or given eq zoe)", {"named"}, id="combined"
        ),
        pytest.param("Observation", "code eq 2951-2", {"sodium"}, id="token-eq"),
        pytest.param("Observation", f"code eq {LOINC}|2951-2", {"sodium"}, id="token-system"),
        pytest.param("Observation", f"code eq {LOINC}|", {"sodium", "two"}, id="token-any"),
        pytest.param("Observation", "code ne 2951-2", {"two"}, id="token-ne"),
        pytest.param("Observation", "code ne a", {"sodium", "two"}, id="token-ne-other-coding"),
        pytest.param("Observation", f"code ne {LOINC}|a", {"sodium", "two"}, id="token-ne-system"),
        pytest.param("Observation", f"code ne {LOINC}|", {"two"}, id="token-ne-any-of-system"),
        pytest.param("Observation", "code sw 29", {"sodium"}, id="token-sw"),
        pytest.param("Observation", "code co 51", {"sodium"}, id="token-co"),
        pytest.param("Observation", "code ew -2", {"sodium"}, id="token-ew"),
        pytest.param("Observation", "code co loinc", set(), id="token-co-not-the-system"),
        pytest.param("Encounter", "status ne finished", {"open"}, id="code-ne"),
        pytest.param("Encounter", "status ne in-progress", set(), id="code-ne-not"),
        pytest.param("Observation", "date po 2026-05-12", {"sodium"}, id="date-po"),
        pytest.param("Observation", "date po 2026-05-15", set(), id="date-po-not"),
        pytest.param("Observation", "date eq 2026-05-12", set(), id="date-eq"),
        pytest.param("Observation", "date sa 2026-05-09", {"sodium"}, id="date-sa"),
        pytest.param("Observation", "date eb 2026-05-15", {"sodium"}, id="date-eb"),
        pytest.param("Observation", "_lastUpdated po 2026-01", set(), id="last-updated-po"),
        pytest.param("Observation", "value-quantity gt 130", {"sodium"}, id="quantity"),
        pytest.param(
            "Observation", f"value-quantity ap 0.14|{UCUM}|mol/L", {"sodium"}, id="quantity-unit"
        ),
        pytest.param("Observation", "subject re Patient/named", {"sodium"}, id="reference-re"),
        pytest.param("Observation", "subject ne Patient/other", {"sodium"}, id="reference-ne"),
        pytest.param("Observation", "patient ne named", set(), id="shared-reference-ne"),
        pytest.param("Observation", "patient ne other", {"sodium"}, id="shared-reference-ne-other"),
        pytest.param("Observation", 'subject.name co "mull"', {"sodium"}, id="chain"),
        pytest.param("Encounter", "subject:Patient.birthdate pr false", {"open"}, id="typed-chain"),
        pytest.param(
            "Observation",
            "patient[birthdate lt 1960].given eq ana",
            {"sodium"},
            id="chain-criterion",
        ),
        pytest.param(
            "Observation", "not (subject.name co mull) and code pr true", {"two"}, id="not-chain"
        ),
        pytest.param("Patient", "_has:Observation:patient:code eq 2951-2", {"named"}, id="has"),
        pytest.param(
            "Observation",
            "component-code-value-quantity[component-code eq sys].component-value-quantity gt 100",
            {"pressure"},
            id="composite",
        ),
        pytest.param(
            "Observation",
            "component-code-value-quantity[component-code eq dia].component-value-quantity gt 100",
            set(),
            id="composite-not-across",
        ),
        pytest.param(
            "Observation",
            "component-code-value-quantity eq sys$120",
            {"pressure"},
            id="composite-eq",
        ),
        pytest.param("ValueSet", "url sw http://a.org/", {"vs"}, id="uri-sw"),
        pytest.param("ValueSet", "url ne http://a.org/v/1", set(), id="uri-ne"),
    ],
)
async def test_filter_finds(
    filled: Store, resource_type: str, text: str, expected: set[str]
) -> None:
    read = await resolve(filled, query(resource_type, text))
    rows = await filled.find(resource_type, read.filter)
    assert {row["_id"] for row in rows} == expected
    everything = await filled.find(resource_type, {"terms": "*"})
    fields = {row["_id"]: extract(resource_type, decode_stored(row["text"])) for row in everything}
    assert {each for each in fields if read.matches(fields[each])} == expected
