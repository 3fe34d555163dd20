"""For whom participants of a CareTeam act: terms of the server's own, since R4 has no search parameter for it.

https://hl7.org/fhir/R4/careteam-definitions.html#CareTeam.participant.onBehalfOf
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app.search.parameters.reference import VALUES
from app.search.terms import escape, shorten

_KEY = "_behalf"


def add(participants: Sequence[Mapping[str, Any] | None], fields: dict[str, Any]) -> None:
    """The terms of a team's participants, among those of its search parameters."""
    for participant in participants:
        if participant and "onBehalfOf" in participant:
            endings = VALUES["Reference"](participant["onBehalfOf"])
            fields["terms"] += [f"{_KEY}{ending}" for ending in endings or ()]


def acting_for(organizations: Iterable[str], base_url: str) -> list[str]:
    """What the terms of a team hold whose participant acts for an organization (`Organization/o1`): one of these."""
    bases = ("", f"{base_url}/") if base_url else ("",)
    return [f"{_KEY}={shorten(escape(base + each))}" for each in organizations for base in bases]
