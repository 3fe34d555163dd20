"""What a file asks to be stored: its entries, each with the id and the condition under which it is stored.

https://hl7.org/fhir/R4/http.html#trules. Every entry that a transaction would create gets its id here (ids.py), so
that references to it can be written before anything is sent, and loading the same file twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from app.cli.load.ids import Source, SourceLinks
from app.errors import Unprocessable
from app.fhir import full_urls
from app.fhir.entry_references import EntryReferences, NamedEntry
from app.fhir.json import Resource
from app.fhir.links import LinkRefused, rewrite

LISTS = frozenset({"collection", "searchset"})
UNPACKED = LISTS | {"transaction", "batch"}
_NO_SOURCE = Source()


class PlanError(Exception):
    """An entry that cannot be loaded; the text is the reason."""


@dataclass(slots=True)
class LoadEntry:
    """One resource to store under `resource_type`/`id`.

    `condition` is a search (`identifier=...`) that decides whether it exists already: with `update` the match is
    overwritten, otherwise it stands for the entry and nothing is sent. `index` is its place in the Bundle. `is_listed`:
    it stands in a list, which asks for nothing to be overwritten. `keeps_id`: its id is that of its source, or made of
    it. `root`: that of the other server whose id it keeps.
    """

    resource: Resource
    index: int = 0
    full_url: str = ""
    condition: str = ""
    update: bool = True
    label: str = ""
    is_listed: bool = False
    keeps_id: bool = False
    root: str = ""

    @property
    def resource_type(self) -> str:
        return str(self.resource["resourceType"])

    @property
    def id(self) -> str | None:
        return self.resource.get("id")

    @property
    def reference(self) -> str:
        return f"{self.resource_type}/{self.id}"


@dataclass(slots=True)
class LoadPlan:
    """The entries of one Bundle or resource, and those that cannot be loaded with their reasons.

    `named` are all of them as the Bundle names them.
    """

    entries: list[LoadEntry] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    named: list[NamedEntry] = field(default_factory=list)


def plan(document: Resource, digest: str, base: str, source: Source = _NO_SOURCE) -> LoadPlan:
    """The entries of a Bundle that is a parcel of resources, else the resource itself.

    `digest` tells the document from all others; `base` is that of the server.
    """
    result = LoadPlan()
    kind = str(document.get("type")) if document.get("resourceType") == "Bundle" else None
    raw_entries = [{"resource": document}]
    if kind in UNPACKED:
        raw_entries = document.get("entry", [])
    result.named = [
        NamedEntry.of(index, raw.get("fullUrl"), raw.get("resource"))
        for index, raw in enumerate(raw_entries)
        if isinstance(raw, dict)
    ]
    names = EntryReferences(result.named, [base])
    giving = _Ids(source, digest, names)
    for index, raw in enumerate(raw_entries):
        label = f"entry {index + 1}" if len(raw_entries) > 1 else ""
        try:
            entry = _entry(raw, index, label)
            entry.is_listed = kind in LISTS and not names.root(index)
            giving.give(entry, raw.get("request", {}).get("method"))
            result.entries.append(entry)
        except (PlanError, AttributeError, TypeError) as error:
            reason = str(error) if isinstance(error, PlanError) else "is not a Bundle entry"
            result.refused.append((label, reason))
    return result


def _entry(raw: Any, index: int, label: str) -> LoadEntry:
    """The entry with its condition; of a PUT also with the id that it names."""
    request = raw.get("request", {})
    method, url = request.get("method"), request.get("url", "")
    if method not in {None, "POST", "PUT"}:
        raise PlanError(f"asks for {method}, which is not loading")
    resource = raw.get("resource")
    if resource is None or not isinstance(resource.get("resourceType"), str):
        raise PlanError("has no resource with a resourceType")
    entry = LoadEntry(resource, index, raw.get("fullUrl", ""), label=label)
    if method == "PUT":
        path, _, entry.condition = url.partition("?")
        if not entry.condition:
            resource_type, _, resource["id"] = path.rpartition("/")
            if resource_type.rpartition("/")[2] != entry.resource_type:
                raise PlanError("has a request.url that does not fit its resource")
    elif method == "POST":
        entry.condition, entry.update = _criteria(request.get("ifNoneExist", "")), False
    gives_id = method == "PUT" and not entry.condition
    if entry.full_url and (
        why := full_urls.fault(entry.full_url, resource, may_have_moved=gives_id)
    ):
        raise PlanError(f"has a fullUrl that is wrong: {why}")
    return entry


def _criteria(if_none_exist: str) -> str:
    """Criteria, which may stand behind a type or an address; a value may have a question mark, too."""
    place, mark, criteria = if_none_exist.partition("?")
    return criteria if mark and "=" not in place else if_none_exist


class _Ids:
    """Gives entries the ids by which they are stored and others can refer to them."""

    def __init__(self, source: Source, digest: str, names: EntryReferences) -> None:
        self._source = source
        self._digest = digest
        self._names = names

    def give(self, entry: LoadEntry, method: str | None) -> None:
        resource, source = entry.resource, self._source
        root = self._names.root(entry.index)
        if method == "PUT" and not entry.condition:
            entry.keeps_id, entry.root = True, root
            if root:
                resource["meta"] = {"source": root, **resource.get("meta", {})}
            resource["id"] = source.of_place(entry.resource_type, resource["id"])
        elif root:
            entry.keeps_id = True
            resource["id"] = source.of_address(entry.full_url)
        elif method is None and entry.id is not None:
            entry.keeps_id = True
            resource["id"] = source.of_place(entry.resource_type, resource["id"])
        else:
            resource["id"] = source.of_content(self._digest, entry.index)


def pointed(entry: LoadEntry, names: EntryReferences, source: Source) -> Resource:
    """The resource of an entry with its references leading to what is stored. Raises Unprocessable."""
    if not source.name:
        return names.rewritten(entry.index, entry.resource)
    try:
        return rewrite(entry.resource, SourceLinks(names, source, entry.index))
    except LinkRefused as refused:
        place = refused.expression(f"Bundle.entry[{entry.index}].resource")
        raise Unprocessable(refused.reason, code="value", expression=place) from None


def searches(value: Any, key: str = "") -> Iterator[str]:
    """The conditional references in `value`: `Practitioner?identifier=...`."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from searches(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from searches(item, key)
    elif key == "reference" and isinstance(value, str) and "?" in value:
        yield value
