"""`carerelay audit`: whether the audit is as it was written, and whom a patient's data went to.

Both work on the database itself, whether a server is running or not.
"""

from __future__ import annotations

import csv
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from app.cli.clients import with_database
from app.settings import Settings

if TYPE_CHECKING:
    from app.audit.verification import VerificationReport
    from app.runtime.mongo import Mongo

Data = Annotated[Path | None, typer.Option(help="Directory of the embedded database.")]
Uri = Annotated[str | None, typer.Option(help="MongoDB replica set to use instead of it.")]
Since = Annotated[datetime | None, typer.Option(help="Not before this date (UTC).")]

app = typer.Typer(
    help="Who did and saw what, and that nobody changed the record.", no_args_is_help=True
)
console = Console(soft_wrap=True, highlight=False)


@app.command()
def verify(
    since: Since = None,
    expect: Annotated[
        str | None, typer.Option(help="A hash that this command printed before; it must be there.")
    ] = None,
    data: Data = None,
    mongodb_uri: Uri = None,
) -> None:
    """Follow every chain and say where one is broken; the exit code is 1 if any is.

    Keep the hash that it prints somewhere else: given as --expect, it shows that nothing was cut off.
    """

    async def work(mongo: Mongo, settings: Settings) -> VerificationReport:
        from app.audit.verification import verify as verify_all
        from app.runtime import secrets

        known = secrets.of_settings(settings)
        return await verify_all(mongo, known, since=_utc(since), expect=expect)

    report = with_database(data, mongodb_uri, work)
    for finding in report.findings:
        console.print(f"[red]{escape(finding)}[/]")
    if report.more:
        console.print(f"[red]and {report.more} more[/]")
    console.print(
        f"{report.entries} entries in {report.rows} rows of {report.chains} chains, "
        f"{report.unanchored} rows not anchored yet, {report.retired} chains past their time"
    )
    console.print(f"hash {report.head}")
    if report.findings:
        raise typer.Exit(1)
    console.print("[green]as it was written[/]")


@app.command()
def disclosures(
    patient: Annotated[str, typer.Option(help="The patient, as Patient/p1.")],
    since: Since = None,
    format_: Annotated[
        Literal["csv", "json"], typer.Option("--format", help="csv or json.")
    ] = "csv",
    data: Data = None,
    mongodb_uri: Uri = None,
) -> None:
    """Every time a patient's data were shown or sent, to whom and why it was asked, the oldest first."""
    from app.audit import accounting

    async def work(mongo: Mongo, settings: Settings) -> list[dict[str, str]]:
        id_ = patient.removeprefix("Patient/")
        return [line async for line in accounting.disclosures(mongo, id_, _utc(since))]

    found = with_database(data, mongodb_uri, work)
    if format_ == "json":
        print(json.dumps(found, indent=2))  # noqa: T201 - goes into pipes as it is
        return
    lines = csv.DictWriter(sys.stdout, accounting.COLUMNS)
    lines.writeheader()
    lines.writerows(found)


def _utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment
