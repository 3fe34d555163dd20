"""The merge of one visit's messages by the time of their events, whatever the order in which they arrive.

Pure functions over decoded Encounters; docs/encounters.md explains the rules to senders.

Every part of an Encounter ("field": `status`, `period/start`, `location` ...) is a register with the value of the
newest message that has one for it. So the outcome does not depend on the order of arrival, and repeating a message
changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

import msgspec

from app.fhir import meta
from app.fhir.codes import EVENT_TIME
from app.fhir.json import Resource
from app.resources.event_time import ACTIVE, BEGINNING, Moment, Time, moment, time_of

Field = str
Applied = Literal["all", "filled", "history-only"]

# The same text for the same content, whatever the order of its keys.
_CANONICAL = msgspec.json.Encoder(order="deterministic")
# How many digests of messages are kept, by which repetitions of late ones are recognized.
_REMEMBERED = 50
# Objects whose parts come in different messages: an admission has the start, a discharge the end.
_SPLIT = ("period", "hospitalization")
# Fields that a visit has only at its end; a message about one that goes on removes those it does not mention.
_OF_THE_END = ("period/end", "hospitalization/dischargeDisposition", "hospitalization/destination")
# Elements of the server, or handled apart from the fields.
_APART = frozenset({"resourceType", "id", "meta", "text", "contained"})


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a visit beside its current version: when each field was last written, and digests of messages."""

    clocks: Mapping[Field, Time]
    seen: tuple[str, ...] = ()

    @property
    def newest(self) -> Time:
        """The time of the newest message that was applied; `BEGINNING` while none had one."""
        return max(self.clocks.values(), default=BEGINNING)

    def with_message(self, message: Resource) -> Memory:
        """This memory with the digest of a message added."""
        mark = digest(message)
        rest = tuple(each for each in self.seen if each != mark)
        return replace(self, seen=(*rest, mark)[-_REMEMBERED:])


@dataclass(frozen=True, slots=True)
class VisitOutcome:
    """The visit after a message. `history-only`: the message changed nothing."""

    resource: Resource
    memory: Memory
    applied: Applied


# Fields


def fields(resource: Resource) -> dict[Field, dict[str, Any]]:
    """The fields of a resource: by name the members of the JSON object that make one up (`status` and `_status`)."""
    found: dict[Field, dict[str, Any]] = {}
    for key, value in resource.items():
        if key in _APART:
            continue
        if key in _SPLIT:
            for part, inner in value.items():
                found.setdefault(f"{key}/{part.lstrip('_')}", {})[part] = inner
        elif key == "extension":
            others = [each for each in value if each.get("url") != EVENT_TIME]
            if others:
                found[key] = {key: others}
        else:
            found.setdefault(key.lstrip("_"), {})[key] = value
    return found


def _statement(message: Resource) -> dict[Field, dict[str, Any] | None]:
    """The value of each field in a message; None for one that the message removes."""
    said: dict[Field, dict[str, Any] | None] = dict(fields(message))
    if message.get("status") in ACTIVE or message.get("status") == "planned":
        for name in _OF_THE_END:
            said.setdefault(name, None)
    return said


def _assemble(base: Resource, parts: Mapping[Field, dict[str, Any]]) -> Resource:
    """A resource of these fields; their order, and elements that are no fields, are the base's."""
    result: Resource = {}
    for key, value in base.items():
        if key in _APART:
            result[key] = value
        elif key == "extension":
            own = [each for each in value if each.get("url") == EVENT_TIME]
            others = parts.get(key, {}).get(key, [])
            if own or others:
                result[key] = value if _same_set(own + others, value) else [*own, *others]
        elif key in _SPLIT:
            whole = dict(_parts_of(key, parts))
            if whole:
                result[key] = {name: whole.pop(name) for name in value if name in whole} | whole
        elif (name := key.lstrip("_")) in parts and key in parts[name]:
            result[key] = parts[name][key]
    for name, members in parts.items():
        parent = name.partition("/")[0]
        if parent not in _SPLIT:
            for key, value in members.items():
                result.setdefault(key, value)
        elif parent not in result:
            result[parent] = dict(_parts_of(parent, parts))
    return result


def _parts_of(
    parent: str, parts: Mapping[Field, dict[str, Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, members in parts.items():
        if name.startswith(f"{parent}/"):
            yield from members.items()


def _same_set(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(each in others for each in some)


# Merging


def remembered(current: Resource, arrival: datetime) -> Memory:
    """The memory of a visit that a single message has written, given its arrival."""
    found = moment(current, arrival)
    if found is None:
        return Memory({})
    clocks = dict.fromkeys(_statement(current), found.time)
    if _leaves_status_open(current, found):
        del clocks["status"]
    return Memory(clocks).with_message(current)


def merge(current: Resource, memory: Memory, message: Resource, when: Moment) -> VisitOutcome:
    """The visit after one more message about it.

    A message that is not older than any before it sets the state: one with a stated time keeps the fields that it does
    not mention, one without is a whole Encounter and drops them. An older one sets only fields that no newer one has.
    """
    is_late = when.time < memory.newest
    known = memory.with_message(message)
    said, had = _statement(message), fields(current)
    if _leaves_status_open(message, when) and "status" in had:
        del said["status"]
    whole = "contained" in message or "contained" in current  # its parts cannot be merged
    if is_late and whole:
        return VisitOutcome(current, known, "history-only")
    if not is_late and (whole or not when.stated):
        said = {**dict.fromkeys(had.keys() - {"status"}), **said}
    clocks, parts = dict(memory.clocks), dict(had)
    for name, members in said.items():
        if when.time < clocks.get(name, BEGINNING):
            continue
        clocks[name] = when.time
        if members is None:
            parts.pop(name, None)
        else:
            parts[name] = members
    known = replace(known, clocks=clocks)
    if not is_late:
        return VisitOutcome(_assemble(message, parts), known, "all")
    merged = _assemble(current, parts)
    labelled = meta.add(current.get("meta", {}), message.get("meta", {}))
    if labelled != current.get("meta", {}):
        merged = {**merged, "meta": labelled}
    return VisitOutcome(merged, known, "history-only" if merged == current else "filled")


def _leaves_status_open(message: Resource, when: Moment) -> bool:
    """Whether the status `unknown` is the v2 map's code for a status that the message did not state."""
    return when.stated and message.get("status") == "unknown"


def edited(current: Resource, memory: Memory, resource: Resource, arrival: datetime) -> Memory:
    """The memory after a person's edit: older messages do not undo it, newer ones may.

    Unchanged where no message has had a time yet: then there is no order to keep.
    """
    if not memory.clocks:
        return memory
    before, after = fields(current), fields(resource)
    changed = [name for name in before | after if before.get(name) != after.get(name)]
    return replace(memory, clocks={**memory.clocks, **dict.fromkeys(changed, time_of(arrival))})


def digest(message: Resource) -> str:
    """The digest by which a repeated message is recognized; without id and meta, to which stored versions add."""
    own = {key: value for key, value in message.items() if key not in ("id", "meta")}
    return hashlib.sha256(_CANONICAL.encode(own)).hexdigest()[:24]


def as_document(memory: Memory) -> dict[str, Any]:
    """The memory as it is stored beside the current version."""
    return {"clocks": dict(memory.clocks), "seen": list(memory.seen)}


def of_document(document: Mapping[str, Any]) -> Memory:
    return Memory(dict(document["clocks"]), tuple(document["seen"]))
