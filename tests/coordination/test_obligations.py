"""What care-coordination programmes ask for, obligation by obligation: each is a story of examples/stories, played.

A story says what is given, what happens, and then who got what: each notice that came and that no other came, what
was withheld and why, and what a search finds afterwards.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonpatch
import pytest

from app.fhir.definitions import EXAMPLES
from tests.coordination.stories import STORIES, Stage, check, play, read, stage

pytestmark = [pytest.mark.mongo, pytest.mark.slow]


def named(path: Path) -> str:
    """`a1-care-plan-copy` is an obligation of section A.1."""
    section, _, name = path.stem.partition("-")
    return f"{section[0].upper()}.{section[1:]}-{name}"


@pytest.fixture(scope="module")
async def on(mongod: str) -> AsyncIterator[Stage]:
    async with stage(mongod) as made:
        yield made


@pytest.mark.parametrize("path", STORIES, ids=named)
async def test_obligation(path: Path, on: Stage) -> None:
    story = read(path)
    try:
        await check(story["then"], await play(story, on), on)
    finally:
        await on.end()


async def test_what_a_story_does_not_say_fails_it(mongod: str) -> None:
    """The player would notice: every expectation of two stories, turned into another one."""
    stories = {path.stem: read(path) for path in STORIES}
    expectations = {
        "a1-care-team-contact": [
            ("/told/0", None),
            ("/told/0/to", "pcp-harbor"),
            ("/told/0/trigger", "participant-removed"),
            ("/told/0/with/0", "Practitioner/cassius-brindlewood"),
            ("/told/0/reduced", True),
            ("/told/0/holds", ["entry.count() = 0"]),
            ("/told/1/says/0", "Care team: somebody joined."),
            ("/found/0/count", 2),
            ("/found/0/holds/0", "total = 2"),
        ],
        "a5-pcp-not-told": [
            ("/withheld", []),
            ("/withheld/0/reason", "Withheld"),
            ("/told/-", stories["a5-pcp-in-team"]["then"]["told"][0]),
        ],
    }
    async with stage(mongod) as on:
        for name, others in expectations.items():
            outcome, then = await play(stories[name], on), stories[name]["then"]
            await check(then, outcome, on)
            for place, other in others:
                with pytest.raises(AssertionError):
                    await check(changed(then, place, other), outcome, on)
            await on.end()


def changed(then: dict[str, Any], place: str, value: Any) -> Any:
    """With another value there, or without any."""
    operation = {"op": "remove" if value is None else "add", "path": place, "value": value}
    if value is not None and place[-1].isdigit():
        operation["op"] = "replace"
    return jsonpatch.apply_patch(then, [operation])


def test_readme_tells_which_obligations_there_are() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in STORIES:
        story = json.loads(path.read_text(encoding="utf-8"))
        assert f"| {story['obligation']} | `{path.stem}` {story['title']} |" in readme
        assert story["invented"] is True
