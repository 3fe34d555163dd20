"""`carerelay run`: everything at once, so that a first look shows what the server is for.

A database, a server in a process of its own, receivers that stand for three primary-care practices, the
example panel, and a story (examples/stay/story.json) of which one practice hears and the others do not.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography.fernet import Fernet
from rich.console import Console

from app.cli.demo.practices import Practice, practice
from app.cli.demo.server import (
    HOST,
    DemoError,
    exists,
    free_port,
    send,
    server,
    wait_until,
    wait_until_ready,
)
from app.cli.demo.story import Story
from app.cli.serve import address, stop_on_terminate
from app.fhir.definitions import EXAMPLES
from app.fhir.json import Resource
from app.settings import Settings

__all__ = ["DemoError", "run"]

PANEL = EXAMPLES / "panel"
# The files that everybody's data refer to, the practices among them; members come after these.
DIRECTORY = "0*.json"
MEMBERS = "[1-9]*.json"
LAST_LOADED = "Group/state-high-risk"
# Seconds between two looks whether the server has ended.
_LOOK_EVERY = 0.1
KEPT = "http://carerelay.example/CodeSystem/subscription-origin|endpoint"


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that takes part."""

    client: httpx.Client
    story: Story
    told: Practice
    others: Practice
    settings: Settings
    console: Console

    def behind(self, endpoint: str) -> Practice:
        """Who receives what goes to an Endpoint."""
        return self.told if endpoint == self.story.told["practice"]["endpoint"] else self.others


def run(settings: Settings, console: Console, *, once: bool) -> None:
    """Play the story; then serve until Ctrl-C unless `once`. Raises DemoError where it fails."""
    with ExitStack() as stack:
        stack.enter_context(stop_on_terminate())
        more: dict[str, str] = {}
        if "data" in settings.model_fields_set:
            directory = settings.data
        else:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="carerelay-")))
            more["CARERELAY_SECRET_KEY_FILE"] = str(_throwaway_key(directory))
        told, others = stack.enter_context(practice()), stack.enter_context(practice())
        port = free_port(settings.port, console)
        process = stack.enter_context(server(settings, directory, port, more))
        base = f"{address(HOST, port)}/fhir"
        client = stack.enter_context(httpx.Client(base_url=base, timeout=30))
        wait_until_ready(process, client, directory)
        console.print(f"Database and server are up: [bold]{base}[/]")
        story = Story(client, told, console)
        stage = Stage(client, story, told, others, settings, console)
        _prepare(stage)
        story.play()
        _end(stage)
        if not once:
            _keep_serving(process, base, stage)


def _throwaway_key(directory: Path) -> Path:
    """A key for data that go with the demonstration: the user's own servers have another."""
    file = directory / "demonstration.key"
    file.write_bytes(Fernet.generate_key())
    return file


def _prepare(stage: Stage) -> None:
    """The practices with their endpoints, whom the server subscribes of itself; then the members."""
    story, client, console = stage.story, stage.client, stage.console
    addresses = {
        name: f"{stage.behind(name).url}/{name.partition('/')[2]}"
        for name in story.told["careplanCopies"]
    }
    loaded = exists(client, LAST_LOADED)
    if not loaded:
        _load(client, DIRECTORY, addresses)
    for name, url in addresses.items():
        endpoint = send(client, "GET", name)
        send(client, "PUT", name, {**endpoint, "address": url})
    count = _wait_until_subscribed(client, addresses, stage.settings)
    console.print(
        f"{len(addresses)} practices have an endpoint, so the server has subscribed them itself: "
        f"{count} Subscriptions, each active after its handshake"
    )
    if loaded:
        console.print("The members are here from last time.")
        return
    members = _load(client, MEMBERS, {})
    console.print(
        f"Loaded {members['Patient']} invented members and all about them: {members.total()} resources"
    )
    copies = story.told["careplanCopies"]
    for practice_ in (stage.told, stage.others):
        number = sum(copies[name] for name in addresses if stage.behind(name) is practice_)
        practice_.next([("careplan-change", "created")] * number)
    console.print(
        f"  [green]<-[/] {sum(copies.values())} copies of first care plans, "
        "each to its member's practice"
    )


def _load(client: httpx.Client, pattern: str, addresses: Mapping[str, str]) -> Counter[str]:
    """Files of the panel, each a transaction, with these Endpoint addresses; how many resources of each type."""
    loaded = Counter[str]()
    for path in sorted(PANEL.glob(pattern)):
        bundle = json.loads(path.read_text("utf-8"))
        for entry in bundle["entry"]:
            _readdress(entry["resource"], addresses)
            loaded[entry["resource"]["resourceType"]] += 1
        send(client, "POST", "", bundle)
    return loaded


def _readdress(resource: Resource, addresses: Mapping[str, str]) -> None:
    here = addresses.get(f"{resource['resourceType']}/{resource['id']}")
    if here is not None:
        resource["address"] = here


def _wait_until_subscribed(
    client: httpx.Client, addresses: Mapping[str, str], settings: Settings
) -> int:
    """Each role that is reached by one of the endpoints has an active Subscription for each topic; how many."""

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
    return expected


def _end(stage: Stage) -> None:
    """Everybody has got what is theirs, and nobody anything else. Raises DemoError where not."""
    stage.story.settle()
    stage.told.expect_nothing_more()
    stage.others.expect_nothing_more()
    stage.console.print(
        f"\n{stage.story.arrived} notices arrived, {stage.story.withheld} was withheld; "
        "the two other practices received none of them."
    )


def _keep_serving(process: subprocess.Popen[bytes], base: str, stage: Stage) -> None:
    story = stage.story
    plan = story.told["carePlanChange"]["carePlan"]
    with suppress(KeyboardInterrupt):
        stage.console.print(
            f"\nTry     curl '{base}/Encounter?patient={story.told['patient']}'\n"
            f"        curl {base}/{story.stay}/_history\n"
            f"        curl '{base}/{story.stay}/$notices'\n"
            f"        curl '{base}/{plan}/$summary'\n"
            f"        curl '{base.removesuffix('/fhir')}/admin/deliveries?state=suppressed'\n"
            f"        curl {stage.told.url}/received\n"
            "Ctrl-C stops everything."
        )
        # A Ctrl-C that comes in the moment before `process.wait()` blocks would be heard of when that returns.
        while process.poll() is None:
            time.sleep(_LOOK_EVERY)
        raise DemoError("The server ended by itself.")
