"""Nothing is lost, doubled or invented when servers and their database are killed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.builders.receiver import receiving
from tests.builders.replica_set import replica_set
from tests.subscriptions.chaos import Cluster, cluster, servers, verify

pytestmark = [pytest.mark.mongo, pytest.mark.slow, pytest.mark.processes]


async def play(directory: Path, *, admissions: int, attacks: str) -> None:
    """Admissions in as many portions as there are attacks (`s`erver or `m`ongod), each in the middle of one."""
    seed = int(os.environ.get("CHAOS_SEED", "7"))
    async with cluster(directory, seed) as chaos, receiving() as receiver:
        subscriptions = [await chaos.subscribe(f"{receiver.url}/{name}") for name in "ab"]
        portion = admissions // len(attacks)
        for number, attack in enumerate(attacks):
            ids = [f"e{number}-{index}" for index in range(portion)]
            await asyncio.gather(chaos.admit(ids), strike(chaos, attack))
            if attack == "m":
                await chaos.ready()
        await verify(chaos, receiver, subscriptions)


async def strike(chaos: Cluster, attack: str) -> None:
    await asyncio.sleep(chaos.random.uniform(0.0, 0.4))
    if attack == "m":
        await chaos.kill_mongod()
    else:
        chaos.kill_server()


@pytest.mark.timeout(240)
async def test_five_kills_lose_nothing(tmp_path: Path) -> None:
    await play(tmp_path, admissions=200, attacks="ssmss")


@pytest.mark.chaos
@pytest.mark.timeout(1800)
async def test_fifty_kills_of_servers_lose_nothing(tmp_path: Path) -> None:
    await play(tmp_path, admissions=1000, attacks="s" * 50)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
async def test_ten_kills_of_the_database_lose_nothing(tmp_path: Path) -> None:
    await play(tmp_path, admissions=1000, attacks="ms" * 10)


@pytest.mark.chaos
@pytest.mark.timeout(600)
async def test_a_frozen_primary_loses_nothing(tmp_path: Path) -> None:
    """Writes go on while the primary of three stands still, after the election, and after it goes on; so do notices."""
    with replica_set(tmp_path) as mongo:
        async with servers(mongo.uri, tmp_path, 7, 2) as chaos, receiving() as receiver:
            subscriptions = [await chaos.subscribe(f"{receiver.url}/{name}") for name in "ab"]
            for number in range(3):
                writing = asyncio.create_task(
                    chaos.admit([f"e{number}-{index}" for index in range(200)])
                )
                await asyncio.sleep(0.3)
                with mongo.frozen_primary():
                    await writing
                await chaos.admit([f"after{number}-{index}" for index in range(20)])
            await verify(chaos, receiver, subscriptions)
