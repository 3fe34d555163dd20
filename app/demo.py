"""`carerelay run`: everything at once, so that a first look shows what the server is for.

A database, a server in a process of its own, a receiver that stands for a primary-care practice, the
example panel, and one hospital stay (examples/stay/story.json) whose notices the practice receives.
"""

from __future__ import annotations

import asyncio
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape

from app import child
from app.definitions import EXAMPLES
from app.fhir_json import Resource
from app.load import Report, load
from app.receiver import Received, Receiver, receiver_server
from app.serve import ServeError, address, bind, stop_on_terminate
from app.settings import Settings

HOST = "127.0.0.1"
START_SECONDS = 120.0
STOP_SECONDS = 40.0
NOTICE_SECONDS = 10.0
BACKPORT = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/"
# Which notice of ours stands for a topic of the story.
KIND_OF_TOPIC = {"encounter-admission": "event-notification", "encounter-discharge": "Encounter"}


class DemoError(Exception):
    """The demonstration failed; the text says at which point."""


@dataclass(slots=True)
class Practice:
    """The stand-in for the PCP's endpoint, and what has come in since the last look."""

    url: str
    notices: queue.SimpleQueue[Received]

    def wait_for(self, kind: str) -> Received:
        """The next notice of that kind. Raises DemoError where it does not come in time."""
        give_up = time.monotonic() + NOTICE_SECONDS
        while True:
            try:
                came = self.notices.get(timeout=max(0.0, give_up - time.monotonic()))
            except queue.Empty:
                raise DemoError(f"No {kind} arrived within {NOTICE_SECONDS:.0f} s.") from None
            if came.kind == kind:
                return came


def run(settings: Settings, console: Console, *, once: bool) -> None:
    """Play the story; then serve until Ctrl-C unless `once`. Raises DemoError where it fails."""
    story = json.loads((EXAMPLES / "stay" / "story.json").read_text())
    with ExitStack() as stack:
        stack.enter_context(stop_on_terminate())
        if "data" in settings.model_fields_set:
            directory = settings.data
        else:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="carerelay-")))
        practice = stack.enter_context(_practice())
        port = _free_port(settings.port, console)
        server = stack.enter_context(_server(settings, directory, port))
        base = f"{address(HOST, port)}/fhir"
        client = stack.enter_context(httpx.Client(base_url=base, timeout=30))
        _wait_until_ready(server, client, directory)
        console.print(f"Database and server are up: [bold]{base}[/]")
        _load_panel(base, console)
        _subscribe(client, story, practice, settings, console)
        _play(client, story, practice, console)
        if not once:
            _keep_serving(server, base, story, practice, console)


@contextmanager
def _practice() -> Iterator[Practice]:
    """A receiver on a free port, in a thread of this process."""
    notices: queue.SimpleQueue[Received] = queue.SimpleQueue()
    with bind(HOST, 0) as listener:
        server = receiver_server(Receiver(on_receipt=notices.put))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        yield Practice(address(HOST, listener.getsockname()[1]), notices)
        server.should_exit = True
        thread.join(STOP_SECONDS)


def _free_port(wanted: int, console: Console) -> int:
    try:
        with bind(HOST, wanted) as probe:
            return int(probe.getsockname()[1])
    except ServeError:
        with bind(HOST, 0) as probe:
            port = int(probe.getsockname()[1])
    console.print(f"[yellow]Port {wanted} is in use, so this takes port {port}.[/]")
    return port


@contextmanager
def _server(settings: Settings, directory: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`carerelay serve` as a child process; what it prints goes to `directory`/server.log."""
    directory.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "app.cli", "serve", "--host", HOST]
    command += ["--port", str(port), "--data", str(directory)]
    if settings.mongodb_uri:
        command += ["--mongodb-uri", settings.mongodb_uri]
    with (directory / "server.log").open("wb") as log:
        server = child.spawn(command, output=log)
    try:
        yield server
    finally:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_until_ready(
    server: subprocess.Popen[bytes], client: httpx.Client, directory: Path
) -> None:
    give_up = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < give_up:
        with suppress(httpx.TransportError):
            if client.get(str(client.base_url.join("/readyz"))).status_code == 200:
                return
        time.sleep(0.05)
    said = (directory / "server.log").read_text(errors="replace").strip()
    raise DemoError(f"The server did not start:\n{said}")


def _load_panel(base: str, console: Console) -> None:
    report: Report = asyncio.run(load([EXAMPLES / "panel"], base, lambda _: None))
    for refusal in report.refusals:
        console.print(f"[red]refused[/] {escape(f'{refusal.resource}: {refusal.reason}')}")
    if report.refusals:
        raise DemoError("The server refused some of the example data.")
    members = report.created["Patient"] + report.updated["Patient"]
    console.print(f"Loaded {members} invented members and all about them: {report.total} resources")


def _subscribe(
    client: httpx.Client,
    story: dict[str, Any],
    practice: Practice,
    settings: Settings,
    console: Console,
) -> None:
    """The practice asks for admissions (by topic) and for the discharge (the classic way)."""
    name = _send(client, "GET", story["practice"]["organization"])["name"]
    console.print(f"{escape(name)} subscribes; its endpoint is {practice.url}")
    patient = story["patient"]
    for subscription in (
        admission_subscription(settings.topic_base, patient, f"{practice.url}/notices"),
        discharge_subscription(patient, f"{practice.url}/stays"),
    ):
        reference = f"Subscription/{subscription['id']}"
        _send(client, "PUT", reference, subscription)
        _wait_until_active(client, reference)
    came = practice.wait_for("handshake")
    console.print(f"  [green]<-[/] {escape(came.line())}")


def admission_subscription(topic_base: str, patient: str, endpoint: str) -> Resource:
    """A topic-based Subscription as the R4 Backport guide has it, with the whole resource."""
    return {
        "resourceType": "Subscription",
        "id": "run-admissions",
        "meta": {"profile": [f"{BACKPORT}backport-subscription"]},
        "status": "requested",
        "reason": "Admissions of a patient of the practice",
        "criteria": f"{topic_base.rstrip('/')}/encounter-admission",
        "_criteria": {
            "extension": [
                {
                    "url": f"{BACKPORT}backport-filter-criteria",
                    "valueString": f"Encounter?patient={patient}",
                }
            ]
        },
        "channel": {
            "type": "rest-hook",
            "endpoint": endpoint,
            "payload": "application/fhir+json",
            "_payload": {
                "extension": [
                    {"url": f"{BACKPORT}backport-payload-content", "valueCode": "full-resource"}
                ]
            },
        },
    }


def discharge_subscription(patient: str, endpoint: str) -> Resource:
    """A classic R4 Subscription; the resource is PUT to the endpoint."""
    return {
        "resourceType": "Subscription",
        "id": "run-discharges",
        "status": "requested",
        "reason": "Finished stays of a patient of the practice",
        "criteria": f"Encounter?status=finished&patient={patient}",
        "channel": {
            "type": "rest-hook",
            "endpoint": endpoint,
            "payload": "application/fhir+json",
        },
    }


def _wait_until_active(client: httpx.Client, reference: str) -> None:
    give_up = time.monotonic() + NOTICE_SECONDS
    while True:
        subscription = _send(client, "GET", reference)
        if subscription["status"] == "active":
            return
        if subscription["status"] != "requested" or time.monotonic() > give_up:
            raise DemoError(f"{reference} is not active: {subscription.get('error', 'no answer')}")
        time.sleep(0.02)


def _play(
    client: httpx.Client, story: dict[str, Any], practice: Practice, console: Console
) -> None:
    """PUT each version of the Encounter and show the notices that it is to bring."""
    console.print(f"\n[bold]{escape(story['title'])}[/]")
    arrived = 0
    for step in story["steps"]:
        encounter = json.loads((EXAMPLES / "stay" / step["file"]).read_text())
        when = datetime.fromisoformat(step["at"]).strftime("%d %b %H:%M")
        console.print(f"{when}  [bold]{step['title']}[/]. {escape(step['what'])}")
        _send(client, "PUT", story["encounter"], encounter)
        for fired in step["fires"]:
            if fired["topic"] in KIND_OF_TOPIC:
                came = practice.wait_for(KIND_OF_TOPIC[fired["topic"]])
                arrived += 1
                console.print(
                    f"  [green]<-[/] {escape(came.line())}: "
                    f"{fired['topic'].replace('-', ' ')}, "
                    f"[bold]{milliseconds_after_commit(came):.0f} ms[/] after the commit"
                )
    console.print(f"\n{arrived} notices arrived.")


def milliseconds_after_commit(came: Received) -> float:
    """From the version's lastUpdated, which is set as it is committed, to the receipt."""
    resource = came.resource or {}
    if resource.get("resourceType") == "Bundle":
        # Beside its focus a notification may carry others, such as the patient.
        [resource] = [
            entry["resource"] for entry in resource["entry"] if entry["fullUrl"] == came.focus
        ]
    committed = datetime.fromisoformat(resource["meta"]["lastUpdated"])
    return (came.received_at - committed).total_seconds() * 1000


def _send(
    client: httpx.Client, method: str, url: str, body: Resource | None = None
) -> dict[str, Any]:
    response = client.request(method, url, json=body)
    if not response.is_success:
        raise DemoError(f"{method} {url}: {response.status_code} {response.text}")
    answer: dict[str, Any] = response.json()
    return answer


def _keep_serving(
    server: subprocess.Popen[bytes],
    base: str,
    story: dict[str, Any],
    practice: Practice,
    console: Console,
) -> None:
    with suppress(KeyboardInterrupt):
        console.print(
            f"\nTry     curl '{base}/Encounter?patient={story['patient']}'\n"
            f"        curl {base}/{story['encounter']}/_history\n"
            f"        curl {practice.url}/received\n"
            "Ctrl-C stops everything."
        )
        server.wait()
        raise DemoError("The server ended by itself.")
