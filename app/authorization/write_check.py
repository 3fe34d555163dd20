"""The check of whether a caller may make the changes of one commit, by the stored and the new version of each.

A refusal never reveals whether a resource is stored: the answer for a free id is the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.authentication.caller import Role
from app.authentication.scopes import Action
from app.authorization import (
    consent_check,
    directory_entries,
    named_resources,
    relations,
    taken_ids,
)
from app.authorization.access import Access
from app.authorization.judged_rows import current_rows, last_row_of
from app.authorization.relations import DocumentRow
from app.authorization.rules import (
    KEEPERS,
    LEADS_TO,
    LEADS_TO_OWN,
    LEADS_TO_READ,
    SPEAKS_FOR,
    room_of,
    rule_of,
)
from app.errors import Forbidden
from app.fhir.codes import RECIPIENT_KIND
from app.fhir.json import Resource
from app.records.versions import Change, ResourceVersion, VersionConflict
from app.search import group_members, spans
from app.search.extract import extract
from app.search.parameters import reference
from app.search.search_parameters import parameters

_ACTIONS: dict[str, Action] = {"create": "c", "update": "u", "patch": "u", "delete": "d"}


_ALWAYS = (spans.ALWAYS,)
_REFUSED = "This client may not write this resource so"
_NO_STRANGERS = (
    "A hospital writes about patients whose record it sent or who have been there. Of somebody who is new to it send "
    "the Patient in the same transaction, or have an administrator write the first Encounter that names the hospital "
    "as serviceProvider"
)


def refused(role: Role | None, resource_type: str) -> Forbidden:
    """The one answer to a write that the caller may not make; a hospital's says how a stranger becomes its patient."""
    if role == "hospital" and room_of(resource_type) == "record":
        return Forbidden(f"{_REFUSED}. {_NO_STRANGERS}")
    return Forbidden(_REFUSED)


async def check(access: Access, changes: Sequence[Change]) -> None:
    """Raises Forbidden for the first change that the caller may not make."""
    together = _Together(
        frozenset(f"{change.type}/{change.id}" for change in changes if _is_new(change)),
        frozenset(f"{change.type}/{change.id}" for change in changes if change.resource),
    )
    await asyncio.gather(*(_Writing(access, change, together).check() for change in changes))


def _is_new(change: Change) -> bool:
    return change.previous is None or change.previous.deleted


@dataclass(frozen=True, slots=True)
class _Together:
    """The resources (`Patient/p1`) that one commit creates, and all that it writes, each of which is judged itself."""

    created: frozenset[str]
    written: frozenset[str]


class _Writing:
    """One change, judged as a part of its commit."""

    def __init__(self, access: Access, change: Change, together: _Together) -> None:
        self._access = access
        self._change = change
        self._together = together
        self._action = _ACTIONS[change.method]
        self._base_url = access.base_url
        self._rule = rule_of(access.caller.role, change.type)

    def _refused(self) -> Forbidden:
        return refused(self._access.caller.role, self._change.type)

    async def check(self) -> None:
        change, access = self._change, self._access
        access.require(change.type, self._action)
        hidden = await self._hidden()
        before = None if hidden else await self._before()
        late = change.late.content if change.late is not None else None
        for content in (change.resource, late):
            if content is not None:
                await self._check_new(before, content)
        if access.caller.role not in KEEPERS:
            await directory_entries.check(access, change)
        if not access.is_administrator:
            check_server_owned(change)
        if not access.is_consent_authority:
            consent_check.check_review(change)
        await consent_check.check(access, change, before)
        if hidden is not None:
            raise await taken_ids.refusal(access, change, hidden)

    async def _hidden(self) -> DocumentRow | None:
        """The row that is stored under the id of what the caller takes for new, where there is one.

        Raises VersionConflict where the caller could have known it: somebody has written it in the meantime.
        """
        change, access = self._change, self._access
        if change.previous is not None or change.method == "create":
            return None
        row = (await current_rows(access.store, change.type, {change.id})).get(change.id)
        own = None if row is None else await last_row_of(access.store, change.type, row)
        if own is not None and await access.related(
            change.type, [own], self._rule.old, is_own_past=True
        ):
            stored = await access.store.read(change.type, change.id)
            if stored is None or self._is_within(stored):
                raise VersionConflict(frozenset({change.key}))
        return row

    async def _before(self) -> DocumentRow | None:
        """The stored version's row; None without one. Raises Forbidden where the caller may not change it."""
        change = self._change
        if change.previous is None:
            return None
        row = (await current_rows(self._access.store, change.type, {change.id})).get(change.id)
        own = None if row is None else await last_row_of(self._access.store, change.type, row)
        if own is None or not await self._access.related(
            change.type, [own], self._rule.old, is_own_past=True
        ):
            raise self._refused()
        if not self._is_within(change.previous):
            raise self._refused()
        stored = None if change.previous.deleted else change.previous.resource()
        await self._check_word(own, stored)
        return own

    async def _check_new(self, before: DocumentRow | None, resource: dict[str, Any]) -> None:
        change, access = self._change, self._access
        if self._is_restricted and not self._matches({**resource, "id": change.id}):
            raise self._refused()
        if access.is_administrator:
            if "everyone" not in self._rule.new:
                raise self._refused()
            return
        row = relations.facts_of(change.type, change.id, resource)
        if not (self._rule.fresh and _is_new(change)) and not await self._is_related(row):
            raise self._refused()
        await self._check_word(row, resource)
        if access.caller.role not in KEEPERS:
            await self._check_targets(before, row)
        if change.type == "Group":
            await self._check_members(resource)

    async def _check_word(self, row: DocumentRow, resource: Resource | None) -> None:
        """Raises Forbidden for a version that speaks for another organization."""
        access, type_ = self._access, self._change.type
        if access.is_administrator:
            return
        if await named_resources.is_own_word(access, type_, row, resource):
            return
        element = f"{type_}.{SPEAKS_FOR[type_][1]}"
        raise Forbidden(
            f"{element} names another organization, which alone writes this {type_}",
            expression=element,
        )

    async def _check_targets(self, before: DocumentRow | None, row: DocumentRow) -> None:
        """Raises Forbidden where the new version leads to what the caller may not let it lead to."""
        type_ = self._change.type
        for table, are_allowed, whose in (
            (LEADS_TO, named_resources.are_seen, "that this client does not see"),
            (LEADS_TO_READ, named_resources.are_readable, "that this client does not see"),
            (LEADS_TO_OWN, named_resources.are_own, "that is not this client's"),
        ):
            if type_ not in table:
                continue
            code, element = table[type_]
            new = relations.named(type_, code, row, self._base_url) - self._together.written
            if before is not None:
                new -= relations.named(type_, code, before, self._base_url)
            if new and not await are_allowed(self._access, new):
                raise Forbidden(
                    f"{type_}.{element} names a resource {whose}", expression=f"{type_}.{element}"
                )

    async def _is_related(self, row: DocumentRow) -> bool:
        """Whether the new version has one of the relations that its rule requires."""
        access, type_ = self._access, self._change.type
        family = await access.family()
        for relation in self._rule.new:
            if relation == "patients":
                about = relations.patients_of(type_, row, self._base_url)
                left = set(about - self._together.created)
                if about and left <= await access.own_patients(left, family):
                    return True
            elif relation == "targets":
                targets = relations.named(type_, "target", row, self._base_url)
                left = targets - self._together.written
                if targets and await named_resources.are_own(access, left):
                    return True
            elif relations.holds(relation, type_, row, family, access.caller, self._base_url):
                return True
        return False

    async def _check_members(self, group: dict[str, Any]) -> None:
        """Raises Forbidden where a patient of another becomes a member, at another time, or of something else."""
        previous = self._change.previous
        stored = previous.resource() if previous is not None and not previous.deleted else {}
        said = _said_of_members(stored)
        added = self._members(group, stored if said else {})
        access, created = self._access, self._together.created
        family = await access.family()
        if not added - created <= await access.own_patients(added - created, family):
            raise self._refused()
        if added and self._change.id in await access.relationships.designated(family):
            raise Forbidden(
                "A Contract makes the members of this Group this organization's: an administrator adds them",
                expression="Group.member",
            )
        if said and not _said_of_members(group) <= said:
            # It says so of all members anew, those included who have left since.
            others = self._members(group, {}, at=access.relationships.now()) - added
            if not others <= await access.own_patients(others, family):
                raise Forbidden(
                    "A Group that comes to say something else of its members has this client's patients of now alone: "
                    "take the others out",
                    expression="Group.member",
                )

    def _members(self, group: Resource, stored: Resource, at: datetime | None = None) -> set[str]:
        """The patients who are members otherwise than they are stored; with `at` without those who are no more."""
        before = group_members.aside(stored) if stored else None
        change = group_members.row_change("", self._change.id, before, group_members.aside(group))
        terms = [
            row["_id"]["m"]
            for row in change.new
            if at is None
            or not all(spans.has_ended((low, high), at) for low, high in row.get("when", _ALWAYS))
        ]
        parameter = parameters("Group")["member"]
        return {
            f"Patient/{id_}"
            for kind, id_ in reference.targets(parameter, terms, self._base_url)
            if kind == "Patient"
        }

    def _is_within(self, stored: ResourceVersion) -> bool:
        """Whether the scopes' restrictions let the caller replace a version; a deletion says nothing to restrict."""
        return not self._is_restricted or stored.deleted or self._matches(stored.resource())

    def _matches(self, resource: Resource) -> bool:
        type_ = self._change.type
        return self._access.restrictions.match(type_, self._action, extract(type_, resource))

    @property
    def _is_restricted(self) -> bool:
        return bool(self._access.restrictions.of(self._change.type, self._action))


def _said_of_members(group: dict[str, Any]) -> set[tuple[Any, ...]]:
    """What a Group says of its members: its codes, and whose panel it is; nothing where it is not in use."""
    fields: dict[str, Any] = {}
    group_members.add_roster(group, fields)
    if not fields["roster"]["live"]:
        return set()
    codings = group.get("code", {}).get("coding", ())
    return {
        ("in use",),
        *(("code", each.get("system"), each.get("code")) for each in codings),
        *(("pcp", *each) for each in fields["roster"]["pcp"]),
    }


# Content that only the server writes, and an administrator may correct; other clients only read it.
#
# Communication   of the category `notice-kind|event-notification`: the proof of a notice (docs/proof.md)
# Subscription    its extension `recipient-kind`: whether patients' refusals reach its recipient (docs/consent.md)
# Patient         its links that merge it with another: they decide whose patient it is (docs/routing.md)

_MERGING = frozenset({"replaced-by", "replaces"})

_SERVER_OWNED = frozenset({"Communication", "Patient", "Subscription"})


def is_proof(resource: Resource) -> bool:
    """Whether a Communication counts as the proof of a notice."""
    terms: list[str] = extract("Communication", resource)["terms"]
    return relations.PROOF in terms


def check_server_owned(change: Change) -> None:
    """Raises Forbidden for a change of one of these. Call it last: its message reveals the stored version's content."""
    if change.type not in _SERVER_OWNED:
        return
    previous = change.previous
    before = previous.resource() if previous is not None and not previous.deleted else {}
    after = change.resource or {}
    if change.type == "Communication" and any(is_proof(each) for each in (before, after) if each):
        raise Forbidden(
            "Communications of the category notice-kind|event-notification are the proof of notices: "
            "the server writes them, and no client but an administrator",
            expression="Communication.category",
        )
    if change.type == "Subscription" and after and _kinds(before) != _kinds(after):
        raise Forbidden(
            "The extension recipient-kind decides how much is told: only an administrator adds, "
            "changes or removes it",
            expression="Subscription.extension",
        )
    if change.type == "Patient" and not _merges(after) <= _merges(before):
        raise Forbidden(
            "A link of the type replaced-by or replaces makes a patient the survivor's: only an administrator adds one",
            expression="Patient.link",
        )


def _merges(patient: Resource) -> set[tuple[str, str | None]]:
    """The links that merge a Patient with another: their types, and the references as they are written."""
    return {
        (each["type"], each.get("other", {}).get("reference"))
        for each in patient.get("link", ())
        if each.get("type") in _MERGING
    }


def _kinds(subscription: Resource) -> list[Resource]:
    return [each for each in subscription.get("extension", ()) if each.get("url") == RECIPIENT_KIND]
