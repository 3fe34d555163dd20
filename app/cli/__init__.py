"""The command line: one file for each command, and what they share. `main` is the console script's entry.

commands      declares the commands and their options
__main__      runs them as `python -m app.cli`, which child processes do
serve         starts a server from settings: exposure, database, socket, uvicorn
receiver      stands in for a practice's endpoint
clients       registers clients and rotates keys, on the database itself
audit         verifies the audit and lists disclosures, on the database itself
deliveries    shows and resends deliveries of a running server
dead_letters  shows and retries what a running server has given up
unmatched_events  shows and replays the unmatched events of a running server
clock         shows and moves the calendar of a running server
report        prints the timeliness report of a running server
database      opens the database, or asks a server, for the commands above
load/         loads files into a server
demo/         is `carerelay run`
"""

from __future__ import annotations


def main() -> None:
    """Read the arguments and run the command; ends the process with its exit code."""
    from app.cli.commands import main as run

    run()
