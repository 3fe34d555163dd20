"""What nobody could be told of a stay and does not hold any more: it is not told after all.

While a notice waits for its cause to be mended, its stay may be cancelled, entered in error or deleted, be another
patient's, go on after its discharge, or be inpatient no more. Of that nothing is told, for nobody was told of the stay
(topic `encounter-cancelled`); so the notice itself would never be put right. docs/routing.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from app.attribution import attribution
from app.attribution.derived import patient_of
from app.context import Context
from app.fhir.codes import INPATIENT
from app.fhir.encounter_status import ACTIVE, is_discharged
from app.fhir.json import Resource
from app.records.versions import ResourceVersion
from app.search.extract import extract
from app.subscriptions.ledger.untold_rows import Untold

_CANCELLED, _DISCHARGE = "encounter-cancelled", "encounter-discharge"
_RISE = "A06"
_NEVER_WAS = frozenset({"cancelled", "entered-in-error"})

Row = Mapping[str, Any]


async def taken_back(context: Context, rows: Sequence[Row]) -> set[str]:
    """The ids of the rows of stays that say by now that what they would tell is not so."""
    asked = [row for row in rows if row["focus"]["type"] == "Encounter"]
    asked = [row for row in asked if _slug(row) != _CANCELLED]
    keys = sorted({("Encounter", row["focus"]["id"]) for row in asked})
    newest = await context.services.store.read_many(keys)
    return {
        row["_id"]
        for row in asked
        if (stay := newest.get(f"Encounter/{row['focus']['id']}")) is not None
        and stay.version > row["focus"]["version"]
        and await _is_taken_back(context, row, stay)
    }


async def _is_taken_back(context: Context, row: Row, newest: ResourceVersion) -> bool:
    if newest.deleted:
        return True
    stay = newest.resource()
    if stay.get("status") in _NEVER_WAS:
        return True
    return _is_undone(row, stay, context.services.mongo.now()) or await _is_anothers(
        context, row, stay
    )


def _is_undone(row: Row, stay: Resource, now: datetime) -> bool:
    """Whether a stay goes on whose discharge was to be told, or is none of an inpatient any more, as a rise says."""
    if stay.get("status") not in ACTIVE:
        return False
    if _slug(row) == _DISCHARGE:
        return not is_discharged(stay, now)
    is_rise = (row["trigger"] or {}).get("code") == _RISE
    return is_rise and stay.get("class", {}).get("code") not in INPATIENT


async def _is_anothers(context: Context, row: Row, stay: Resource) -> bool:
    """Whether a stay is of another patient than when it was to be told; one and the same where they were merged."""
    before = Untold.of(row).patient
    base_url = context.settings.base_url.rstrip("/")
    patient = patient_of("Encounter", extract("Encounter", stay), base_url)
    if before is None or patient == before:
        return False
    now = context.services.mongo.now()
    found = await attribution.attributed(context.services.store, before, now, context.settings)
    return patient not in found.way


def _slug(row: Row) -> str:
    return str(row["topic"]).rpartition("/")[2]
