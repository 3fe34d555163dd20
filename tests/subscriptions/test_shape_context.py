"""What travels along with a focus, from a topic's notificationShape to the notice, through the front door."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.builders.receiver import Received, Receiver
from tests.builders.subscriptions import encounter, topic_based
from tests.conftest import Server, make_settings, running

pytestmark = pytest.mark.mongo
BASE = "http://carerelay.test/fhir"
STAYS = "http://hub.example/SubscriptionTopic/stays"
TOPIC = {
    "resourceType": "SubscriptionTopic",
    "url": STAYS,
    "status": "active",
    "resourceTrigger": [{"resource": "Encounter"}],
    "canFilterBy": [{"filterParameter": "patient"}],
    "notificationShape": [
        {
            "resource": "Encounter",
            "include": ["Encounter:patient", "Encounter:diagnosis"],
            "revInclude": ["Condition:encounter", "Procedure:encounter"],
        }
    ],
}


@pytest.fixture(scope="module")
async def pair(mongod: str) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    async with running(make_settings(mongod, base_url=BASE)) as pair:
        await put_topic(pair[1], TOPIC)
        yield pair


async def put_topic(client: httpx.AsyncClient, topic: dict[str, Any]) -> None:
    answer = await client.put("http://carerelay.test/admin/topics/stays", json=topic)
    assert answer.status_code in (200, 201), answer.text


async def subscribe(
    pair: tuple[Server, httpx.AsyncClient], patient: str, url: str, content: str
) -> str:
    draft = topic_based(f"patient={patient}", endpoint=url, content=content)
    answer = await pair[1].post("Subscription", json={**draft, "criteria": STAYS})
    assert answer.status_code == 201, answer.text
    await pair[0].worker.drain()
    return str(answer.json()["id"])


async def stay(client: httpx.AsyncClient, patient: str, encounter_of_condition: str) -> None:
    """A patient, an Encounter, and in the same transaction two Conditions; one of them is the Encounter's diagnosis.

    The second belongs to the Encounter that is named, by the server's own address.
    """

    def condition(reference: str) -> dict[str, Any]:
        subject = {"reference": f"Patient/{patient}"}
        return {
            "resourceType": "Condition",
            "subject": subject,
            "encounter": {"reference": reference},
        }

    focus = f"Encounter/{patient}-e"
    admitted = encounter(
        patient=patient, diagnosis=[{"condition": {"reference": f"Condition/{patient}-c1"}}]
    )
    resources = {
        f"Patient/{patient}": {"resourceType": "Patient"},
        f"Condition/{patient}-c1": condition(focus),
        f"Condition/{patient}-c2": condition(f"{BASE}/Encounter/{encounter_of_condition}"),
        focus: admitted,
    }
    entries = [
        {
            "resource": {**resource, "id": url.rpartition("/")[2]},
            "request": {"method": "PUT", "url": url},
        }
        for url, resource in resources.items()
    ]
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    answer = await client.post("", json=bundle)
    assert answer.status_code == 200, answer.text


def context(received: Received) -> list[str]:
    """The additional-context references of a notice's only event."""
    (event,) = [
        parameter["part"]
        for parameter in received.json["entry"][0]["resource"]["parameter"]
        if parameter["name"] == "notification-event"
    ]
    return [
        part["valueReference"]["reference"].removeprefix(f"{BASE}/")
        for part in event
        if part["name"] == "additional-context"
    ]


def carried(received: Received) -> dict[str, str | None]:
    """By its address, the type of each resource behind the status; None where there is an address only."""
    return {
        entry["fullUrl"].removeprefix(f"{BASE}/"): entry.get("resource", {}).get("resourceType")
        for entry in received.json["entry"][1:]
    }


@pytest.mark.parametrize(
    ("content", "patient", "resources"),
    [
        pytest.param("id-only", "w1", False, id="ids"),
        pytest.param("full-resource", "w2", True, id="resources"),
    ],
)
async def test_what_the_focus_refers_to_and_what_refers_to_it_travel_along(
    pair: tuple[Server, httpx.AsyncClient],
    receiver: Receiver,
    content: str,
    patient: str,
    resources: bool,
) -> None:
    await subscribe(pair, patient, receiver.url, content)
    await stay(pair[1], patient, encounter_of_condition=f"{patient}-e")
    (notice,) = await receiver.wait(1)
    # A Condition that both elements lead to is there once.
    along = [f"Patient/{patient}", f"Condition/{patient}-c1", f"Condition/{patient}-c2"]
    assert context(notice) == along
    wanted = [f"Encounter/{patient}-e", *(along if resources else [])]
    assert carried(notice) == {
        each: each.partition("/")[0] if resources else None for each in wanted
    }


async def test_what_refers_to_another_stays_behind(
    pair: tuple[Server, httpx.AsyncClient], receiver: Receiver
) -> None:
    await subscribe(pair, "w3", receiver.url, "id-only")
    await stay(pair[1], "w3", encounter_of_condition="another")
    (notice,) = await receiver.wait(1)
    assert context(notice) == ["Patient/w3", "Condition/w3-c1"]


async def test_what_is_about_somebody_else_stays_behind(
    pair: tuple[Server, httpx.AsyncClient], receiver: Receiver
) -> None:
    """Whoever writes the focus has it name what they like, and others' records may refer to it."""
    await subscribe(pair, "w7", receiver.url, "full-resource")
    for id_ in ("named", "naming"):
        other = {
            "resourceType": "Condition",
            "id": f"w7-{id_}",
            "subject": {"reference": "Patient/somebody-else"},
            "encounter": {"reference": "Encounter/w7-e"},
        }
        assert (await pair[1].put(f"Condition/w7-{id_}", json=other)).status_code == 201
    named = [{"condition": {"reference": "Condition/w7-named"}}]
    admitted = encounter(patient="w7", diagnosis=named) | {"id": "w7-e"}
    assert (await pair[1].put("Encounter/w7-e", json=admitted)).status_code == 201
    (notice,) = await receiver.wait(1)
    assert context(notice) == ["Patient/w7"]
    assert carried(notice) == {"Encounter/w7-e": "Encounter", "Patient/w7": None}


async def test_an_empty_notice_says_nothing_of_it(
    pair: tuple[Server, httpx.AsyncClient], receiver: Receiver
) -> None:
    await subscribe(pair, "w4", receiver.url, "empty")
    await stay(pair[1], "w4", encounter_of_condition="w4-e")
    (notice,) = await receiver.wait(1)
    assert context(notice) == []
    assert carried(notice) == {}


async def test_events_that_are_asked_for_later_tell_it_too(
    pair: tuple[Server, httpx.AsyncClient], receiver: Receiver
) -> None:
    id_ = await subscribe(pair, "w5", receiver.url, "id-only")
    await stay(pair[1], "w5", encounter_of_condition="w5-e")
    await receiver.wait(1)
    answer = await pair[1].get(f"/Subscription/{id_}/$events")
    told = Received("GET", "", {}, answer.content, 0.0)
    assert context(told) == ["Patient/w5", "Condition/w5-c1", "Condition/w5-c2"]


async def test_a_changed_shape_holds_for_what_is_told_from_then_on(
    pair: tuple[Server, httpx.AsyncClient], receiver: Receiver
) -> None:
    id_ = await subscribe(pair, "w6", receiver.url, "id-only")
    await stay(pair[1], "w6", encounter_of_condition="w6-e")
    await receiver.wait(1)
    plain = {"resource": "Encounter", "include": ["Encounter:patient"]}
    await put_topic(pair[1], {**TOPIC, "notificationShape": [plain]})
    try:
        answer = await pair[1].get(f"/Subscription/{id_}/$events")
        assert context(Received("GET", "", {}, answer.content, 0.0)) == ["Patient/w6"]
    finally:
        await put_topic(pair[1], TOPIC)
