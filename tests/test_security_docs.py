"""The threat model names tests as its proof: each of them exists, and every part of OWASP's list is answered.

It also names the modules that read without limits, and those are all there are.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "security.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`((?:\w+/)*test_\w+\.py)::(\w+)`", PAGE)))


WITHOUT_LIMITS = "## Who reads everything\n"


def _section(title: str) -> str:
    return PAGE.partition(title)[2].partition("\n## ")[0]


def _rows(text: str) -> list[str]:
    return [row for row in text.splitlines() if row.startswith("|") and "---" not in row]


def _is_unlimited(node: ast.AST) -> bool:
    """Whether code names the store itself, makes a context of the server's own, or a timer that has one.

    What is asked of the store about the process, as its name, tells nothing of what is stored.
    """
    if isinstance(node, ast.Attribute) and node.attr == "store":
        return ast.unparse(node).endswith(("services.store", "Services.store"))
    if isinstance(node, ast.Call):
        is_many = any(each.arg == "is_about_many" for each in node.keywords)
        is_own = ast.unparse(node.func) == "Context" and "SERVER" in map(ast.unparse, node.args)
        return is_many or is_own
    return False


def _reads_without_limits(tree: ast.AST) -> bool:
    about_the_process = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("owner", "cluster", "search_state")
    }
    return any(_is_unlimited(node) for node in ast.walk(tree) if id(node) not in about_the_process)


def test_who_reads_without_limits_is_listed_with_the_reason() -> None:
    app = TESTS.parent / "app"
    found = {
        f"app/{file.relative_to(app)}"
        for file in app.rglob("*.py")
        if _reads_without_limits(ast.parse(file.read_text("utf-8")))
    }
    found -= {"app/context.py"}  # where the limits are put around it
    rows = [[each.strip() for each in row.split("|")] for row in _rows(_section(WITHOUT_LIMITS))]
    assert {row[1].strip("`") for row in rows[1:]} == found
    assert all(len(row) == 5 and all(row[1:4]) for row in rows)


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[f"{f}-{n}" for f, n in NAMED])
def test_the_proof_exists(file: str, name: str) -> None:
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    functions = ast.FunctionDef, ast.AsyncFunctionDef
    assert name in {each.name for each in tree.body if isinstance(each, functions)}


def test_every_threat_of_the_tables_names_a_proof() -> None:
    model = PAGE.partition("## What is not met")[0].replace(_section(WITHOUT_LIMITS), "")
    rows = _rows(model)
    headers = [row for row in rows if row.endswith("| proved by |")]
    assert len(headers) == 5
    assert not [row for row in rows if row not in headers and "::test_" not in row]


def test_all_ten_of_owasp_are_answered() -> None:
    assert re.findall(r"^\| (API\d+) ", PAGE, re.MULTILINE) == [f"API{n}" for n in range(1, 11)]
