"""`carerelay dead-letters`: what it asks of the server, and what it prints."""

from __future__ import annotations

import httpx
import pytest
import respx
from typer.testing import CliRunner

from app.cli.commands import app

ADMIN = "http://127.0.0.1:8080/admin/dead-letters"
ROW = {
    "queue": "timers",
    "id": "care-plan-quiet|p1",
    "what": "care-plan-quiet",
    "error": "ValueError",
    "at": "2026-11-21T12:00:00.000Z",
}


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["dead-letters", *arguments])
    return result.exit_code, result.output


@respx.mock
def test_the_list_is_a_table_with_whole_ids() -> None:
    respx.get(ADMIN).mock(return_value=httpx.Response(200, json={"dead_letters": [ROW]}))
    code, output = run("list")
    assert code == 0
    for text in ROW.values():
        assert text in output


@respx.mock
@pytest.mark.parametrize("row", [None, "care-plan-quiet|p1"], ids=["all", "one"])
def test_a_queue_or_one_of_it_is_tried_again(row: str | None) -> None:
    asked = {"queue": "timers"} | ({"id": row} if row else {})
    answer = httpx.Response(202, json={"queued": 1})
    route = respx.post(f"{ADMIN}/retry", params=asked).mock(return_value=answer)
    code, output = run("retry", "timers", *([row] if row else []))
    assert (code, route.called) == (0, True)
    assert "1 to be tried again" in output


@respx.mock
def test_a_refusal_is_told_in_words() -> None:
    issue = {"severity": "error", "code": "not-found", "diagnostics": "No such dead letter"}
    outcome = {"resourceType": "OperationOutcome", "issue": [issue]}
    respx.post(f"{ADMIN}/retry").mock(return_value=httpx.Response(404, json=outcome))
    code, output = run("retry", "timers", "none")
    assert code == 1
    assert "No such dead letter" in output
