"""The server's own code lists, out of profiles/terminology: what may be said with them, and how they are published.

https://hl7.org/fhir/R4/codesystem.html and https://hl7.org/fhir/R4/valueset.html
"""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from app.fhir.definitions import PROFILES


@cache
def code_systems() -> dict[str, dict[str, Any]]:
    """The CodeSystems by their canonical."""
    files = sorted((PROFILES / "terminology").glob("*.json"))
    found = [msgspec.json.decode(file.read_bytes()) for file in files]
    return {each["url"]: each for each in found}


@cache
def codes(system: str) -> frozenset[str]:
    """The codes of one of our code systems."""
    return frozenset(concept["code"] for concept in code_systems()[system]["concept"])


def value_sets() -> list[dict[str, Any]]:
    """For each code system the ValueSet of all its codes."""
    return [
        {
            "resourceType": "ValueSet",
            "id": system["id"],
            "url": system["valueSet"],
            "version": system["version"],
            "name": system["name"],
            "title": system["title"],
            "status": system["status"],
            "experimental": False,
            "description": f"All codes of {system['title'][0].lower()}{system['title'][1:]}.",
            "compose": {"include": [{"system": system["url"]}]},
        }
        for system in code_systems().values()
    ]
