"""Every fired topic has one ending: delivered, withheld, or a row with a Task; and what was mended is told after all.

Worlds are drawn, and what each practice has to hear is worked out by a table (tests/builders/told_worlds.py).
docs/routing.md, "Events that reach no practice"
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from app.fhir.codes import REVIEW_REASON, SUBSCRIPTION_OWNER
from tests.builders.consents import consent, deny
from tests.builders.practices import (
    care_team,
    dated,
    endpoint,
    organization,
    panel,
    patient,
    practitioner,
    put,
    ref,
    role,
)
from tests.builders.receiver import Received, Receiver, receiving
from tests.builders.told_worlds import Fired, Oracle, World, resource_of, worlds
from tests.conftest import Server, make_settings, running

pytestmark = [pytest.mark.mongo, pytest.mark.slow]

Resource = dict[str, Any]
TOPICS = "encounter-admission,encounter-discharge,encounter-transfer,encounter-cancelled"
REASONS = (
    "no-pcp",
    "pcp-period-ended",
    "no-endpoint",
    "nobody-listens",
    "no-subject",
    "subject-by-identifier",
    "unknown-patient",
    "subscription-error",
)
HOSPITALS = ("hospital-a", "hospital-b")


@dataclass
class Stage:
    """A world on a running server, with one address for each practice at one receiver."""

    world: World
    receiver: Receiver
    server: Server
    client: httpx.AsyncClient
    down: set[int] = field(default_factory=set)
    mended: set[int] = field(default_factory=set)
    taken: list[Received] = field(default_factory=list)
    stays: dict[int, Resource] = field(default_factory=dict)

    # What is there at the beginning

    async def begin(self) -> None:
        self.receiver.answer = self._answer
        await put(self.client, *map(organization, HOSPITALS))
        for number, kind in enumerate(self.world.practices):
            await self._open(number, kind)
        for number, member in enumerate(self.world.members):
            await self._admit(number, member.kind)
        await self.settle()
        self.down = {n for n, kind in enumerate(self.world.practices) if kind == "down"}
        for number, kind in enumerate(self.world.practices):
            if kind == "switched-off":
                await self._switch_off(number)
        await self.settle()

    def _answer(self, received: Received) -> int:
        practice = int(received.path.strip("/"))
        if practice in self.down:
            return 503
        if received.kind == "event-notification":
            self.taken.append(received)
        return 200

    async def _open(self, number: int, kind: str) -> None:
        name = f"o{number}"
        address = endpoint(f"e{number}", f"{self.receiver.url}/{number}")
        if kind == "managed":
            address["managingOrganization"] = ref(f"Organization/{name}")
        if kind == "endpoint-off":
            address["status"] = "off"
        if kind != "bare":
            await put(self.client, address)
        endpoints = () if kind in ("managed", "bare", "role") else (f"e{number}",)
        await put(self.client, organization(name, *endpoints))
        if kind == "role":
            doctor = role(f"r{number}", f"d{number}", name, f"e{number}")
            await put(self.client, practitioner(f"d{number}"), doctor)

    def _provider(self, practice: int) -> str:
        is_role = self.world.practices[practice] == "role"
        return f"PractitionerRole/r{practice}" if is_role else f"Organization/o{practice}"

    async def _admit(self, number: int, kind: str) -> None:
        """Store a member as it is before anything is mended."""
        name = f"m{number}"
        providers = [self._provider(each) for each in self.world.members[number].practices]
        made = patient(name, *map(ref, providers), identifier=[self._identifier(number)])
        match kind:
            case "stranger":
                return
            case "nobody":
                made = patient(name)
            case "ended":
                made = patient(name, dated(providers[0], "2020-01-01", "2020-12-31"))
            case "care-team":
                made = patient(name)
                await put(self.client, care_team(f"t{number}", name, providers[0]))
            case "panel":
                made = patient(name)
                roster = panel(f"g{number}", HOSPITALS_PLAN, f"Patient/{name}", of=providers[0])
                await put(self.client, roster)
            case "merged":
                link = [{"other": ref(f"Patient/{name}"), "type": "replaced-by"}]
                await put(self.client, made, patient(f"{name}-before", link=link))
            case "refused":
                await put(self.client, self._refusal(number, "active"))
        await put(self.client, made)

    def _identifier(self, number: int) -> Resource:
        return {"system": "urn:oid:1.2.3", "value": f"m{number}"}

    def _refusal(self, number: int, status: str) -> Resource:
        about = ref(f"Patient/m{number}")
        made = consent("pcp-notification", id=f"c{number}", status=status, patient=about)
        return {**made, "provision": deny()}

    async def _switch_off(self, number: int) -> None:
        query = {"_tag": f"{SUBSCRIPTION_OWNER}|Organization/o{number}", "_count": "50"}
        found = (await self.client.get("/Subscription", params=query)).json().get("entry", ())
        await put(self.client, *({**each["resource"], "status": "off"} for each in found))

    # What happens

    async def step(self, stay: int, step: str) -> None:
        member = self.world.stays[stay]
        base: Resource = {
            "resourceType": "Encounter",
            "id": f"s{stay}",
            "serviceProvider": ref("Organization/hospital-a"),
            "subject": self._subject(member),
        }
        self.stays[stay] = resource_of(step, self.stays.get(stay), base)
        await put(self.client, self.stays[stay])

    def _subject(self, member: int) -> Resource:
        match self.world.members[member].kind:
            case "by-identifier" if member not in self.mended:
                return {"identifier": self._identifier(member)}
            case "merged":
                return ref(f"Patient/m{member}-before")
        return ref(f"Patient/m{member}")

    async def mend(self, what: str, number: int) -> None:
        if what == "practice":
            await self._mend_practice(number, self.world.practices[number])
        else:
            await self._mend_member(number, self.world.members[number].kind)
        await self.settle()

    async def _mend_practice(self, number: int, kind: str) -> None:
        name = f"o{number}"
        match kind:
            case "managed" | "bare" | "endpoint-off":
                await put(self.client, endpoint(f"e{number}", f"{self.receiver.url}/{number}"))
                await put(self.client, organization(name, f"e{number}"))
            case "switched-off":
                await put(self.client, {**organization(name, f"e{number}"), "name": "Opened anew"})
            case "down":
                self.down.discard(number)

    async def _mend_member(self, number: int, kind: str) -> None:
        self.mended.add(number)
        match kind:
            case "nobody" | "ended" | "stranger":
                providers = map(self._provider, self.world.members[number].practices)
                await put(self.client, patient(f"m{number}", *map(ref, providers)))
            case "refused":
                await put(self.client, self._refusal(number, "inactive"))
            case "by-identifier":
                for stay, of in enumerate(self.world.stays):
                    if of == number and stay in self.stays:
                        self.stays[stay] |= {"subject": self._subject(number)}
                        await put(self.client, self.stays[stay])

    async def settle(self) -> None:
        """All that follows has happened, what is probed or looked at again within an hour included."""
        for span in (0, 61, 3600):
            self.server.clock.advance(timedelta(seconds=span))
            for _ in range(2):
                await self.server.engine.drain()
                await self.server.worker.drain()
        await self.server.engine.drain()

    # What is seen

    async def endings(self) -> dict[Fired, list[str]]:
        """Of each topic that a stay fired, the endings that the ledger and the Tasks say."""
        tasks, owners = await self.tasks(), await self.owners()
        found: dict[Fired, list[str]] = defaultdict(list)
        for row in await self.server.mongo.collection("deliveries").find({}).to_list(None):
            focus = row["focus"]
            if focus["type"] != "Encounter" or focus["id"][0] != "s":
                continue
            if "untold" in row:
                why = row["untold"]
                assert why["cause"] in tasks[why["concerns"]], (row, tasks)
                place, ending = why["concerns"], why["cause"]
            elif row["number"] == 0:
                continue  # what became of it has rows of its own
            else:
                place = owners[row["subscription"]]
                ending = {"delivered": "told", "suppressed": "withheld"}.get(row["state"], "waits")
                if ending == "waits":
                    assert any("subscription-error" in each for each in tasks.values()), row
            topic = row["topic"].rpartition("-")[2]
            practice = self._practice(place)
            found[Fired(int(focus["id"][1:]), focus["version"], topic, practice)].append(ending)
        return dict(found)

    def _practice(self, place: str) -> int | None:
        kind, _, name = place.partition("/")
        return int(name[1:]) if kind in ("Organization", "PractitionerRole") else None

    async def tasks(self) -> dict[str, set[str]]:
        """The reasons of the open Tasks about each thing; each asks once."""
        answer = await self.client.get("/Task", params={"status": "requested", "_count": "200"})
        found: dict[str, list[str]] = defaultdict(list)
        for entry in answer.json().get("entry", ()):
            task = entry["resource"]
            for coding in task["code"]["coding"]:
                if coding["system"] == REVIEW_REASON and coding["code"] in REASONS:
                    for each in {
                        task.get(name, {}).get("reference", "") for name in ("focus", "for")
                    }:
                        found[each].append(coding["code"])
        return defaultdict(set, {key: set(each) for key, each in found.items()})

    async def owners(self) -> dict[str, str]:
        answer = await self.client.get("/Subscription", params={"_count": "200"})
        found = {}
        for entry in answer.json().get("entry", ()):
            for tag in entry["resource"]["meta"]["tag"]:
                if "/" in tag["code"]:
                    found[entry["resource"]["id"]] = tag["code"]
        return found

    def heard(self) -> dict[tuple[int, int], list[str]]:
        """What each practice has taken of each stay, in its order."""
        found: dict[tuple[int, int], list[str]] = defaultdict(list)
        for each in self.taken:
            kind, name = each.focus.split("/")[-2:]
            if kind == "Encounter":
                key = int(each.path.strip("/")), int(name[1:])
                found[key].append(str(each.parameter("topic")).rpartition("-")[2])
        return dict(found)


HOSPITALS_PLAN = "Organization/hospital-a"


def agree(seen: dict[Fired, list[str]], oracle: Oracle) -> None:
    """Each topic has the one ending that it should have, and nothing else has fired."""
    clear = {fired: each for fired, each in seen.items() if not oracle.is_doubtful(fired)}
    found = Counter((fired, each) for fired, several in clear.items() for each in several)
    expected = Counter(each for each in oracle.endings.items() if not oracle.is_doubtful(each[0]))
    # A rise is told once to one Endpoint: as an admission.
    beside = Counter((fired, oracle.endings[fired]) for fired in oracle.beside())
    assert not found - expected, ("nothing should have come of", found - expected)
    assert not expected - found - beside, ("nothing has come of", expected - found)


async def check(mongod: str, world: World) -> None:
    oracle = Oracle.of(world)
    settings_ = make_settings(mongod, endpoint_topics=TOPICS, egress_allow="127.0.0.1").model_copy(
        update={"delivery_window": 0, "endpoint_subscriptions": world.kept}
    )
    async with receiving() as receiver:
        async with running(settings_) as (server, client):
            stage = Stage(world, receiver, server, client)
            await stage.begin()
            for op in world.ops:
                if op.what == "stay":
                    await stage.step(op.number, op.step)
                    oracle.step(op.number, op.step)
                else:
                    await stage.settle()
                    await stage.mend(op.what, op.number)
                    oracle.mend((op.what, op.number))
            await stage.settle()
            agree(await stage.endings(), oracle)
            if world.kept:
                await finish(stage, oracle)
        if not world.kept:
            kept = settings_.model_copy(update={"endpoint_subscriptions": True})
            # What an endpoint does that is away at its first handshake, test_handshakes.py says.
            oracle.mended |= {("practice", each) for each in stage.down}
            stage.down.clear()
            async with running(kept) as (server, client):
                stage.server, stage.client = server, client
                oracle.is_kept = True
                await finish(stage, oracle)


async def finish(stage: Stage, oracle: Oracle) -> None:
    """All is mended, and every practice knows what it should."""
    await stage.settle()
    for what, number in oracle.rest():
        oracle.mend()
        await stage.mend(what, number)
        oracle.mend((what, number))
    oracle.mend()
    agree(await stage.endings(), oracle)
    assert stage.heard() == oracle.heard
    assert {key: each for key, each in (await stage.tasks()).items() if each} == {}
    untold = {"untold": {"$exists": True}}
    assert await stage.server.mongo.collection("deliveries").count_documents(untold) == 0


_WAY: Any = {
    "deadline": None,
    "derandomize": True,
    # A world takes a second: shrinking would take an hour.
    "phases": [Phase.explicit, Phase.generate],
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


@given(worlds())
@settings(max_examples=4, **_WAY)
async def test_every_fired_topic_has_one_ending_and_is_told_once_all_is_mended(
    mongod: str, world: World
) -> None:
    await check(mongod, world)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@given(worlds())
@settings(max_examples=200, **_WAY)
async def test_every_fired_topic_has_one_ending_in_many_worlds(mongod: str, world: World) -> None:
    await check(mongod, world)
