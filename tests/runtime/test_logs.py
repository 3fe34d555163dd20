"""A line of the log carries what it is about: the fields that the code attaches, each of them known, none with data."""

from __future__ import annotations

import ast
import logging
import logging.config
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import app
from app.runtime import logs
from tests.conftest import make_settings, running

ROOT = Path(app.__file__).parent
TELLS = frozenset({"debug", "info", "warning", "error", "exception", "critical", "tell"})


def written(message: str, **attached: object) -> str:
    """A record as the server writes it, without time, level and logger."""
    record = logging.makeLogRecord({"msg": message, "name": "app.x", **attached})
    return logs.SafeFormatter("%(message)s").format(record)


@cache
def calls() -> list[tuple[str, ast.AST, ast.Call]]:
    """Every call that logs, with its file and the function it stands in."""
    return list(_calls())


def _calls() -> Iterator[tuple[str, ast.AST, ast.Call]]:
    for path in sorted(ROOT.rglob("*.py")):
        module = ast.parse(path.read_text("utf-8"))
        functions = [
            each
            for each in ast.walk(module)
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        for around in functions:
            for each in ast.walk(around):
                if isinstance(each, ast.Call) and _name(each.func) in TELLS:
                    yield path.relative_to(ROOT).as_posix(), around, each


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return function.attr if function.value.id == "log" else ""
    return function.id if isinstance(function, ast.Name) else ""


def keys(around: ast.AST, call: ast.Call) -> list[str] | None:
    """The fields that a call attaches, in place or by a name of the same function; None where it attaches none."""
    attached = next((each.value for each in call.keywords if each.arg == "extra"), None)
    if isinstance(attached, ast.Name):
        (attached,) = [
            each.value
            for each in ast.walk(around)
            if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == attached.id
        ]
    if attached is None:
        return None
    assert isinstance(attached, ast.Dict), ast.unparse(call)
    return [str(ast.literal_eval(key)) for key in attached.keys if key is not None]


@pytest.mark.slow
def test_every_field_that_code_attaches_is_written() -> None:
    found = {(path, key) for path, around, call in calls() for key in keys(around, call) or ()}
    assert len(found) > 50
    assert {(path, key) for path, key in found if key not in logs.FIELDS} == set()
    for key in {key for _, key in found}:
        assert written("said", **{key: "x1"}) == f"said {key}=x1"


def test_no_field_is_known_that_nobody_attaches() -> None:
    found = {key for _, around, call in calls() for key in keys(around, call) or ()}
    assert set(logs.FIELDS) - found == set()


def test_every_line_says_what_was_being_done() -> None:
    silent = [
        f"{path}: {ast.unparse(call)}"
        for path, around, call in calls()
        if _name(call.func) != "tell" and "action" not in (keys(around, call) or ())
    ]
    assert silent == []


def test_fields_come_in_order_after_the_message_and_before_the_places() -> None:
    assert (
        written("cannot match\nplaces", error="KeyError", version_id=3, id="e1", action="match")
        == "cannot match action=match id=e1 version_id=3 error=KeyError\nplaces"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a b", '"a b"'),
        ("x\nERROR app: forged", '"x\\nERROR app: forged"'),
        ('x" error=none', '"x\\" error=none"'),
        ("Müller", '"M\\u00fcller"'),
        ("", '""'),
        ("y" * 500, "y" * 200),
        (True, "True"),
        (None, "None"),
        ({"name": "Quetzalcoatlus"}, "dict"),
        (ValueError("Quetzalcoatlus"), "ValueError"),
    ],
)
def test_a_value_is_one_word_and_never_an_object_with_data(value: object, shown: str) -> None:
    assert written("said", id=value) == f"said id={shown}"


def test_what_libraries_attach_is_left_out() -> None:
    assert written("said", color_message="Quetzalcoatlus", command="find") == "said"


@pytest.mark.slow
async def test_a_failing_reaction_to_a_request_is_found_by_the_request_id(
    mongod: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id that the client was answered stands in the same line as the failure."""

    async def broken(*_: object) -> None:
        raise RuntimeError("Quetzalcoatlus")

    async with running(make_settings(mongod)) as (server, client):
        monkeypatch.setattr(type(server.store), "read", broken)
        answer = await client.get("/Patient/p1", headers={"x-request-id": "mine-17"})
    assert answer.status_code == 500
    (record,) = [each for each in caplog.records if each.getMessage().startswith("request failed")]
    line = logs.SafeFormatter("%(message)s").format(record).splitlines()[0]
    assert line == "request failed action=request request_id=mine-17"


@pytest.mark.processes
def test_the_driver_and_the_web_server_write_in_the_same_form() -> None:
    script = """
import logging, logging.config
from app.runtime import logs
logging.config.dictConfig(logs.CONFIG)
for name in ("uvicorn.error", "pymongo.topology", "app.store.store"):
    logging.getLogger(name).warning("said", extra={"action": "a", "id": "r1", "command": "find"})
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    lines = [line.split(" WARNING ")[1] for line in done.stderr.splitlines()]
    assert lines == [
        f"{name}: said action=a id=r1"
        for name in ("uvicorn.error", "pymongo.topology", "app.store.store")
    ]
