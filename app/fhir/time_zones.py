"""The time zone that a resource states of itself, as an IANA name.

http://hl7.org/fhir/StructureDefinition/timezone
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zoneinfo import ZoneInfo

TIME_ZONE = "http://hl7.org/fhir/StructureDefinition/timezone"


def zone_of(stated: Mapping[str, Any]) -> ZoneInfo | None:
    """The zone that an element or a resource states; None where it states none that exists."""
    for extension in stated.get("extension", ()):
        if extension.get("url") == TIME_ZONE:
            found = named(extension.get("valueCode", ""))
            if found is not None:
                return found
    return None


def named(name: str) -> ZoneInfo | None:
    """The zone of an IANA name; None for a name that there is not."""
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):  # no such name, a folder of names, no name at all
        return None
