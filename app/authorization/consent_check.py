"""The check of changes to Consents and security labels: nobody opens what is closed to them, or what is another's.

A permission counts if the custodian of what it opens has written it, or a consent authority, and never for its writer.
The same holds for the two other ways to open something: undoing a refusal, and taking a label away. docs/consent.md
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from app.attribution import claims
from app.authorization import relations
from app.authorization.access import Access
from app.authorization.relations import DocumentRow, traits_of
from app.authorization.relationships import OrganizationTree
from app.authorization.rules import room_of
from app.consent import labels
from app.consent.judgement import Directive, Writers, WrittenConsent, directives, patient_of
from app.consent.labels import Labels
from app.consent.recipients import resolve
from app.errors import Forbidden
from app.fhir.codes import REVIEW_REASON
from app.fhir.json import Resource
from app.records.versions import Change, ResourceVersion
from app.search.terms import senders

# The elements of a Consent that decide what it permits and refuses, to whom and when.
_DECIDING = (
    *("status", "scope", "category", "patient", "dateTime", "policyRule", "provision"),
    "modifierExtension",
)
# The reasons of the review Tasks that ask for a consent authority.
_OF_CONSENTS = frozenset({"proposed-consent", "unsuitable-consent"})
_PROPOSE = "Send it with the status proposed: a consent authority is then asked to look at it"
# What of `meta` a consent authority changes, and the server with each version.
_FREE = frozenset({"security", "versionId", "lastUpdated"})
# How many records of a type are looked at for one that the writer made.
_MOST_LOOKED_AT = 1_000


async def check(access: Access, change: Change, before: DocumentRow | None) -> None:
    """Raises Forbidden for a change by which its writer opens what is not its own to open.

    `before` is the row of the stored version, of a deleted one that before. Call it last: its messages reveal the
    stored version's content.
    """
    if access.is_administrator:
        return
    if change.type == "Consent":
        if not access.is_consent_authority:
            await _Consent(access, change, await access.family()).check()
        return
    _check_labels_alone(access, change)
    if before is not None and change.resource is not None and not access.is_consent_authority:
        _check_labels(change, before, await access.family())


def check_review(change: Change) -> None:
    """Raises Forbidden for a change of what asks a consent authority to look at a Consent. Call it for all others."""
    if any(_is_review(each) for each in _versions(change)):
        raise Forbidden(
            "What asks a consent authority to look at a Consent is the server's and a consent authority's to change",
            expression="Task.code",
        )


def _versions(change: Change) -> list[Resource]:
    """The content of a change before and after it, as far as there is any."""
    previous = change.previous
    before = None if previous is None or previous.deleted else previous.resource()
    return [each for each in (before, change.resource) if each is not None]


def _is_review(resource: Resource) -> bool:
    return resource["resourceType"] == "Task" and any(
        coding.get("system") == REVIEW_REASON and coding.get("code") in _OF_CONSENTS
        for coding in resource.get("code", {}).get("coding", ())
    )


# Security labels


def _check_labels(change: Change, before: DocumentRow, family: OrganizationTree) -> None:
    """Raises Forbidden where another than the record's custodian opens it, or closes it to those who have it."""
    traits = traits_of(change.type, before, "")
    after = labels.of(change.resource)
    if traits.custodian in family:
        return
    lost = frozenset[str]()
    if change.previous is not None and not change.previous.deleted:
        # A like coding of another system is not the label that was there, and no search for that finds it.
        codings = labels.codings(change.previous.resource()) - labels.codings(change.resource)
        lost = frozenset(code for _, code in codings)
    if _is_opened(traits.labels, after - lost) or _is_opened(after, traits.labels):
        raise Forbidden(
            "Security labels are added and taken away by the organization that made the record, or by a consent "
            "authority",
            expression=f"{change.type}.meta.security",
        )


def _is_opened(before: Labels, after: Labels) -> bool:
    """Whether labels that keep content from being told whole are fewer, or the level of confidentiality is lower."""
    restricted = labels.LEVELS.index(labels.RESTRICTED)
    is_lowered = labels.level(after) < labels.level(before) >= restricted
    return bool((before - after) & labels.SENSITIVE) or is_lowered


def _check_labels_alone(access: Access, change: Change) -> None:
    """Raises Forbidden where a consent authority would write more of a record than its labels.

    What asks it to look at a Consent it may change besides, and leave that.
    """
    if access.caller.role != "consent-authority" or room_of(change.type) != "record":
        return
    versions = _versions(change)
    if access.is_consent_authority and len(versions) > 1 and all(map(_is_review, versions)):
        return
    previous = change.previous
    is_kept = (
        change.resource is not None
        and previous is not None
        and not previous.deleted
        and _content(change.resource) == _content(previous.resource())
    )
    if not is_kept:
        raise Forbidden("A consent authority changes no more of a record than its security labels")


def _content(resource: Resource) -> Resource:
    """What a consent authority leaves as it is: all but the labels, and what each version gets from the server."""
    meta = {each: value for each, value in resource.get("meta", {}).items() if each not in _FREE}
    return {**{name: value for name, value in resource.items() if name != "id"}, "meta": meta}


# Consents


class _Consent:
    """A change of a Consent by an organization."""

    def __init__(self, access: Access, change: Change, family: OrganizationTree) -> None:
        self._access = access
        self._family = family
        self._previous = change.previous
        self._resource = change.resource
        self._kind = access.disclosure.kind(access.caller)
        self._base_url = access.settings.base_url.rstrip("/")

    async def check(self) -> None:
        if self._previous is not None:
            await self._check_previous(self._previous)
        if self._resource is not None:
            for directive in self._directives(self._resource):
                await self._check_permissions(directive)

    def _directives(self, consent: Resource) -> Sequence[Directive]:
        """The directives of a Consent that can concern the writer."""
        found = directives([WrittenConsent(consent)], self._base_url)
        return [each for each in found if each.can_concern(self._kind)]

    async def _check_previous(self, previous: ResourceVersion) -> None:
        """Raises Forbidden where the stored Consent is another's, or a refusal that binds the writer is undone."""
        if previous.custodian not in self._family:
            raise Forbidden(
                "A Consent is changed by the organization that recorded it, or by a consent authority"
            )
        if previous.deleted:
            return
        before, after = previous.resource(), self._resource or {}
        if all(before.get(name) == after.get(name) for name in _DECIDING):
            return
        if self._kind == "authority":
            return  # what an organization records binds providers alone
        for directive in self._directives(before):
            for actors in directive.refused:
                if actors is None or await self._is_among(actors):
                    raise Forbidden(
                        "A refusal is undone by a consent authority, not by an organization that it binds. "
                        f"Record what is agreed now as another Consent. {_PROPOSE}",
                        expression="Consent.provision",
                    )

    async def _check_permissions(self, directive: Directive) -> None:
        """Raises Forbidden where a permission is for its writer, or opens what the writer has no custody of."""
        for actors in directive.permitted:
            if actors is not None and await self._is_among(actors):
                raise Forbidden(
                    "A permission is recorded by the organization whose records it opens or by a consent "
                    f"authority, never by its recipient. {_PROPOSE}",
                    expression="Consent.provision",
                )
        if directive.permitted and not await self._has_custody(directive):
            raise Forbidden(
                "A permission is recorded by the organization whose records it opens or by a consent authority, "
                f"and this client's has none of them. {_PROPOSE}",
                expression="Consent.provision",
            )

    async def _is_among(self, actors: Collection[str]) -> bool:
        """Whether one of these actors is the writer's organization, or one of them may belong to the other."""
        return any([await self._is_writer(each) for each in actors])

    async def _is_writer(self, actor: str) -> bool:
        if claims.relative(actor, self._base_url) is None:
            return False
        recipient = await resolve(self._access.store, actor, "provider", self._base_url)
        if not self._family.isdisjoint(recipient.around):
            return True
        own = await self._access.disclosure.recipient(self._access.caller)
        return Writers(frozenset(), own.around).are(recipient)

    async def _has_custody(self, directive: Directive) -> bool:
        """Whether the writer's organization made any record that the permission may open.

        Without a label in it and without a refusal by anybody there is nothing for it to open.
        """
        patient = patient_of(directive.resource, self._base_url)
        if not directive.names_labels:
            standing = await self._access.disclosure.directives(patient)
            if not any(each.refused and each.matter == directive.matter for each in standing):
                return True
        types = [each for each in await self._access.store.types() if room_of(each) == "record"]
        found = await asyncio.gather(
            *(self._made(each, patient, is_labelled=directive.names_labels) for each in types)
        )
        return any(found)

    async def _made(self, resource_type: str, patient: str, *, is_labelled: bool) -> bool:
        """Whether the writer's organization made a record of a type about a patient, labelled if that is asked."""
        about = relations.about(resource_type)
        if about is None:
            return False
        rows = await self._access.store.find(
            resource_type,
            {
                "$and": [
                    {"terms": {"$in": senders(sorted(self._family))}},
                    {"terms": {"$in": self._terms(resource_type, about.code, patient)}},
                ]
            },
            limit=_MOST_LOOKED_AT,
            projection={"terms": 1},
        )
        traits = (traits_of(resource_type, row, self._base_url) for row in rows)
        return any(
            of.custodian in self._family
            and (not is_labelled or bool(of.labels & (labels.SENSITIVE | {labels.RESTRICTED})))
            for of in traits
        )

    def _terms(self, resource_type: str, code: str, patient: str) -> list[str]:
        return list(claims.terms_for(resource_type, code, patient, self._base_url))
