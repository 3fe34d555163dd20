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
    from collections.abc import Sequence

    from app.audit.kept_head import Head
    from app.audit.verification import VerificationReport
    from app.runtime.mongo import Mongo
    from app.runtime.secrets import Secrets

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
    head: Annotated[
        list[Path] | None,
        typer.Option(
            help="A file that another machine's server keeps; may be given several times."
        ),
    ] = None,
    data: Data = None,
    mongodb_uri: Uri = None,
) -> None:
    """Follow every chain and say where one is broken; the exit code is 1 if any is.

    What this machine's server keeps outside of the database shows that nothing was cut off. Without that file give
    a hash that was printed or logged as --expect, or another machine's file as --head.
    """

    async def work(mongo: Mongo, settings: Settings) -> VerificationReport:
        from app.audit.verification import verify as verify_all
        from app.runtime import secrets

        known = secrets.of_settings(settings)
        kept, faults = _heads(settings, known, head or [], expect)
        report = await verify_all(mongo, known, since=_utc(since), expect=expect, kept=kept)
        for fault in faults:
            report.add(fault)
        for place, found in kept.items():
            console.print(f"{escape(place)} has row {found.number} of {found.at}")
        return report

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


def _heads(
    settings: Settings, known: Secrets, others: Sequence[Path], expect: str | None
) -> tuple[dict[str, Head], list[str]]:
    """What is kept outside of the database, by file, and what is wrong with these files."""
    from app.audit.kept_head import KeptHead, KeptHeadError, place

    kept: dict[str, Head] = {}
    faults: list[str] = []
    own = place(settings)
    for path in (own, *others):
        try:
            found = KeptHead(path, known).read()
        except KeptHeadError as error:
            faults.append(str(error))
            continue
        if found is not None:
            kept[str(path)] = found
        elif path != own or not (others or expect):
            faults.append(
                f"{path} is not there, so nobody can tell whether the end was cut off: it was lost, or the server "
                "runs elsewhere. Give the file of another machine with --head, or a hash that was noted with --expect"
            )
    return kept, faults


@app.command()
def accept(
    reason: Annotated[str, typer.Option(help="Why the database is behind what was kept.")],
    data: Data = None,
    mongodb_uri: Uri = None,
) -> None:
    """Go on from the database as it is, after a backup was restored or a key was lost.

    What was kept stays beside the new file, and the record says who accepted it and why.
    """

    async def work(mongo: Mongo, settings: Settings) -> None:
        from app.audit import log
        from app.audit.chain_registry import ChainRegistry
        from app.audit.kept_head import Head, KeptHead, place
        from app.runtime import secrets

        known = secrets.of_settings(settings)
        newest = await ChainRegistry(mongo, known, "command-line").newest()
        if newest is None:
            console.print("This database has no audit.")
            raise typer.Exit(1)
        aside = KeptHead(place(settings), known).begin_anew(
            Head.of(newest), f"{mongo.now():%Y%m%dT%H%M%S}"
        )
        await log.note(mongo, settings, f"audit accept --reason {reason}")
        if aside is not None:
            console.print(f"What was kept is now {aside}")
        console.print(f"goes on from row {newest['_id']}")

    with_database(data, mongodb_uri, work)


@app.command()
def disclosures(
    patient: Annotated[str, typer.Option(help="The patient, as Patient/p1.")],
    since: Since = None,
    part_2: Annotated[
        bool, typer.Option("--part-2", help="Only content of 42 CFR Part 2, by which Consent.")
    ] = False,
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
        found = accounting.disclosures(mongo, id_, _utc(since), part_2=part_2)
        return [line async for line in found]

    found = with_database(data, mongodb_uri, work)
    if format_ == "json":
        print(json.dumps(found, indent=2))  # noqa: T201 - goes into pipes as it is
        return
    lines = csv.DictWriter(sys.stdout, accounting.COLUMNS)
    lines.writeheader()
    lines.writerows(found)


def _utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment
