"""What every page says of files, links, settings and commands is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
)
_PATH = re.compile(r"(?<![\w/.-])(?:app|tests|benchmarks|profiles|docs|examples)/[\w./-]*\w")
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
# Read by the benchmarks and by tests, not by the server.
_NO_SETTINGS = {"CARERELAY_SHARED", "CARERELAY_BENCH_BEARER_FROM"}


def pages() -> list[object]:
    return [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in PAGES]


@pytest.mark.parametrize("page", pages())
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named = {each.rstrip(".") for each in _PATH.findall(page.read_text("utf-8"))}
    assert not {each for each in named if not (ROOT / each).exists()}


@pytest.mark.parametrize("page", pages())
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = set(_LINK.findall(page.read_text("utf-8")))
    assert not {each for each in links if not (page.parent / each).exists()}


@pytest.mark.parametrize("page", pages())
def test_every_setting_that_a_page_names_is_one(page: Path) -> None:
    known = {f"CARERELAY_{name.upper()}" for name in Settings.model_fields} | _NO_SETTINGS
    assert (
        not set(re.findall(r"\bCARERELAY_[A-Z0-9_]*[A-Z0-9]\b(?![*_])", page.read_text())) - known
    )


@pytest.mark.parametrize("page", pages())
def test_every_target_of_make_that_a_page_names_is_there(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert not set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text("utf-8"), re.M)) - targets


def test_every_test_that_contributing_names_exists() -> None:
    tests = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", (ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert len(named) > 3
    assert not [each for each in named if f"def {each}(" not in tests]


def test_every_page_that_code_names_exists() -> None:
    code = [path for name in ("app", "tests", "benchmarks") for path in (ROOT / name).rglob("*.py")]
    named = {
        (path.relative_to(ROOT).as_posix(), page)
        for path in code
        for page in re.findall(r"(?<![\w/])docs/[\w/-]+\.md", path.read_text("utf-8"))
    }
    assert not {each for each in named if not (ROOT / each[1]).exists()}
