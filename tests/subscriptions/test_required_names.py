"""The three names that notice of a stay owes its reader, and which of them nobody knows."""

from __future__ import annotations

from typing import Any

import pytest

from app.subscriptions.notices.required_names import missing_names
from tests.builders.davinci import Hospital

Json = dict[str, Any]

WHOLE = Hospital()
STORED = {f"{each['resourceType']}/{each['id']}": each for each in WHOLE.directory}


@pytest.mark.parametrize(
    ("change", "without", "missing"),
    [
        pytest.param({}, (), [], id="all"),
        pytest.param({}, ("Patient",), ["patient"], id="patient-not-stored"),
        pytest.param({}, ("Practitioner",), ["practitioner"], id="practitioner-not-stored"),
        pytest.param({}, ("PractitionerRole",), ["practitioner"], id="role-not-stored"),
        pytest.param({}, ("Organization",), ["institution"], id="institution-not-stored"),
        pytest.param({"participant": None}, (), ["practitioner"], id="nobody-treats"),
        pytest.param(
            {"participant": [{"individual": {"display": "Dr. Birch"}}]},
            (),
            ["practitioner"],
            id="nobody-is-said-to-treat",
        ),
        pytest.param({"serviceProvider": None}, (), [], id="institution-of-the-place"),
        pytest.param(
            {"serviceProvider": None, "location": None}, (), ["institution"], id="no-institution"
        ),
        pytest.param({"subject": {"display": "Ada"}}, ("Patient",), [], id="named-by-display"),
    ],
)
def test_which_names_are_missing(
    change: Json, without: tuple[str, ...], missing: list[str]
) -> None:
    known = {key: each for key, each in STORED.items() if each["resourceType"] not in without}
    assert missing_names(WHOLE.stay(**change), known) == missing
