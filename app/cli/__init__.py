"""The command line: one file for each command, and what they share. `main` is the console script's entry."""

from __future__ import annotations


def main() -> None:
    """Read the arguments and run the command; ends the process with its exit code."""
    from app.cli.commands import main as run

    run()
