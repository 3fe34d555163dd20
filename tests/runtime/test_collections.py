"""Collections and indexes by their definition: what is missing is made, what is another is replaced, the rest stays."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import OperationFailure

from app.runtime import collections, transactions
from app.runtime.collections import UnusableDatabaseError, ensure
from app.runtime.mongo import Mongo, Session
from tests.conftest import make_settings

pytestmark = [pytest.mark.mongo, pytest.mark.new_database]

NAME = "things"
BY_A = IndexModel([("a", ASCENDING)], name="wanted")
# Each differs from the one before in one thing; what MongoDB takes for equivalent cannot be there at the same time.
DEFINITIONS = {
    "keys": ({"keys": [("a", 1)]}, {"keys": [("b", 1)]}),
    "direction": ({"keys": [("a", 1)]}, {"keys": [("a", -1)]}),
    "order": ({"keys": [("a", 1), ("b", 1)]}, {"keys": [("b", 1), ("a", 1)]}),
    "unique": ({}, {"unique": True}),
    "sparse": ({"sparse": True}, {}),
    "partial": (
        {"partialFilterExpression": {"a": {"$exists": True}}},
        {"partialFilterExpression": {"b": {"$exists": True}}},
    ),
    "collation": ({}, {"collation": {"locale": "de"}}),
    "another-collation": ({"collation": {"locale": "de"}}, {"collation": {"locale": "fr"}}),
    "expiry": ({"expireAfterSeconds": 60}, {"expireAfterSeconds": 0}),
    "no-expiry": ({"expireAfterSeconds": 60}, {}),
}


def index(name: str = "wanted", **options: Any) -> IndexModel:
    return IndexModel(options.pop("keys", [("a", ASCENDING)]), name=name, **options)


async def listed(mongo: Mongo) -> dict[str, Any]:
    """The indexes of the collection but the one on _id."""
    found: dict[str, Any] = await mongo.collection(NAME).index_information()
    return {name: each for name, each in found.items() if name != "_id_"}


async def test_what_is_missing_is_made_and_what_is_there_is_only_looked_at(mongo: Mongo) -> None:
    models = [BY_A, index("other", keys=[("b", DESCENDING)], unique=True)]
    await ensure(mongo, "empty")
    assert "empty" in await mongo.db.list_collection_names()
    await ensure(mongo, NAME, models[:1])
    await ensure(mongo, NAME, models)
    assert sorted(await listed(mongo)) == ["other", "wanted"]

    async def as_another_process(session: Session) -> None:
        """A transaction that a killed server has left open blocks whatever changes the collection."""
        await mongo.collection(NAME).insert_one({"a": 1}, session=session)
        async with asyncio.timeout(10):
            await ensure(mongo, NAME, models)
            await ensure(mongo, "empty")

    await transactions.run(mongo, as_another_process)


@pytest.mark.parametrize(("old", "new"), DEFINITIONS.values(), ids=DEFINITIONS)
async def test_an_index_of_the_same_name_and_another_definition_is_replaced(
    mongo: Mongo, old: dict[str, Any], new: dict[str, Any]
) -> None:
    await mongo.collection(NAME).insert_many([{"a": 1, "b": 1}, {"a": 2, "b": 2}])
    by_hand = index("by-hand", keys=[("z", ASCENDING)], sparse=True)
    await mongo.collection(NAME).create_indexes([by_hand, index(**old)])
    await ensure(mongo, NAME, [index(**new)])
    found = await listed(mongo)
    assert found.pop("by-hand") == {"v": 2, "key": [("z", 1)], "sparse": True}
    [(name, definition)] = found.items()
    assert definition["key"] == new.get("keys", [("a", 1)])
    for option in ("unique", "sparse", "partialFilterExpression", "expireAfterSeconds"):
        assert definition.get(option) == new.get(option)
    assert definition.get("collation", {}).get("locale") == new.get("collation", {}).get("locale")
    await ensure(mongo, NAME, [index(**new)])
    assert (await listed(mongo)).keys() == {"by-hand", name}


async def test_the_new_index_is_built_before_the_old_one_is_dropped(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = mongo.collection(NAME)
    await rows.create_indexes([index()])
    steps: list[tuple[str, list[str]]] = []
    drop = type(rows).drop_index

    async def dropping(collection: Any, name: str) -> None:
        steps.append((name, sorted(await listed(mongo))))
        await drop(collection, name)

    monkeypatch.setattr(type(rows), "drop_index", dropping)
    await ensure(mongo, NAME, [index(unique=True)])
    [(dropped, there)] = steps
    assert dropped == "wanted"
    assert len(there) == 2


async def test_a_replacement_that_was_broken_off_is_finished(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = mongo.collection(NAME)
    await rows.create_indexes([index()])
    with monkeypatch.context() as broken:
        broken.setattr(collections, "_take_place", _killed)
        with pytest.raises(KilledError):
            await ensure(mongo, NAME, [index(unique=True)])
    assert len(await listed(mongo)) == 2
    await ensure(mongo, NAME, [index(unique=True)])
    [definition] = (await listed(mongo)).values()
    assert definition["unique"]


class KilledError(Exception):
    """In the place of a process's end."""


async def _killed(*_: Any, **__: Any) -> None:
    raise KilledError


async def test_an_index_under_another_name_is_as_good(mongo: Mongo) -> None:
    await mongo.collection(NAME).create_indexes([index("by-hand", unique=True)])
    await ensure(mongo, NAME, [index(unique=True)])
    assert list(await listed(mongo)) == ["by-hand"]


async def test_what_a_newer_server_keeps_is_not_replaced(mongo: Mongo) -> None:
    models = [
        index(unique=True),
        index("expiry", keys=[("e", ASCENDING)], expireAfterSeconds=5),
    ]
    await ensure(mongo, NAME, models)
    mongo.replaces_indexes = False
    await ensure(mongo, NAME, [index(), index("expiry", keys=[("e", ASCENDING)])])
    found = await listed(mongo)
    assert found["wanted"]["unique"]
    assert found["expiry"]["expireAfterSeconds"] == 5
    [own] = found.keys() - {"wanted", "expiry"}
    assert found[own] == {"v": 2, "key": [("a", 1)]}


async def test_an_index_by_hand_that_is_in_the_way_is_named_and_left(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collections, "_PAUSE", 0)
    await mongo.collection(NAME).create_indexes([index("by-hand", expireAfterSeconds=60)])
    with pytest.raises(UnusableDatabaseError, match=NAME):
        await ensure(mongo, NAME, [index()])
    assert list(await listed(mongo)) == ["by-hand"]


async def test_rows_that_are_alike_are_told_of_without_what_is_in_them(mongo: Mongo) -> None:
    await mongo.collection(NAME).insert_many([{"a": "Lindqvist"}, {"a": "Lindqvist"}])
    with pytest.raises(UnusableDatabaseError, match=r"alike") as refused:
        await ensure(mongo, NAME, [index(unique=True)])
    assert "Lindqvist" not in str(refused.value)


async def test_other_failures_come_through(mongo: Mongo) -> None:
    with pytest.raises(OperationFailure):
        await ensure(mongo, NAME, [index(keys=[("a", "nonsense")])])


@pytest.mark.slow
@pytest.mark.parametrize("old", [None, {"keys": [("b", ASCENDING)]}, {"expireAfterSeconds": 60}])
async def test_processes_that_start_at_once_all_succeed(
    mongod: str, old: dict[str, Any] | None
) -> None:
    """Each through a client of its own, on a database without the collection, or with another index in it."""
    for _ in range(5):
        settings = make_settings(mongod)
        opened = [await Mongo.open(settings) for _ in range(6)]
        models = [
            index(expireAfterSeconds=0),
            index("more", keys=[("c", ASCENDING)], unique=True),
        ]
        if old is not None:
            await opened[0].collection(NAME).create_indexes([index(**old)])
        await asyncio.gather(*(ensure(each, NAME, models) for each in opened))
        found = await listed(opened[0])
        assert len(found) == 2
        assert {each.get("expireAfterSeconds") for each in found.values()} == {0, None}
        for each in opened:
            await each.close()


@pytest.mark.slow
async def test_processes_of_two_versions_that_start_at_once_all_succeed(mongod: str) -> None:
    for _ in range(5):
        settings = make_settings(mongod)
        opened = [await Mongo.open(settings) for _ in range(6)]
        wanted = [index(unique=number % 2 == 0) for number in range(len(opened))]
        await asyncio.gather(
            *(ensure(each, NAME, [model]) for each, model in zip(opened, wanted, strict=True))
        )
        for each in opened:
            await each.close()
