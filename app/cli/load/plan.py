"""What a file asks to be stored: its entries as single requests whose references already fit.

https://hl7.org/fhir/R4/http.html#trules. Every entry that a transaction would create gets its id
here, from its `urn:uuid:` or its address on another server where it has one, so that references to it
can be written before anything is sent, entries can go side by side, and loading the same file twice
changes nothing. The id that it has at its source is never taken: others have theirs there, too.
"""

from __future__ import annotations

import copy
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from app.fhir.entry_references import EntryReferences, NamedEntry
from app.fhir.json import Resource

UNPACKED = {"transaction", "batch", "collection", "searchset"}
MESSAGE = "message"  # unpacked, and kept as what was received
URN_UUID = "urn:uuid:"


class PlanError(Exception):
    """An entry that cannot be loaded; the text is the reason."""


@dataclass(slots=True)
class LoadEntry:
    """One resource to store under `resource_type`/`id`; no id: the server chooses.

    `condition` is a search (`identifier=...`) that decides whether it exists already: with `update`
    the match is overwritten, otherwise it stands for the entry and nothing is sent. `is_closed`: its
    references lead nowhere but into itself and stay as they are. `index` is its place in the Bundle.
    """

    resource: Resource
    index: int = 0
    full_url: str = ""
    condition: str = ""
    update: bool = True
    label: str = ""
    is_closed: bool = False

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


def plan(document: Resource, taken: set[str], base: str) -> LoadPlan:
    """The entries of a Bundle that is a parcel of resources, else the resource itself; of a message both.

    `taken` collects the references that this load has made of `urn:uuid:`; a second Bundle that
    uses the same one for something else gets an id of its own. `base` is that of the server.
    """
    result = LoadPlan()
    kind = document.get("type") if document.get("resourceType") == "Bundle" else None
    raw_entries, kept = [{"resource": document}], None
    if kind == MESSAGE:
        raw_entries = document.get("entry", [])
        kept = LoadEntry(copy.deepcopy(document), label="the message", is_closed=True)
    elif kind in UNPACKED:
        raw_entries = document.get("entry", [])
    result.named = [
        NamedEntry.of(index, raw.get("fullUrl"), raw.get("resource"))
        for index, raw in enumerate(raw_entries)
        if isinstance(raw, dict)
    ]
    names = EntryReferences(result.named, [base])
    for index, raw in enumerate(raw_entries):
        label = f"entry {index + 1}" if len(raw_entries) > 1 else ""
        try:
            entry = _entry(raw, index, label)
            _give_id(entry, raw.get("request", {}).get("method"), taken, names)
            result.entries.append(entry)
        except (PlanError, AttributeError, TypeError) as error:
            reason = str(error) if isinstance(error, PlanError) else "is not a Bundle entry"
            result.refused.append((label, reason))
    if kept is not None:
        result.entries.append(kept)
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
        entry.condition, entry.update = request.get("ifNoneExist", "").rpartition("?")[2], False
    return entry


def _give_id(entry: LoadEntry, method: str | None, taken: set[str], names: EntryReferences) -> None:
    """Give an entry the id by which it is stored and others can refer to it, if it needs one."""
    resource = entry.resource
    if method == "PUT" and not entry.condition:
        return
    if names.is_of_others(entry.index):
        resource["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, entry.full_url))
    elif method is None and entry.id is not None:
        return
    elif entry.full_url.startswith("urn:"):
        resource["id"] = _new_id(entry, taken)
    elif entry.full_url or entry.condition or entry.id is not None:
        resource["id"] = str(uuid.uuid4())


def _new_id(entry: LoadEntry, taken: set[str]) -> str:
    """The id that `urn:uuid:` spells, unless this load has given it to another resource."""
    try:
        made = str(uuid.UUID(entry.full_url.removeprefix(URN_UUID)))
    except ValueError:  # urn:oid:, or a placeholder such as urn:uuid:patient
        made = ""
    if not made or f"{entry.resource_type}/{made}" in taken:
        made = str(uuid.uuid4())
    taken.add(f"{entry.resource_type}/{made}")
    return made


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


# What others publish as R4 and is not quite: what can be put right without a doubt before it is sent, and said.
#
# The server itself refuses such files; https://hl7.org/fhir/R4/json.html has the rules they break:
#
# fhir_comments            a way to keep XML comments in JSON, which only DSTU2 had: left out
# _name, too short         extensions of a repeating primitive, without the nulls for the last values: completed
# ""                       an element without a value: left out

_COMMENTS = "fhir_comments"


def mend(resource: Resource) -> tuple[Resource, list[str]]:
    """A copy that R4 can hold, and what was changed: nothing but for the three above."""
    notes: Counter[str] = Counter()
    mended = _object(resource, notes)
    return mended, [
        f"{what} ({times} times)" if times > 1 else what for what, times in notes.items()
    ]


def _mended(value: Any, notes: Counter[str]) -> Any:
    """The value, or None where nothing is left of it."""
    if isinstance(value, dict):
        return _object(value, notes) or (value if not value else None)
    if isinstance(value, list):
        items = [_mended(each, notes) for each in value]
        return items if items == value or any(each is not None for each in items) else None
    return value


def _object(value: Resource, notes: Counter[str]) -> Resource:
    made: Resource = {}
    for name, item in value.items():
        if name == _COMMENTS:
            notes[f"left out {_COMMENTS}, which R4 does not have"] += 1
        elif item == "":
            notes[f"left out {name}, which was empty"] += 1
        else:
            mended = _mended(item, notes)
            if mended is not None or item is None:
                made[name] = mended
    for name in [each for each in made if each.startswith("_")]:
        values, extensions = made.get(name[1:]), made[name]
        if isinstance(values, list) and isinstance(extensions, list):
            missing = len(values) - len(extensions)
            if missing > 0:
                made[name] = extensions + [None] * missing
                notes[f"completed {name}, which was shorter than {name[1:]}"] += 1
    return made
