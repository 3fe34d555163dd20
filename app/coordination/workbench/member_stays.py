"""Stays and visits of members, read as few fields of each Encounter. docs/workbench.md says which count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, tzinfo

from app.coordination.workbench.population import Population
from app.fhir.codes import ACT_CODE, INPATIENT
from app.fhir.encounter_status import ACTIVE
from app.fhir.instants import BEGINNING, END
from app.search.computed_fields import beginnings_of, has_term_with, named_in, terms_with
from app.search.parameter import Filter
from app.search.search_parameters import parameters
from app.search.terms import escape

EMERGENCY, OBSERVATION, SKILLED_NURSING = "EMER", "OBSENC", "NONAC"
# Seen by somebody: in an office, at home, somewhere else, by telephone or video.
SEEN = ("AMB", "HH", "FLD", "VR")
BEGUN = ACTIVE | {"finished"}
_CLASS = f"class={escape(ACT_CODE)}|"
# Days after a discharge within which an admission is a readmission.
READMITTED = 30
_ENDS_OF_A_DAY = frozenset({time(), END.time()})
_STATUS, _DISPOSITION = "status=", "discharge-disposition="


@dataclass(frozen=True, slots=True)
class Stay:
    """One Encounter; `start` and `end` are None where they are not said. `left`: it says where the patient went."""

    reference: str
    patient: str
    status: str
    class_: str
    hospital: str | None
    start: datetime | None
    end: datetime | None
    left: bool

    def is_over(self, now: datetime) -> bool:
        """Whether the patient has left: finished, or gone somewhere at an end that has come."""
        if self.status not in ACTIVE:
            return True
        return self.left and self.end is not None and self.end <= now

    def began_within(self, start: datetime, end: datetime) -> bool:
        return self.start is not None and start <= self.start <= end

    def ended_within(self, start: datetime, end: datetime) -> bool:
        return self.status == "finished" and self.end is not None and start <= self.end <= end


async def read(
    population: Population, classes: Iterable[str], base_url: str, *wanted: Filter
) -> list[Stay]:
    """The Encounters of these classes that have begun and match what is wanted besides, the earliest first."""
    provider = beginnings_of(parameters("Encounter")["service-provider"], "Organization", base_url)
    fields = {
        "class": terms_with([_CLASS]),
        "status": terms_with([_STATUS]),
        "hospital": terms_with(provider),
        "left": has_term_with([_DISPOSITION]),
        "when": "$dates.date",
    }
    where: Filter = {
        "$and": [
            {"terms": {"$in": [_CLASS + each for each in classes]}},
            {"terms": {"$in": [_STATUS + each for each in sorted(BEGUN)]}},
            *wanted,
        ]
    }
    found: list[Stay] = []
    async for patients, row in population.records.read("Encounter", where, fields):
        start, end = _period(row.get("when") or ())
        hospitals = sorted(named_in(row["hospital"], "Organization"))
        found.append(
            Stay(
                f"Encounter/{row['_id']}",
                min(patients),
                row["status"][0].removeprefix(_STATUS),
                row["class"][0].removeprefix(_CLASS),
                hospitals[0] if hospitals else None,
                start,
                end,
                row["left"],
            )
        )
    return sorted(found, key=lambda each: (each.start or each.end or END, each.reference))


def _period(when: Sequence[dict[str, datetime]]) -> tuple[datetime | None, datetime | None]:
    """The first moment that the beginning may mean, and the last one of the end."""
    if not when:
        return None, None
    low, high = (when[0][each].replace(tzinfo=UTC) for each in ("lo", "hi"))
    return None if low == BEGINNING else low, None if high == END else high


def began_since(at: datetime) -> Filter:
    """Those that began then or later, by the index on the beginning."""
    return {"date": {"$gte": at}}


def ended_since(at: datetime) -> Filter:
    """Those that ended then or later, or have not ended."""
    return {"dates.date": {"$elemMatch": {"hi": {"$gte": at}}}}


def local_day(at: datetime, zone: tzinfo) -> date:
    """The calendar day of a moment; the first or last one of a date without a time is of that day everywhere."""
    if at.time() in _ENDS_OF_A_DAY:
        return at.date()
    try:
        return at.astimezone(zone).date()
    except OverflowError:  # the zone leads beyond the calendar
        return at.date()


def readmissions(
    stays: Sequence[Stay], start: datetime, end: datetime, zone: tzinfo
) -> list[tuple[Stay, Stay]]:
    """Each admission of a time with the stay that had ended at most 30 days before; `stays` in order.

    One that begins on the day on which the other ended is a transfer. Skilled nursing is neither.
    """
    found: list[tuple[Stay, Stay]] = []
    before: dict[str, list[Stay]] = {}
    for stay in stays:
        if stay.class_ == SKILLED_NURSING or stay.start is None:
            continue
        earlier = [
            each
            for each in before.get(stay.patient, ())
            if each.status == "finished"
            and each.end is not None
            and 0 < (local_day(stay.start, zone) - local_day(each.end, zone)).days <= READMITTED
        ]
        if earlier and stay.began_within(start, end):
            found.append((stay, max(earlier, key=lambda each: each.end or BEGINNING)))
        before.setdefault(stay.patient, []).append(stay)
    return found


async def inpatient(population: Population, base_url: str, *wanted: Filter) -> list[Stay]:
    return await read(population, INPATIENT, base_url, *wanted)
