"""Rights by the letters of scopes at every door, and the doors that open later: notices and exports."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from itertools import combinations
from typing import Any

import pytest

from tests.authorization.access_cells import (
    EVERY,
    JSON_PATCH,
    READS,
    UNUSED,
    Cells,
    anonymous,
    in_batches,
    of_type,
    renamed,
    tidy,
)
from tests.authorization.access_records import PRINCIPAL, SYSTEM, entry, plant, resource_of
from tests.authorization.access_table import (
    DOORS,
    ORGANIZATIONS,
    Outcome,
    Record,
    expected,
    is_closed,
)
from tests.builders.access_world import World, world as a_world
from tests.builders.receiver import receiving
from tests.builders.subscriptions import classic

pytestmark = [pytest.mark.mongo, pytest.mark.slow]

TAG = f"_tag={SYSTEM}|x"


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod, rate_limit=0, audit="off", max_exports=20) as found:
        await plant(found, of_type(*PRINCIPAL, "Group", "Subscription", "Appointment"))
        yield found


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
            for door, ending in READS.items():
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
    await tidy(world, made)
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
            renamed(each, f"told-{each.id}")
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
    await tidy(world, [*made, *records])
    await world.server.worker.drain()
    cells.close(200)


def _told(record: Record) -> dict[str, Any]:
    return resource_of(record) | {"meta": {"tag": [{"system": "urn:told", "code": "x"}]}}


# Exports


async def test_an_export_has_ones_own(world: World) -> None:
    cells = Cells()
    exported = [each for each in PRINCIPAL if each != "Task"]
    for who in ORGANIZATIONS:
        headers = {"Prefer": "respond-async", "Accept": "application/fhir+json"}
        url = f"/Patient/$export?_type={','.join(exported)}"
        begun = await world.get(who, url, headers=headers)
        assert begun.status_code == 202, begun.text
        await world.server.exports.drain()
        status = begun.headers["Content-Location"]
        output = (await world.get(who, status)).json()["output"]
        files = [(await world.get(who, each["url"])).text for each in output]
        found = {(line["resourceType"], line["id"]) for line in _lines(files)}
        for record in of_type(*exported):
            is_seen = expected(who, record) is Outcome.SEEN
            is_there = (record.resource_type, record.id) in found
            wanted = is_seen and (bool(record.patients) or is_there)
            cells.check(f"$export {who} {record.reference}", is_there == wanted, is_seen)
        for other in ORGANIZATIONS:
            for each in (status, output[0]["url"]) if other != who else ():
                answer = await world.get(other, each)
                name = f"{other} asks for the export of {who}"
                cells.check(name, answer.status_code == 404, answer.status_code)
    cells.close(700)


def _lines(files: Sequence[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for each in files for line in each.splitlines()]
