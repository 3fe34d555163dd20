"""Every role at every reading door, for what is its own, another's, everybody's and nobody's: by access_table.py.

What is hidden must be answered, to the letter, as an id that nobody ever used.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.authentication.scopes import CONSENT_AUTHORITY
from app.fhir.definitions import SUPPORTED_TYPES
from tests.authorization.access_cells import (
    EVERY,
    OTHERS,
    READS,
    RECORDS,
    STATUS,
    UNUSED,
    Cells,
    anonymous,
    few_hidden,
    in_batches,
    of_type,
    seen,
    types_of,
)
from tests.authorization.access_records import PRINCIPAL, SYSTEM, entry, plant
from tests.authorization.access_table import (
    ABOUT,
    CLIENTS,
    KEEPERS,
    ORGANIZATIONS,
    ROLES,
    WHOSE,
    Outcome,
    Record,
    expected,
    is_closed,
)
from tests.builders.access_world import (
    EVERYTHING,
    Registered,
    World,
    references,
    world as a_world,
)

pytestmark = [pytest.mark.mongo, pytest.mark.slow]

TAG = f"_tag={SYSTEM}|x"


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod, rate_limit=0, audit="off", max_exports=20) as found:
        await plant(found, RECORDS)
        yield found


def test_the_table_has_an_opinion_of_every_type() -> None:
    assert set(ABOUT) | {"Group", "Subscription"} <= set(SUPPORTED_TYPES)
    closed = {each for each in SUPPORTED_TYPES if all(is_closed(w, each) for w in ORGANIZATIONS)}
    assert {"AuditEvent", "Person", "Schedule"} <= closed
    assert len(RECORDS) > 200


def test_two_of_each_role_take_part() -> None:
    roles = [ROLES[each] for each in ORGANIZATIONS]
    assert all(roles.count(each) == 2 for each in set(roles))


# Reading single resources


def doors_of(record: Record) -> dict[str, str]:
    """All of them for the principal types; the others are read."""
    return READS if record.resource_type in PRINCIPAL else {"read": ""}


@pytest.mark.parametrize("who", EVERY)
async def test_every_record_by_entries_of_a_batch(world: World, who: str) -> None:
    cells = Cells()
    absent = [f"{type_}/{UNUSED}" for type_ in types_of(RECORDS)]
    asked = [f"{each}{door}" for each in absent for door in READS.values()]
    asked += [f"{each.reference}{door}" for each in RECORDS for door in doors_of(each).values()]
    answers = await in_batches(world, who, [entry("GET", url) for url in asked])
    by_url = dict(zip(asked, answers, strict=True))
    for record in RECORDS:
        wanted = expected(who, record)
        for door, ending in doors_of(record).items():
            name, answer = f"{who} {door} {record.reference}", by_url[record.reference + ending]
            status = answer["response"]["status"][:3]
            cells.check(f"{name} {wanted}", status == str(STATUS[wanted]), status)
            if wanted is Outcome.SEEN:
                cells.check(f"{name} has it", record.id in str(answer.get("resource")))
            else:
                nothing = str(by_url[f"{record.resource_type}/{UNUSED}{ending}"])
                same = str(answer).replace(record.id, "?") == nothing.replace(UNUSED, "?")
                cells.check(f"{name} as if absent", same, (answer, nothing))
    cells.close(900)


@pytest.mark.parametrize("who", KEEPERS)
async def test_who_keeps_something_for_all_reads_what_that_takes_and_no_more(
    world: World, who: str
) -> None:
    """The directory's client, and a consent authority: of each type all that is stored, or nothing."""
    scopes = (*EVERYTHING, CONSENT_AUTHORITY)
    registry = Registered("Organization/registry", "consent-authority", scopes)
    world.authority.known["registry"] = registry
    cells = Cells()
    by_type: dict[str, str] = {}
    for record in RECORDS:
        by_type.setdefault(record.resource_type, record.reference)
    asked = [
        place
        for type_, first in by_type.items()
        for place in (first, f"{type_}?{TAG}&_summary=count")
    ]
    gets = [entry("GET", url) for url in asked]
    answers, of_all = await in_batches(world, who, gets), await in_batches(world, "admin", gets)
    for url, answer, whole in zip(asked, answers, of_all, strict=True):
        type_, status = url.partition("/")[0].partition("?")[0], answer["response"]["status"][:3]
        if type_ == "Subscription":
            continue  # its own alone
        is_seen = type_ in KEEPERS[who]
        cells.check(f"{who} {url}", status == ("200" if is_seen else "403"), status)
        if is_seen and "?" in url:
            counts = [each["resource"]["total"] for each in (answer, whole)]
            if who == "registrar":  # the most confidential is an administrator's and an authority's
                counts[0] += sum(each.label == "V" for each in of_type(type_))
            cells.check(f"{who} {url} finds all", counts[0] == counts[1], counts)
    cells.close(150)


_SINGLE = {
    "read": ("GET", "", {}),
    "head": ("HEAD", "", {}),
    "read if changed": ("GET", "", {"If-None-Match": 'W/"1"'}),
    "read if modified": ("GET", "", {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"}),
    "read as XML": ("GET", "?_format=xml", {}),
    "vread": ("GET", "/_history/1", {}),
    "vread of no version": ("GET", "/_history/9", {}),
    "instance history": ("GET", "/_history", {}),
    "history since": ("GET", "/_history?_since=2020-01-01T00:00:00Z&_count=1", {}),
    "$meta": ("GET", "/$meta", {}),
}
_OF_A_PATIENT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "$everything": ("GET", "/$everything", {}),
    "$pcp": ("GET", "/$pcp", {}),
    "$everything since": ("GET", "/$everything?_since=2020-01-01T00:00:00Z&_type=Condition", {}),
}
_OF_A_PLAN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "$summary": ("GET", "/$summary", {}),
    "$changes": ("GET", "/$changes", {}),
}
_FURTHER = {"Patient": _OF_A_PATIENT, "CarePlan": _OF_A_PLAN}


@pytest.mark.parametrize("who", OTHERS)
async def test_hidden_records_by_every_door(world: World, who: str) -> None:
    cells = Cells()
    absent: dict[tuple[str, str], Any] = {}
    types = ("Patient", "Encounter", "CarePlan", "Group", "Subscription", "Binary", "Person")
    for record in few_hidden(who, *types):
        place, wanted = f"/{record.resource_type}", expected(who, record)
        for door, (method, ending, headers) in (
            _SINGLE | _FURTHER.get(record.resource_type, {})
        ).items():
            key = (place, door)
            if key not in absent:
                url = f"{place}/{UNUSED}{ending}"
                nothing = await world.ask(who, method, url, headers=headers)
                absent[key] = anonymous(nothing, UNUSED)
            answer = await world.ask(who, method, f"{place}/{record.id}{ending}", headers=headers)
            name = f"{who} {door} {record.reference}"
            cells.check(f"{name} {wanted}", answer.status_code == STATUS[wanted], answer.text)
            same = anonymous(answer, record.id) == absent[key]
            cells.check(f"{name} as if absent", same, (answer.text, absent[key]))
    cells.close(150)


# Searches


@pytest.mark.parametrize("who", EVERY)
async def test_every_type_by_searches_and_counts(world: World, who: str) -> None:
    cells, doors = Cells(), (f"?{TAG}&_count=1000&_total=accurate", f"?{TAG}&_summary=count")
    types = types_of(RECORDS)
    urls = [type_ + door for type_ in types for door in doors]
    answers = await in_batches(world, who, [entry("GET", url) for url in urls])
    for index, type_ in enumerate(types):
        records, (found, counted) = of_type(type_), answers[2 * index : 2 * index + 2]
        status = found["response"]["status"][:3]
        if is_closed(who, type_):
            cells.check(f"{who} search {type_} closed", status == "403", status)
            continue
        wanted = seen(who, records)
        got = references(found["resource"]) if "resource" in found else []
        for record in records:
            holds = (record.reference in got) == (record.reference in wanted)
            cells.check(f"{who} search {record.reference}", holds, expected(who, record))
        for each, name in ((found, "total"), (counted, "count")):
            total = each.get("resource", {}).get("total")
            cells.check(f"{who} {name} {type_}", total == len(wanted), (total, len(wanted)))
    cells.close(250)


@pytest.mark.parametrize("who", EVERY)
async def test_histories_of_types_and_of_all(world: World, who: str) -> None:
    cells = Cells()
    types = types_of(RECORDS)
    urls = [f"{type_}/_history?_count=1000" for type_ in types]
    answers = await in_batches(world, who, [entry("GET", url) for url in urls])
    everything = (await world.get(who, "/_history?_count=1000")).json()
    told = {each["fullUrl"].partition("/fhir/")[2] for each in everything["entry"]}
    for type_, answer in zip(types, answers, strict=True):
        if is_closed(who, type_):
            cells.check(f"{who} type history {type_}", answer["response"]["status"][:3] == "403")
        shown = {
            each["fullUrl"].partition("/fhir/")[2]
            for each in answer.get("resource", {}).get("entry", ())
        }
        for record in of_type(type_):
            is_seen = expected(who, record) is Outcome.SEEN
            name = f"history {record.reference}"
            cells.check(f"{who} type {name}", (record.reference in shown) == is_seen, is_seen)
            if not is_seen:
                cells.check(f"{who} system {name}", record.reference not in told)
    cells.close(300)


def _named_by(type_: str) -> str:
    """The parameter that names the patient."""
    return "subject" if type_ == "SupplyRequest" else "subject" if type_ in _SUBJECT else "patient"


_SUBJECT = ("AdverseEvent", "GuidanceResponse")
_CHAINED = [each for each in ABOUT if each not in ("Patient", "Basic")]


@pytest.mark.parametrize("who", OTHERS)
async def test_chains_has_and_includes_of_every_type(world: World, who: str) -> None:
    """What a chain leads to, what _has leads from and what an include brings are records, too."""
    cells, urls = Cells(), []
    for type_ in _CHAINED:
        by = _named_by(type_)
        urls += [
            f"{type_}?{by}:Patient.family=Fps&_count=1000",
            f"{type_}?{by}:Patient.family=Fpn,Fpb&_count=1000",
            f"Patient?_has:{type_}:{by}:_tag={SYSTEM}|x&_total=accurate&{TAG}",
            f"Patient?_id=pn,ps,pb,px&_revinclude={type_}:{by}&_count=100",
            f"{type_}?{TAG}&_include={type_}:{by}&_count=1000",
        ]
    answers = await in_batches(world, who, [entry("GET", url) for url in urls])
    for index, type_ in enumerate(_CHAINED):
        records = of_type(type_)
        mine = set(seen(who, records))
        patients = set(seen(who, of_type("Patient")))
        got = [
            set(references(each.get("resource", {}))) for each in answers[5 * index : 5 * index + 5]
        ]
        for at, names in ((0, {"ps"}), (1, {"pn", "pb"})):
            reached = {p for p in names if f"Patient/{p}" in patients}
            planted = {each.reference for each in records}
            for record in records:
                wanted = record.reference in mine and bool(reached & set(record.patients))
                holds = (record.reference in got[at] & planted) == wanted
                cells.check(f"{who} chain {record.reference} {sorted(names)}", holds, wanted)
        led = {f"Patient/{p}" for each in records if each.reference in mine for p in each.patients}
        for patient in (each.reference for each in of_type("Patient")):
            wanted = patient in led & patients
            cells.check(f"{who} _has {type_} {patient}", (patient in got[2]) == wanted, wanted)
        for at, door in ((3, "_revinclude"), (4, "_include")):
            for each in got[at]:
                planted_ones = [r for r in RECORDS if r.reference == each]
                holds = all(expected(who, r) is Outcome.SEEN for r in planted_ones)
                cells.check(f"{who} {door} {type_} {each}", holds)
    cells.close(900)


@pytest.mark.parametrize("who", EVERY)
async def test_compartments_and_everything(world: World, who: str) -> None:
    cells = Cells()
    for patient in WHOSE:
        urls = [f"Patient/{patient}/{type_}?{TAG}&_count=1000" for type_ in PRINCIPAL[:-2]]
        answers = await in_batches(world, who, [entry("GET", url) for url in urls])
        everything = await world.get(who, f"/Patient/{patient}/$everything?_count=1000")
        whole = set(references(everything.json()))
        for type_, answer in zip(PRINCIPAL[:-2], answers, strict=True):
            got = references(answer.get("resource", {}))
            for record in of_type(type_):
                is_seen = expected(who, record) is Outcome.SEEN
                wanted = is_seen and patient in record.patients
                name = f"{who} Patient/{patient} {record.reference}"
                cells.check(f"compartment {name}", (record.reference in got) == wanted, wanted)
                cells.check(f"$everything {name}", is_seen or record.reference not in whole)
    for door in ("/Patient/$everything?_count=1000", f"/?_type={','.join(PRINCIPAL)}&{TAG}"):
        whole = set(references((await world.get(who, door)).json()))
        for record in of_type(*PRINCIPAL):
            is_seen = expected(who, record) is Outcome.SEEN
            cells.check(
                f"{door} {who} {record.reference}", is_seen or record.reference not in whole
            )
    cells.close(600)


async def test_whose_practice_is_told_to_whom(world: World) -> None:
    """`$pcp` is for those whose patient it is, and tells each the same."""
    cells = Cells()
    role = {"pn": "role-n", "pb": "role-n", "ps": "role-s"}
    for who in CLIENTS:
        urls = [f"Patient/{each}/$pcp" for each in WHOSE]
        answers = await in_batches(world, who, [entry("GET", url) for url in urls])
        for (patient, of), answer in zip(WHOSE.items(), answers, strict=True):
            wanted = "200" if who == "admin" or who in of else "404"
            status = answer["response"]["status"][:3]
            cells.check(f"{who} $pcp {patient}", status == wanted, status)
            names = f"PractitionerRole/{role.get(patient)}" in str(answer.get("resource"))
            cells.check(f"{who} {patient}", names == (wanted == "200" and patient in role))
    cells.close(70)


@pytest.mark.parametrize("who", OTHERS)
async def test_types_that_are_closed(world: World, who: str) -> None:
    """Whatever is in no table is asked for in vain; what was planted of it does not matter."""
    cells = Cells()
    closed = [each for each in SUPPORTED_TYPES if is_closed(who, each)]
    urls = [f"{type_}{ending}" for type_ in closed for ending in ("", "/x", "/x/_history/1")]
    answers = await in_batches(world, who, [entry("GET", url) for url in urls])
    for url, answer in zip(urls, answers, strict=True):
        status = answer["response"]["status"][:3]
        cells.check(f"{who} {url}", status == "403", status)
    assert "AuditEvent" in closed
    cells.close(70)
