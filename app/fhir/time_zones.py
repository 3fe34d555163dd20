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
            try:
                return ZoneInfo(extension.get("valueCode", ""))
            except (ValueError, OSError):
                continue
    return None
