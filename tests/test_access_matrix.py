"""Every role at every door, for what is its own, another's, everybody's and nobody's: held against access_table.py.

A cell is one client, one door and one record. What is hidden must be answered, to the letter, as an id that nobody ever
used. Cells that fail are reported by name, all of a test together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import httpx
import pytest

from app.definitions import SUPPORTED_TYPES
from tests.access_records import PRINCIPAL, SYSTEM, bundle, entry, planned, plant, resource_of
from tests.access_table import (
    ABOUT,
    CLIENTS,
    DOORS,
    MANY,
    ORGANIZATIONS,
    ROLES,
    WHOSE,
    Outcome,
    Record,
    expected,
    is_closed,
    may_change,
    may_create,
)
from tests.access_world import World, references, world as a_world
from tests.subscription_builders import classic
from tests.subscription_receiver import receiving

pytestmark = pytest.mark.mongo

RECORDS = planned()
TAG = f"_tag={SYSTEM}|x"
EVERY = [pytest.param(who, id=who) for who in CLIENTS]
OTHERS = [pytest.param(who, id=who) for who in ORGANIZATIONS]
JSON_PATCH = {"Content-Type": "application/json-patch+json"}
STATUS = {Outcome.SEEN: 200, Outcome.HIDDEN: 404, Outcome.CLOSED: 403}
# What tells one answer from the next, whatever it is about.
_OF_THE_MOMENT = ("date", "x-request-id", "content-length")


@dataclass
class Cells:
    """Counts what was asked and keeps what went wrong."""

    asked: int = 0
    failed: list[str] = field(default_factory=list)

    def check(self, name: str, holds: bool, detail: Any = "") -> None:
        self.asked += 1
        if not holds:
            self.failed.append(f"{name} {detail}")

    def close(self, least: int) -> None:
        assert not self.failed, f"{len(self.failed)} of {self.asked}:\n" + "\n".join(self.failed)
        assert self.asked >= least


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod, rate_limit=0, audit="off") as found:
        await plant(found, RECORDS)
        yield found


# An id that nothing ever had.
UNUSED = "never-was-one"


def of_type(*types: str) -> list[Record]:
    return [each for each in RECORDS if each.resource_type in types]


def seen(who: str, records: Sequence[Record]) -> list[str]:
    return sorted(each.reference for each in records if expected(who, each) is Outcome.SEEN)


def types_of(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(each.resource_type for each in records))


def anonymous(answer: httpx.Response, id_: str) -> tuple[int, str, Mapping[str, str]]:
    """All there is to an answer, but for the id that was asked for."""
    headers = {k: v.replace(id_, "?") for k, v in answer.headers.items() if k not in _OF_THE_MOMENT}
    return answer.status_code, answer.text.replace(id_, "?"), headers


async def in_batches(world: World, who: str, entries: Sequence[Any]) -> list[Any]:
    """The answers to the entries, by several batches."""
    found: list[Any] = []
    for at in range(0, len(entries), 200):
        answer = await world.ask(who, "POST", "/", bundle("batch", *entries[at : at + 200]))
        assert answer.status_code == 200, answer.text
        found += answer.json()["entry"]
    return found


def test_the_table_has_an_opinion_of_every_type() -> None:
    assert set(ABOUT) | {"Group", "Subscription"} <= set(SUPPORTED_TYPES)
    closed = {each for each in SUPPORTED_TYPES if all(is_closed(w, each) for w in ORGANIZATIONS)}
    assert {"AuditEvent", "Person", "Schedule", "Contract"} <= closed
    assert len(RECORDS) > 200


# Reading single resources

_READS = {"read": "", "vread": "/_history/1", "instance history": "/_history"}


@pytest.mark.parametrize("who", EVERY)
async def test_every_record_by_entries_of_a_batch(world: World, who: str) -> None:
    cells = Cells()
    absent = [f"{type_}/{UNUSED}" for type_ in types_of(RECORDS)]
    asked = [f"{each}{door}" for each in absent for door in _READS.values()]
    asked += [f"{each.reference}{door}" for each in RECORDS for door in _READS.values()]
    answers = await in_batches(world, who, [entry("GET", url) for url in asked])
    by_url = dict(zip(asked, answers, strict=True))
    for record in RECORDS:
        wanted = expected(who, record)
        for door, ending in _READS.items():
            name, answer = f"{who} {door} {record.reference}", by_url[record.reference + ending]
            status = answer["response"]["status"][:3]
            cells.check(f"{name} {wanted}", status == str(STATUS[wanted]), status)
            if wanted is Outcome.SEEN:
                cells.check(f"{name} has it", record.id in str(answer.get("resource")))
            else:
                nothing = str(by_url[f"{record.resource_type}/{UNUSED}{ending}"])
                same = str(answer).replace(record.id, "?") == nothing.replace(UNUSED, "?")
                cells.check(f"{name} as if absent", same, (answer, nothing))
    cells.close(1_500)


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
_OF_A_PATIENT = {
    "$everything": ("GET", "/$everything", {}),
    "$pcp": ("GET", "/$pcp", {}),
    "$everything since": ("GET", "/$everything?_since=2020-01-01T00:00:00Z&_type=Condition", {}),
}
_OF_A_PLAN = {"$summary": ("GET", "/$summary", {}), "$changes": ("GET", "/$changes", {})}
_FURTHER = {"Patient": _OF_A_PATIENT, "CarePlan": _OF_A_PLAN}


def few_hidden(who: str, *types: str, most: int = 4) -> list[Record]:
    """Some of each type that a client may not see, of every kind that there is."""
    found: list[Record] = []
    for type_ in types:
        hidden = [each for each in of_type(type_) if expected(who, each) is not Outcome.SEEN]
        found += hidden[:: max(1, len(hidden) // most)]
    return found


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
    cells.close(200)


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
    cells.close(400)


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


@pytest.mark.parametrize("who", OTHERS)
async def test_an_export_has_ones_own(world: World, who: str) -> None:
    cells = Cells()
    headers = {"Prefer": "respond-async", "Accept": "application/fhir+json"}
    types = ",".join(each for each in PRINCIPAL if each != "Task")
    begun = await world.get(who, f"/Patient/$export?_type={types}", headers=headers)
    assert begun.status_code == 202, begun.text
    status = begun.headers["Content-Location"]
    for other in ORGANIZATIONS:
        if other != who:
            answer = await world.get(other, status)
            cells.check(f"{other} asks for the export of {who}", answer.status_code == 404)
    while (answer := await world.get(who, status)).status_code == 202:
        await asyncio.sleep(0.05)
    assert answer.status_code == 200, answer.text
    text = ""
    for each in answer.json()["output"]:
        text += (await world.get(who, each["url"])).text
        refused = await world.get("south" if who == "north" else "north", each["url"])
        cells.check(f"a file of {who}", refused.status_code == 404, refused.status_code)
    for record in of_type(*(each for each in PRINCIPAL if each != "Task")):
        line = f'"resourceType":"{record.resource_type}","id":"{record.id}"'
        is_there = any(f'"id":"{record.id}"' in each and f'"resourceType":"{record.resource_type}"' in each for each in text.splitlines())  # fmt: skip
        if expected(who, record) is not Outcome.SEEN:
            cells.check(f"$export {who} {record.reference}", not is_there, line)
        elif record.patients:
            cells.check(f"$export {who} {record.reference} is in it", is_there, line)
    cells.close(80)


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
    cells.close(100)


# Writes


async def last_write(world: World) -> Any:
    """The newest version that there is of anything."""
    return (await world.get("admin", "/_history?_count=1")).json()["entry"]


def writes(record: Record, id_: str) -> Iterator[tuple[str, str, str, Any, dict[str, str]]]:
    """Every way to change what has this id: door, verb, URL, body and headers."""
    type_, body = record.resource_type, resource_of(record) | {"id": id_}
    own, where = f"/{type_}/{id_}", f"/{type_}?_id={id_}"
    patch = [{"op": "add", "path": "/language", "value": "de"}]
    yield "update", "PUT", own, body, {}
    yield "update if matching", "PUT", own, body, {"If-Match": 'W/"1"'}
    yield "patch", "PATCH", own, patch, JSON_PATCH
    yield "conditional patch", "PATCH", where, patch, JSON_PATCH
    yield "delete", "DELETE", own, None, {}
    yield "conditional delete", "DELETE", where, None, {}
    entries = [
        entry("PUT", own[1:], body),
        entry("DELETE", own[1:]),
        entry("DELETE", where[1:]),
    ]
    for each in entries:
        door = each["request"]["method"]
        yield f"batch {door}", "POST", "/", bundle("batch", each), {}
        yield f"transaction {door}", "POST", "/", bundle("transaction", each), {}
    tag = {"name": "meta", "valueMeta": {"tag": [{"code": "mine"}]}}
    parameters = {"resourceType": "Parameters", "parameter": [tag]}
    yield "$meta-add", "POST", f"{own}/$meta-add", parameters, {}


@pytest.mark.parametrize("who", OTHERS)
async def test_nobody_changes_what_is_hidden(world: World, who: str) -> None:
    """The answer is that for a free id, whatever it is; and what is there stays as it was."""
    cells = Cells()
    before = await last_write(world)
    for record in few_hidden(who, "Encounter", "Patient", "Coverage", "Group", "Subscription"):
        if expected(who, record) is Outcome.CLOSED:
            continue
        absent = list(writes(record, UNUSED))
        for given, free in zip(writes(record, record.id), absent, strict=True):
            door, method, url, body, headers = given
            if may_create(who, record) and ("PUT" in door or "update" in door):
                continue  # a free id would be taken: see the test of taken ids
            answer = await world.ask(who, method, url, body, headers=headers)
            nothing = await world.ask(who, method, free[2], free[3], headers=headers)
            name = f"{who} {door} {record.reference}"
            same = anonymous(answer, record.id) == anonymous(nothing, UNUSED)
            cells.check(f"{name} as if absent", same, (answer.text, nothing.text))
            if method != "POST" and "update" in door:
                cells.check(f"{name} refused", answer.status_code in (403, 412), answer.text)
    assert await last_write(world) == before
    cells.close(50)


@pytest.mark.parametrize("who", OTHERS)
async def test_a_taken_id_is_refused_and_nothing_is_changed(world: World, who: str) -> None:
    """Where a free id would be taken, a taken one is refused; that it is taken is all that is told."""
    cells = Cells()
    hidden = [
        each
        for each in of_type("Patient", "Condition", "Encounter", "Subscription")
        if expected(who, each) is Outcome.HIDDEN
    ]
    before = await last_write(world)
    own = next(each for each, of in WHOSE.items() if who in of)
    for record in hidden:
        mine = Record(record.resource_type, record.id, (own,))
        answer = await world.ask(who, "PUT", f"/{record.reference}", resource_of(mine))
        cells.check(f"{who} takes {record.reference}", answer.status_code == 403, answer.text)
        told = any(each in answer.text for each in record.patients)
        cells.check(f"{who} is told whose {record.reference} is", not told, answer.text)
    assert await last_write(world) == before
    cells.close(10)


@pytest.mark.parametrize("who", EVERY)
async def test_who_may_create_about_whom(world: World, who: str) -> None:
    cells = Cells()
    about = [("pn",), ("ps",), ("pb",), ("px",), ()]
    types = ("Encounter", "Coverage", "CarePlan", "Condition", "Task", "Appointment")
    made: list[tuple[str, Record]] = []
    for type_ in types:
        for names in (*about, ("pn", "ps")) if type_ in MANY else about:
            record = Record(type_, "made", names)
            plain = resource_of(record)
            wanted = may_create(who, record)
            doors: list[tuple[str, str, str, Any]] = [
                ("create", "POST", f"/{type_}", plain),
                ("conditional update", "PUT", f"/{type_}?_tag=urn:none|none", plain),
                ("update", "PUT", f"/{type_}/by-{who}-{'-'.join(names)}", plain),
                ("transaction", "POST", "/", bundle("transaction", entry("POST", type_, plain))),
            ]
            for door, method, url, body in (
                doors if type_ in ("Encounter", "Coverage") else doors[:1]
            ):
                if door == "update":
                    body = plain | {"id": url.rpartition("/")[2]}
                elif door != "transaction":
                    body = {k: v for k, v in plain.items() if k != "id"}
                answer = await world.ask(who, method, url, body)
                got = answer.status_code in (200, 201)
                name = f"{who} {door} {type_} about {names}"
                cells.check(name, got == wanted and got == (answer.status_code != 403), answer.text)
                if got and door == "create":
                    made.append((door, Record(type_, answer.json()["id"], names, author=who)))
    for other in ORGANIZATIONS:
        answers = await in_batches(world, other, [entry("GET", r.reference) for _, r in made])
        for (_, record), each in zip(made, answers, strict=True):
            status, wanted = each["response"]["status"][:3], STATUS[expected(other, record)]
            cells.check(f"{other} reads what {who} made {record}", status == str(wanted), status)
    await _tidy(world, [record for _, record in made])
    cells.close(60)


async def _tidy(world: World, records: Sequence[Record]) -> None:
    entries = [entry("DELETE", each.reference) for each in records]
    if entries:
        await in_batches(world, "admin", entries)


@pytest.mark.parametrize("who", EVERY)
async def test_who_may_change_and_delete_what(world: World, who: str) -> None:
    """Fresh copies of the planted records, each changed and deleted by somebody who may, or may not."""
    cells = Cells()
    short = [
        each
        for each in of_type("Encounter", "Coverage", "Group")
        if each.form == "relative" and not each.label and each.about != ("px",)
    ]
    copies = [(each, _renamed(each, f"{who}-{each.id}")) for each in short]
    for author in dict.fromkeys(each.author for each in short):
        own = [copy for each, copy in copies if each.author == author]
        entries = [entry("PUT", each.reference, resource_of(each)) for each in own]
        answers = await in_batches(world, author, entries)
        assert {each["response"]["status"][:3] for each in answers} == {"201"}
    for _, copy in copies:
        wanted = may_change(who, copy)
        changed = resource_of(copy) | {"language": "de"}
        answer = await world.ask(who, "PUT", f"/{copy.reference}", changed)
        status = answer.status_code
        cells.check(f"{who} update {copy}", status == (200 if wanted else 403), answer.text)
        patch = [{"op": "add", "path": "/language", "value": "fr"}]
        answer = await world.ask(who, "PATCH", f"/{copy.reference}", patch, headers=JSON_PATCH)
        is_done = answer.status_code == 200
        cells.check(f"{who} patch {copy}", is_done == wanted, answer.text)
        await world.ask(who, "DELETE", f"/{copy.reference}")
        gone = (await world.get("admin", f"/{copy.reference}")).status_code == 410
        cells.check(f"{who} delete {copy}", gone == wanted)
    await _tidy(world, [copy for _, copy in copies])
    cells.close(60)


def _renamed(record: Record, id_: str) -> Record:
    return Record(
        record.resource_type,
        id_,
        record.about,
        record.author,
        record.owner,
    )


@pytest.mark.parametrize("who", EVERY)
async def test_who_may_change_the_directory(world: World, who: str) -> None:
    cells = Cells()
    kinds = ("Endpoint", "HealthcareService", "Location", "Organization")
    for type_ in kinds:
        for owner in ORGANIZATIONS:
            id_ = owner if type_ == "Organization" else f"{type_}-{owner}"
            record = Record(type_, id_, owner=owner)
            wanted = may_change(who, record)
            answer = await world.ask(who, "PUT", f"/{record.reference}", resource_of(record))
            got = answer.status_code in (200, 201)
            cells.check(f"{who} writes {record.reference}", got == wanted, answer.text)
            cells.check(f"{who} {record.reference} 403", got or answer.status_code == 403)
    cells.close(60)


# Scopes

_LETTERS = ["".join(each) for n in range(6) for each in combinations("cruds", n)]


def _scoped(type_: str, id_: str, patient: str) -> dict[str, tuple[str, str, Any, dict[str, str]]]:
    body = {"resourceType": type_, "subject": {"reference": f"Patient/{patient}"}}
    patch = [{"op": "add", "path": "/language", "value": "de"}]
    own = f"/{type_}/{id_}"
    return {
        "read": ("GET", own, None, {}),
        "vread": ("GET", f"{own}/_history/1", None, {}),
        "instance history": ("GET", f"{own}/_history", None, {}),
        "type history": ("GET", f"/{type_}/_history", None, {}),
        "search": ("GET", f"/{type_}?_id={id_}", None, {}),
        "search by POST": ("POST", f"/{type_}/_search", None, {}),
        "compartment search": ("GET", f"/Patient/{patient}/{type_}", None, {}),
        "create": ("POST", f"/{type_}", body, {}),
        "conditional create": ("POST", f"/{type_}", body, {"If-None-Exist": f"_id={id_}"}),
        "update": ("PUT", own, body | {"id": id_}, {}),
        "conditional update": ("PUT", f"/{type_}?_id={id_}", body, {}),
        "patch": ("PATCH", own, patch, JSON_PATCH),
        "conditional patch": ("PATCH", f"/{type_}?_id={id_}", patch, JSON_PATCH),
        "delete": ("DELETE", f"/{type_}/{UNUSED}", None, {}),
        "conditional delete": ("DELETE", f"/{type_}?_id={UNUSED}", None, {}),
        "$meta of an instance": ("GET", f"{own}/$meta", None, {}),
    }


@pytest.mark.parametrize("of", ["Condition", "*"])
async def test_every_set_of_rights_at_every_door(world: World, of: str) -> None:
    cells = Cells()
    for letters in _LETTERS:
        scopes = f"system/{of}.{letters} system/Flag.cruds"
        for door, (method, url, body, headers) in _scoped("Condition", "of-pn", "pn").items():
            answer = await world.ask("north", method, url, body, scopes=scopes, headers=headers)
            needed = set(DOORS[door]) <= set(letters)
            name = f"{scopes} {door}"
            status = answer.status_code
            holds = status in (200, 201, 204) if needed else status == 403
            cells.check(name, holds, (status, needed, answer.text[:300]))
    cells.close(32 * len(DOORS))


@pytest.mark.parametrize(
    ("word", "letters"), [("read", "rs"), ("write", "cud"), ("*", "cruds")], ids=["r", "w", "all"]
)
async def test_words_of_the_first_version_mean_letters(
    world: World, word: str, letters: str
) -> None:
    cells = Cells()
    for door, (method, url, body, headers) in _scoped("Condition", "of-pn", "pn").items():
        scopes = f"system/Condition.{word}"
        answer = await world.ask("north", method, url, body, scopes=scopes, headers=headers)
        needed = set(DOORS[door]) <= set(letters)
        status = answer.status_code
        holds = status in (200, 201, 204) if needed else status == 403
        cells.check(f"{scopes} {door}", holds, (status, needed, answer.text[:300]))
    cells.close(len(DOORS))


@pytest.mark.parametrize("who", ["north", "plan-a", "agency", "admin"])
async def test_a_restricted_scope_is_a_wall_of_its_own(world: World, who: str) -> None:
    """Of one's own patients only one: what is outside is as if it were not there."""
    cells = Cells()
    for type_ in ("Encounter", "CarePlan"):
        scopes = f"system/{type_}.cruds?patient=Patient/pb system/Patient.rs"
        found = await world.found(who, f"/{type_}?{TAG}&_count=1000", scopes=scopes)
        for record in of_type(type_):
            is_in = "pb" in record.patients
            wanted = expected(who, record) is Outcome.SEEN and is_in
            name = f"{who} restricted {record.reference}"
            cells.check(f"{name} search", (record.reference in found) == wanted, wanted)
            for door, ending in _READS.items():
                answer = await world.get(who, f"/{record.reference}{ending}", scopes=scopes)
                cells.check(f"{name} {door}", (answer.status_code == 200) == wanted, answer.text)
                if not wanted:
                    free = await world.get(who, f"/{type_}/{UNUSED}{ending}", scopes=scopes)
                    same = anonymous(answer, record.id) == anonymous(free, UNUSED)
                    cells.check(f"{name} {door} as if absent", same, answer.text)
            if not wanted:
                answer = await world.ask(
                    who, "PUT", f"/{record.reference}", resource_of(record), scopes=scopes
                )
                cells.check(f"{name} update", answer.status_code == 403, answer.text)
    cells.close(100)


# Subscriptions and notices


@pytest.mark.parametrize("who", EVERY)
async def test_what_may_be_subscribed_to(world: World, who: str) -> None:
    cells = Cells()
    made = []
    for type_ in (*PRINCIPAL, "Practitioner", "Group", "AuditEvent", "Person", "Contract"):
        for scopes in (
            "system/*.cruds",
            f"system/Subscription.c system/{type_}.r",
            f"system/{type_}.rs",
            "system/Subscription.cruds",
        ):
            body = classic(f"{type_}?_tag={SYSTEM}|none")
            answer = await world.ask(who, "POST", "/Subscription", body, scopes=scopes)
            granted = scopes in ("system/*.cruds", f"system/Subscription.c system/{type_}.r")
            wanted = granted and not is_closed(who, type_)
            got = answer.status_code == 201
            holds = got == wanted or (got, type_) == (False, "AuditEvent")
            cells.check(f"{who} subscribes to {type_} by {scopes}", holds, answer.text)
            if got:
                made.append(Record("Subscription", answer.json()["id"]))
    await _tidy(world, made)
    cells.close(50)


async def test_a_notice_reaches_those_who_may_read_what_it_is_of(world: World) -> None:
    cells = Cells()
    types = ("Encounter", "Condition", "CarePlan", "Communication", "Task")
    async with receiving() as receiver:
        made = []
        for who in ORGANIZATIONS:
            for type_ in types:
                body = classic(
                    f"{type_}?_tag=urn:told|x",
                    f"{receiver.url}/{who}",
                    payload="application/fhir+json",
                )
                answer = await world.ask(who, "POST", "/Subscription", body)
                assert answer.status_code == 201, answer.text
                made.append(Record("Subscription", answer.json()["id"]))
        await world.server.worker.drain()
        receiver.requests.clear()
        records = [
            _renamed(each, f"told-{each.id}")
            for each in of_type(*types)
            if each.form == "relative" and not each.label
        ]
        for author in dict.fromkeys(each.author for each in records):
            entries = [
                entry("PUT", each.reference, _told(each))
                for each in records
                if each.author == author
            ]
            await in_batches(world, author, entries)
            await world.server.worker.drain()
        told = {request.path for request in receiver.requests}
        for who in ORGANIZATIONS:
            for record in records:
                wanted = expected(who, record) is Outcome.SEEN
                path = f"/{who}/{record.reference}"
                cells.check(f"notice {path}", (path in told) == wanted, wanted)
    await _tidy(world, [*made, *records])
    await world.server.worker.drain()
    cells.close(200)


def _told(record: Record) -> dict[str, Any]:
    return resource_of(record) | {"meta": {"tag": [{"system": "urn:told", "code": "x"}]}}


def test_two_of_each_role_take_part() -> None:
    roles = [ROLES[each] for each in ORGANIZATIONS]
    assert all(roles.count(each) == 2 for each in set(roles))
