"""`python -m benchmarks [NAME...]`: how the server fares against a bare baseline; writes build/bench.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from app.embedded import EmbeddedMongoError
from benchmarks.comparison import BENCHMARKS, Figures, measure
from benchmarks.processes import BenchmarkError

OUTPUT = Path("build/bench.json")

console = Console(highlight=False, soft_wrap=True)


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Some of {', '.join(BENCHMARKS)}; all by default.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds per run, warm-up included.")] = 6,
    runs: Annotated[int, typer.Option(min=1, help="Pairs of runs per benchmark.")] = 3,
    output: Annotated[Path, typer.Option(help="File for the figures.")] = OUTPUT,
) -> None:
    """Run the server and a bare baseline on one database in turn and compare their throughput."""
    unknown = sorted(set(names or ()) - set(BENCHMARKS))
    if unknown:
        raise typer.BadParameter(f"no benchmark is called {', '.join(unknown)}")
    try:
        with console.status("starting") as status:
            figures = measure(
                names or list(BENCHMARKS), seconds=seconds, runs=runs, say=status.update
            )
    except (BenchmarkError, EmbeddedMongoError) as error:
        console.print(f"[red]{error}[/]")
        raise typer.Exit(1) from None
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(figures, indent=2) + "\n")
    console.print(_table(figures))
    console.print(f"Figures are in {output}")


def _table(figures: dict[str, Figures]) -> Table:
    table = Table(title="Server : bare baseline, medians", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("", "unit", "server", "baseline", "ratio", "bar", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, each in figures.items():
        colour = "green" if each["ratio"] >= each["bar"] else "red"
        table.add_row(
            name,
            BENCHMARKS[name].unit,
            f"{each['ours']:,.0f}",
            f"{each['baseline']:,.0f}",
            f"[{colour}]{each['ratio']:.2f}[/]",
            f"{each['bar']:.2f}",
            f"{each['ours_p50_ms']:.0f} : {each['baseline_p50_ms']:.0f}",
            f"{each['ours_p99_ms']:.0f} : {each['baseline_p99_ms']:.0f}",
        )
    return table


if __name__ == "__main__":
    typer.run(main)
