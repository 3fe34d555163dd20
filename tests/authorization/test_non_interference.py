"""Whatever the other side's records hold, and whatever becomes of them, this side sees, counts and is sent the same.

Two servers get the same requests of the north's side: practice, hospital, plan and agency write about their patient,
name records of the south's side wherever a reference may stand, and subscribe to what they can guess. The south's
records have the same ids on both servers and nothing else in common, and some of the south's later writes happen on
one of them alone. Then time passes: notices are due, plans have been quiet, timers run. Afterwards everything that the
north's side can read, ask or was sent has to be the same on both, and no word of the south's is in it.

Goguen and Meseguer, Security Policies and Security Models (1982)
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings, strategies as st

from tests.authorization.access_records import bundle, entry
from tests.builders.access_world import (
    World,
    condition,
    coverage,
    designated,
    encounter,
    world as a_world,
)
from tests.builders.care_plans import CHANGE, goal, participant, tier
from tests.builders.practices import patient, ref
from tests.builders.receiver import Receiver, receiving
from tests.builders.subscriptions import ADMISSION, classic, topic_based

pytestmark = [pytest.mark.mongo, pytest.mark.slow]

Json = dict[str, Any]

SIDE = ("north", "general", "plan-a", "agency")
# What the south's records say on the one server and on the other. A guess of the north's is true on the first.
WORDS = (
    {
        "word": "Zwietrachta",
        "name": "Aldebaran",
        "code": "K52.91",
        "status": "in-progress",
        "life": "active",
    },
    {
        "word": "Zwietrachtb",
        "name": "Beteigeuze",
        "code": "Q77.12",
        "status": "finished",
        "life": "completed",
    },
)
SECRET = re.compile("Zwietracht|Beteigeuze|Q77.12")
_VARIES = re.compile(
    r"\d{4}-\d\d-\d\d(T[\d:.]+(Z|[+-]\d\d:\d\d))?|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}|W/\\?\"\d+\\?\""
    # Of a body with such in it.
    r"|[0-9a-f]{64}"
    # Of a document with such in it, which is looked at itself.
    r'|"hash": ?"[^"]+"|"size": ?\d+'
)
CONSENT_SCOPE = "http://terminology.hl7.org/CodeSystem/consentscope"
READ = (
    *("Patient", "Encounter", "Condition", "CarePlan", "CareTeam", "Goal", "Flag", "Group"),
    *("Coverage", "Consent", "Communication", "Task", "Subscription", "Provenance", "Contract"),
    *("DocumentReference", "MeasureReport", "RelatedPerson", "EpisodeOfCare"),
)


class Twin:
    """One of the two servers, and what its subscribers' endpoint received."""

    def __init__(self, world: World, receiver: Receiver, words: dict[str, str]) -> None:
        self.world = world
        self.receiver = receiver
        self.words = words
        self.subscriptions: list[tuple[str, str]] = []

    def __repr__(self) -> str:
        return self.words["word"]

    def filled(self, template: Any, number: int) -> Any:
        """A body of one example. `{...}` are this server's words, `#` is the example's number."""
        text = json.dumps(template).replace("#", str(number)).replace("{hook}", self.receiver.url)
        for name, word in self.words.items():
            text = text.replace(f"{{{name}}}", word)
        return json.loads(text)

    async def settle(self) -> None:
        """All that is due has happened."""
        for _ in range(2):
            await self.world.server.engine.drain()
            await self.world.server.worker.drain()


@pytest.fixture(scope="module")
async def twins(mongod: str) -> AsyncIterator[tuple[Twin, Twin]]:
    async with _twin(mongod, 0) as first, _twin(mongod, 1) as second:
        yield first, second


@asynccontextmanager
async def _twin(mongod: str, which: int) -> AsyncIterator[Twin]:
    settings_ = {"rate_limit": 0, "audit": "off", "test_clock": True, "egress_allow": "127.0.0.1"}
    async with receiving() as receiver, a_world(mongod, **settings_) as world:
        twin = Twin(world, receiver, WORDS[which])
        await twin.settle()
        yield twin


# The south's records, and what may become of them


def theirs() -> list[Json]:
    """A patient of the south's, with everything that a plan or a notice could speak of."""
    who = "sp#"
    about = {"subject": ref(f"Patient/{who}")}
    return [
        patient(who, ref("PractitionerRole/role-s"))
        | {"name": [{"family": "{name}"}], "telecom": [{"system": "phone", "value": "{word}"}]},
        encounter("se#", who, "city") | {"status": "{status}"},
        condition("sc#", who) | {"code": {"text": "{word}", "coding": [{"code": "{code}"}]}},
        goal("sg#", "{word}", "{life}") | about,
        tier("{word}") | {"id": "sf#"} | about,
        coverage("sv#", who, "plan-b"),
        designated("sl#", "bureau", who) | {"name": "{word}"},
        {"resourceType": "RelatedPerson", "id": "sr#", "patient": ref(f"Patient/{who}")}
        | {"name": [{"text": "{word}"}]},
        {"resourceType": "CareTeam", "id": "st#", "status": "active", "name": "{word}"}
        | {"participant": [participant("RelatedPerson/sr#", "{word}")]}
        | about,
        {"resourceType": "CarePlan", "id": "sa#", "status": "active", "intent": "plan"}
        | {"title": "{word}", "goal": [ref("Goal/sg#")], "careTeam": [ref("CareTeam/st#")]}
        | about,
        {"resourceType": "DocumentReference", "id": "sd#", "status": "current", "description": "{word}"}
        | {"content": [{"attachment": {"title": "{word}", "url": "Binary/sb#"}}]}
        | about,
        {"resourceType": "EpisodeOfCare", "id": "so#", "status": "active", "patient": ref(f"Patient/{who}")},
    ]  # fmt: skip


NAMES = {each["resourceType"]: f"{each['resourceType']}/{each['id']}" for each in theirs()}
OWN = {
    **dict.fromkeys(NAMES, ""),
    "Patient": "Patient/pn",
    "Encounter": "Encounter/en",
    "Condition": "Condition/cn",
    "Coverage": "Coverage/vn",
    "Group": "Group/list-n",
}

ADMITTED = encounter("sx#", "sp#", "city")
GOAL_CHANGED = goal("sg#", "{word} more", "on-hold") | {"subject": ref("Patient/sp#")}
LATER = st.sampled_from(
    [
        encounter("se#", "sp#", "city") | {"status": "{status}", "type": [{"text": "{word}"}]},
        ADMITTED,
        GOAL_CHANGED,
        condition("sc#", "sp#") | {"code": {"text": "other {word}"}},
        theirs()[8] | {"name": "New {word}"},
        theirs()[9] | {"title": "New {word}", "description": "{word}"},
        tier("high {word}") | {"id": "sf#", "subject": ref("Patient/sp#")},
    ]
)


# What the north's side does


def _named(*types: str) -> st.SearchStrategy[Json]:
    """A reference to a record of the south's, rarely to one's own."""
    them = [NAMES[type_] for type_ in types]
    own = [OWN[type_] for type_ in types if OWN[type_]]
    return st.sampled_from([*them, *them, *own]).map(ref)


def _some(*types: str) -> st.SearchStrategy[list[Json]]:
    return st.lists(_named(*types), min_size=1, max_size=2)


def _with(base: Json, /, **elements: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    """The resource with some of these elements."""
    return st.fixed_dictionaries({}, optional=elements).map(lambda more: base | more)


PN = ref("Patient/pn")
written = st.one_of(
    _with(
        {"resourceType": "CarePlan", "id": "na#", "status": "active", "intent": "plan", "subject": PN},
        goal=_some("Goal"),
        addresses=_some("Condition"),
        careTeam=_some("CareTeam"),
        supportingInfo=_some("Flag", "DocumentReference", "Condition", "Goal", "Patient"),
        contributor=_some("Patient", "RelatedPerson", "CareTeam"),
        replaces=_some("CarePlan"),
        basedOn=_some("CarePlan"),
        partOf=_some("CarePlan"),
        encounter=_named("Encounter"),
        author=_named("Patient", "RelatedPerson", "CareTeam"),
        activity=st.builds(lambda each: [{"reference": each}], _named("DocumentReference", "Goal")),
    ),
    _with(
        encounter("ne#", "pn", "general"),
        diagnosis=st.builds(lambda each: [{"condition": each}], _named("Condition")),
        episodeOfCare=_some("EpisodeOfCare"),
        partOf=_named("Encounter"),
        participant=st.builds(lambda each: [{"individual": each}], _named("RelatedPerson")),
        status=st.sampled_from(["in-progress", "finished", "arrived"]),
    ),
    _with(
        {"resourceType": "CareTeam", "id": "nt#", "status": "active", "subject": PN},
        encounter=_named("Encounter"),
        participant=st.builds(
            lambda each: [{"member": each, "role": [{"text": "PCP"}]}],
            _named("Patient", "RelatedPerson", "CareTeam") | st.just(ref("PractitionerRole/role-s")),
        ),
    ),
    _with(
        goal("ng#", "Walk") | {"subject": PN},
        addresses=_some("Condition", "Goal"),
        expressedBy=_named("Patient", "RelatedPerson"),
    ),
    _with(
        condition("nc#", "pn"),
        encounter=_named("Encounter"),
        asserter=_named("RelatedPerson", "Patient"),
        evidence=st.builds(lambda each: [{"detail": each}], _some("DocumentReference", "Condition")),
    ),
    _with(
        {"resourceType": "Patient", "id": "np#", "name": [{"family": "Made up"}]},
        link=st.builds(
            lambda each, kind: [{"other": each, "type": kind}],
            _named("Patient", "RelatedPerson"),
            st.sampled_from(["replaced-by", "seealso", "refer", "replaces"]),
        ),
        generalPractitioner=st.just([ref("PractitionerRole/role-n")]),
    ),
    st.just(encounter("nx#", "np#", "general")),
    _with(
        {"resourceType": "Consent", "id": "no#", "status": "active", "patient": PN}
        | {"scope": {"coding": [{"system": CONSENT_SCOPE, "code": "patient-privacy"}]}}
        | {"category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}]}
        | {"policyRule": {"text": "here"}},
        provision=st.builds(
            lambda kind, each: {"type": kind, "data": [{"meaning": "related", "reference": each}]},
            st.sampled_from(["permit", "deny"]),
            _named("Condition", "Encounter", "CarePlan"),
        ),
    ),
    _with(
        {"resourceType": "Provenance", "id": "nv#", "recorded": "2026-01-01T00:00:00Z"}
        | {"agent": [{"who": ref("Organization/north")}]},
        target=_some("Condition", "Patient", "CarePlan", "Encounter"),
    ),
    _with(
        {"resourceType": "Task", "id": "nk#", "status": "requested", "intent": "order", "for": PN},
        focus=_named("Encounter", "CarePlan"),
        basedOn=_some("CarePlan"),
        encounter=_named("Encounter"),
    ),
    _with(
        {"resourceType": "Communication", "id": "nm#", "status": "completed", "subject": PN},
        about=_some("Encounter", "CarePlan", "Condition"),
        recipient=_some("Patient", "RelatedPerson", "CareTeam"),
    ),
    st.sampled_from(
        [
            coverage("nu#", "sp#", "plan-a"),
            designated("nl#", "agency", "pn", "sp#"),
            tier("low") | {"id": "nf#", "subject": PN},
        ]
    ),
)  # fmt: skip

subscribed = st.one_of(
    st.sampled_from(
        [
            *("Encounter?patient=Patient/sp#", "Encounter?status=in-progress", "Encounter?"),
            *("Condition?code=K52.91", "Condition?patient=Patient/sp#", "CarePlan?title=x"),
            *("Patient?family=Aldebaran", "Goal?lifecycle-status=active", "CarePlan?"),
            *("Patient?_id=sp#", "Patient?", "Flag?", "CareTeam?", "Task?", "Communication?"),
        ]
    ).map(lambda criteria: classic(criteria, "{hook}", payload="application/fhir+json")),
    st.tuples(
        st.sampled_from(["patient=Patient/sp#", "patient=Patient/pn", ""]),
        st.sampled_from(["empty", "id-only", "full-resource"]),
        st.sampled_from([ADMISSION, CHANGE]),
    ).map(
        lambda drawn: (
            topic_based(*([drawn[0]] if drawn[0] else []), endpoint="{hook}", content=drawn[1])
            | {"criteria": drawn[2]}
        )
    ),
)

PLAN_OF_ALL = {
    "resourceType": "CarePlan",
    "id": "na#",
    "status": "active",
    "intent": "plan",
    "title": "Ours",
    "subject": PN,
    "goal": [ref(NAMES["Goal"])],
    "addresses": [ref(NAMES["Condition"])],
    "careTeam": [ref(NAMES["CareTeam"])],
    "supportingInfo": [ref(NAMES[each]) for each in ("Flag", "Patient", "DocumentReference")],
    "contributor": [ref(NAMES[each]) for each in ("Patient", "RelatedPerson", "CareTeam")],
    "replaces": [ref(NAMES["CarePlan"])],
    "activity": [{"reference": ref(NAMES["DocumentReference"])}],
}
MADE_UP = {
    "resourceType": "Patient",
    "id": "np#",
    "link": [{"other": ref(NAMES["Patient"]), "type": "replaced-by"}],
}
ALL_CHANGES = topic_based(endpoint="{hook}", content="full-resource") | {"criteria": CHANGE}
ALL_STAYS = topic_based(endpoint="{hook}", content="full-resource") | {"criteria": ADMISSION}

steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from(SIDE), written),
        st.tuples(st.just("write"), st.sampled_from(SIDE), written),
        st.tuples(st.just("subscribe"), st.sampled_from(SIDE), subscribed),
        st.tuples(st.just("theirs"), st.just(""), LATER),
        st.tuples(st.just("theirs-once"), st.just(""), LATER),
        st.tuples(st.just("wait"), st.just(""), st.sampled_from([900, 86_400])),
    ),
    min_size=2,
    max_size=8,
)


def examples(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


numbers: Iterator[int] = count(100)


@pytest.mark.timeout(600)
@examples(10)
@example(
    [
        ("subscribe", "north", ALL_CHANGES),
        ("write", "north", PLAN_OF_ALL),
        ("wait", "", 900),
        ("theirs", "", GOAL_CHANGED),
    ]
)
@example(
    [
        ("subscribe", "north", classic("Encounter?status=in-progress", "{hook}")),
        ("theirs-once", "", ADMITTED),
    ]
)
@example(
    [
        ("subscribe", "north", ALL_STAYS),
        ("write", "north", MADE_UP),
        ("write", "general", encounter("nx#", "np#", "general")),
    ]
)
@given(steps)
async def test_nothing_of_theirs_makes_a_difference(
    twins: tuple[Twin, Twin], steps_: list[Any]
) -> None:
    await _compare(twins, steps_)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@examples(500)
@given(steps)
async def test_nothing_of_theirs_makes_a_difference_whatever_happens(
    twins: tuple[Twin, Twin], steps_: list[Any]
) -> None:
    """The same for an hour at the most."""
    await _compare(twins, steps_)


async def _compare(twins: tuple[Twin, Twin], steps_: list[Any]) -> None:
    number = next(numbers)
    first, second = await asyncio.gather(*(_play(twin, number, steps_) for twin in twins))
    for seen in first | second:
        assert first.get(seen) == second.get(seen), seen
        assert not SECRET.search(first[seen]), seen


async def test_the_south_sees_its_own_by_the_same_ways(twins: tuple[Twin, Twin]) -> None:
    """What is looked for above would be found there."""
    steps_ = [
        ("subscribe", "south", classic("Condition?", "{hook}", payload="application/fhir+json")),
        ("write", "south", theirs()[9] | {"id": "na#"}),
        ("theirs", "", condition("sc#", "sp#") | {"code": {"text": "other {word}"}}),
    ]
    seen = await _play(twins[0], next(numbers), steps_, ("south",))
    found = {way for way, answer in seen.items() if SECRET.search(answer)}
    assert {"south reads", "south reads documents", "sent"} <= found
    assert any("$summary" in way for way in found)


async def _play(
    twin: Twin, number: int, steps_: list[Any], side: tuple[str, ...] = SIDE
) -> dict[str, str]:
    """Everything that a side saw, by how it came to see it."""
    world = twin.world
    began = world.server.mongo.now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
    twin.receiver.requests.clear()
    entries = [
        entry("PUT", f"{each['resourceType']}/{each['id']}", each)
        for each in twin.filled(theirs(), number)
    ]
    answer = await world.ask("admin", "POST", "/", bundle("transaction", *entries))
    assert answer.status_code == 200, answer.text
    seen: dict[str, str] = {}
    for place, (kind, who, body) in enumerate(steps_):
        if kind == "wait":
            world.server.clock.advance(timedelta(seconds=body))
        elif kind == "subscribe":
            answer = await world.ask(who, "POST", "/Subscription", twin.filled(body, number))
            seen[f"{place} subscribe"] = _plain(f"{answer.status_code} {answer.text}", twin)
            if answer.status_code == 201:
                twin.subscriptions.append((who, answer.json()["id"]))
        elif kind == "write":
            resource = twin.filled(body, number)
            url = f"/{resource['resourceType']}/{resource['id']}"
            answer = await world.ask(who, "PUT", url, resource)
            seen[f"{place} {who} {url}"] = _plain(f"{answer.status_code} {answer.text}", twin)
        elif kind == "theirs" or twin.words is WORDS[0]:
            await world.put("admin", twin.filled(body, number))
        await twin.settle()
    for seconds in (900, 86_400):
        world.server.clock.advance(timedelta(seconds=seconds))
        await twin.settle()
    seen |= await _look(twin, number, began, side)
    seen["sent"] = "\n".join(
        sorted(_plain(each.body.decode(), twin) for each in twin.receiver.requests)
    )
    await _end(twin)
    return seen


async def _look(twin: Twin, number: int, began: str, side: tuple[str, ...]) -> dict[str, str]:
    """What each client of a side reads, and is told when it asks."""
    seen = {}
    asked = [
        *("Patient/pn/$pcp", f"Patient/np{number}/$pcp", f"Patient/sp{number}/$pcp"),
        *(f"CarePlan/na{number}/$summary", f"CarePlan/na{number}/$changes"),
        *(f"Encounter/ne{number}/$notices", f"Encounter/nx{number}/$notices"),
    ]
    for who in side:
        url = f"/?_type={','.join(READ)}&_lastUpdated=ge{began}&_count=1000"
        answer = await twin.world.get(who, url)
        assert answer.status_code == 200, answer.text
        found = [entry["resource"] for entry in answer.json().get("entry", ())]
        seen[f"{who} reads"] = "\n".join(sorted(_plain(json.dumps(each), twin) for each in found))
        documents = [
            await twin.world.get(who, "/" + content["attachment"]["url"].rpartition("/fhir/")[2])
            for each in found
            for content in each.get("content", ())
            if each["resourceType"] == "DocumentReference"
        ]
        texts = sorted(_plain(f"{each.status_code} {each.text}", twin) for each in documents)
        seen[f"{who} reads documents"] = "\n".join(texts)
        for url in asked:
            answer = await twin.world.get(who, f"/{url}")
            assert answer.status_code < 500, answer.text
            seen[f"{who} asks {url}"] = _plain(f"{answer.status_code} {answer.text}", twin)
    for place, (who, id_) in enumerate(twin.subscriptions):
        for ending in ("", "/$status", "/$events", f"/$explain?reference=Encounter/se{number}"):
            answer = await twin.world.get(who, f"/Subscription/{id_}{ending}")
            assert answer.status_code < 500, answer.text
            seen[f"{who} asks its Subscription {place}{ending}"] = _plain(answer.text, twin)
    return seen


def _plain(text: str, twin: Twin) -> str:
    """The text without what no two servers share: ids that they gave, moments, addresses of endpoints."""
    return _VARIES.sub("<>", text.replace(twin.receiver.url, "<hook>"))


async def _end(twin: Twin) -> None:
    for _, id_ in twin.subscriptions:
        await twin.world.ask("admin", "DELETE", f"/Subscription/{id_}")
    twin.subscriptions.clear()
    await twin.world.server.mongo.collection("timers").delete_many({})
    await twin.settle()
