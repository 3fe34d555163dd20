"""Reads of the same moment are one query, and each of them is answered as if it had been alone."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from bson import Timestamp

from app.runtime import snapshot
from app.runtime.batch_cache import BatchCache
from app.runtime.batched_reads import BatchedReads
from app.runtime.mongo import max_time_ms
from tests.conftest import make_settings, running

VALUES = {"a": 1, "b": 2}


class Loads:
    """What was read together."""

    def __init__(self) -> None:
        self.keys: list[list[str]] = []
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.error: Exception | None = None

    async def load(self, keys: list[str]) -> dict[str, int]:
        self.keys.append(keys)
        self.begun.set()
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return {key: VALUES[key] for key in keys if key in VALUES}


async def test_what_is_asked_for_at_once_is_read_together() -> None:
    loads = Loads()
    reads = BatchedReads(loads.load, None)
    found = await asyncio.gather(*(reads.get(key) for key in "abca"))
    assert found == [1, 2, None, 1]
    assert loads.keys == [["a", "b", "c"]]


async def test_nothing_is_remembered() -> None:
    """A read that is asked for while another is under way begins anew: it must see what was written in between."""
    loads = Loads()
    reads = BatchedReads(loads.load, None)
    loads.go_on.clear()
    first = asyncio.create_task(reads.get("a"))
    await loads.begun.wait()
    loads.begun.clear()
    second = asyncio.create_task(reads.get("a"))
    await loads.begun.wait()
    loads.go_on.set()
    assert [await first, await second] == [1, 1]
    assert loads.keys == [["a"], ["a"]]


async def test_an_error_is_everybodys_and_is_forgotten() -> None:
    loads = Loads()
    reads = BatchedReads(loads.load, None)
    loads.error = ConnectionError("away")
    found = await asyncio.gather(reads.get("a"), reads.get("b"), return_exceptions=True)
    assert [type(each) for each in found] == [ConnectionError, ConnectionError]
    loads.error = None
    assert await reads.get("a") == 1


async def test_who_gives_up_takes_nothing_away_from_others() -> None:
    loads = Loads()
    reads = BatchedReads(loads.load, None)
    loads.go_on.clear()
    tasks = [asyncio.create_task(reads.get("a")) for _ in range(2)]
    await loads.begun.wait()
    tasks[0].cancel()
    loads.go_on.set()
    assert await tasks[1] == 1
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]


async def test_it_does_not_depend_on_who_asks_first_but_ends_in_the_time_of_a_request() -> None:
    """A search at a moment of the past lets nothing of the past be remembered, for itself or for others."""
    seen: list[tuple[Timestamp | None, int | None]] = []

    async def load(keys: list[str]) -> dict[str, int]:
        seen.append((snapshot.current(), max_time_ms.get()))
        return {}

    reads, remembered = BatchedReads(load, None), BatchCache(load, None)
    limit = max_time_ms.set(30_000)
    with snapshot.reading_at(Timestamp(1, 1)):
        await asyncio.gather(reads.get("a"), remembered.get("a"))
    max_time_ms.reset(limit)
    await reads.get("b")
    assert seen == [(None, 30_000), (None, 30_000), (None, None)]


@pytest.mark.mongo
async def test_many_who_read_at_once_are_each_answered_what_they_asked_for(mongod: str) -> None:
    """Current ones, deleted ones and such as never were, of several types, some of them twice."""
    async with running(make_settings(mongod)) as (_, client):
        for number in range(8):
            body = {"resourceType": "Basic", "id": f"b{number}", "code": {"text": f"{number}"}}
            assert (await client.put(f"/Basic/b{number}", json=body)).is_success
        assert (await client.delete("/Basic/b7")).is_success
        await client.put("/Patient/b0", json={"resourceType": "Patient", "id": "b0"})

        async def read(path: str) -> tuple[int, str | None]:
            answer: httpx.Response = await client.get(path)
            body = answer.json()
            return answer.status_code, body.get("code", {}).get("text", body.get("id"))

        asked = [f"/Basic/b{number % 9}" for number in range(27)] + ["/Patient/b0", "/Patient/b1"]
        found = dict(zip(asked, await asyncio.gather(*map(read, asked)), strict=True))
    assert {path: status for path, (status, _) in found.items() if status != 200} == {
        "/Basic/b7": 410,
        "/Basic/b8": 404,
        "/Patient/b1": 404,
    }
    assert all(found[f"/Basic/b{number}"][1] == f"{number}" for number in range(7))
    assert found["/Patient/b0"][1] == "b0"
