"""All that a message writes, planned: the records of its entries, and the message itself as a record.

Each is judged as if its sender had written it (app/interactions/plan.py); an Encounter by the order of its visit's
messages, in which the message has the time that the Encounter states, else the time at which it was made. Other
records keep what a newer message has said of them (app/messaging/message_times.py).
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
from app.messaging import message_times
from app.messaging.contents import filled, with_url
from app.messaging.entries import Placed, Places, issues_of_new, without_unplaced
from app.messaging.message_bundle import Message
from app.records.versions import Change, Guard, ResourceVersion
from app.resources import type_registry
from app.resources.event_time import BEGINNING, Moment, Time, with_event_time
from app.runtime import pace

_IS_LATE = (
    "This record is known as it was later: what the message says of it is kept in the message alone"
)


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

    def add_late(self, placed: Placed) -> None:
        """Nothing of a record that is known from a newer message, or was written since this one was made."""
        self.status = 202
        where = (f"{placed.entry.where}.resource",)
        self.issues.append(Issue("business-rule", _IS_LATE, where, "warning"))


async def planned(context: Context, message: Message) -> Planned:
    """The plan of a message as things are now. Raises FhirError where it cannot be taken."""
    places = Places(context, message)
    placed = await places.find()
    names = message.names(places.targets())
    written = [each for each in placed.values() if each.is_written]
    writing = replace(context, write_scope=_scope(written))
    moment = message_times.moment_of(message)
    since = await _known_since(context, written)
    found = Planned()
    async for each in pace.paced(sorted(written, key=lambda each: each.entry.type != "Encounter")):
        if each.target is None:
            continue
        if moment.latest < since.get(each.target.reference, BEGINNING):
            found.add_late(each)
            continue
        said = names.rewritten(each.entry.index, without_unplaced(each.entry, message, placed))
        with located(each.entry):
            body = _content(each, said, message)
            made = await plan.plan_write(writing, each.target, body, NO_PRECONDITIONS)
        if _is_ordered_here(each):
            made = await _remembered(context, made, moment)
        found.add(each, made)
    found.issues += issues_of_new(placed)
    found.changes.append(_record(message))
    targets = places.targets()
    found.focus = [targets[index] for index in message.focus if index in targets]
    return found


def _is_ordered_here(placed: Placed) -> bool:
    """Whether an older message must not change the record; a visit has an order of its own, a person is filled in."""
    return placed.entry.type not in ("Encounter", "Patient")


async def _known_since(context: Context, written: Sequence[Placed]) -> dict[str, Time]:
    """From when the known records are as they are, by reference."""
    by_type: dict[str, list[ResourceVersion]] = {}
    for each in written:
        if each.target is not None and each.target.previous and _is_ordered_here(each):
            by_type.setdefault(each.target.type, []).append(each.target.previous)
    return {
        f"{type_}/{id_}": since
        for type_, known in by_type.items()
        for id_, since in (await message_times.known_since(context.store, type_, known)).items()
    }


async def _remembered(context: Context, made: WritePlan, moment: Moment) -> WritePlan:
    """The plan, with the time of the message beside what it leaves in force."""
    if made.change is not None:
        private = message_times.remembered(made.change, moment)
        return replace(made, change=replace(made.change, private=private))
    if made.existing is not None:
        # Past the sender's limits: what is kept beside a version is nobody's to write.
        await message_times.remember_unchanged(context.services.store, made.existing, moment)
    return made


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
