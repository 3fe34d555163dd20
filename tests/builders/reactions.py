"""Events whose reactions are to run now, in whatever process looks next; and a context for reactions that use none."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from app.authentication.caller import SERVER
from app.context import Context
from app.runtime.mongo import Mongo
from app.settings import Settings


def bare_context() -> Context:
    """The server's own, with settings and no other parts."""
    services: Any = SimpleNamespace(settings=Settings())
    return Context(services, SERVER, "")


async def make_due(mongo: Mongo, *, all_again: bool = False) -> None:
    """Let the time of all come that wait for their reactions; `all_again`: also of those that have had them."""
    # A second ago by this process's estimate of the database's clock, which decides.
    past = {"react_until": mongo.now() - timedelta(seconds=1)}
    which = {} if all_again else {"react_until": {"$exists": True}}
    await mongo.collection("events").update_many(which, {"$set": past})
