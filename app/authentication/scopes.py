"""SMART scopes: parsed, tested and intersected.

http://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html

    system/Encounter.rs                  v2: any of c r u d s, in this order
    system/Encounter.rs?patient=Patient/1    restricted to the resources that match the query
    system/*.read                        v1: read is rs, write is cud, * is cruds

Only `system/` scopes are granted: a backend service acts for no user. A scope that cannot be parsed grants nothing.
Scopes of the server's own are URIs, and no other scope covers them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from app.fhir.definitions import SUPPORTED_TYPES

# What a client needs beside its role to say what patients consent to (docs/consent.md).
CONSENT_AUTHORITY = "http://carerelay.example/scope/consent-authority"
OWN = frozenset({CONSENT_AUTHORITY})

Action = Literal["c", "r", "u", "d", "s"]
EVERY_TYPE = "*"
_ORDER = "cruds"
_V1 = {"read": "rs", "write": "cud", "*": "cruds"}
_SCOPE = re.compile(r"system/(\*|[A-Z][A-Za-z]+)\.([a-z]+|\*)(?:\?(\S+))?")
_LONGEST = 500


@dataclass(frozen=True, slots=True)
class Scope:
    """One scope. `restriction` is a search query that a resource must match; empty for none."""

    resource_type: str
    actions: str
    restriction: str = ""

    def __str__(self) -> str:
        query = f"?{self.restriction}" if self.restriction else ""
        return f"system/{self.resource_type}.{self.actions}{query}"

    def covers(self, other: Scope) -> bool:
        """Whether it grants every right of the other."""
        return (
            self.resource_type in (EVERY_TYPE, other.resource_type)
            and set(other.actions) <= set(self.actions)
            and self.restriction in ("", other.restriction)
        )


def parse(text: str) -> Scope:
    """One scope. Raises ValueError for one that this server does not grant or cannot parse."""
    match = _SCOPE.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        raise ValueError("A scope must look like system/Type.rs or system/Type.read")
    resource_type, written, restriction = match[1], match[2], match[3] or ""
    if resource_type != EVERY_TYPE and resource_type not in SUPPORTED_TYPES:
        raise ValueError("A scope names a type that is not served here")
    actions = _V1.get(written, written)
    if "".join(each for each in _ORDER if each in actions) != actions:
        raise ValueError("The rights of a scope are some of c, r, u, d and s, in this order")
    if written in _V1 and restriction:
        raise ValueError("Only scopes of the second version are restricted by a query")
    return Scope(resource_type, actions, restriction)


@dataclass(frozen=True, slots=True)
class Scopes:
    """All rights of one caller."""

    each: tuple[Scope, ...] = ()

    @classmethod
    def of(cls, texts: Iterable[str]) -> Scopes:
        """The scopes among these texts that can be parsed; the others grant nothing."""
        found: list[Scope] = []
        for text in texts:
            try:
                found.append(parse(text))
            except ValueError:
                continue
        return cls(tuple(found))

    def allows(self, resource_type: str, action: Action) -> bool:
        """Whether the scopes allow the action on any resource of the type."""
        return self.restrictions(resource_type, action) is not None

    def restrictions(self, resource_type: str, action: Action) -> tuple[str, ...] | None:
        """The queries of which a resource must match one; empty where all are granted, None where nothing is."""
        found = [
            scope.restriction
            for scope in self.each
            if action in scope.actions and scope.resource_type in (EVERY_TYPE, resource_type)
        ]
        if not found:
            return None
        return () if "" in found else tuple(dict.fromkeys(found))

    def reach(self, others: Scopes, resource_type: str, action: Action) -> bool:
        """Whether these scopes allow the action on all resources of the type on which the others allow it."""
        theirs, ours = (each.restrictions(resource_type, action) for each in (others, self))
        if theirs is None or ours == ():
            return True
        return ours is not None and theirs != () and set(theirs) <= set(ours)

    @property
    def is_everything(self) -> bool:
        return any(scope.covers(Scope(EVERY_TYPE, _ORDER)) for scope in self.each)


def intersect(requested: Sequence[str], registered: Sequence[str]) -> tuple[str, ...]:
    """The part of the requested scopes that registered ones cover.

    One that is covered whole is returned as it was written. One that cannot be parsed is left out.
    """
    allowed = Scopes.of(registered).each
    granted: dict[str, None] = {}
    for text in requested:
        if text in OWN and text in registered:
            granted[text] = None
            continue
        try:
            wanted = parse(text)
        except ValueError:
            continue
        if any(each.covers(wanted) for each in allowed):
            granted[text] = None
            continue
        for each in allowed:
            common = _common(wanted, each)
            if common is not None:
                granted[str(common)] = None
    return tuple(granted)


def _common(one: Scope, other: Scope) -> Scope | None:
    types = {one.resource_type, other.resource_type}
    if len(types) > 1 and EVERY_TYPE not in types:
        return None
    actions = "".join(each for each in _ORDER if each in one.actions and each in other.actions)
    if not actions:
        return None
    named = types - {EVERY_TYPE}
    queries = dict.fromkeys(each for each in (one.restriction, other.restriction) if each)
    return Scope(named.pop() if named else EVERY_TYPE, actions, "&".join(queries))
