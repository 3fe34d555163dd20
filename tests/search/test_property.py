"""Search against a naive judge: random resources and queries, every official example, and paging while others write.

The judge evaluates each SearchParameter's FHIRPath expression anew and compares values by the specification's words; it
shares nothing with what the server stores but the expressions.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings as hypothesis_settings, strategies as st

from app.errors import BadRequest
from app.fhir import definitions
from app.records.versions import Change, Method
from app.runtime.mongo import Mongo
from app.search import page
from app.search.expression import evaluate
from app.search.query import parse
from app.search.resolution import resolve
from app.search.search_parameters import parameters
from app.settings import Settings
from app.store.store import Store
from tests.builders.pages import next_query, walk
from tests.conftest import BASE, make_settings
from tests.shared_data import SHARED

pytestmark = [pytest.mark.mongo, pytest.mark.slow]
EXAMPLES = SHARED / "data" / "r4-examples"
SETTINGS = Settings(max_count=2000)


async def fresh(mongod: str) -> Store:
    store = Store(await Mongo.open(make_settings(mongod)))
    await store.prepare()
    return store


@pytest.fixture(scope="module")
async def own_store(mongod: str) -> AsyncIterator[Store]:
    store = await fresh(mongod)
    yield store
    await store._mongo.close()


async def ids_found(store: Store, resource_type: str, pairs: list[tuple[str, str]]) -> set[str]:
    query = parse(resource_type, pairs, lenient=False, settings=SETTINGS, base_url=BASE)
    rows = await store.find(
        resource_type, (await resolve(store, query)).filter, projection={"_id": 1}
    )
    return {row["_id"] for row in rows}


# Random resources and queries

CODES = ["a", "b", "A", "a|b", "a,b", "é"]
SYSTEMS = ["http://s.example/1", "http://s.example/2", None]
NAMES = ["Ann", "ann", "Anna", "Zoë", "zoe", "O'Neil", "de la", "de  la Cruz"]
DAYS = [
    "2024",
    "2024-02",
    "2024-02-29",
    "2024-02-29T10:00:00Z",
    "2024-03-01T00:30:00+01:00",
    "2025-01",
]
NUMBERS = [
    Decimal(text) for text in ("0", "1", "1.0", "1.04", "1.05", "-1", "99.5", "100", "100.5")
]

codings = st.builds(
    lambda code, system: {"code": code} | ({"system": system} if system else {}),
    st.sampled_from(CODES),
    st.sampled_from(SYSTEMS),
)
observations = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(["final", "amended"]),
        "code": st.builds(lambda c: {"coding": c}, st.lists(codings, min_size=1, max_size=3)),
        "effectiveDateTime": st.sampled_from(DAYS),
        "valueQuantity": st.builds(lambda v: {"value": v, "code": "mg"}, st.sampled_from(NUMBERS)),
        "subject": st.sampled_from(
            [{"reference": "Patient/p1"}, {"reference": "Group/p1"}, {"display": "?"}]
        ),
    },
)
patients = st.fixed_dictionaries(
    {},
    optional={
        "active": st.booleans(),
        "name": st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "family": st.sampled_from(NAMES),
                    "given": st.lists(st.sampled_from(NAMES), min_size=1, max_size=2),
                },
            ).filter(bool),
            min_size=1,
            max_size=2,
        ),
        "birthDate": st.sampled_from(DAYS[:3]),
    },
)


def escaped(text: str) -> str:
    for character in "\\,|$":
        text = text.replace(character, "\\" + character)
    return text


tokens = st.builds(
    lambda code, system: code if system is False else f"{system or ''}|{code}",
    st.sampled_from([escaped(code) for code in CODES]),
    st.sampled_from([False, *SYSTEMS]),
)
prefixes = st.sampled_from(["", "eq", "ne", "gt", "lt", "ge", "le", "sa", "eb"])
dates = st.builds(lambda p, d: p + d, prefixes, st.sampled_from(DAYS))
numbers = st.builds(
    lambda p, n: p + n, prefixes, st.sampled_from(["1", "1.0", "100", "1e2", "-1", "1.05"])
)
strings = st.sampled_from([escaped(name) for name in [*NAMES, "an", "ne", "LA"]])


def parameter(name: str, values: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, str]]:
    several = st.lists(values, min_size=1, max_size=2).map(",".join)
    given_values = several.map(lambda text: (name, text))
    if name.partition(":")[1]:
        return given_values
    return given_values | st.sampled_from(
        [(f"{name}:missing", "true"), (f"{name}:missing", "false")]
    )


QUERIES: dict[str, st.SearchStrategy[tuple[str, str]]] = {
    "Observation": st.one_of(
        parameter("code", tokens),
        parameter("code:not", tokens),
        parameter("status", st.sampled_from(["final", "amended", "|final"])),
        parameter("date", dates),
        parameter("value-quantity", numbers),
        parameter("subject", st.sampled_from(["p1", "Patient/p1", "Group/p1"])),
        parameter("patient", st.sampled_from(["p1", "Patient/p1"])),
    ),
    "Patient": st.one_of(
        parameter("active", st.sampled_from(["true", "false"])),
        parameter("name", strings),
        parameter("family:exact", strings),
        parameter("given:contains", strings),
        parameter("birthdate", dates),
    ),
}
RESOURCES = {"Observation": observations, "Patient": patients}
CASES = st.sampled_from(sorted(RESOURCES)).flatmap(
    lambda kind: st.tuples(
        st.just(kind),
        st.lists(RESOURCES[kind], min_size=1, max_size=6),
        st.lists(st.lists(QUERIES[kind], min_size=1, max_size=3), min_size=1, max_size=6),
    )
)


class Judge:
    """The specification, read naively: one value of a resource against one value of a search."""

    def __init__(self, resource_type: str, resource: dict[str, Any]) -> None:
        self.type, self.resource = resource_type, resource

    def meets(self, pairs: list[tuple[str, str]]) -> bool:
        return all(self.one(name, text) for name, text in pairs)

    def one(self, name: str, text: str) -> bool:
        code, _, modifier = name.partition(":")
        definition = definitions.search_parameters(self.type)[code]
        found = list(evaluate(self.type, definition.expression, self.resource))
        if modifier == "missing":
            return (not found) is (text == "true")
        alternatives = unescaped_parts(text)
        same = any(
            getattr(self, definition.type)(kind, value, wanted, modifier)
            for kind, value in found
            for wanted in alternatives
        )
        return not same if modifier == "not" else same

    def token(self, kind: str, value: Any, wanted: list[str], modifier: str) -> bool:
        if kind == "CodeableConcept":
            return any(self.token("Coding", each, wanted, modifier) for each in value["coding"])
        code, system = (value["code"], value.get("system")) if kind == "Coding" else (value, None)
        if kind == "boolean":
            code = "true" if value else "false"
        if len(wanted) == 1:
            return bool(code == wanted[0])
        return bool(code == wanted[1] and (system or "") == wanted[0])

    def string(self, kind: str, value: Any, wanted: list[str], modifier: str) -> bool:
        if kind == "HumanName":
            parts = [value[k] for k in ("family",) if k in value] + value.get("given", [])
            return any(self.string("string", each, wanted, modifier) for each in parts)
        (text,) = wanted
        if modifier == "exact":
            return bool(value == text)
        folded, searched = fold(value), fold(text)
        return searched in folded if modifier == "contains" else folded.startswith(searched)

    def reference(self, kind: str, value: Any, wanted: list[str], modifier: str) -> bool:
        url = value.get("reference", "")
        return bool(url) and wanted[0] in (url, url.partition("/")[2])

    def date(self, kind: str, value: Any, wanted: list[str], modifier: str) -> bool:
        prefix, text = split_prefix(wanted[0])
        return compared(prefix, *instants(value), *instants(text))

    def quantity(self, kind: str, value: Any, wanted: list[str], modifier: str) -> bool:
        prefix, text = split_prefix(wanted[0])
        number = Decimal(text)
        if prefix in ("eq", "ne"):
            digit = Decimal(1).scaleb(int(number.as_tuple().exponent))
            is_equal = number - digit / 2 <= value["value"] < number + digit / 2
            return is_equal is (prefix == "eq")
        stored = value["value"]
        return compared(prefix, stored, stored, number, number)


def unescaped_parts(text: str) -> list[list[str]]:
    """The alternatives of a value, each split at its bars."""
    alternatives: list[list[str]] = [[""]]
    characters = iter(text)
    for character in characters:
        if character == "\\":
            alternatives[-1][-1] += next(characters)
        elif character == ",":
            alternatives.append([""])
        elif character == "|":
            alternatives[-1].append("")
        else:
            alternatives[-1][-1] += character
    return alternatives


def fold(text: str) -> str:
    return " ".join(text.replace("ë", "e").replace("é", "e").lower().split())


def split_prefix(text: str) -> tuple[str, str]:
    return (text[:2], text[2:]) if text[:2].isalpha() else ("eq", text)


def instants(text: str) -> tuple[datetime, datetime]:
    """The first instant that a date means, and the first that it does not mean any more, less a millisecond."""
    if "T" in text:
        start = datetime.fromisoformat(text).astimezone(UTC)
        return start, start + timedelta(milliseconds=999)
    parts = [int(part) for part in text.split("-")]
    year, month, day = (*parts, 1, 1)[:3]
    start = datetime(year, month, day, tzinfo=UTC)
    if len(parts) == 3:
        end = start + timedelta(days=1)
    elif len(parts) == 2:
        end = (start + timedelta(days=31)).replace(day=1)
    else:
        end = start.replace(year=start.year + 1)
    return start, end - timedelta(milliseconds=1)


def compared(prefix: str, low: Any, high: Any, start: Any, end: Any) -> bool:
    within = start <= low and high <= end
    match prefix:
        case "eq":
            return bool(within)
        case "ne":
            return not within
        case "gt":
            return bool(high > end)
        case "lt":
            return bool(low < start)
        case "ge":
            return bool(high > end or within)
        case "le":
            return bool(low < start or within)
        case "sa":
            return bool(low > end)
    return bool(high < start)


@pytest.mark.slow
async def test_search_agrees_with_a_naive_judge(own_store: Store) -> None:
    """150 rounds; each stores its resources under a tag of its own."""
    cases: list[Any] = []

    @hypothesis_settings(
        max_examples=150,
        database=None,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(CASES)
    def collect(case: Any) -> None:
        cases.append(case)

    collect()
    for kind, resources, queries in cases:
        tag = uuid.uuid4().hex
        label = {"meta": {"tag": [{"code": tag}]}, "resourceType": kind}
        named = {f"{tag[:8]}-{n}": {**label, **each} for n, each in enumerate(resources)}
        changes = [Change("create", kind, id_, {**each, "id": id_}) for id_, each in named.items()]
        await own_store.commit(changes)
        for pairs in queries:
            expected = {id_ for id_, each in named.items() if Judge(kind, each).meets(pairs)}
            found = await ids_found(own_store, kind, [("_tag", tag), *pairs])
            assert found == expected, (kind, pairs, named)


# Every official example


def search_value(kind: str, type_name: str, value: Any) -> str | None:
    """A search value made of a value in a resource; None where it has nothing to search by."""
    match kind, type_name:
        case (("composite" | "special"), _):
            return None
        case "reference", "canonical" if ":" not in value:
            return None  # a contained resource's, or none at all
        case "token", "CodeableConcept":
            return next(
                (v for c in value.get("coding", ()) if (v := search_value(kind, "Coding", c))), None
            )
        case "token", "Coding":
            return (
                f"{escaped(value.get('system', ''))}|{escaped(value['code'])}"
                if "code" in value
                else None
            )
        case "token", ("Identifier" | "ContactPoint"):
            return escaped(value["value"]) if value.get("value") else None
        case "token", "boolean":
            return "true" if value else "false"
        case "reference", "Reference":
            url = value.get("reference", "")
            return escaped(url) if url and not url.startswith("#") and " " not in url else None
        case "reference", "Resource":
            return None
        case "string", "HumanName":
            return escaped(value["family"]) if value.get("family") else None
        case "string", "Address":
            return escaped(value["city"]) if value.get("city") else None
        case "date", ("Period" | "Timing"):
            start = value.get("start")
            return f"ge{start}" if start else None
        case "date", _:
            return str(value)
        case (("number" | "quantity"), _) if type(value) in (int, Decimal):
            return str(value)
        case "quantity", _ if isinstance(value, dict) and "value" in value:
            comparator = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge"}.get(
                value.get("comparator", ""), ""
            )
            unit = (
                f"|{escaped(value.get('system', ''))}|{escaped(value['code'])}"
                if "code" in value
                else ""
            )
            return f"{comparator}{value['value']}{unit}"
        case (("token" | "uri" | "string" | "reference"), _) if type(value) is str:
            return escaped(value[:100] if kind == "string" else value) if value.strip() else None
    return None


@pytest.mark.slow
@pytest.mark.skipif(
    not EXAMPLES.is_dir(), reason="the official R4 examples are not in this checkout"
)
async def test_every_official_example_is_found_by_its_values(mongod: str) -> None:
    """For each search parameter with a value in an example, a search by that value finds the example."""
    store = await fresh(mongod)
    texts = [path.read_text() for path in sorted(EXAMPLES.glob("*.json"))]
    read = [json.loads(text, parse_float=Decimal) for text in texts]
    examples = {
        (each["resourceType"], each["id"]): each
        for each in read
        if each["resourceType"] in definitions.SUPPORTED_TYPES and "id" in each
    }
    changes = [Change("create", kind, id_, each) for (kind, id_), each in examples.items()]
    for start in range(0, len(changes), 100):
        await store.commit(changes[start : start + 100])
    searched: set[tuple[str, str]] = set()
    missed: list[Any] = []
    for (kind, id_), resource in examples.items():
        for code, each in parameters(kind).items():
            if (kind, code) in searched or code == "_lastUpdated" or each.aside:
                continue
            definition = definitions.search_parameters(kind)[code]
            for type_name, value in evaluate(kind, definition.expression, resource):
                text = None
                if any(path.type == type_name for path in each.paths):
                    text = search_value(each.type, type_name, value)
                if text is not None:
                    searched.add((kind, code))
                    try:
                        found = await ids_found(store, kind, [(code, text)])
                    except BadRequest as refusal:
                        found = {str(refusal)}
                    if id_ not in found:
                        missed.append((kind, code, id_, type_name, text))
                    break
    assert not missed
    assert len(searched) > 500
    await store._mongo.close()


# Paging while others write


@pytest.mark.slow
async def test_ten_pagers_and_ten_writers(mongod: str) -> None:
    """Rows whose sort values stay appear exactly once in every run through the pages, whatever the others do."""
    store = await fresh(mongod)
    kept = {f"k{n:03}" for n in range(300)}

    def resource(id_: str, day: int) -> dict[str, Any]:
        return {
            "resourceType": "Encounter",
            "id": id_,
            "status": "finished",
            "period": {"start": f"2026-{day % 12 + 1:02}-{day % 28 + 1:02}"},
        }

    changes = [
        Change("create", "Encounter", id_, resource(id_, int(id_[1:]))) for id_ in sorted(kept)
    ]
    await store.commit(changes)
    stop = asyncio.Event()
    writes = 0

    async def write(number: int) -> None:
        nonlocal writes
        chance = random.Random(number)
        while not stop.is_set():
            id_ = f"w{number}-{chance.randrange(5)}"
            previous = await store.read("Encounter", id_)
            lives = previous is not None and not previous.deleted
            if lives and chance.random() < 0.3:
                change = Change("delete", "Encounter", id_, None, previous)
            else:
                written = resource(id_, chance.randrange(400))
                method: Method = "update" if lives else "create"
                change = Change(method, "Encounter", id_, written, previous)
            await store.commit([change])
            writes += 1

    async def read(number: int) -> None:
        sort = ["date", "-date", "_id", "-_lastUpdated", "status,date"][number % 5]
        for _ in range(2):
            found: list[str] = []
            following: str | None = f"status=finished&_sort={sort}&_count=23"
            while following is not None:
                way = await walk(store, "Encounter", following)
                query = parse(
                    "Encounter", way.asked, lenient=False, settings=SETTINGS, begin=way.begin
                )
                bundle = json.loads(await page.search_type(store, query, way))
                found += [each["resource"]["id"] for each in bundle.get("entry", ())]
                following = next_query(bundle)
            stayed = [id_ for id_ in found if id_ in kept]
            assert len(stayed) == len(set(stayed)), f"duplicates, sorted by {sort}"
            assert set(stayed) == kept, f"gaps, sorted by {sort}"

    writers = [asyncio.create_task(write(number)) for number in range(10)]
    try:
        await asyncio.gather(*(read(number) for number in range(10)))
    finally:
        stop.set()
        await asyncio.gather(*writers)
    assert writes > 50
    await store._mongo.close()
