"""Who sees and writes what, through every door: two organizations of each role ask for the same things."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.authorization.restricted_store import RestrictedStore
from app.consent import labels
from app.fhir.ids import new_id
from app.store.store import Store
from tests.builders.access_world import (
    AGREED,
    Registered,
    World,
    condition,
    contract,
    coverage,
    designated,
    encounter,
    references,
    security,
    world as a_world,
)
from tests.builders.practices import organization, patient, ref, role
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

OWN = {"north": "n", "south": "s", "general": "n", "city": "s", "plan-a": "n", "plan-b": "s"}
OWN |= {"agency": "n", "bureau": "s"}
EVERYBODY = [pytest.param(who, id=who) for who in OWN]
SEERS = [pytest.param(who, id=who) for who in OWN if who not in ("general", "city")]


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod) as found:
        yield found


def other(who: str) -> str:
    return {"n": "s", "s": "n"}[OWN[who]]


# Who it is


async def test_without_a_token_nothing_is_answered_but_metadata(world: World) -> None:
    for url in ("/Patient/pn", "/Patient", "/_history", "/Patient/pn/$everything", "/Nothing/x"):
        answer = await world.client.get(url)
        assert_outcome(answer, 401, "login")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert (await world.client.get("/metadata")).status_code == 200


# Reading


@pytest.mark.parametrize("who", EVERYBODY)
async def test_a_patient_is_read_by_its_own(world: World, who: str) -> None:
    assert (await world.get(who, f"/Patient/p{OWN[who]}")).status_code == 200
    assert (await world.get(who, f"/Encounter/e{OWN[who]}")).status_code == 200


@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize(
    "door", ["", "/_history", "/_history/1", "/$everything", "/$meta", "/$pcp"]
)
async def test_a_foreign_patient_is_as_if_there_were_none(
    world: World, who: str, door: str
) -> None:
    hidden = await world.get(who, f"/Patient/p{other(who)}{door}")
    absent = await world.get(who, f"/Patient/nobody{door}")
    assert hidden.status_code == absent.status_code == 404
    assert hidden.json() == absent.json()


@pytest.mark.parametrize("who", EVERYBODY)
async def test_searches_find_what_is_ones_own(world: World, who: str) -> None:
    side = OWN[who]
    assert await world.found(who, "/Patient?_id=pn,ps") == [f"Patient/p{side}"]
    assert await world.found(who, "/Encounter?_id=en,es") == [f"Encounter/e{side}"]
    assert await world.found(who, "/Patient?identifier=urn:mrn|" + OWN[who]) == [f"Patient/p{side}"]
    assert await world.found(who, "/Patient?family=Family" + other(who)) == []


@pytest.mark.parametrize("who", SEERS)
async def test_what_is_about_a_patient_follows_the_patient(world: World, who: str) -> None:
    assert await world.found(who, "/Condition?_id=cn,cs") == [f"Condition/c{OWN[who]}"]
    agreed = who not in AGREED or "Coverage" in AGREED[who]
    assert await world.found(who, "/Coverage?_id=vn,vs") == [f"Coverage/v{OWN[who]}"] * agreed


@pytest.mark.parametrize("who", ["general", "city"])
async def test_a_hospital_does_not_see_what_others_wrote_of_its_patients(
    world: World, who: str
) -> None:
    assert await world.found(who, "/Condition") == []


@pytest.mark.parametrize("who", EVERYBODY)
async def test_parameters_ask_nothing_of_what_is_hidden(world: World, who: str) -> None:
    theirs, mine = other(who), OWN[who]
    for url in (
        f"/Encounter?subject:Patient.family=Family{theirs}",
        f"/Encounter?patient.identifier=urn:mrn|{theirs}",
        f"/Patient?_has:Encounter:patient:_id=e{theirs}",
        f"/Organization?_has:Encounter:service-provider:_id=e{theirs}",
        f"/Organization?_has:Encounter:service-provider:subject:Patient.family=Family{theirs}",
        f"/Practitioner?_has:PractitionerRole:practitioner:_has:Patient:general-practitioner:_id=p{theirs}",
        f"/Patient?_filter=family eq Family{theirs}",
        f"/Patient?_text=Family{theirs}",
        f"/Patient?_content=Family{theirs}",
        f"/Patient?_list=p{theirs}",
        f"/Patient?_total=accurate&_summary=count&family=Family{theirs}",
    ):
        answer = (await world.get(who, url)).json()
        assert references(answer) == [], url
        assert answer.get("total", 0) == 0, url
    assert await world.found(who, f"/Encounter?subject:Patient.family=Family{mine}") == [
        f"Encounter/e{mine}"
    ]


@pytest.mark.parametrize("who", EVERYBODY)
async def test_totals_count_what_may_be_seen(world: World, who: str) -> None:
    answer = (await world.get(who, "/Patient?birthdate=1950-01-01&_summary=count")).json()
    assert answer["total"] == 1


@pytest.mark.parametrize("who", EVERYBODY)
async def test_includes_bring_nothing_hidden(world: World, who: str) -> None:
    hidden = {f"{kind}{other(who)}" for kind in ("Patient/p", "Encounter/e", "Condition/c")}
    for url in (
        "/Organization?_revinclude=Encounter:service-provider&_count=100",
        "/PractitionerRole?_revinclude=Patient:general-practitioner",
        "/Practitioner?_revinclude=PractitionerRole:practitioner"
        "&_revinclude:iterate=Patient:general-practitioner&_revinclude:iterate=Encounter:patient",
        "/Encounter?_include=*&_revinclude=*",
        "/Patient?_revinclude=*",
        "/?_type=Patient,Encounter,Condition",
        "/Organization?_revinclude=*",
    ):
        assert not hidden & set(await world.found(who, url)), url
    found = await world.found(who, "/Encounter?_include=Encounter:patient")
    assert f"Patient/p{OWN[who]}" in found


@pytest.mark.parametrize("who", EVERYBODY)
async def test_compartments_and_histories_show_ones_own(world: World, who: str) -> None:
    assert await world.found(who, f"/Patient/p{other(who)}/Encounter") == []
    assert await world.found(who, f"/Patient/p{other(who)}/*") == []
    for url in ("/_history?_count=1000", "/Patient/_history", "/Encounter/_history?_count=1"):
        text = (await world.get(who, url)).text
        assert f"Patient/p{other(who)}" not in text, url
        assert f"Encounter/e{other(who)}" not in text, url
    assert f"Encounter/e{OWN[who]}" in (await world.get(who, "/Encounter/_history?_count=1")).text


async def test_a_page_is_filled_up_with_what_may_be_seen(world: World) -> None:
    made = [condition(new_id(), each) for _ in range(5) for each in ("ps", "ps", "pn")]
    await world.put("admin", *made)
    mine = {f"Condition/{each['id']}" for each in made if each["subject"] == ref("Patient/pn")}
    seen: list[str] = []
    url = "/Condition?_count=2&_sort=_id"
    while url:
        answer = (await world.get("north", url)).json()
        page = references(answer)
        assert len(page) <= 2
        seen += page
        url = next((each["url"] for each in answer["link"] if each["relation"] == "next"), "")
        assert not url or len(page) == 2
    assert mine <= set(seen)
    assert len(seen) == len(set(seen))
    assert "Condition/cs" not in seen
    answer = (await world.get("north", "/Condition?_count=2&_total=accurate")).json()
    assert answer["total"] == len(seen)


async def test_everything_and_the_directory_go_together(world: World) -> None:
    found = await world.found("north", "/Patient/pn/$everything")
    assert {"Patient/pn", "Encounter/en", "Condition/cn", "Organization/general"} <= set(found)
    assert not {"Patient/ps", "Encounter/es"} & set(
        await world.found("north", "/Patient/$everything")
    )
    assert (await world.get("north", "/Organization/city")).status_code == 200


async def test_types_in_no_table_are_closed(world: World) -> None:
    await world.put("admin", {"resourceType": "Person", "id": "x", "active": True})
    assert (await world.get("admin", "/Person/x")).status_code == 200
    for who in OWN:
        assert_outcome(await world.get(who, "/Person/x"), 403, "forbidden")
        assert_outcome(await world.get(who, "/Person"), 403, "forbidden")


async def test_a_role_that_nobody_knows_sees_nothing(world: World) -> None:
    world.authority.known["nobody"] = Registered("Organization/north", None)  # type: ignore[arg-type]
    for url in ("/Patient/pn", "/Organization/north", "/Patient"):
        assert_outcome(await world.get("nobody", url), 403, "forbidden")


async def test_who_changes_the_practice_changes_the_readers_at_once(world: World) -> None:
    name = new_id()
    await world.put("admin", patient(name, ref("PractitionerRole/role-n")), condition(name, name))
    assert (await world.get("north", f"/Condition/{name}")).status_code == 200
    await world.put("admin", patient(name, ref("PractitionerRole/role-s")))
    assert (await world.get("north", f"/Condition/{name}")).status_code == 404
    assert (await world.get("north", f"/Patient/{name}/_history/1")).status_code == 404
    assert (await world.get("south", f"/Condition/{name}")).status_code == 200


async def test_a_version_about_another_patient_stays_hidden(world: World) -> None:
    name = new_id()
    await world.put("admin", condition(name, "ps"), condition(name, "pn"))
    assert (await world.get("north", f"/Condition/{name}")).status_code == 200
    assert (await world.get("north", f"/Condition/{name}/_history/1")).status_code == 404
    history = (await world.get("north", f"/Condition/{name}/_history")).json()
    assert [each["response"]["etag"] for each in history["entry"]] == ['W/"2"']
    assert (await world.get("south", f"/Condition/{name}/_history/1")).status_code == 404


async def test_what_is_deleted_is_gone_for_its_own_alone(world: World) -> None:
    name = new_id()
    await world.put("admin", condition(name, "pn"))
    assert (await world.ask("admin", "DELETE", f"/Condition/{name}")).status_code == 204
    assert (await world.get("north", f"/Condition/{name}")).status_code == 410
    assert (await world.get("south", f"/Condition/{name}")).status_code == 404


async def test_members_end_with_their_coverage(world: World) -> None:
    name = new_id()
    await world.put("admin", patient(name), coverage(name, name, "plan-a"))
    assert (await world.get("plan-a", f"/Patient/{name}")).status_code == 200
    over = {"period": {"start": "2020-01-01", "end": "2020-12-31"}}
    await world.put("admin", coverage(name, name, "plan-a", **over))
    assert (await world.get("plan-a", f"/Patient/{name}")).status_code == 404


async def test_a_contract_designates_a_group(world: World) -> None:
    name = new_id()
    await world.put("admin", patient(name), designated(name, "plan-b", name))
    assert (await world.get("agency", f"/Patient/{name}")).status_code == 404
    await world.put("admin", contract(name, name, "agency"))
    assert (await world.get("agency", f"/Patient/{name}")).status_code == 200


# Scopes


@pytest.mark.parametrize(
    ("method", "url", "scopes", "missing"),
    [
        pytest.param("GET", "/Patient/pn", "system/Patient.s", "system/Patient.r", id="read"),
        pytest.param("GET", "/Patient/pn/_history/1", "system/Patient.s", "system/Patient.r", id="vread"),
        pytest.param("GET", "/Patient/pn/_history", "system/Patient.s", "system/Patient.r", id="history"),
        pytest.param("GET", "/Patient/_history", "system/Patient.r", "system/Patient.s", id="type-history"),
        pytest.param("GET", "/Patient", "system/Patient.r", "system/Patient.s", id="search"),
        pytest.param("GET", "/Patient/pn/Encounter", "system/Patient.rs", "system/Encounter.s", id="compartment"),
        pytest.param("DELETE", "/Patient/pn", "system/Patient.cru", "system/Patient.d", id="delete"),
        pytest.param("DELETE", "/Goal?_id=x", "system/Goal.d", "system/Goal.s", id="conditional-delete"),
        pytest.param("GET", "/Patient/pn/$everything", "system/Encounter.rs", "system/Patient.r", id="everything"),
        pytest.param("GET", "/Patient/pn/$pcp", "system/Encounter.rs", "system/Patient.r", id="pcp"),
        pytest.param("GET", "/Patient/$meta", "system/Patient.r", "system/Patient.s", id="meta"),
        pytest.param("GET", "/Subscription/$status", "system/Patient.r", "system/Subscription.r", id="status"),
    ],
)  # fmt: skip
async def test_a_missing_scope_is_named(
    world: World, method: str, url: str, scopes: str, missing: str
) -> None:
    outcome = assert_outcome(await world.ask("north", method, url, scopes=scopes), 403, "forbidden")
    assert missing in outcome["issue"][0]["diagnostics"]


@pytest.mark.parametrize(
    ("method", "url", "missing"),
    [
        pytest.param("POST", "/Condition", "c", id="create"),
        pytest.param("PUT", "/Condition/cn", "u", id="update"),
        pytest.param("PUT", "/Condition?_id=cn", "u", id="conditional-update"),
    ],
)
async def test_writes_need_their_own_scope(
    world: World, method: str, url: str, missing: str
) -> None:
    answer = await world.ask(
        "north", method, url, condition("cn", "pn"), scopes="system/Condition.rs"
    )
    assert (
        f"system/Condition.{missing}"
        in assert_outcome(answer, 403, "forbidden")["issue"][0]["diagnostics"]
    )


async def test_foreign_scopes_grant_nothing(world: World) -> None:
    for scopes in ("patient/*.rs", "user/*.cruds", "system/Patient.sr", "openid"):
        assert_outcome(await world.get("north", "/Patient/pn", scopes=scopes), 403, "forbidden")


async def test_a_restricted_scope_shows_what_its_query_finds(world: World) -> None:
    finished, name = "system/Encounter.cruds?status=finished", new_id()
    await world.put("admin", encounter(name, "pn", "general", status="finished"))
    assert await world.found("north", "/Encounter", scopes=finished) == [f"Encounter/{name}"]
    assert (await world.get("north", "/Encounter/en", scopes=finished)).status_code == 404
    assert (await world.get("north", f"/Encounter/{name}", scopes=finished)).status_code == 200
    assert (
        await world.get("north", "/Encounter/en/_history/1", scopes=finished)
    ).status_code == 404
    # Neither may what is outside be changed, nor what is inside be moved outside.
    for body in (encounter("en", "pn", status="finished"), encounter(name, "pn")):
        answer = await world.ask("north", "PUT", f"/Encounter/{body['id']}", body, scopes=finished)
        assert_outcome(answer, 403, "forbidden")
    # What stays inside may.
    body = encounter(name, "pn", "general", status="finished", priority={"text": "urgent"})
    answer = await world.ask("general", "PUT", f"/Encounter/{name}", body, scopes=finished)
    assert answer.status_code == 200, answer.text
    both = finished + " system/Patient.rs"
    assert await world.found("north", "/Patient?_has:Encounter:patient:_id=en", scopes=both) == []


async def test_what_was_deleted_may_be_written_anew_within_a_restriction(world: World) -> None:
    name = new_id()
    scopes = "system/Condition.cruds?code=c"
    for method, status in (("PUT", 201), ("DELETE", 204), ("PUT", 201)):
        body = condition(name, "pn") if method == "PUT" else None
        answer = await world.ask("north", method, f"/Condition/{name}", body, scopes=scopes)
        assert answer.status_code == status, answer.text


async def test_a_restriction_that_is_not_understood_grants_nothing(world: World) -> None:
    for query in ("_count=1", "nonsense=1", "patient.family=Familyn", "_sort=_id", "_has:X:y:z=1"):
        scopes = f"system/Encounter.rs?{query}"
        assert_outcome(await world.get("north", "/Encounter", scopes=scopes), 403, "forbidden")


async def test_includes_and_chains_stay_within_the_scopes(world: World) -> None:
    only = "system/Encounter.rs"
    assert await world.found("north", "/Encounter?_id=en&_include=*", scopes=only) == [
        "Encounter/en"
    ]
    assert await world.found("north", "/Encounter?patient.family=Familyn", scopes=only) == []
    assert await world.found(
        "north", "/Patient/pn/$everything", scopes="system/Patient.rs system/Condition.rs"
    ) == [*await world.found("north", "/Condition?patient=pn"), "Patient/pn"]


# Writing


@pytest.mark.parametrize("who", SEERS)
async def test_a_write_under_a_hidden_id_is_refused_as_under_a_free_one(
    world: World, who: str
) -> None:
    foreign = f"p{other(who)}"
    hidden = await world.ask(
        who, "PUT", f"/Condition/c{other(who)}", condition(f"c{other(who)}", foreign)
    )
    free = await world.ask(who, "PUT", "/Condition/free", condition("free", foreign))
    assert hidden.json() == free.json()
    assert_outcome(hidden, 403, "forbidden")
    assert (await world.get("admin", "/Condition/free")).status_code == 404


async def test_nobody_reaches_a_patient_by_writing_about_them(world: World) -> None:
    claims: list[tuple[str, dict[str, Any]]] = [
        ("north", condition("x", "ps")),
        ("north", encounter("x", "ps")),
        ("general", encounter("x", "ps", "general")),
        ("plan-a", coverage("x", "ps", "plan-a")),
        ("plan-a", designated("x", "plan-a", "ps")),
        ("agency", designated("x", "agency", "ps")),
        ("north", {**designated("x", "north", "ps")}),
        ("north", role("x", "dr-s", "north")),
        ("north", role("role-n", "dr-s", "north")),
        ("north", {**organization("city"), "partOf": ref("Organization/north")}),
        ("north", patient("ps", ref("PractitionerRole/role-n"))),
        (
            "north",
            {
                "resourceType": "CareTeam",
                "id": "x",
                "status": "active",
                "subject": ref("Patient/ps"),
                "participant": [{"member": ref("Organization/north")}],
            },
        ),
        ("north", {"resourceType": "Group", "id": "list-n", "type": "person", "actual": True}),
        ("north", {"resourceType": "SearchParameter", "id": "x", "status": "draft"}),
    ]
    for who, body in claims:
        for method, url in (
            ("PUT", f"/{body['resourceType']}/{body['id']}"),
            ("POST", "/" + body["resourceType"]),
        ):
            answer = await world.ask(who, method, url, body)
            if method == "POST" and body.get("id") == "ps":
                continue  # a patient of one's own
            assert answer.status_code in (400, 403), (who, method, body, answer.text)
    assert (await world.get("north", "/Patient/ps")).status_code == 404


async def test_a_hospital_is_told_how_a_stranger_becomes_its_patient(world: World) -> None:
    """In the same words whoever it is, known here or not, and whether or not the id is taken."""
    told = set()
    for id_, who in (("es", "ps"), (new_id(), "ps"), (new_id(), "nobody-here")):
        stay = encounter(id_, who, "general")
        refused = await world.ask("general", "PUT", f"/Encounter/{id_}", stay)
        assert_outcome(refused, 403, "forbidden")
        told.add(refused.text)
    assert len(told) == 1
    assert "send the Patient in the same transaction" in told.pop()


async def test_a_hospital_writes_of_its_patients_and_speaks_for_itself(world: World) -> None:
    name = new_id()
    bundle = {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [
            {"resource": patient(name), "request": {"method": "PUT", "url": f"Patient/{name}"}},
            {
                "resource": encounter(name, name, "general"),
                "request": {"method": "PUT", "url": f"Encounter/{name}"},
            },
        ],
    }
    answer = await world.ask("general", "POST", "/", bundle)
    assert answer.status_code == 200, answer.text
    assert (await world.get("general", f"/Encounter/{name}")).status_code == 200
    assert (await world.get("city", f"/Encounter/{name}")).status_code == 404
    finished = encounter(name, name, "general", status="finished")
    await world.put("general", finished, condition(name, name))
    assert (await world.get("general", f"/Condition/{name}")).status_code == 200
    assert_outcome(
        await world.ask("general", "PUT", f"/Encounter/{name}", encounter(name, name, "city")),
        *(403, "forbidden"),
    )
    assert_outcome(await world.ask("city", "PUT", f"/Encounter/{name}", finished), 403, "forbidden")


async def test_what_one_sent_stays_ones_own_when_others_write(world: World) -> None:
    name = new_id()
    await world.put("general", patient(name))
    await world.put("admin", patient(name, active=False))
    assert (await world.get("general", f"/Patient/{name}")).json()["active"] is False
    started = await world.ask("admin", "POST", "/$reindex", {"resourceType": "Parameters"})
    assert started.status_code == 202
    while await world.server.reindexing.run_once():
        pass
    assert await world.found("general", f"/Patient?_id={name}") == [f"Patient/{name}"]


async def test_a_conditional_write_does_not_meet_a_hidden_match(world: World) -> None:
    headers = {"If-None-Exist": "identifier=urn:mrn|s"}
    body = {"resourceType": "Patient", "identifier": [{"system": "urn:mrn", "value": "s"}]}
    made = await world.ask("general", "POST", "/Patient", body, headers=headers)
    assert made.status_code == 201
    await world.ask("admin", "DELETE", f"/Patient/{made.json()['id']}")
    for place in ("/Condition?_id=cs", "/Condition/cs"):
        assert (await world.ask("general", "DELETE", place)).status_code == 204
    assert (await world.get("admin", "/Condition/cs")).status_code == 200
    patch = [{"op": "test", "path": "/id", "value": "ps"}]
    answer = await world.ask(
        "general",
        "PATCH",
        "/Patient/ps",
        patch,
        headers={"Content-Type": "application/json-patch+json"},
    )
    assert answer.status_code == 404


async def test_a_conditional_reference_does_not_find_what_is_hidden(world: World) -> None:
    answers = []
    for value in ("s", "nobody"):
        body = condition("cref", "pn")
        body["subject"] = {"reference": f"Patient?identifier=urn:mrn|{value}"}
        answers.append(await world.ask("general", "PUT", "/Condition/cref", body))
    hidden, absent = answers
    assert_outcome(hidden, 412, "not-found")
    assert hidden.json() == absent.json()


async def test_a_patch_needs_the_right_to_read_what_it_answers(world: World) -> None:
    headers = {"Content-Type": "application/json-patch+json"}
    patch = [{"op": "replace", "path": "/status", "value": "finished"}]
    answer = await world.ask(
        "north", "PATCH", "/Encounter/en", patch, scopes="system/Encounter.u", headers=headers
    )
    assert_outcome(answer, 403, "forbidden")


async def test_every_entry_of_a_bundle_is_judged(world: World) -> None:
    def bundle(kind: str, *requests: dict[str, Any]) -> dict[str, Any]:
        return {"resourceType": "Bundle", "type": kind, "entry": list(requests)}

    def asking(method: str, url: str, resource: Any = None) -> dict[str, Any]:
        entry: dict[str, Any] = {"request": {"method": method, "url": url}}
        return entry | ({"resource": resource} if resource else {})

    reads = [
        asking("GET", url) for url in ("Patient/ps", "Patient/pn", "Patient?_id=ps", "Condition/cn")
    ]
    answer = await world.ask(
        "north", "POST", "/", bundle("batch", *reads), scopes="system/Patient.rs"
    )
    statuses = [each["response"]["status"] for each in answer.json()["entry"]]
    assert statuses == ["404", "200", "200", "403"]
    assert "Familys" not in answer.text
    for entry in (
        asking("PUT", "Condition/cs", condition("cs", "ps")),
        asking("POST", "Condition", condition("x", "ps")),
        asking("DELETE", "Condition/cn"),
        asking("GET", "Condition/cn"),
    ):
        mine = asking("PUT", "Encounter/en", encounter("en", "pn", "general"))
        answer = await world.ask(
            "north", "POST", "/", bundle("transaction", mine, entry),
            scopes="system/Encounter.cruds system/Condition.cu",
        )  # fmt: skip
        assert_outcome(answer, 403, "forbidden")
    link = {**condition("x", "x"), "subject": ref("Patient?identifier=urn:mrn|s")}
    answer = await world.ask(
        "north", "POST", "/", bundle("transaction", asking("POST", "Condition", link))
    )
    assert answer.status_code == 412
    assert "matches nothing" in answer.text


async def test_owners_keep_their_entries_of_the_directory(world: World) -> None:
    await world.put("north", {**organization("north"), "alias": ["The North"]})
    endpoint = {
        "resourceType": "Endpoint",
        "id": "north-1",
        "status": "active",
        "connectionType": {"code": "hl7-fhir-rest"},
        "payloadType": [{"text": "any"}],
        "address": "https://north.example/fhir",
        "managingOrganization": ref("Organization/north"),
    }
    await world.put("north", endpoint)
    answer = await world.ask("south", "PUT", "/Endpoint/north-1", endpoint)
    assert_outcome(answer, 403, "forbidden")
    for who, body in (("south", organization("north")), ("north", organization("new"))):
        answer = await world.ask(who, "PUT", f"/Organization/{body['id']}", body)
        assert_outcome(answer, 403, "forbidden")


# Consent and labels


@pytest.mark.parametrize("who", ["north", "plan-a", "agency"])
@pytest.mark.parametrize("label", ["R", "V", "SUD", "42CFRPart2"])
async def test_labelled_content_is_hidden_from_all_who_need_permission(
    world: World, who: str, label: str
) -> None:
    name = new_id()
    await world.put("admin", condition(name, "pn", meta=security(label)))
    assert (await world.get(who, f"/Condition/{name}")).status_code == 404
    assert await world.found(who, f"/Condition?_id={name}") == []
    assert await world.found(who, f"/Patient?_has:Condition:patient:_id={name}") == []
    assert (await world.get("admin", f"/Condition/{name}")).status_code == 200


async def test_a_label_hides_whatever_its_system_is_called(world: World) -> None:
    made = [
        condition(new_id(), "pn", meta={"security": [{"code": code} | system]})
        for code in ("SUD", "R", "V")
        for system in ({}, *({"system": each} for each in sorted(labels.SYSTEMS)))
    ]
    entries = [
        {"resource": each, "request": {"method": "PUT", "url": f"Condition/{each['id']}"}}
        for each in made
    ]
    transaction = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    assert (await world.ask("admin", "POST", "/", transaction)).status_code == 200
    url = f"/Condition?_count=50&_id={','.join(each['id'] for each in made)}"
    assert len(await world.found("admin", url)) == len(made)
    assert await world.found("north", url) == []
    assert (await world.get("north", f"/Condition/{made[-1]['id']}")).status_code == 404


async def test_who_sent_it_knows_it_unless_it_is_very_restricted(world: World) -> None:
    name = new_id()
    await world.put("general", patient(name))
    await world.put("general", encounter(name, name, "general", meta=security("R")))
    assert (await world.get("general", f"/Encounter/{name}")).status_code == 200
    await world.put("general", encounter(name, name, "general", meta=security("V")))
    assert (await world.get("general", f"/Encounter/{name}")).status_code == 404
    await world.put("general", encounter(name, name, "general", status="finished"))


async def test_a_patient_who_refuses_providers_is_hidden_from_the_practice(world: World) -> None:
    name = new_id()
    refusal = {
        "resourceType": "Consent",
        "id": name,
        "status": "active",
        "scope": {"coding": [{"code": "patient-privacy"}]},
        "category": [
            {
                "coding": [
                    {
                        "system": "http://carerelay.example/CodeSystem/consent-category",
                        "code": "provider-access",
                    }
                ]
            }
        ],
        "patient": ref(f"Patient/{name}"),
        "policyRule": {"text": "-"},
        "provision": {"type": "deny"},
    }
    await world.put(
        "admin",
        patient(name, ref("PractitionerRole/role-n")),
        condition(name, name),
        coverage(name, name, "plan-a"),
    )
    assert (await world.get("north", f"/Condition/{name}")).status_code == 200
    of_everybody = world.server.accesses.disclosure.to_any_provider
    assert await of_everybody(f"Patient/{name}") is None
    await world.put("admin", refusal)
    is_told = await of_everybody(f"Patient/{name}")
    assert is_told is not None
    assert not is_told(f"Condition/{name}", labels.NONE)
    for url in (f"/Patient/{name}", f"/Condition/{name}", f"/Consent/{name}"):
        assert (await world.get("north", url)).status_code == 404
    assert await world.found("north", f"/Condition?patient={name}") == []
    assert (await world.get("plan-a", f"/Condition/{name}")).status_code == 200
    answer = await world.ask("north", "PUT", f"/Condition/{name}", condition(name, name))
    assert_outcome(answer, 403, "forbidden")


# Operations


@pytest.mark.parametrize(
    "url",
    ["/$reindex", "/Encounter/en/$notices", "/$meta"],
)
async def test_what_is_about_everybody_is_for_administrators(world: World, url: str) -> None:
    assert_outcome(await world.get("north", url), 403, "forbidden")


async def test_labels_in_use_are_those_of_ones_own(world: World) -> None:
    tag = {"tag": [{"system": "urn:x", "code": "secret-of-s"}]}
    await world.put("admin", condition(new_id(), "ps", meta=tag))
    assert "secret-of-s" not in (await world.get("north", "/Condition/$meta")).text
    assert "secret-of-s" in (await world.get("south", "/Condition/$meta")).text


@pytest.mark.slow
@pytest.mark.parametrize("url", ["/$export", "/Patient/$export", "/Group/{own}/$export"])
@pytest.mark.parametrize("who", ["north", "general", "plan-a", "agency"])
async def test_exports_hold_what_may_be_seen(world: World, who: str, url: str) -> None:
    if "Group" in url:
        name = new_id()
        manager = world.authority.known[who].organization or ""
        await world.put("admin", designated(name, manager.partition("/")[2], "pn", "ps"))
        url = url.format(own=name)
    asked = await world.get(who, url, headers={"Prefer": "respond-async"})
    if "Group" in url and who == "general":
        assert_outcome(asked, 403, "forbidden")
        return
    assert asked.status_code == 202, asked.text
    await world.server.exports.drain()
    place = asked.headers["Content-Location"]
    assert (await world.get("south", place)).status_code == 404
    manifest = (await world.get(who, place)).json()
    texts = [(await world.get(who, each["url"])).text for each in manifest["output"]]
    lines = "".join(texts)
    assert '"id":"en"' in lines
    if "Group" not in url or who == "north":
        assert '"id":"ps"' not in lines
        assert '"id":"es"' not in lines
    if "Group" in url:
        await world.ask("admin", "DELETE", f"/Group/{name}")


# The house


def test_the_view_makes_every_method_of_the_store_its_own() -> None:
    """What it would inherit, it has not judged."""
    public = {
        name for name, value in vars(Store).items() if not name.startswith("_") and callable(value)
    }
    missing = public - vars(RestrictedStore).keys()
    assert missing == {"prepare", "reindex"}, "what no client ever does"


async def test_the_store_of_a_caller_has_none_of_the_stores_own_parts(world: World) -> None:
    view = RestrictedStore.__new__(RestrictedStore)
    with pytest.raises(AttributeError):
        view.prepare()  # type: ignore[attr-defined]
