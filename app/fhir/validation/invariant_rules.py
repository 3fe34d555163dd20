"""Invariants written by hand: those of every element or resource, which have to be quick, and some that R4 words amiss.

https://hl7.org/fhir/R4/domainresource.html, https://hl7.org/fhir/R4/references.html#contained
docs/decisions/0037-invariants.md tells of each why it is here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from app.fhir.definitions import json_name, structure
from app.fhir.instants import is_after
from app.fhir.validation.findings import Findings, Where
from app.fhir.validation.targets_and_bindings import referred_type

Rule = Callable[[dict[str, Any], Where, Findings], None]

_VALUES = frozenset(
    prefix + json_name("value", type_name)
    for type_name in structure("Extension").elements["value"].types
    for prefix in ("", "_")
)
_BARE = {"id", "url"}
# A character that shows, after markup or as CDATA; the markup itself has been found well formed.
_TEXT = re.compile(r">\s*[^\s<]|<!\[CDATA\[(?!\s*\]\]>)")


def extension(value: dict[str, Any], where: Where, found: Findings) -> None:
    """ext-1: a value or extensions, and not both."""
    if "extension" in value:
        if not _VALUES.isdisjoint(value):
            found.add(where, "invariant", "ext-1: has a value and extensions, only one is allowed")
    elif value.keys() <= _BARE:
        found.add(where, "invariant", "ext-1: has neither a value nor extensions")


def period(value: dict[str, Any], where: Where, found: Findings) -> None:
    """per-1: the start is not after the end. What cannot be compared for sure passes."""
    start, end = value.get("start"), value.get("end")
    if isinstance(start, str) and isinstance(end, str) and is_after(start, end):
        found.add(where, "invariant", "per-1: the start must not be after the end")


def reference(value: dict[str, Any], where: Where, found: Findings) -> None:
    """ref-1: what refers to a contained resource finds it. `#` alone is the container, of what it contains."""
    literal = value.get("reference")
    if type(literal) is not str or literal[:1] != "#":
        return
    if literal == "#":
        if found.resource is found.root:
            found.add(where, "invariant", "ref-1: only a contained resource may refer to #")
    elif literal[1:] not in found.contained():
        found.add(where, "invariant", "ref-1: there is no contained resource of this id")


def narrative(value: dict[str, Any], where: Where, found: Findings) -> None:
    """txt-2: a narrative shows something, a text or a picture."""
    div = value.get("div")
    if found.is_malformed:
        return
    if type(div) is str and not _TEXT.search(div) and "<img" not in div:
        found.add((where, "div", None), "invariant", "txt-2: must show a text or a picture")


def domain_resource(value: dict[str, Any], where: Where, found: Findings) -> None:
    """dom-3 to dom-6: what is contained is referred to and has no history or labels; the rest has a narrative.

    A contained resource contains nothing (dom-2), and the narrative of its container tells of it.
    """
    if found.is_malformed or found.resource is not found.root:
        return
    if "contained" in value:
        _check_contained(value, where, found)
    text = value.get("text")
    if text is None or "div" not in text:
        found.warn(where, "invariant", "dom-6: should have a narrative")


def _check_contained(value: dict[str, Any], where: Where, found: Findings) -> None:
    referred = _local_references(value)
    ids: set[str] = set()
    for index, contained in enumerate(value["contained"]):
        place = (where, "contained", index)
        id_ = contained.get("id")
        if id_ in ids:
            found.add((place, "id", None), "duplicate", "another contained resource has this id")
        elif type(id_) is str:
            ids.add(id_)
        meta = contained.get("meta", {})
        if not {"versionId", "_versionId", "lastUpdated", "_lastUpdated"}.isdisjoint(meta):
            found.add(place, "invariant", "dom-4: a contained resource has no version of its own")
        if "security" in meta:
            found.add(place, "invariant", "dom-5: a contained resource has no labels of its own")
        if f"#{id_}" not in referred and "#" not in _local_references(contained):
            found.add(place, "invariant", "dom-3: nothing in the resource refers to it")


def _local_references(value: dict[str, Any]) -> set[str]:
    """Every text inside that begins with `#`: a reference, or a canonical or uri, which look like any other text."""
    texts: set[str] = set()
    waiting: list[Any] = [value]
    while waiting:
        here = waiting.pop()
        for child in here.values() if type(here) is dict else here:
            if type(child) is str:
                if child[:1] == "#":
                    texts.add(child)
            elif type(child) is dict or type(child) is list:
                waiting.append(child)
    return texts


def care_team_participant(value: dict[str, Any], where: Where, found: Findings) -> None:
    """ctm-1: only a Practitioner acts on behalf of an organization. Who is referred to is known by the reference."""
    if "onBehalfOf" not in value:
        return
    member = value.get("member")
    literal = member.get("reference") if type(member) is dict else None
    local = literal[1:] if type(literal) is str and literal[:1] == "#" else None
    named = referred_type(member) if local is None else found.contained().get(local)
    if named not in (None, "Practitioner"):
        text = "ctm-1: only a member that is a Practitioner can act on behalf of an organization"
        found.add(where, "invariant", text)


# By key. None: the check of the structure holds it (app/fhir/validation/structure.py, narrative.py), or another rule
# here; and nothing can break cid-0, which is about a name that a ChargeItemDefinition has not.
BY_HAND: dict[str, Rule | None] = {
    "ele-1": None,
    "ext-1": extension,
    "per-1": period,
    "ref-1": reference,
    "txt-1": None,
    "txt-2": narrative,
    "dom-2": None,
    "dom-3": domain_resource,
    "dom-4": None,
    "dom-5": None,
    "dom-6": None,
    "cid-0": None,
    "ctm-1": care_team_participant,
}
