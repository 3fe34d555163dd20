"""The merge of one visit's messages by the time of their events, whatever the order in which they arrive.

Pure functions over decoded Encounters; docs/encounters.md explains the rules to senders.

Every part of an Encounter ("field": `status`, `period/start`, `location` ...) is a register with the value of the
newest message that has one for it. So the outcome does not depend on the order of arrival, and repeating a message
changes nothing. Where times overlap, by the precision with which they are said, arrival decides; where one of two
messages does not state its time, nothing but a step back of the status is taken for late
(docs/decisions/0020-what-a-visit-tells.md).
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
from app.fhir.encounter_status import ACTIVE, FINAL, phase
from app.fhir.json import Resource
from app.resources.event_time import BEGINNING, Moment, Time, moment, time_of

Field = str
Applied = Literal["all", "filled", "history-only"]

# The same text for the same content, whatever the order of its keys.
_CANONICAL = msgspec.json.Encoder(order="deterministic")
# How many digests of messages are kept, by which repetitions of late ones are recognized.
_REMEMBERED = 50
# Before the digest of a message that was not applied.
_NOT_APPLIED = "-"
# Objects whose parts come in different messages: an admission has the start, a discharge the end.
_SPLIT = ("period", "hospitalization")
# Fields that a visit has only at its end; a message about one that goes on removes those it does not mention.
_OF_THE_END = ("period/end", "hospitalization/dischargeDisposition", "hospitalization/destination")
# Elements of the server, or handled apart from the fields.
_APART = frozenset({"resourceType", "id", "meta", "text", "contained"})


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a visit beside its current version: when each field was last written, and digests of messages.

    `latest` and `certain` are of the message that gave the visit its status (`Moment`).
    """

    clocks: Mapping[Field, Time]
    seen: tuple[str, ...] = ()
    latest: Time = BEGINNING
    certain: bool = False

    @property
    def newest(self) -> Time:
        """The time of the newest message that was applied; `BEGINNING` while none had one."""
        return max(self.clocks.values(), default=BEGINNING)

    def with_message(self, message: Resource, *, applied: bool = True) -> Memory:
        """This memory with the digest of a message added."""
        mark = digest(message) if applied else _NOT_APPLIED + digest(message)
        rest = tuple(each for each in self.seen if each != mark)
        return replace(self, seen=(*rest, mark)[-_REMEMBERED:])

    def has_applied(self, message: Resource) -> bool:
        """Whether the message has come before and counted, or was older than others."""
        return digest(message) in self.seen

    def has_not_applied(self, message: Resource) -> bool:
        """Whether the message has come before and was not applied."""
        return _NOT_APPLIED + digest(message) in self.seen


@dataclass(frozen=True, slots=True)
class VisitOutcome:
    """The visit after a message. `history-only`: the message changed nothing.

    `unsettled`: the message gives the visit another status, which was not applied, and a person has to look whether
    that is right: nothing says that it is older, or it says that the visit is over.
    """

    resource: Resource
    memory: Memory
    applied: Applied
    unsettled: bool = False


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
    known = Memory(clocks, latest=found.latest, certain=found.certain)
    return known.with_message(current)


def merge(current: Resource, memory: Memory, message: Resource, when: Moment) -> VisitOutcome:
    """The visit after one more message about it.

    A message that is not older than any before it sets the state: one with a stated time keeps the fields that it does
    not mention, one without is a whole Encounter and drops them. An older one sets only fields that no newer one has,
    one that is doubted only those that are unknown.
    """
    doubted = _is_doubted(current, memory, message, when)
    is_newest = not doubted and _is_newest(current, memory, message, when)
    said, had = _statement(message), fields(current)
    if _leaves_status_open(message, when) and "status" in had:
        del said["status"]
    whole = "contained" in message or "contained" in current  # its parts cannot be merged
    if not is_newest and whole:
        return _older(current, current, memory, message, doubted=doubted)
    if is_newest and (whole or not when.stated):
        said = {**dict.fromkeys(had.keys() - {"status"}), **said}
    clocks, parts = dict(memory.clocks), dict(had)
    counts = {
        name: members
        for name, members in said.items()
        if (
            name not in clocks
            if doubted
            else is_newest or when.latest >= clocks.get(name, BEGINNING)
        )
    }
    for name, members in counts.items():
        clocks[name] = max(clocks.get(name, BEGINNING), when.time)
        if members is None:
            parts.pop(name, None)
        else:
            parts[name] = members
    known = replace(memory, clocks=clocks)
    if "status" in counts:
        known = replace(known, latest=max(when.latest, clocks["status"]), certain=when.certain)
    if is_newest:
        return VisitOutcome(_assemble(message, parts), known.with_message(message), "all")
    return _older(current, _assemble(current, parts), known, message, doubted=doubted)


def _older(
    current: Resource, merged: Resource, known: Memory, message: Resource, *, doubted: bool
) -> VisitOutcome:
    """The outcome of a message that is older than others, or doubted: the visit goes on from `merged`."""
    labelled = meta.add(current.get("meta", {}), message.get("meta", {}))
    if labelled != current.get("meta", {}):
        merged = {**merged, "meta": labelled}
    is_other = merged.get("status") != message.get("status")
    unsettled = is_other and (doubted or message.get("status") in FINAL)
    applied: Applied = "history-only" if merged == current else "filled"
    known = known.with_message(message, applied=not unsettled)
    return VisitOutcome(merged, known, applied, unsettled)


def _is_doubted(current: Resource, memory: Memory, message: Resource, when: Moment) -> bool:
    """Whether a message takes the status back with nothing newer to show than the visit has.

    Two times that are certain speak for themselves.
    """
    if _leaves_status_open(message, when) or phase(message) >= phase(current):
        return False
    if when.certain and memory.certain:
        return False
    shown = when.latest if when.stated else when.time
    return shown <= memory.latest and not _shows_status_of(current, message)


def _is_newest(current: Resource, memory: Memory, message: Resource, when: Moment) -> bool:
    """Whether nothing that is known is newer than a message. One without a stated time is not judged by it.

    Nor is one that takes the status forward from where the time of that is not certain: a cancellation must not be
    lost because the clock of who sent the admission is ahead.
    """
    if not when.stated or when.latest >= memory.newest:
        return True
    return (
        phase(message) > phase(current)
        and not memory.certain
        and not _leaves_status_open(message, when)
    )


def _shows_status_of(current: Resource, message: Resource) -> bool:
    """Whether a message knows of the status that it takes back: its history has one that is as far."""
    history = message.get("statusHistory", ())
    return any(phase(each) == phase(current) for each in history if isinstance(each, dict))


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
    now = time_of(arrival)
    known = replace(memory, clocks={**memory.clocks, **dict.fromkeys(changed, now)})
    return replace(known, latest=now, certain=True) if "status" in changed else known


def digest(message: Resource) -> str:
    """The digest by which a repeated message is recognized; without id and meta, to which stored versions add."""
    own = {key: value for key, value in message.items() if key not in ("id", "meta")}
    return hashlib.sha256(_CANONICAL.encode(own)).hexdigest()[:24]


def as_document(memory: Memory) -> dict[str, Any]:
    """The memory as it is stored beside the current version."""
    return {
        "clocks": dict(memory.clocks),
        "seen": list(memory.seen),
        "latest": memory.latest,
        "certain": memory.certain,
    }


def of_document(document: Mapping[str, Any]) -> Memory:
    """The memory of its document. One without `latest` is of earlier servers: it is as late as its newest clock."""
    clocks = dict(document["clocks"])
    latest = document.get("latest", max(clocks.values(), default=BEGINNING))
    return Memory(clocks, tuple(document["seen"]), latest, document.get("certain", False))
