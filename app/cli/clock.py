"""`carerelay clock`: the calendar of a running server's database, through its admin API (docs/clock.md)."""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.cli.database import SERVER, ask

Url = Annotated[str, typer.Option(help="Address of the server.")]
Production = Annotated[
    str | None,
    typer.Option(
        metavar="DATABASE",
        help="Move the calendar of a server that looks as if it were in use: every deadline of this database moves.",
    ),
]

app = typer.Typer(
    help="What time it is for timers and deadlines, what would happen until a date, and moving it for tests.",
    no_args_is_help=True,
)
# Into a pipe goes the whole table.
console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 200)

_SPAN = re.compile(r"(\d{1,6})([dhms])")
_SECONDS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}


@app.command()
def show(
    until: Annotated[
        str | None, typer.Option(metavar="DATE", help="Also what would happen until then.")
    ] = None,
    url: Url = SERVER,
) -> None:
    """The calendar's time, and how far it is ahead."""
    query = {} if until is None else {"until": until}
    found = ask(console, "GET", f"{url}/admin/clock", query, timeout=60).json()
    _tell(found)
    if until is None:
        return
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    headings = ("at", "what", "about")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for row in found["due"]:
        table.add_row(*(escape(row[heading]) for heading in headings))
    console.print(table)
    more = found["count"] - len(found["due"])
    if more:
        console.print(f"and {more} more")


@app.command()
def advance(
    span: Annotated[str, typer.Argument(help="As 90d, 12h, 30m or 10s.")],
    production: Production = None,
    url: Url = SERVER,
) -> None:
    """Put the calendar forward by a span, for all processes and for good."""
    match = _SPAN.fullmatch(span)
    if match is None:
        raise typer.BadParameter("a span is written as 90d, 12h, 30m or 10s")
    _move(url, {"advance": int(match[1]) * _SECONDS[match[2]]}, production)


@app.command()
def to(
    date: Annotated[str, typer.Argument(help="A date, or an instant as 2027-01-01T08:00:00Z.")],
    production: Production = None,
    url: Url = SERVER,
) -> None:
    """Put the calendar to a date, which must not be past."""
    _move(url, {"to": date}, production)


@app.command()
def reset(url: Url = SERVER) -> None:
    """Put the calendar back to the true time."""
    _move(url, {"reset": True}, None)


def _move(url: str, body: dict[str, Any], production: str | None) -> None:
    if production is not None:
        body["production"] = production
    _tell(ask(console, "POST", f"{url}/admin/clock", body=body, timeout=60).json())


def _tell(found: dict[str, Any]) -> None:
    ahead = found["ahead"]
    words = f"{ahead / 86_400:.1f} days ahead" if ahead else "the true time"
    console.print(f"{found['now']} ({words})")
