"""What the contract of the layers (pyproject.toml) cannot say: one name for a file, one owner for a collection."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import app
from tests.collections_in_code import owners

ROOT = Path(app.__file__).parent
# Operations are named by their codes, commands by their words, and `main` puts both sides together.
_NAMED_OTHERWISE = ("cli/", "operations/", "main.py")


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module below app/ by its path, parsed."""
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8"))


def test_no_two_modules_have_one_name() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for path, _ in modules():
        name = path.rpartition("/")[2]
        if name != "__init__.py" and not path.startswith(_NAMED_OTHERWISE):
            found[name].append(path)
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_a_collection_is_named_in_one_module_its_owner() -> None:
    found = owners()
    assert len(found) > 20
    assert {name: sorted(paths) for name, paths in found.items() if len(paths) > 1} == {}
