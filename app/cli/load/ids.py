"""The ids that a load gives to what it stores. docs/decisions/0039-loading.md

A create never keeps the id of its source: others have theirs there, too. Its new id is made of its address on another
server, or else of the content of its file, so that the same file again is the same resources. An id that a file gives
(by PUT, in NDJSON, in a single resource) is kept, unless the load has the name of a source: then it is made of both.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from urllib.parse import parse_qsl

from app.fhir.definitions import SUPPORTED_TYPES
from app.fhir.entry_references import EntryReferences
from app.fhir.links import LinkKind, LinkRefused
from app.search.search_parameters import parameters

NAMES_A_RECORD = "criteria that may name a record by an id of its source: name it by an identifier"
_TYPES = frozenset(SUPPORTED_TYPES)
_OF_RECORDS = frozenset({"reference", "composite", "special"})


@dataclass(frozen=True, slots=True)
class Source:
    """Where the files are from: a `name` that people give, empty for one that needs none."""

    name: str = ""

    def of_place(self, resource_type: str, resource_id: str) -> str:
        """The id of what has this type and id at its source."""
        return self._made(f"{resource_type}/{resource_id}") if self.name else resource_id

    def of_address(self, url: str) -> str:
        """The id of what has this address on another server."""
        return self._made(url)

    def of_content(self, digest: str, index: int) -> str:
        """The id of an entry that has no name beyond its file."""
        return self._made(f"sha256:{digest}#{index}")

    def _made(self, text: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.name} {text}" if self.name else text))

    def reference(self, text: str) -> str:
        """A reference to a record that is not in the file, `Patient/1`, as one to that of this source."""
        target, mark, fragment = text.partition("#")
        resource_type, _, rest = target.partition("/")
        resource_id = rest.partition("/")[0]
        if not self.name or not resource_id or resource_type not in _TYPES or "?" in target:
            return text
        return f"{resource_type}/{self.of_place(resource_type, resource_id)}{mark}{fragment}"


def may_name_a_record(resource_type: str, criteria: str) -> bool:
    """Whether search criteria lead to other records, or to one by its id."""
    known = parameters(resource_type)
    for name, _ in parse_qsl(criteria, keep_blank_values=True):
        code, _, modifier = name.partition(":")
        parameter = known.get(code)
        if code == "_id" or parameter is None:
            return True
        if parameter.type in _OF_RECORDS and modifier != "identifier":
            return True
    return False


class SourceLinks:
    """The links of one entry as they are stored: to other entries, and to other records of the source."""

    def __init__(self, names: EntryReferences, source: Source, entry: int) -> None:
        self._names = names
        self._source = source
        self._entry = entry
        self.concerns = names.concerns

    def __call__(self, text: str, kind: LinkKind) -> str:
        if kind == "canonical":
            return self._names.exchanged(self._entry, text, kind)
        meaning = self._names.meaning(self._entry, text)
        if not meaning.reference:
            raise LinkRefused(meaning.reason)
        return (
            self._source.reference(meaning.reference)
            if meaning.kind == "ours"
            else meaning.reference
        )
