"""A chain of rows: each holds the hash of the one before it, so changing, moving or removing one is detected.

    _id   <chain>.<number>   the chain's id is a UUIDv7, the number has twelve digits and begins with 1
    at    when it was written
    each  the entries: what was recorded at the same time; one row for all costs MongoDB a fraction of one for each
    prev  hash of the row before; of the first row, of the registry's row that began the chain
    hash  SHA-256 over the BSON of the row without this field

One writer at a time extends a chain. A process has several chains, so that concurrent writes do not wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256

import bson
from bson.raw_bson import RawBSONDocument
from pymongo.errors import (
    ConnectionFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WriteConcernError,
)

from app.errors import Unavailable
from app.runtime.mongo import Collection, Document, Session

_DUPLICATE_KEY = 11000
ENTRIES_A_ROW = 500
SORRY = "This cannot be put on record now, so it is not done"


def digest(row: Document) -> bytes:
    """The SHA-256 hash of a row that has no `hash` yet."""
    return sha256(bson.encode(row)).digest()


def _with_hash(encoded: bytes, digest_: bytes) -> RawBSONDocument:
    """A row with its hash as it is stored, without encoding it again. https://bsonspec.org/spec.html"""
    last = b"\x05hash\x00" + len(digest_).to_bytes(4, "little") + b"\x00" + digest_ + b"\x00"
    size = len(encoded) - 1 + len(last)
    return RawBSONDocument(size.to_bytes(4, "little") + encoded[4:-1] + last)


def row_id(chain: str, number: int) -> str:
    return f"{chain}.{number:012d}"


def place(id_: str) -> int:
    """The number of a row in its chain; 0 for an id that no chain has."""
    number = id_.rpartition(".")[2]
    return int(number) if len(number) == 12 and number.isascii() and number.isdigit() else 0


class HashChain:
    """A chain that this process extends: it has `number` rows, the last of them with the hash `head`."""

    __slots__ = ("anchored", "begun", "head", "id", "number")

    def __init__(self, id_: str, head: bytes, begun: datetime) -> None:
        self.id = id_
        self.begun = begun
        self.number = 0
        self.head = head
        # The number of its last row in the registry.
        self.anchored = 0

    def link(self, entries: Sequence[Document], at: datetime) -> list[RawBSONDocument]:
        """The entries as the chain's next rows; the chain is not extended yet."""
        head, rows = self.head, []
        for number, start in enumerate(range(0, len(entries), ENTRIES_A_ROW), self.number + 1):
            row: Document = {
                "_id": row_id(self.id, number),
                "at": at,
                "each": entries[start : start + ENTRIES_A_ROW],
                "prev": head,
            }
            encoded = bson.encode(row)
            head = sha256(encoded).digest()
            rows.append(_with_hash(encoded, head))
        return rows

    def extend(self, rows: Sequence[RawBSONDocument]) -> None:
        """Advance the chain past these rows, which are stored now."""
        if rows:
            self.number += len(rows)
            self.head = rows[-1]["hash"]


class Links:
    """Rows that are being written as the next ones of a chain.

    `in_doubt`: they may be stored or not. `spoilt`: another writer has added a row to this process's chain.
    """

    __slots__ = ("chain", "in_doubt", "rows", "spoilt")

    def __init__(self, chain: HashChain, entries: Sequence[Document], at: datetime) -> None:
        self.chain = chain
        self.rows = chain.link(entries, at)
        self.in_doubt = False
        self.spoilt = False

    async def insert(self, audit: Collection, session: Session | None = None) -> None:
        """Insert the rows, in a transaction or without one. Raises Unavailable where that fails.

        A TransientTransactionError is raised as it is, so that the transaction can be repeated.
        """
        self.in_doubt = session is None
        for number, row in enumerate(self.rows):
            try:
                refused = await _insert(audit, row, session)
            except PyMongoError as error:
                if error.has_error_label("TransientTransactionError"):
                    raise
                raise Unavailable(SORRY) from error
            if refused is not None:  # the database has reported which rows it stored
                self.in_doubt = False
                if session is None:
                    self.chain.extend(self.rows[:number])
                self.spoilt = refused == _DUPLICATE_KEY
                raise Unavailable(SORRY)
        self.in_doubt = True


async def _insert(audit: Collection, row: RawBSONDocument, session: Session | None) -> int | None:
    """Insert a row; returns the code of the error with which the database refuses it. Raises PyMongoError.

    By the bare command: `insert_many` costs a third more of the driver's time, `insert_one` a tenth. The row's id makes
    it as safe to repeat: where a connection breaks outside of a transaction it is sent once more; where no server can
    be reached it is not.
    """
    command: Document = {"insert": audit.name, "documents": [row]}
    if session is not None:
        return _code(await audit.database.command(command, session=session))
    command["writeConcern"] = {"w": "majority"}
    try:
        return _code(await audit.database.command(command))
    except ServerSelectionTimeoutError:
        raise
    except ConnectionFailure:
        refused = _code(await audit.database.command(command))
    if refused == _DUPLICATE_KEY:
        there = await audit.find_one({"_id": row["_id"]}, {"hash": 1})
        if there is not None and there["hash"] == row["hash"]:
            return None
    return refused


def _code(reply: Document) -> int | None:
    """The error code of an insert's reply, None without one. Raises WriteConcernError where the row may be lost."""
    if failure := reply.get("writeConcernError"):
        raise WriteConcernError(failure.get("errmsg", ""), failure.get("code"))
    errors = reply.get("writeErrors")
    return int(errors[0]["code"]) if errors else None
