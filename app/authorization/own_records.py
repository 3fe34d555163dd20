"""The records of very many patients, as far as one caller may see them: chosen fields, read at the database's pace.

A search reads all terms of each candidate and judges it, which is too much for everything of 100,000 members. Nearly
all of it is plain: without a label, telling of no other record, about patients of the caller's own who have no Consent
in force that can be about the caller. The rules let whoever reads by patients have that, so MongoDB tells what is
plain; the rest is judged like any candidate.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from app.authorization import told_about
from app.authorization.access import Access
from app.authorization.panel import MOST_IN_PANEL
from app.authorization.relations import about
from app.authorization.rules import rule_of
from app.consent.judgement import concerning
from app.runtime.mongo import Document
from app.search.computed_fields import beginnings_of, named_in, prefetched, terms_with
from app.search.parameter import Filter
from app.store.store import Store

# A record with the patients (`Patient/p1`) that it is about.
OwnRecord = tuple[tuple[str, ...], Document]
_BATCH = 4_000
_LABEL = "_security="


class OwnRecords:
    """For one call: `own` are the patients (`Patient/p1`) that the call is about and who are the caller's; None: all.

    A caller whom `Access.sight` does not let see whole types has to have `own`.
    """

    def __init__(
        self, store: Store, access: Access | None, own: frozenset[str] | None, base_url: str
    ) -> None:
        self._store = store
        self._access = access
        self._own = own
        self._base_url = base_url
        self._with_consents: frozenset[str] | None = None

    def of(self, own: frozenset[str]) -> OwnRecords:
        """The same about some of the patients."""
        found = OwnRecords(self._store, self._access, own, self._base_url)
        found._with_consents = self._with_consents
        return found

    async def read(
        self, resource_type: str, filter_: Filter, fields: Document
    ) -> AsyncIterator[OwnRecord]:
        """What is about own patients alone and may be seen, with the `fields`, times without a zone."""
        where, is_exact = [filter_], True
        if self._access is not None:
            sight = await self._access.sight(resource_type, "s")
            if sight is None:
                return
            where += sight.filters
            is_exact = sight.is_exact
        subject = self._subject(resource_type)
        if self._own is not None and len(self._own) <= MOST_IN_PANEL:
            where.append(self._about(subject, self._own))
        wanted = list(subject)
        if not is_exact:
            wanted += [_LABEL, *told_about.TELLING.get(resource_type, ())]
        projection = {"_id": 1, **fields} | ({"of": terms_with(wanted)} if wanted else {})
        options: dict[str, Any] = {"projection": projection, "read_ahead": _BATCH, "naive": True}
        async with self._store.batches(resource_type, {"$and": where}, **options) as read:
            async for rows in prefetched(read, _BATCH):
                found = self._owned(resource_type, rows, subject)
                if not is_exact:
                    found = await self._seen(resource_type, found)
                for each in found:
                    yield each

    def _subject(self, resource_type: str) -> tuple[str, ...]:
        """The beginnings of the terms that say whom a resource is about; none for Patients themselves."""
        parameter = about(resource_type)
        if parameter is None:
            return ()
        return beginnings_of(parameter, "Patient", self._base_url)

    def _owned(
        self, resource_type: str, rows: list[Document], subject: tuple[str, ...]
    ) -> list[OwnRecord]:
        """The rows about own patients alone."""
        found: list[OwnRecord] = []
        own = self._own
        for row in rows:
            if resource_type == "Patient":
                patients: tuple[str, ...] = (f"Patient/{row['_id']}",)
            else:
                of = row["of"] if subject else ()
                if len(of) > 1:
                    of = [each for each in of if each.startswith(subject)]
                patients = named_in(of, "Patient") if of else ()
            if patients and (own is None or own.issuperset(patients)):
                found.append((patients, row))
        return found

    def _about(self, subject: tuple[str, ...], own: frozenset[str]) -> Filter:
        ids = sorted(each.partition("/")[2] for each in own)
        if not subject:
            return {"_id": {"$in": ids}}
        return {"terms": {"$in": [each + id_ for each in subject for id_ in ids]}}

    async def _seen(self, resource_type: str, found: list[OwnRecord]) -> list[OwnRecord]:
        access = self._access
        assert access is not None  # noqa: S101 - without rules nothing is judged
        by_patients = "patients" in rule_of(access.caller.role, resource_type).read
        is_plain = by_patients and self._own is not None
        consenting = await self._consenting(access)
        # What has more terms of those asked for than its patient's has a label, or tells of another record.
        most = 0 if resource_type == "Patient" else 1
        left = [
            row["_id"]
            for patients, row in found
            if not is_plain or len(row["of"]) > most or not consenting.isdisjoint(patients)
        ]
        if not left:
            return found
        # Whole rows, whatever was asked for: what is judged is read as it is now.
        wanted = {"_id": {"$in": left}}
        whole = await self._store.find(resource_type, wanted, projection={"terms": 1})
        seen = await access.seen(resource_type, [row for row in whole if "terms" in row])
        hidden = set(left) - seen
        return [each for each in found if each[1]["_id"] not in hidden]

    async def _consenting(self, access: Access) -> frozenset[str]:
        """The patients with a Consent in force that can be about the caller, whatever it says."""
        if self._with_consents is None:
            where = concerning(access.disclosure.kind(access.caller))
            fields = {"of": terms_with(self._subject("Consent"))}
            found: set[str] = set()
            options: dict[str, Any] = {"projection": fields, "read_ahead": _BATCH}
            async with self._store.batches("Consent", where, **options) as read:
                async for rows in prefetched(read, _BATCH):
                    for row in rows:
                        found.update(named_in(row["of"], "Patient"))
            self._with_consents = frozenset(found)
        return self._with_consents
