"""The collections that the code names, each with the modules that do."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Steps forward name collections as they were in their time.
_OF_THEIR_TIME = "app/store/format.py"


def owners() -> Mapping[str, set[str]]:
    """The modules that name each collection, by path below the root; those of resource types are left out."""
    found: dict[str, set[str]] = defaultdict(set)
    for module in sorted((ROOT / "app").rglob("*.py")):
        path = module.relative_to(ROOT).as_posix()
        if path != _OF_THEIR_TIME:
            for name in _named(ast.parse(module.read_text("utf-8"))):
                if not name[0].isupper():
                    found[name].add(path)
    return found


def _named(tree: ast.Module) -> Iterator[str]:
    """The names that a module spells out, where it asks for a collection or keeps its name."""
    constants = dict(_constants(tree))
    yield from (name for key, name in constants.items() if key.endswith("COLLECTION"))
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="collection"), args=[ast.Constant(name), *_]):
                yield str(name)
            case ast.Call(func=ast.Attribute(attr="collection"), args=[ast.Name(key), *_]):
                if key in constants:
                    yield constants[key]


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The texts that a module keeps under names, several of a line included."""
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(key)], value=ast.Constant(str(text))):
                yield key, text
            case ast.Assign(targets=[ast.Tuple(names)], value=ast.Tuple(values)):
                for name, value in zip(names, values, strict=False):
                    if isinstance(name, ast.Name) and isinstance(value, ast.Constant):
                        yield name.id, str(value.value)
