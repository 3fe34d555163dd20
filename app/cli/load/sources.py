"""Two sources that use the same ids for different things: noticed before one takes the other's place.

A record with an id of its source is compared with the one of that id in other files and on the server. They are
different where they have identifiers and none in common (in a collection also where one of them has none), or where
they come from different servers: the root of their fullUrl, which a load writes into `meta.source`.
docs/decisions/0039-loading.md
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from app.cli.load.plan import LoadEntry
from app.cli.load.server import FhirServer
from app.fhir.json import Resource

_AT_ONCE = 50  # records that one search asks for

Identifiers = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class _Known:
    """What tells whose a record is: its identifiers, the root of its address at its source, and the file."""

    identifiers: Identifiers
    root: str
    file: str
    is_listed: bool = False

    def is_other_than(self, other: _Known) -> bool:
        if self.root and other.root and self.root != other.root:
            return True
        has_both = bool(self.identifiers and other.identifiers)
        has_one = self.is_listed and bool(self.identifiers or other.identifiers)
        return (has_both or has_one) and not self.identifiers & other.identifiers


class SourceCheck:
    """Finds records that would take the place of somebody else's."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self.clashes: list[str] = []

    def add(self, file: Path, entry: LoadEntry) -> None:
        """Note an entry that keeps the id it has at its source."""
        known = _Known(
            identifiers_of(entry.resource),
            source_of(entry.resource) if entry.root else "",
            file.name,
            entry.is_listed,
        )
        if not known.identifiers and not known.root and not known.is_listed:
            return
        first = self._known.setdefault(entry.reference, known)
        if known.is_other_than(first):
            self.clashes.append(f"{entry.reference} of {file.name} is not that of {first.file}")

    async def ask(self, server: FhirServer) -> None:
        """Compare with what the server has."""
        by_type: dict[str, list[str]] = defaultdict(list)
        for reference in self._known:
            resource_type, _, resource_id = reference.partition("/")
            by_type[resource_type].append(resource_id)
        for resource_type, ids in by_type.items():
            for start in range(0, len(ids), _AT_ONCE):
                some = ",".join(ids[start : start + _AT_ONCE])
                query = f"{resource_type}?_id={some}&_elements=identifier,meta"
                self._compare(await server.search(query, _AT_ONCE))

    def _compare(self, stored: Iterable[Resource]) -> None:
        for resource in stored:
            reference = f"{resource['resourceType']}/{resource['id']}"
            known = self._known.get(reference)
            there = _Known(identifiers_of(resource), source_of(resource), "")
            if known is not None and known.is_other_than(there):
                self.clashes.append(f"{reference} of {known.file} is not that of the server")


def source_of(resource: Resource) -> str:
    """The server that a resource says it is from, where it does."""
    source = str(resource.get("meta", {}).get("source", "")).partition("#")[0]
    return source if source.startswith(("http://", "https://")) else ""


def identifiers_of(resource: Resource) -> Identifiers:
    return frozenset(_identifiers(resource.get("identifier")))


def _identifiers(value: object) -> Iterator[tuple[str, str]]:
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, dict) and isinstance(each.get("value"), str):
            yield str(each.get("system", "")), each["value"]
