"""What the store reads in one round is what it reads one by one."""

from __future__ import annotations

from typing import Any

import pytest

from app.fhir.ids import new_id
from app.records.versions import Change
from app.store.lost_races import lost_keys
from tests.conftest import Server

pytestmark = pytest.mark.mongo


async def test_several_finds_in_one_round_find_what_each_finds(server: Server) -> None:
    ids = [new_id(), new_id()]
    made: list[dict[str, Any]] = [
        {"resourceType": type_, "id": id_} for type_ in ("Patient", "Group") for id_ in ids
    ]
    await server.store.commit(
        [Change("create", each["resourceType"], each["id"], each) for each in made]
    )
    one, other = ids
    parts: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("Patient", {"_id": one}, {"_id": 1}),
        ("Group", {"_id": {"$in": ids}}, {"_id": 1, "version": 1}),
        ("Patient", {"_id": other}, {"terms": 1}),
        ("Group", {"_id": "nobody"}, {"_id": 1}),
    ]
    together = await server.store.find_together(parts)
    one_by_one = [
        await server.store.find(collection, filter_, projection=projection)
        for collection, filter_, projection in parts
    ]
    assert [sorted(each, key=str) for each in together] == [
        sorted(each, key=str) for each in one_by_one
    ]
    assert [len(each) for each in together] == [1, 2, 1, 0]


async def test_what_mongodb_says_of_a_find_is_of_its_order_too(server: Server) -> None:
    plan = await server.store.explain("Patient", {}, sort=[("at", -1), ("_id", -1)], limit=1)
    assert plan["command"]["sort"] == {"at": -1, "_id": -1}
    plan = await server.store.explain("Patient", {}, limit=1)
    assert "sort" not in plan["command"]


async def test_of_several_that_were_judged_those_have_lost_that_others_have_written_since(
    server: Server,
) -> None:
    store = server.store
    kept, passed, made, unmade = (new_id() for _ in range(4))
    patients = {id_: {"resourceType": "Patient", "id": id_} for id_ in (kept, passed, made, unmade)}
    for id_ in (kept, passed):
        await store.commit([Change("create", "Patient", id_, patients[id_])])
    judged = [
        Change("update", "Patient", id_, patients[id_], previous=await store.read("Patient", id_))
        for id_ in (kept, passed)
    ]
    judged += [Change("create", "Patient", id_, patients[id_]) for id_ in (made, unmade)]
    await store.commit([judged[1]])
    await store.commit([judged[2]])
    assert await lost_keys(server.mongo, judged) == {f"Patient/{passed}", f"Patient/{made}"}
