"""How people call a resource: the text for `Reference.display`.

https://hl7.org/fhir/R4/references-definitions.html#Reference.display
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.fhir.json import Resource

# The names of a person by their use, the likeliest first; one that was given up, or never theirs, is none.
_USES = ("official", "usual", None, "temp", "nickname", "anonymous")
_IN_ERROR = "entered-in-error"


def name_of(resource: Resource) -> str:
    """The name of a person, place or organization, or the text of a code; empty for none, and for what is in error."""
    if _is_in_error(resource):
        return ""
    name = resource.get("name")
    if isinstance(name, str):
        return name
    return person_name(name) if isinstance(name, list) else _text(resource.get("code"))


def person_name(names: Sequence[Mapping[str, Any]]) -> str:
    """The name that a person goes by, of several HumanNames: its text, else its parts."""
    for use in _USES:
        for name in names:
            if name.get("use") == use and (found := _whole(name)):
                return found
    return ""


def _whole(name: Mapping[str, Any]) -> str:
    parts = (*name.get("prefix", ()), *name.get("given", ()), name.get("family"))
    parts += (*name.get("suffix", ()),)
    return str(name.get("text") or " ".join(each for each in parts if each))


def _text(concept: Any) -> str:
    """What a CodeableConcept says in words."""
    if not isinstance(concept, dict):
        return ""
    displays = (coding.get("display", "") for coding in concept.get("coding", ()))
    return str(concept.get("text") or next(filter(None, displays), ""))


def _is_in_error(resource: Resource) -> bool:
    verified = resource.get("verificationStatus")
    codings = verified.get("coding", ()) if isinstance(verified, dict) else ()
    statuses = (resource.get("status"), *(each.get("code") for each in codings))
    return _IN_ERROR in statuses
