"""Reading a search: what is not understood is refused, by name."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from app.errors import BadRequest, Gone
from app.search import cursor
from app.search.escaping import split, unescape
from app.search.extract import extract, index_models
from app.search.parameters.string import normalise
from app.search.query import Query, criteria, parse, supported_parameters
from app.search.terms import Terms
from app.settings import Settings


def read(
    text: str, resource_type: str = "Encounter", *, lenient: bool = False, **options: Any
) -> Query:
    pairs = [(name, value) for name, _, value in (part.partition("=") for part in text.split("&"))]
    return parse(resource_type, pairs, lenient=lenient, settings=Settings(**options))


@pytest.mark.parametrize(
    ("text", "code", "named"),
    [
        pytest.param("nonsense=1", "not-supported", "'nonsense'", id="unknown"),
        pytest.param("NAME=1", "not-supported", "'NAME'", id="case"),
        pytest.param("patient.nonsense=x", "not-supported", "'nonsense'", id="chain-end"),
        pytest.param("nonsense.name=x", "not-supported", "'nonsense'", id="chain-start"),
        pytest.param("status.name=x", "value", "'status'", id="chain-no-reference"),
        pytest.param("subject:Device.name=x", "value", "'Device'", id="chain-wrong-type"),
        pytest.param("patient.birthdate=x", "value", "'birthdate'", id="chain-value"),
        pytest.param("patient.name:banana=x", "not-supported", ":banana", id="chain-modifier"),
        pytest.param("patient.=x", "not-supported", "''", id="chain-no-end"),
        pytest.param(
            "account.subject" + ".subject" * 10 + "=x", "too-costly", "10", id="chain-too-long"
        ),
        pytest.param("_has:Observation:patient=1", "value", "_has", id="has-short"),
        pytest.param("_has:Banana:patient:code=1", "not-supported", "'Banana'", id="has-type"),
        pytest.param("_has:Observation:banana:code=1", "not-supported", "'banana'", id="has-code"),
        pytest.param("_has:Observation:patient:code=1", "value", "'Encounter'", id="has-target"),
        pytest.param("_has:Observation:encounter:x=1", "not-supported", "'x'", id="has-end"),
        pytest.param("_include=Encounter", "value", "_include", id="include-short"),
        pytest.param("_include=Banana:patient", "not-supported", "'Banana'", id="include-type"),
        pytest.param("_include=Encounter:banana", "not-supported", "'banana'", id="include-code"),
        pytest.param("_include=Encounter:status", "value", "'status'", id="include-no-reference"),
        pytest.param("_include=Encounter:patient:Group", "value", "'Group'", id="include-target"),
        pytest.param("_include=Patient:organization", "value", "iterate", id="include-start"),
        pytest.param("_revinclude=Group:member", "value", "iterate", id="revinclude-start"),
        pytest.param("_include:recurse=x", "not-supported", ":recurse", id="include-modifier"),
        pytest.param("_list=$current-problems", "not-supported", "Functional", id="list-current"),
        pytest.param("_list=a b", "value", "'_list'", id="list"),
        pytest.param("_list:not=a", "not-supported", ":not", id="list-modifier"),
        pytest.param("_contained=true", "not-supported", "contained", id="contained"),
        pytest.param("_type=Patient", "not-supported", "'_type'", id="type-on-a-type"),
        pytest.param("_filter:x=status eq y", "not-supported", ":x", id="filter-modifier"),
        pytest.param("_text:exact=word", "not-supported", ":exact", id="text-modifier"),
        pytest.param("_explain=true", "not-supported", "_explain", id="explain-off"),
        pytest.param("_snapshot=maybe", "value", "_snapshot", id="snapshot"),
        pytest.param("_query=x", "not-supported", "_query", id="named-query"),
        pytest.param("status:banana=x", "not-supported", ":banana", id="token-modifier"),
        pytest.param("status:in=abc", "value", "'status'", id="token-in"),
        pytest.param("status:of-type=a|b|c", "not-supported", ":of-type", id="of-type-elsewhere"),
        pytest.param("date:exact=2026", "not-supported", ":exact", id="date-modifier"),
        pytest.param("subject:Device=1", "not-supported", ":Device", id="reference-wrong-type"),
        pytest.param("length:missing=maybe", "value", "'length'", id="missing-value"),
        pytest.param("_id:missing=true", "not-supported", "'_id'", id="id-missing"),
        pytest.param("_id=a b", "value", "'_id'", id="id"),
        pytest.param("status=", "value", "'status'", id="empty"),
        pytest.param("status=a,,b", "value", "'status'", id="empty-alternative"),
        pytest.param("status=a|b|c", "value", "'status'", id="token-three-parts"),
        pytest.param("status=|", "value", "'status'", id="token-bar"),
        pytest.param("identifier:of-type=a|b", "value", "'identifier'", id="of-type"),
        pytest.param("date=yesterday", "value", "'date'", id="date"),
        pytest.param("date=xx2026", "value", "'date'", id="prefix"),
        pytest.param("date=2026-13", "value", "'date'", id="month"),
        pytest.param("date=2026-02-30", "value", "'date'", id="day"),
        pytest.param("date=20260201", "value", "'date'", id="compact-date"),
        pytest.param("date=2026-02-01T10", "value", "'date'", id="hour-only"),
        pytest.param("date=0000", "value", "'date'", id="year-zero"),
        pytest.param("length=abc", "value", "'length'", id="quantity"),
        pytest.param("length=NaN", "value", "'length'", id="not-a-number"),
        pytest.param("length=5|x", "value", "'length'", id="quantity-two-parts"),
        pytest.param("length=5||", "value", "'length'", id="quantity-no-unit"),
        pytest.param("length=5e99999", "value", "'length'", id="huge-exponent"),
        pytest.param("patient=a/b/c", "value", "'patient'", id="reference"),
        pytest.param("patient:Patient=Group/1", "value", "'patient'", id="typed-reference"),
        pytest.param("_count=ten", "value", "'_count'", id="count"),
        pytest.param("_count=-1", "value", "'_count'", id="negative-count"),
        pytest.param("_count=1&_count=2", "invalid", "'_count'", id="count-twice"),
        pytest.param("_total=all", "value", "'_total'", id="total"),
        pytest.param("_summary=short", "value", "'_summary'", id="summary"),
        pytest.param("_elements=a,$b", "value", "'_elements'", id="elements"),
        pytest.param("_sort=nonsense", "not-supported", "'nonsense'", id="sort"),
        pytest.param("_sort=patient", "not-supported", "'patient'", id="sort-reference"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(text: str, code: str, named: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        read(text)
    (issue,) = refusal.value.issues
    assert issue.code == code
    assert named in issue.diagnostics


@pytest.mark.parametrize(
    ("text", "code", "named"),
    [
        pytest.param("status=planned&_count=1", "not-supported", "'_count'", id="control"),
        pytest.param("_sort=date&status=planned", "not-supported", "'_sort'", id="order"),
        pytest.param("_include=Encounter:patient", "not-supported", "'_include'", id="include"),
        pytest.param("?", "required", "search criteria", id="none"),
    ],
)
def test_what_shapes_an_answer_is_no_criterion_of_a_conditional_interaction(
    text: str, code: str, named: str
) -> None:
    with pytest.raises(BadRequest) as refusal:
        criteria(text)
    (issue,) = refusal.value.issues
    assert (issue.code, named in issue.diagnostics) == (code, True)
    assert criteria("?status=planned&_id=a") == [("status", "planned"), ("_id", "a")]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("status:banana=x", id="modifier"),
        pytest.param("date=yesterday", id="value"),
        pytest.param("patient.birthdate=x", id="chain"),
        pytest.param("_has:Observation:patient:code=1", id="has"),
        pytest.param("_filter=x", id="filter"),
    ],
)
def test_lenient_handling_forgives_unknown_names_only(text: str) -> None:
    with pytest.raises(BadRequest):
        read(text, lenient=True)


def test_lenient_handling_leaves_out_and_reports() -> None:
    query = read("nonsense=1&status=finished", lenient=True)
    assert query.filter == {"terms": "status=finished"}
    assert query.used == [("status", "finished")]
    assert [issue.severity for issue in query.issues] == ["warning"]


@pytest.mark.parametrize(
    "name", ["patient.nonsense", "nonsense.name", "_has:Observation:encounter:x"]
)
def test_lenient_handling_leaves_out_chains_that_lead_nowhere(name: str) -> None:
    query = read(f"{name}=1&status=finished", lenient=True)
    assert query.used == [("status", "finished")]
    assert len(query.issues) == 1


def test_a_query_with_a_chain_is_no_filter_before_it_is_resolved() -> None:
    with pytest.raises(RuntimeError):
        read("patient.name=x").filter  # noqa: B018


def test_refusals_do_not_repeat_the_value() -> None:
    with pytest.raises(BadRequest) as refusal:
        read("birthdate=Smith1950", "Patient")
    assert "Smith1950" not in str(refusal.value.outcome)


def test_filter_always_keeps_the_deleted_out() -> None:
    assert read("_format=json").filter == {"terms": "*"}
    assert read("status:not=x").filter["$and"][0] == {"terms": "*"}
    assert read("_id=1").filter == {"$and": [{"terms": "*"}, {"_id": "1"}]}


def test_count_is_limited_by_the_settings() -> None:
    assert read("status=x").count == 50
    assert read("status=x", default_count=7).count == 7
    assert read("_count=99999999999999999999", max_count=20).count == 20


def test_patient_and_subject_share_their_terms() -> None:
    resource = {"resourceType": "Encounter", "subject": {"reference": "Patient/1"}}
    assert extract("Encounter", resource)["terms"] == ["*", "subject=Patient/1"]
    assert read("patient=1").filter == {"terms": "subject=Patient/1"}


def test_a_value_that_is_only_extended_leaves_those_after_it_in_their_place() -> None:
    """Of a repeating primitive, null stands where there is nothing but extensions."""
    unknown = {"extension": [{"url": "urn:x", "valueCode": "unknown"}]}
    name = {"given": [None, "Anna"], "_given": [unknown, None]}
    fields = extract("Patient", {"resourceType": "Patient", "name": [name]})
    assert read("given=anna", "Patient").matches(fields)


def test_extract_gives_the_documents_own_id_and_time() -> None:
    resource = {"id": "a", "meta": {"lastUpdated": "2026-05-14T10:30:00.123Z"}}
    fields = extract("Basic", resource)
    assert fields["_id"] == "a"
    assert fields["at"] == datetime(2026, 5, 14, 10, 30, 0, 123000, UTC)


def test_there_are_two_indexes() -> None:
    keys = [list(model.document["key"]) for model in index_models("Encounter")]
    assert keys == [["terms", "date", "_id"], ["at", "_id"]]


def test_supported_parameters_are_what_parse_takes() -> None:
    codes = {parameter.code for parameter in supported_parameters("Location")}
    assert {"_id", "_lastUpdated", "address-city"} <= codes
    assert "near" in codes


@pytest.mark.parametrize(
    "text", ["1", "1|2|3|km|5", "91|0", "0|181", "a|b", "1|2|-3", "1|2|3|in", "nan|1"]
)
def test_malformed_place_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="near"):
        read(f"near={text}", "Location")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        pytest.param("a,b", ["a", "b"], id="plain"),
        pytest.param("a\\,b,c", ["a\\,b", "c"], id="escaped"),
        pytest.param("a\\\\,b", ["a\\\\", "b"], id="escaped-backslash"),
        pytest.param("a\\", ["a\\"], id="trailing-backslash"),
    ],
)
def test_split_respects_escapes(text: str, parts: list[str]) -> None:
    assert split(text, ",") == parts


def test_unescape() -> None:
    assert unescape("a\\,b\\|c\\$d\\\\e\\f\\") == "a,b|c$d\\e\\f\\"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("  ÀÉÎ  Õü ", "aei ou", id="accents-and-space"),
        pytest.param("Straße", "strasse", id="sharp-s"),
        pytest.param("İstanbul", "istanbul", id="dotted-i"),
        pytest.param("ﬁne", "fine", id="ligature"),
        pytest.param("東京", "東京", id="other-script"),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("last", "above"), [("a", "xb"), ("\ud7ff", "x\ue000"), ("\U0010ffff", "y")]
)
def test_prefix_bounds_hold_all_that_begins_with_it_and_nothing_else(last: str, above: str) -> None:
    prefix = f"x{last}"
    bounds = Terms(prefixes=(prefix,)).filter()["terms"]["$elemMatch"]
    low, high = bounds["$gte"].encode(), bounds["$lt"].encode()
    assert low <= prefix.encode() < high
    assert low <= (prefix + "\U0010ffff").encode() < high <= above.encode()


@pytest.mark.parametrize(
    "values",
    [pytest.param(("x",), id="too-short"), pytest.param(("x", None), id="no-id")],
)
def test_position_in_another_result_is_refused(values: tuple[str | None, ...]) -> None:
    with pytest.raises(Gone):
        cursor.Position(values).of(2)


def test_position_has_no_operators() -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        cursor.values_of([{"$gt": ""}, "x"])


def test_position_round_trip() -> None:
    values = (datetime(2026, 5, 14, 1, 2, 3, 4000, UTC), None, "text", "id")
    assert cursor.values_of(cursor.plain(values)) == values
