"""docs/architecture.md says what is so: rooms, layers, places in the code, collections, timers."""

from __future__ import annotations

import ast
import itertools
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from app.features import TIMERS
from app.search.group_members import ROWS
from tests.collections_in_code import owners

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
STATE = PAGE.partition("## Where state lies")[2].partition("\n## ")[0]
TABLE, _, FIELDS = STATE.partition("### Fields")
# `app/store/commit.py::Commits.commit`: a module, and what stands in it.
PLACES = sorted(set(re.findall(r"`((?:app|tests|profiles)/[\w./]+?)/?(?:::([\w.]+))?`", PAGE)))


@cache
def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text("utf-8"))


def layers() -> list[list[str]]:
    """The rooms of the contract from the top down, side by side where neither imports the other."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    (found,) = [each["layers"] for each in contracts["contracts"] if each["type"] == "layers"]
    return [[room.strip() for room in layer.split("|")] for layer in found]


def is_there(room: str) -> bool:
    """Those in brackets have a place in the contract and need not be there."""
    return not room.startswith("(")


def test_every_room_of_the_contract_is_in_the_tree_and_has_a_line() -> None:
    drawn = re.findall(
        r"^(\(?\w+\)?) +\S", PAGE.partition("```text\n")[2].partition("```")[0], re.M
    )
    rooms = [room for layer in layers() for room in layer]
    assert drawn == rooms
    for room in filter(is_there, rooms):
        place = ROOT / "app" / room
        assert place.is_dir() or place.with_suffix(".py").is_file(), room


def test_the_picture_has_the_arrows_of_the_contract() -> None:
    picture = PAGE.partition("```mermaid\n")[2].partition("```")[0]
    drawn: set[tuple[str, ...]] = set()
    for line in picture.splitlines():
        chain = [each.strip() for each in line.split("-->")]
        drawn.update(itertools.pairwise(chain))
    rows = [row for layer in layers() if (row := [room for room in layer if is_there(room)])]
    wanted = {
        (above, below)
        for upper, lower in itertools.pairwise(rows)
        for above in upper
        for below in lower
    }
    assert drawn == wanted


@pytest.mark.parametrize(("path", "name"), PLACES, ids=[f"{p}-{n}" for p, n in PLACES])
def test_every_place_that_it_names_exists(path: str, name: str) -> None:
    assert (ROOT / path).exists()
    scope: list[ast.stmt] = tree(path).body if name else []
    for part in filter(None, name.split(".")):
        found = [
            each
            for each in scope
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and each.name == part
        ]
        assert found, f"{path} has no {name}"
        scope = found[0].body


def collections() -> dict[str, str]:
    """The collections that code names, each with the module that does."""
    found = dict.fromkeys(ROWS.values(), "app/search/group_members.py")
    return found | {name: min(paths) for name, paths in owners().items()}


def test_every_collection_is_in_the_table_with_its_owner() -> None:
    rows = re.findall(r"^\| `([\w<>]+)` \| `([\w./]+)` \|", TABLE, re.M)
    assert len(rows) == len(dict(rows))
    assert {name: owner for name, owner in rows if name != "<Type>"} == collections()


def test_the_fields_of_every_collection_are_told() -> None:
    named = re.findall(r"^- `([\w<>]+)`: ", FIELDS, re.M)
    assert sorted(named) == sorted([*collections(), "<Type>"])


def test_every_kind_of_timer_is_told() -> None:
    told = PAGE.partition("The kinds of timers")[2].partition("\n\n")[0]
    assert {timer.kind for timer in TIMERS} <= set(re.findall(r"`([\w-]+)`", told))
