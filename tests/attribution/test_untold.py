"""Nobody is told without a trace: what reaches no practice waits for its cause, asks a person, and is told after all.

docs/routing.md, "Events that reach no practice"
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from app.automation import reactions
from app.fhir.codes import REVIEW_REASON, TASK_STATUS_REASON
from app.runtime.mongo import Document
from tests.builders.consents import actor, consent, deny
from tests.builders.practices import (
    care_team,
    endpoint,
    organization,
    panel,
    patient,
    put,
    ref,
)
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import ADMISSION, encounter, topic_based
from tests.conftest import Server, make_settings, running

pytestmark = pytest.mark.mongo

Pair = tuple[Server, httpx.AsyncClient]
Resource = dict[str, Any]


@pytest.fixture(scope="module")
async def hub(mongod: str) -> AsyncIterator[Pair]:
    """A server by default: nobody is subscribed who has not asked for it."""
    settings = make_settings(mongod, egress_allow="127.0.0.1", endpoint_subscriptions=False)
    async with running(settings) as pair:
        yield pair


async def settle(pair: Pair) -> None:
    """Let all that follows from what was written happen."""
    await pair[0].worker.drain()
    await pair[0].engine.drain()
    await pair[0].worker.drain()


async def write(pair: Pair, *resources: Resource) -> None:
    await put(pair[1], *resources)
    await settle(pair)


def stay(name: str, of: str, status: str = "in-progress", **more: Any) -> Resource:
    return {**encounter(status, patient=of, **more), "id": name}


async def follow(pair: Pair, receiver: Receiver, practice: str, topic: str = ADMISSION) -> None:
    """The practice subscribes for its panel."""
    filter_ = f"general-practitioner=Organization/{practice}"
    body = topic_based(filter_, endpoint=receiver.url) | {"criteria": topic}
    answer = await pair[1].post("/Subscription", json=body)
    assert answer.status_code == 201, answer.text
    await settle(pair)


async def rows(pair: Pair, name: str) -> list[Document]:
    """The rows that nobody was told by, of a record."""
    found = pair[0].mongo.collection("deliveries").find({"focus.id": name}).sort("_id", 1)
    return [row for row in await found.to_list(None) if row["subscription"].startswith("unrouted-")]


async def tasks(pair: Pair, focus: str) -> dict[str, Resource]:
    """The review Tasks about something, by reason."""
    answer = await pair[1].get("/Task", params={"focus": focus})
    found: dict[str, Resource] = {}
    for entry in answer.json().get("entry", ()):
        task = entry["resource"]
        (coding,) = task["code"]["coding"]
        assert coding["system"] == REVIEW_REASON
        assert coding["code"] not in found, "one Task for each cause"
        found[coding["code"]] = task
    return found


def count(task: Resource) -> int:
    (said,) = [each for each in task["input"] if "valuePositiveInt" in each]
    return int(said["valuePositiveInt"])


def closing(task: Resource) -> tuple[str, str]:
    (coding,) = task["statusReason"]["coding"]
    assert coding["system"] == TASK_STATUS_REASON
    return task["status"], coding["code"]


def told(receiver: Receiver) -> list[str]:
    return [each.focus.rpartition("/")[2] for each in receiver.events]


async def notices(pair: Pair, name: str) -> list[Resource]:
    """The Communications of $notices, and its outcome if there is one."""
    answer = await pair[1].get(f"/Encounter/{name}/$notices")
    found = [entry["resource"] for entry in answer.json().get("entry", ())]
    return [each for each in found if each["resourceType"] != "AuditEvent"]


async def test_an_endpoint_that_nobody_uses_is_asked_about_once_and_told_in_the_end(
    hub: Pair, receiver: Receiver
) -> None:
    await put(hub[1], endpoint("deaf"), organization("deaf", "deaf"))
    await put(hub[1], patient("deaf-1", ref("Organization/deaf")))
    await put(hub[1], patient("deaf-2", ref("Organization/deaf")))
    await write(hub, stay("deaf-a", "deaf-1"), stay("deaf-b", "deaf-2"))
    await write(hub, stay("deaf-a", "deaf-1", "finished"))
    assert [row["untold"]["cause"] for row in await rows(hub, "deaf-a")] == ["nobody-listens"] * 2
    hub[0].clock.advance(timedelta(seconds=31))
    await settle(hub)
    (task,) = (await tasks(hub, "Organization/deaf")).values()
    assert (task["status"], count(task)) == ("requested", 3)
    assert "CARERELAY_ENDPOINT_SUBSCRIPTIONS" in task["description"]
    assert "for" not in task
    ((_, problem),) = [
        (each["name"], each["valueCode"])
        for each in (await hub[1].get("/Patient/deaf-1/$pcp")).json()["parameter"]
        if each["name"] == "problem"
    ]
    assert problem == "nobody-listens"

    await follow(hub, receiver, "deaf")
    assert sorted(told(receiver)) == ["deaf-a", "deaf-b"]
    # It asks for admissions alone: the discharge waits for somebody who wants it.
    (task,) = (await tasks(hub, "Organization/deaf")).values()
    assert (task["status"], count(task)) == ("requested", 1)
    await follow(hub, receiver, "deaf", ADMISSION.replace("admission", "discharge"))
    assert told(receiver)[2:] == ["deaf-a"]
    (task,) = (await tasks(hub, "Organization/deaf")).values()
    assert closing(task) == ("completed", "no-longer-untold")
    said = {each["status"]: each for each in await notices(hub, "deaf-b")}
    assert said.keys() == {"not-done", "completed"}
    assert said["not-done"]["statusReason"]["text"].endswith("; told after all")
    assert said["completed"]["recipient"] == [ref("Organization/deaf")]


async def test_who_has_no_pcp_is_told_of_once_one_is_named(hub: Pair, receiver: Receiver) -> None:
    await put(hub[1], organization("late"), patient("late"))
    await follow(hub, receiver, "late")
    await write(hub, stay("late-a", "late"), stay("late-b", "late"))
    (task,) = [
        *(await tasks(hub, "Encounter/late-a")).values(),
        *(await tasks(hub, "Encounter/late-b")).values(),
    ]
    assert task["for"] == ref("Patient/late")
    (note,) = await notices(hub, "late-a")
    assert (note["status"], note["statusReason"]["text"]) == (
        "not-done",
        "No primary care practice is known",
    )
    await write(hub, patient("late", ref("Organization/late")))
    assert told(receiver) == ["late-a", "late-b"]
    task = (await hub[1].get(f"/Task/{task['id']}")).json()
    assert closing(task) == ("completed", "no-longer-untold")
    assert [row.get("untold") for row in await rows(hub, "late-a")] == [None]


@pytest.fixture
def late_reactions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reactions run when a test asks for it, long after the matching."""
    monkeypatch.setattr(reactions, "_GATHER_SECONDS", 3600)


@pytest.mark.usefixtures("late_reactions")
@pytest.mark.parametrize("by", ["patient", "team", "roster", "subscription"])
async def test_who_comes_between_matching_and_the_reaction_misses_nothing(
    hub: Pair, receiver: Receiver, by: str
) -> None:
    name, practice = f"between-{by}", ref(f"Organization/between-{by}")
    await settle(hub)  # lets the reactions of before run out
    await put(hub[1], organization(name))
    if by == "subscription":
        await write(hub, endpoint(name), organization(name, name), patient(name, practice))
    else:
        await write(hub, patient(name))
        await follow(hub, receiver, name)
    await put(hub[1], stay(f"{name}-a", name), stay(f"{name}-b", name))
    await hub[0].worker.drain()
    assert not receiver.events
    if by == "patient":
        await put(hub[1], patient(name, practice))
    elif by == "team":
        await put(hub[1], care_team(name, name, practice["reference"]))
    elif by == "roster":
        await put(hub[1], panel(name, practice["reference"], f"Patient/{name}"))
    else:
        filter_ = f"general-practitioner={practice['reference']}"
        body = topic_based(filter_, endpoint=receiver.url) | {"criteria": ADMISSION}
        assert (await hub[1].post("/Subscription", json=body)).status_code == 201
    await settle(hub)
    # Two visits, which are reacted to side by side.
    assert sorted(told(receiver)) == [f"{name}-a", f"{name}-b"]
    (row,) = await rows(hub, f"{name}-a")
    assert row["reason"].endswith("; told after all")
    assert "untold" not in row
    assert await tasks(hub, f"Organization/{name}") == {}
    await hub[0].engine.drain()
    assert len(receiver.events) == 2


@pytest.mark.usefixtures("late_reactions")
async def test_who_was_told_in_time_is_in_no_doubt(hub: Pair, receiver: Receiver) -> None:
    await settle(hub)
    await put(hub[1], organization("sure"), organization("other"))
    await put(hub[1], patient("sure", ref("Organization/sure")))
    await follow(hub, receiver, "sure")
    await follow(hub, receiver, "other")
    await put(hub[1], stay("sure", "sure"))
    await hub[0].worker.drain()
    await put(hub[1], patient("sure", ref("Organization/other")))
    await settle(hub)
    assert told(receiver) == ["sure"]
    assert await rows(hub, "sure") == []


async def test_a_cause_that_gives_way_to_another_asks_about_that(hub: Pair) -> None:
    await write(hub, organization("mute"), patient("mute"), stay("mute", "mute"))
    await write(hub, patient("mute", ref("Organization/mute")))
    assert closing((await tasks(hub, "Encounter/mute"))["no-pcp"])[0] == "completed"
    assert (await tasks(hub, "Organization/mute"))["no-endpoint"]["status"] == "requested"


async def test_of_a_newer_version_that_was_told_the_older_is_not_told(
    hub: Pair, receiver: Receiver
) -> None:
    await put(hub[1], organization("newer"), patient("newer"))
    await follow(hub, receiver, "newer")
    await write(hub, stay("newer", "newer", class_="EMER"))
    both = [patient("newer", ref("Organization/newer")), stay("newer", "newer")]
    entries = [
        {
            "request": {"method": "PUT", "url": f"{each['resourceType']}/{each['id']}"},
            "resource": each,
        }
        for each in both
    ]
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    assert (await hub[1].post("", json=bundle)).status_code == 200
    await settle(hub)
    hub[0].clock.advance(timedelta(seconds=31))  # where it was looked at before the newer was told
    await settle(hub)
    assert told(receiver) == ["newer"]
    (row, _) = await rows(
        hub, "newer"
    )  # the rise is a transfer, too, which the practice does not follow
    assert row["reason"].endswith("its practice was told of a newer version")


@pytest.mark.parametrize("what", ["cancelled", "entered-in-error", "deleted", "moved", "no rise"])
async def test_what_is_not_so_any_more_is_not_told_after_all(
    hub: Pair, receiver: Receiver, what: str
) -> None:
    name = f"undone-{what}".replace(" ", "-")
    await put(hub[1], organization(name), patient(name), patient(f"{name}-other"))
    await follow(hub, receiver, name)
    if what == "no rise":
        await write(hub, stay(name, name, class_="EMER"))
    await write(hub, stay(name, name))
    if what == "deleted":
        assert (await hub[1].delete(f"/Encounter/{name}")).status_code == 204
        await settle(hub)
    elif what == "moved":
        await write(hub, stay(name, f"{name}-other"))
    elif what == "no rise":
        await write(hub, stay(name, name, class_="EMER"))
    else:
        await write(hub, stay(name, name, what))
    await write(hub, patient(name, ref(f"Organization/{name}")))
    assert told(receiver) == ([name] if what == "no rise" else [])
    mended = [row for row in await rows(hub, name) if "untold" not in row]
    assert mended[-1]["reason"].endswith("; the record says otherwise by now")


async def test_a_discharge_that_was_taken_back_is_not_told_after_all(
    hub: Pair, receiver: Receiver
) -> None:
    await put(hub[1], organization("goes-on"), patient("goes-on"))
    for topic in (ADMISSION, ADMISSION.replace("admission", "discharge")):
        await follow(hub, receiver, "goes-on", topic)
    for status in ("in-progress", "finished", "in-progress"):
        await write(hub, stay("goes-on", "goes-on", status))
    await write(hub, patient("goes-on", ref("Organization/goes-on")))
    ends = {row["topic"].rpartition("-")[2]: row["reason"] for row in await rows(hub, "goes-on")}
    assert ends["discharge"].endswith("; the record says otherwise by now")
    sent = hub[0].mongo.collection("deliveries").find({"focus.id": "goes-on", "number": {"$gt": 0}})
    assert {row["topic"] for row in await sent.to_list(None)} == {ADMISSION}
    assert receiver.events


async def test_a_stay_whose_patient_was_merged_is_told_after_all(
    hub: Pair, receiver: Receiver
) -> None:
    await put(hub[1], organization("merged"), patient("merged-b"))
    await put(hub[1], patient("merged-a"))
    await follow(hub, receiver, "merged")
    await write(hub, stay("merged", "merged-a"))
    link = [{"other": ref("Patient/merged-b"), "type": "replaced-by"}]
    await write(hub, patient("merged-a", link=link, active=False), stay("merged", "merged-b"))
    await write(hub, patient("merged-b", ref("Organization/merged")))
    assert set(told(receiver)) == {"merged"}


async def test_what_a_consent_withholds_is_not_said_to_be_told(
    hub: Pair, receiver: Receiver
) -> None:
    name = "unwilling"
    no = deny(actor=actor(f"Organization/{name}"))
    await put(hub[1], organization(name), patient(name))
    await put(hub[1], consent(provision=no) | {"id": name, "patient": ref(f"Patient/{name}")})
    await follow(hub, receiver, name)
    await write(hub, stay(name, name))
    await write(hub, patient(name, ref(f"Organization/{name}")))
    assert not receiver.events
    (row,) = await rows(hub, name)
    assert row["reason"].endswith("; withheld, as a row of its own says")
    (task,) = (await tasks(hub, f"Encounter/{name}")).values()
    said = task["statusReason"]["coding"][0]["display"]
    assert said == "Nothing waits any more for what kept it from being told"


async def test_of_a_plan_that_a_consent_withholds_no_copy_is_claimed(
    hub: Pair, receiver: Receiver
) -> None:
    name = "unwilling-plan"
    no = deny(actor=actor(f"Organization/{name}"))
    plan = {"resourceType": "CarePlan", "id": name, "status": "active", "intent": "plan"}
    await put(hub[1], organization(name), patient(name))
    await put(hub[1], consent(provision=no) | {"id": name, "patient": ref(f"Patient/{name}")})
    await follow(hub, receiver, name, ADMISSION.replace("encounter-admission", "careplan-change"))
    await write(hub, {**plan, "subject": ref(f"Patient/{name}")})
    hub[0].clock.advance(timedelta(days=1))
    await settle(hub)
    await write(hub, patient(name, ref(f"Organization/{name}")))
    assert not receiver.events
    (row,) = await rows(hub, name)
    assert "untold" not in row
    assert row["reason"].endswith("if it may have it and the plan goes on")


async def test_a_visit_by_identifier_alone_is_told_once_it_names_its_patient(
    hub: Pair, receiver: Receiver
) -> None:
    number = {"system": "urn:oid:1.2.3", "value": "id-1"}
    await put(hub[1], organization("id"))
    await put(hub[1], patient("id", ref("Organization/id"), identifier=[number]))
    await follow(hub, receiver, "id")
    await write(hub, {**stay("id", "id"), "subject": {"identifier": number}})
    assert told(receiver) == []
    assert [row["untold"]["cause"] for row in await rows(hub, "id")] == ["subject-by-identifier"]
    assert (await tasks(hub, "Encounter/id"))["subject-by-identifier"]["status"] == "requested"
    await write(hub, stay("id", "id"))
    assert told(receiver) == ["id"]
    task = (await tasks(hub, "Encounter/id"))["subject-by-identifier"]
    assert closing(task)[0] == "completed"


async def test_a_patient_who_is_stored_later_is_told_of(hub: Pair, receiver: Receiver) -> None:
    await put(hub[1], organization("soon"))
    await follow(hub, receiver, "soon")
    await write(hub, stay("soon", "soon"))
    assert [row["untold"]["cause"] for row in await rows(hub, "soon")] == ["unknown-patient"]
    await write(hub, patient("soon", ref("Organization/soon")))
    assert told(receiver) == ["soon"]
    assert closing((await tasks(hub, "Encounter/soon"))["unknown-patient"])[0] == "completed"


async def test_an_endpoint_that_names_a_practice_is_shown_and_not_told(
    hub: Pair, receiver: Receiver
) -> None:
    lost = endpoint("lost", receiver.url) | {"managingOrganization": ref("Organization/lost")}
    await write(
        hub,
        organization("lost"),
        lost,
        patient("lost", ref("Organization/lost")),
        stay("l", "lost"),
    )
    task = (await tasks(hub, "Organization/lost"))["no-endpoint"]
    assert {"type": {"text": "Endpoint"}, "valueReference": ref("Endpoint/lost")} in task["input"]
    assert "Organization.endpoint" in task["description"]
    assert receiver.requests == []


async def test_what_the_server_raises_about_a_plan_leaves_a_trace(hub: Pair) -> None:
    plan = {
        "resourceType": "CarePlan",
        "id": "raised",
        "status": "active",
        "intent": "plan",
        "subject": ref("Patient/raised"),
    }
    await write(hub, patient("raised"), plan)
    hub[0].clock.advance(timedelta(days=1))
    await settle(hub)
    (row,) = await rows(hub, "raised")
    assert row["topic"].endswith("/careplan-change")
    assert row["untold"]["cause"] == "no-pcp"
    found = (await hub[1].get("/Communication", params={"subject": "Patient/raised"})).json()
    copies = [each["resource"] for each in found["entry"] if "payload" in each["resource"]]
    assert [each["status"] for each in copies] == ["not-done"]
    assert copies[0].keys().isdisjoint({"sent", "recipient"})


async def test_what_people_close_is_opened_by_the_next_that_is_not_told(hub: Pair) -> None:
    await write(hub, organization("shut"), patient("shut", ref("Organization/shut")))
    await write(hub, stay("shut-a", "shut"))
    task = (await tasks(hub, "Organization/shut"))["no-endpoint"]
    await put(hub[1], {**task, "status": "completed"})
    hub[0].clock.advance(timedelta(seconds=31))
    await settle(hub)
    assert (await tasks(hub, "Organization/shut"))["no-endpoint"]["status"] == "completed"
    await write(hub, stay("shut-b", "shut"))
    task = (await tasks(hub, "Organization/shut"))["no-endpoint"]
    assert (task["status"], count(task)) == ("requested", 2)


async def test_of_whom_there_is_no_notice_is_said_why(hub: Pair) -> None:
    await write(hub, patient("quiet"), stay("quiet", "quiet", "planned"))
    (outcome,) = await notices(hub, "quiet")
    assert "fired" in outcome["issue"][0]["diagnostics"]
    past = {"period": {"start": "2019-03-01", "end": "2019-03-04"}}
    await write(hub, stay("past", "quiet", "finished", **past))
    (outcome,) = await notices(hub, "past")
    assert "record" in outcome["issue"][0]["diagnostics"]


async def test_who_explains_a_subscription_hears_who_was_not_told(
    hub: Pair, receiver: Receiver
) -> None:
    await write(hub, organization("why"), patient("why", ref("Organization/why")))
    body = topic_based("patient=Patient/why", endpoint=receiver.url)
    made = (await hub[1].post("/Subscription", json=body)).json()
    await settle(hub)
    await write(hub, stay("why", "why"))
    answer = await hub[1].get(
        f"/Subscription/{made['id']}/$explain", params={"reference": "Encounter/why"}
    )
    said = [each for each in answer.json()["parameter"] if each["name"] == "nobody"]
    (nobody,) = said
    assert nobody["valueString"].endswith("The primary care practice has no endpoint")
    # Nobody is named as its recipient, so that what answers there is it.
    (sent, _) = sorted(await notices(hub, "why"), key=lambda each: str(each["status"]))
    assert sent["status"] == "completed"
    assert sent["recipient"] == [
        {"type": "Device", "identifier": {"system": "urn:ietf:rfc:3986", "value": receiver.url}}
    ]
