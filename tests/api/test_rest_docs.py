"""docs/rest.md: every line in it is run, and its facts are those of the code."""

from __future__ import annotations

import re
import shlex
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from app.fhir.definitions import SUPPORTED_TYPES
from tests.conftest import make_settings, running

TEXT = (Path(__file__).parents[2] / "docs" / "rest.md").read_text()
LINE = re.compile(r"^(curl .*\S)\s+# (\d{3}) .*$", re.MULTILINE)


def commands() -> Iterator[tuple[list[str], int]]:
    """What a shell would make of each line, and the status it is said to have."""
    for command, status in LINE.findall(TEXT):
        written = command.replace(r"\$", "$$").replace("$BASE", "BASE").replace("$$", "$")
        words = shlex.split(written.replace("$JSON", "content-type: application/fhir+json"))
        yield words[1:], int(status)


def request_of(words: list[str]) -> httpx.Request:
    method, url, headers, content = "", "", {}, None
    remaining = iter(words)
    for word in remaining:
        match word:
            case "-X":
                method = next(remaining)
            case "-I":
                method = "HEAD"
            case "-H":
                name, _, value = next(remaining).partition(":")
                headers[name] = value.strip()
            case "-d":
                content = next(remaining)
            case _:
                url = word
    if content is not None and "content-type" not in headers:
        headers["content-type"] = "application/x-www-form-urlencoded"  # as curl does
    url = url.replace("BASE", "http://carerelay.test/fhir")
    return httpx.Request(method or "GET", url, headers=headers, content=content)


@pytest.fixture
async def fresh(mongod: str) -> AsyncIterator[httpx.AsyncClient]:
    async with running(make_settings(mongod)) as (_, client):
        yield client


@pytest.mark.slow
async def test_every_line_does_what_it_says(fresh: httpx.AsyncClient) -> None:
    told = list(commands())
    assert len(told) == TEXT.count("\ncurl ")
    for words, status in told:
        response = await fresh.send(request_of(words))
        assert response.status_code == status, (words, response.text)


def test_the_page_says_how_many_types_there_are() -> None:
    assert f"All {len(SUPPORTED_TYPES)} resource types of R4 4.0.1" in TEXT
