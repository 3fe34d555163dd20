"""The command line. Each command reads its options and calls the module that does the work."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from app import __version__
from app.cli import (
    audit,
    clients,
    clock,
    dead_letters,
    deliveries,
    report as report_cli,
    unmatched_events,
)
from app.settings import Settings

Data = Annotated[Path | None, typer.Option(help="Directory for the embedded database.")]
Uri = Annotated[str | None, typer.Option(help="MongoDB replica set to use instead of it.")]
Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; 0 picks a free one.")]

app = typer.Typer(
    name="carerelay",
    help="FHIR R4 server that tells primary-care practices what happens to their patients.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # locals may hold patients' data
)
console = Console(soft_wrap=True, highlight=False)
app.add_typer(deliveries.app, name="deliveries")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(unmatched_events.app, name="events")
app.add_typer(audit.app, name="audit")
app.add_typer(clock.app, name="clock")
app.add_typer(clients.clients, name="clients")
app.add_typer(clients.keys, name="keys")
app.command()(report_cli.report)


def main() -> None:
    """Entry point of the console script."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before the command."""


@app.command()
def serve(
    host: Host = None,
    port: Port = None,
    data: Data = None,
    mongodb_uri: Uri = None,
    workers: Annotated[int | None, typer.Option(help="Number of server processes.")] = None,
    auth: Annotated[
        Literal["off", "smart"] | None,
        typer.Option(help="Authorization; unset means off on loopback and smart elsewhere."),
    ] = None,
) -> None:
    """Serve FHIR. What no option says comes from CARERELAY_* variables, then from the defaults."""
    from app.cli.serve import ServeError, serve as serve_until_stopped
    from app.runtime.embedded_mongod import EmbeddedMongoError

    settings = _settings(
        host=host, port=port, data=data, mongodb_uri=mongodb_uri, workers=workers, auth=auth
    )
    try:
        serve_until_stopped(settings, console.print)
    except (ServeError, EmbeddedMongoError) as error:
        _fail(error)


@app.command()
def load(
    paths: Annotated[list[Path], typer.Argument(help="Files or directories.", metavar="PATH...")],
    url: Annotated[str, typer.Option(help="FHIR base.")] = "http://127.0.0.1:8080/fhir",
    source: Annotated[
        str, typer.Option(help="Name of the files' source, which keeps its ids apart from others'.")
    ] = "",
    at_once: Annotated[int, typer.Option(min=1, help="Bundles that are sent side by side.")] = 4,
) -> None:
    """Load Bundles, NDJSON or single resources: .json or .ndjson, plain, .gz or .bz2.

    A transaction goes as one, and so does a batch; a collection or searchset is unpacked; a message is unpacked and
    kept as well; a document or history is stored as it is. What refers conditionally to others goes after them. A
    load that was interrupted is begun again with the same command: nothing is stored twice.

    What is created never has the id of its source. What comes with an id to be kept (PUT, NDJSON, single resources)
    and would take the place of another source's is refused; with --source it gets an id made of that name.

    What is not R4 but can be put right without a doubt (comments of DSTU2, extensions without their nulls, empty
    values) is, and is listed.

    Ends with counts per type and every refusal with its reason; the exit code is 1 if there was one.
    """
    from app.cli.load.files import LoadError
    from app.cli.load.load import load as load_files
    from app.cli.load.report import FileProgress, show

    try:
        with FileProgress(console, paths) as progress:
            loading = load_files(paths, url, progress.done, source=source, bundles_at_once=at_once)
            report = asyncio.run(loading)
    except LoadError as error:
        _fail(error)
    show(report, console)
    if report.refusals:
        raise typer.Exit(1)


@app.command()
def receiver(
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.")] = 9090,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    status: Annotated[int, typer.Option(min=200, max=599, help="Status to answer with.")] = 200,
    delay: Annotated[float, typer.Option(min=0, help="Seconds to wait before answering.")] = 0,
) -> None:
    """Stand in for a practice's endpoint: take every notification, print one line each.

    GET /received shows them as JSON, with headers and bodies.
    """
    from app.cli.receiver import Receiver, run_receiver
    from app.cli.serve import ServeError, address, bind, stop_on_terminate

    try:
        listener = bind(host, port)
    except ServeError as error:
        _fail(error)
    here = address(host, listener.getsockname()[1])
    console.print(f"Receiver on {here}, what came is at {here}/received")
    stand_in = Receiver(status, delay, lambda came: console.print(escape(came.line())))
    with stop_on_terminate():
        run_receiver(stand_in, listener)


@app.command()
def run(
    once: Annotated[bool, typer.Option("--once", help="Stop after the notices arrived.")] = False,
    host: Host = None,
    port: Port = None,
    data: Annotated[
        Path | None, typer.Option(help="Keep the database here; a temporary directory otherwise.")
    ] = None,
    mongodb_uri: Uri = None,
) -> None:
    """Show it all: a database, a server, example data, one hospital stay and the PCP's notices.

    Then serves until Ctrl-C. With --once the exit code says whether the notices arrived.
    """
    from app.cli.demo.run import DemoError, run as run_demo

    settings = _settings(host=host, port=port, data=data, mongodb_uri=mongodb_uri)
    try:
        run_demo(settings, console, once=once)
    except DemoError as error:
        _fail(error)


def _settings(**options: Any) -> Settings:
    """The settings: an option beats the environment, the environment beats the default."""
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"])
            console.print(f"[red]{name}[/] (CARERELAY_{name.upper()}): {escape(problem['msg'])}")
        raise typer.Exit(2) from None


def _fail(error: Exception) -> NoReturn:
    console.print(f"[red]{escape(str(error))}[/]")
    raise typer.Exit(1) from None
