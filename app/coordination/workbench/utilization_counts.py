"""How often members are in hospital: admissions, readmissions, emergency visits of a time, by practice and hospital."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Literal

from app.coordination.workbench import member_stays as stays
from app.coordination.workbench.member_findings import Asked
from app.coordination.workbench.member_stays import READMITTED, Stay
from app.coordination.workbench.population import providers

Event = Literal["admission", "readmission", "emergency-visit"]
EVENTS: tuple[Event, ...] = ("admission", "readmission", "emergency-visit")
UNKNOWN = "unknown"
# Practice and hospital; None stands for all.
Key = tuple[str | None, str | None]
ALL: Key = (None, None)
_YEAR = Decimal(365)


@dataclass(slots=True)
class Utilization:
    """The counts by event, practice and hospital, of so many members in so many days."""

    members: int
    days: int
    counts: dict[Event, dict[Key, int]] = field(
        default_factory=lambda: {event: {ALL: 0} for event in EVENTS}
    )

    def add(self, event: Event, practice: str, hospital: str) -> None:
        counts = self.counts[event]
        for key in (ALL, (practice, None), (None, hospital), (practice, hospital)):
            counts[key] = counts.get(key, 0) + 1

    def per_1000(self, event: Event) -> Decimal | None:
        """The events of all for 1,000 members; None without any member."""
        return _rate(self.counts[event][ALL], self.members, Decimal(1))

    def per_1000_a_year(self, event: Event) -> Decimal | None:
        """The same as if the whole year were like the period."""
        return _rate(self.counts[event][ALL], self.members, _YEAR / self.days)

    def references(self) -> set[str]:
        """The practices and hospitals that are counted."""
        keys = (key for counts in self.counts.values() for key in counts)
        return {each for key in keys for each in key if each is not None and each != UNKNOWN}


def _rate(count: int, members: int, times: Decimal) -> Decimal | None:
    if not members:
        return None
    return (Decimal(count) * 1000 * times / members).quantize(Decimal("0.1"))


async def utilization(asked: Asked) -> Utilization:
    """The counts of a period: what began in it, whatever came of it later."""
    period = asked.period
    before = period.start - timedelta(days=READMITTED + 1)
    inpatient = await stays.inpatient(asked.population, asked.base_url, stays.ended_since(before))
    emergencies = await stays.read(
        asked.population, [stays.EMERGENCY], asked.base_url, stays.began_since(period.start)
    )
    events: list[tuple[Event, Stay]] = [
        *_within(asked, "admission", inpatient),
        *_within(asked, "emergency-visit", emergencies),
    ]
    again = stays.readmissions(inpatient, period.start, period.end, period.zone)
    events += [("readmission", stay) for stay, _ in again]
    patients = frozenset(stay.patient for _, stay in events)
    practices = {
        patient: of[0].practice if of else UNKNOWN
        for patient, of in (await providers(asked.context, patients)).items()
    }
    found = Utilization(len(asked.population), max((period.end - period.start).days + 1, 1))
    for event, stay in events:
        found.add(event, practices[stay.patient], stay.hospital or UNKNOWN)
    return found


def _within(asked: Asked, event: Event, found: Sequence[Stay]) -> list[tuple[Event, Stay]]:
    start, end = asked.period.start, asked.period.end
    return [(event, stay) for stay in found if stay.began_within(start, end)]
