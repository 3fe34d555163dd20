"""The checker of messages is a judge: it passes what is published, and nothing that is broken."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.builders.davinci import ref
from tests.subscriptions.davinci_checker import ALERTS, needs_profiles, problems

Json = dict[str, Any]


def published() -> list[Any]:
    found = sorted(ALERTS.glob("examples/*.json"))
    return [pytest.param(each, id=each.stem) for each in found] or [
        pytest.param(None, marks=needs_profiles, id="absent")
    ]


@pytest.mark.parametrize("path", published())
def test_published_messages_pass_the_same_checker(path: Any) -> None:
    assert problems(json.loads(path.read_text())) == []


def entry_of(bundle: Json, resource_type: str) -> Json:
    found: Json = next(
        each for each in bundle["entry"] if each["resource"]["resourceType"] == resource_type
    )
    return found


def resource_of(bundle: Json, resource_type: str) -> Json:
    found: Json = entry_of(bundle, resource_type)["resource"]
    return found


@needs_profiles
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda b: b.pop("id"), id="no-id"),
        pytest.param(lambda b: b.pop("timestamp"), id="no-timestamp"),
        pytest.param(lambda b: b.update(type="collection"), id="other-type"),
        pytest.param(lambda b: b.update(total=3), id="total"),
        pytest.param(lambda b: b["entry"].__delitem__(slice(1, None)), id="header-alone"),
        pytest.param(lambda b: b["entry"][1].update(request={}), id="request"),
        pytest.param(lambda b: b["entry"].reverse(), id="header-not-first"),
        pytest.param(lambda b: b["entry"].append(b["entry"][0]), id="entry-twice"),
        pytest.param(lambda b: b["entry"].remove(entry_of(b, "Patient")), id="no-patient"),
        pytest.param(lambda b: b["entry"].remove(entry_of(b, "Organization")), id="dangling"),
        pytest.param(lambda b: resource_of(b, "MessageHeader").pop("eventCoding"), id="no-event"),
        pytest.param(
            lambda b: resource_of(b, "MessageHeader").update(response={"identifier": "x"}),
            id="response",
        ),
        pytest.param(
            lambda b: resource_of(b, "MessageHeader").update(
                focus=[ref(entry_of(b, "Patient")["fullUrl"])]
            ),
            id="focus-is-no-stay",
        ),
        pytest.param(
            lambda b: resource_of(b, "Encounter")["participant"][0]["individual"].update(
                reference=entry_of(b, "Organization")["fullUrl"]
            ),
            id="individual-is-no-practitioner",
        ),
        pytest.param(
            lambda b: resource_of(b, "Encounter")["subject"].pop("reference"), id="no-subject"
        ),
        pytest.param(lambda b: resource_of(b, "Condition").pop("encounter"), id="no-encounter"),
    ],
)
def test_broken_messages_do_not_pass_it(change: Callable[[Json], Any]) -> None:
    path = ALERTS / "examples" / "admit-notification-message-bundle-01.json"
    bundle = json.loads(path.read_text())
    change(broken := copy.deepcopy(bundle))
    assert problems(broken) != []
