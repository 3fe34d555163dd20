"""Whether a notice that is late still concerns whom it was for: patients change their practice, rosters are revised."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from app.attribution.derived import FACILITY, Derived, is_derived
from app.records.reader import Reader
from app.search.extract import extract
from app.settings import Settings
from app.subscriptions.matching.criteria import Criteria, path_of

# A notice that is sent sooner after its event than this is not judged again.
FRESH = timedelta(seconds=5)
REASSIGNED = "The patient is no longer the recipient's"


def asks_for_panel(criteria: Criteria) -> bool:
    """Whether a Subscription's criteria name a PCP or a Group, so that who is concerned can change."""
    return any(
        is_derived(alternatives[0]) and path_of(alternatives[0]) != FACILITY
        for clause in criteria.clauses
        for alternatives in clause.terms
    )


async def still_concerns(
    store: Reader,
    criteria: Criteria,
    focus: Mapping[str, Any],
    settings: Settings,
    at: datetime,
) -> bool:
    """Whether the PCP or Group that the criteria name has to do with the patient at `at`, normally now.

    For the Sender, to be asked before an attempt on a row that is retried or whose event is older than FRESH; at once
    and without reading where `asks_for_panel` is False. `focus` is the delivery row's (type, id, version). What else
    the criteria ask for was settled by the event itself and is not asked again. False means: settle the row
    `suppressed` with the reason REASSIGNED, nothing sent. Raises PyMongoError; then the row has to wait, not to be
    sent.
    """
    if not asks_for_panel(criteria):
        return True
    fields = await _fields(store, focus)
    if fields is None:
        return True  # the version is gone, which the composer says better
    derived = Derived(store, settings, focus["type"], fields, at)
    for clause in criteria.clauses:
        if clause.resource_type in ("", focus["type"]):
            for alternatives in clause.terms:
                path = path_of(alternatives[0])
                if not is_derived(path) or path == FACILITY:
                    continue
                if (await derived.along(path)).isdisjoint(alternatives):
                    break
            else:
                return True
    return False


async def _fields(store: Reader, focus: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The search fields of the version that was told of; of one that was deleted, those of the version before."""
    for version in (focus["version"], focus["version"] - 1):
        stored = await store.vread(focus["type"], focus["id"], version)
        if stored is None:
            return None
        if not stored.deleted:
            return extract(stored.type, stored.resource())
    return None
