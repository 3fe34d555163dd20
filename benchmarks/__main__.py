"""`python -m benchmarks [NAME...]`: how the server fares against a bare baseline; writes build/bench.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from app.runtime.embedded_mongod import EmbeddedMongoError
from benchmarks import (
    authorized,
    growth,
    large_bodies,
    loading,
    matching,
    notices,
    routing,
    validating,
    waiting,
    workbench,
)
from benchmarks.comparison import BENCHMARKS, Figures, measure
from benchmarks.processes import BenchmarkError

OUTPUT = Path("build/bench.json")

MATCHING, GROWTH, ROUTING = "match100k", "growth", "routing"
NAMES = (
    *BENCHMARKS,
    authorized.NAME,
    *notices.NAMES,
    MATCHING,
    ROUTING,
    validating.NAME,
    waiting.NAME,
    large_bodies.NAME,
    loading.NAME,
    workbench.NAME,
    GROWTH,
)

console = Console(highlight=False, soft_wrap=True)


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Some of {', '.join(NAMES)}; all by default.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds per run, warm-up included.")] = 6,
    runs: Annotated[int, typer.Option(min=1, help="Pairs of runs per benchmark.")] = 3,
    scale: Annotated[int, typer.Option(min=2, help="How much larger in growth.")] = growth.SCALE,
    output: Annotated[Path, typer.Option(help="File for the figures.")] = OUTPUT,
) -> None:
    """Run the server and a bare baseline on one database in turn and compare their throughput."""
    unknown = sorted(set(names or ()) - set(NAMES))
    if unknown:
        raise typer.BadParameter(f"no benchmark is called {', '.join(unknown)}")
    try:
        with console.status("starting") as status:
            compared = [name for name in names or NAMES if name in BENCHMARKS]
            figures = {}
            if compared:
                figures = measure(compared, seconds=seconds, runs=runs, say=status.update)
            others: dict[str, dict[str, Any]] = {}
            if authorized.NAME in (names or NAMES):
                others[authorized.NAME] = authorized.measure(
                    status.update, seconds=seconds, runs=runs
                )
            told = [name for name in names or NAMES if name in notices.NAMES]
            if told:
                others |= notices.measure_all(told, seconds=seconds, say=status.update)
            if MATCHING in (names or NAMES):
                status.update(MATCHING)
                others[MATCHING] = matching.measure()
            if ROUTING in (names or NAMES):
                others[ROUTING] = routing.measure(status.update, seconds=seconds)
            if validating.NAME in (names or NAMES):
                status.update(validating.NAME)
                others[validating.NAME] = validating.measure()
            if waiting.NAME in (names or NAMES):
                others[waiting.NAME] = waiting.measure(status.update)
            if large_bodies.NAME in (names or NAMES):
                others[large_bodies.NAME] = large_bodies.measure(status.update, seconds=seconds * 3)
            if loading.NAME in (names or NAMES):
                others[loading.NAME] = loading.measure(status.update, runs=runs)
            if workbench.NAME in (names or NAMES):
                others[workbench.NAME] = workbench.measure(status.update)
            if GROWTH in (names or NAMES):
                others[GROWTH] = growth.measure(status.update, scale=scale)
    except (BenchmarkError, EmbeddedMongoError) as error:
        console.print(f"[red]{error}[/]")
        raise typer.Exit(1) from None
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({**figures, **others}, indent=2) + "\n")
    if figures:
        console.print(_table(figures))
    for name, each in others.items():
        console.print(_lines(name, each))
        if "questions" in each:
            console.print(_questions(each["questions"]))
    console.print(f"Figures are in {output}")


def _questions(questions: dict[str, Figures]) -> Table:
    """What each question of `growth` cost in the small and in the large population."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("", "p50 ms", "ratio", "p99 ms", "of its bar"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for title, each in questions.items():
        table.add_row(
            title,
            f"{each['small_p50_ms']:.1f} : {each['large_p50_ms']:.1f}",
            f"{each['median_ratio']:.2f}",
            f"{each['small_p99_ms']:.1f} : {each['large_p99_ms']:.1f}",
            f"{each['p99_of_bar']:.2f}",
        )
    return table


def _lines(name: str, figures: dict[str, Any]) -> Table:
    """Figures that have bars of their own, none of which may be passed."""
    table = Table(title=name, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("", "figure", "bar"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for key in (key for key in figures if f"{key}_bar" in figures):
        value, bar = figures[key], figures[f"{key}_bar"]
        table.add_row(key, f"[{'green' if value <= bar else 'red'}]{value:,.2f}[/]", f"{bar:,.2f}")
    return table


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
