"""GLOSSARY.md is in order, says each word once, and names classes that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from app.fhir.definitions import SUPPORTED_TYPES

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "GLOSSARY.md").read_text("utf-8")
WORDS = re.findall(r"^- \*\*(.+?)\*\*: ", PAGE, re.MULTILINE)


def classes() -> dict[str, set[str]]:
    """The names of all classes below app/, each with what its body defines."""
    found: dict[str, set[str]] = {}
    for module in (ROOT / "app").rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                names = found.setdefault(node.name, set())
                for each in ast.walk(node):
                    if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                        names.add(each.name)
                    elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                        names.add(each.target.id)
                    elif isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store):
                        names.add(each.attr)
    return found


def test_words_are_in_order_and_told_once() -> None:
    assert sorted(set(WORDS), key=str.casefold) == WORDS
    assert len(re.findall(r"^- ", PAGE, re.MULTILINE)) == len(WORDS) > 100


def test_every_class_that_it_names_exists() -> None:
    known = classes()
    for name, member in re.findall(r"`([A-Z]\w*[a-z]\w*)(?:\.(\w+))?`", PAGE):
        if name not in SUPPORTED_TYPES or name in known:
            assert name in known, name
            assert not member or member in known[name], f"{name}.{member}"
