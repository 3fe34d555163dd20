"""The check of whether a late notice still concerns its recipient: patients change practices, rosters are revised."""

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
    """Whether a Subscription's criteria name a PCP or a Group, so that the patients it concerns can change."""
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
    """Whether the patient belongs to the PCP or Group of the criteria at `at`, normally now.

    Called before an attempt on a row that is retried or whose event is older than FRESH; returns without reading where
    `asks_for_panel` is False. `focus` is the delivery row's (type, id, version). The other criteria were tested on the
    event and are not tested again. False means: settle the row `suppressed` with the reason REASSIGNED, nothing sent.
    Raises PyMongoError; then the row has to wait, not to be sent.
    """
    if not asks_for_panel(criteria):
        return True
    fields = await _fields(store, focus)
    if fields is None:
        return True  # the version is gone, for which the composer raises VersionGoneError
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
    """The search fields of the row's version; for a deletion, those of the version before."""
    for version in (focus["version"], focus["version"] - 1):
        stored = await store.vread(focus["type"], focus["id"], version)
        if stored is None:
            return None
        if not stored.deleted:
            return extract(stored.type, stored.resource())
    return None
