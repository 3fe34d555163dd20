"""A notice filled in from a template is, byte for byte, the Bundle that would have been composed for it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from app.fhir import json as fhir_json
from app.subscriptions.matching.channel_terms import Content
from app.subscriptions.notices.envelope import Template
from app.subscriptions.notices.notification import Focus, Head, Told, event_notification, status_id
from tests.builders.subscriptions import ADMISSION

AT = datetime(2026, 11, 21, 15, 0, 0, 123000, tzinfo=UTC)
FIRST = "0190a000-0000-7000-8000-000000000001"
OTHER = "0190a000-0000-7000-8000-000000000002"
HEAD = Head(FIRST, "https://hub.example/fhir", "s1", ADMISSION, "active", "id-only", 2, AT)
FOCUS = Focus("Encounter", "e1", 1, "create", AT)
TRICKY = {"system": "urn:100%", "code": "%(id)s %s %", "display": f'"{FIRST}" s1 2 \u00e9\u4e2d'}


@pytest.mark.parametrize(
    ("head", "focus", "context"),
    [
        pytest.param(HEAD, FOCUS, {"Patient/p1": None}, id="id-only"),
        pytest.param(replace(HEAD, content="empty"), FOCUS, {}, id="empty"),
        pytest.param(HEAD, replace(FOCUS, method="delete", version=3), {}, id="deleted"),
        pytest.param(HEAD, replace(FOCUS, triggers=[TRICKY]), {}, id="text that looks like a gap"),
        pytest.param(
            replace(HEAD, base_url="https://h/%7Ea/1"), FOCUS, {}, id="percent in the base"
        ),
    ],
)
def test_a_filled_template_is_the_bundle_itself(
    head: Head, focus: Focus, context: dict[str, None]
) -> None:
    template = Template(head, Told(head.number, focus, context))
    for notice_id, subscription, number in ((FIRST, "s1", 2), (OTHER, "another-1.2", 40_000)):
        own = replace(head, id=notice_id, subscription=subscription, number=number)
        composed = fhir_json.encode(event_notification(own, focus, context))
        assert template.fill(notice_id, subscription, number) == composed


@pytest.mark.parametrize("content", ["empty", "id-only"])
def test_the_status_entry_has_an_id_of_its_own_that_never_changes(content: Content) -> None:
    bundle = event_notification(replace(HEAD, content=content), FOCUS, {})
    status = bundle["entry"][0]["resource"]
    assert status["id"] == "0190a000-0000-8000-8000-000000000001" == status_id(FIRST)
    assert status["id"] != bundle["id"]
