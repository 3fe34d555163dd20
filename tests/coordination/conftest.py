"""A server whose calendar can be moved, and a member with a care plan whose practice hears of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.builders.care_plans import Desk, Pair, desk, serving


@pytest.fixture(scope="module")
async def pair(mongod: str) -> AsyncIterator[Pair]:
    async with serving(mongod) as pair:
        yield pair


@pytest.fixture
async def at(pair: Pair) -> AsyncIterator[Desk]:
    async with desk(pair) as at:
        yield at
