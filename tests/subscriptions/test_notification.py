"""The notification Bundles of the backport guide, entry by entry."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from fhir.resources.R4B.bundle import Bundle

from app.subscriptions.matching.channel_terms import Content
from app.subscriptions.notices.notification import (
    STATUS_PROFILE,
    Focus,
    Head,
    event_notification,
    status_only,
)
from tests.builders.subscriptions import ADMISSION, encounter

AT = datetime(2026, 11, 21, 15, 0, 0, 123000, tzinfo=UTC)
BASE = "https://hub.example/fhir"
NOTICE = "0190a000-0000-7000-8000-000000000001"
RESOURCE = {**encounter(), "id": "e1"}
PATIENT = {"resourceType": "Patient", "id": "p1"}
TRIGGER = {"system": "http://terminology.hl7.org/CodeSystem/v2-0003", "code": "A01"}


def head(content: Content = "id-only", status: str = "active", number: int = 2) -> Head:
    return Head(NOTICE, BASE, "s1", ADMISSION, status, content, number, AT)


def focus(version: int = 1, method: Any = "create", resource: Any = None) -> Focus:
    return Focus("Encounter", "e1", version, method, AT, [TRIGGER], resource)


def notified(content: Content, **more: Any) -> dict[str, Any]:
    resource = RESOURCE if content == "full-resource" else None
    context = {"Patient/p1": PATIENT if resource else None}
    return event_notification(head(content), focus(resource=resource, **more), context)


def parameters(bundle: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in bundle["entry"][0]["resource"]["parameter"]:
        found[entry["name"]] = next(value for key, value in entry.items() if key != "name")
    return found


def event(bundle: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        (part["name"], next(value for key, value in part.items() if key != "name"))
        for part in parameters(bundle)["notification-event"]
    ]


@pytest.mark.parametrize(
    "bundle",
    [
        pytest.param(status_only(head(status="requested", number=0), "handshake"), id="handshake"),
        pytest.param(status_only(head(), "heartbeat"), id="heartbeat"),
        pytest.param(notified("empty"), id="empty"),
        pytest.param(notified("id-only"), id="id-only"),
        pytest.param(notified("full-resource"), id="full-resource"),
        pytest.param(notified("id-only", version=3, method="delete"), id="deleted"),
    ],
)
def test_every_bundle_is_a_history_with_a_status_first(bundle: dict[str, Any]) -> None:
    Bundle.model_validate(bundle)
    assert bundle["type"] == "history"
    assert bundle["timestamp"] == "2026-11-21T15:00:00.123Z"
    for entry in bundle["entry"]:
        assert entry["request"]["method"]
        assert entry["request"]["url"]
        assert entry["response"]["status"]
    status = bundle["entry"][0]
    assert status["resource"]["meta"]["profile"] == [STATUS_PROFILE]
    assert status["fullUrl"] == f"urn:uuid:{uuid.UUID(status['resource']['id'])}"
    assert status["request"] == {"method": "GET", "url": f"{BASE}/Subscription/s1/$status"}
    assert parameters(bundle)["subscription"] == {"reference": f"{BASE}/Subscription/s1"}


def test_a_handshake_says_requested_and_tells_no_event() -> None:
    bundle = status_only(head(status="requested", number=0), "handshake")
    assert len(bundle["entry"]) == 1
    assert parameters(bundle) == {
        "subscription": {"reference": f"{BASE}/Subscription/s1"},
        "topic": ADMISSION,
        "status": "requested",
        "type": "handshake",
        "events-since-subscription-start": "0",
    }


def test_numbers_are_strings() -> None:
    bundle = notified("id-only")
    assert parameters(bundle)["events-since-subscription-start"] == "2"
    assert event(bundle)[0] == ("event-number", "2")


def test_empty_tells_that_something_happened_and_nothing_else() -> None:
    bundle = notified("empty")
    assert len(bundle["entry"]) == 1
    assert "topic" not in parameters(bundle)
    assert event(bundle) == [("event-number", "2"), ("timestamp", "2026-11-21T15:00:00.123Z")]


def test_id_only_refers_without_content() -> None:
    bundle = notified("id-only")
    assert event(bundle)[2:] == [
        ("focus", {"reference": f"{BASE}/Encounter/e1"}),
        ("additional-context", {"reference": f"{BASE}/Patient/p1"}),
        ("trigger", TRIGGER),
    ]
    (entry,) = bundle["entry"][1:]
    assert entry["fullUrl"] == f"{BASE}/Encounter/e1"
    assert "resource" not in entry


def test_full_resource_holds_what_it_refers_to() -> None:
    bundle = notified("full-resource")
    first, second = bundle["entry"][1:]
    assert (first["fullUrl"], first["resource"]) == (f"{BASE}/Encounter/e1", RESOURCE)
    assert (second["fullUrl"], second["resource"]) == (f"{BASE}/Patient/p1", PATIENT)
    assert second["request"] == {"method": "GET", "url": "Patient/p1"}
    assert second["response"] == {"status": "200"}


def test_context_that_cannot_be_included_says_so() -> None:
    bundle = event_notification(
        head("full-resource"), focus(resource=RESOURCE), {"Patient/p1": None}
    )
    entry = bundle["entry"][2]
    assert "resource" not in entry
    assert entry["response"] == {"status": "404"}


@pytest.mark.parametrize(
    ("version", "method", "request_", "status"),
    [
        pytest.param(1, "create", ("POST", "Encounter"), "201", id="created"),
        pytest.param(1, "update", ("PUT", "Encounter/e1"), "201", id="created-by-put"),
        pytest.param(2, "update", ("PUT", "Encounter/e1"), "200", id="updated"),
        pytest.param(2, "patch", ("PATCH", "Encounter/e1"), "200", id="patched"),
        pytest.param(3, "delete", ("DELETE", "Encounter/e1"), "204", id="deleted"),
    ],
)
def test_the_focus_entry_says_what_happened(
    version: int, method: str, request_: tuple[str, str], status: str
) -> None:
    entry = notified("id-only", version=version, method=method)["entry"][1]
    assert (entry["request"]["method"], entry["request"]["url"]) == request_
    assert entry["response"]["status"] == status


def test_a_repetition_is_the_same_to_the_last_byte() -> None:
    assert notified("full-resource") == notified("full-resource")
