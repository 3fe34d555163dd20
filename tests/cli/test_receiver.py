"""The stand-in for a practice's endpoint: what it takes, shows and keeps."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from app.cli.receiver import Receiver
from tests.processes import started


def notification(*events: tuple[str, str], kind: str = "event-notification") -> dict[str, Any]:
    """A notification Bundle of the Backport guide with (event number, focus) each."""
    parts = [
        {
            "name": "notification-event",
            "part": [
                {"name": "event-number", "valueString": number},
                {"name": "focus", "valueReference": {"reference": focus}},
            ],
        }
        for number, focus in events
    ]
    parameters = [{"name": "type", "valueCode": kind}, *parts]
    status = {"resourceType": "Parameters", "parameter": parameters}
    return {"resourceType": "Bundle", "type": "history", "entry": [{"resource": status}]}


def client(receiver: Receiver) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(receiver.app())
    return httpx.AsyncClient(transport=transport, base_url="http://pcp.test")


@pytest.mark.parametrize(
    ("content", "kind", "event_number", "focus"),
    [
        pytest.param({}, "empty", None, None, id="empty POST"),
        pytest.param(
            {"json": notification(kind="handshake")}, "handshake", None, None, id="handshake"
        ),
        pytest.param(
            {"json": notification(("1", "Encounter/a"), ("2", "Encounter/b"))},
            "event-notification",
            2,
            "Encounter/b",
            id="events",
        ),
        pytest.param(
            {"json": {"resourceType": "Encounter", "id": "e1"}},
            "Encounter",
            None,
            "Encounter/e1",
            id="full payload",
        ),
        pytest.param({"content": b"<xml/>"}, "unreadable", None, None, id="not JSON"),
    ],
)
async def test_tells_what_came(content, kind, event_number, focus):
    receiver = Receiver()
    async with client(receiver) as http:
        assert (await http.post("/any/path", **content)).status_code == 200
    [came] = receiver.received
    assert (came.kind, came.event_number, came.focus) == (kind, event_number, focus)


async def test_keeps_headers_and_body_as_they_came():
    async with client(Receiver()) as http:
        body = b'{"resourceType":"Observation","valueQuantity":{"value":1.50}}'
        await http.put("/Observation/o1", content=body, headers={"X-Secret": "s"})
        await http.post("/text", content=b"hello")
        answer = await http.get("/received")
    first, second = answer.json()
    assert b'"value":1.50' in answer.content
    assert (first["method"], first["path"]) == ("PUT", "/Observation/o1")
    assert first["headers"]["x-secret"] == "s"
    assert first["received_at"].endswith("+00:00")
    assert second["body"] == "hello"


async def test_answers_with_the_wanted_status():
    async with client(Receiver(status=503)) as http:
        assert (await http.post("/", json={})).status_code == 503


@pytest.mark.processes
def test_command_prints_one_line_for_each():
    with started("Receiver on ", "receiver", "--port", "0", "--status", "202") as (process, url):
        answer = httpx.post(f"{url}/notices", json=notification(("7", "Encounter/a")))
        assert answer.status_code == 202
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.endswith("POST /notices event-notification #7 Encounter/a\n")
        assert httpx.get(f"{url}/received").json()[0]["event_number"] == 7
    assert process.returncode == 0
