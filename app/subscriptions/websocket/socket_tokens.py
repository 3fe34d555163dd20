"""Tokens by which a websocket client proves which Subscriptions it may bind.

The Subscriptions R5 Backport guide, $get-ws-binding-token. Only a digest is stored: a reader of the database cannot
bind with it.

    websocket_tokens  {_id: SHA-256 of the token, subscriptions: [id], holder?: {client_id, version}, expires_at}
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from pymongo import ASCENDING, IndexModel

from app.runtime import collections
from app.runtime.mongo import Mongo

COLLECTION = "websocket_tokens"
LIFETIME = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Holder:
    """The client that a token was issued to, and its version then: a change of the client ends the token."""

    client_id: str
    version: int


@dataclass(frozen=True, slots=True)
class Token:
    """The content of a token. `holder` is None where authorization was off."""

    subscriptions: Sequence[str]
    holder: Holder | None


async def issue(
    mongo: Mongo, subscriptions: Sequence[str], holder: Holder | None
) -> tuple[str, datetime]:
    """A new token for these Subscriptions, and when it expires. It may be used repeatedly: connections break."""
    token = secrets.token_urlsafe(32)
    expires_at = mongo.now() + LIFETIME
    expiry = IndexModel([("expires_at", ASCENDING)], expireAfterSeconds=0)
    await collections.ensure(mongo, COLLECTION, [expiry])
    row = {"_id": _digest(token), "subscriptions": list(subscriptions), "expires_at": expires_at}
    if holder is not None:
        row["holder"] = asdict(holder)
    await mongo.collection(COLLECTION).insert_one(row)
    return token, expires_at


async def redeem(mongo: Mongo, token: str) -> Token | None:
    """The content of a token; None where it is unknown or has expired."""
    found = await mongo.collection(COLLECTION).find_one(
        {"_id": _digest(token), "expires_at": {"$gt": mongo.now()}}
    )
    if found is None:
        return None
    holder = Holder(**found["holder"]) if "holder" in found else None
    return Token(tuple(found["subscriptions"]), holder)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
