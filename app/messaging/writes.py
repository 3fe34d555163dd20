"""All that a message writes, planned: the records of its entries, and the message itself as a record.

Each is judged as if its sender had written it (app/interactions/plan.py); an Encounter by the order of its visit's
messages, in which the message has the time that the Encounter states, else the time at which it was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from app.context import Context, WriteScope
from app.errors import Issue
from app.fhir.ids import new_id
from app.fhir.json import Resource
from app.interactions import plan
from app.interactions.bundle_entries import located
from app.interactions.plan import WritePlan
from app.interactions.preconditions import NO_PRECONDITIONS
from app.messaging.contents import filled, with_event_time, with_url
from app.messaging.entries import Placed, Places, issues_of_new, without_unplaced
from app.messaging.message_bundle import Message
from app.records.versions import Change, Guard
from app.resources import encounter, type_registry
from app.runtime import pace

# The effects of a visit's message that is older than others.
_LATE = frozenset({"filled", "history-only", "repeated"})


@dataclass(slots=True)
class Planned:
    """What a message writes, in one commit, and what its sender is told.

    `status` is 202 where something is kept and not in force; `focus` are the records that the message is about.
    """

    changes: list[Change] = field(default_factory=list)
    guards: dict[str, Guard] = field(default_factory=dict)
    issues: list[Issue] = field(default_factory=list)
    status: int = 200
    focus: Sequence[str] = ()

    def add(self, placed: Placed, made: WritePlan) -> None:
        self.guards |= {guard.key: guard for guard in made.guards}
        if made.change is not None:
            self.changes.append(made.change)
        answer = made.answer(None)
        if answer.status == 202:
            self.status = 202
        where = (f"{placed.entry.where}.resource",)
        self.issues += [replace(each, expression=where) for each in answer.issues]


async def planned(context: Context, message: Message) -> Planned:
    """The plan of a message as things are now. Raises FhirError where it cannot be taken."""
    places = Places(context, message)
    placed = await places.find()
    names = message.names(places.targets())
    written = [each for each in placed.values() if each.is_written]
    writing = replace(context, write_scope=_scope(written))
    found = Planned()
    is_late = False
    async for each in pace.paced(sorted(written, key=lambda each: each.entry.type != "Encounter")):
        if each.target is None or (is_late and _is_known_record(each)):
            continue
        said = names.rewritten(each.entry.index, without_unplaced(each.entry, message, placed))
        with located(each.entry):
            body = _content(each, said, message)
            made = await plan.plan_write(writing, each.target, body, NO_PRECONDITIONS)
        found.add(each, made)
        if each.entry.type == "Encounter" and made.prepared is not None:
            is_late |= made.prepared.headers.get(encounter.APPLIED) in _LATE
    found.issues += issues_of_new(placed)
    found.changes.append(_record(message))
    targets = places.targets()
    found.focus = [targets[index] for index in message.focus if index in targets]
    return found


def _is_known_record(placed: Placed) -> bool:
    """Whether an entry would change a record that a newer message may have told of, as a diagnosis."""
    is_known = placed.target is not None and placed.target.previous is not None
    return is_known and placed.entry.type not in ("Encounter", "Patient")


def _content(placed: Placed, said: Resource, message: Message) -> Resource:
    """What the record is to say."""
    if placed.url is not None:
        said = with_url(said, placed.url)
    if placed.entry.type == "Encounter" and not type_registry.is_message(said):
        return with_event_time(said, message.bundle["timestamp"])
    previous = placed.target.previous if placed.target is not None else None
    if placed.entry.type == "Patient" and previous is not None:
        return filled(previous.resource(), said)
    return said


def _scope(written: Sequence[Placed]) -> WriteScope:
    targets = [each.target for each in written if each.target is not None]
    return WriteScope(
        creating=frozenset((target.type, target.id) for target in targets),
        writing=frozenset(target.reference for target in targets),
    )


def _record(message: Message) -> Change:
    """The message as it came, kept under an id of the server's and found by its own."""
    kept = {name: value for name, value in message.bundle.items() if name != "id"}
    source: Mapping[str, str] = message.header["source"]
    if "identifier" not in kept:
        kept["identifier"] = {"system": source["endpoint"], "value": message.bundle["id"]}
    return Change("create", "Bundle", new_id(), kept)
