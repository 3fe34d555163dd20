"""`carerelay report`: how many admissions and discharges practices knew of in time, from a running server."""

from __future__ import annotations

import csv
import io
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.cli.database import SERVER, ask

console = Console(soft_wrap=True, highlight=False)


def report(
    start: Annotated[str, typer.Argument(help="First day, as 2026-01-01, or month, as 2026-01.")],
    end: Annotated[str, typer.Argument(help="Last day or month.")],
    practice: Annotated[
        str | None, typer.Option(help="Of this practice alone, as Organization/o1.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="All numbers as CSV.")] = False,
    url: Annotated[str, typer.Option(help="Address of the server.")] = SERVER,
) -> None:
    """Notices received on the day or within 2 calendar days, by practice, hospital and month."""
    query = {"periodStart": start, "periodEnd": end}
    if practice is not None:
        query["organization"] = practice
    text = _ask(f"{url}/admin/reports/notices.csv", query)
    if as_csv:
        typer.echo(text, nl=False)
        return
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("event", "of", "stays", "in time", "late", "share"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        of = [row["practice_name"] or row["practice"], row["hospital_name"] or row["hospital"]]
        named = [each for each in (*of, row["month"]) if each]
        if len(named) <= 1:
            counts = (row["denominator"], row["numerator"], row["late"], row["share"])
            table.add_row(row["event"], escape(named[0] if named else "all"), *counts)
    console.print(table)


def _ask(url: str, query: dict[str, str]) -> str:
    return ask(console, "GET", url, query, timeout=600).text
