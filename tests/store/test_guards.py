"""Guards of conditional writes: two at once make one resource, and no row says whose.

docs/decisions/0002-one-write-path.md
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet

from app.runtime.mongo import Mongo
from app.store import guards
from app.store.format import FORMAT
from tests.conftest import Server, make_settings, running

pytestmark = pytest.mark.mongo

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()
NUMBER = "MRN-8472910"
CRITERIA = f"identifier=urn:mrn|{NUMBER}"
IN_THE_CLEAR = f"Patient?{CRITERIA}"
PATIENT = {"resourceType": "Patient", "identifier": [{"system": "urn:mrn", "value": NUMBER}]}


@asynccontextmanager
async def serving(
    mongod: str, database: str, *keys: str
) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    settings = make_settings(mongod, mongodb_database=database, secret_key=",".join(keys or (OLD,)))
    async with running(settings) as pair:
        yield pair


@pytest.fixture
async def mongo(mongod: str) -> AsyncIterator[Mongo]:
    """A database of its own; the driver makes no difference here."""
    mongo = await Mongo.open(make_settings(mongod))
    yield mongo
    await mongo.close()


async def create(client: httpx.AsyncClient) -> int:
    answer = await client.post("/Patient", json=PATIENT, headers={"If-None-Exist": CRITERIA})
    return answer.status_code


async def rows(mongo: Mongo) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await mongo.collection("guards").find({}).to_list(None)
    return found


@pytest.mark.slow
async def test_no_row_tells_whose_record_was_asked_for(mongod: str, mongo: Mongo) -> None:
    async with serving(mongod, mongo.db.name) as (server, client):
        assert await create(client) == 201
        assert await create(client) == 200
        (row,) = await rows(mongo)
        assert NUMBER not in str(row)
        indexes = await mongo.collection("guards").index_information()
        assert indexes["at"]["expireAfterSeconds"] == guards.KEPT.total_seconds()
        assert abs(row["at"] - server.mongo.now()) < guards.KEPT / 60


@pytest.mark.slow
async def test_another_key_makes_another_digest(mongod: str, mongo: Mongo) -> None:
    """So nobody can find out by trying, who has the database and not the key."""
    seen = set()
    for key in (OLD, NEW):
        async with serving(mongod, mongo.db.name, key) as (_, client):
            await client.put(f"/Patient?{CRITERIA}", json={**PATIENT, "active": key == OLD})
        seen |= {row["_id"] for row in await rows(mongo)}
    assert len(seen) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param((OLD,), (OLD,), id="same-key"),
        pytest.param((OLD,), (NEW, OLD), id="while-keys-change"),
        pytest.param((NEW, OLD), (NEW,), id="once-the-old-one-goes"),
    ],
)
async def test_of_conditional_creates_at_once_in_two_processes_one_creates(
    mongod: str, mongo: Mongo, first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    async with (
        serving(mongod, mongo.db.name, *first) as (_, here),
        serving(mongod, mongo.db.name, *second) as (_, there),
    ):
        statuses = await asyncio.gather(*(create(each) for each in (here, there) * 8))
        assert sorted(statuses) == [200] * 15 + [201]


@pytest.mark.slow
async def test_a_guard_that_has_gone_is_not_met_again(mongod: str, mongo: Mongo) -> None:
    """A write that has seen it loses, whatever was counted anew since."""
    async with serving(mongod, mongo.db.name) as (server, client):
        assert await create(client) == 201
        seen = await server.store.guards(IN_THE_CLEAR)
        await mongo.collection("guards").delete_many({})
        assert (
            await client.put(f"/Patient?{CRITERIA}", json={**PATIENT, "active": True})
        ).is_success
        assert await server.store.guards(IN_THE_CLEAR) != seen


# Beside servers of format 1, which compare rows that name the criteria


async def old_server(mongo: Mongo) -> None:
    """Its row, as it keeps it by its heartbeats."""
    now = {"$currentDate": {"seen": True}, "$set": {"format": 1, "parameters": ""}}
    await mongo.collection("processes").update_one({"_id": "old"}, now, upsert=True)
    row = await mongo.collection("processes").find_one({"_id": "old"})
    await mongo.collection("processes").update_one(
        {"_id": "old"}, {"$set": {"horizon": row["seen"]}}
    )


@pytest.mark.slow
async def test_beside_an_older_server_its_guards_hold_too(mongod: str, mongo: Mongo) -> None:
    clear = mongo.collection("guards")
    async with serving(mongod, mongo.db.name) as (server, client):
        await old_server(mongo)
        await server.store.cluster.beat()
        assert server.store.cluster.oldest_format == 1
        guarded = await server.store.guards(IN_THE_CLEAR)
        assert await create(client) == 201
        assert (await clear.find_one({"_id": IN_THE_CLEAR}))["n"] > 0
        assert await server.store.guards(IN_THE_CLEAR) != guarded

        await clear.update_one({"_id": IN_THE_CLEAR}, {"$inc": {"n": 1}})  # the old one wrote
        before = await server.store.guards(IN_THE_CLEAR)
        assert (
            await client.put(f"/Patient?{CRITERIA}", json={**PATIENT, "active": True})
        ).is_success
        after = await server.store.guards(IN_THE_CLEAR)
        assert all(new.seen == old.seen + 1 for new, old in zip(after, before, strict=True))

        await mongo.collection("processes").delete_one({"_id": "old"})
        await server.store.cluster.beat()
        assert await create(client) == 200
        assert all(NUMBER not in str(row) for row in await rows(mongo))


@pytest.mark.slow
async def test_what_an_older_version_left_is_taken_away_at_the_first_start(
    mongod: str, mongo: Mongo
) -> None:
    async with serving(mongod, mongo.db.name) as (_, client):
        assert (await client.post("/Patient", json=PATIENT)).status_code == 201
    await mongo.collection("guards").insert_many(
        [{"_id": f"{IN_THE_CLEAR}{number}", "n": 1} for number in range(1000)]
    )
    then = {"format": 1, "oldest": 1, "steps": ["1: processes without a heartbeat"]}
    await mongo.collection("settings").update_one({"_id": "format"}, {"$set": then})
    async with serving(mongod, mongo.db.name) as (_, client):
        assert await rows(mongo) == []
        marker = await mongo.collection("settings").find_one({"_id": "format"})
        assert (marker["format"], marker["oldest"]) == (FORMAT, 1)
        assert "2: guards without identifiers" in marker["steps"]
        assert await create(client) == 200
