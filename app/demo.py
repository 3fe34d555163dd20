"""`carerelay run`: everything at once, so that a first look shows what the server is for.

A database, a server in a process of its own, receivers that stand for three primary-care practices, the
example panel, and a story (examples/stay/story.json) of which one practice hears and the others do not.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
from rich.console import Console
from rich.markup import escape

from app.definitions import EXAMPLES
from app.demo_practices import Practice, practice
from app.demo_server import (
    HOST,
    DemoError,
    exists,
    free_port,
    send,
    server,
    wait_until,
    wait_until_ready,
)
from app.demo_story import Story
from app.fhir_json import Resource
from app.load import load
from app.load_outcome import Report
from app.serve import address, stop_on_terminate
from app.settings import Settings

__all__ = ["DemoError", "run"]

PANEL = EXAMPLES / "panel"
# The files that everybody's data refer to, the practices among them; members come after these.
DIRECTORY = "0*.json"
MEMBERS = "[1-9]*.json"
LAST_LOADED = "Group/state-high-risk"
KEPT = "http://carerelay.example/CodeSystem/subscription-origin|endpoint"


def run(settings: Settings, console: Console, *, once: bool) -> None:
    """Play the story; then serve until Ctrl-C unless `once`. Raises DemoError where it fails."""
    with ExitStack() as stack:
        stack.enter_context(stop_on_terminate())
        if "data" in settings.model_fields_set:
            directory = settings.data
        else:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="carerelay-")))
        told, others = stack.enter_context(practice()), stack.enter_context(practice())
        port = free_port(settings.port, console)
        process = stack.enter_context(server(settings, directory, port))
        base = f"{address(HOST, port)}/fhir"
        client = stack.enter_context(httpx.Client(base_url=base, timeout=30))
        wait_until_ready(process, client, directory)
        console.print(f"Database and server are up: [bold]{base}[/]")
        story = Story(client, told, console)
        _prepare(client, story, told, others, settings, console)
        story.play()
        _end(story, told, others, console)
        if not once:
            _keep_serving(process, base, story, told, console)


def _prepare(
    client: httpx.Client,
    story: Story,
    told: Practice,
    others: Practice,
    settings: Settings,
    console: Console,
) -> None:
    """The practices with their endpoints, whom the server subscribes of itself; then the members."""
    addresses = {
        name: f"{(told if name == story.told['practice']['endpoint'] else others).url}/{name[9:]}"
        for name in story.told["careplanCopies"]
    }
    base = str(client.base_url).rstrip("/")
    loaded = exists(client, LAST_LOADED)
    if not loaded:
        _load(base, DIRECTORY, addresses)
    for name, url in addresses.items():
        endpoint = send(client, "GET", name)
        send(client, "PUT", name, {**endpoint, "address": url})
    _wait_until_subscribed(client, addresses, settings)
    console.print(
        f"{len(addresses)} practices have an endpoint, so the server subscribes them itself: "
        f"{', '.join(addresses.values())}"
    )
    if loaded:
        console.print("The members are here from last time.")
        return
    report = _load(base, MEMBERS, {})
    members = report.created["Patient"] + report.updated["Patient"]
    console.print(f"Loaded {members} invented members and all about them: {report.total} resources")
    copies = story.told["careplanCopies"]
    for at in (told, others):
        count = sum(number for name, number in copies.items() if addresses[name].startswith(at.url))
        at.next([("careplan-change", "created")] * count)
    console.print(
        f"  [green]<-[/] {sum(copies.values())} copies of first care plans, each to its member's practice"
    )


def _load(base: str, pattern: str, addresses: Mapping[str, str]) -> Report:
    """Load files of the panel with these Endpoint addresses. Raises DemoError for a refusal."""
    with tempfile.TemporaryDirectory(prefix="carerelay-panel-") as directory:
        for path in sorted(PANEL.glob(pattern)):
            bundle = json.loads(path.read_text("utf-8"))
            for entry in bundle["entry"]:
                _readdress(entry["resource"], addresses)
            (Path(directory) / path.name).write_text(json.dumps(bundle), encoding="utf-8")
        report: Report = asyncio.run(load([Path(directory)], base, lambda _: None))
    for refusal in report.refusals:
        raise DemoError(f"The server refused {refusal.resource}: {refusal.reason}")
    return report


def _readdress(resource: Resource, addresses: Mapping[str, str]) -> None:
    here = addresses.get(f"{resource['resourceType']}/{resource['id']}")
    if here is not None:
        resource["address"] = here


def _wait_until_subscribed(
    client: httpx.Client, addresses: Mapping[str, str], settings: Settings
) -> None:
    """Each role that is reached by one of the endpoints has an active Subscription for each topic."""

    def count(resource_type: str, **query: str) -> int:
        query_string = str(httpx.QueryParams({**query, "_summary": "count"}))
        return int(send(client, "GET", f"{resource_type}?{query_string}")["total"])

    roles = count("PractitionerRole", endpoint=",".join(addresses))
    expected = roles * len(settings.endpoint_topics.split(","))
    urls = ",".join(addresses.values())
    wait_until(
        f"{expected} Subscriptions for the practices' endpoints",
        lambda: count("Subscription", _tag=KEPT, status="active", url=urls) == expected,
    )


def _end(story: Story, told: Practice, others: Practice, console: Console) -> None:
    """Everybody has got what is theirs, and nobody anything else. Raises DemoError where not."""
    story.settle()
    told.expect_nothing_more()
    others.expect_nothing_more()
    console.print(
        f"\n{story.arrived} notices arrived, {story.withheld} was withheld; "
        "the two other practices received none of them."
    )


def _keep_serving(
    process: subprocess.Popen[bytes], base: str, story: Story, told: Practice, console: Console
) -> None:
    plan = story.told["carePlanChange"]["carePlan"]
    with suppress(KeyboardInterrupt):
        console.print(
            f"\nTry     curl '{base}/Encounter?patient={story.told['patient']}'\n"
            f"        curl {base}/{story.stay}/_history\n"
            f"        curl '{escape(base)}/{plan}/$summary'\n"
            f"        curl '{base.removesuffix('/fhir')}/admin/deliveries?state=suppressed'\n"
            f"        curl {told.url}/received\n"
            "Ctrl-C stops everything."
        )
        process.wait()
        raise DemoError("The server ended by itself.")
