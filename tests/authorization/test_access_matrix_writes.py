"""Who may write what, and that nobody changes, or learns of, what is hidden: by access_table.py.

A write under a hidden id must be answered as one under an id that nobody ever used, and leave no version behind.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.authorization.access_cells import (
    EVERY,
    JSON_PATCH,
    OTHERS,
    STATUS,
    UNUSED,
    Cells,
    anonymous,
    few_hidden,
    in_batches,
    of_type,
    renamed,
    tidy,
    versions_of,
)
from tests.authorization.access_records import PRINCIPAL, bundle, entry, plant, resource_of
from tests.authorization.access_table import (
    MANY,
    ORGANIZATIONS,
    WHOSE,
    Outcome,
    Record,
    expected,
    may_change,
    may_create,
)
from tests.builders.access_world import World, world as a_world

pytestmark = [pytest.mark.mongo, pytest.mark.slow]

# Types whose records somebody tries to change.
WRITTEN = ("Encounter", "Patient", "Coverage", "Group", "Subscription", "Condition")


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod, rate_limit=0, audit="off", max_exports=20) as found:
        await plant(found, of_type(*PRINCIPAL, "Group", "Subscription", "Appointment"))
        yield found


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
    before = await versions_of(world, *WRITTEN)
    for record in few_hidden(who, *WRITTEN[:-1]):
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
    assert await versions_of(world, *WRITTEN) == before
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
    before = await versions_of(world, *WRITTEN)
    own = next(each for each, of in WHOSE.items() if who in of)
    for record in hidden:
        mine = Record(record.resource_type, record.id, (own,))
        answer = await world.ask(who, "PUT", f"/{record.reference}", resource_of(mine))
        cells.check(f"{who} takes {record.reference}", answer.status_code == 403, answer.text)
        told = any(each in answer.text for each in record.patients)
        cells.check(f"{who} is told whose {record.reference} is", not told, answer.text)
    assert await versions_of(world, *WRITTEN) == before
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
            status = each["response"]["status"][:3]
            due = STATUS[expected(other, record)]
            cells.check(f"{other} reads what {who} made {record}", status == str(due), status)
    await tidy(world, [record for _, record in made])
    cells.close(60)


@pytest.mark.parametrize("who", EVERY)
async def test_who_may_change_and_delete_what(world: World, who: str) -> None:
    """Fresh copies of the planted records, each changed and deleted by somebody who may, or may not."""
    cells = Cells()
    short = [
        each
        for each in of_type("Encounter", "Coverage", "Group", "Consent")
        if each.form == "relative" and not each.label and each.about != ("px",)
    ]
    copies = [(each, renamed(each, f"{who}-{each.id}")) for each in short]
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
    await tidy(world, [copy for _, copy in copies])
    cells.close(60)


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
