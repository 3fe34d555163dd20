"""Who a patient's PCP is: the sources and their order, periods, merges, and what is wrong with it (Patient/$pcp)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.builders.practices import (
    PAST,
    TOMORROW,
    YESTERDAY,
    care_team,
    dated,
    endpoint,
    group,
    organization,
    panel,
    patient,
    practitioner,
    put,
    ref,
    role,
)
from tests.conftest import Server, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo


async def pcp(
    client: httpx.AsyncClient, name: str, **query: str
) -> tuple[list[dict[str, Any]], set[str]]:
    """The `pcp` parts by name, `endpoint` as a list, and the problems."""
    response = await client.get(f"/Patient/{name}/$pcp", params=query)
    assert response.status_code == 200, response.text
    found, problems = [], set()
    for parameter in response.json().get("parameter", []):
        if parameter["name"] == "problem":
            problems.add(parameter["valueCode"])
            continue
        parts: dict[str, Any] = {"endpoint": []}
        for part in parameter["part"]:
            value = next(v for key, v in part.items() if key.startswith("value"))
            value = value["reference"] if isinstance(value, dict) else value
            if part["name"] == "endpoint":
                parts["endpoint"].append(value)
            else:
                parts[part["name"]] = value
        found.append(parts)
    return found, problems


async def who(client: httpx.AsyncClient, name: str, **query: str) -> tuple[list[str], set[str]]:
    """The organization or practitioner of each provider, and the problems but for their deafness."""
    found, problems = await pcp(client, name, **query)
    names = [each.get("organization") or each["practitioner"] for each in found]
    return names, problems - {"no-endpoint", "nobody-listens"}


@pytest.fixture(scope="module")
async def practices(shared_app: tuple[Server, httpx.AsyncClient]) -> httpx.AsyncClient:
    """Three practices of one doctor each: a with its own endpoint, b with one of the organization, c with none."""
    client = shared_app[1]
    await put(
        client,
        endpoint("at-end-a"),
        endpoint("at-end-b"),
        endpoint("at-end-off", status="off"),
        endpoint("at-end-dicom", connection="dicom-wado-rs"),
        organization("at-org-a"),
        organization("at-org-b", "at-end-off", "at-end-dicom", "at-end-b"),
        organization("at-org-c"),
        *(practitioner(f"at-dr-{name}") for name in ("a", "b", "c", "d", "e")),
        role("at-role-a", "at-dr-a", "at-org-a", "at-end-a"),
        role("at-role-b", "at-dr-b", "at-org-b"),
        role("at-role-c", "at-dr-c", "at-org-c"),
        role("at-role-d1", "at-dr-d", "at-org-a"),
        role("at-role-d2", "at-dr-d", "at-org-b"),
        role("at-role-old", "at-dr-e", "at-org-b", active=False),
    )
    return client


async def test_a_general_practitioner_is_resolved_to_role_practice_and_endpoint(
    practices: httpx.AsyncClient,
) -> None:
    since = "2026-01-05"
    await put(practices, patient("at-1", dated("Practitioner/at-dr-a", since)))
    found, problems = await pcp(practices, "at-1")
    assert found == [
        {
            "practitioner": "Practitioner/at-dr-a",
            "practitioner-role": "PractitionerRole/at-role-a",
            "organization": "Organization/at-org-a",
            "endpoint": ["Endpoint/at-end-a"],
            "source": "general-practitioner",
            "since": "2026-01-05T00:00:00.000Z",
        }
    ]
    assert problems == {"nobody-listens"}  # an Endpoint alone tells nobody


@pytest.mark.parametrize(
    ("reference", "endpoints"),
    [
        pytest.param("PractitionerRole/at-role-a", ["Endpoint/at-end-a"], id="role"),
        pytest.param(
            "PractitionerRole/at-role-b", ["Endpoint/at-end-b"], id="role-by-organization"
        ),
        pytest.param("Organization/at-org-b", ["Endpoint/at-end-b"], id="organization"),
    ],
)
async def test_endpoints_are_the_roles_own_or_the_organizations_active_fhir_ones(
    practices: httpx.AsyncClient, reference: str, endpoints: list[str]
) -> None:
    await put(practices, patient("at-2", ref(reference)))
    found, problems = await pcp(practices, "at-2")
    assert [each["endpoint"] for each in found] == [endpoints]
    assert problems == {"nobody-listens"}  # an Endpoint alone tells nobody


@pytest.mark.parametrize("code", ["446050000", "453231000124104"])
async def test_both_snomed_codes_make_a_participant_the_pcp(
    practices: httpx.AsyncClient, code: str
) -> None:
    name = f"at-3-{code}"
    team = care_team(name, name, "Practitioner/at-dr-b", code=code)
    other = {"role": [{"coding": [{"code": "17561000"}]}], "member": ref("Practitioner/at-dr-c")}
    team["participant"].append(other)
    await put(practices, patient(name), team)
    assert await who(practices, name) == (["Organization/at-org-b"], set())


async def test_a_participant_acts_for_the_organization_it_names(
    practices: httpx.AsyncClient,
) -> None:
    """Of the doctor's two practices the one that the care team means."""
    team = care_team("at-4", "at-4", "Practitioner/at-dr-d")
    team["participant"][0]["onBehalfOf"] = ref("Organization/at-org-b")
    await put(practices, patient("at-4"), team)
    found, problems = await pcp(practices, "at-4")
    assert [each["practitioner-role"] for each in found] == ["PractitionerRole/at-role-d2"]
    assert problems == {"nobody-listens"}  # an Endpoint alone tells nobody


async def test_a_roster_with_the_panel_code_names_the_pcp_of_its_members(
    practices: httpx.AsyncClient,
) -> None:
    await put(
        practices,
        patient("at-5"),
        panel("at-5", "Organization/at-org-b", "Patient/at-5"),
        group("at-5-state", "Patient/at-5", managingEntity=ref("Organization/at-org-c")),
    )
    found, _ = await pcp(practices, "at-5")
    assert [(each["source"], each["organization"]) for each in found] == [
        ("group", "Organization/at-org-b")
    ]


async def test_a_panels_characteristic_goes_before_its_manager(
    practices: httpx.AsyncClient,
) -> None:
    """The plan keeps the list, the characteristic says whose patients they are."""
    roster = panel("at-6", "Organization/at-org-c", "Patient/at-6", of="PractitionerRole/at-role-a")
    await put(practices, patient("at-6"), roster)
    assert await who(practices, "at-6") == (["Organization/at-org-a"], set())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"period": {"start": PAST}}, ["Organization/at-org-b"], id="began"),
        pytest.param({"period": {"end": TOMORROW}}, ["Organization/at-org-b"], id="lasts"),
        pytest.param({"period": {"start": TOMORROW}}, [], id="future"),
        pytest.param({"period": {"start": PAST, "end": YESTERDAY}}, [], id="ended"),
        pytest.param({"inactive": True}, [], id="inactive"),
    ],
)
async def test_a_members_period_and_inactive_count(
    practices: httpx.AsyncClient, change: dict[str, Any], expected: list[str]
) -> None:
    roster = panel("at-7", "Organization/at-org-b", "Patient/at-7")
    await put(practices, patient("at-7"), roster)
    roster["member"][0].update(change)
    await put(practices, roster)
    assert (await who(practices, "at-7"))[0] == expected


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"active": False}, id="not-active"),
        pytest.param({"actual": False, "member": []}, id="not-actual"),
        pytest.param({"type": "practitioner"}, id="no-persons"),
        pytest.param({"code": {"text": "pcp-panel"}}, id="no-panel"),
    ],
)
async def test_other_groups_are_no_rosters(
    practices: httpx.AsyncClient, change: dict[str, Any]
) -> None:
    roster = {**panel("at-8", "Organization/at-org-b", "Patient/at-8"), **change}
    await put(practices, patient("at-8"), {k: v for k, v in roster.items() if v != []})
    assert await who(practices, "at-8") == ([], {"no-pcp"})


async def test_the_first_source_that_names_anybody_wins(practices: httpx.AsyncClient) -> None:
    team = care_team("at-9", "at-9", "PractitionerRole/at-role-a")
    await put(
        practices,
        patient("at-9", ref("PractitionerRole/at-role-b")),
        panel("at-9", "Organization/at-org-c", "Patient/at-9"),
        team,
    )
    assert await who(practices, "at-9") == (["Organization/at-org-a"], set())
    await put(practices, {**team, "status": "inactive"})
    assert await who(practices, "at-9") == (["Organization/at-org-b"], set())
    await put(practices, patient("at-9"))
    assert await who(practices, "at-9") == (["Organization/at-org-c"], set())


@pytest.mark.slow
async def test_the_order_of_the_sources_is_a_setting(mongod: str) -> None:
    settings = make_settings(mongod, attribution="group,general-practitioner")
    async with running(settings) as (_, client):
        await put(
            client,
            organization("o1"),
            organization("o2"),
            organization("o3"),
            patient("p", ref("Organization/o1")),
            panel("g", "Organization/o2", "Patient/p"),
            care_team("t", "p", "Organization/o3"),
        )
        assert await who(client, "p") == (["Organization/o2"], set())


@pytest.mark.parametrize("where", ["participant", "team"])
async def test_a_pcp_whose_period_ended_is_told_nothing(
    practices: httpx.AsyncClient, where: str
) -> None:
    name = f"at-10-{where}"
    team = care_team(name, name, "PractitionerRole/at-role-a")
    target = team if where == "team" else team["participant"][0]
    target["period"] = {"start": PAST, "end": YESTERDAY}
    await put(practices, patient(name), team)
    assert await who(practices, name) == ([], {"pcp-period-ended"})
    # An undated entry elsewhere does not bring the same one back, another one counts.
    await put(practices, patient(name, ref("PractitionerRole/at-role-a")))
    assert await who(practices, name) == ([], {"pcp-period-ended"})
    await put(practices, patient(name, ref("PractitionerRole/at-role-b")))
    assert await who(practices, name) == (["Organization/at-org-b"], set())


@pytest.mark.parametrize("source", ["care-team", "group"])
@pytest.mark.parametrize("turned", [False, True], ids=["first-begins-first", "second-begins-first"])
async def test_of_two_periods_what_they_have_in_common_counts(
    practices: httpx.AsyncClient, source: str, turned: bool
) -> None:
    """A care team's and its participant's, a roster member's and the PCP's of the roster."""
    first = {"start": "2026-01-01", "end": "2026-06-30"}
    second = {"start": "2026-04-01", "end": "2026-12-31"}
    if turned:
        first, second = second, first
    name = f"at-23-{source}-{turned}"
    if source == "care-team":
        told = care_team(name, name, "PractitionerRole/at-role-a")
        told["period"] = first
        told["participant"][0]["period"] = second
    else:
        told = panel(
            name, "Organization/at-org-c", f"Patient/{name}", of="PractitionerRole/at-role-a"
        )
        told["member"][0]["period"] = first
        told["characteristic"][0]["period"] = second
    await put(practices, patient(name), told)

    async def on(moment: str) -> tuple[list[str], set[str]]:
        return await who(practices, name, at=moment)

    assert (await on("2026-03-31T23:59:59Z"))[0] == []
    assert await on("2026-04-01T00:00:00Z") == (["Organization/at-org-a"], set())
    assert await on("2026-06-30T23:59:59Z") == (["Organization/at-org-a"], set())
    assert await on("2026-07-01T00:00:00Z") == ([], {"pcp-period-ended"})
    (found,), _ = await pcp(practices, name, at="2026-05-01T00:00:00Z")
    assert found["since"] == "2026-04-01T00:00:00.000Z"


@pytest.mark.parametrize(
    ("period", "expected"),
    [
        pytest.param({"start": PAST}, ["Organization/at-org-a"], id="began"),
        pytest.param({"end": TOMORROW}, ["Organization/at-org-a"], id="lasts"),
        pytest.param({"start": TOMORROW}, [], id="future"),
        pytest.param({"start": PAST, "end": YESTERDAY}, [], id="ended"),
    ],
)
async def test_a_role_is_nobody_outside_its_period(
    practices: httpx.AsyncClient, period: dict[str, str], expected: list[str]
) -> None:
    named = {**role("at-24", "at-24", "at-org-a"), "period": period}
    await put(practices, named, patient("at-24", ref("PractitionerRole/at-24")))
    problems = set() if expected else {"pcp-period-ended"}
    assert await who(practices, "at-24") == (expected, problems)


async def test_of_a_doctors_two_practices_the_one_whose_role_lasts_is_meant(
    practices: httpx.AsyncClient,
) -> None:
    left = {
        **role("at-25-a", "at-25", "at-org-a"),
        "period": {"start": PAST, "end": "2026-03-31"},
    }
    joined = {**role("at-25-b", "at-25", "at-org-b"), "period": {"start": "2026-04-01"}}
    await put(practices, left, joined, patient("at-25", ref("Practitioner/at-25")))
    for moment, expected in (("2026-03-31", "at-org-a"), ("2026-04-01", "at-org-b")):
        named = await who(practices, "at-25", at=f"{moment}T12:00:00Z")
        assert named == ([f"Organization/{expected}"], set())


async def test_a_role_that_is_not_active_is_over(practices: httpx.AsyncClient) -> None:
    await put(practices, patient("at-11", ref("PractitionerRole/at-role-old")))
    assert await who(practices, "at-11") == ([], {"pcp-period-ended"})


async def test_a_handover_follows_the_dates_to_the_end_of_the_day(
    practices: httpx.AsyncClient,
) -> None:
    await put(
        practices,
        patient(
            "at-12",
            dated("PractitionerRole/at-role-a", "2025", "2026-03-31"),
            dated("PractitionerRole/at-role-b", "2026-04-01"),
        ),
    )

    async def on(moment: str) -> list[str]:
        return (await who(practices, "at-12", at=moment))[0]

    assert await on("2024-12-31T23:59:59Z") == []
    assert await on("2026-03-31T23:59:59Z") == ["Organization/at-org-a"]
    assert await on("2026-04-01T00:00:00Z") == ["Organization/at-org-b"]


async def test_of_two_practices_the_later_is_told_and_a_person_asked(
    practices: httpx.AsyncClient,
) -> None:
    await put(
        practices,
        patient(
            "at-13",
            dated("PractitionerRole/at-role-a", "2025-01-01"),
            dated("PractitionerRole/at-role-b", "2026-01-01"),
        ),
    )
    assert await who(practices, "at-13") == (["Organization/at-org-b"], {"several-pcps"})


async def test_where_dates_do_not_tell_two_practices_apart_both_are_told(
    practices: httpx.AsyncClient,
) -> None:
    roles = ref("PractitionerRole/at-role-a"), ref("PractitionerRole/at-role-b")
    await put(practices, patient("at-14", *roles))
    names, problems = await who(practices, "at-14")
    assert set(names) == {"Organization/at-org-a", "Organization/at-org-b"}
    assert problems == {"several-pcps"}


async def test_two_doctors_of_one_practice_are_no_problem(practices: httpx.AsyncClient) -> None:
    both = ref("PractitionerRole/at-role-a"), ref("PractitionerRole/at-role-d1")
    await put(practices, patient("at-15", *both))
    names, problems = await who(practices, "at-15")
    assert (set(names), problems) == ({"Organization/at-org-a"}, set())


async def test_a_doctor_of_two_practices_stays_a_doctor_alone(practices: httpx.AsyncClient) -> None:
    await put(practices, patient("at-16", ref("Practitioner/at-dr-d")))
    assert await who(practices, "at-16") == (["Practitioner/at-dr-d"], {"several-pcps"})


async def test_a_pcp_without_an_endpoint_is_named_as_such(practices: httpx.AsyncClient) -> None:
    await put(practices, patient("at-17", ref("PractitionerRole/at-role-c")))
    found, problems = await pcp(practices, "at-17")
    assert [each["endpoint"] for each in found] == [[]]
    assert problems == {"no-endpoint"}


async def test_a_merged_patient_is_followed_to_the_survivor(practices: httpx.AsyncClient) -> None:
    merged = patient("at-18", ref("PractitionerRole/at-role-a"), active=False)
    merged["link"] = [{"type": "replaced-by", "other": ref("Patient/at-19")}]
    await put(practices, patient("at-19"), care_team("at-19", "at-19", "Organization/at-org-b"))
    await put(practices, merged)
    assert await who(practices, "at-18") == (["Organization/at-org-b"], {"merged-patient"})


async def test_merges_in_a_circle_end(practices: httpx.AsyncClient) -> None:
    for one, other in (("at-20", "at-21"), ("at-21", "at-20")):
        link = [{"type": "replaced-by", "other": ref(f"Patient/{other}")}]
        await put(practices, {**patient(one), "link": link})
    assert await who(practices, "at-20") == ([], {"merged-patient", "no-pcp"})


async def test_a_patient_who_is_not_here_is_not_found(practices: httpx.AsyncClient) -> None:
    assert_outcome(await practices.get("/Patient/at-nobody/$pcp"), 404, "not-found")


async def test_a_malformed_moment_is_refused(practices: httpx.AsyncClient) -> None:
    await put(practices, patient("at-22"))
    response = await practices.get("/Patient/at-22/$pcp", params={"at": "yesterday"})
    assert_outcome(response, 400, "value")


@pytest.fixture
async def absolute(mongod: str) -> AsyncIterator[httpx.AsyncClient]:
    async with running(make_settings(mongod, base_url="https://hub.example/fhir")) as (_, client):
        yield client


async def test_references_under_the_servers_own_base_are_its_own(
    absolute: httpx.AsyncClient,
) -> None:
    base = "https://hub.example/fhir"
    roster = panel("g", f"{base}/PractitionerRole/r", f"{base}/Patient/p")
    named = role("r", f"{base}/Practitioner/d", f"{base}/Organization/o", f"{base}/Endpoint/e")
    await put(absolute, endpoint("e"), organization("o"), named, patient("p"), roster)
    found, problems = await pcp(absolute, "p")
    assert found == [
        {
            "practitioner": "Practitioner/d",
            "practitioner-role": "PractitionerRole/r",
            "organization": "Organization/o",
            "endpoint": ["Endpoint/e"],
            "source": "group",
        }
    ]
    assert problems == {"nobody-listens"}  # an Endpoint alone tells nobody
