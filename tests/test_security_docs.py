"""The threat model names tests as its proof: each of them exists, and every part of OWASP's list is answered."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "security.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`((?:\w+/)*test_\w+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[f"{f}-{n}" for f, n in NAMED])
def test_the_proof_exists(file: str, name: str) -> None:
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    functions = ast.FunctionDef, ast.AsyncFunctionDef
    assert name in {each.name for each in tree.body if isinstance(each, functions)}


def test_every_threat_of_the_tables_names_a_proof() -> None:
    model = PAGE.partition("## What is not met")[0]
    rows = [row for row in model.splitlines() if row.startswith("|") and "---" not in row]
    headers = [row for row in rows if row.endswith("| proved by |")]
    assert len(headers) == 5
    assert not [row for row in rows if row not in headers and "::test_" not in row]


def test_all_ten_of_owasp_are_answered() -> None:
    assert re.findall(r"^\| (API\d+) ", PAGE, re.MULTILINE) == [f"API{n}" for n in range(1, 11)]
