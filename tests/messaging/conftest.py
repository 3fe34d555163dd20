"""A server that takes messages, and a stay at another hospital for them to tell of."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.builders.messages import ForeignStay
from tests.conftest import BASE, Server, make_settings, running

Pair = tuple[Server, httpx.AsyncClient]


@pytest.fixture(scope="module")
async def pair(mongod: str) -> AsyncIterator[Pair]:
    async with running(make_settings(mongod, base_url=BASE)) as pair:
        yield pair


@pytest.fixture
def http(pair: Pair) -> httpx.AsyncClient:
    return pair[1]


@pytest.fixture
def stay() -> ForeignStay:
    return ForeignStay()
