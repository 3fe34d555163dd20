"""A page holds only so much: it ends early, says so by its link, and no resource is left out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.search import page_bytes
from tests.builders.access_world import World, condition, encounter, world as a_world

pytestmark = pytest.mark.mongo

FOUR = ["e1", "e2", "e3", "e4"]


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    """One with four Encounters and a Condition of the patient pn, each in two versions, and some of another patient."""
    async with a_world(mongod) as found:
        for status in ("in-progress", "finished"):
            for each in FOUR:
                visit = encounter(each, "pn", "n", text=narrative())
                await found.put("admin", {**visit, "status": status})
                await found.put("admin", {**encounter(f"{each}s", "ps", "s"), "status": status})
        await found.put("admin", condition("c1", "pn", encounter={"reference": "Encounter/e1"}))
        yield found


def narrative() -> dict[str, Any]:
    return {
        "status": "generated",
        "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{"x" * 2_000}</div>',
    }


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page takes one of the Encounters, and no second."""
    monkeypatch.setattr(page_bytes, "PAGE_BYTES", 3_000)


async def pages(world: World, who: str, url: str) -> list[list[str]]:
    """What stands on each page: ids with versions."""
    found: list[list[str]] = []
    following: str | None = url
    while following:
        bundle = (await world.get(who, following)).json()
        found.append([named(each["resource"]) for each in bundle.get("entry", ())])
        following = next((x["url"] for x in bundle["link"] if x["relation"] == "next"), None)
    return found


def named(resource: dict[str, Any]) -> str:
    return f"{resource['id']}/{resource['meta']['versionId']}"


@pytest.mark.parametrize("who", ["north", "admin"])
@pytest.mark.parametrize(
    "url",
    [
        "/Encounter/e1/_history",
        "/Encounter/_history",
        "/Encounter?patient=pn",
        "/Encounter?patient=pn&_sort=-_id&_count=3",
        "/Encounter?patient._id=pn&_total=accurate",
        "/?_type=Encounter,Condition",
        "/Patient/pn/*?_type=Encounter,Condition",
        "/Patient/pn/$everything?_type=Encounter,Condition",
    ],
)
async def test_pages_end_early_and_show_everything_once(
    world: World, who: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = await pages(world, who, url.replace("&_count=3", ""))
    monkeypatch.setattr(page_bytes, "PAGE_BYTES", 3_000)
    cut = await pages(world, who, url)
    assert len(cut) > 1
    large = [[each for each in page if each.partition("/")[0] in FOUR] for page in cut]
    assert all(len(page) <= 1 for page in large)
    order = [each for page in large for each in page]
    assert order == [each for each in whole if each in order]
    assert {each for page in cut for each in page} == set(whole)


@pytest.mark.usefixtures("narrow")
async def test_what_is_included_is_cut_with_a_word(world: World) -> None:
    answer = await world.get("north", "/Patient?_id=pn&_revinclude=Encounter:patient")
    entries = answer.json()["entry"]
    modes = [each["search"]["mode"] for each in entries]
    assert modes == ["match", "include", "outcome"]
    assert "1 included resources are shown" in entries[-1]["resource"]["issue"][0]["diagnostics"]
