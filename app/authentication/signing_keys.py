"""The ES384 keys that this server signs its access tokens with, shared by all processes.

Collection `signing_keys`: {_id: generation, kid, public: JWK, private: sealed JWK, at, expires?}. The newest signs;
those before it still verify until the tokens they signed have expired, then MongoDB removes them. Generations count up,
so two processes that make a key at the same moment end up with one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from joserfc.jwk import ECKey
from pymongo import ASCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from app.runtime import collections
from app.runtime.mongo import Document, Mongo
from app.runtime.secrets import Secrets

ALGORITHM = "ES384"
COLLECTION = "signing_keys"
# How long other processes may still sign with a replaced key, plus the lifetime of the tokens, with room.
OVERLAP = timedelta(seconds=900)
# Seconds after which a process reads the keys again, and between two reads for a key id that it does not know.
_FRESH, _UNKNOWN = 30.0, 1.0


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One key; only the newest has `private`."""

    generation: int
    kid: str
    public: ECKey
    private: ECKey | None = None


class ServerKeys:
    """The keys as this process knows them. `clock` counts seconds."""

    def __init__(
        self, mongo: Mongo, secrets: Secrets, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._mongo = mongo
        self._secrets = secrets
        self._clock = clock
        self._keys: dict[str, SigningKey] = {}
        self._newest: SigningKey | None = None
        self._read_at = float("-inf")

    @property
    def _rows(self) -> Any:
        return self._mongo.collection(COLLECTION)

    async def prepare(self) -> None:
        """Make the first key where there is none. Raises secrets.SecretsError where the newest cannot be opened."""
        expiry = IndexModel([("expires", ASCENDING)], expireAfterSeconds=0)
        await collections.ensure(self._mongo, COLLECTION, [expiry])
        await self._read()
        if self._newest is None:
            await self.rotate()

    async def signing(self) -> SigningKey:
        """The key to sign with: the newest, known to all processes within half a minute."""
        if self._newest is None or self._clock() - self._read_at > _FRESH:
            await self._read()
        assert self._newest is not None  # noqa: S101 - `prepare` made one, and the newest is never removed
        return self._newest

    async def verifying(self, kid: str) -> ECKey | None:
        """The public key of that id, None where there is no such key (any more)."""
        age = self._clock() - self._read_at
        if age > _FRESH or (kid not in self._keys and age > _UNKNOWN):
            await self._read()
        key = self._keys.get(kid)
        return key.public if key else None

    async def rotate(self) -> str:
        """Make a new key the newest; returns its id. The others verify for OVERLAP more."""
        made = ECKey.generate_key("P-384", auto_kid=True)
        kid = str(made.kid)
        now = self._mongo.now()
        newest = await self._rows.find_one({}, {"_id": 1}, sort=[("_id", -1)])
        row = {
            "_id": newest["_id"] + 1 if newest else 1,
            "kid": kid,
            "public": made.as_dict(private=False, alg=ALGORITHM, use="sig"),
            "private": self._secrets.seal(msgspec.json.encode(made.as_dict(private=True)).decode()),
            "at": now,
        }
        try:
            await self._rows.insert_one(row)
        except DuplicateKeyError:  # another process was first; its key is as good
            row = await self._rows.find_one({"_id": row["_id"]})
            kid = row["kid"]
        await self._rows.update_many(
            {"_id": {"$lt": row["_id"]}, "expires": {"$exists": False}},
            {"$set": {"expires": now + OVERLAP}},
        )
        await self._read()
        return kid

    async def list(self) -> list[Document]:
        """All keys, newest first, without their private halves: generation, kid, at, expires or None."""
        rows = await self._rows.find({}, {"private": 0}).sort("_id", -1).to_list(None)
        return [
            {
                "generation": row["_id"],
                "kid": row["kid"],
                "at": row["at"],
                "expires": row.get("expires"),
            }
            for row in rows
        ]

    async def published(self) -> dict[str, Any]:
        """The public key set, for servers that verify the tokens themselves."""
        if self._clock() - self._read_at > _FRESH:
            await self._read()
        return {"keys": [dict(key.public.as_dict(private=False)) for key in self._keys.values()]}

    async def _read(self) -> None:
        rows = await self._rows.find({}).sort("_id", -1).to_list(None)
        self._read_at = self._clock()
        now = self._mongo.now()
        keys = {row["kid"]: _verifying(row) for row in rows if _is_valid(row, now)}
        if rows and (self._newest is None or rows[0]["kid"] != self._newest.kid):
            private = msgspec.json.decode(self._secrets.open(rows[0]["private"]))
            public = keys[rows[0]["kid"]].public
            self._newest = SigningKey(
                rows[0]["_id"], rows[0]["kid"], public, ECKey.import_key(private)
            )
        self._keys = keys


def _verifying(row: Document) -> SigningKey:
    return SigningKey(row["_id"], row["kid"], ECKey.import_key(row["public"]))


def _is_valid(row: Document, now: datetime) -> bool:
    return "expires" not in row or bool(row["expires"] > now)
