"""A running server as the commands ask it: with the token of the settings, failures in words for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from app.settings import Settings

if TYPE_CHECKING:
    import httpx

SERVER = "http://127.0.0.1:8080"


def ask(
    console: Console,
    method: str,
    url: str,
    parameters: Mapping[str, str] | None = None,
    *,
    timeout: float,
) -> httpx.Response:
    """The server's answer; without one, or with a refusal, the command says why and ends. `timeout` in seconds."""
    import httpx  # takes its time, which other commands should not wait for

    try:
        answer = httpx.request(
            method, url, params=parameters, timeout=timeout, headers=Settings().token_header
        )
    except httpx.TransportError as error:
        _fail(console, f"No server at {url}: {error}")
    if answer.is_success:
        return answer
    try:
        issues = answer.json()["issue"]
    except (ValueError, KeyError):
        issues = [{"diagnostics": f"answered {answer.status_code}"}]
    _fail(console, "; ".join(issue.get("diagnostics", issue.get("code", "")) for issue in issues))


def _fail(console: Console, message: str) -> NoReturn:
    console.print(f"[red]{escape(message)}[/]")
    raise typer.Exit(1) from None
