"""`carerelay clock`: what it asks of the server, and what it prints."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import respx
from typer.testing import CliRunner

from app.cli.commands import app

ADMIN = "http://127.0.0.1:8080/admin/clock"
TRUE = {"now": "2026-11-30T12:00:00.000Z", "ahead": 0}


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["clock", *arguments])
    return result.exit_code, result.output


@respx.mock
def test_what_would_happen_is_a_table_with_what_and_about_whom() -> None:
    row = {
        "at": "2027-01-02T06:00:00.000Z",
        "what": "Continuity of care ends",
        "about": "Patient/p1",
    }
    shown = {**TRUE, "due": [row], "count": 3}
    respx.get(ADMIN, params={"until": "2027"}).mock(return_value=httpx.Response(200, json=shown))
    code, output = run("show", "--until", "2027")
    assert code == 0
    for text in (*row.values(), "the true time", "and 2 more"):
        assert text in output


@respx.mock
@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        pytest.param(("advance", "90d"), {"advance": 90 * 86_400}, id="days"),
        pytest.param(("advance", "30m"), {"advance": 1800}, id="minutes"),
        pytest.param(("to", "2027-01-01"), {"to": "2027-01-01"}, id="to-a-date"),
        pytest.param(("reset",), {"reset": True}, id="back"),
        pytest.param(
            ("advance", "1h", "--production", "carerelay"),
            {"advance": 3600, "production": "carerelay"},
            id="said-aloud",
        ),
    ],
)
def test_it_is_moved_as_the_command_says(arguments: tuple[str, ...], asked: Any) -> None:
    moved = httpx.Response(200, json={**TRUE, "ahead": 86_400})
    route = respx.post(ADMIN).mock(return_value=moved)
    code, output = run(*arguments)
    assert code == 0
    assert json.loads(route.calls.last.request.content) == asked
    assert "1.0 days ahead" in output


def test_a_span_that_is_none_is_refused() -> None:
    code, output = run("advance", "soon")
    assert code == 2
    assert "90d" in output
