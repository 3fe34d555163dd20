"""`carerelay deliveries`: the ledger of a running server, through its admin API."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from app.cli.database import SERVER, ask

Url = Annotated[str, typer.Option(help="Address of the server.")]
Subscription = Annotated[str | None, typer.Option(help="Id of a Subscription.")]
State = Annotated[
    str | None,
    typer.Option(help="queued, sending, delivered, retrying, suppressed or dead."),
]
Since = Annotated[str | None, typer.Option(help="Not before this date or instant.")]
Until = Annotated[str | None, typer.Option(help="Not after this date or instant.")]
Focus = Annotated[str | None, typer.Option(help="What the notice is about, as Encounter/e1.")]

_COLOURS = {"delivered": "green", "dead": "red", "suppressed": "yellow"}

app = typer.Typer(help="What was sent to whom, and sending it again.", no_args_is_help=True)
# Into a pipe goes the whole table: 80 columns would cut the ids that `show` and `resend` need.
console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 200)


@app.command("list")
def list_deliveries(
    subscription: Subscription = None,
    state: State = None,
    since: Since = None,
    until: Until = None,
    focus: Focus = None,
    count: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    url: Url = SERVER,
) -> None:
    """The newest deliveries, one a line."""
    given = _given(subscription=subscription, state=state, since=since, until=until, focus=focus)
    found = _ask("GET", f"{url}/admin/deliveries", {**given, "_count": str(count)})
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("id", "subscription", "number", "state", "focus", "created", "attempts"):
        table.add_column(heading, no_wrap=True)
    for row in found["deliveries"]:
        colour = _COLOURS.get(row["state"], "default")
        table.add_row(
            row["id"],
            row["subscription"],
            str(row.get("number", "")),
            f"[{colour}]{row['state']}[/]",
            row["focus"],
            row["created_at"],
            str(len(row["attempts"])),
        )
    console.print(table)
    if "next" in found:
        console.print("There are more: narrow the search, or ask for a larger --count.")


@app.command()
def show(delivery: Annotated[str, typer.Argument(help="Its id.")], url: Url = SERVER) -> None:
    """One delivery with all its attempts, as JSON."""
    console.print_json(data=_ask("GET", f"{url}/admin/deliveries/{delivery}"))


@app.command()
def resend(
    delivery: Annotated[str | None, typer.Argument(help="The id of one.")] = None,
    subscription: Subscription = None,
    state: State = None,
    since: Since = None,
    until: Until = None,
    focus: Focus = None,
    first: Annotated[int | None, typer.Option(help="From this number of the Subscription.")] = None,
    last: Annotated[int | None, typer.Option(help="To this number of the Subscription.")] = None,
    url: Url = SERVER,
) -> None:
    """Send one again, or all that the options select: `resend --state dead` sends all that failed."""
    numbers = {"first": first, "last": last}
    given = _given(
        subscription=subscription, state=state, since=since, until=until, focus=focus, **numbers
    )
    if (delivery is None) is not bool(given):
        raise typer.BadParameter("name one delivery, or select some by options")
    place = f"{url}/admin/deliveries" + (f"/{delivery}/resend" if delivery else "/resend")
    done = _ask("POST", place, given)
    console.print(f"{done['resent']} sent again")
    if done["skipped"]:
        console.print(f"{done['skipped']} left alone: their Subscriptions are not active")


def _given(**options: Any) -> dict[str, str]:
    return {name: str(value) for name, value in options.items() if value is not None}


def _ask(method: str, url: str, parameters: Mapping[str, str] | None = None) -> Any:
    return ask(console, method, url, parameters, timeout=60).json()
