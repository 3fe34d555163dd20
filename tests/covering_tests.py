"""Which tests run a line: those that a fault in it is tried on."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from coverage import CoverageData


def options(room: str) -> tuple[str, ...]:
    """What pytest is told so that it notes which test runs which line of a room."""
    return (f"--cov=app/{room}", "--cov-context=test", "--cov-report=")


def of(data: Path, file: str, lines: range) -> list[str]:
    """The tests that run one of the lines of `app/room/module.py`, or the function around them.

    Empty where no test does but all who import the module: a constant, a decorator, a class of settings.
    """
    contexts = _contexts(data, file)
    found = _tests(contexts, lines)
    if not found and (around := _function_around(file, lines)) is not None:
        found = _tests(contexts, around)
    return found


@lru_cache(maxsize=256)
def _contexts(data: Path, file: str) -> dict[int, list[str]]:
    """What ran each line, as `tests/test_a.py::test_b|run`; the file may have been measured in another directory."""
    measured = CoverageData(basename=str(data))
    measured.read()
    for name in measured.measured_files():
        if name.endswith(f"/{file}"):
            return measured.contexts_by_lineno(name)
    return {}


def _tests(contexts: dict[int, list[str]], lines: Iterable[int]) -> list[str]:
    named = (context for line in lines for context in contexts.get(line, ()))
    return list(dict.fromkeys(name.rpartition("|")[0] for name in named if name))


def _function_around(file: str, lines: range) -> range | None:
    """The lines of the innermost function whose body has the lines; not of one that they only decorate or declare."""
    functions = [
        range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1)
        for node in ast.walk(ast.parse(Path(file).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    around = [body for body in functions if lines[0] in body]
    return min(around, key=len, default=None)
