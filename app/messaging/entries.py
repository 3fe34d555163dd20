"""The record that each entry of a message is or becomes.

A person is found by the identifiers that the message carries and by nothing else, neither by the id that the sender has
for somebody nor by a name. A visit is found by its visit number; other records of a person by their identifiers, among
those of the same person. What has no identifier is found by its fullUrl, under which it is stored. What belongs to the
directory is looked up there, and not changed.
docs/messages.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from app.attribution.claims import survivor_of
from app.authorization.rules import KEEPERS, room_of
from app.authorization.subject_store import patients_named
from app.context import Context
from app.errors import Forbidden, Issue, Unprocessable
from app.fhir.codes import AMBIGUOUS_PATIENT
from app.fhir.definitions import search_parameters
from app.fhir.ids import new_id
from app.fhir.json import Resource
from app.interactions.matches import find_matches_of_any
from app.interactions.plan import Target
from app.interactions.references import split
from app.messaging.contents import URI, Identity, has_lost, identifiers_of, named_only
from app.messaging.message_bundle import Message, MessageEntry
from app.records.versions import Guard, ResourceVersion
from app.search import escaping

# About the message itself: kept in the record of it.
_OF_THE_MESSAGE = frozenset({"MessageHeader", "Provenance"})
# Looked up and named as entries of the directory are.
_NAMED = frozenset({"Device"})
# How many records may have the identifiers of one, for a person to be asked about them.
_MOST_ALIKE = 50
# A merge of a merge of a merge.
_MOST_MERGES = 5


@dataclass(frozen=True, slots=True)
class Placed:
    """An entry and its record. Without a target it has none: others name it by its identifier and display."""

    entry: MessageEntry
    target: Target | None = None
    # Whether the entry says something to be stored; of what the directory has it does not.
    is_written: bool = False
    # By what the record is found again, where it has no identifier of its own.
    url: str | None = None


class Places:
    """The records of a message's entries, found one after another: persons and directory, visits, what is left."""

    def __init__(self, context: Context, message: Message) -> None:
        self._context = context
        self._message = message
        self._found: dict[int, Placed] = {}
        self._by_identity: dict[tuple[str, Identity], Placed] = {}

    async def find(self) -> Mapping[int, Placed]:
        """All of them, by index. Raises Unprocessable where one cannot be told."""
        others = []
        for entry in self._message.entries:
            if entry.type == "Patient":
                self._put(
                    await self._once(entry, identifiers_of(entry.resource, self._message.taken_at))
                )
            elif entry.type in _OF_THE_MESSAGE or not self._is_own_to_say(entry):
                self._put(Placed(entry))
            elif entry.type in _NAMED or room_of(entry.type) == "directory":
                self._put(await self._directory(entry))
            elif room_of(entry.type) == "record":
                others.append(entry)
            else:
                raise Unprocessable(
                    f"A message does not bring a {entry.type}",
                    code="not-supported",
                    expression=f"{entry.where}.resource",
                )
        for entry in sorted(others, key=lambda each: each.type != "Encounter"):
            self._put(await self._once(entry, self._identities(entry)))
        return self._found

    def _put(self, placed: Placed) -> None:
        self._found[placed.entry.index] = placed

    def targets(self) -> dict[int, str]:
        """What is found so far, as references."""
        return {
            index: placed.target.reference
            for index, placed in self._found.items()
            if placed.target is not None
        }

    @property
    def _is_unlimited(self) -> bool:
        access = self._context.access
        return access is None or access.caller.role in KEEPERS

    def _is_own_to_say(self, entry: MessageEntry) -> bool:
        """Whether an entry is the sender's word: what somebody is insured with is the plan's."""
        return entry.type != "Coverage" or self._is_unlimited or self._context.caller.role == "plan"

    async def _once(self, entry: MessageEntry, identities: Sequence[Identity]) -> Placed:
        """The place of a person, a visit or another record. Raises Unprocessable where two entries are the same one."""
        for each in identities:
            other = self._by_identity.get((entry.type, each))
            if other is not None and not _is_same(other.entry, entry):
                raise Unprocessable(
                    f"{other.entry.where} and {entry.where} are the same {entry.type}, and do not say the same",
                    code="duplicate",
                    expression=(f"{other.entry.where}.resource", f"{entry.where}.resource"),
                )
            if other is not None:
                return Placed(entry, other.target)
        target = await self._target(entry, identities)
        for known in self._found.values():
            if known.target is not None and known.target.reference == target.reference:
                raise Unprocessable(
                    f"{known.entry.where} and {entry.where} are the same {entry.type}",
                    code="duplicate",
                    expression=(f"{known.entry.where}.resource", f"{entry.where}.resource"),
                )
        placed = Placed(entry, target, is_written=True, url=self._url_of(entry, target))
        self._by_identity |= {(entry.type, each): placed for each in identities}
        return placed

    async def _target(self, entry: MessageEntry, identities: Sequence[Identity]) -> Target:
        if not identities and "identifier" in search_parameters(entry.type):
            raise Unprocessable(
                _NO_IDENTIFIER.get(entry.type, _NO_IDENTIFIER["*"]),
                code="required",
                expression=f"{entry.where}.resource.identifier",
            )
        guards, found = await self._matches(entry.type, identities)
        if entry.type == "Patient":
            found = await self._survivors(found)
        elif entry.type != "Encounter":
            found = self._of_same_person(entry, found)
        if len(found) > 1:
            raise await self._ambiguous(entry, found)
        if found:
            return Target(entry.type, found[0].id, found[0])
        self._context.require(entry.type, "c")
        return Target(entry.type, new_id(), guards=guards, creates=True)

    def _identities(self, entry: MessageEntry) -> Sequence[Identity]:
        """What a record is found by; a visit by no URN, since the next message of the visit may have another."""
        if "identifier" not in search_parameters(entry.type):
            return ()
        found = identifiers_of(entry.resource, self._message.taken_at)
        if found or (entry.type == "Encounter" and "://" not in entry.full_url):
            return found
        return [(URI, entry.full_url)]

    def _url_of(self, entry: MessageEntry, target: Target) -> str | None:
        """By what a record is found that has no identifier; a visit that is known keeps the one that it has."""
        if identifiers_of(entry.resource, self._message.taken_at) or not self._identities(entry):
            return None
        return entry.full_url if target.creates or entry.type != "Encounter" else None

    async def _matches(
        self, resource_type: str, identities: Sequence[Identity]
    ) -> tuple[tuple[Guard, ...], list[ResourceVersion]]:
        """The records that have one of these identifiers still and that the sender may see; guards against others."""
        if not identities:
            return (), []
        criteria = [
            urlencode({"identifier": f"{escaping.escape(system)}|{escaping.escape(value)}"})
            for system, value in identities
        ]
        guards, found = await find_matches_of_any(
            self._context, resource_type, criteria, _MOST_ALIKE
        )
        known = frozenset(identities)
        taken_at = self._message.taken_at
        return guards, [match for match in found if not has_lost(match.resource(), known, taken_at)]

    async def _survivors(self, found: Sequence[ResourceVersion]) -> list[ResourceVersion]:
        """The Patients without those that were replaced by another, which takes their place."""
        survivors: dict[str, ResourceVersion] = {}
        for each in found:
            for _ in range(_MOST_MERGES):
                place = split(survivor_of(each.resource(), self._context.base_url) or "")
                survivor = await self._context.store.read(*place) if place else None
                if survivor is None or survivor.deleted:
                    break
                each = survivor
            survivors[each.reference] = each
        return list(survivors.values())

    def _of_same_person(
        self, entry: MessageEntry, found: Sequence[ResourceVersion]
    ) -> list[ResourceVersion]:
        """Those about the persons that the entry is about: senders number some records for each person alone."""
        if not found:
            return []
        resource = self._message.names(self.targets()).rewritten(
            entry.index, without_unplaced(entry, self._message, self._found)
        )
        base_url = self._context.base_url
        whom = patients_named(entry.type, {**resource, "id": "-"}, base_url)
        return [
            each for each in found if patients_named(each.type, each.resource(), base_url) == whom
        ]

    async def _ambiguous(
        self, entry: MessageEntry, found: Sequence[ResourceVersion]
    ) -> Unprocessable:
        """The refusal of what may be one of several records; of a person somebody is asked to look."""
        if entry.type == "Patient":
            context, all_ = self._context, sorted(each.reference for each in found)
            sender = [context.caller.organization] if context.caller.organization else []
            for each in found:
                others = [reference for reference in all_ if reference != each.reference]
                await context.services.store.raise_event(
                    (each.type, each.id, each.version),
                    AMBIGUOUS_PATIENT,
                    key=" ".join([each.reference, *sender, *others]),
                    at=context.services.clock.now(),
                    context=(*sender, *others),
                )
        return Unprocessable(
            f"The identifiers are those of more than one {entry.type} here",
            code="multiple-matches",
            expression=f"{entry.where}.resource.identifier",
        )

    async def _directory(self, entry: MessageEntry) -> Placed:
        """An entry that the directory has once; else one that is new, if the sender keeps the directory."""
        identities = identifiers_of(entry.resource, self._message.taken_at)
        if not identities and "://" in entry.full_url:
            identities = [(URI, entry.full_url)]
        for each in identities:
            if (other := self._by_identity.get((entry.type, each))) is not None:
                return Placed(entry, other.target)
        try:
            guards, found = await self._matches(entry.type, identities)
        except Forbidden:  # who may not search the directory names what it has not found there
            return Placed(entry)
        placed = Placed(entry)
        if len(found) == 1:
            placed = Placed(entry, Target(entry.type, found[0].id, settled=found[0]))
        elif identities and not found and self._is_unlimited:
            target = Target(entry.type, new_id(), guards=guards, creates=True)
            has_none = not identifiers_of(entry.resource, self._message.taken_at)
            placed = Placed(entry, target, True, entry.full_url if has_none else None)
        self._by_identity |= {(entry.type, each): placed for each in identities}
        return placed


_NO_IDENTIFIER = {
    "Patient": "A Patient is found by an identifier with its system: this one has none",
    "Encounter": "A visit is found by its visit number, an identifier with its system: this one has none",
    "*": "A record is found by an identifier with its system, or by its fullUrl: this one has neither",
}


def without_unplaced(
    entry: MessageEntry, message: Message, placed: Mapping[int, Placed]
) -> Resource:
    """The entry's resource in which what has no record here is named by its identifier and display."""

    def unplaced(literal: str) -> Resource | None:
        index = message.references.meaning(entry.index, literal).entry
        if index is None:
            return None
        other = placed.get(index)
        if other is not None and other.target is not None:
            return None
        return message.entries[index].resource

    return named_only(entry.resource, unplaced, message.taken_at)


def _is_same(one: MessageEntry, other: MessageEntry) -> bool:
    """Whether two entries say the same."""
    return {**one.resource, "id": ""} == {**other.resource, "id": ""}


def issues_of_new(placed: Mapping[int, Placed]) -> Iterator[Issue]:
    """What the sender is told of persons who were not known."""
    for each in placed.values():
        if each.entry.type == "Patient" and each.target is not None and each.target.creates:
            yield Issue(
                "informational",
                "Nobody with these identifiers was known: a Patient was created",
                (f"{each.entry.where}.resource",),
                "information",
            )
