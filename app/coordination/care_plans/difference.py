"""One change of a care plan; meta, narrative, and displays beside codes and references never make one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from app.coordination.care_plans import wording as words
from app.coordination.care_plans.wording import Names, each
from app.fhir.json import Resource

PlanChangeKind = Literal[
    "goal", "activity", "care-team", "period", "status", "addresses", "risk-tier", "plan"
]
What = Literal["added", "met", "dropped", "removed", "changed"]

UNTOLD = frozenset({"resourceType", "id", "meta", "text", "implicitRules", "language"})
SPACED = {
    "achievementStatus": "progress",
    "addresses": "what it addresses",
    "basedOn": "what it is based on",
    "expressedBy": "who expressed it",
    "extension": "further details",
    "lifecycleStatus": "status",
    "modifierExtension": "further details",
    "outcomeCode": "outcome",
    "outcomeReference": "outcome",
    "startCodeableConcept": "start",
    "startDate": "start",
    "statusDate": "date of its status",
    "statusReason": "reason for its status",
    "supportingInfo": "supporting information",
}


_QUOTED_ENDS = (".”.", "!”.", "?”.", '.".', '!".', '?".')


@dataclass(frozen=True, slots=True)
class PlanChange:
    """One change; `before` and `after` are the values in words, empty where there was or is none."""

    kind: PlanChangeKind
    what: What
    text: str
    reference: str = ""
    before: str = ""
    after: str = ""

    @property
    def sentence(self) -> str:
        """The text, without its full stop where it ends in a quoted sentence that has one."""
        return self.text[:-1] if self.text.endswith(_QUOTED_ENDS) else self.text


def normalised(value: Any) -> Any:
    """A value without element ids, and without displays beside codes and references."""
    if isinstance(value, list):
        return [normalised(child) for child in value]
    if not isinstance(value, dict):
        return value
    silent = {"id", "display"} if {"reference", "code"} & value.keys() else {"id"}
    return {key: normalised(child) for key, child in value.items() if key not in silent}


def content(resource: Resource | None) -> Any:
    """The elements of a resource whose differences are changes, normalised."""
    return normalised({k: v for k, v in (resource or {}).items() if k not in UNTOLD})


def literal(key: str) -> str:
    """The key of a Reference where it is a relative literal reference, else an empty string."""
    return key if "/" in key and "|" not in key and " " not in key else ""


ToldChange = tuple[str, str, str]


def elements(was: Resource, now: Resource, render: Callable[[str, Any], str]) -> list[ToldChange]:
    """The elements that differ: the name of each in words, and its value before and after."""
    left, right = content(was), content(now)
    names = sorted(k for k in left.keys() | right.keys() if left.get(k) != right.get(k))
    return [
        (SPACED.get(name, name), render(name, was.get(name)), render(name, now.get(name)))
        for name in names
    ]


def told(name: str, old: str, new: str) -> str:
    if old == new:
        return f"{name} changed"
    return f"{name}: {new or 'none'}, was {old or 'none'}"


def sides(changes: Sequence[ToldChange], side: int) -> str:
    """The names and the values before (`side` 1) or after (`side` 2) the changes."""
    return "; ".join(f"{one[0]}: {one[side]}" for one in changes if one[side])


def plain(value: Any, names: Names) -> str:
    """A value in words: a primitive, Reference, CodeableConcept or Coding; other data types are left out."""
    found = []
    for one in each(value):
        if not isinstance(one, dict):
            found.append(str(one))
        elif "reference" in one or ("display" in one and "code" not in one):
            found.append(words.reference(one, names))
        elif {"coding", "code", "text"} & one.keys():
            found.append(words.concept(one))
    return words.listing(found)
