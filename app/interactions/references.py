"""References between resources: found, made relative to this server or resolved, checked where the setting requires it.

https://hl7.org/fhir/R4/references.html
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from app.authorization import attachments
from app.context import Context
from app.errors import Conflict, Issue, PreconditionFailed, Unprocessable
from app.fhir.definitions import SUPPORTED_TYPES, search_parameters
from app.fhir.json import Resource
from app.fhir.links import LinkKind, LinkRefused, references_in, rewrite
from app.interactions import server_records
from app.interactions.matches import strictly_read
from app.records.versions import ResourceVersion
from app.runtime import pace
from app.search import group_members, query, resolution

_TYPES = frozenset(SUPPORTED_TYPES)
# What attachments may have on this server instead of in themselves.
ATTACHED = frozenset({"Binary", "Bundle"})
_CONDITIONAL = re.compile(r"^([A-Z][A-Za-z]+)\?(.+)$", re.DOTALL)
# What a resource of these types carries is kept as it came: a stored transaction is carried out by nobody here.
_VERBATIM = frozenset({"Bundle", "Parameters"})
_LOCAL = re.compile(r"^([A-Za-z]+)/([A-Za-z0-9\-.]{1,64})(?:/_history/([0-9]{1,9}))?$")


def targets_in(resource: Resource) -> set[tuple[str, str]]:
    """Types and ids of what a resource refers to on this server."""
    found = (split(element["reference"]) for element in references_in(resource))
    return {target for target in found if target is not None}


def attached_in(resource: Resource, base_url: str) -> set[tuple[str, str]]:
    """Types and ids of the Binaries and Bundles on this server that addresses in a resource lead to.

    Those of attachments do, relative or absolute; no definition of R4 is of these types, whose addresses are names.
    """
    found: set[tuple[str, str]] = set()
    stack: list[Any] = [resource]
    while stack:
        value = stack.pop()
        if type(value) is dict:
            url = value.get("url")
            if type(url) is str and (target := split(url.removeprefix(base_url + "/"))):
                found.add(target)
            value = value.values()
        for child in value:
            kind = type(child)
            if kind is dict or kind is list:
                stack.append(child)
    return {target for target in found if target[0] in ATTACHED}


def is_conditional(reference: str) -> bool:
    """Whether a reference names search criteria instead of an id, https://hl7.org/fhir/R4/http.html#trules."""
    match = _CONDITIONAL.match(reference)
    return match is not None and match[1] in _TYPES


def split(reference: str) -> tuple[str, str] | None:
    """Type and id of a relative literal reference to a type served here; None for anything else."""
    match = _LOCAL.match(reference)
    return (match[1], match[2]) if match and match[1] in _TYPES else None


async def settle(
    context: Context,
    resource: Resource,
    previous: ResourceVersion | None = None,
    size: int = 0,
) -> Resource:
    """Make absolute references to this server relative, resolve conditional ones, and check targets where the setting
    requires it.

    A reference that begins with a slash is refused: R4 knows none, and nobody would find what it leads to.

    A transaction has resolved its own already, among its entries. What the `previous` version referred to may have gone
    since: whoever changes something else there is not asked about it. Changes the resource in place; `size` is that of
    its text, where it may be large. Raises Unprocessable naming the missing targets, PreconditionFailed where criteria
    do not find exactly one resource.
    """
    base = context.base_url + "/"
    integrity = (
        context.settings.referential_integrity == "checked"
        and not server_records.is_written_by(context.caller, resource["resourceType"])
    )
    targets: set[tuple[str, str]] = set()
    conditional: list[dict[str, Any]] = []
    may_be_conditional = resource["resourceType"] not in _VERBATIM

    def make_relative() -> None:
        for element in references_in(resource):
            literal = element["reference"]
            if literal.startswith(base):
                # A slash too many is none, as in an address of ours that is asked for.
                element["reference"] = literal = literal.removeprefix(base).lstrip("/")
            if literal.startswith("/") and may_be_conditional and not _has(previous, literal):
                _refuse_rooted(resource, literal)
            if may_be_conditional and "?" in literal and is_conditional(literal):
                conditional.append(element)
            elif integrity and (target := split(literal)):
                targets.add(target)
        if integrity:
            targets.update(attached_in(resource, context.base_url))

    await pace.aside(size, make_relative)
    if conditional:
        await _resolve(context, conditional, previous)
    if targets:
        await _check_targets(context, targets, previous)
    return resource


def _refuse_rooted(resource: Resource, literal: str) -> None:
    try:
        rewrite(resource, _Refusing(literal))
    except LinkRefused as refused:
        place = refused.expression(resource["resourceType"])
        raise Unprocessable(refused.reason, code="value", expression=place) from None


class _Refusing:
    """Raises LinkRefused at the place of a reference."""

    def __init__(self, literal: str) -> None:
        self._literal = literal

    def concerns(self, text: str) -> bool:
        return False

    def __call__(self, text: str, kind: LinkKind) -> str:
        if kind == "reference" and text == self._literal:
            raise LinkRefused("A reference is Type/id or an absolute URL, without a slash before")
        return text


async def _resolve(
    context: Context, elements: Sequence[dict[str, Any]], previous: ResourceVersion | None
) -> None:
    """Put what they find in place of conditional references; one that `previous` has may go on to find nothing."""
    found: dict[str, str] = {}
    for element in elements:
        literal = element["reference"]
        if literal not in found:
            try:
                found[literal] = await found_by(context, literal)
            except PreconditionFailed:
                if not _has(previous, literal):
                    raise
                found[literal] = literal
        element["reference"] = found[literal]


def _has(version: ResourceVersion | None, literal: str) -> bool:
    if version is None or version.deleted:
        return False
    return any(each["reference"] == literal for each in references_in(version.resource()))


async def found_by(context: Context, reference: str) -> str:
    """The literal reference to the one stored resource that a conditional one finds. Raises PreconditionFailed."""
    resource_type, _, criteria = reference.partition("?")
    parsed = strictly_read(context, resource_type, query.criteria(criteria))
    parsed = await resolution.resolve(context.store, parsed)
    found = await context.store.search(resource_type, parsed.filter, 2)
    if len(found) != 1:
        raise not_one(resource_type, several=bool(found))
    return found[0].reference


def not_one(resource_type: str, *, several: bool) -> PreconditionFailed:
    """The failure of a conditional reference that finds nothing, or several."""
    found = "more than one resource" if several else "nothing"
    return PreconditionFailed(
        f"The conditional reference {resource_type}?... matches {found}",
        code="multiple-matches" if several else "not-found",
    )


async def _check_targets(
    context: Context, targets: set[tuple[str, str]], previous: ResourceVersion | None
) -> None:
    ordered = sorted(targets - context.write_scope.creating)
    found = await asyncio.gather(*(context.store.read(*target) for target in ordered))
    missing: list[str] = []
    gone: list[str] = []
    for target, stored in zip(ordered, found, strict=True):
        if stored is None or stored.deleted:
            gone.append("/".join(target))
        elif stored.reference in context.write_scope.deleting:
            missing.append(stored.reference)
    if gone:
        known = _targets_of(previous, context.base_url)
        missing += [name for name in gone if name not in known]
    if missing:
        raise Unprocessable(
            issues=[
                Issue("business-rule", f"The reference {name} leads nowhere")
                for name in sorted(missing)
            ]
        )


def _targets_of(version: ResourceVersion | None, base_url: str) -> set[str]:
    """What a version refers to, without the versions that it names."""
    if version is None or version.deleted:
        return set()
    resource = version.resource()
    found = targets_in(resource) | attached_in(resource, base_url)
    return {"/".join(target) for target in found}


async def check_not_referred_to(context: Context, stored: ResourceVersion) -> None:
    """Raises Conflict where the setting requires integrity and a search parameter of another resource leads here.

    The server's own records of the past do not count (server_records.py), nor do resources that the same commit writes:
    deleted they refer to nothing, new content is checked by itself.
    """
    if context.settings.referential_integrity != "checked":
        return
    written = context.write_scope.writing | {stored.reference}
    for resource_type in SUPPORTED_TYPES:
        terms = [
            f"{parameter.code}={stored.reference}"
            for parameter in search_parameters(resource_type).values()
            if parameter.type == "reference"
        ]
        if resource_type == attachments.INDEX and stored.type in ATTACHED:
            terms += attachments.terms(stored.reference, context.base_url)
        found = await context.store.find(
            resource_type,
            {"$and": [{"terms": {"$in": terms}}, server_records.all_others(resource_type)]},
            limit=len(written) + 1,
            projection={"_id": 1},
        )
        referrers = [row["_id"] for row in found]
        if rows := group_members.collection_of(resource_type):
            referrers += await group_members.holders(context.store, rows, terms, len(written) + 1)
        for referrer in referrers:
            if f"{resource_type}/{referrer}" not in written:
                raise Conflict(
                    f"{resource_type}/{referrer} refers to this resource; delete it first"
                )
