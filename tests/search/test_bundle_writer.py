"""Bundles and their links, to the byte: clients keep links, and proxies compare answers."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from unittest.mock import create_autospec

import pytest
from hypothesis import given, strategies as st

from app.errors import Issue
from app.interactions import history
from app.interactions.history import HistoryQuery
from app.records.versions import HistoryRange, ResourceVersion
from app.search import bundle_writer, cursor, page
from app.search.bundle_writer import FORM, SEARCH, Pairs, Quoting
from app.search.include import IncludedRow
from app.search.page import Page
from app.search.page_links import PageLinks, Walk

BASE = "http://carerelay.test/fhir"
AT = datetime(2026, 5, 14, 10, 0, 0, 123_000, UTC)
PLAIN = '{"resourceType":"Patient","id":"p1"}'


def walk(place: str) -> Walk:
    """The first page at a place; the next one has always the same token."""
    owner = create_autospec(PageLinks, instance=True)
    owner.token.return_value = "to-ken_1"
    return Walk(owner, "anonymous", BASE, place, ())


@pytest.mark.parametrize(
    ("quoting", "pairs", "expected"),
    [
        pytest.param(SEARCH, [], "", id="nothing"),
        pytest.param(SEARCH, [("code", "http://x.test/a,b")], "code=http://x.test/a,b", id="plain"),
        pytest.param(SEARCH, [("code", "http://x.test|a")], "code=http://x.test%7Ca", id="no-uri"),
        pytest.param(FORM, [("_since", "2026-05-14T10:00:00Z")], "_since=2026-05-14T10%3A00%3A00Z"),
        pytest.param(FORM, [("_at", "ge2026"), ("_count", "2")], "_at=ge2026&_count=2", id="form"),
        pytest.param(SEARCH, [("name", "a b&c=d+e")], "name=a%20b%26c%3Dd%2Be", id="search-quoted"),
        pytest.param(FORM, [("name", "a b&c=d+e")], "name=a+b%26c%3Dd%2Be", id="form-quoted"),
        pytest.param(SEARCH, [("name", "M\u00fcller")], "name=M%C3%BCller", id="not-ascii"),
    ],
)
def test_queries_are_quoted_where_they_must(quoting: Quoting, pairs: Pairs, expected: str) -> None:
    assert quoting.query(pairs) == expected


async def test_the_next_link_has_a_token_and_the_shape_in_it() -> None:
    used = [("name", "x"), ("_elements", "name,active")]
    following = cursor.Position(("p1",))
    first = walk("Patient")
    assert await first.links(used, following) == [
        {"relation": "self", "url": f"{BASE}/Patient?name=x&_elements=name%2Cactive"},
        {
            "relation": "next",
            "url": f"{BASE}/Patient?_elements=name%2Cactive&_cursor=to-ken_1",
        },
    ]
    second = replace(walk(""), token="old", begin=following)
    assert await second.links([("_type", "Patient")], None) == [
        {"relation": "self", "url": f"{BASE}?_type=Patient&_cursor=old"}
    ]
    assert await walk("").links([], None) == [{"relation": "self", "url": BASE}]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        pytest.param(
            {},
            '"type":"searchset",'
            '"link":[{"relation":"self","url":"http://carerelay.test/fhir/Patient"}]',
            id="nothing",
        ),
        pytest.param(
            {"total": 0, "horizon": AT},
            '"meta":{"lastUpdated":"2026-05-14T10:00:00.123Z"},"type":"searchset","total":0,'
            '"link":[{"relation":"self","url":"http://carerelay.test/fhir/Patient"}]',
            id="meta-before-the-type",
        ),
        pytest.param(
            {
                "used": [("name", "x y")],
                "matches": [IncludedRow("Patient", "p1", PLAIN)],
                "included": [IncludedRow("Practitioner", "d1", '{"a":1.50}')],
                "following": (AT, "p1"),
                "issues": [Issue("too-costly", "Not \u00e4ll", severity="warning")],
            },
            '"type":"searchset",'
            '"link":[{"relation":"self","url":"http://carerelay.test/fhir/Patient?name=x%20y"},'
            '{"relation":"next",'
            '"url":"http://carerelay.test/fhir/Patient?_cursor=to-ken_1"}],'
            '"entry":[{"fullUrl":"http://carerelay.test/fhir/Patient/p1",'
            '"resource":{"resourceType":"Patient","id":"p1"},"search":{"mode":"match"}},'
            '{"fullUrl":"http://carerelay.test/fhir/Practitioner/d1",'
            '"resource":{"a":1.50},"search":{"mode":"include"}},'
            '{"resource":{"resourceType":"OperationOutcome","issue":[{"severity":"warning",'
            '"code":"too-costly","diagnostics":"Not \u00e4ll"}]},"search":{"mode":"outcome"}}]',
            id="all-there-can-be",
        ),
    ],
)
async def test_a_searchset(more: dict[str, Any], expected: str) -> None:
    shown = Page(**{"used": [], **more})
    text = await page.render(shown, walk("Patient"))
    assert text.decode() == f'{{"resourceType":"Bundle",{expected}}}'


async def test_a_history() -> None:
    query = HistoryQuery(HistoryRange(until=AT), 2, (("_since", "2026-05-14T10:00:00Z"),))
    versions = [
        ResourceVersion("Patient", "p1", 2, AT, "", deleted=True, method="DELETE"),
        ResourceVersion("Patient", "p1", 1, AT, PLAIN),
        ResourceVersion("Patient", "p2", 1, AT, PLAIN),
    ]
    answer = await history.bundle(query, versions, 3, walk("_history"))
    assert answer.text == (
        b'{"resourceType":"Bundle","type":"history",'
        b'"meta":{"lastUpdated":"2026-05-14T10:00:00.123Z"},"total":3,"link":[{"relation":"self",'
        b'"url":"http://carerelay.test/fhir/_history?_since=2026-05-14T10%3A00%3A00Z"},'
        b'{"relation":"next","url":"http://carerelay.test/fhir/_history?_cursor=to-ken_1"}],'
        b'"entry":[{"fullUrl":"http://carerelay.test/fhir/Patient/p1",'
        b'"request":{"method":"DELETE","url":"Patient/p1"},"response":{"status":"204",'
        b'"etag":"W/\\"2\\"","lastModified":"2026-05-14T10:00:00.123Z"}},'
        b'{"fullUrl":"http://carerelay.test/fhir/Patient/p1",'
        b'"request":{"method":"PUT","url":"Patient/p1"},"response":{"status":"201",'
        b'"etag":"W/\\"1\\"","lastModified":"2026-05-14T10:00:00.123Z"},'
        b'"resource":{"resourceType":"Patient","id":"p1"}}]}'
    )


@given(
    st.lists(st.tuples(st.text(), st.text())),
    st.dictionaries(st.sampled_from(["id", "type", "total"]), st.integers()),
)
def test_any_bundle_is_json_with_its_entries(
    texts: list[tuple[str, str]], head: dict[str, int]
) -> None:
    resources = [{"id": id_, "text": text} for id_, text in texts]
    rows = [IncludedRow("Basic", str(n), json.dumps(each)) for n, each in enumerate(resources)]
    entries = bundle_writer.found_entries(BASE, rows)
    entries += bundle_writer.written_entries(json.dumps(each) for each in resources)
    found = json.loads(bundle_writer.write_bundle(head, (), entries))
    listed = found.pop("entry", [])
    assert found == {"resourceType": "Bundle", **head}
    assert [each["resource"] for each in listed[: len(rows)]] == resources
    assert listed[len(rows) :] == resources
