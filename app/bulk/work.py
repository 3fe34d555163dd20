"""One export being written: type after type, then what was deleted of them, from the place on that it has reached."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime

from app.audit.entry import patients_in
from app.bulk import export_authorization
from app.bulk.cohort import Cohort, cohort
from app.bulk.export_request import REFERRED, ExportRequest, query_of
from app.bulk.history_at import deletions, fields_of
from app.bulk.reading import Source
from app.bulk.referred import referred_to
from app.bulk.writing import Place, Writer
from app.context import Context
from app.errors import FhirError
from app.fhir import json as fhir_json, summary
from app.fhir.json import Resource
from app.records.versions import ResourceVersion
from app.runtime.mongo import Document
from app.search.parameter import SearchLimits, SearchScope
from app.search.query import Query
from app.search.resolution import resolve

log = logging.getLogger(__name__)

# Deletions that go into one Bundle.
_ENTRIES = 100
# Resources that are cut down to `_elements` without a pause.
_CUT_AT_ONCE = 20


class Work:
    """One export from its place on: all types, then, with `_since`, what was deleted of them."""

    def __init__(self, context: Context, row: Document, writer: Writer) -> None:
        self._context = context
        self._row = row
        self._writer = writer
        self._asked = ExportRequest.of(row["asked"])
        self._at: datetime = row["at"]

    async def run(self) -> None:
        settings = self._context.settings
        limits = SearchLimits(settings.max_chain_found, settings.max_chain_examined, 0)
        scope = SearchScope(self._context.base_url, datetime.now(UTC), limits)
        whose = await cohort(self._context.store, self._asked, self._at, scope)
        stage, first, part, after = self._row["place"]
        types = self._row["types"]
        if self._asked.level == "group" and (
            beyond := [each for each in types if each in REFERRED]
        ):
            whose.referred = await referred_to(self._context.store, whose, self._at, beyond)
        if stage == "output":
            for number in range(first, len(types)):
                await self._output(number, whose, part, after)
                part, after = 0, ""
            first, after = 0, ""
            await self._write("output", "", ["deleted", 0, 0, ""])
        if self._asked.since is not None:
            for number in range(first, len(types)):
                await self._deleted(number, whose, after)
                after = ""

    async def _write(self, kind: str, resource_type: str, place: Place) -> None:
        """Keep what was gathered, where the client may still have it. Raises Forbidden or LostError."""
        await export_authorization.check_now(self._context.services, self._row)
        await self._writer.write(kind, resource_type, place)

    def _patients(self, stored: Sequence[ResourceVersion]) -> set[str]:
        """Whose data resources are, also where `_elements` leave nothing of that."""
        base_url = self._context.base_url
        return {each for one in stored for each in patients_in(one.text, base_url)}

    async def _queries(self, resource_type: str) -> list[Query]:
        """The `_typeFilter`s of a type, with what they need of other resources looked up."""
        store = self._context.store
        return [
            await resolve(store, query_of(self._context, kind, criteria))
            for kind, criteria in self._asked.filters
            if kind == resource_type
        ]

    async def _output(self, number: int, whose: Cohort, part: int, after: str) -> None:
        """One type, from a place in one of its parts on."""
        kind = self._row["types"][number]
        queries = await self._queries(kind)
        source = Source(self._context.store, whose, kind, queries, self._at)
        for each in range(part, len(whose.parts)):
            async with aclosing(source.windows(each, after)) as windows:
                async for window, last in windows:
                    lines = [line async for line in self._lines(kind, window)]
                    self._writer.add(lines, self._patients(window))
                    self._set_aside(source.unreadable)
                    source.unreadable = []
                    place = [number, each, last] if last else [number, each + 1, ""]
                    if self._writer.is_due:
                        await self._write("output", kind, ["output", *place])
            after = ""
        await self._write("output", kind, ["output", number + 1, 0, ""])

    async def _lines(
        self, resource_type: str, window: Sequence[ResourceVersion]
    ) -> AsyncIterator[bytes]:
        """A line for each resource, cut down where that was asked for."""
        elements = self._asked.elements_of(resource_type)
        for number, stored in enumerate(window):
            if not elements:
                yield stored.text.encode()
                continue
            try:
                yield fhir_json.encode(summary.subset(stored.resource(), None, elements))
            except ValueError:
                self._set_aside([stored])
            if number % _CUT_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _set_aside(self, unreadable: Sequence[ResourceVersion]) -> None:
        """Tell of resources that cannot be read, instead of all that comes after them failing with them."""
        for stored in unreadable:
            log.error(
                "a resource cannot be exported", extra={"action": "export", "id": stored.reference}
            )
        outcomes = (
            FhirError(f"{stored.reference} cannot be read", code="exception").outcome
            for stored in unreadable
        )
        self._writer.add_errors([fhir_json.encode(outcome) for outcome in outcomes])

    async def _deleted(self, number: int, whose: Cohort, after: str) -> None:
        """The deletions of one type from a place on, as transactions that would do them again."""
        kind, since = self._row["types"][number], self._asked.since
        queries = await self._queries(kind)
        store = self._context.store
        entries: list[Resource] = []
        patients: set[str] = set()
        assert since is not None  # noqa: S101 - the caller has looked
        async with deletions(store, kind, since, self._at, after) as found:
            async for place, deletion, before in found:
                try:
                    fields = fields_of(before)
                except ValueError:
                    self._set_aside([before])
                    continue
                is_in = whose.has(kind, deletion.id, fields["terms"])
                if is_in and (not queries or any(query.matches(fields) for query in queries)):
                    entries.append({"request": {"method": "DELETE", "url": deletion.reference}})
                    patients |= self._patients([before])
                if len(entries) == _ENTRIES:
                    self._writer.add(list(_bundles(entries)), patients)
                    entries, patients = [], set()
                    if self._writer.is_due:
                        await self._write("deleted", "Bundle", ["deleted", number, 0, place])
        self._writer.add(list(_bundles(entries)), patients)
        await self._write("deleted", "Bundle", ["deleted", number + 1, 0, ""])


def _bundles(entries: Sequence[Resource]) -> Iterator[bytes]:
    if entries:
        bundle = {"resourceType": "Bundle", "type": "transaction", "entry": list(entries)}
        yield fhir_json.encode(bundle)
