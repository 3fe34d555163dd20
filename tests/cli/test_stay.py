"""One hospital stay from Encounter to notice, with processes of their own: server, database, receiver.

What this server promises above all: a committed admission reaches the practice, whatever dies in between.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.fhir.definitions import EXAMPLES
from tests.processes import children, free_port, started, wait_for, wait_until_gone

pytestmark = [pytest.mark.processes, pytest.mark.slow]

ADMISSION = "http://carerelay.example/SubscriptionTopic/encounter-admission"
BACKPORT = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition"
STEPS = ("01-emergency-registration", "02-inpatient-admission", "03-ward-transfer", "04-discharge")


@contextmanager
def serving(data: Path, port: int) -> Iterator[tuple[Any, httpx.Client]]:
    arguments = ("serve", "--port", str(port), "--data", data)
    with started("http://127.0.0.1:", *arguments) as (process, _):
        base = f"http://127.0.0.1:{port}"
        wait_for(f"{base}/readyz")
        with httpx.Client(base_url=f"{base}/fhir", timeout=30) as client:
            yield process, client


@contextmanager
def receiving(port: int, *arguments: str) -> Iterator[str]:
    # A receiver shows what it is sent; that is no log.
    command = ("receiver", "--port", str(port), *arguments)
    with started("http://127.0.0.1:", *command, is_log=False):
        yield f"http://127.0.0.1:{port}"


def subscribe(client: httpx.Client, endpoint: str, content: str = "full-resource") -> str:
    response = client.post(
        "/Subscription",
        json={
            "resourceType": "Subscription",
            "status": "requested",
            "reason": "Admissions of our patients",
            "criteria": ADMISSION,
            "channel": {
                "type": "rest-hook",
                "endpoint": endpoint,
                "payload": "application/fhir+json",
                "_payload": {
                    "extension": [
                        {"url": f"{BACKPORT}/backport-payload-content", "valueCode": content}
                    ]
                },
            },
        },
    )
    assert response.status_code == 201, response.text
    assert response.json()["status"] == "requested"
    id_: str = response.json()["id"]
    await_status(client, id_, "active")
    return id_


def await_status(client: httpx.Client, subscription: str, status: str) -> None:
    give_up = time.monotonic() + 20
    while client.get(f"/Subscription/{subscription}").json()["status"] != status:
        assert time.monotonic() < give_up, f"the Subscription did not become {status}"
        time.sleep(0.02)


def notices(receiver: str, count: int, seconds: float = 30) -> list[dict[str, Any]]:
    """The event notifications a receiver has, once there are `count` different ones."""
    give_up = time.monotonic() + seconds
    while True:
        received = httpx.get(f"{receiver}/received").json()
        found = {}
        for item in received:
            parameters = item["body"]["entry"][0]["resource"]["parameter"] if item["body"] else []
            values = {p["name"]: p for p in parameters}
            if values.get("type", {}).get("valueCode") == "event-notification":
                event = {p["name"]: p for p in values["notification-event"]["part"]}
                found[event["event-number"]["valueString"]] = item["body"]
        if len(found) >= count:
            return [found[number] for number in sorted(found, key=int)]
        assert time.monotonic() < give_up, f"only {len(found)} of {count} notices arrived"
        time.sleep(0.02)


def step(name: str) -> dict[str, Any]:
    resource: dict[str, Any] = json.loads((EXAMPLES / "stay" / f"{name}.json").read_text())
    return resource


def play(client: httpx.Client, name: str) -> None:
    encounter = step(name)
    response = client.put(f"/Encounter/{encounter['id']}", json=encounter)
    assert response.status_code in (200, 201), response.text


@pytest.mark.slow
def test_the_whole_stay_reaches_a_practice_in_a_process_of_its_own(tmp_path: Path) -> None:
    with serving(tmp_path, free_port()) as (_, client), receiving(free_port()) as receiver:
        subscribe(client, f"{receiver}/notices")
        for name in STEPS:
            play(client, name)
        registration, admission = notices(receiver, 2)
        for bundle, name in ((registration, STEPS[0]), (admission, STEPS[1])):
            focus = bundle["entry"][1]["resource"]
            expected = step(name)
            assert {key: focus[key] for key in expected if key != "meta"} == {
                key: value for key, value in expected.items() if key != "meta"
            }


@pytest.mark.slow
def test_a_server_killed_between_commit_and_delivery_delivers_after_its_restart(
    tmp_path: Path,
) -> None:
    port, receiver_port = free_port(), free_port()
    with serving(tmp_path, port) as (server, client):
        with receiving(receiver_port) as receiver:
            subscribe(client, f"{receiver}/notices")
        # The receiver is gone: the commit is answered, but no attempt can have arrived anywhere.
        play(client, STEPS[0])
        [mongod] = children(server.pid)
        server.send_signal(signal.SIGKILL)
        server.wait(10)
        wait_until_gone(mongod)
    with receiving(receiver_port) as receiver, serving(tmp_path, port) as (_, client):
        [notice] = notices(receiver, 1, seconds=60)
        assert notice["entry"][1]["fullUrl"].endswith("Encounter/agnes-thistlewick-stay")
        encounter = client.get("/Encounter/agnes-thistlewick-stay").json()
        assert encounter["status"] == "arrived"


@pytest.mark.slow
def test_a_receiver_that_is_down_for_a_while_gets_everything_in_order_when_it_is_back(
    tmp_path: Path,
) -> None:
    receiver_port = free_port()
    with serving(tmp_path, free_port()) as (_, client):
        with receiving(receiver_port) as receiver:
            subscription = subscribe(client, f"{receiver}/notices", content="id-only")
        play(client, STEPS[0])
        play(client, STEPS[1])
        with receiving(receiver_port, "--status", "503"):
            play(client, STEPS[2])
        with receiving(receiver_port) as receiver:
            first, second = notices(receiver, 2)
            arrived = [
                json.dumps(item["body"]) for item in httpx.get(f"{receiver}/received").json()
            ]
            assert arrived.index(json.dumps(first)) < arrived.index(json.dumps(second))
        assert client.get(f"/Subscription/{subscription}").json()["status"] == "active"
