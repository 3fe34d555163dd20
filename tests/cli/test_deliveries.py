"""`carerelay deliveries`: what it asks of the server, and what it prints."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import respx
from typer.testing import CliRunner

from app.cli.commands import app

ADMIN = "http://127.0.0.1:8080/admin/deliveries"
ROW = {
    "id": "0192f0c4",
    "subscription": "s1",
    "number": 7,
    "state": "dead",
    "focus": "Encounter/e1/_history/1",
    "created_at": "2026-11-21T12:00:00.000Z",
    "attempts": [{"status": 410}],
}


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["deliveries", *arguments])
    return result.exit_code, result.output


@respx.mock
def test_the_list_is_a_table() -> None:
    answer = httpx.Response(200, json={"deliveries": [ROW], "next": "http://more"})
    route = respx.get(ADMIN, params={"state": "dead", "_count": "50"}).mock(return_value=answer)
    code, output = run("list", "--state", "dead")
    assert code == 0
    assert route.called
    for text in ("0192f0c4", "s1", "7", "dead", "Encounter/e1/_history/1", "There are more"):
        assert text in output


@respx.mock
def test_one_is_shown_as_json() -> None:
    respx.get(f"{ADMIN}/0192f0c4").mock(return_value=httpx.Response(200, json=ROW))
    code, output = run("show", "0192f0c4")
    assert code == 0
    assert '"status": 410' in output


@pytest.mark.parametrize(
    ("arguments", "place", "parameters"),
    [
        pytest.param(["0192f0c4"], "/0192f0c4/resend", {}, id="one"),
        pytest.param(["--state", "dead"], "/resend", {"state": "dead"}, id="all-dead"),
        pytest.param(
            ["--subscription", "s1", "--first", "2", "--last", "5"],
            "/resend",
            {"subscription": "s1", "first": "2", "last": "5"},
            id="range",
        ),
    ],
)
@respx.mock
def test_resending(arguments: list[str], place: str, parameters: dict[str, Any]) -> None:
    answer = httpx.Response(202, json={"resent": 3, "skipped": 1})
    route = respx.post(ADMIN + place, params=parameters).mock(return_value=answer)
    code, output = run("resend", *arguments)
    assert code == 0
    assert route.called
    assert "3 sent again" in output
    assert "1 left alone" in output


@pytest.mark.parametrize("arguments", [[], ["0192f0c4", "--state", "dead"]])
def test_resending_needs_one_or_some(arguments: list[str]) -> None:
    code, _ = run("resend", *arguments)
    assert code == 2


@respx.mock
def test_failures_end_with_the_servers_words() -> None:
    outcome = {"resourceType": "OperationOutcome", "issue": [{"diagnostics": "kept for 90 days"}]}
    respx.get(f"{ADMIN}/x").mock(return_value=httpx.Response(410, json=outcome))
    respx.get(f"{ADMIN}/y").mock(return_value=httpx.Response(502, text="bad"))
    respx.get(f"{ADMIN}/z").mock(side_effect=httpx.ConnectError("refused"))
    assert run("show", "x") == (1, "kept for 90 days\n")
    assert run("show", "y") == (1, "answered 502\n")
    code, output = run("show", "z")
    assert code == 1
    assert "No server" in output
