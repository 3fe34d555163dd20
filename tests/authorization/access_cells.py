"""What the tests of the access matrix share: how cells are counted and how answers are compared.

A cell is one client, one door and one record. Cells that fail are reported by name, all of a test together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest

from tests.authorization.access_records import bundle, entry, planned
from tests.authorization.access_table import CLIENTS, ORGANIZATIONS, Outcome, Record, expected
from tests.builders.access_world import World

RECORDS = planned()
EVERY = [pytest.param(who, id=who) for who in CLIENTS]
OTHERS = [pytest.param(who, id=who) for who in ORGANIZATIONS]
JSON_PATCH = {"Content-Type": "application/json-patch+json"}
READS = {"read": "", "vread": "/_history/1", "instance history": "/_history"}
# What tells one answer from the next, whatever it is about.
_OF_THE_MOMENT = ("date", "x-request-id", "content-length")
STATUS = {Outcome.SEEN: 200, Outcome.HIDDEN: 404, Outcome.CLOSED: 403}
# An id that nothing ever had.
UNUSED = "never-was-one"


@dataclass
class Cells:
    """Counts what was asked and keeps what went wrong."""

    asked: int = 0
    failed: list[str] = field(default_factory=list)

    def check(self, name: str, holds: bool, detail: Any = "") -> None:
        self.asked += 1
        if not holds:
            self.failed.append(f"{name} {detail}")

    def close(self, least: int) -> None:
        assert not self.failed, f"{len(self.failed)} of {self.asked}:\n" + "\n".join(self.failed)
        assert self.asked >= least


def of_type(*types: str) -> list[Record]:
    return [each for each in RECORDS if each.resource_type in types]


def seen(who: str, records: Sequence[Record]) -> list[str]:
    return sorted(each.reference for each in records if expected(who, each) is Outcome.SEEN)


def types_of(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(each.resource_type for each in records))


def anonymous(answer: httpx.Response, id_: str) -> tuple[int, str, Mapping[str, str]]:
    """All there is to an answer, but for the id that was asked for."""
    headers = {k: v.replace(id_, "?") for k, v in answer.headers.items() if k not in _OF_THE_MOMENT}
    return answer.status_code, answer.text.replace(id_, "?"), headers


async def in_batches(world: World, who: str, entries: Sequence[Any]) -> list[Any]:
    """The answers to the entries, by several batches."""
    found: list[Any] = []
    for at in range(0, len(entries), 200):
        answer = await world.ask(who, "POST", "/", bundle("batch", *entries[at : at + 200]))
        assert answer.status_code == 200, answer.text
        found += answer.json()["entry"]
    return found


def few_hidden(who: str, *types: str, most: int = 4) -> list[Record]:
    """Some of each type that a client may not see, of every kind that there is."""
    found: list[Record] = []
    for type_ in types:
        hidden = [each for each in of_type(type_) if expected(who, each) is not Outcome.SEEN]
        found += hidden[:: max(1, len(hidden) // most)]
    return found


async def tidy(world: World, records: Sequence[Record]) -> None:
    entries = [entry("DELETE", each.reference) for each in records]
    if entries:
        await in_batches(world, "admin", entries)


def renamed(record: Record, id_: str) -> Record:
    return replace(record, id=id_)


async def versions_of(world: World, *types: str) -> dict[str, int]:
    """The number of each planted record's version, as it lies in the database."""
    found: dict[str, int] = {}
    for type_ in types:
        ids = [each.id for each in of_type(type_)]
        rows = world.server.mongo.collection(type_).find({"_id": {"$in": ids}}, {"v": 1})
        found |= {f"{type_}/{row['_id']}": row["v"] for row in await rows.to_list(None)}
    return found
