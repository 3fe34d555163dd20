"""What tests of exports share: a kick-off, what comes of it, and an export that stops where a test wants it to."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import pytest

from app.bulk import reading
from tests.builders.access_world import World

ASYNC = {"Prefer": "respond-async"}


def paused(monkeypatch: pytest.MonkeyPatch, after: int) -> tuple[asyncio.Event, asyncio.Event]:
    """Let reading stop after so many batches: an event for when it has, and one that lets it go on."""
    reached, go_on = asyncio.Event(), asyncio.Event()
    left = after

    async def pause(_: float) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            reached.set()
            await go_on.wait()

    monkeypatch.setattr(reading, "pause", pause)
    return reached, go_on


@dataclass
class Exported:
    """An export of a client, by the address of its status."""

    world: World
    who: str
    status: str

    async def manifest(self) -> dict[str, Any]:
        await self.world.server.exports.drain()
        answer = await self.world.get(self.who, self.status)
        assert answer.status_code == 200, answer.text
        manifest: dict[str, Any] = answer.json()
        return manifest

    async def files(self) -> dict[str, str]:
        """The addresses of its files by type, one of each."""
        return {each["type"]: each["url"] for each in (await self.manifest())["output"]}

    async def found(self) -> set[str]:
        """What its files hold, as references."""
        texts = [
            (await self.world.get(self.who, url)).text for url in (await self.files()).values()
        ]
        lines = [json.loads(line) for text in texts for line in text.splitlines()]
        return {f"{line['resourceType']}/{line['id']}" for line in lines}


async def kick_off(world: World, who: str, url: str, **more: Any) -> Exported:
    answer = await world.get(who, url, headers=ASYNC, **more)
    assert answer.status_code == 202, answer.text
    return Exported(world, who, answer.headers["content-location"])
