"""A subject with a slash before, as an earlier release stored it: no patient of this server."""

from __future__ import annotations

import pytest

from app.attribution.derived import patient_of
from app.search.extract import extract
from tests.builders.bundles import visit


@pytest.mark.parametrize("base_url", ["", "http://carerelay.test/fhir"])
def test_a_slash_before_leads_to_no_patient(base_url: str) -> None:
    """Else reactions would write about one whom the record does not name, be refused, and run for ever."""
    stored = {
        **visit("/Patient/77", "1"),
        "id": "1",
        "meta": {"lastUpdated": "2026-05-04T08:00:00Z"},
    }
    assert patient_of("Encounter", extract("Encounter", stored), base_url) is None
