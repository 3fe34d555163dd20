"""A transaction or batch as one request, and what its answer says of each entry.

https://hl7.org/fhir/R4/http.html#transaction. A create is sent as a PUT of the id that the load gives it: so a request
whose answer was lost can be sent again, and a load that was interrupted begun again. Names and references stay as they
came, and the server reads them; only where the ids in them are no longer the entries', they are written anew here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from app.cli.load.ids import NAMES_A_RECORD, Source, may_name_a_record
from app.cli.load.outcome import LoadRefusal, LoadReport, reason, reason_of
from app.cli.load.plan import LoadEntry, LoadPlan, PlanError, pointed, searches
from app.fhir import json as fhir_json
from app.fhir.entry_references import EntryReferences
from app.fhir.json import Resource
from app.fhir.links import FoundReferences, rewrite

TRANSACTION, BATCH = "transaction", "batch"
_PRECONDITIONS = ("ifMatch", "ifNoneMatch")


@dataclass(slots=True)
class BundleRequest:
    """Entries that go as one Bundle, and what has been said of those that the server did not take."""

    kind: str
    label: str
    entries: list[LoadEntry]
    raw: list[Resource]
    refused: dict[int, str] = field(default_factory=dict)

    @property
    def keys(self) -> set[str]:
        """What it writes: two requests with a key in common go one after the other."""
        keys = {_key(entry) for entry in self.entries if _has_given_name(entry)}
        own = self.only_its_own
        return keys | {own} if own else keys

    @property
    def only_its_own(self) -> str | None:
        """A record that is there only if this transaction has been carried out, if there is one."""
        if self.kind != TRANSACTION:
            return None
        return next((each.reference for each in self.entries if not _has_given_name(each)), None)

    @property
    def body(self) -> bytes:
        return fhir_json.encode({"resourceType": "Bundle", "type": self.kind, "entry": self.raw})

    def types(self) -> Counter[str]:
        return Counter(entry.resource_type for entry in self.entries)

    def take(self, response: httpx.Response, file: Path, report: LoadReport) -> None:
        """Count what was stored; the rest, with its reasons, is left in `refused`, and can be sent again."""
        answers: list[Any] = []
        if response.status_code == 200:
            answers = fhir_json.decode(response.content).get("entry", [])
        if len(answers) != len(self.entries):
            said = reason_of(response)
            self.refused = dict.fromkeys((entry.index for entry in self.entries), said)
            return
        left = []
        for entry, raw, answer in zip(self.entries, self.raw, answers, strict=True):
            said = answer.get("response", {})
            status = str(said.get("status", ""))[:3]
            if status == "201":
                report.created[entry.resource_type] += 1
            elif status == "202":  # it is kept, and not in force
                why = reason(status, said.get("outcome") or {})
                report.refuse(file, entry.resource_type, self.name(entry), why)
            elif status.startswith("2"):
                counter = report.updated if entry.update else report.existing
                counter[entry.resource_type] += 1
            else:
                self.refused[entry.index] = reason(status, said.get("outcome") or {})
                left.append((entry, raw))
        self.entries = [entry for entry, _ in left]
        self.raw = [raw for _, raw in left]

    def name(self, entry: LoadEntry) -> str:
        """An entry as a report names it."""
        what = entry.reference if entry.keeps_id else entry.resource_type
        return f"{self.label}, {entry.label}, {what}" if entry.label else f"{self.label}, {what}"

    def report_refused(self, file: Path, report: LoadReport) -> None:
        """A transaction is refused as one, a batch entry by entry."""
        if self.kind == TRANSACTION:
            report.refused.update(self.types())
            why = next(iter(self.refused.values()))
            report.refusals.append(LoadRefusal(str(file), self.label, why))
            return
        for entry in self.entries:
            report.refuse(file, entry.resource_type, self.name(entry), self.refused[entry.index])

    def only(self, indexes: Iterable[int]) -> BundleRequest:
        """The part of a batch with these entries."""
        wanted = set(indexes)
        pairs = [(e, r) for e, r in zip(self.entries, self.raw, strict=True) if e.index in wanted]
        return BundleRequest(self.kind, self.label, [e for e, _ in pairs], [r for _, r in pairs])

    def searches(self) -> dict[int, set[str]]:
        """The conditional references of each entry."""
        return {entry.index: set(searches(entry.resource)) for entry in self.entries}

    def found(self, references: Mapping[str, str]) -> None:
        """Write the records that conditional references mean."""
        for entry, raw in zip(self.entries, self.raw, strict=True):
            entry.resource = rewrite(entry.resource, FoundReferences(references))
            raw["resource"] = entry.resource


def request_of(
    document: Resource, planned: LoadPlan, base: str, source: Source, digest: str, label: str
) -> BundleRequest:
    """The request for a Bundle of type transaction or batch. Raises PlanError or FhirError where it cannot be sent."""
    kind = document["type"]
    if planned.refused and kind == TRANSACTION:
        where, why = planned.refused[0]
        raise PlanError(f"{where} {why}".strip())
    for entry in planned.entries:
        if entry.condition:
            entry.resource.pop("id", None)
    raw = [document["entry"][entry.index] for entry in planned.entries]
    if _changes_names(planned, kind, source):
        _point(planned, kind, base, source, digest)
        urls = [f"urn:uuid:{source.of_content(digest, each.index)}" for each in planned.entries]
    else:
        urls = [each.get("fullUrl", "") for each in raw]
    entries = [
        {
            "resource": entry.resource,
            "request": _request(entry, each),
            **({"fullUrl": url} if url else {}),
        }
        for entry, each, url in zip(planned.entries, raw, urls, strict=True)
    ]
    return BundleRequest(kind, label, planned.entries, entries)


def _request(entry: LoadEntry, raw: Resource) -> dict[str, str]:
    if entry.condition and not entry.update:
        return {"method": "POST", "url": entry.resource_type, "ifNoneExist": entry.condition}
    given = {
        name: raw["request"][name] for name in _PRECONDITIONS if name in raw.get("request", {})
    }
    return {"method": "PUT", "url": _key(entry), **given}


def _changes_names(planned: LoadPlan, kind: str, source: Source) -> bool:
    """Whether references in the entries would no longer lead to them, or never do in a batch."""
    if source.name or kind == BATCH:
        return True
    named = {each.index: each for each in planned.named}
    return any(
        not named[entry.index].full_url
        and named[entry.index].place
        and named[entry.index].place != (entry.reference if entry.id else None)
        for entry in planned.entries
    )


def _point(planned: LoadPlan, kind: str, base: str, source: Source, digest: str) -> None:
    """Write the references of all entries as they are stored; to one with a condition, as that or by its new name."""
    targets = {}
    for entry in planned.entries:
        targets[entry.index] = entry.reference
        if entry.condition:
            by_name = f"urn:uuid:{source.of_content(digest, entry.index)}"
            by_condition = f"{entry.resource_type}?{entry.condition}"
            targets[entry.index] = by_name if kind == TRANSACTION else by_condition
    named = [replace(each, target=targets.get(each.index)) for each in planned.named]
    names = EntryReferences(named, [base], "The reference is to an entry that is not loaded")
    has_other_ids = bool(source.name) or any(
        names.is_of_others(each.index) or (each.place and not each.full_url) for each in named
    )
    for entry in planned.entries:
        if (
            entry.condition
            and has_other_ids
            and may_name_a_record(entry.resource_type, entry.condition)
        ):
            raise PlanError(f"{entry.label} has {NAMES_A_RECORD}".strip())
        entry.resource = pointed(entry, names, source)


def _has_given_name(entry: LoadEntry) -> bool:
    return entry.keeps_id or bool(entry.condition)


def _key(entry: LoadEntry) -> str:
    if entry.condition:
        return f"{entry.resource_type}?{entry.condition}"
    return entry.reference
