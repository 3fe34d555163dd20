"""How a load looks on the terminal: a bar while it goes, a table, the mended files and the refusals at its end."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.cli.load.files import find_files
from app.cli.load.outcome import LoadReport


class FileProgress:
    """A bar that counts files; call `done` as each one is."""

    def __init__(self, console: Console, paths: Iterable[Path]) -> None:
        self._progress = Progress(
            TextColumn("[progress.description]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._progress.add_task("Loading", total=len(find_files(paths)))

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def done(self, file: Path) -> None:
        """All of this file has its answer."""
        self._progress.update(self._task, advance=1, description=escape(file.name))


def show(report: LoadReport, console: Console) -> None:
    """Counts per type, then what was put right, then every refusal: file, resource, reason."""
    columns = {
        "created": report.created,
        "updated": report.updated,
        "already there": report.existing,
        "refused": report.refused,
    }
    used = {name: counter for name, counter in columns.items() if counter.total()}
    table = Table("type", title=f"{report.total} resource{'' if report.total == 1 else 's'}")
    for name in used:
        table.add_column(name, justify="right")
    for resource_type in sorted(set().union(*used.values())):
        table.add_row(resource_type, *(str(counter[resource_type]) for counter in used.values()))
    if len(used) > 0:
        table.add_section()
        table.add_row("all", *(str(counter.total()) for counter in used.values()))
    console.print(table)
    for mended in report.mended:
        line = f"{mended.file}: {'; '.join(mended.notes)}"
        console.print(f"[yellow]mended[/] {escape(line)}")
    for refusal in report.refusals:
        line = f"{refusal.file}: {refusal.resource}: {refusal.reason}"
        console.print(f"[red]refused[/] {escape(line)}")
