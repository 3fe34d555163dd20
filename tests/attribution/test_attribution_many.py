"""Attribution of many at once says what attribution of each one says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextvars import ContextVar
from datetime import datetime

import pytest

from app.attribution import attribution, many, unattributed
from app.attribution.practices import Provider
from app.records.reader import Reader
from app.records.versions import Change
from app.settings import Settings
from tests.builders.practices import (
    PAST,
    TOMORROW,
    YESTERDAY,
    care_team,
    dated,
    organization,
    panel,
    patient,
    practitioner,
    put,
    ref,
    role,
)
from tests.conftest import Server, make_settings, running

pytestmark = pytest.mark.mongo
ROLE_A, ROLE_B = ref("PractitionerRole/role-a"), ref("PractitionerRole/role-b")


@pytest.fixture(scope="module")
async def server(mongod: str) -> AsyncIterator[Server]:
    async with running(make_settings(mongod)) as (server, client):
        merged = {"link": [{"type": "replaced-by", "other": ref("Patient/team")}]}
        ended = {"period": {"start": PAST, "end": YESTERDAY}}
        begins = {"period": {"start": TOMORROW}}
        team_over = care_team("team-over", "team-over", "PractitionerRole/role-a") | ended
        team_over["participant"][0] |= begins
        left = panel("left", "Organization/a", "Patient/left")
        left["member"][0] |= ended
        circle = {"link": [{"type": "replaced-by", "other": ref("Patient/circle")}]}
        await put(
            client,
            *(organization(each) for each in ("a", "b")),
            *(practitioner(each) for each in ("dr-a", "dr-b", "dr-ab")),
            *(role("role-a", "dr-a", "a"), role("role-b", "dr-b", "b")),
            *(role("role-ab-1", "dr-ab", "a"), role("role-ab-2", "dr-ab", "b")),
            role("role-over", "dr-b", "b", active=False),
            role("role-ended", "dr-b", "b") | ended,
            patient("nobody"),
            patient("role", ROLE_A),
            patient("doctor", ref("Practitioner/dr-b")),
            patient("two-roles", ref("Practitioner/dr-ab")),
            patient("practice", ref("Organization/b")),
            patient("both", ROLE_A, ROLE_B),
            patient("over", dated("PractitionerRole/role-a", PAST, YESTERDAY)),
            patient("changed", ROLE_A, dated("PractitionerRole/role-b", YESTERDAY)),
            patient("later", dated("PractitionerRole/role-b", TOMORROW)),
            patient("inactive", ref("PractitionerRole/role-over")),
            patient("ended", ref("PractitionerRole/role-ended")),
            patient("team-over"),
            team_over,
            patient("left"),
            left,
            patient("team", ROLE_A),
            care_team("team", "team", "PractitionerRole/role-b"),
            patient("listed"),
            panel("listed", "Organization/a", "Patient/listed", "Patient/role"),
            patient("merged", ROLE_A) | merged,
            patient("staffed", ref("Organization/b")),
            patient("circle", ROLE_A) | circle,
            patient("into-circle") | circle,
        )
        own = care_team("staffed", "staffed", "PractitionerRole/role-b")
        await server.store.commit(
            [Change("create", "CareTeam", "staffed", own, sender="Organization/b")]
        )
        yield server


async def test_who_of_its_staff_it_is_a_practice_says_in_a_care_team_of_its_own(
    server: Server,
) -> None:
    """That another source names the practice makes the team count, and the role stands in the practice's place."""
    now, settings = server.mongo.now(), server.settings
    (alone,) = (
        await attribution.attributed(server.store, "Patient/staffed", now, settings)
    ).providers
    assert alone.practitioner_role == "PractitionerRole/role-b"
    assert alone.organization == "Organization/b"
    together = await many.providers(server.store, ["Patient/staffed"], now, settings)
    assert [each.practitioner_role for each in together["Patient/staffed"]] == [
        alone.practitioner_role
    ]


async def test_all_together_are_as_each_alone(server: Server) -> None:
    found = await server.store.find("Patient", {"terms": "*"}, projection={"_id": 1})
    names = [f"Patient/{row['_id']}" for row in found] + ["Patient/unknown"]
    now, settings = server.mongo.now(), server.settings
    alone = {}
    for name in names:
        one = await attribution.attributed(server.store, name, now, settings)
        alone[name] = {each.organization for each in one.providers if each.organization}
    together = await many.organizations(server.store, names, now, settings)
    assert {name: set(of) for name, of in together.items()} == alone
    assert alone["Patient/merged"] == {"Organization/b"}
    assert alone["Patient/listed"] == {"Organization/a"}
    for over in ("over", "inactive", "ended", "team-over", "left"):
        assert alone[f"Patient/{over}"] == set()


async def test_those_of_one_practice_are_found_among_others(server: Server) -> None:
    names = ["Patient/role", "Patient/doctor", "Patient/nobody", "Patient/both"]
    found = await many.attributed(
        server.store, names, "Organization/a", server.mongo.now(), server.settings
    )
    assert found == {"Patient/role", "Patient/both"}


async def test_in_order_are_those_of_whom_nothing_is_amiss(server: Server) -> None:
    found = await server.store.find("Patient", {"terms": "*"}, projection={"_id": 1})
    names = [f"Patient/{row['_id']}" for row in found] + ["Patient/unknown"]
    now, settings = server.mongo.now(), server.settings

    def listening(reference: str) -> bool:
        return reference == "Organization/a"

    alone = [
        name
        for name in names
        if not (
            await attribution.primary_care(server.store, name, now, settings, listening=listening)
        ).problems
    ]
    together = await many.in_order(server.store, names, now, settings, listening)
    assert sorted(together) == sorted(alone)
    assert {"Patient/role", "Patient/listed"} <= set(together)
    assert not {"Patient/doctor", "Patient/both", "Patient/merged", "Patient/over"} & set(together)


@pytest.mark.parametrize(
    ("sources", "certain"),
    [
        ("care-team,general-practitioner,group", "role doctor practice both team listed"),
        ("care-team,group", "team listed"),
    ],
)
async def test_of_whom_nobody_is_pcp_is_found_without_the_claims_of_those_who_have_one_for_certain(
    server: Server, monkeypatch: pytest.MonkeyPatch, sources: str, certain: str
) -> None:
    found = await server.store.find("Patient", {"terms": "*"}, projection={"_id": 1})
    merged = ("merged", "circle", "into-circle")
    names = {f"Patient/{row['_id']}" for row in found if row["_id"] not in merged}
    now, settings = server.mongo.now(), server.settings.model_copy(update={"attribution": sources})
    expected = {
        name
        for name in names
        if not (await attribution.attributed(server.store, name, now, settings)).providers
    }
    read = set[str]()
    providers = many.providers

    async def noting(
        store: Reader, patients: Collection[str], at: datetime, settings: Settings
    ) -> dict[str, tuple[Provider, ...]]:
        read.update(patients)
        return await providers(store, patients, at, settings)

    monkeypatch.setattr(many, "providers", noting)
    monkeypatch.setattr(unattributed, "_FEW", 0)
    assert await unattributed.without_pcp(server.store, names, now, settings) == expected
    assert "Patient/nobody" in expected <= read
    assert read.isdisjoint(f"Patient/{each}" for each in certain.split())


async def test_many_cost_four_reads(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    is_asking = ContextVar("is_asking", default=False)  # the server itself reads now and then
    for name in ("find", "find_together"):
        real = getattr(server.store, name)

        async def counting(*args: object, real: object = real, **more: object) -> object:
            if is_asking.get():
                reads.append(args)
            return await real(*args, **more)  # type: ignore[operator]

        monkeypatch.setattr(server.store, name, counting)
    names = [f"Patient/{each}" for each in ("role", "doctor", "both", "listed", "practice")]
    is_asking.set(True)
    await many.organizations(server.store, names * 20, server.mongo.now(), server.settings)
    assert 0 < len(reads) <= 4
