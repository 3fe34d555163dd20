"""A visit that turns out to be another patient's: who was told hears that it was not, who should have been is told.

docs/encounters.md, "Whose visit it is"
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from tests.builders.practices import group, organization, patient, put, ref
from tests.builders.subscriptions import encounter
from tests.builders.topic_listener import Listener, label, listening

pytestmark = pytest.mark.mongo

TOPICS = ("admission", "discharge", "transfer", "cancelled")
Correct = Callable[[httpx.AsyncClient, dict[str, Any]], Awaitable[httpx.Response]]


@pytest.fixture(scope="module")
async def hub(mongod: str) -> AsyncIterator[Listener]:
    """Anna's practice is `north`, Berta's is `south`; both are members whom the state hears of."""
    async with listening(mongod) as hub:
        replaced = {"link": [{"type": "replaced-by", "other": ref("Patient/berta")}]}
        await put(
            hub.client,
            organization("north"),
            organization("south"),
            patient("anna", ref("Organization/north")),
            patient("berta", ref("Organization/south")),
            patient("roberta", ref("Organization/north"), active=False, **replaced),
            group("members", "Patient/anna", "Patient/berta"),
        )
        for slug in TOPICS:
            for who, filter_ in (
                ("north", "general-practitioner=Organization/north"),
                ("south", "general-practitioner=Organization/south"),
                ("state", "group=Group/members"),
            ):
                await listen(hub, who, slug, filter_)
        yield hub


async def listen(hub: Listener, who: str, slug: str, filter_: str) -> None:
    before = hub.receiver.url
    hub.receiver.url = f"{before}/{who}"
    await hub.listen(f"encounter-{slug}", filter_, content="full-resource")
    hub.receiver.url = before


def stay(id_: str, of: str | None, status: str = "in-progress", **more: Any) -> dict[str, Any]:
    found = encounter(status, "IMP", id=id_, period={"start": "2026-11-14T07:42:11-06:00"}, **more)
    found["subject"] = ref(f"Patient/{of}")
    if of is None:
        del found["subject"]
    return found


async def write(hub: Listener, resource: dict[str, Any]) -> None:
    await put(hub.client, resource)
    await hub.server.worker.drain()


async def told(hub: Listener, id_: str) -> list[str]:
    """Who was told what of a stay, sorted, and forgotten then."""
    await hub.server.worker.drain()
    mine = [each for each in hub.receiver.events if each.focus.endswith(f"Encounter/{id_}")]
    heard = [label(each).replace("/encounter-", " ") for each in mine]
    hub.receiver.requests[:] = [each for each in hub.receiver.requests if each not in mine]
    return sorted(heard)


async def reviews(hub: Listener, id_: str) -> list[str]:
    await hub.server.engine.drain()
    found = (await hub.client.get("/Task", params={"focus": f"Encounter/{id_}"})).json()
    tasks = [entry["resource"] for entry in found.get("entry", ())]
    return sorted(task["code"]["coding"][0]["code"] for task in tasks)


async def by_put(client: httpx.AsyncClient, sent: dict[str, Any]) -> httpx.Response:
    return await client.put(f"/Encounter/{sent['id']}", json=sent)


async def by_version(client: httpx.AsyncClient, sent: dict[str, Any]) -> httpx.Response:
    headers = {"If-Match": 'W/"1"'}
    return await client.put(f"/Encounter/{sent['id']}", json=sent, headers=headers)


async def by_patch(client: httpx.AsyncClient, sent: dict[str, Any]) -> httpx.Response:
    patch = [{"op": "replace", "path": "/subject", "value": sent["subject"]}]
    return await client.patch(
        f"/Encounter/{sent['id']}",
        content=json.dumps(patch),
        headers={"Content-Type": "application/json-patch+json"},
    )


async def by_transaction(client: httpx.AsyncClient, sent: dict[str, Any]) -> httpx.Response:
    request = {"method": "PUT", "url": f"Encounter/{sent['id']}"}
    entry = {"request": request, "resource": sent}
    return await client.post(
        "", json={"resourceType": "Bundle", "type": "transaction", "entry": [entry]}
    )


@pytest.mark.parametrize("correct", [by_put, by_version, by_patch, by_transaction])
async def test_the_old_practice_hears_that_it_was_not_so_and_the_new_one_of_its_patient(
    hub: Listener, correct: Correct
) -> None:
    id_ = correct.__name__.replace("_", "-")
    await write(hub, stay(id_, "anna"))
    assert await told(hub, id_) == ["north admission:A01", "state admission:A01"]
    answer = await correct(hub.client, stay(id_, "berta"))
    assert answer.status_code == 200
    assert await told(hub, id_) == [
        "north cancelled:A11",
        "south admission:A01",
        "state admission:A01",
        "state cancelled:A11",
    ]
    assert (await hub.client.get(f"/Encounter/{id_}")).json() == {
        **stay(id_, "berta"),
        "meta": (await hub.client.get(f"/Encounter/{id_}")).json()["meta"],
    }
    history = (await hub.client.get(f"/Encounter/{id_}/_history")).json()["entry"]
    versions = [
        (each["resource"]["status"], each["resource"]["subject"]["reference"]) for each in history
    ]
    assert versions == [
        ("in-progress", "Patient/berta"),
        ("entered-in-error", "Patient/anna"),
        ("in-progress", "Patient/anna"),
    ]


async def test_the_old_practice_learns_nothing_of_the_other_patient(hub: Listener) -> None:
    await write(hub, stay("secret", "anna"))
    await write(hub, stay("secret", "berta", reasonCode=[{"text": "Berta's falls"}]))
    north = [each for each in hub.receiver.events if each.path.startswith("/north/")]
    mine = [each for each in north if each.focus.endswith("Encounter/secret")]
    assert len(mine) == 2
    assert "entered-in-error" in mine[1].body.decode()
    assert "erta" not in b"".join(each.body for each in mine).decode()


async def test_a_finished_stay_is_withdrawn_as_well(hub: Listener) -> None:
    await write(hub, stay("over", "anna"))
    await write(hub, stay("over", "anna", "finished"))
    await told(hub, "over")
    await write(hub, stay("over", "berta", "finished"))
    assert await told(hub, "over") == [
        "north cancelled:A11",
        "south discharge:A03",
        "state cancelled:A11",
        "state discharge:A03",
    ]


async def test_a_stay_and_its_patient_corrected_at_once(hub: Listener) -> None:
    await write(hub, stay("both", "anna"))
    await told(hub, "both")
    await write(hub, stay("both", "berta", "cancelled"))
    assert await told(hub, "both") == ["north cancelled:A11", "state cancelled:A11"]


async def test_what_nobody_was_told_of_is_not_withdrawn(hub: Listener) -> None:
    await write(hub, stay("quiet", "anna", "planned"))
    await write(hub, stay("quiet", "berta", "planned"))
    await write(hub, stay("quiet", "berta"))
    assert await told(hub, "quiet") == ["south admission:A01", "state admission:A01"]


async def test_a_cancelled_stay_is_not_withdrawn_twice(hub: Listener) -> None:
    await write(hub, stay("cancelled", "anna"))
    await write(hub, stay("cancelled", "anna", "cancelled"))
    await told(hub, "cancelled")
    await write(hub, stay("cancelled", "berta", "cancelled"))
    assert await told(hub, "cancelled") == []


async def test_a_patient_who_becomes_known_is_admitted(hub: Listener) -> None:
    await write(hub, stay("unnamed", None))
    assert await told(hub, "unnamed") == []
    await write(hub, stay("unnamed", "berta"))
    assert await told(hub, "unnamed") == ["south admission:A01", "state admission:A01"]


async def test_a_patient_whom_nobody_knows_is_looked_at(hub: Listener) -> None:
    await write(hub, stay("nobody", "anna"))
    await told(hub, "nobody")
    await write(hub, stay("nobody", "somebody"))
    assert await told(hub, "nobody") == ["north cancelled:A11", "state cancelled:A11"]
    assert "unknown-patient" in await reviews(hub, "nobody")


async def test_two_records_of_one_person_are_one_patient(hub: Listener) -> None:
    """Roberta's record was replaced by Berta's, so nothing was wrong but the number."""
    await write(hub, stay("merged", "roberta"))
    await told(hub, "merged")
    await write(hub, stay("merged", "berta"))
    assert await told(hub, "merged") == []
    assert (await hub.client.get("/Encounter/merged")).headers["ETag"] == 'W/"2"'


async def test_the_same_patient_written_otherwise_is_the_same(hub: Listener) -> None:
    await write(hub, stay("written", "anna"))
    await told(hub, "written")
    sent = stay("written", "anna")
    sent["subject"]["display"] = "Anna"
    await write(hub, sent)
    assert await told(hub, "written") == []


async def test_each_notice_is_about_the_version_that_says_so(hub: Listener) -> None:
    """Versions without a gap, each with its proof."""
    await write(hub, stay("proof", "anna"))
    await write(hub, stay("proof", "berta"))
    await hub.server.worker.drain()
    found = (await hub.client.get("/Encounter/proof/$notices")).json()["entry"]
    communications = [
        entry["resource"] for entry in found if entry["resource"]["resourceType"] == "Communication"
    ]
    said = {
        (each["topic"]["coding"][0]["code"], each["subject"]["reference"])
        for each in communications
    }
    assert said == {
        ("A01", "Patient/anna"),
        ("A11", "Patient/anna"),
        ("A01", "Patient/berta"),
    }


async def test_a_patient_named_by_identifier_alone_is_the_same(hub: Listener) -> None:
    number = {"system": "urn:oid:1.2.3", "value": "anna-1"}
    north = ref("Organization/north")
    await write(hub, patient("anna", north, identifier=[number]))
    await write(hub, stay("number", "anna"))
    assert await told(hub, "number") == ["north admission:A01", "state admission:A01"]
    await write(hub, {**stay("number", None), "subject": {"identifier": number}})
    assert await told(hub, "number") == []
    assert (await hub.client.get("/Encounter/number")).headers["ETag"] == 'W/"2"'
