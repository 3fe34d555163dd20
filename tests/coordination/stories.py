"""Plays the stories of examples/stories and checks who got what; examples/README.md has their format.

The server asks who comes. What is given an administrator has loaded; what happens then each does by its own client:
hospitals their stays, practices what they ask and acknowledge, the plan all that is case management. What is found is
what the plan finds.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fhirpathpy

from app.authentication.caller import Role
from app.fhir.definitions import EXAMPLES
from tests.builders.access_world import Authority, Registered, World, coverage, encounter
from tests.builders.receiver import Received, Receiver, receiving
from tests.conftest import make_settings, running

Json = dict[str, Any]

STORIES = sorted((EXAMPLES / "stories").glob("*.json"))
# What every story takes for granted: the plan, the state, the hospital, the practices, the care managers.
DIRECTORY = sorted((EXAMPLES / "panel").glob("0*.json"))
TOPICS = sorted(
    path.stem
    for path in (EXAMPLES.parent / "profiles" / "topics").glob("*.json")
    if path.stem != "patient-data-feed"
)
BASE = "http://carerelay.test/fhir"
ADMIN = "http://carerelay.test/admin"
OPERATOR = "operator"
PLAN = "evergrove-dual-advantage"
STATE = "example-state-medicaid"
HOSPITALS = ("marrow-falls-hospital", "quillport-snf")
PRACTICES = {
    "juniper": "juniper-street-family-medicine",
    "riverbend": "riverbend-internal-medicine",
    "harbor": "harbor-lantern-health-center",
}
# The elements that say who does what a resource is about.
_DOERS = ("serviceProvider", "sender", "requester")
_ADDRESS = re.compile(r"https://([a-z-]+)\.example/[a-z-]*")
_MEMBER = re.compile(r"panel/[12]\d-([a-z-]+)")
_FOUND = re.compile(r"\{([A-Z]\w+\?[^{}]+)\}")
_BENEFICIARY = re.compile(r'"beneficiary": \{"reference": "Patient/([\w-]+)"')
_MOMENT = re.compile(r"\{(today|now)([+-]\d+)?\}")


@dataclass
class Told:
    """One event of one notice, as its receiver read it."""

    to: str
    topic: str
    trigger: str
    focus: str
    bundle: Json

    def label(self) -> str:
        return f"{self.to}: {self.topic} {self.trigger} {self.focus}"


@dataclass
class Stage:
    """A server with its directory and clients, and receivers behind the addresses `https://<name>.example/...`."""

    world: World
    receiver: Receiver
    enrolling: set[str] = field(default_factory=set)
    _ahead: timedelta = timedelta()
    _contracts: list[str] = field(default_factory=list)
    _down: set[str] = field(default_factory=set)
    _today: datetime = field(default_factory=lambda: datetime.now(UTC))

    async def play(self, steps: Iterable[Any], by: str | None = None) -> None:
        """The steps, each by whose it is; all but Subscriptions by one client where that is named."""
        for step in steps:
            for address in _FOUND.findall(json.dumps(step)):
                found = (await self.get(address))["entry"][0]["resource"]
                literal = f"{found['resourceType']}/{found['id']}"
                step = json.loads(json.dumps(step).replace(f"{{{address}}}", literal))
            step = self._localized(step)
            is_own = by is None or step.get("resourceType") == "Subscription"
            await self._step(step, doer(step) if is_own else str(by))
            await self.settle()

    async def end(self) -> None:
        """The calendar goes back, and what was still due is forgotten: the next story begins today."""
        for contract in self._contracts:
            await self.world.ask(OPERATOR, "DELETE", f"{ADMIN}/contracts/{contract}")
        self._contracts.clear()
        self._down.clear()
        self.world.server.clock.advance(-self._ahead)
        self._ahead = timedelta()
        await self.world.server.mongo.collection("timers").delete_many({})

    async def settle(self) -> None:
        """Everything that follows from what was written has happened, deliveries included."""
        server = self.world.server
        # Who is matched first is in no doubt when it is reacted to.
        for _ in range(2):
            await server.worker.drain()
            await server.engine.drain()

    async def _step(self, step: Any, by: str) -> None:
        if "resourceType" in step:
            step = {"post" if step["resourceType"] == "Bundle" else "put": step}
        ask = self.world.ask
        match step:
            case {"put": resource}:
                if by in HOSPITALS:
                    await self._known_at(by, resource["subject"]["reference"])
                url = f"/{resource['resourceType']}/{resource['id']}"
                answer = await ask(by, "PUT", url, resource)
                if answer.status_code == 201 and resource["resourceType"] == "Patient":
                    await self._enrol(resource["id"])
            case {"post": resource}:
                url = (
                    "/" if resource["resourceType"] == "Bundle" else f"/{resource['resourceType']}"
                )
                answer = await ask(by, "POST", url, resource)
            case {"patch": url, "with": operations}:
                media_type = {"content-type": "application/json-patch+json"}
                answer = await ask(
                    by, "PATCH", f"/{url}", content=json.dumps(operations), headers=media_type
                )
            case {"delete": url}:
                answer = await ask(by, "DELETE", f"/{url}")
            case {"contract": terms}:
                answer = await ask(OPERATOR, "PUT", f"{ADMIN}/contracts/{terms['id']}", terms)
                self._contracts.append(terms["id"])
            case {"down": name}:
                self._down.add(name)
                return
            case {"advance": span}:
                self._ahead += timedelta(**span)
                server = self.world.server
                server.clock.advance(timedelta(**span))
                return
            case _:
                raise AssertionError(f"not a step: {step}")
        assert answer.is_success, f"{answer.text} to {step} by {by}"

    async def _enrol(self, member: str) -> None:
        """A Patient of a story is a member of the plan, unless the story tells of the enrolment itself."""
        if member in self.enrolling:
            return
        await self.world.put(OPERATOR, coverage(f"{member}-member", member, PLAN))

    async def _known_at(self, hospital: str, patient: str) -> None:
        """Somebody who comes to a hospital has been there before: it could not write of a stranger's stay."""
        member = patient.removeprefix("Patient/")
        before = encounter(f"{member}-before-{hospital}"[:64], member, hospital)
        before["class"] = {**before["class"], "code": "AMB"}
        past = {"status": "finished", "period": {"start": "2019-03-01", "end": "2019-03-01"}}
        await self.world.put(OPERATOR, before | past)

    def _localized(self, value: Any) -> Any:
        """Addresses become the receiver's; `{today-3}` and `{now-3}` the day and the moment three days ago."""
        if isinstance(value, dict):
            return {key: self._localized(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self._localized(each) for each in value]
        if not isinstance(value, str):
            return value
        address = _ADDRESS.fullmatch(value)
        return _MOMENT.sub(self._moment, f"{self.receiver.url}/{address[1]}" if address else value)

    def _moment(self, match: re.Match[str]) -> str:
        then = self._today + timedelta(days=int(match[2] or 0))
        return then.date().isoformat() if match[1] == "today" else then.isoformat("T", "seconds")

    def told(self) -> list[Told]:
        """All events that have been told, in order of arrival."""
        return [
            told
            for received in self.receiver.events
            if self._answer(received) == 200
            for told in _read(received)
        ]

    def _answer(self, received: Received) -> int:
        return 503 if received.path.strip("/") in self._down else 200

    async def withheld(self) -> list[Json]:
        """Ledger rows of events that were not told."""
        params = {"state": "suppressed", "_count": "1000"}
        answer = await self.world.get(OPERATOR, f"{ADMIN}/deliveries", params=params)
        assert answer.status_code == 200, answer.text
        rows: list[Json] = answer.json()["deliveries"]
        return rows

    async def get(self, path: str, by: str = PLAN) -> Json:
        answer = await self.world.get(by, f"/{self._localized(path)}")
        assert answer.status_code == 200, f"{path} by {by}: {answer.text}"
        found: Json = answer.json()
        return found


@asynccontextmanager
async def stage(mongod: str) -> AsyncIterator[Stage]:
    """A server whose practices are told of all topics in full, because they have an Endpoint."""
    settings = make_settings(
        mongod,
        auth="smart",
        rate_limit=0,
        base_url=BASE,
        egress_allow="127.0.0.1",
        test_clock=True,
        endpoint_subscriptions=True,
        endpoint_content="full-resource",
        endpoint_topics=",".join(TOPICS),
    )
    authority = Authority(CAST)
    async with receiving() as receiver, running(settings, authority) as (server, client):
        made = Stage(World(server, client, authority), receiver)
        receiver.answer = made._answer
        await made.play((json.loads(path.read_text("utf-8")) for path in DIRECTORY), OPERATOR)
        yield made


def _client(organization: str, role: Role) -> Registered:
    return Registered(f"Organization/{organization}", role)


# Everybody who has a client, by the name of its organization; practices by the end of their roles' ids.
CAST: dict[str, Registered] = {
    OPERATOR: Registered(None, "administrator"),
    PLAN: _client(PLAN, "plan"),
    STATE: _client(STATE, "state"),
    **{each: _client(each, "hospital") for each in HOSPITALS},
    **{name: _client(organization, "practice") for name, organization in PRACTICES.items()},
}


def doer(step: Json) -> str:
    """The client that does a step of what happens: who is named as the one who does it, else the plan."""
    if "by" in step:
        return str(step["by"])
    resource = step.get("put") or step.get("post") or step
    if resource.get("resourceType") == "Coverage":
        return OPERATOR  # nobody enrols whom it cannot see
    for element in _DOERS:
        named: str = resource.get(element, {}).get("reference", "").partition("/")[2]
        client = named if named in CAST else named.rpartition("-")[2]
        if client in CAST:
            return client
    return PLAN


def read(path: Path) -> Json:
    """A story with its files in place of their names; members of the panel have ids of this story's own."""
    text = path.read_text(encoding="utf-8")
    files = [step for step in json.loads(text)["given"] if isinstance(step, str)]
    for name in re.findall(r'"((?:panel|stay)/[\w-]+)"', text):
        text = text.replace(f'"{name}"', (EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))
    for member in (match[1] for name in files if (match := _MEMBER.fullmatch(name))):
        text = text.replace(member, f"{member}-{path.stem[:2]}{zlib.crc32(path.stem.encode()):x}")
    story: Json = json.loads(text)
    return story


@dataclass
class Outcome:
    """What followed from `when`: the events that were told, and the ledger's rows of those that were not."""

    told: list[Told]
    withheld: list[Json]


async def play(story: Json, on: Stage) -> Outcome:
    on.enrolling = set(_BENEFICIARY.findall(json.dumps(story)))
    await on.play(story["given"], OPERATOR)
    on.receiver.requests.clear()
    earlier = {row["id"] for row in await on.withheld()}
    await on.play(story["when"])
    rows = await on.withheld()
    return Outcome(on.told(), [row for row in rows if row["id"] not in earlier])


async def check(then: Json, outcome: Outcome, on: Stage) -> None:
    """Raises AssertionError where somebody got less or other than the story says, or anybody anything more."""
    _check_notices(outcome.told, then["told"])
    _same(
        [_withheld_label(row) for row in outcome.withheld],
        [f"{e['topic']} {e['focus']}: {e['reason']}" for e in then.get("withheld", [])],
    )
    for each in then.get("found", []):
        found = await on.get(each["get"], each.get("by", PLAN))
        if "count" in each:
            # Who does not see all is not told how many versions there are.
            count = found.get("total", len(found.get("entry", ())))
            assert count == each["count"], each["get"]
        _check_holds(found, each.get("holds", []), each["get"])


def _check_notices(told: list[Told], expected: list[Json]) -> None:
    labels = [f"{e['to']}: {e['topic']} {e['trigger']} {e['focus']}" for e in expected]
    _same([each.label() for each in told], labels)
    for each, label in zip(expected, labels, strict=True):
        notice = next(candidate for candidate in told if candidate.label() == label)
        carried = [entry.get("resource", {}) for entry in notice.bundle["entry"][1:]]
        names = {f"{r['resourceType']}/{r['id']}" for r in carried if r}
        missing = {
            wanted
            for wanted in each.get("with", [])
            if not any(name == wanted or name.startswith(f"{wanted}/") for name in names)
        }
        assert not missing, f"{label} came with {sorted(names)} only"
        if "says" in each:
            (letter,) = [r for r in carried if r.get("resourceType") == "Communication"]
            _same(letter["payload"][0]["contentString"].splitlines(), each["says"])
        if each.get("reduced"):
            assert names == set(), f"{label} came with {sorted(names)}"
        _check_holds(notice.bundle, each.get("holds", []), label)


def _same(found: list[str], expected: list[str]) -> None:
    missing, more = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
    assert not missing + more, f"missing: {list(missing)}, unexpected: {list(more)}"


def _check_holds(resource: Json, expressions: Iterable[str], where: str) -> None:
    for expression in expressions:
        found = fhirpathpy.evaluate(resource, expression)
        assert found == [True], f"{where}: {expression} is {found} of {json.dumps(resource)[:3000]}"


def _read(received: Received) -> Iterable[Told]:
    """The events of a notice."""
    bundle = received.json
    status = bundle["entry"][0]["resource"]["parameter"]
    topic = next(p["valueCanonical"] for p in status if p["name"] == "topic")
    for parameter in status:
        if parameter["name"] == "notification-event":
            parts = {part["name"]: part for part in parameter["part"]}
            yield Told(
                to=received.path.strip("/"),
                topic=topic.rpartition("/")[2].partition("|")[0],
                trigger=parts["trigger"]["valueCoding"]["code"],
                focus="/".join(parts["focus"]["valueReference"]["reference"].split("/")[-2:]),
                bundle=bundle,
            )


def _withheld_label(row: Json) -> str:
    focus = "/".join(row["focus"].split("/")[:2])
    return f"{row['topic'].rpartition('/')[2]} {focus}: {row['reason']}"
