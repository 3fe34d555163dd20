"""`carerelay events`: the events of a running server that could not be matched, through its admin API."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from app.cli.database import SERVER, ask

Url = Annotated[str, typer.Option(help="Address of the server.")]
Subscription = Annotated[str | None, typer.Option(help="Id of a Subscription.")]
Judge = Annotated[str | None, typer.Option(help="Who could not decide, as the list shows it.")]
Focus = Annotated[str | None, typer.Option(help="What the event is about, as Encounter/e1.")]

app = typer.Typer(
    help="What could not be matched to Subscriptions, and trying it again.", no_args_is_help=True
)
# Into a pipe goes the whole table: 80 columns would cut what `replay` needs.
console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 200)


@app.command("list")
def list_events(
    subscription: Subscription = None,
    judge: Judge = None,
    focus: Focus = None,
    count: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    url: Url = SERVER,
) -> None:
    """The oldest unmatched events, one a line for each judge."""
    given = {**_given(subscription=subscription, judge=judge, focus=focus), "_count": str(count)}
    found = ask(console, "GET", f"{url}/admin/events", given, timeout=60).json()
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("judge", "focus", "reason", "tries", "set aside", "next try"):
        table.add_column(heading, no_wrap=True)
    for row in found["events"]:
        names = ("judge", "focus", "reason", "tries", "created_at", "next_at")
        table.add_row(*(str(row[name]) for name in names))
    console.print(table)
    if "next" in found:
        console.print("There are more: narrow the search, or ask for a larger --count.")


@app.command()
def replay(
    subscription: Subscription = None,
    judge: Judge = None,
    focus: Focus = None,
    all_: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    url: Url = SERVER,
) -> None:
    """Match again what the options select, or --all of it."""
    given = _given(subscription=subscription, judge=judge, focus=focus)
    if all_ is bool(given):
        raise typer.BadParameter("select some by options, or say --all")
    given = given or {"all": "true"}
    done = ask(console, "POST", f"{url}/admin/events/replay", given, timeout=600).json()
    console.print(f"{done['decided']} matched again")
    if done["unmatched"]:
        console.print(f"{done['unmatched']} still unmatched")


def _given(**options: Any) -> dict[str, str]:
    return {name: str(value) for name, value in options.items() if value is not None}
