"""Documents: whoever one was made for reads it, by what attaches it, while the patient is its own.

A notice of a care plan names its document, one of a discharge the hospital's papers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.fhir.ids import new_id
from tests.authorization.access_cells import anonymous
from tests.authorization.access_records import bundle, entry
from tests.builders.access_world import CLIENTS, World, encounter, security, world as a_world
from tests.builders.care_plans import CHANGE
from tests.builders.consents import consent, deny
from tests.builders.practices import patient, ref
from tests.builders.receiver import receiving
from tests.builders.subscriptions import topic_based
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

NORTH, SOUTH = ref("PractitionerRole/role-n"), ref("PractitionerRole/role-s")
HOSPITAL = {"general", "city"}


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod, plan_quiet_period=0) as found:
        yield found


async def readers(world: World, reference: str) -> set[str]:
    """The clients, administrators aside, that read and find it: by each door the same ones."""
    type_, _, id_ = reference.partition("/")
    found: set[str] = set()
    for who in sorted(set(CLIENTS) - {"admin"}):
        doors = {
            (await world.get(who, f"/{reference}")).status_code == 200,
            (await world.get(who, f"/{reference}/_history/1")).status_code == 200,
            (await world.get(who, f"/{type_}?_id={id_}")).json().get("total") == 1,
        }
        assert len(doors) == 1, (who, doors)
        found |= {who} if doors == {True} else set()
    return found


def paper(id_: str, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Binary",
        "id": id_,
        "contentType": "text/plain",
        "data": "cGFwZXI=",
        **more,
    }


def attaching(id_: str, patient_id: str, url: str, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "DocumentReference",
        "id": id_,
        "status": "current",
        "subject": ref(f"Patient/{patient_id}"),
        "content": [{"attachment": {"contentType": "text/plain", "url": url}}],
        **more,
    }


async def test_the_document_of_a_care_plan_is_its_patients_practices_and_plans(
    world: World,
) -> None:
    """It follows the patient: to the next practice, and away from the one before."""
    about = {"subject": ref("Patient/pn"), "status": "active", "intent": "plan"}
    await world.put("plan-a", {"resourceType": "CarePlan", "id": "with-document", **about})
    await world.server.engine.drain()
    entries = (await world.get("north", "/DocumentReference?patient=pn")).json()["entry"]
    (index,) = [each["resource"] for each in entries]
    urls = [each["attachment"]["url"] for each in index["content"]]
    forms = ["/".join(url.split("/")[-2:]) for url in urls]
    assert [each.partition("/")[0] for each in forms] == ["Bundle", "Binary", "Binary"]
    document = forms[0]
    for form in forms:
        assert await readers(world, form) == {"north", "plan-a"}
    assert (await world.get("north", f"/{document}")).json()["type"] == "document"
    for method, body in (
        ("DELETE", None),
        ("PUT", {"resourceType": "Bundle", "type": "collection"}),
    ):
        given = None if body is None else {**body, "id": document.partition("/")[2]}
        answer = await world.ask("north", method, f"/{document}", given)
        assert answer.status_code in (204, 403)
    assert (await world.get("admin", f"/{document}")).status_code == 200
    moved = (await world.get("admin", "/Patient/pn")).json()
    await world.put("admin", {**moved, "generalPractitioner": [SOUTH]})
    try:
        for form in forms:
            assert await readers(world, form) == {"south", "plan-a"}
    finally:
        await world.put("admin", moved)


async def test_what_is_made_of_a_care_plan_is_told_as_far_as_the_plan_is_now(world: World) -> None:
    """A label or a refusal of later hides the document in each form, its index and what was said of the changes."""
    name = new_id()
    about = {"subject": ref("Patient/pn"), "status": "active", "intent": "plan"}
    plan = {"resourceType": "CarePlan", "id": name, **about}
    await world.put("plan-a", plan)
    await world.server.engine.drain()
    made: set[str] = set()
    for url in (
        f"DocumentReference?related=CarePlan/{name}",
        f"Communication?based-on=CarePlan/{name}",
    ):
        (found,) = (await world.get("admin", f"/{url}")).json()["entry"]
        record = found["resource"]
        made.add(f"{record['resourceType']}/{record['id']}")
        for each in record.get("content", ()):
            made.add("/".join(each["attachment"]["url"].split("/")[-2:]))
    assert len(made) == 5

    async def read_by_north() -> set[str]:
        return {each for each in made if "north" in await readers(world, each)}

    assert await read_by_north() == made
    whole = [{"meaning": "instance", "reference": ref(f"CarePlan/{name}")}]
    refusal = consent(id=name, patient=ref("Patient/pn"), provision=deny(data=whole))
    await world.put("admin", refusal)
    try:
        assert await read_by_north() == set()
    finally:
        await world.ask("admin", "DELETE", f"/Consent/{name}")
    assert await read_by_north() == made
    await world.put("plan-a", plan | {"meta": security("PSY")})
    assert await read_by_north() == set()


async def test_every_form_of_a_summary_is_judged_as_its_plan_is(world: World) -> None:
    """What a token may not search is neither told nor denied."""
    name = new_id()
    await world.put("admin", patient(name, NORTH))
    about = {"subject": ref(f"Patient/{name}"), "status": "active", "intent": "plan"}
    allergy = {
        "resourceType": "AllergyIntolerance",
        "id": name,
        "patient": ref(f"Patient/{name}"),
        "clinicalStatus": {
            "coding": [
                {
                    "system": "http://terminology.hl7.org/CodeSystem/allergyintolerance-clinical",
                    "code": "active",
                }
            ]
        },
        "code": {"text": "Penicillin"},
    }
    await world.put("admin", {"resourceType": "CarePlan", "id": name, **about}, allergy)
    for accept in ("application/fhir+json", "text/html", "application/pdf"):
        headers = {"accept": accept}
        told = [
            anonymous(
                await world.ask("south", "GET", f"/CarePlan/{each}/$summary", headers=headers), each
            )
            for each in (name, new_id())
        ]
        assert told[0] == told[1]
        assert told[0][0] == 404
    url, headers = f"/CarePlan/{name}/$summary", {"accept": "text/html"}
    whole = await world.ask("north", "GET", url, headers=headers)
    assert "Penicillin" in whole.text
    few = "system/CarePlan.r system/Patient.r"
    narrow = await world.ask("north", "GET", url, headers=headers, scopes=few)
    assert narrow.status_code == 200, narrow.text
    assert "Penicillin" not in narrow.text
    assert "Nobody looked for this: who asked may not search AllergyIntolerance." in narrow.text


async def test_the_copy_for_a_practice_that_came_is_its_own(world: World) -> None:
    """Who is not the practice is told nothing, though it subscribes to that practice's panel."""
    name = new_id()
    plan = {"resourceType": "CarePlan", "id": name, "status": "active", "intent": "plan"}
    async with receiving() as told, receiving() as stranger:
        for who, receiver in (("south", told), ("north", stranger)):
            panel = "general-practitioner=PractitionerRole/role-s"
            draft = topic_based(panel, endpoint=receiver.url) | {"criteria": CHANGE}
            await world.subscribe(who, draft)
        await world.put("admin", patient(name, NORTH), {**plan, "subject": ref(f"Patient/{name}")})
        await world.server.engine.drain()
        await world.put("admin", patient(name, SOUTH))
        await world.server.engine.drain()
        await world.server.worker.drain()
        assert [each.focus.rpartition("/")[2] for each in told.events] == [name]
        assert stranger.events == []
        await world.end_subscriptions()
    current = f"/DocumentReference?patient={name}&status=current"
    assert len(await world.found("north", current)) == 0
    (index,) = (await world.get("south", current)).json()["entry"]
    url = index["resource"]["content"][0]["attachment"]["url"]
    assert await readers(world, "/".join(url.split("/")[-2:])) == {"south"}


async def test_a_hospitals_paper_goes_with_what_attaches_it(world: World) -> None:
    """Its labels are its own, and what it was replaced by or loses is read no more."""
    name = new_id()
    await world.put("admin", patient(name, NORTH), encounter(name, name, "general"))
    await world.put("general", paper(name), paper(f"{name}-r", meta=security("R")))
    assert await readers(world, f"Binary/{name}") == {"general"}
    index = attaching(name, name, f"Binary/{name}")
    labelled = attaching(f"{name}-r", name, f"Binary/{name}-r")
    await world.put("general", index, labelled)
    assert await readers(world, f"Binary/{name}") == {"general", "north"}
    assert await readers(world, f"Binary/{name}-r") == {"general"}
    assert (await world.get("general", f"/DocumentReference/{name}")).status_code == 200
    await world.put("general", {**index, "meta": security("R")})
    assert await readers(world, f"Binary/{name}") == {"general"}
    await world.put("general", index)
    await world.ask("general", "DELETE", f"/DocumentReference/{name}")
    assert await readers(world, f"Binary/{name}") == {"general"}


async def test_nobody_reaches_a_paper_by_naming_it(world: World) -> None:
    """Neither by a DocumentReference of its own nor by changing one that its writer made."""
    name = new_id()
    await world.put("admin", patient(name, NORTH), encounter(name, name, "general"))
    await world.put("general", paper(name), paper(f"{name}-2"))
    hidden = f"Binary/{name}"
    await world.put("north", attaching(f"{name}-mine", name, hidden))
    assert await readers(world, hidden) == {"general"}
    index = attaching(f"{name}-2", name, f"Binary/{name}-2")
    await world.put("general", index)
    assert await readers(world, f"Binary/{name}-2") == {"general", "north"}
    await world.put("north", attaching(f"{name}-2", name, hidden))
    assert await readers(world, hidden) == {"general"}
    # Nor by one about somebody else's patient.
    await world.put("general", attaching(f"{name}-3", name, f"http://elsewhere.example/{hidden}"))
    assert await readers(world, hidden) == {"general"}


# Security contexts, https://hl7.org/fhir/R4/binary-definitions.html#Binary.securityContext

PDF = {"content-type": "application/pdf"}


async def send(world: World, who: str, id_: str, context: str, status: int = 201) -> httpx.Response:
    """Content as it is, of a security context."""
    headers = {**PDF, "x-security-context": context}
    url = f"/Binary/{id_}"
    answer = await world.ask(who, "PUT", url, headers=headers, content=b"%PDF")
    assert answer.status_code == status, answer.text
    return answer


async def binaries_read(world: World, *names: str) -> list[set[str]]:
    """The clients that read each of these Binaries, administrators aside."""
    found: list[set[str]] = [set() for _ in names]
    entries = [entry("GET", f"Binary/{name}") for name in names]
    for who in set(CLIENTS) - {"admin"}:
        answers = (await world.ask(who, "POST", "/", bundle("batch", *entries))).json()["entry"]
        for readers_, answer in zip(found, answers, strict=True):
            readers_ |= {who} if answer["response"]["status"] == "200" else set()
    return found


async def test_who_may_read_the_context_may_read_the_paper(world: World) -> None:
    """As a Patient's it is for whose patient that is; an agency reads what its Contract is about."""
    name = new_id()
    of_patient, of_visit, of_all = f"{name}-1", f"{name}-2", f"{name}-3"
    await world.put("admin", encounter(name, "pn", "general"))
    await send(world, "general", of_patient, "Patient/pn")
    await send(world, "general", of_visit, f"Encounter/{name}")
    await send(world, "general", of_all, "Organization/general")
    assert await readers(world, f"Binary/{of_patient}") == {"general", "north", "plan-a"}
    found = await binaries_read(world, of_visit, of_all)
    assert found[0] == {"agency", "general", "north", "plan-a"}
    assert found[1] == set(CLIENTS) - {"admin", "registrar"}
    read = await world.get("north", f"/Binary/{of_patient}")
    assert (read.content, read.headers["x-security-context"]) == (b"%PDF", "Patient/pn")
    by_context = f"/Binary?security-context=Patient/pn&_id={of_patient}"
    assert await world.found("north", by_context) == [f"Binary/{of_patient}"]
    assert await world.found("south", by_context) == []
    # To read it is not to write it.
    assert (await world.ask("north", "DELETE", f"/Binary/{of_patient}")).status_code == 204
    await send(world, "north", of_patient, "Patient/pn", status=403)
    assert (await world.get("admin", f"/Binary/{of_patient}")).headers["etag"] == '"1"'


async def test_labels_and_consents_of_the_context_count(world: World) -> None:
    name = new_id()
    visit = encounter(name, name, "general")
    labelled = encounter(f"{name}-r", name, "general", meta=security("R"))
    await world.put("admin", patient(name, NORTH), visit, labelled)
    await send(world, "general", name, f"Encounter/{name}")
    await send(world, "general", f"{name}-r", f"Encounter/{name}-r")
    logo = {"securityContext": ref("Organization/general"), "meta": security("R")}
    await world.put("general", paper(f"{name}-logo", **logo))
    names = (name, f"{name}-r", f"{name}-logo")
    assert await binaries_read(world, *names) == [{"general", "north"}, {"general"}, {"general"}]
    refusal = consent("provider-access", id=name, patient=ref(f"Patient/{name}"), provision=deny())
    await world.put("admin", refusal)
    assert await binaries_read(world, *names) == [{"general"}] * 3


async def test_a_context_stands_in_the_place_of_what_attaches(world: World) -> None:
    """One that is elsewhere, hidden or another Binary opens nothing; the writer has the paper all the same."""
    name = new_id()
    hidden = encounter(f"{name}-r", name, "general", meta=security("R"))
    await world.put("admin", patient(name, NORTH), encounter(name, name, "general"), hidden)
    await world.put("general", paper(f"{name}-open"))
    contexts = {
        f"{name}-hidden": f"Encounter/{name}-r",
        f"{name}-elsewhere": "http://elsewhere.example/fhir/Patient/pn",
        f"{name}-binary": f"Binary/{name}-open",
    }
    for own, context in contexts.items():
        await send(world, "general", own, context)
    names = (f"{name}-open", *contexts)
    await world.put("general", *(attaching(own, name, f"Binary/{own}") for own in names))
    found = await binaries_read(world, *names)
    assert found == [{"general", "north"}, {"general"}, {"general"}, {"general"}]


async def test_the_scopes_for_what_stands_for_a_paper_count(world: World) -> None:
    """Its security context, or the DocumentReference that attaches it: by type, and by what restricts a scope."""
    name = new_id()
    visit = encounter(name, name, "general")
    await world.put("admin", patient(name, NORTH), visit)
    await send(world, "general", name, f"Encounter/{name}")
    await world.put("general", paper(f"{name}-2"), attaching(name, name, f"Binary/{name}-2"))
    for id_, granting, others in (
        (name, f"Encounter.rs?status={visit['status']}", "Encounter.rs?status=planned"),
        (
            f"{name}-2",
            "DocumentReference.rs?status=current",
            "DocumentReference.rs?status=superseded",
        ),
    ):
        for more, status in (
            (granting, 200),
            (others, 404),
            (others.partition(".")[0] + ".s", 404),
        ):
            scopes = f"system/Binary.rs system/{more}"
            read = await world.get("north", f"/Binary/{id_}", scopes=scopes)
            assert read.status_code == status, (more, read.text)
            found = (await world.get("north", f"/Binary?_id={id_}", scopes=scopes)).json()
            assert found.get("total", 0) == (status == 200)


async def test_a_version_is_no_context(world: World) -> None:
    """It would be judged as it is now, and that may be about somebody else."""
    name = new_id()
    context = "Patient/pn/_history/1"
    refused = await send(world, "general", name, context, status=400)
    assert_outcome(refused, 400, "value", "Binary.securityContext")
    body = paper(name, securityContext=ref(context))
    refused = await world.ask("general", "PUT", f"/Binary/{name}", body)
    assert_outcome(refused, 422, "business-rule", "Binary.securityContext.reference")


async def test_a_context_is_one_that_its_writer_sees(world: World) -> None:
    """Hidden and unknown are told in the same words, and by every form of the write."""
    name, unknown = new_id(), new_id()
    await world.put("admin", encounter(name, "ps", "city"))
    for hidden, absent in (
        ("Patient/ps", f"Patient/{unknown}"),
        (f"Encounter/{name}", f"Encounter/{unknown}"),
    ):
        told = [await send(world, "north", new_id(), each, status=403) for each in (hidden, absent)]
        assert told[0].json() == told[1].json()
        assert_outcome(told[0], 403, "forbidden", "Binary.securityContext")
        as_resource = paper(new_id(), securityContext=ref(hidden))
        url = f"/Binary/{as_resource['id']}"
        assert_outcome(await world.ask("north", "PUT", url, as_resource), 403, "forbidden")


async def test_hidden_content_is_as_none_whatever_is_asked_for(world: World) -> None:
    name = new_id()
    await send(world, "city", name, "Patient/ps")
    for headers in (
        {"accept": "image/png"},
        {"accept": "application/pdf"},
        {"range": "bytes=99-"},
        {"if-none-match": '"1"'},
    ):
        for method in ("GET", "HEAD"):
            told = [
                anonymous(
                    await world.ask("north", method, f"/Binary/{each}", headers=headers), each
                )
                for each in (name, new_id())
            ]
            assert told[0] == told[1]
            assert told[0][0] == 404


async def test_a_client_with_a_token_posts_text(world: World) -> None:
    """No page has a token. Reading and writing take the scopes of the type, and are on record."""

    async def post(scopes: str) -> httpx.Response:
        headers = {"content-type": "text/plain", "x-security-context": "Patient/pn"}
        url = "/Binary"
        return await world.ask("general", "POST", url, scopes=scopes, headers=headers, content=b"x")

    assert_outcome(await post("system/Binary.rs"), 403, "forbidden")
    assert_outcome(await post("system/Binary.c"), 403, "forbidden", "Binary.securityContext")
    answer = await post("system/Binary.c system/Patient.r")
    assert answer.status_code == 201, answer.text
    reference = f"Binary/{answer.json()['id']}"
    refused = await world.get("north", f"/{reference}", scopes="system/Binary.c")
    assert_outcome(refused, 403, "forbidden")
    assert (await world.get("north", f"/{reference}")).content == b"x"
    events = (await world.get("admin", f"/AuditEvent?entity={reference}&patient=Patient/pn")).json()
    told = [each["resource"]["subtype"][0]["code"] for each in events["entry"]]
    assert sorted(told) == ["create", "read"]
