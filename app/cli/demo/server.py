"""The server of `carerelay run`: a child process, and requests to it that are expected to succeed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from app.cli.serve import ServeError, bind
from app.fhir.json import Resource
from app.runtime import child_process
from app.settings import Settings

HOST = "127.0.0.1"
START_SECONDS = 120.0
STOP_SECONDS = 40.0
PATIENCE_SECONDS = 40.0
# What lets a practice's Endpoint be enough to be told, and a change of a care plan be told at once.
OPERATOR = {
    "CARERELAY_AUTH": "off",
    "CARERELAY_ENDPOINT_SUBSCRIPTIONS": "true",
    "CARERELAY_ENDPOINT_CONTENT": "full-resource",
    "CARERELAY_PLAN_QUIET_PERIOD": "0",
}


class DemoError(Exception):
    """The demonstration failed; the text says at which point."""


def free_port(wanted: int, console: Console) -> int:
    try:
        with bind(HOST, wanted) as probe:
            return int(probe.getsockname()[1])
    except ServeError:
        with bind(HOST, 0) as probe:
            port = int(probe.getsockname()[1])
    console.print(f"[yellow]Port {wanted} is in use, so this takes port {port}.[/]")
    return port


def _for_its_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextmanager
def server(
    settings: Settings, directory: Path, port: int, more: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """`carerelay serve` as a child process; what it prints goes to `directory`/server.log.

    `more` are variables of its environment.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "app.cli", "serve", "--host", HOST]
    command += ["--port", str(port), "--data", str(directory)]
    if settings.mongodb_uri:
        command += ["--mongodb-uri", settings.mongodb_uri]
    with open(directory / "server.log", "wb", opener=_for_its_owner) as log:
        process = child_process.spawn(command, output=log, env={**os.environ, **OPERATOR, **more})
    try:
        yield process
    finally:
        child_process.end(process, STOP_SECONDS)


def wait_until_ready(
    process: subprocess.Popen[bytes], client: httpx.Client, directory: Path
) -> None:
    """Raises DemoError, with what the server said, where it does not start."""
    give_up = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        with suppress(httpx.TransportError):
            if client.get(str(client.base_url.join("/readyz"))).status_code == 200:
                return
        time.sleep(0.05)
    said = (directory / "server.log").read_text(errors="replace").strip()
    raise DemoError(f"The server did not start:\n{said}")


def send(
    client: httpx.Client, method: str, url: str, body: Resource | None = None
) -> dict[str, Any]:
    """The answer's body. Raises DemoError where it is no success."""
    response = client.request(method, url, json=body)
    if not response.is_success:
        raise DemoError(f"{method} {url}: {response.status_code} {response.text}")
    answer: dict[str, Any] = response.json()
    return answer


def exists(client: httpx.Client, reference: str) -> bool:
    return client.get(reference).status_code == 200


def deliveries(client: httpx.Client, **query: str) -> list[dict[str, Any]]:
    """Rows of the ledger, the newest first."""
    url = str(httpx.URL(str(client.base_url.join("/admin/deliveries")), params=query))
    rows: list[dict[str, Any]] = send(client, "GET", url)["deliveries"]
    return rows


def wait_until(what: str, reached: Callable[[], bool]) -> None:
    """Ask until it is so. Raises DemoError where it does not come to be in time."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not reached():
        if time.monotonic() > give_up:
            raise DemoError(f"{what}: not within {PATIENCE_SECONDS:.0f} s.")
        time.sleep(0.05)
