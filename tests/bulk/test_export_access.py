"""Whose exports hold what, who may have them, and what becomes of them when rights are lost. docs/access.md"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pymongo.monitoring
import pytest

from app.bulk import reading, writing
from app.fhir.ids import new_id
from tests.builders.access_world import CLIENTS, World, condition, designated, world as a_world
from tests.builders.exporting import ASYNC, kick_off, paused
from tests.builders.practices import patient
from tests.builders.smart import bearer, ec_key, register, token_for
from tests.conftest import BASE, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

RECORDS = "_type=Patient,Encounter,Condition,Coverage"
NORTH = {"Patient/pn", "Encounter/en", "Condition/cn", "Coverage/vn"}
SOUTH = {"Patient/ps", "Encounter/es", "Condition/cs", "Coverage/vs"}
# A hospital's are its visits and what it sent itself.
OWN = {
    "north": NORTH,
    "south": SOUTH,
    "general": {"Patient/pn", "Encounter/en"},
    "city": {"Patient/ps", "Encounter/es"},
    "plan-a": NORTH,
    "plan-b": SOUTH,
    # Their Contracts are about no Coverage.
    "agency": NORTH - {"Coverage/vn"},
    "bureau": SOUTH - {"Coverage/vs"},
    "admin": NORTH | SOUTH,
}


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod, max_exports=20) as found:
        found.authority.known["north-2"] = replace(CLIENTS["north"])
        yield found


# What is in one


@pytest.mark.slow
@pytest.mark.parametrize("who", OWN)
@pytest.mark.parametrize("level", ["", "/Patient"])
async def test_an_export_holds_the_callers_own(world: World, who: str, level: str) -> None:
    export = await kick_off(world, who, f"{level}/$export?{RECORDS}")
    assert await export.found() == OWN[who]


@pytest.mark.slow
@pytest.mark.parametrize("who", ["north", "plan-a", "agency", "admin"])
async def test_a_groups_export_holds_the_callers_own_among_its_members(
    world: World, who: str
) -> None:
    name = new_id()
    manager = (world.authority.known[who].organization or "Organization/agency").partition("/")[2]
    await world.put("admin", designated(name, manager, "pn", "ps"))
    try:
        export = await kick_off(world, who, f"/Group/{name}/$export?{RECORDS}")
        # Members of a Group that an agency manages are its patients; it has no Contract about their records.
        more = {"agency": {"Patient/ps"}, "admin": SOUTH}.get(who, set())
        assert await export.found() == OWN[who] | more
    finally:
        await world.ask("admin", "DELETE", f"/Group/{name}")


@pytest.mark.parametrize(
    ("who", "scopes", "found"),
    [
        pytest.param("north", "", {"Practitioner/of-n"}, id="of-its-own-patients"),
        pytest.param("admin", "", {"Practitioner/of-n", "Practitioner/of-s"}, id="administrator"),
        pytest.param(
            "north",
            "system/Group.rs system/Patient.rs system/Practitioner.rs",
            set(),
            id="no-records",
        ),
        pytest.param(
            "north",
            "system/Group.rs system/Patient.rs system/Condition.rs",
            set(),
            id="no-practitioners",
        ),
    ],
)
async def test_what_one_does_not_see_leads_to_nobody(
    world: World, who: str, scopes: str, found: set[str]
) -> None:
    for side in ("n", "s"):
        told_by = {"asserter": {"reference": f"Practitioner/of-{side}"}}
        await world.put(
            "admin",
            {"resourceType": "Practitioner", "id": f"of-{side}"},
            condition(f"told-{side}", f"p{side}", **told_by),
        )
    await world.put("admin", designated("both", "north", "pn", "ps"))
    try:
        export = await kick_off(world, who, "/Group/both/$export?_type=Practitioner", scopes=scopes)
        assert await export.found() & {"Practitioner/of-n", "Practitioner/of-s"} == found
    finally:
        for place in ("Group/both", "Condition/told-n", "Condition/told-s"):
            await world.ask("admin", "DELETE", f"/{place}")


async def test_a_group_that_one_does_not_see_is_not_exported(world: World) -> None:
    hidden = await world.get("plan-a", "/Group/list-n/$export", headers=ASYNC)
    absent = await world.get("plan-a", "/Group/nothing/$export", headers=ASYNC)
    assert_outcome(hidden, 404, "not-found")
    assert hidden.json() == absent.json()


async def test_deletions_of_others_are_not_told(world: World) -> None:
    mine, theirs = new_id(), new_id()
    await world.put("admin", condition(mine, "pn"), condition(theirs, "ps"))
    at = (await world.get("admin", f"/Condition/{mine}")).json()["meta"]["lastUpdated"]
    for each in (mine, theirs):
        await world.ask("admin", "DELETE", f"/Condition/{each}")
    export = await kick_off(world, "north", "/$export", params={"_type": "Condition", "_since": at})
    (deleted,) = (await export.manifest())["deleted"]
    text = (await world.get("north", deleted["url"])).text
    assert f"Condition/{mine}" in text
    assert theirs not in text


@pytest.mark.parametrize(
    ("scopes", "query", "found"),
    [
        pytest.param(
            "system/Patient.rs system/Encounter.rs",
            RECORDS,
            {"Patient/pn", "Encounter/en"},
            id="types",
        ),
        pytest.param("system/Patient.rs system/Coverage.r", RECORDS, {"Patient/pn"}, id="no-s"),
        pytest.param(
            "system/Patient.rs system/Encounter.rs?status=finished system/Condition.rs?code=c",
            RECORDS,
            {"Patient/pn", "Condition/cn"},
            id="restricted",
        ),
        pytest.param(
            "system/Patient.rs",
            "_type=Patient&_typeFilter=Patient?_has:Condition:patient:code=c",
            set(),
            id="asked-about-through-a-type-that-is-left-out",
        ),
    ],
)
async def test_what_the_token_has_no_scope_for_is_left_out(
    world: World, scopes: str, query: str, found: set[str]
) -> None:
    export = await kick_off(world, "north", f"/$export?{query}", scopes=scopes)
    assert await export.found() == found


# Whose it is


@pytest.mark.parametrize("who", ["south", "general", "agency", "admin", "north-2"])
async def test_an_export_is_nobody_elses(world: World, who: str) -> None:
    """Not another client's of the same organization either, nor the administrator's."""

    async def is_not_theirs(*places: str) -> None:
        for place in places:
            for method in ("GET", "HEAD"):
                assert (await world.ask(who, method, place)).status_code == 404
        assert_outcome(await world.ask(who, "DELETE", export.status), 404, "not-found")

    async with world.server.exports._running:  # nobody begins it
        export = await kick_off(world, "north", f"/$export?{RECORDS}")
        await is_not_theirs(export.status, f"{export.status}/0.ndjson")
    await is_not_theirs(export.status, *(await export.files()).values())
    assert await export.found() == NORTH


@pytest.mark.slow
async def test_an_export_is_worked_on_elsewhere_as_its_client_sees(world: World) -> None:
    """By a process that knows of the caller what the row says."""
    async with running(world.server.settings, world.authority) as (second, _):
        async with world.server.exports._running:
            async with second.exports._running:  # nobody begins them
                ours = await kick_off(world, "north", f"/$export?{RECORDS}")
                theirs = await kick_off(world, "admin", f"/$export?{RECORDS}")
            await second.exports.drain()
        assert await ours.found() == NORTH
        assert await theirs.found() == NORTH | SOUTH


# What is lost


LOSSES = [
    pytest.param({"disabled": True}, id="disabled"),
    pytest.param({"scopes": ("system/Patient.rs",)}, id="scopes"),
    pytest.param({"scopes": ("system/*.rs?_tag=x",)}, id="restricted"),
    pytest.param({"organization": "Organization/south"}, id="organization"),
    pytest.param({"role": "state"}, id="role"),
]


@contextmanager
def changed(world: World, changes: dict[str, Any]) -> Iterator[None]:
    """While it is open, `north` is registered otherwise."""
    known = world.authority.known
    before = known["north"]
    known["north"] = replace(before, **changes)
    try:
        yield
    finally:
        known["north"] = before


async def is_lost(world: World, status: str) -> None:
    """The export has failed, and nothing of it is there any more, though the client has its rights again."""
    assert_outcome(await world.get("north", status), 500, "forbidden")
    assert_outcome(await world.get("north", f"{status}/0.ndjson"), 404, "not-found")
    export_id = status.rpartition("/")[2]
    for name in ("export_files", "export_patients"):
        assert not await world.server.mongo.collection(name).count_documents({"_id.e": export_id})


@pytest.mark.parametrize("changes", LOSSES)
async def test_an_export_does_not_begin_without_the_rights_it_was_asked_for_with(
    world: World, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    reading_began, go_on = paused(monkeypatch, 1)
    go_on.set()
    with ExitStack() as meanwhile:
        async with world.server.exports._running:
            export = await kick_off(world, "north", f"/$export?{RECORDS}")
            meanwhile.enter_context(changed(world, changes))
        await world.server.exports.drain()
    assert not reading_began.is_set()
    await is_lost(world, export.status)


@pytest.mark.parametrize("changes", LOSSES)
async def test_an_export_under_way_ends_when_rights_are_lost(
    world: World, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    for module, name in ((reading, "_AT_ONCE"), (reading, "_LINES"), (writing, "_BYTES")):
        monkeypatch.setattr(module, name, 1)
    reached, go_on = paused(monkeypatch, 1)
    export = await kick_off(world, "north", f"/$export?{RECORDS}")
    await reached.wait()
    assert await world.server.mongo.collection("export_files").count_documents(
        {"_id.e": export.status.rpartition("/")[2]}
    )
    with changed(world, changes):
        go_on.set()
        await world.server.exports.drain()
    await is_lost(world, export.status)


async def test_rights_that_grow_or_do_not_matter_end_nothing(world: World) -> None:
    asked = f"/$export?{RECORDS}"
    with ExitStack() as meanwhile:
        async with world.server.exports._running:
            export = await kick_off(world, "north", asked, scopes="system/*.rs")
            few = tuple(f"system/{each}.rs" for each in ("Patient", "Encounter", "Condition"))
            more = (*few, "system/Coverage.cruds")
            meanwhile.enter_context(changed(world, {"scopes": more}))
        assert await export.found() == NORTH


@pytest.mark.parametrize("changes", LOSSES[1:])
async def test_a_finished_export_is_not_given_to_who_could_not_ask_for_it_any_more(
    world: World, changes: dict[str, Any]
) -> None:
    export = await kick_off(world, "north", f"/$export?{RECORDS}")
    files = await export.files()
    with changed(world, changes):
        for place in (export.status, *files.values()):
            assert_outcome(await world.get("north", place), 403, "forbidden")
    assert await export.found() == NORTH
    with changed(world, changes):  # it may be given up all the same
        assert (await world.ask("north", "DELETE", export.status)).status_code == 202
    assert_outcome(await world.get("north", export.status), 404, "not-found")


@pytest.mark.parametrize(
    ("scopes", "status"),
    [
        pytest.param("system/*.rs", 200, id="as-asked"),
        pytest.param("system/*.read", 200, id="as-asked-in-other-words"),
        pytest.param("system/Patient.rs", 403, id="another-type"),
        pytest.param("system/*.s", 403, id="another-right"),
        pytest.param("system/*.rs?_id=pn", 403, id="restricted"),
        pytest.param("system/Patient.cud", 403, id="nothing"),
    ],
)
async def test_a_token_fetches_what_could_be_asked_for_with_it(
    world: World, scopes: str, status: int
) -> None:
    export = await kick_off(world, "north", f"/$export?{RECORDS}", scopes="system/*.rs")
    for place in (*(await export.files()).values(), export.status):
        answer = await world.get("north", place, scopes=scopes)
        assert answer.status_code == status, answer.text
        if status == 403:
            said = assert_outcome(answer, 403, "forbidden")["issue"][0]["diagnostics"]
            assert "system/Condition." in said


@pytest.mark.slow
async def test_with_real_tokens_the_registry_is_asked(mongod: str, tmp_path: Path) -> None:
    settings = make_settings(mongod, auth="smart", base_url=BASE, data=tmp_path)
    async with running(settings) as (server, client):
        assert server.authority is not None
        key = ec_key()
        who = await register(server, key, role="administrator", organization=None)
        headers = bearer(await token_for(server, client, who, key))
        await client.put("/Patient/p1", json=patient("p1"), headers=headers)
        places = []
        for _ in range(2):
            asked = await client.get("/$export?_type=Patient", headers=headers | ASYNC)
            places.append(asked.headers["content-location"])
            await server.exports.drain()
        (file,) = (await client.get(places[0], headers=headers)).json()["output"]
        await server.authority.clients.disable(who)
        assert (await client.get(file["url"], headers=headers)).status_code == 401
        await server.authority.clients.disable(who, disabled=False)
        headers = bearer(await token_for(server, client, who, key))
        assert "p1" in (await client.get(file["url"], headers=headers)).text
        await server.authority.clients.set_scopes(who, "system/Encounter.rs")
        headers = bearer(await token_for(server, client, who, key))
        for place in (file["url"], *places):
            assert_outcome(await client.get(place, headers=headers), 403, "forbidden")


@pytest.mark.slow
async def test_what_was_asked_for_without_authorization_is_nobodys_with_it(mongod: str) -> None:
    settings = make_settings(mongod)
    async with running(settings) as (server, client), server.exports._running:
        await client.put("/Patient/p1", json=patient("p1"))
        assert (await client.get("/$export", headers=ASYNC)).status_code == 202
        async with running(settings.model_copy(update={"auth": "smart"})) as (second, _):
            await second.exports.drain()
            row = await second.mongo.collection("exports").find_one({})
            assert (row["state"], row["files"]) == ("failed", [])


# How long it takes


@pytest.mark.slow
async def test_the_time_limit_of_requests_is_not_that_of_an_export(
    mongod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work is what the kick-off started, and MongoDB is told no limit for any of it."""
    heard = Commands()
    before = pymongo.monitoring._LISTENERS
    pymongo.monitoring.register(heard)
    try:
        async with a_world(mongod, request_timeout=7) as world:
            reached, go_on = paused(monkeypatch, 1)
            heard.searches.clear()
            query = f"{RECORDS}&_typeFilter=Encounter?patient:Patient.name=Familyn"
            export = await kick_off(world, "north", f"/$export?{query}")
            await reached.wait()
            go_on.set()
            assert await export.found() == NORTH
    finally:
        pymongo.monitoring._LISTENERS = before
    limits = [command.get("maxTimeMS") for command in heard.searches if _is_of_records(command)]
    assert len(limits) > 4
    assert set(limits) == {None}


def _is_of_records(command: dict[str, Any]) -> bool:
    target = command.get("find") or command.get("aggregate")
    return target in ("Patient", "Encounter", "Condition", "Coverage")


class Commands(pymongo.monitoring.CommandListener):
    """Keeps the searches that were sent to the database."""

    def __init__(self) -> None:
        self.searches: list[dict[str, Any]] = []

    def started(self, event: pymongo.monitoring.CommandStartedEvent) -> None:
        if event.command_name in ("find", "aggregate"):
            self.searches.append(dict(event.command))

    def succeeded(self, event: Any) -> None: ...

    def failed(self, event: Any) -> None: ...


async def test_one_client_does_not_take_the_place_of_the_others(mongod: str) -> None:
    async with a_world(mongod, max_exports=4) as world, world.server.exports._running:
        for _ in range(2):
            await kick_off(world, "north", "/$export?_type=Patient")
        refused = await world.get("north", "/$export?_type=Patient", headers=ASYNC)
        outcome = assert_outcome(refused, 429, "throttled")
        assert "This client may have 2 exports" in outcome["issue"][0]["diagnostics"]
        assert int(refused.headers["retry-after"]) > 0
        for _ in range(2):
            await kick_off(world, "admin", "/$export?_type=Patient")
        refused = await world.get("south", "/$export?_type=Patient", headers=ASYNC)
        outcome = assert_outcome(refused, 429, "throttled")
        assert "Too many exports" in outcome["issue"][0]["diagnostics"]
