"""What the store reads in one round is what it reads one by one."""

from __future__ import annotations

from typing import Any

import pytest

from app.fhir.ids import new_id
from app.records.versions import Change
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
