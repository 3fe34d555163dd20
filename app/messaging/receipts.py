"""Receipts: which messages were taken and what they were answered, so that one that comes again writes nothing.

    messages   {_id: digest of sender and Bundle.id, header: digest of sender and MessageHeader.id, content: digest of
                the entries, status, answer, expires}

A receipt is inserted in the transaction that writes what the message says: both are there or neither, whichever process
dies, and of two processes that take the same message at once the slower one finds the receipt. What was refused has
none: the next time it is judged anew. https://hl7.org/fhir/R4/messaging.html#reliable and
docs/decisions/0036-messages-in.md
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import msgspec
from pymongo import ASCENDING, IndexModel

from app.authentication.caller import Caller
from app.errors import Unprocessable
from app.messaging.message_bundle import Message
from app.records.versions import RowBeside
from app.runtime import collections
from app.runtime.mongo import Document, Mongo

COLLECTION = "messages"
# The same text for the same content, whatever the order of its keys.
_CANONICAL = msgspec.json.Encoder(order="deterministic")


@dataclass(frozen=True, slots=True)
class MessageKey:
    """What a message is known by, among those of its sender; a resubmission has the same entries in a new envelope."""

    bundle: str
    header: str
    content: str

    @classmethod
    def of(cls, caller: Caller, message: Message) -> MessageKey:
        """That of a message, which all clients of an organization may send."""
        sender = caller.organization or caller.client_id
        return cls(
            _digest(f"{sender}\nBundle\n{message.id}"),
            _digest(f"{sender}\nMessageHeader\n{message.header['id']}"),
            hashlib.sha256(_CANONICAL.encode(message.bundle["entry"])).hexdigest(),
        )


class Answered(NamedTuple):
    """What a message was answered."""

    status: int
    text: str


class Receipts:
    """The collection `messages`."""

    def __init__(self, mongo: Mongo, kept: timedelta) -> None:
        self._mongo = mongo
        self._kept = kept
        self._rows = mongo.collection(COLLECTION)

    async def prepare(self) -> None:
        """Make the collection, where it is missing."""
        models = [
            IndexModel([("header", ASCENDING)], name="header", unique=True),
            IndexModel([("expires", ASCENDING)], name="expires", expireAfterSeconds=0),
        ]
        await collections.ensure(self._mongo, COLLECTION, models)

    async def find(self, key: MessageKey) -> Answered | None:
        """What the message was answered before. Raises Unprocessable where another one had its id."""
        same_id: Document = {"$or": [{"_id": key.bundle}, {"header": key.header}]}
        rows = [row async for row in self._rows.find(same_id)]
        for row in rows:
            if row["content"] == key.content:
                return Answered(row["status"], row["answer"])
        for row in rows:
            is_bundle = row["_id"] == key.bundle
            raise Unprocessable(
                "This id was that of another message; a message that says something else has an id of its own",
                code="duplicate",
                expression="Bundle.id" if is_bundle else "Bundle.entry[0].resource.id",
            )
        return None

    def row(self, key: MessageKey, answered: Answered) -> RowBeside:
        """The receipt, to be committed with what the message writes."""
        return RowBeside(
            COLLECTION,
            {
                "_id": key.bundle,
                "header": key.header,
                "content": key.content,
                "status": answered.status,
                "answer": answered.text,
                "expires": self._mongo.now() + self._kept,
            },
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
