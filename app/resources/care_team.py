"""Rules of CareTeam: which of its primary care providers a practice or hospital has named itself.

Attribution gives patients to practices, so that what one of them says of it ranks below what plans and administrators
say (docs/routing.md). `private` has the claims, by their keys, that practices and hospitals began.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.attribution import claims
from app.attribution.claims import Claim
from app.authorization.rules import PROVIDERS
from app.fhir.json import Resource
from app.records.versions import ResourceVersion, VersionConflict
from app.resources.type_rules import Prepared
from app.search import spans

if TYPE_CHECKING:
    from app.context import Context


async def prepare(
    context: Context, resource: Resource, previous: ResourceVersion | None
) -> Prepared:
    """Note whose each claim is: one that stays as it was, or ends earlier, stays its author's.

    One about another patient or provider, or that begins at another time, is the word of who writes it so.
    """
    base_url = context.settings.base_url.rstrip("/")
    found = list(claims.of_care_team(resource, base_url))
    known = await _known(context, resource, previous, base_url) if found else ()
    begun = context.caller.role in PROVIDERS
    own = [claim for claim in found if _is_from_provider(claim, known, begun=begun)]
    return Prepared(resource, {claims.FROM_PROVIDERS: [claims.key(c) for c in own]}, is_memory=True)


def _is_from_provider(claim: Claim, known: Sequence[Claim], *, begun: bool) -> bool:
    before = [
        each
        for each in known
        if (each.reference, each.behalf) == (claim.reference, claim.behalf)
        and each.span[0] == claim.span[0]
        and spans.within(each.span, claim.span) == claim.span
    ]
    return all(each.from_provider for each in before) if before else begun


async def _known(
    context: Context, resource: Resource, previous: ResourceVersion | None, base_url: str
) -> Sequence[Claim]:
    """The claims of the stored version, if it is about the same patient.

    Raises VersionConflict where it has been replaced meanwhile.
    """
    if previous is None or previous.deleted:
        return ()
    # Read past the caller's limits: what is kept beside the version is nobody's to see.
    rows = await context.services.store.find(
        "CareTeam",
        {"_id": previous.id, "v": previous.version},
        limit=1,
        projection=claims.TEAM_FIELDS,
    )
    if not rows:
        raise VersionConflict
    if _subject(previous.resource(), base_url) != _subject(resource, base_url):
        return ()
    return list(claims.of_stored_team(rows[0], base_url))


def _subject(team: Resource, base_url: str) -> str:
    written: str = team.get("subject", {}).get("reference", "")
    near = written.removeprefix(f"{base_url}/") if base_url else written
    return near.partition("/_history/")[0]
