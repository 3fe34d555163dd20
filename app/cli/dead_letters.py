"""`carerelay dead-letters`: what a running server has given up, through its admin API."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from app.cli.database import SERVER, ask

Url = Annotated[str, typer.Option(help="Address of the server.")]

app = typer.Typer(help="Work that was given up, and trying it again.", no_args_is_help=True)
# Into a pipe goes the whole table: 80 columns would cut the ids that `retry` needs.
console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 200)


@app.command("list")
def list_dead_letters(url: Url = SERVER) -> None:
    """What was given up, one a line."""
    found = ask(console, "GET", f"{url}/admin/dead-letters", timeout=60).json()
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    headings = ("queue", "id", "what", "focus", "error", "at")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for row in found["dead_letters"]:
        table.add_row(*(row.get(heading, "") for heading in headings))
    console.print(table)


@app.command()
def retry(
    queue: Annotated[str, typer.Argument(help="The queue, as `list` shows it.")],
    row: Annotated[str | None, typer.Argument(help="The id of one; else all of the queue.")] = None,
    url: Url = SERVER,
) -> None:
    """Try one again, or all of a queue."""
    given = {"queue": queue} | ({"id": row} if row is not None else {})
    done = ask(console, "POST", f"{url}/admin/dead-letters/retry", given, timeout=60).json()
    console.print(f"{done['queued']} to be tried again")
