"""What the contract of the layers (pyproject.toml) cannot say: one name for a file, one owner for a collection."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import app

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


def collections_named(tree: ast.Module) -> Iterator[str]:
    """The names of collections that a module spells out, where it asks for one or keeps its name."""
    constants = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    yield from (str(name) for key, name in constants.items() if key.endswith("COLLECTION"))
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="collection"), args=[ast.Constant(value=name), *_]
            ):
                yield str(name)
            case ast.Call(func=ast.Attribute(attr="collection"), args=[ast.Name(id=key), *_]):
                if key in constants:
                    yield str(constants[key])


def test_a_collection_is_named_in_one_module_its_owner() -> None:
    owners: dict[str, set[str]] = defaultdict(set)
    for path, tree in modules():
        for name in collections_named(tree):
            owners[name].add(path)
    assert len(owners) > 20
    assert {name: sorted(paths) for name, paths in owners.items() if len(paths) > 1} == {}
