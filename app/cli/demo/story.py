"""The story of `carerelay run` (examples/stay/story.json): who does what, and who is to hear of it."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape

from app.cli.demo.practices import Practice
from app.cli.demo.server import DemoError, deliveries, exists, send, wait_until
from app.fhir.definitions import EXAMPLES
from app.fhir.instants import moment
from app.fhir.json import Resource

# States of deliveries that may still become notices.
UNDER_WAY = ("queued", "sending", "retrying")

Json = dict[str, Any]


class Story:
    """Plays the story; `arrived` and `withheld` count the notices of its practice."""

    def __init__(self, client: httpx.Client, practice: Practice, console: Console) -> None:
        self.told: Json = json.loads((EXAMPLES / "stay" / "story.json").read_text("utf-8"))
        self._client = client
        self._practice = practice
        self._console = console
        self.stay = self._unused(self.told["encounter"])
        self.arrived = 0
        self.withheld = 0

    def play(self) -> None:
        """Raises DemoError where a notice is missing, or one comes that should not."""
        self._console.print(f"\n[bold]{escape(self.told['title'])}[/]")
        for step in self.told["steps"]:
            self._put(step, self._renamed(step["file"], self.stay))
            self._expect(step)
        self._change_care_plan(self.told["carePlanChange"])
        self._refuse(self.told["refusal"])

    def _put(self, step: Json, resource: Resource) -> None:
        when = moment(step["at"]).strftime("%d %b %H:%M")
        self._console.print(f"{when}  [bold]{step['title']}[/]. {escape(step['what'])}")
        send(self._client, "PUT", f"{resource['resourceType']}/{resource['id']}", resource)

    def _expect(self, step: Json) -> None:
        fired = [(each["topic"], each["trigger"]) for each in step["fires"]]
        for notice in self._practice.next(fired):
            self.arrived += 1
            after = f"[bold]{notice.milliseconds:.0f} ms[/] after the commit"
            self._console.print(f"  [green]<-[/] {notice}, {after}")
            for line in notice.text.splitlines():
                self._console.print(f"       {escape(line)}")

    def _change_care_plan(self, step: Json) -> None:
        """A goal more in the plan as it is now, so that it can be played again on the same data."""
        goal = self._renamed(step["file"], self._unused(step["goal"]))
        send(self._client, "PUT", f"Goal/{goal['id']}", goal)
        plan = send(self._client, "GET", step["carePlan"])
        plan["goal"].append({"reference": f"Goal/{goal['id']}"})
        self._put(step, plan)
        self._expect(step)

    def _refuse(self, step: Json) -> None:
        """An admission of which the ledger says why nobody was told."""
        consent = self._read(step["consent"])
        send(self._client, "PUT", f"Consent/{consent['id']}", consent)
        visit = self._unused(step["encounter"])
        self._put(step, self._renamed(step["file"], visit))
        rows: list[Json] = []

        def suppressed() -> bool:
            rows[:] = deliveries(self._client, focus=visit, state="suppressed")
            return bool(rows)

        wait_until("The ledger's row of the notice that is withheld", suppressed)
        for row in rows:
            self.withheld += 1
            topic = row["topic"].rpartition("/")[2].replace("-", " ")
            self._console.print(
                f"  [yellow]--[/] {topic} {row['trigger']['code']}, {visit}: "
                f"not sent; the ledger says: {escape(row['reason'])}"
            )
        if len(rows) != 1:
            raise DemoError(f"{len(rows)} notices were withheld instead of one.")

    def settle(self) -> None:
        """Wait until nothing is under way any more."""
        wait_until(
            "All deliveries settled",
            lambda: not any(deliveries(self._client, state=state) for state in UNDER_WAY),
        )

    def _unused(self, reference: str) -> str:
        """The reference, or one like it where that is taken: a visit that is told twice is no news."""
        if not exists(self._client, reference):
            return reference
        return f"{reference}-{int(time.time()):x}"

    def _renamed(self, file: str, reference: str) -> Resource:
        """The resource with that id; an Encounter with a visit number of its own as well."""
        resource = self._read(file)
        before, resource["id"] = resource["id"], reference.partition("/")[2]
        for identifier in resource.get("identifier", ()):
            identifier["value"] += resource["id"].removeprefix(before)
        return resource

    def _read(self, file: str) -> Resource:
        resource: Resource = json.loads((EXAMPLES / "stay" / file).read_text("utf-8"))
        return resource
