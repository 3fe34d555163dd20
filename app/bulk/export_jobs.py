"""Exports as rows, so that any process can go on with one, tell how far it is, and serve its files.

    exports          {_id, state, caller, base_url, request, asked, requested, polled?, at, types, place, files, lines,
                      expires?, error?, lease_until?, owner?, attempt, tries}
    export_files     {_id: {e: export, f: file, n: piece}, data}
    export_patients  {_id: the same, ids, permits?}: whose data a piece and those written with it hold, by what Consent

`state` is queued, running, done, failed or cancelled. `place` is what to go on with: [stage, type, part, after]. A file
is a row's entry of `files`, {kind, type, lines, pieces, crc, size, named?, consents?}, see writing.py; `named` once its
patients are on record, where they are many (app/api/export_status.py); `consents` explain some of those without which
its content of 42 CFR Part 2 could not be there. Pieces and place are
written in one transaction, guarded by the lease (app/runtime/leases.py): a process that lost its export, or one whose
export was cancelled, writes nothing more, and what is read again after a crash comes into the files once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import NamedTuple

from bson import Binary, MaxKey
from pymongo import ASCENDING, IndexModel

from app.bulk.export_request import ExportRequest
from app.context import Context
from app.errors import TooManyRequests
from app.fhir.ids import new_id
from app.runtime import collections, transactions
from app.runtime.leases import BackOff, Claim, Leases, LostError
from app.runtime.mongo import Document, Mongo, Session

EXPORTS, FILES, PATIENTS = "exports", "export_files", "export_patients"
_LEASE = timedelta(seconds=15)
# Tries in a row, without a piece written in between, after which an export is given up.
_BACK_OFF = BackOff(timedelta(seconds=5), timedelta(seconds=5), most=5)
# A client that asks again sooner is told to slow down; `Retry-After` asks it for more patience than that.
RETRY_SECONDS = 2
_SOONEST = timedelta(seconds=1)
_RETRY_KICK_OFF_SECONDS = 60
OPEN = ("queued", "running")


# The segment of the FHIR base's addresses below which exports are.
PLACE = "_export"


def address(base_url: str, export_id: str) -> str:
    """Where an export's status is."""
    return f"{base_url}/{PLACE}/{export_id}"


class Piece(NamedTuple):
    """A part of a file, by its number in it, and the patients whose data it holds, where no piece before says so.

    `permits` are patients with Consents without which content of 42 CFR Part 2 about them could not be there.
    """

    file: int
    number: int
    data: bytes
    patients: Sequence[str] = ()
    permits: Sequence[tuple[str, str]] = ()


def _most_of_client(context: Context) -> int | None:
    """How many exports of the caller may be under way at once; None for any number up to that of all."""
    access, settings = context.access, context.settings
    if settings.max_exports_per_client is not None:
        is_exempt = access is not None and access.is_administrator
        return None if is_exempt else settings.max_exports_per_client
    if access is None or access.is_administrator:
        return None
    return (settings.max_exports + 1) // 2


class Jobs:
    """The rows of exports and of their files."""

    def __init__(self, mongo: Mongo, owner: str) -> None:
        self._mongo = mongo
        self._exports = mongo.collection(EXPORTS)
        self.leases = Leases[Document](
            mongo,
            EXPORTS,
            owner,
            lease=_LEASE,
            back_off=_BACK_OFF,
            is_open={"state": {"$in": OPEN}},
            order=[("requested", ASCENDING)],
        )
        self._files = mongo.collection(FILES)
        self._patients = mongo.collection(PATIENTS)

    async def prepare(self) -> None:
        """Make the collections, where they are missing: a transaction does better without that."""
        state = IndexModel([("state", ASCENDING), ("requested", ASCENDING)], name="state")
        await collections.ensure(self._mongo, EXPORTS, [state])
        for name in (FILES, PATIENTS):
            await collections.ensure(self._mongo, name)

    async def request(self, context: Context, asked: ExportRequest, request: str) -> str:
        """A new export's id. Raises TooManyRequests where too many are under way, of all or of this client.

        The row comes first and is counted after that: of two that come at once, at most both are refused.
        """
        now = self._mongo.now()
        row = {
            "_id": new_id(),
            "state": "queued",
            "caller": asdict(context.caller),
            "base_url": context.base_url,
            "request": request,
            "asked": asked.document(),
            "requested": now,
            "owner": None,
            "attempt": 0,
            "tries": 0,
            "place": None,
            "files": [],
            "lines": 0,
        }
        await self._exports.insert_one(row)
        refusal = await self._refusal(context)
        if refusal is not None:
            await self._exports.delete_one({"_id": row["_id"]})
            raise TooManyRequests(refusal, headers={"Retry-After": str(_RETRY_KICK_OFF_SECONDS)})
        return str(row["_id"])

    async def _refusal(self, context: Context) -> str | None:
        """Why there is one export too many; None where there is not."""
        under_way = {"state": {"$in": OPEN}}
        most = _most_of_client(context)
        if most is not None:
            own = {**under_way, "caller.client_id": context.caller.client_id}
            if await self._exports.count_documents(own) > most:
                return f"This client may have {most} exports under way at once; try again when one is done"
        if await self._exports.count_documents(under_way) > context.settings.max_exports:
            return "Too many exports are under way; try again later"
        return None

    async def read(self, export_id: str, client_id: str, now: datetime) -> Document | None:
        """An export of this client; None once it was cancelled or has expired."""
        row: Document | None = await self._exports.find_one({"_id": export_id})
        if row is None or row["state"] == "cancelled" or row["caller"]["client_id"] != client_id:
            return None
        return None if "expires" in row and row["expires"] <= now else row

    async def may_poll(self, export_id: str) -> bool:
        """Whether enough time has passed since the client last asked for the state."""
        now = self._mongo.now()
        long_ago = [{"polled": {"$exists": False}}, {"polled": {"$lte": now - _SOONEST}}]
        result = await self._exports.update_one(
            {"_id": export_id, "$or": long_ago}, {"$set": {"polled": now}}
        )
        return bool(result.matched_count)

    async def cancel(self, export_id: str) -> None:
        """From now on nobody sees it, and nothing more is written to it; `clear` takes its files away."""
        await self._exports.update_one({"_id": export_id}, {"$set": {"state": "cancelled"}})

    async def claim(self) -> Claim[Document] | None:
        """The oldest export that nobody works on, now this process's."""
        return await self.leases.claim(changes={"state": "running"})

    async def append(
        self, claim: Claim[Document], pieces: Sequence[Piece], progress: Document
    ) -> None:
        """Write pieces and, with them, what the row says of them. Raises LostError."""
        ids = [{"e": claim.id, "f": piece.file, "n": piece.number} for piece in pieces]
        files = [
            {"_id": id_, "data": Binary(piece.data)} for id_, piece in zip(ids, pieces, strict=True)
        ]
        patients = [
            {"_id": id_, "ids": list(piece.patients)}
            | ({"permits": list(piece.permits)} if piece.permits else {})
            for id_, piece in zip(ids, pieces, strict=True)
            if piece.patients
        ]

        async def transaction(session: Session) -> None:
            if not await self.leases.progress(claim, progress, session):
                raise LostError
            if files:
                await self._files.insert_many(files, session=session)
            if patients:
                await self._patients.insert_many(patients, session=session)

        await transactions.run(self._mongo, transaction)
        claim.tries = 0

    async def pieces(self, export_id: str, file: int, count: int) -> AsyncIterator[bytes]:
        """The pieces of a file, one at a time. Raises LostError where they are taken away meanwhile."""
        for number in range(count):
            piece = await self._files.find_one({"_id": {"e": export_id, "f": file, "n": number}})
            if piece is None:
                raise LostError
            yield bytes(piece["data"])

    async def patients(self, export_id: str, file: int) -> set[str]:
        """The ids of the patients whose data a file holds."""
        first = {"e": export_id, "f": file}
        of_file = {"_id": {"$gte": first, "$lt": {**first, "n": MaxKey()}}}
        return {each async for row in self._patients.find(of_file) for each in row["ids"]}

    async def permits(self, export_id: str, file: int) -> dict[str, set[str]]:
        """The Consents that content of 42 CFR Part 2 in a file needed, by the ids of their patients."""
        first = {"e": export_id, "f": file}
        of_file = {"_id": {"$gte": first, "$lt": {**first, "n": MaxKey()}}}
        found: dict[str, set[str]] = {}
        async for row in self._patients.find(of_file):
            for patient, consent in row.get("permits", ()):
                found.setdefault(patient, set()).add(consent)
        return found

    async def named(self, export_id: str, file: int) -> None:
        """The patients of a file are on record."""
        await self._exports.update_one({"_id": export_id}, {"$set": {f"files.{file}.named": True}})

    async def discard(self, export_id: str) -> None:
        """Take the files of an export away."""
        below = {"_id": {"$gte": {"e": export_id}, "$lt": {"e": export_id, "f": MaxKey()}}}
        for pieces in (self._files, self._patients):
            await pieces.delete_many(below)

    async def clear(self, now: datetime) -> int:
        """Take away what was cancelled or has expired, files first; returns how many exports."""
        gone = {"$or": [{"state": "cancelled"}, {"expires": {"$lte": now}}]}
        ids = [row["_id"] async for row in self._exports.find(gone, {"_id": 1})]
        for each in ids:
            await self.discard(each)
            await self._exports.delete_one({"_id": each})
        return len(ids)
