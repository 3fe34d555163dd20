"""What the owner of a directory entry leaves to those who keep the directory: it decides whose patients people are.

Who works where gives an organization patients, and what it is part of decides who may see them and whose refusals it is
under. An owner may end its entry, which takes nothing from anybody else; beginning it, or beginning it again, is the
keepers' (rules.FIXED, rules.KEEPERS).
"""

from __future__ import annotations

from typing import Any

from app.authorization import named_resources
from app.authorization.access import Access
from app.authorization.rules import FIXED
from app.errors import Forbidden
from app.fhir.json import Resource
from app.records.versions import Change
from app.search import spans


async def check(access: Access, change: Change) -> None:
    """Raises Forbidden, naming the element, for a change by the owner that is the keepers' to make."""
    if change.type not in FIXED:
        return
    _check_fixed(change, access.base_url)
    if change.type == "Organization" and change.resource is not None:
        await _check_identifiers(access, change, change.resource)


async def _check_identifiers(access: Access, change: Change, after: Resource) -> None:
    """Check that the owner takes no identifier of another organization: who has it speaks under it (SPEAKS_FOR)."""
    previous = change.previous
    before = previous.resource() if previous is not None and not previous.deleted else {}
    known = named_resources.identifiers_of(before)
    added = [each for each in named_resources.identifiers_of(after) if each not in known]
    others = await named_resources.organizations_with(access, added)
    if not await access.family() >= others.keys() - {change.key}:
        raise Forbidden(
            "Organization.identifier has what another Organization has: an administrator or a client of the role "
            "directory gives it",
            expression="Organization.identifier",
        )


def _check_fixed(change: Change, base_url: str) -> None:
    previous = change.previous
    if previous is None or previous.deleted:
        _check_first(change, is_first=previous is None)
        return
    before = previous.resource()
    if change.resource is None:
        # A role ends by it; an organization would leave what it is part of.
        if change.type == "Organization":
            raise _refused(change.type, "id")
        return
    after = change.resource
    for element in FIXED[change.type]:
        if _meaning(before.get(element), base_url) != _meaning(after.get(element), base_url):
            raise _refused(change.type, element)
    if before.get("active") is False and after.get("active") is not False:
        raise _refused(change.type, "active")
    if not _is_shorter(before, after):
        raise _refused(change.type, "period")


def _check_first(change: Change, *, is_first: bool) -> None:
    """Check an entry that is not there: an organization may describe itself once, as part of nothing."""
    resource = change.resource or {}
    if change.type != "Organization" or not is_first:
        raise _refused(change.type, "id")
    for element in FIXED[change.type]:
        if element in resource:
            raise _refused(change.type, element)


def _is_shorter(before: Resource, after: Resource) -> bool:
    """Whether the period is the same, or ends earlier."""
    old, new = before.get("period"), after.get("period")
    if old == new:
        return True
    (start, end), (new_start, new_end) = spans.of(old), spans.of(new)
    return start == new_start and new_end is not None and (end is None or new_end <= end)


def _meaning(value: Any, base_url: str) -> Any:
    """What an element says that decides about anybody: a reference without its display, codes without their texts."""
    match value:
        case {"reference": str(written)}:
            near = written.removeprefix(f"{base_url}/") if base_url else written
            return near.partition("/_history/")[0]
        case {"coding": list(codings)}:
            return frozenset((each.get("system"), each.get("code")) for each in codings)
        case list():
            found = (_meaning(each, base_url) for each in value)
            return frozenset(each for each in found if each is not None) or None
    return None  # an identifier or a text alone names nobody here


def _refused(resource_type: str, element: str) -> Forbidden:
    return Forbidden(
        f"{resource_type}.{element} decides whose patients people are: an administrator or a client of the role "
        "directory changes it, an owner may end its entry",
        expression=f"{resource_type}.{element}",
    )
