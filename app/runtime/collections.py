"""Collections and their indexes: whoever owns one says how it has to be, and what is missing is made.

Where everything is there nothing is changed, only looked at: a transaction that a killed server left open blocks every
change of a collection, for up to a minute (docs/decisions/0002-one-write-path.md).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pymongo import IndexModel
from pymongo.errors import DuplicateKeyError, OperationFailure

from app.runtime.mongo import Collection, Document, Mongo

log = logging.getLogger(__name__)

# What tells two indexes apart, beside their keys and collation. MongoDB lists more of its own, such as versions.
_OPTIONS = ("unique", "sparse", "expireAfterSeconds", "partialFilterExpression")
_INDEX_NOT_FOUND = 27
_OPTIONS_CONFLICT = 85
# What is refused because another process does the same at the same moment: the collection has just been made, an index
# as well (two codes), it is being built, somebody has dropped what was being built, or waits for it to be built.
_OTHERS_AT_WORK = frozenset({48, _OPTIONS_CONFLICT, 86, 285, 276, 117, 12587})
_TRIES, _PAUSE = 20, 0.02


class UnusableDatabaseError(Exception):
    """The database cannot be used as it is. The text is for the operator: why, and what to do."""


async def ensure(mongo: Mongo, name: str, models: Sequence[IndexModel] = ()) -> None:
    """Make a collection, and of these indexes what is missing. Raises UnusableDatabaseError where that cannot be done.

    An index is there when one of the same definition is, whatever its name: keys, unique, sparse, partial, expiry, and
    as much of the collation as the model names. One that has the name of ours and another definition is replaced: the
    new one is built first, under a name of its own. Only where MongoDB takes the two for equivalent (their expiry alone
    differs) the old one goes first. On a database that a newer server has brought forward nothing is replaced
    (`Mongo.replaces_indexes`). All other indexes are somebody else's and stay. One that another process is still
    building counts as there.
    """
    collection = mongo.collection(name)
    for attempt in range(_TRIES):
        try:
            await _bring_about(mongo, collection, models)
            return
        except DuplicateKeyError:
            # Its text has the values, which are somebody's data.
            raise UnusableDatabaseError(
                f"A unique index of the collection {name} cannot be built, since some rows are alike in it."
            ) from None
        except OperationFailure as error:
            if error.code not in _OTHERS_AT_WORK:
                raise
        await asyncio.sleep(attempt * _PAUSE)
    raise UnusableDatabaseError(
        f"An index of the collection {name} cannot be made: one on the same fields is in the way that is not the "
        "server's own. Drop that one."
    )


async def _bring_about(mongo: Mongo, collection: Collection, models: Sequence[IndexModel]) -> None:
    present = await collection.index_information()
    missing = [model for model in models if not any(_is(model, each) for each in present.values())]
    new = [model for model in missing if _name(model) not in present]
    if new:
        await collection.create_indexes(new)
    elif not present:
        await mongo.create_collection(collection.name)
    for model in models:
        other = present.get(_name(model))
        if other is None or _is(model, other):
            continue
        is_there = model not in missing or await _build_beside(collection, model)
        if mongo.replaces_indexes:
            await _take_place(collection, model, is_there=is_there)


async def _build_beside(collection: Collection, model: IndexModel) -> bool:
    """Build an index whose name is taken under another; False where MongoDB does not let it be beside that one."""
    options = dict(model.document)
    keys = list(options.pop("key").items())
    digest = hashlib.sha256(repr((keys, sorted(options.items()))).encode()).hexdigest()
    options["name"] = f"{_name(model)}_{digest[:8]}"
    try:
        await collection.create_indexes([IndexModel(keys, **options)])
    except OperationFailure as error:
        if error.code != _OPTIONS_CONFLICT:
            raise
        return False
    return True


async def _take_place(collection: Collection, model: IndexModel, *, is_there: bool) -> None:
    """Drop the index that has the name of ours; ours is there already, or is built then."""
    name = _name(model)
    # Another process may have been faster, and have put ours there.
    other = (await collection.index_information()).get(name)
    if other is not None and not _is(model, other):
        log.warning(
            "index %s of %s replaced",
            name,
            collection.name,
            extra={"action": "index", "collection": collection.name, "index": name},
        )
        try:
            await collection.drop_index(name)
        except OperationFailure as error:
            if error.code != _INDEX_NOT_FOUND:
                raise
    if not is_there:
        await collection.create_indexes([model])


def _name(model: IndexModel) -> str:
    return str(model.document["name"])


def _is(model: IndexModel, listed: Mapping[str, Any]) -> bool:
    """Whether a listed index is what the model says."""
    wanted: Document = model.document
    collation = wanted.get("collation", {})
    # MongoDB fills in what a collation leaves open.
    named = {key: value for key, value in listed.get("collation", {}).items() if key in collation}
    return (
        list(wanted["key"].items()) == [tuple(each) for each in listed["key"]]
        and bool(collation) == ("collation" in listed)
        and named == dict(collation)
        and all(_option(wanted, name) == _option(listed, name) for name in _OPTIONS)
    )


def _option(index: Mapping[str, Any], name: str) -> Any:
    """An option that is switched off is as one that is not there; an expiry after 0 seconds is one."""
    value = index.get(name)
    return None if value is False else value
