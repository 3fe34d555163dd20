"""Events whose reactions are to run now, in whatever process looks next."""

from __future__ import annotations

from datetime import timedelta

from app.runtime.mongo import Mongo


async def make_due(mongo: Mongo, *, all_again: bool = False) -> None:
    """Let the time of all come that wait for their reactions; `all_again`: also of those that have had them."""
    # A second ago by this process's estimate of the database's clock, which decides.
    past = {"react_until": mongo.now() - timedelta(seconds=1)}
    which = {} if all_again else {"react_until": {"$exists": True}}
    await mongo.collection("events").update_many(which, {"$set": past})
