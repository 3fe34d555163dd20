"""Reads that many ask for at once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from app.runtime.batch_cache import BatchCache


class Source:
    """Doubles numbers but 13, and notes what it was asked for; `fails` with what it is told to."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.fails: Exception | None = None

    async def load(self, keys: list[int]) -> dict[int, int]:
        self.asked.append(keys)
        await asyncio.sleep(0)
        if self.fails is not None:
            raise self.fails
        return {key: 2 * key for key in keys if key != 13}


@pytest.fixture
def source() -> Source:
    return Source()


async def test_what_is_asked_for_at_once_is_loaded_once_and_together(source: Source) -> None:
    shared = BatchCache(source.load, -1)
    found = await asyncio.gather(*(shared.get(key) for key in (1, 2, 1, 13)))
    assert found == [2, 4, 2, -1]
    assert source.asked == [[1, 2, 13]]
    assert (await shared.get(2), shared.known(2), shared.known(3)) == (4, 4, None)
    assert source.asked == [[1, 2, 13]]
    assert await shared.get_all([2, 3, 5, 3]) == {2: 4, 3: 6, 5: 10}
    assert source.asked == [[1, 2, 13], [3, 5]]


async def test_it_is_loaded_anew_when_its_time_is_over_or_it_is_forgotten(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("app.runtime.batch_cache.time", clock)
    shared = BatchCache(source.load, -1, lasting=10.0)
    await shared.get(1)
    now += 9.9
    await shared.get(1)
    assert source.asked == [[1]]
    now += 0.1
    await shared.get(1)
    shared.forget([1, 2])
    await shared.get(1)
    shared.clear()
    await shared.get(1)
    assert source.asked == [[1]] * 4


async def test_who_was_asked_for_longest_ago_goes_first(source: Source) -> None:
    shared = BatchCache(source.load, -1, most=2)
    for key in (1, 2, 3):
        await shared.get(key)
    assert [shared.known(key) for key in (1, 2, 3)] == [None, 4, 6]


async def test_failures_are_told_to_all_and_not_remembered(source: Source) -> None:
    shared = BatchCache(source.load, -1)
    source.fails = OSError("gone")
    found = await asyncio.gather(shared.get(1), shared.get(1), return_exceptions=True)
    assert list(found) == [source.fails, source.fails]
    source.fails = None
    assert await shared.get(1) == 2
