"""Carequality's topics as aliases of ours: https://build.fhir.org/ig/Carequality/CEQSubscription/Notification_Triggers.html"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.builders.davinci import alerts
from tests.builders.subscriptions import ENDPOINT, encounter, topic_based
from tests.builders.topic_listener import OURS, Listener, listening
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo
CAREQUALITY = "http://www.carequality.net/CEQTopic/"
LEFT = {"period": {"start": "2026-01-01", "end": "2026-01-03"}}


@pytest.fixture(scope="module")
async def hub(mongod: str) -> AsyncIterator[Listener]:
    async with listening(mongod, carequality_topics=True) as listener:
        yield listener


async def listen(hub: Listener, name: str, patient: str, **more: Any) -> str:
    asked = topic_based(
        f"patient=Patient/{patient}", endpoint=f"{hub.receiver.url}/{name}", content="full-resource"
    )
    asked |= {"criteria": CAREQUALITY + name, **more}
    answer = await hub.client.post("Subscription", json=asked)
    assert answer.status_code == 201, answer.text
    await hub.server.worker.drain()
    return str(answer.json()["id"])


async def test_each_alias_tells_what_its_venue_is_about_under_its_own_canonical(
    hub: Listener,
) -> None:
    names = ("admit", "edadmit", "acadmit", "transfer-ext", "discharge")
    ids = {name: await listen(hub, name, "ceq") for name in names}
    # A stay that was only told under an alias is taken back like any other.
    await hub.listen("encounter-cancelled", "patient=Patient/ceq")
    steps: list[tuple[str, str, dict[str, Any], list[str]]] = [
        ("in-progress", "EMER", {}, ["admit:A04", "edadmit:A04"]),
        ("in-progress", "IMP", {}, ["acadmit:A06", "admit:A06", "transfer-ext:A06"]),
        ("finished", "IMP", LEFT, ["discharge:A03"]),
        ("entered-in-error", "IMP", LEFT, ["encounter-cancelled:A11"]),
    ]
    for status, class_, more, expected in steps:
        stay = {**encounter(status, class_, "ceq", **more), "id": "ceq"}
        assert await hub.told(stay, "Encounter/ceq") == expected, (status, class_)
    topics = {
        each.path.strip("/"): each.parameter("topic")
        for each in hub.receiver.requests
        if each.path.strip("/") in names
    }
    assert topics == {name: CAREQUALITY + name for name in names}
    # The ledger has them under our topics, so that proof and consent hold for them.
    rows = (
        await hub.server.mongo.collection("deliveries")
        .find({"subscription": ids["edadmit"]})
        .to_list(None)
    )
    assert [row["topic"] for row in rows] == [OURS + "encounter-admission"]
    events = (await hub.client.get(f"Subscription/{ids['edadmit']}/$events")).json()
    parameters = {p["name"]: p for p in events["entry"][0]["resource"]["parameter"]}
    assert parameters["topic"]["valueCanonical"] == CAREQUALITY + "edadmit"


async def test_an_explanation_has_what_the_alias_implies(hub: Listener) -> None:
    id_ = await listen(hub, "edadmit", "ceq2")
    await hub.put({**encounter("in-progress", "IMP", "ceq2"), "id": "ceq2"})
    answer = await hub.client.get(f"Subscription/{id_}/$explain?reference=Encounter/ceq2")
    reason = next(p for p in answer.json()["parameter"] if p["name"] == "reason")
    assert reason["valueString"] == "The filters do not hold: class=EMER"


async def test_the_aliases_are_stated_and_take_every_channel(hub: Listener) -> None:
    stated = str((await hub.client.get("metadata")).json())
    for name in ("admit", "edadmit", "acadmit", "snradmit", "discharge", "transfer-ext"):
        assert f"'{CAREQUALITY}{name}'" in stated
    message = {**alerts(hub.receiver.url), "criteria": CAREQUALITY + "discharge"}
    answer = await hub.client.post("Subscription", json=message)
    assert answer.status_code == 201, answer.text


@pytest.mark.parametrize("name", ["ambadmit", "referred", "transfer-all", "caregap"])
async def test_what_no_topic_of_ours_tells_has_no_alias(hub: Listener, name: str) -> None:
    asked = {**topic_based(endpoint=ENDPOINT), "criteria": CAREQUALITY + name}
    answer = await hub.client.post("Subscription", json=asked)
    assert_outcome(answer, 422, "not-supported", "Subscription.criteria")


async def test_there_are_no_aliases_unless_they_are_asked_for(client: Any) -> None:
    asked = {**topic_based(endpoint=ENDPOINT), "criteria": CAREQUALITY + "admit"}
    answer = await client.post("/Subscription", json=asked)
    assert_outcome(answer, 422, "not-supported", "Subscription.criteria")
