"""Records that cannot be read any more, as a faulty disk or a hand in the database leaves them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.runtime.mongo import Mongo

_BROKEN = '{"resourceType": '


@asynccontextmanager
async def spoilt(mongo: Mongo, reference: str) -> AsyncIterator[None]:
    """All that is stored of a resource is broken, for as long as this is open."""
    type_, _, id_ = reference.partition("/")
    places = [
        (mongo.collection(type_), {"_id": id_}),
        (mongo.collection("versions"), {"_id.t": type_, "_id.i": id_}),
    ]
    kept = [
        (rows, await rows.find({**which, "text": {"$exists": True}}).to_list(None))
        for rows, which in places
    ]
    assert any(before for _, before in kept)
    for rows, which in places:
        written = {**which, "text": {"$exists": True}}
        await rows.update_many(written, {"$set": {"text": _BROKEN}})
    yield
    for rows, before in kept:
        for row in before:
            await rows.update_one({"_id": row["_id"]}, {"$set": {"text": row["text"]}})
